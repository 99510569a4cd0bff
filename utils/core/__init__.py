"""What every command needs: errors, the command line, whole files, memory, processes.

Nothing here knows listening sessions, models or the other rooms.
"""
