"""What the tests of the benchmarks share: tiny sizes, and measurements without processes of their own."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import growth, large, loading, past, predicting, preprocessing, rows, training
from benchmarks.rounds import Contender, Measured
from benchmarks.rows import Row
from benchmarks.workload import Sizes
from utils.core.files import read_json

TINY = Sizes(tracks=300, features=3, d_model=8, d_ff=16, batch_size=32)
SMALL = [f"--sizes.{name}={getattr(TINY, name)}" for name in ("tracks", "features", "d_model", "d_ff", "batch_size")]


def a_row(name: str, value: float, *, quick: bool = False) -> Row:
    return Row(name, value, "rows/s", peak_mib=1.5, quick=quick)


def save_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let rows be saved in this folder."""
    monkeypatch.setattr(rows, "LATEST", folder / "latest.json")
    monkeypatch.setattr(rows, "LATEST_QUICK", folder / "latest_quick.json")
    return folder


def measure_here(contenders: Sequence[Contender], *, rounds: int, title: str) -> dict[str, Measured]:
    """`measure` without processes of their own, each of which takes seconds to import torch."""
    measured = {}
    for contender in contenders:
        contender = pickle.loads(pickle.dumps(contender))
        step = contender.setup(**contender.options)
        rates = []
        for _ in range(rounds):
            start = time.perf_counter()
            rates.append(step() / (time.perf_counter() - start))
        measured[contender.name] = Measured(contender.name, rates, idle_mib=1.0, peak_mib=2.0)
    return measured


def measure_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all parts measure without processes of their own."""
    for module in (training, predicting, large, growth, loading, preprocessing, past):  # which measure for others, too
        monkeypatch.setattr(module, "measure", measure_here)


def check_rows(found: list[Row], names: list[str], path: Path) -> None:
    """All rows are there, once, with values that can be; and they are saved."""
    assert [row.name for row in found] == names
    for row in found:
        assert 0 < row.value < math.inf
        assert row.peak_mib is not None
        assert row.peak_mib > 0
        assert row.ratio is None or 0 < row.ratio < math.inf
    assert [row["name"] for row in read_json(path)] == names
