"""Rounds are interleaved, and ratios are taken within them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_contenders

from benchmarks.rounds import Contender, Measured, measure
from benchmarks.rows import Row
from utils.core.errors import UserError


def test_rounds_are_interleaved_after_one_warm_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow = Contender("slow", toy_contenders.writes, {"path": log, "name": "s", "seconds": 0.05})
    fast = Contender("fast", toy_contenders.writes, {"path": log, "name": "f"})
    measured = measure([slow, fast], rounds=3, title="toys")
    assert log.read_text() == "sf" + "sf" * 3
    assert list(measured) == ["slow", "fast"]
    assert [len(found.rates) for found in measured.values()] == [3, 3]
    assert all(10 < rate <= 10 / 0.05 for rate in measured["slow"].rates)
    assert measured["fast"].ratio(measured["slow"]) > 1


def test_ratios_are_taken_within_rounds() -> None:
    """The machine was fast in the second round, for both; the ratio of the medians would be 4.5."""
    reference = Measured("reference", rates=[1.0, 10.0, 2.0], idle_mib=1, peak_mib=2)
    ours = Measured("ours", rates=[2.0, 40.0, 9.0], idle_mib=1, peak_mib=3)
    found = ours.row("sessions/s", reference=reference, quick=True)
    assert found == Row("ours", 9.0, "sessions/s", ratio=4.0, peak_mib=3, best=40.0, idle_mib=1, quick=True)
    assert ours.row("sessions/s").ratio is None


def test_peak_memory_is_that_of_each_process_alone() -> None:
    ballast = b"x" * (300 << 20)
    contenders = [Contender(str(mib), toy_contenders.holds, {"mib": mib}) for mib in (1, 200)]
    small, large = measure(contenders, rounds=1, title="toys").values()
    assert len(ballast) == 300 << 20
    assert small.idle_mib <= small.peak_mib < 200
    assert 190 < large.peak_mib - small.peak_mib < 230


@pytest.mark.parametrize(
    ("setup", "options", "message"),
    [
        (toy_contenders.is_wrong, {}, r"bad failed:\nTraceback[\s\S]*ValueError: no such thing"),
        (toy_contenders.fails_later, {"after": 2}, r"bad failed:\nTraceback[\s\S]*StopIteration"),
        (toy_contenders.dies, {}, "bad: its process died with exit code 3"),
    ],
)
def test_a_contender_that_fails(tmp_path: Path, setup: Callable, options: dict, message: str) -> None:
    good = Contender("good", toy_contenders.writes, {"path": tmp_path / "log", "name": "g"})
    with pytest.raises(UserError, match=message):
        measure([good, Contender("bad", setup, options)], rounds=5, title="toys")
    assert not multiprocessing.active_children()
