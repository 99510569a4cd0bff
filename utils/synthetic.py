"""`python -m utils.simulator` under its old name, `utils.synthetic`, which the next version drops."""

import sys

from utils.core.cli import cli
from utils.simulator import __main__ as command

if __name__ == "__main__":
    print("utils.synthetic has moved: python -m utils.simulator", file=sys.stderr)
    cli(command.main, command.Config, description=command.__doc__)
