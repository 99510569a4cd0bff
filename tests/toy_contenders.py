"""Contenders for `test_rounds.py`, in a module of their own that is quick to import in their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def writes(path: Path, name: str, seconds: float = 0.0) -> Callable[[], float]:
    """Append `name` to a file with each step of 10 units."""

    def step() -> float:
        with path.open("a") as file:
            file.write(name)
        time.sleep(seconds)
        return 10

    return step


def holds(mib: int) -> Callable[[], float]:
    """Take memory for a moment."""

    def step() -> float:
        return len(b"x" * (mib << 20))

    return step


def is_wrong() -> Callable[[], float]:
    """Fail in the setup."""
    raise ValueError("no such thing")


def fails_later(after: int) -> Callable[[], float]:
    """Fail in a step."""
    left = iter(range(after))
    return lambda: next(left) + 1


def dies() -> Callable[[], float]:
    """End the process without a word."""
    os._exit(3)
