"""From raw logs and tables of plays to dataset folders; `python -m utils.datapreprocessing` is the command.

Sources are read, coded, counted, split and written here. Nothing here knows a model, a metric or the simulator.
"""
