"""All measurements, one part after another. Each part's rows are saved when it is finished; if all are, only they stay.

python -m benchmarks
python -m benchmarks --quick true
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass

from benchmarks import (
    decoding,
    evaluation,
    large,
    loading,
    next_track,
    past,
    preprocessing,
    pretraining,
    processes,
    training,
)
from benchmarks.rows import Row, heading, latest, save_rows, table
from utils.core.cli import cli
from utils.core.errors import UserError

PARTS = (training, next_track, pretraining, decoding, evaluation, large, processes, loading, preprocessing, past)


@dataclass
class Config:
    """What to measure; the options of a part are those of its own command."""

    quick: bool = False
    """Smaller, fewer contenders, two rounds; saved to another file."""


def main(config: Config) -> list[Row]:
    """Run all parts, then print one table.

    Raises:
        UserError: some parts failed; the rows of the others are printed and saved all the same.
    """
    rows: list[Row] = []
    failed = []
    for part in PARTS:
        name = part.__name__
        try:
            rows += part.main(part.Config(quick=config.quick))
        except Exception as error:
            reason = error if isinstance(error, UserError) else traceback.format_exc()
            print(f"{name} failed: {reason}", file=sys.stderr)
            failed.append(f"python -m {name}")
    print("\nAll together", heading(), table(rows), sep="\n\n")
    if failed:
        raise UserError(f"some parts failed, for the reasons above, and kept their earlier rows: {', '.join(failed)}")
    save_rows(rows, latest(quick=config.quick), keep_others=False)
    return rows


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
