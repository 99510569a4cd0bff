"""All measurements, one part after another. Each part's rows are saved when it is finished; at the end, only they stay.

python -m benchmarks
python -m benchmarks --quick true
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import decoding, evaluation, loading, preprocessing, training
from benchmarks.rows import Row, heading, save_rows, table
from utils.cli import cli


@dataclass
class Config:
    """What to measure; the options of a part are those of its own command."""

    quick: bool = False
    """Smaller, fewer contenders, two rounds; saved to another file."""


def main(config: Config) -> list[Row]:
    """Run all parts, then print one table."""
    rows = [
        *training.main(training.Config(quick=config.quick)),
        *decoding.main(decoding.Config(quick=config.quick)),
        *evaluation.main(evaluation.Config(quick=config.quick)),
        *loading.main(loading.Config(quick=config.quick)),
        *preprocessing.main(preprocessing.Config(quick=config.quick)),
    ]
    print("\nAll together", heading(), table(rows), sep="\n\n")
    save_rows(rows, keep_others=False)
    return rows


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
