"""Simulated sessions in exactly MSSD's files, with the hidden truth beside them."""

from __future__ import annotations

import datetime
import gzip
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from gzip import GzipFile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from utils.data.schema import (
    FEATURE_COLUMNS,
    INPUT_COLUMNS,
    MAX_LENGTH,
    N_SPLITS,
    log_file,
)
from utils.simulator.behaviour import Behaviour
from utils.simulator.log_columns import FIRST_DAY, categories, draw_log, fixed_strings, log_table
from utils.simulator.sessions import SimulatedSessions, draw_sessions
from utils.simulator.world import World, random_uuids


class Job(NamedTuple):
    """One (day, split) of the output; split `TEST` is the challenge's test set."""

    day: int
    split: int
    n_sessions: int


TEST = N_SPLITS
CHUNK_SESSIONS = 8192
"""Sessions simulated at once: bounds the memory of a job."""
MINI_SESSIONS = 10_000


def day_name(day: int) -> str:
    """YYYYMMDD of day `day`."""
    return (datetime.date.fromisoformat(FIRST_DAY) + datetime.timedelta(days=day)).strftime("%Y%m%d")


def day_index(name: str) -> int:
    """The day of YYYYMMDD: 0 is the first."""
    return (datetime.datetime.strptime(name, "%Y%m%d").date() - datetime.date.fromisoformat(FIRST_DAY)).days


def run_jobs(write: Callable[[Job], int], jobs: list[Job], *, processes: int) -> Iterator[tuple[Job, int]]:
    """(job, write(job)) in order of completion."""
    if processes == 1 or len(jobs) == 1:
        for job in jobs:
            yield job, write(job)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), initializer=_set_write, initargs=(write,)) as pool:
        futures = {pool.submit(_call_write, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


_write: Callable[[Job], int]
"""What a worker process does with a job. Set once in each, so that the world is not sent with every job."""


def _set_write(write: Callable[[Job], int]) -> None:
    global _write
    _write = write


def _call_write(job: Job) -> int:
    return _write(job)


def job_chunks(
    world: World, behaviour: Behaviour, job: Job, *, seed: int
) -> Iterator[tuple[SimulatedSessions, pa.Table]]:
    """The sessions of a job in the order of its file, in chunks: (simulated, their rows)."""
    rng = np.random.default_rng([seed, 10, job.day, job.split])
    lists = world.lists(job.day)
    ids = np.char.add(f"{job.day}_".encode(), np.sort(random_uuids(rng, job.n_sessions)))
    for start in range(0, job.n_sessions, CHUNK_SESSIONS):
        chunk_ids = ids[start : start + CHUNK_SESSIONS]
        sessions = draw_sessions(world, lists, behaviour, rng, len(chunk_ids))
        yield sessions, log_table(world, rng, sessions, draw_log(rng, sessions), chunk_ids, job.day)


def write_job(world: World, behaviour: Behaviour, folder: Path, job: Job, *, gz: bool = False) -> int:
    """Write the log of a job and its hidden truth; returns the number of plays."""
    day = day_name(job.day)
    end = ".csv.gz" if gz else ".csv"
    rows = 0
    with ExitStack() as stack:
        if job.split == TEST:
            name = "test_set"
            logs = [
                stack.enter_context(CsvFile(folder / name / f"log_{part}_{day}_000000000000{end}"))
                for part in ("prehistory", "input")
            ]
            answers = stack.enter_context(ParquetFile(folder / "hidden_truth" / name / f"second_half_{day}.parquet"))
        else:
            name = f"training_set_{job.split}"
            path = folder / name / log_file(job.split, day)
            logs = [stack.enter_context(CsvFile(path.with_suffix(end)))]
        listeners = stack.enter_context(ParquetFile(folder / "hidden_truth" / name / f"listeners_{day}.parquet"))
        propensities = stack.enter_context(ParquetFile(folder / "hidden_truth" / name / f"propensities_{day}.parquet"))
        for sessions, table in job_chunks(world, behaviour, job, seed=world.seed):
            rows += table.num_rows
            listeners.write(listener_table(behaviour, sessions, table))
            propensities.write(propensity_table(sessions, table))
            if job.split == TEST:
                position, length = (table[name].to_numpy() for name in ("session_position", "session_length"))
                first = position <= length // 2
                logs[0].write(table.filter(pa.array(first)))
                logs[1].write(table.filter(pa.array(~first)).select(list(INPUT_COLUMNS)))
                answers.write(table.filter(pa.array(~first)))
            else:
                logs[0].write(table)
    return rows


LISTENER_TYPES = ("listener", "listen-then-skip", "skip-then-listen", "skipper")


def listener_table(behaviour: Behaviour, sessions: SimulatedSessions, table: pa.Table) -> pa.Table:
    """What is hidden of each session: the listener, and whether shuffle is uniformly random."""
    first = table["session_position"].to_numpy() == 1
    return pa.table(
        {
            "session_id": table["session_id"].filter(pa.array(first)),
            "listener_type": categories(sessions.listener_type, LISTENER_TYPES),
            "propensity": behaviour.propensities()[0][sessions.listener_propensity],
            "taste": sessions.listener_taste,
            "uniform_shuffle": sessions.uniform_shuffle,
        }
    )


def propensity_table(sessions: SimulatedSessions, table: pa.Table) -> pa.Table:
    """Plays that a uniformly random shuffle chose, with the probability of its choice given the plays before."""
    propensity = sessions.propensity[np.arange(MAX_LENGTH) < sessions.length[:, None]]
    chosen = pa.array(~np.isnan(propensity))
    columns = table.select(["session_id", "session_position", "track_id_clean"]).filter(chosen)
    return columns.append_column("propensity", pa.array(propensity).filter(chosen))


class CsvFile:
    """A CSV file that is written table by table: no quotes, `true`/`false`, gzipped if its name ends in .gz."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No file name and no time in the gzip header: the same data gives the same bytes.
        self.raw = open(path, "wb")  # noqa: SIM115
        self.file = GzipFile("", "wb", 6, self.raw, mtime=0) if path.suffix == ".gz" else self.raw
        self.options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        self.started = False

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`, after a header if they are the first."""
        if not self.started:
            self.file.write((",".join(table.column_names) + "\n").encode())
            self.started = True
        pyarrow.csv.write_csv(table, self.file, self.options)

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.raw.close()


class ParquetFile:
    """A Parquet file that is written table by table."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.writer: pyarrow.parquet.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`."""
        if self.writer is None:
            self.writer = pyarrow.parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        self.writer.write_table(table)

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()


def write_features(world: World, folder: Path, *, parts: int) -> None:
    """Write `tf_*.csv`, sorted by track id."""
    table = feature_table(world)
    bounds = np.linspace(0, len(table), parts + 1).astype(int)
    for part, (start, stop) in enumerate(pairwise(bounds)):
        with CsvFile(folder / f"tf_{part:012d}.csv") as file:
            file.write(table.slice(start, stop - start))


def write_mini(world: World, folder: Path) -> None:
    """Write the mini set: the first sessions of the first log, booleans spelt `True`/`False`, and their tracks."""
    path = min((folder / "training_set_0").iterdir())
    log = folder / "data_mini" / "training_set" / "log_mini.csv"
    log.parent.mkdir(parents=True)
    tracks, sessions = set(), set()
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as lines, open(log, "w") as mini:
        mini.write(next(lines))
        for line in lines:
            session_id, _, _, track_id, _ = line.split(",", 4)
            sessions.add(session_id)
            if len(sessions) > MINI_SESSIONS:
                break
            tracks.add(track_id)
            mini.write(line.replace("true", "True").replace("false", "False"))
    table = feature_table(world)
    kept = pyarrow.compute.is_in(table["track_id"], pa.array(sorted(tracks)))
    with CsvFile(folder / "data_mini" / "track_features" / "tf_mini.csv") as file:
        file.write(table.filter(kept))


def feature_table(world: World) -> pa.Table:
    """MSSD's 30 track columns, sorted by track id."""
    order = np.argsort(world.track_ids)
    columns = world.audio_features()
    arrays = [fixed_strings(world.track_ids[order])]
    for name in FEATURE_COLUMNS[1:]:
        values = columns[name][order]
        arrays.append(categories(values, ("minor", "major")) if name == "mode" else pa.array(values))
    return pa.table(arrays, names=list(FEATURE_COLUMNS))
