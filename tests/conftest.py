"""A small dataset folder with a rule in it, written without the preprocessing, for tests of everything behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from utils.data import schema
from utils.data.batch import History, SessionBatch
from utils.data.vocab import N_SPECIAL, vocabulary_hash

torch.set_num_threads(1)  # pytest-xdist has a process for each core already

N_TRACKS = 40
N_IDS = N_TRACKS + N_SPECIAL


def make_split(folder: Path, *, n_sessions: int, seed: int, has_skips: bool = True, min_length: int = 10) -> None:
    """Sessions that walk up the ids (so the next track can be learned) and skip odd ids (so skips can be, too)."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    lengths = rng.integers(min_length, 21, n_sessions)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    session = np.repeat(np.arange(n_sessions), lengths)
    position = np.arange(len(session)) - offsets[session]
    walk = rng.integers(0, N_TRACKS, n_sessions)[session] + position
    tracks = (N_SPECIAL + walk % N_TRACKS).astype(np.int32)
    noise = rng.random(len(tracks)) < 0.1
    skips = np.where((tracks % 2 == 1) ^ noise, schema.SKIP_1, schema.SKIP_PLAYED).astype(np.uint8)
    sizes = list(schema.LOG_COLUMNS.values())
    log = np.stack([rng.integers(0, size, len(tracks)) for size in sizes], axis=1).astype(np.uint8)
    np.save(folder / "tracks.npy", tracks)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "skips.npy", skips if has_skips else np.full_like(skips, schema.SKIP_UNKNOWN))
    np.save(folder / "log.npy", log if has_skips else np.zeros_like(log))
    sessions = pd.DataFrame(
        {
            "session_id": [f"{folder.name}_{i}" for i in range(n_sessions)],
            "day": "20180715",
            "file": "log",
            "premium": rng.integers(1, 3, n_sessions).astype(np.uint8),
            "context_type": rng.integers(1, 7, n_sessions).astype(np.uint8) if has_skips else np.uint8(0),
            "shuffle": rng.integers(1, 3, n_sessions).astype(np.uint8),
        }
    )
    sessions.to_parquet(folder / "sessions.parquet", index=False)


def make_dataset(
    folder: Path, *, n_sessions: int = 64, n_features: int = 3, has_skips: bool = True, min_length: int = 10
) -> Path:
    """A dataset folder as docs/data.md describes it; valid and test are a quarter as large as train."""
    folder.mkdir(parents=True)
    sizes = {"train": n_sessions, "valid": n_sessions // 4, "test": n_sessions // 4}
    for seed, (split, size) in enumerate(sizes.items()):
        make_split(folder / split, n_sessions=size, seed=seed, has_skips=has_skips, min_length=min_length)
    rng = np.random.default_rng(9)
    features = rng.standard_normal((N_IDS, n_features)).astype(np.float32)
    features[:N_SPECIAL] = 0
    np.save(folder / "track_features.npy", features)
    plays = np.bincount(np.load(folder / "train" / "tracks.npy"), minlength=N_IDS)[N_SPECIAL:]
    ids = [f"t_{i}" for i in range(N_TRACKS)]
    tracks = pd.DataFrame({"index": np.arange(N_SPECIAL, N_IDS, dtype=np.int32), "track_id": ids, "train_plays": plays})
    tracks.to_parquet(folder / "tracks.parquet", index=False)
    info = {
        "schema_version": 1,
        "name": folder.name,
        "protocol": "temporal",
        "vocabulary": {"tracks": N_TRACKS, "n_ids": N_IDS, "min_count": 1, "hash": vocabulary_hash(ids)},
        "features": {"names": [f"feature_{i}" for i in range(n_features)]},
        "has_skips": has_skips,
        "has_log": has_skips,
    }
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 64 training sessions; read only."""
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


def random_batch(*, n: int = 6, s: int = 10, t: int = 10, seed: int = 0) -> SessionBatch:
    """A batch of ragged random sessions, padded as the loader pads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    history_length, target_length = draw(2, s + 1, n, 1), draw(2, t + 1, n, 1)
    history_length[0], target_length[0] = s, t
    past = torch.arange(s) >= s - history_length
    future = torch.arange(t) < target_length
    sizes = torch.tensor(list(schema.LOG_COLUMNS.values()))
    n_log = len(sizes)
    history = History(
        draw(N_SPECIAL, N_IDS, n, s) * past,
        draw(1, 6, n, s) * past,
        (draw(0, 10**6, n, s, n_log) % sizes * past[..., None]).to(torch.uint8),
    )
    return SessionBatch(
        history,
        draw(N_SPECIAL, N_IDS, n, t) * future,
        torch.where(future, draw(0, 2, n, t), -1),
        torch.arange(n),
    )
