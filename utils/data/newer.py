"""Sessions from outside that are newer than a dataset: what a model of it can be tested on honestly.

A newer export of a listening history holds the older plays, too, and a model has seen most of them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data.dataset import OPTIONAL_ARRAYS, REQUIRED_ARRAYS, Dataset, SessionArrays
from utils.data.schema import SPLITS


def newer_sessions(arrays: SessionArrays, dataset: Dataset) -> SessionArrays:
    """The sessions that start after the last play of every split of the dataset.

    Args:
        arrays: sessions in order of their start; their tables without the older ones are written beside
            them.
        dataset: that they are compared with.

    Raises:
        UserError: there are no times, or no newer sessions.
    """
    splits = [dataset.split(name) for name in SPLITS]
    if arrays.times is None or any(split.times is None for split in splits):
        raise UserError(f"which sessions are newer than {dataset.folder} cannot be told without times of plays")
    last = max(int(split.times.max()) for split in splits if split.times is not None and len(split.times))
    first = int(np.searchsorted(arrays.times[arrays.offsets[:-1]], last, side="right"))
    if first == arrays.n_sessions:
        raise UserError(f"none of these {first:,} sessions is newer than the last play of {dataset.folder}")
    start = int(arrays.offsets[first])
    folder = arrays.folder / "newer"
    folder.mkdir()
    if (arrays.folder / "new_tracks.parquet").exists():
        shutil.copy(arrays.folder / "new_tracks.parquet", folder)  # names of tracks that the dataset has never seen
    pq.write_table(pq.read_table(arrays.folder / "sessions.parquet").slice(first), folder / "sessions.parquet")
    named = {name: getattr(arrays, name) for name in (*REQUIRED_ARRAYS, *OPTIONAL_ARRAYS) if name != "offsets"}
    parts = {name: array[start:] for name, array in named.items() if array is not None}
    return replace(arrays, folder=folder, offsets=arrays.offsets[first:] - start, **parts)
