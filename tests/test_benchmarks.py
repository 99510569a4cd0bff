"""The measurements: rows are merged, and the contenders do the same work."""

from __future__ import annotations

from pathlib import Path

import mssd_files
import numpy as np

from benchmarks.preprocessing import pandas_preprocess, preprocess
from benchmarks.rows import Row, save_rows, table
from utils.files import read_json


def row(name: str, value: float) -> Row:
    return {"name": name, "value": value, "unit": "rows/s", "ratio": None, "peak_mib": 1.5}


def test_rows_replace_those_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    save_rows([row("a", 1), row("b", 2)], path)
    save_rows([row("b", 3), row("c", 4)], path)
    assert [(r["name"], r["value"]) for r in read_json(path)] == [("a", 1), ("b", 3), ("c", 4)]
    assert len({len(line.rstrip()) for line in table([row("a", 1), row("b", 123456)]).splitlines()}) == 1


def test_pandas_version_writes_the_same_arrays(tmp_path: Path) -> None:
    raw = mssd_files.write_mssd(tmp_path / "raw", n_days=3, n_sessions=30)
    preprocess(raw, tmp_path / "ours")
    pandas_preprocess(raw, tmp_path / "pandas")
    for split in ("train", "valid", "test"):
        for name in ("tracks", "skips", "log", "offsets"):
            ours, theirs = (np.load(tmp_path / who / split / f"{name}.npy") for who in ("ours", "pandas"))
            assert (ours == theirs).all(), (split, name)
