"""Simulated plays of the shape of Yambda, and what is measured with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from benchmark_checks import check_rows, measure_here

from benchmarks import plays
from utils.core.errors import UserError

JOBS = ("scan-duckdb", "scan-pyarrow", "source", "whole")


def test_simulated_plays_are_like_those_of_yambda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "CHUNK", 60_000)  # several chunks
    path = tmp_path / "listens.parquet"
    plays.simulate(path, 200_000)
    assert pq.read_schema(path) == plays.SCHEMA
    frame = pd.read_parquet(path).astype("int64")
    assert len(frame) == 200_000
    order = frame[["uid", "timestamp"]].to_numpy()
    assert (np.diff(order[:, 0]) >= 0).all(), "sorted by listener"
    same = np.diff(order[:, 0]) == 0
    steps = np.diff(order[:, 1])[same]
    assert (steps >= 0).all(), "and by time"
    assert not (frame["timestamp"] % 5).any()
    assert frame["timestamp"].max() <= plays.LAST
    assert 25 < frame["uid"].nunique() < 65  # 40 listeners on the average
    assert 0.1 < (steps == 0).mean() < 0.16
    assert 0.05 < (steps > 1800).mean() < 0.08  # sessions
    assert 0.35 < (frame["played_ratio_pct"] < 50).mean() < 0.38
    assert 0.003 < (frame["played_ratio_pct"] > 100).mean() < 0.006
    assert 0.45 < frame["is_organic"].mean() < 0.6
    assert frame.groupby("item_id")["track_length_seconds"].nunique().max() == 1
    counts = frame["item_id"].value_counts()
    assert counts.iloc[: len(counts) // 100].sum() > 0.4 * len(frame)
    assert (counts == 1).mean() > 0.05
    plays.simulate(tmp_path / "again.parquet", 200_000)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_all_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "measure", measure_here)
    config = plays.Config(rows=[30_000, 20_000], rounds=1, out=tmp_path / "rows.json")
    rows = plays.main(config)
    check_rows(rows, [f"plays/{job}-{n}" for n in (20_000, 30_000) for job in JOBS], tmp_path / "rows.json")
    assert [row.ratio for row in rows[::4]] == [1.0, 1.0]
    assert plays.Config(quick=True).rows == [plays.FEW]
    with pytest.raises(UserError, match="rows must be a list of numbers of 1 or more"):
        plays.Config(rows=[0])
