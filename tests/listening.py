"""Small dataset folders of listeners' plays, with everything that `utils/data/past.py` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data import schema
from utils.data.vocab import N_SPECIAL, UNK, vocabulary_hash

SPLITS = ("train", "valid", "test")
START = 1_700_000_000
"""Seconds since 1970: 2023-11-14, 22:13:20 UTC."""
KNOWN = {1: schema.SKIP_2, 0: schema.SKIP_PLAYED, -1: schema.SKIP_UNKNOWN}


def write_listening(
    folder: Path, plays: pd.DataFrame, *, names: bool = True, times: bool = True, seconds: bool = True, ids: bool = True
) -> Path:
    """A dataset folder of plays.

    Args:
        folder: is made.
        plays: split, session, user, track, label (1, 0, -1), time (seconds after `START`), seconds; perhaps artist,
            album, day; in order of position within each session.
        names: write artists and albums of tracks.
        times: write when plays started.
        seconds: write how long they lasted.
        ids: write `full_ids.npy` and `new_tracks.parquet`.
    """
    folder.mkdir(parents=True)
    plays = plays.copy()
    first = plays.groupby("session", sort=False)["time"].transform("first")
    plays = plays.assign(start=first, at=np.arange(len(plays))).sort_values(["start", "session", "at"])
    known = sorted(set(plays.loc[plays["split"] == "train", "track"]))
    new = sorted(set(plays["track"]) - set(known))
    n_ids = N_SPECIAL + len(known)
    of_track = plays.drop_duplicates("track").set_index("track")
    for tracks, name in ((known, "tracks"), (new, "new_tracks")):
        table = {"track_id": pd.Series(tracks, dtype=object)}
        if name == "tracks":
            counts = plays.loc[plays["split"] == "train", "track"].value_counts()
            table |= {"index": np.arange(N_SPECIAL, n_ids, dtype=np.int32), "train_plays": counts[tracks].to_numpy()}
        for column in ("artist", "album"):
            if names and column in plays:
                table[column] = pd.Series([of_track.loc[track, column] for track in tracks], dtype="string")
        if ids or name == "tracks":
            pd.DataFrame(table).to_parquet(folder / f"{name}.parquet", index=False)
    np.save(folder / "track_features.npy", np.zeros((n_ids, 0), np.float32))
    number = {track: N_SPECIAL + i for i, track in enumerate(known + new)}
    for split in SPLITS:
        own = plays[plays["split"] == split]
        place = folder / split
        place.mkdir()
        full_ids = own["track"].map(number).to_numpy(np.int32)
        heads = np.flatnonzero((own["session"] != own["session"].shift()).to_numpy())
        micros = ((START + own["time"].to_numpy(float)) * 1e6).round().astype(np.int64)
        log = np.zeros((len(own), len(schema.LOG_COLUMNS)), np.uint8)
        if times:
            log[:, list(schema.LOG_COLUMNS).index("hour_of_day")] = 1 + micros // 3_600_000_000 % 24
        np.save(place / "tracks.npy", np.where(full_ids < n_ids, full_ids, UNK).astype(np.int32))
        np.save(place / "offsets.npy", np.append(heads, len(own)).astype(np.int64))
        np.save(place / "skips.npy", own["label"].map(KNOWN).to_numpy(np.uint8))
        np.save(place / "log.npy", log)
        if ids:
            np.save(place / "full_ids.npy", full_ids)
        if times:
            np.save(place / "times.npy", micros)
        if seconds:
            np.save(place / "seconds.npy", own["seconds"].to_numpy(np.float32))
        head = own.iloc[heads]
        days = pd.to_datetime(micros[heads], unit="us").strftime("%Y%m%d")
        table = {"session_id": head["session"].astype(str), "day": head.get("day", days)}
        table |= {"file": "plays", "premium": np.uint8(0), "context_type": np.uint8(0), "shuffle": np.uint8(0)}
        sessions = pd.DataFrame(table)
        if "user" in plays:
            sessions["user"] = pd.array(head["user"], dtype="string")
        sessions.to_parquet(place / "sessions.parquet", index=False)
    info = {
        "schema_version": 1,
        "name": folder.name,
        "protocol": "plays",
        "vocabulary": {"tracks": len(known), "n_ids": n_ids, "min_count": 1, "hash": vocabulary_hash(known)},
        "features": {"names": []},
        "has_skips": True,
        "has_log": True,
    }
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def random_listening(
    seed: int, *, n_sessions: int = 40, n_users: int = 3, n_tracks: int = 12, overlap: bool = True
) -> pd.DataFrame:
    """Sessions of a few listeners over some weeks; some overlap, some labels, lengths and names are unknown."""
    rng = np.random.default_rng(seed)
    rows = []
    starts = np.sort(rng.integers(0, 60 * 24 * 3600, n_sessions)).astype(float)
    if overlap:
        starts[1::4] = starts[:-1:4][: len(starts[1::4])] + rng.integers(0, 900, len(starts[1::4]))
        starts = np.sort(starts)
    for session, start in enumerate(starts):
        split = SPLITS[int(session >= 0.6 * n_sessions) + int(session >= 0.8 * n_sessions)]
        user = f"u{rng.integers(n_users)}"
        time = start
        for _ in range(rng.integers(1, 9)):
            track = int(rng.integers(n_tracks if split == "train" else n_tracks + 4))
            length = float(rng.integers(0, 300))
            rows.append(
                {
                    "split": split,
                    "session": f"s{session:03}",
                    "user": user,
                    "track": f"t{track:02}",
                    "artist": None if track % 5 == 4 else f"a{track % 3}",
                    "album": None if track % 7 == 6 else f"b{track % 4}",
                    "label": int(rng.choice([1, 0, -1], p=[0.4, 0.45, 0.15])),
                    "time": time,
                    "seconds": np.nan if rng.random() < 0.1 else length,
                }
            )
            time += length + float(rng.integers(-1, 5))
    return pd.DataFrame(rows)
