"""The past of plays, from arrays to standardised files, beside a loop in Python over the same listeners.

    python -m benchmarks.past
    python -m benchmarks.past --quick true
    python -m benchmarks.past --large_plays 100000000 --rounds 1

A million simulated plays, a thousand of each listener in sessions of ten; then ten million, which Python is spared.
Ours makes all statistics, relations and details, twice (for the scale, then to write). The loop makes four of the 60
columns, the rates of listener, artist, album and track, and writes nothing. Peak memory includes the pages of the files
that are mapped; the system takes them back when it needs them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.options import fill_in
from benchmarks.rounds import Contender, Step, gate, measure, rows_of
from benchmarks.rows import Row, publish
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.data import schema
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import PastConfig
from utils.data.past import past_columns, with_past
from utils.data.vocab import N_SPECIAL

ALL = PastConfig("running", relations=True, details=True)
LENGTH, OF_LISTENER = 10, 1000
"""Plays of each session and of each listener."""
FAVOURITES = 400
"""Tracks that a listener plays."""
SPAN = 3 * 365 * 86400 * 1_000_000
"""Microseconds from the first session to the last one."""
GATE_PLAYS = 20_000
RATES = ("listener_long", "artist", "album", "track")


@dataclass
class Config:
    """Sizes of the measurement."""

    plays: int = 0
    """Simulated plays; 0: a million, or a tenth of them if quick."""
    large_plays: int = 0
    """Plays that the Python loop is spared; 0: ten million, or if quick no such measurement."""
    tracks: int = 103_000
    """Tracks of the catalogue, ten to an album, twenty to an artist."""
    rounds: int = 0
    """Rounds that are timed; 0: three, or two if quick."""
    quick: bool = False
    """A tenth of the plays, two rounds, without the larger dataset."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if sizes are the defaults."""

    def __post_init__(self) -> None:
        fill_in(self, plays=(1_000_000, 100_000), large_plays=(10_000_000, 0), rounds=(3, 2))
        check_at_least(self, "benchmark", plays=10 * LENGTH, large_plays=0, tracks=FAVOURITES, rounds=1)


def simulate(folder: Path, n_plays: int, n_tracks: int) -> Path:
    """A dataset of that many plays; its last fifth in time are valid and test."""
    rng = np.random.default_rng(0)
    n_sessions = n_plays // LENGTH
    listeners = rng.permutation(n_sessions) // (OF_LISTENER // LENGTH)
    starts = np.linspace(1.5e15, 1.5e15 + SPAN, n_sessions).astype(np.int64)
    folder.mkdir(parents=True)
    bounds = [0, int(0.8 * n_sessions), int(0.9 * n_sessions), n_sessions]
    for split, first, last in zip(schema.SPLITS, bounds[:-1], bounds[1:], strict=True):
        simulate_split(folder / split, listeners[first:last], starts[first:last], n_tracks, rng)
    index = np.arange(N_SPECIAL, N_SPECIAL + n_tracks, dtype=np.int32)
    names = [f"t{i:09}" for i in range(n_tracks)]
    artist, album = (
        pa.array([f"{kind}{i // share}" for i in range(n_tracks)]) for kind, share in (("a", 20), ("b", 10))
    )
    columns = {"index": index, "track_id": names, "train_plays": np.ones(n_tracks, np.int64)}
    pq.write_table(pa.table({**columns, "artist": artist, "album": album}), folder / "tracks.parquet")
    np.save(folder / "track_features.npy", np.zeros((N_SPECIAL + n_tracks, 0), np.float32))
    info = {"schema_version": schema.SCHEMA_VERSION, "protocol": "plays", "has_skips": True, "has_log": True}
    words = {"tracks": n_tracks, "n_ids": N_SPECIAL + n_tracks, "min_count": 0, "hash": "simulated"}
    (folder / "dataset.json").write_text(json.dumps({**info, "vocabulary": words}))
    return folder


def simulate_split(
    folder: Path, listeners: np.ndarray, starts: np.ndarray, n_tracks: int, rng: np.random.Generator
) -> None:
    """Sessions whose listeners play their favourites, the first ones most."""
    folder.mkdir()
    n = len(listeners) * LENGTH
    who = np.repeat(listeners, LENGTH)
    rank = (FAVOURITES * rng.random(n, np.float32) ** 2).astype(np.int64)
    tracks = ((who * 7919 + rank * rank * 31) % n_tracks + N_SPECIAL).astype(np.int32)
    seconds = rng.integers(5, 240, n).astype(np.float32)
    ends = seconds.reshape(-1, LENGTH).cumsum(1, dtype=np.float64)
    times = (starts[:, None] + 1e6 * (ends - seconds.reshape(-1, LENGTH))).astype(np.int64).ravel()
    skipped = rng.random(n, np.float32) < 0.2 + 0.6 * (tracks % 7 < 3)
    np.save(folder / "tracks.npy", tracks)
    np.save(folder / "full_ids.npy", tracks)
    np.save(folder / "seconds.npy", seconds)
    np.save(folder / "times.npy", times)
    np.save(folder / "skips.npy", np.where(skipped, schema.SKIP_2, schema.SKIP_PLAYED).astype(np.uint8))
    np.save(folder / "log.npy", np.zeros((n, len(schema.LOG_COLUMNS)), np.uint8))
    np.save(folder / "offsets.npy", np.arange(0, n + 1, LENGTH))
    ids = pa.array(starts).cast(pa.string())
    table = {"session_id": ids, "day": pa.repeat("20180715", len(ids)), "user": pa.array(listeners).cast(pa.string())}
    pq.write_table(pa.table(table), folder / "sessions.parquet")


# ---------------------------------------------------------------------------------------------------- contenders


def setup_ours(folder: Path) -> Step:
    """`with_past`, from nothing; units are plays."""
    dataset = Dataset.open(folder)

    def step() -> float:
        shutil.rmtree(folder / "past", ignore_errors=True)
        with_past(dataset, ALL)
        return sum(len(dataset.split(split).tracks) for split in schema.SPLITS)

    return step


def setup_python(folder: Path) -> Step:
    """Four rates by dictionaries, as one would first write them; units are plays."""
    dataset = Dataset.open(folder)
    return lambda: len(python_rates(dataset))


def python_rates(dataset: Dataset) -> list[tuple[float, ...]]:
    """Logits of RATES of all plays, splits one after another, sessions of each in order of their start."""
    names = pq.read_table(dataset.folder / "tracks.parquet", columns=["artist", "album"])
    artist, album = ([""] * N_SPECIAL + names[column].to_pylist() for column in ("artist", "album"))
    long: dict[str, tuple[float, float, float, float]] = defaultdict(lambda: (0.0, 0.0, 0.0, 0.0))
    counts: dict[tuple[str, str, object], tuple[int, int]] = defaultdict(lambda: (0, 0))
    found = []
    for split in schema.SPLITS:
        arrays = dataset.split(split)
        users = arrays.columns_of_sessions("user")["user"]
        skips = schema.is_skip(arrays.skips).astype(int).tolist()
        tracks, offsets = arrays.tracks.tolist(), arrays.offsets.tolist()
        for user, first, last in zip(users, offsets[:-1], offsets[1:], strict=True):
            n, s, long_n, long_s = long[user]
            p_long = (long_s + 20 * (s + 8) / (n + 20)) / (long_n + 20)
            for i in range(first, last):
                rates, p = [p_long], p_long
                for kind, key, prior in (("a", artist[tracks[i]], 4), ("b", album[tracks[i]], 3), ("t", tracks[i], 2)):
                    labelled, skipped = counts[user, kind, key]
                    p = (skipped + prior * p) / (labelled + prior)
                    rates.append(p)
                found.append(tuple(math.log(p / (1 - p)) for p in rates))
            for i in range(first, last):
                n, s, long_n, long_s = n + 1, s + skips[i], 0.995 * long_n + 1, 0.995 * long_s + skips[i]
                for kind, key in (("a", artist[tracks[i]]), ("b", album[tracks[i]]), ("t", tracks[i])):
                    labelled, skipped = counts[user, kind, key]
                    counts[user, kind, key] = labelled + 1, skipped + skips[i]
            long[user] = n, s, long_n, long_s
    return found


def check(folder: Path) -> None:
    """Our four columns are those of the Python loop.

    Raises:
        UserError: they are not.
    """
    dataset = with_past(Dataset.open(folder), ALL)
    places = [past_columns(dataset, ALL).index(name) for name in RATES]
    kept = json.loads((folder / "past" / "v1" / "running-relations" / "past.json").read_text())
    expected = np.array(python_rates(dataset))
    ours = np.concatenate([np.asarray(arrays.past)[:, places] for arrays in splits_of(dataset)])
    mean, deviation = (np.array(kept[name])[places] for name in ("mean", "deviation"))
    gate(np.allclose(ours, ((expected - mean) / deviation).clip(-5, 5), atol=5e-3), "rates of the loop in Python")


def splits_of(dataset: Dataset) -> list[SessionArrays]:
    """Train, valid, test."""
    return [dataset.split(split) for split in schema.SPLITS]


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gate, then rounds."""
    check(simulate(folder / "gate", GATE_PLAYS, config.tracks))
    place = simulate(folder / "plays", config.plays, config.tracks)
    contenders = [
        Contender("past/reference", setup_python, {"folder": place}),
        Contender("past/ours", setup_ours, {"folder": place}),
    ]
    rows = rows_of(measure(contenders, rounds=config.rounds, title="past"), "plays/s", quick=config.quick)
    if config.large_plays:
        large = simulate(folder / "large", config.large_plays, config.tracks)
        contenders = [Contender("past/large", setup_ours, {"folder": large})]
        measured = measure(contenders, rounds=config.rounds, title="past, large")
        rows += rows_of(measured, "plays/s", quick=config.quick, alone=["past/large"])
    return rows


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
