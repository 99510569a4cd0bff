"""Small files in MSSD's raw layout, with its quirks, for tests of what reads them.

Not the simulator: there is nothing to learn in these plays. `mssd_frame` is a day of one split as a DataFrame that a
test can damage before `write_log` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from utils.data import schema

FIRST_DAY = "20180715"


def track_names(n_tracks: int) -> np.ndarray:
    """`n_tracks` ids of MSSD's form (`t_` and a UUID), in ascending order."""
    return np.array([f"t_{i:08x}-0000-4000-8000-{i * 2654435761 % 2**48:012x}" for i in range(n_tracks)])


def days(n_days: int) -> list[str]:
    """The first `n_days` days of MSSD, as YYYYMMDD."""
    return [day.strftime("%Y%m%d") for day in pd.date_range(FIRST_DAY, periods=n_days)]


def mssd_frame(
    *, split: int = 0, day: int = 0, n_sessions: int = 20, n_tracks: int = 50, seed: int = 0
) -> pd.DataFrame:
    """One log: `n_sessions` sessions of 10 to 20 plays (half of them 20), columns and order of the real files."""
    rng = np.random.default_rng([seed, split, day])
    length = np.where(rng.random(n_sessions) < 0.5, 20, rng.integers(10, 21, n_sessions))
    starts = np.cumsum(length) - length
    n = int(length.sum())
    first = np.zeros(n, bool)
    first[starts] = True

    popularity = 1 / np.arange(1, n_tracks + 1)
    track = rng.choice(n_tracks, size=n, p=popularity / popularity.sum())
    keys = np.sort(rng.integers(0, 2**48, n_sessions))
    session = np.array([f"{day}_{split:08x}-{day:04x}-4000-8000-{key:012x}" for key in keys])
    heard = rng.random(n)  # share of the track that was played; about 1.7 % of real plays have no flag at all
    flagged = rng.random(n) > 0.017

    def per_session(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, length)

    frame = {
        "session_id": per_session(session),
        "session_position": np.arange(n) - per_session(starts) + 1,
        "session_length": per_session(length),
        "track_id_clean": track_names(n_tracks)[track],
        "skip_1": flagged & (heard < 0.41),
        "skip_2": flagged & (heard < 0.51),
        "skip_3": flagged & (heard < 0.64),
        "not_skipped": flagged & (heard >= 0.64),
        "context_switch": (rng.random(n) < 0.05).astype(int) * ~first,
        "no_pause_before_play": (rng.random(n) < 0.75).astype(int) * ~first,
        "short_pause_before_play": (rng.random(n) < 0.15).astype(int) * ~first,
        "long_pause_before_play": (rng.random(n) < 0.15).astype(int) * ~first,
        "hist_user_behavior_n_seekfwd": rng.poisson(0.05, n) * np.where(rng.random(n) < 0.01, 30, 1),
        "hist_user_behavior_n_seekback": rng.poisson(0.05, n),
        "hist_user_behavior_is_shuffle": per_session(rng.random(n_sessions) < 0.3),
        "hour_of_day": per_session(rng.integers(0, 24, n_sessions)),
        "date": np.where(rng.random(n) < 0.001, "2032-05-26", str(pd.Timestamp(days(day + 1)[-1]).date())),
        "premium": per_session(rng.random(n_sessions) < 0.8),
        "context_type": per_session(rng.choice(schema.CONTEXT_TYPES, n_sessions)),
        "hist_user_behavior_reason_start": rng.choice(schema.REASONS_START[:9], n),
        "hist_user_behavior_reason_end": rng.choice(schema.REASONS_END[:7], n),
    }
    return pd.DataFrame(frame)[list(schema.SESSION_COLUMNS)]


def write_log(path: Path, frame: pd.DataFrame) -> Path:
    """Write `frame` as pandas spells it (True/False); gzipped if the name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def features_frame(n_tracks: int, *, seed: int = 0) -> pd.DataFrame:
    """Track features of the real columns."""
    rng = np.random.default_rng(seed)
    frame = {"track_id": track_names(n_tracks)}
    for column in schema.FEATURE_COLUMNS[1:]:
        frame[column] = rng.normal(size=n_tracks).round(6)
    frame["release_year"] = rng.integers(1950, 2019, n_tracks)
    frame["duration"] = rng.normal(230, 60, n_tracks).round(6)
    frame["key"] = rng.integers(0, 12, n_tracks)
    frame["time_signature"] = rng.choice([1, 3, 4, 5], n_tracks)
    frame["mode"] = rng.choice(["major", "minor"], n_tracks)
    return pd.DataFrame(frame)


def write_features(folder: Path, frame: pd.DataFrame, *, files: int = 2) -> None:
    """Write `track_features/tf_*.csv`, the rows in blocks as in the real files."""
    (folder / "track_features").mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate(np.array_split(np.arange(len(frame)), files)):
        frame.iloc[rows].to_csv(folder / "track_features" / f"tf_{i:012d}.csv", index=False)


def write_mssd(
    folder: Path,
    *,
    n_days: int = 4,
    splits: Sequence[int] = (0,),
    n_sessions: int = 20,
    n_tracks: int = 50,
    gzipped: bool = False,
    seed: int = 0,
) -> Path:
    """Write a whole raw folder: `training_set_{s}/log_{s}_{day}_000000000000.csv` and `track_features/`."""
    for split in splits:
        for day, name in enumerate(days(n_days)):
            frame = mssd_frame(split=split, day=day, n_sessions=n_sessions, n_tracks=n_tracks, seed=seed)
            path = folder / f"training_set_{split}" / (schema.log_file(split, name) + (".gz" if gzipped else ""))
            if n_sessions > 1000 and not gzipped:  # pandas is slow on large files
                path.parent.mkdir(parents=True, exist_ok=True)
                pa.csv.write_csv(pa.Table.from_pandas(frame), path, pa.csv.WriteOptions(quoting_style="none"))
            else:
                write_log(path, frame)
    write_features(folder, features_frame(n_tracks))
    return folder


def replace_field(column: str, value: str):
    """A change of a line of a log: another value in a column."""

    def change(line: str) -> str:
        fields = line.split(",")
        fields[schema.SESSION_COLUMNS.index(column)] = value
        return ",".join(fields)

    return change


def damage_line(path: Path, line: int, change) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))
