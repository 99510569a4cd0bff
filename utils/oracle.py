"""`python -m utils.simulator.oracle` under its old name, `utils.oracle`, which the next version drops."""

import sys

from utils.core.cli import cli
from utils.simulator import oracle as command

if __name__ == "__main__":
    print("utils.oracle has moved: python -m utils.simulator.oracle", file=sys.stderr)
    cli(command.main, command.Config, description=command.__doc__)
