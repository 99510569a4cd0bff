"""More than 2^31 plays: sparse files stand for them, so that the test takes no disk space to speak of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import SessionArrays
from utils.data.vocab import PAD
from utils.preprocessing.dataset_writer import Chunk, NpyWriter, SplitWriter

BEFORE = 2**31 + 6
"""Plays that stand before those that the test looks at."""
LENGTHS = np.array([10, 4, 20])
N_LOG = len(schema.LOG_COLUMNS)


def skip_ahead(writer: NpyWriter, rows: int) -> None:
    """As if `rows` rows of zeros had been appended: a hole in the file."""
    writer._file.seek(rows * writer._dtype.itemsize * int(np.prod(writer._width)), 1)
    writer._length += rows


def last_chunk() -> Chunk:
    """Three sessions; all plays differ from one another, and from zeros."""
    n = int(LENGTHS.sum())
    return Chunk(
        tracks=np.arange(100, 100 + n, dtype=np.int32),
        skips=np.where(np.arange(n) % 2 == 0, schema.SKIP_2, schema.SKIP_PLAYED).astype(np.uint8),
        log=(1 + np.arange(n)[:, None] + np.arange(N_LOG)).astype(np.uint8),
        lengths=LENGTHS,
        session_id=pa.array(["a", "b", "c"]),
        day=pa.array(["20180715"] * 3),
        file="log",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of more than a billion plays each, then three ordinary ones."""
    folder = tmp_path_factory.mktemp("large") / "train"
    writer = SplitWriter(folder)
    for array in (writer._tracks, writer._skips, writer._log):
        skip_ahead(array, BEFORE)
    writer._offsets.append(np.array([2**30, BEFORE]))
    writer.events, writer.sessions = BEFORE, 2
    writer.add(last_chunk())
    assert writer.close()["events"] == BEFORE + LENGTHS.sum()
    assert sum(path.stat().st_blocks * 512 for path in folder.iterdir()) < 1_000_000
    return folder


def test_the_arrays_are_as_long_as_they_say(folder: Path) -> None:
    arrays = SessionArrays.open(folder)
    assert arrays.offsets.dtype == np.int64
    assert arrays.offsets.tolist() == [0, 2**30, BEFORE, BEFORE + 10, BEFORE + 14, BEFORE + 34]
    assert arrays.tracks.shape == arrays.skips.shape == (BEFORE + 34,)
    assert arrays.log.shape == (BEFORE + 34, N_LOG)
    assert arrays.lengths.tolist() == [2**30, 2**30 + 6, 10, 4, 20]
    assert (arrays.tracks[-34:] == last_chunk().tracks).all()
    assert (arrays.skips[-34:] == last_chunk().skips).all()
    assert (arrays.log[-34:] == last_chunk().log).all()


def test_windows_behind_2_to_the_31_hold_the_right_plays(folder: Path) -> None:
    loader = SessionLoader(SessionArrays.open(folder), batch_size=5, cut="half", history_size=6, target_size=8)
    (batch,) = list(loader)
    tracks = last_chunk().tracks
    pad = [PAD]
    assert batch.history.tracks[2:].tolist() == [
        pad + tracks[:5].tolist(),
        pad * 4 + tracks[10:12].tolist(),
        tracks[18:24].tolist(),
    ]
    assert batch.target_tracks[2:].tolist() == [
        tracks[5:10].tolist() + pad * 3,
        tracks[12:14].tolist() + pad * 6,
        tracks[24:32].tolist(),
    ]
    assert batch.target_skips[4].tolist() == [1, 0] * 4
    assert batch.history.log[4].tolist() == last_chunk().log[18:24].tolist()
    assert not batch.history.tracks[:2].any()  # the holes
    assert not batch.target_tracks[:2].any()


def test_the_last_play_of_all_is_reached(folder: Path) -> None:
    """The window beyond the end of the arrays is filled, not wrapped."""
    loader = SessionLoader(SessionArrays.open(folder), batch_size=5, cut="half", history_size=3, target_size=15)
    (batch,) = list(loader)
    assert batch.target_tracks[4].tolist() == last_chunk().tracks[24:34].tolist() + [PAD] * 5
