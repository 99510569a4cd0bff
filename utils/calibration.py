"""`python -m utils.simulator.calibration` under its old name, `utils.calibration`, which the next version drops."""

import sys

from utils.core.cli import cli
from utils.simulator import calibration as command

if __name__ == "__main__":
    print("utils.calibration has moved: python -m utils.simulator.calibration", file=sys.stderr)
    cli(command.main, command.Config, description=command.__doc__)
