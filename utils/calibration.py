"""`python -m utils.calibration` under its old name; the next version has `python -m utils.simulator.calibration` only."""

import sys

from utils.core.cli import cli
from utils.simulator import calibration as command

if __name__ == "__main__":
    print("utils.calibration has moved: python -m utils.simulator.calibration", file=sys.stderr)
    cli(command.main, command.Config, description=command.__doc__)
