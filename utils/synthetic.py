"""`python -m utils.synthetic` under its old name; the next version has `python -m utils.simulator` only."""

import sys

from utils.core.cli import cli
from utils.simulator import __main__ as command

if __name__ == "__main__":
    print("utils.synthetic has moved: python -m utils.simulator", file=sys.stderr)
    cli(command.main, command.Config, description=command.__doc__)
