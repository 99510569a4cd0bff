"""Simulate listening sessions in exactly MSSD's files, with known truth (docs/simulator.md).

python -m utils.simulator --out data/raw/demo --sessions 120000 --tracks 5000 --days 10
python -m utils.simulator --out data/raw/large --sessions 1000000 --tracks 103000 --days 20 --processes 2
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError
from utils.data.schema import (
    N_SPLITS,
)

if TYPE_CHECKING:
    from utils.simulator.log_files import Job


@dataclass(frozen=True)
class Config:
    """What to simulate."""

    out: str = "data/raw/demo"
    """Folder to write; must not exist."""
    sessions: int = 120_000
    """Training sessions in all, spread evenly over days and splits."""
    test_sessions: int = 6_000
    """Sessions of the challenge's test set in all; the answers of their second halves go to hidden_truth/ only."""
    tracks: int = 5_000
    """Tracks of the catalogue, 1,000 to 3,700,000."""
    days: int = 10
    """Days from 2018-07-15 on (MSSD has 66)."""
    splits: int = 1
    """Training files a day (MSSD has 10)."""
    seed: int = 0
    """The same seed and sizes give the same bytes, whatever the number of processes."""
    processes: int = 0
    """Processes that write files; 0 is one for each core."""
    gzip: bool = False
    """Write .csv.gz instead of .csv."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("sessions", 1, None),
            ("test_sessions", 0, None),
            ("days", 1, 366),
            ("splits", 1, N_SPLITS),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise UserError(f"--{name} {value} must be {low} or more" + (f" and at most {high}" if high else ""))


def main(config: Config) -> None:
    """Simulate and write everything to `config.out`, which appears when it is whole."""
    from tqdm import tqdm

    from utils.core.files import atomic_folder, write_json
    from utils.simulator.behaviour import Behaviour
    from utils.simulator.log_files import run_jobs, write_features, write_job, write_mini
    from utils.simulator.world import build_world

    world = build_world(seed=config.seed, n_tracks=config.tracks)
    jobs = list(jobs_of(config))
    with atomic_folder(Path(config.out), overwrite=config.overwrite, holds="hidden_truth") as folder:
        write_features(world, folder / "track_features", parts=2)
        write = partial(write_job, world, Behaviour(), folder, gz=config.gzip)
        rows, n_sessions = 0, config.sessions + config.test_sessions
        with tqdm(total=n_sessions, unit=" sessions", desc="simulating", disable=None) as bar:
            for job, job_rows in run_jobs(write, jobs, processes=config.processes or os.cpu_count() or 1):
                rows += job_rows
                bar.update(job.n_sessions)
        write_mini(world, folder)
        truth = {"seed": config.seed, "n_tracks": config.tracks, "days": config.days, "splits": config.splits}
        truth |= {"sessions": config.sessions, "test_sessions": config.test_sessions, "rows": rows}
        write_json(folder / "hidden_truth" / "world.json", truth)
    print(f"{config.out}: {n_sessions:,} sessions, {rows:,} plays of {config.tracks:,} tracks over {config.days} days")


def jobs_of(config: Config) -> Iterator[Job]:
    from utils.simulator.log_files import TEST, Job

    for total, splits in ((config.sessions, range(config.splits)), (config.test_sessions, [TEST])):
        cells = [(day, split) for day in range(config.days) for split in splits]
        for i, (day, split) in enumerate(cells):
            n_sessions = total * (i + 1) // len(cells) - total * i // len(cells)
            if n_sessions:
                yield Job(day, split, n_sessions)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
