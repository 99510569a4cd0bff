"""Dataset folders of listeners, written without the preprocessing, for tests of what is told of their listening."""

import json

import numpy as np
import pandas as pd

from utils.data import schema
from utils.data.vocab import N_SPECIAL, UNK, vocabulary_hash

SPLITS = ("train", "valid", "test")


def us(text):
    """Microseconds since 1970 of a time in UTC."""
    return int(np.datetime64(text, "us").astype(np.int64))


def write_listening(folder, sessions, *, names=(), new=(), has_times=True):
    """Write a dataset.

    Args:
        folder: to write.
        sessions: (split, user, start, [(track, skip code), ...]); tracks are 3 minutes apart. A play may end in a dict
            of log codes.
        names: (track id, name, artist) of the vocabulary, in order; track i of the sessions is its i-th entry.
        new: the same of tracks outside it, which follow.
    """
    folder.mkdir(parents=True)
    n_ids = N_SPECIAL + len(names)
    for split in SPLITS:
        (folder / split).mkdir()
        mine = [session for session in sessions if session[0] == split]
        plays = [play for session in mine for play in session[3]]
        ids = np.array([play[0] for play in plays], np.int32) + N_SPECIAL
        times = [us(session[2]) + 180_000_000 * i for session in mine for i in range(len(session[3]))]
        log = np.zeros((len(plays), len(schema.LOG_COLUMNS)), np.uint8)
        for row, play in zip(log, plays, strict=True):
            for name, code in play[2].items() if len(play) > 2 else ():
                row[list(schema.LOG_COLUMNS).index(name)] = code
        np.save(folder / split / "tracks.npy", np.where(ids < n_ids, ids, UNK).astype(np.int32))
        np.save(folder / split / "full_ids.npy", ids)
        np.save(folder / split / "offsets.npy", np.cumsum([0, *(len(session[3]) for session in mine)]))
        np.save(folder / split / "skips.npy", np.array([play[1] for play in plays], np.uint8))
        np.save(folder / split / "log.npy", log)
        if has_times:
            np.save(folder / split / "times.npy", np.array(times, np.int64))
        table = pd.DataFrame({"session_id": [f"{split}_{i}" for i in range(len(mine))], "day": "20240101", "file": ""})
        table["user"] = pd.array([session[1] for session in mine], dtype="string")
        table[["premium", "context_type", "shuffle"]] = np.uint8(0)
        table.to_parquet(folder / split / "sessions.parquet", index=False)
    columns = ["track_id", "name", "artist"]
    table = pd.DataFrame(list(names), columns=columns).assign(train_plays=1)
    table.insert(0, "index", np.arange(N_SPECIAL, n_ids, dtype=np.int32))
    table.to_parquet(folder / "tracks.parquet", index=False)
    pd.DataFrame(list(new), columns=columns).to_parquet(folder / "new_tracks.parquet", index=False)
    np.save(folder / "track_features.npy", np.zeros((n_ids, 0), np.float32))
    info = {
        "schema_version": 1,
        "name": folder.name,
        "protocol": "plays",
        "vocabulary": {"n_ids": n_ids, "hash": vocabulary_hash([track for track, _, _ in names])},
        "has_skips": True,
    }
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder
