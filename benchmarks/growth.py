"""How time and memory grow with the number of sessions and of tracks: a table, exponents, a picture.

    python -m benchmarks.growth
    python -m benchmarks.growth --quick true
    python -m benchmarks.growth --sessions '[10000, 100000]' --tracks '[10000, 100000]' --picture growth.png

Each point is a process of its own. Along sessions: preprocessing (of raw logs over ten days), training (an epoch, by
the rate of its updates), and scoring (metrics with intervals, of predictions that are there). Along tracks: training
with 2,048 negatives, ranking of the true next tracks, and the search for the ten best. The exponent b of n^b is the
slope of a line through the logarithms of the last three points, where fixed costs count less. Ten million sessions take
some 45 GB in the temporary folder (TMPDIR), most of it raw logs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import workload
from benchmarks.evaluation import our_ranks, our_top
from benchmarks.large import MANY, seq_transformer, setup_prediction, setup_training
from benchmarks.options import fill_in, has_usual_sizes, settings
from benchmarks.preprocessing import preprocess, simulate
from benchmarks.preprocessing import setup as setup_preprocessing
from benchmarks.rounds import Contender, Step, measure
from benchmarks.rows import Row, heading, save_rows, table
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.core.files import atomic_file
from utils.data.dataset import SessionArrays
from utils.evaluation.predictions import SkipPredictions
from utils.evaluation.scores import evaluate_skip

LATEST_GROWTH = Path(__file__).parent / "latest_growth.json"
LATEST_PICTURE = Path(__file__).parent.parent / "docs" / "growth.png"
FEW_TRACKS = 103_000
SESSIONS = [10_000, 100_000, 1_000_000, 10_000_000]
TRACKS = [10_000, FEW_TRACKS, 1_000_000, 3_700_000]
DAYS = 10
LOG_SESSIONS = 100_000
"""Sessions of a log at most: more sessions are more logs. MSSD's have 190,000 each."""


@dataclass
class Config:
    """Sizes of the measurement."""

    sessions: list[int] = field(default_factory=list)
    """Numbers of sessions, with 103,000 tracks; none: 10^4, 10^5, 10^6 and 10^7, or the first two if quick."""
    tracks: list[int] = field(default_factory=list)
    """Numbers of tracks; none: 10^4, 103,000, 10^6 and 3.7 million, or the first two if quick."""
    rounds: int = 0
    """Rounds that are timed; 0: three, or one if quick."""
    steps: int = 4
    """Batches of a round of training."""
    quick: bool = False
    """One round, and by default only two numbers of each."""
    picture: Path = LATEST_PICTURE
    """File for the picture; drawn only if sizes are the defaults, or a file is named."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest_growth.json, if sizes are the defaults and it is not quick."""

    def __post_init__(self) -> None:
        fill_in(self, rounds=(3, 1))
        check_at_least(self, "benchmark", rounds=1, steps=1)
        some = 2 if self.quick else None
        self.sessions = sorted(set(self.sessions or SESSIONS[:some]))
        self.tracks = sorted(set(self.tracks or TRACKS[:some]))
        if min(*self.sessions, *self.tracks) < 1:
            raise UserError("sessions and tracks must be lists of numbers of 1 or more, such as [10000, 100000]")


# ---------------------------------------------------------------------------------------------------- contenders


def setup_scoring(folder: Path) -> Step:
    """Metrics with intervals of all sessions of a folder, whose predictions are random; units are sessions."""
    arrays = SessionArrays.open(folder)
    loader = workload.loader(arrays, replace(MANY, batch_size=4096), shuffle=False)
    probability = np.random.default_rng(0).random((loader.n_examples, loader.target_size), np.float32)

    def step() -> float:
        evaluate_skip(SkipPredictions.of(probability), loader.targets()).summary()
        return loader.n_examples

    return step


# --------------------------------------------------------------------------------------------------- measurement


def contenders_of(config: Config, folder: Path) -> Iterator[Contender]:
    """What is measured, named growth/<curve>-<size>. What they work on is simulated when their turn comes."""

    def contender(curve: str, size: int, setup: Callable[..., Step], **options: Any) -> Contender:
        return Contender(f"growth/{curve}-{size}", setup, options)

    training: dict[str, Any] = {"steps": config.steps, "build": seq_transformer}
    for n in config.sessions:
        splits = min(max(n // (DAYS * LOG_SESSIONS), 1), 10)
        raw = simulate(folder, sessions=n, tracks=FEW_TRACKS, days=DAYS, splits=splits)
        out = folder / f"out-{n}"
        yield contender("preprocess/sessions", n, setup_preprocessing, job=preprocess, raw=raw, out=out, rows=n)
        arrays, sizes = folder / f"sessions-{n}", replace(MANY, tracks=FEW_TRACKS)
        workload.full_sessions(arrays, n, sizes)
        yield contender("train/sessions", n, setup_training, folder=arrays, sizes=sizes, **training)
        yield contender("score/sessions", n, setup_scoring, folder=arrays)
    for n in config.tracks:
        arrays, sizes = folder / f"tracks-{n}", replace(MANY, tracks=n)
        workload.full_sessions(arrays, config.steps * MANY.batch_size, sizes)
        yield contender("train/tracks", n, setup_training, folder=arrays, sizes=sizes, **training)
        yield contender("rank/tracks", n, setup_prediction, folder=arrays, sizes=sizes, predictor=our_ranks)
        yield contender("top-10/tracks", n, setup_prediction, folder=arrays, sizes=sizes, predictor=our_top)


def measure_all(config: Config, out: Path | None) -> list[Row]:
    """Each point in a process of its own, one at a time; its row is saved at once, if there is a file for it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders_of(config, Path(folder)):
            (found,) = measure([contender], rounds=config.rounds, title=contender.name).values()
            rows.append(replace(found.row("sessions/s", quick=config.quick), settings=settings(config)))
            if out is not None:
                save_rows(rows[-1:], out)
    return rows


Points = dict[int, Row]
"""Size -> what was measured."""


def curves_of(rows: Sequence[Row]) -> dict[str, Points]:
    """The rows of each curve: "train/sessions" -> size -> row."""
    curves: dict[str, Points] = {}
    for row in rows:
        curve, _, size = row.name.removeprefix("growth/").rpartition("-")
        curves.setdefault(curve, {})[int(size)] = row
    return curves


def seconds(curve: str, size: int, row: Row) -> float:
    """What a point costs: all of its sessions where their number grows, else a thousand sessions."""
    return (size if curve.endswith("sessions") else 1000) / row.value


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """b of the power law n^b through the last three points (or two)."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(costs[-3:]), 1)[0])


def describe(rows: Sequence[Row]) -> str:
    """For each curve the exponents, and time and memory at each point."""
    lines = []
    for curve, points in curves_of(rows).items():
        sizes = list(points)
        times = [seconds(curve, size, row) for size, row in points.items()]
        memory = [row.peak_mib or 0.0 for row in points.values()]
        unit = "" if curve.endswith("sessions") else " a thousand sessions"
        grows = "one point only"
        if len(sizes) > 1:
            grows = f"time as n^{exponent(sizes, times):.2f}, memory as n^{exponent(sizes, memory):.2f}"
        each = ", ".join(
            f"{size:,}: {time:.3g} s{unit}, {mib:,.0f} MiB"
            for size, time, mib in zip(sizes, times, memory, strict=True)
        )
        lines.append(f"{curve:20} {grows}\n    {each}")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time and memory against sessions and tracks, all axes logarithmic."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    for curve, points in curves_of(rows).items():
        name, _, axis = curve.partition("/")
        column = int(axis == "tracks")
        sizes = list(points)
        costs = [[seconds(curve, size, row) for size, row in points.items()], [r.peak_mib for r in points.values()]]
        for line, values in enumerate(costs):
            axes[line, column].plot(sizes, values, marker="o", label=name)
    labels = (("seconds for all sessions", "seconds for a thousand sessions"), ("peak memory, MiB", "peak memory, MiB"))
    for line, column in np.ndindex(2, 2):
        axes[line, column].set(xscale="log", yscale="log", ylabel=labels[line][column])
        axes[line, column].grid(alpha=0.3)
    for column, axis in enumerate(("sessions", "tracks")):
        axes[1, column].set_xlabel(axis)
        axes[0, column].legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def main(config: Config) -> list[Row]:
    """Measure, print, save and draw."""
    is_latest = has_usual_sizes(config) and not config.quick
    rows = measure_all(config, config.out or (LATEST_GROWTH if is_latest else None))
    print(heading(), table(rows), describe(rows), sep="\n\n")
    if config.picture != LATEST_PICTURE or is_latest:
        draw(rows, config.picture)
    return rows


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
