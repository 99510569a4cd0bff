"""Shuffled batches from memory-mapped arrays, beside collation in Python.

    python -m benchmarks.loading
    python -m benchmarks.loading --quick true

Ten million sessions of MSSD's lengths, 2.8 GB, in one process. A round of the loader is an epoch, drawing its order
included. Peak memory includes the pages of the files that are mapped; the system takes them back when it needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks import reference, workload
from benchmarks.options import fill_in
from benchmarks.rounds import Contender, Step, gate, measure, rows_of
from benchmarks.rows import Row, publish
from benchmarks.workload import Sizes
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.data.dataset import SessionArrays
from utils.data.schema import MAX_LENGTH, MIN_LENGTH
from utils.simulator.figures import LENGTH_SESSIONS

BATCH_SIZE = 4096
GATE_BATCHES = 3


@dataclass
class Config:
    """Sizes of the measurement."""

    sessions: int = 0
    """Sessions in the arrays; 0: ten million, or one if quick."""
    rounds: int = 0
    """Rounds that are timed; 0: seven, or two if quick."""
    quick: bool = False
    """A tenth of the sessions, two rounds."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if the number of sessions is the default."""

    def __post_init__(self) -> None:
        fill_in(self, sessions=(10_000_000, 1_000_000), rounds=(7, 2))
        check_at_least(self, "benchmark", sessions=1, rounds=1)


def setup_python(folder: Path, sizes: Sizes) -> Step:
    """A batch by slices and lists."""
    batches = reference.batches(SessionArrays.open(folder), sizes)

    def step() -> float:
        return len(next(batches).rows)

    return step


def setup_loader(folder: Path, sizes: Sizes) -> Step:
    """An epoch of `SessionLoader`."""
    loader = workload.loader(SessionArrays.open(folder), sizes)

    def step() -> float:
        return sum(len(batch.rows) for batch in loader)

    return step


def check(arrays: SessionArrays, sizes: Sizes) -> None:
    """The loader's batches are those of the Python collation.

    Raises:
        UserError: they are not.
    """
    loader = workload.loader(arrays, sizes)
    for batch in islice(loader, GATE_BATCHES):
        same = reference.makes_the_same(loader, batch)
        gate(same, "batches of SessionLoader are not those of the Python collation")


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Simulate, gate, then rounds."""
    sizes = Sizes(batch_size=BATCH_SIZE)
    shares = np.array(LENGTH_SESSIONS) / sum(LENGTH_SESSIONS)
    lengths = np.random.default_rng(1).choice(np.arange(MIN_LENGTH, MAX_LENGTH + 1), config.sessions, p=shares)
    check(workload.write_sessions(folder / "train", lengths, tracks=sizes.tracks), sizes)
    setups = {"load/python": setup_python, f"load/shuffled-{BATCH_SIZE}": setup_loader}
    contenders = [
        Contender(name, setup, {"folder": folder / "train", "sizes": sizes}) for name, setup in setups.items()
    ]
    measured = measure(contenders, rounds=config.rounds, title="loading")
    return rows_of(measured, "sessions/s", quick=config.quick)


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
