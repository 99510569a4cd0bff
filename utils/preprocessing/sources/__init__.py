"""Services whose exports become plays: one module each, with one function `read`, named after `--source`.

A source knows the files of its service: what is a play, what is skipped, what is no music. It writes plays in the form
of `plays.py`; it makes no sessions, no splits and no dataset, and it knows no other source.
"""
