"""What the tests of the preprocessing share: how a dataset is read play by play, and compared."""

from __future__ import annotations

import json
from pathlib import Path

import mssd_files
import numpy as np
import pandas as pd

from utils.data import schema

SPLITS = ("train", "valid", "test")


def log_path(folder: Path, *, split: int = 0, day: int = 0) -> Path:
    return folder / f"training_set_{split}" / schema.log_file(split, mssd_files.days(day + 1)[-1])


def read_split(folder: Path) -> pd.DataFrame:
    """A split of a dataset as one row a play."""
    sessions = pd.read_parquet(folder / "sessions.parquet")
    offsets = np.load(folder / "offsets.npy")
    frame = sessions.loc[np.repeat(np.arange(len(sessions)), np.diff(offsets))].reset_index(drop=True)
    frame["track"] = np.load(folder / "tracks.npy")
    frame["skip"] = np.load(folder / "skips.npy")
    log = np.load(folder / "log.npy")
    return frame.assign(**{f"log_{name}": log[:, i] for i, name in enumerate(schema.LOG_COLUMNS)})


def funnel_of(info: dict) -> dict[str, tuple[int, int]]:
    return {row["reason"]: (row["rows"], row["sessions"]) for row in info["funnel"]}


def write_days(folder: Path, frame: pd.DataFrame) -> Path:
    """`frame` as the first of three days; the others are whole."""
    mssd_files.write_mssd(folder, n_days=3, n_sessions=12)
    mssd_files.write_log(log_path(folder), frame)
    return folder


def assert_same_dataset(found: Path, expected: Path) -> None:
    """Byte for byte, but for the name and the command."""
    names = {str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file()}
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == names
    for name in names - {"dataset.json"}:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    infos = [json.loads((folder / "dataset.json").read_text()) for folder in (found, expected)]
    own = {"name", "command"}
    assert infos[0].keys() == infos[1].keys()
    for key in infos[0].keys() - own:
        assert infos[0][key] == infos[1][key], key
