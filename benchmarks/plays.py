"""A table of plays of the shape of Yambda through preprocessing, beside plain scans of its columns.

    python -m benchmarks.plays
    python -m benchmarks.plays --rows '[1000000]'
    python -m benchmarks.plays --quick true

The plays are simulated: listeners in turn, each with sessions, times in steps of five seconds with ties, and a long
tail of tracks. DuckDB and PyArrow read the six columns and nothing else happens; "source" converts them to plays;
"whole" makes the dataset. All have processes of their own, so peaks of memory are theirs. A hundred million rows take
some 8 GB in the temporary folder (TMPDIR).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.options import fill_in
from utils.core.checks import check_at_least
from utils.core.errors import UserError

LATEST_PLAYS = Path(__file__).parent / "latest_plays.json"
ROWS = [1_000_000, 10_000_000, 100_000_000]
SCHEMA = pa.schema(
    [
        ("uid", pa.uint32()),
        ("timestamp", pa.uint32()),
        ("item_id", pa.uint32()),
        ("is_organic", pa.uint8()),
        ("played_ratio_pct", pa.uint16()),
        ("track_length_seconds", pa.uint32()),
    ]
)
"""Of Yambda's listens.parquet."""
CHUNK = 1_000_000
"""Plays that are drawn at once, about."""
PLAYS_OF_A_LISTENER = 5_000
PLAYS_OF_A_SESSION = 15
PLAYS_OF_A_TRACK = 20
"""Means, about those of Yambda's 50m."""
LAST = 26_000_000
"""Seconds that all plays take."""
TAIL = 0.95
"""The chance of a track is its rank to the power of minus this: the first hundredth of the tracks have more than half
of the plays, and many tracks have one."""


@dataclass
class Config:
    """Sizes of the measurement."""

    rows: list[int] = field(default_factory=list)
    """Numbers of plays; none: 10^6, 10^7 and 10^8, or 10^5 if quick."""
    rounds: int = 0
    """Rounds that are timed, after one that is not; 0: three (one from 10^8 on), or one if quick."""
    quick: bool = False
    """A hundred thousand plays, one round."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest_plays.json, if sizes are the defaults and it is not quick."""

    def __post_init__(self) -> None:
        fill_in(self, rounds=(3, 1))
        check_at_least(self, "benchmark", rounds=1)
        self.rows = sorted(set(self.rows or (ROWS[:1] if not self.quick else [100_000])))
        if self.rows[0] < 1:
            raise UserError("rows must be a list of numbers of 1 or more, such as [1000000]")


# ---------------------------------------------------------------------------------------------------- simulation


def simulate(path: Path, rows: int, *, seed: int = 0) -> None:
    """Write `rows` plays as Yambda's `listens.parquet`, sorted by listener and time, a chunk of listeners at a time."""
    rng = np.random.default_rng(seed)
    tracks = max(rows // PLAYS_OF_A_TRACK, 10)
    done = listeners = 0
    with pq.ParquetWriter(path, SCHEMA) as writer, tqdm(total=rows, desc="simulating", unit_scale=True) as bar:
        while done < rows:
            sizes = draw_sizes(rng, min(CHUNK, rows - done))
            columns = draw_plays(rng, sizes, tracks)
            columns["uid"] += 10 * (listeners + 1)
            writer.write_table(pa.table([pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names],
                                        schema=SCHEMA))  # fmt: skip
            done, listeners = done + int(sizes.sum()), listeners + len(sizes)
            bar.update(int(sizes.sum()))


def draw_sizes(rng: np.random.Generator, rows: int) -> NDArray[np.int64]:
    """Plays of listeners, `rows` together: a long tail of them, too."""
    sizes = np.ceil(rng.lognormal(np.log(PLAYS_OF_A_LISTENER) - 0.5, 1.0, 2 * rows // PLAYS_OF_A_LISTENER + 8))
    ends = np.minimum(sizes.cumsum(), rows).astype(np.int64)
    found = np.diff(ends, prepend=0)
    found = found[found > 0]
    found[-1] += rows - found.sum()
    return found


def draw_plays(rng: np.random.Generator, sizes: NDArray[np.int64], tracks: int) -> dict[str, NDArray[np.int64]]:
    """Column of `SCHEMA` -> its values, for listeners 0, 10, 20, ... with so many plays each."""
    n = int(sizes.sum())
    listener = np.repeat(np.arange(len(sizes)), sizes)
    # The inverse of the distribution of ranks; ids are scattered, as popularity says nothing of an id.
    power = 1 - TAIL
    rank = ((rng.random(n) * (tracks**power - 1) + 1) ** (1 / power)).astype(np.int64) - 1
    item = rank * 7_368_787 % tracks + 1
    length = 5 * (20 + item * 2_654_435_761 % 47)  # 100 to 330 s, of the track
    kind = rng.random(n)
    ratio = np.where(kind < 0.63, 100, rng.integers(1, 50, n))
    ratio[kind < 0.05] = rng.integers(50, 100, int((kind < 0.05).sum()))
    ratio[kind > 0.925] = 0
    ratio[kind > 0.9955] = rng.integers(101, 160, int((kind > 0.9955).sum()))
    starts = rng.random(n) < 1 / PLAYS_OF_A_SESSION
    first = np.zeros(n, bool)
    first[sizes.cumsum()[:-1]] = first[0] = True
    starts |= first
    session = starts.cumsum() - 1
    organic = (rng.random(session[-1] + 1) < 0.52)[session]
    pause = rng.exponential(1.0, n) * (0.7 * LAST / (sizes / PLAYS_OF_A_SESSION + 1))[listener]
    gap = np.where(starts, pause, np.where(rng.random(n) < 0.07, 0, length * ratio / 100))
    time = gap.cumsum()
    at = np.flatnonzero(first)
    time -= np.repeat(time[at] - gap[at], sizes)
    last = np.maximum(time[np.append(at[1:], n) - 1], LAST)
    time *= np.repeat(LAST / last, sizes)
    return {
        "uid": listener * 10,
        "timestamp": time.astype(np.int64) // 5 * 5,
        "item_id": item,
        "is_organic": organic.astype(np.int64),
        "played_ratio_pct": ratio,
        "track_length_seconds": length,
    }
