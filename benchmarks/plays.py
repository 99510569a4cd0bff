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

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.options import fill_in, has_usual_sizes, settings
from benchmarks.rounds import Contender, Step, measure, rows_of
from benchmarks.rows import Row, heading, save_rows, table
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.errors import UserError

LATEST_PLAYS = Path(__file__).parent / "latest_plays.json"
ROWS = [1_000_000, 10_000_000, 100_000_000]
FEW, MANY = 100_000, 100_000_000
"""Plays if it is quick; plays from which on there is one round."""
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
        self.rows = sorted(set(self.rows or ([FEW] if self.quick else ROWS)))
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


# ---------------------------------------------------------------------------------------------------- contenders


Job = Callable[[Path, Path], None]
"""Makes something of a file of plays in an empty place."""


def scan_duckdb(path: Path, out: Path) -> None:
    """DuckDB reads all columns, and adds them up."""
    import duckdb

    sums = ", ".join(f'sum("{name}")' for name in SCHEMA.names)
    duckdb.connect().execute(f"SELECT {sums} FROM read_parquet(?)", [str(path)]).fetchall()


def scan_pyarrow(path: Path, out: Path) -> None:
    """PyArrow reads all columns, a batch at a time."""
    for batch in pq.ParquetFile(path).iter_batches():
        del batch


def source(path: Path, out: Path) -> None:
    """The source writes plays."""
    from utils.preprocessing.options import SourceOptions
    from utils.preprocessing.sources.yambda import read

    out.mkdir()
    read(path, out, SourceOptions())


def whole(path: Path, out: Path) -> None:
    """`utils.datapreprocessing --source yambda`."""
    from utils.datapreprocessing import main
    from utils.preprocessing.options import Config

    main(Config(source="yambda", plays=path, out=out))


JOBS: tuple[Job, ...] = (scan_duckdb, scan_pyarrow, source, whole)


def setup(job: Job, path: Path, out: Path, rows: int) -> Step:
    """The job after its imports; units are plays."""
    import duckdb  # noqa: F401  all jobs have the same modules in memory
    import ibis.backends.duckdb  # noqa: F401

    import utils.datapreprocessing
    import utils.preprocessing.plays_dataset
    import utils.preprocessing.sources.yambda  # noqa: F401

    def step() -> float:
        shutil.rmtree(out, ignore_errors=True)
        job(path, out)
        return rows

    return step


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, out: Path | None) -> Iterator[Row]:
    """All jobs with the same plays, one number of plays after another; rows are saved at once, if there is a file."""
    for n in config.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "listens.parquet"
            simulate(path, n)
            contenders = [
                Contender(
                    f"plays/{job.__name__.replace('_', '-')}-{n}",
                    setup,
                    {"job": job, "path": path, "out": Path(folder) / job.__name__, "rows": n},
                )
                for job in JOBS
            ]
            rounds = min(config.rounds, 1) if n >= MANY else config.rounds
            measured = measure(contenders, rounds=rounds, title=f"{n:,} plays")
        found = [replace(row, settings=settings(config)) for row in rows_of(measured, "rows/s", quick=config.quick)]
        if out is not None:
            save_rows(found, out)
        yield from found


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    is_latest = has_usual_sizes(config) and not config.quick
    rows = list(measure_all(config, config.out or (LATEST_PLAYS if is_latest else None)))
    print(heading(), table(rows), sep="\n\n")
    return rows


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
