"""What a run recorded while it trained: the lines of its `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.core.errors import UserError


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read a run's `metrics.jsonl`; empty where the run has none.

    Raises:
        UserError: names a line that is not JSON.
    """
    if not path.exists():
        return []
    history = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not valid JSON ({error.msg}); remove the line or the run"
            ) from None
    return history


def series(history: Iterable[dict[str, Any]], split: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of one recorded value of one split."""
    points = ((line["step"], recorded(line, name)) for line in history if line.get("split") == split)
    return [(step, value) for step, value in points if value is not None]


def recorded(line: dict[str, Any], name: str) -> float | None:
    """A recorded value. Where validation recorded no loss, it is the log loss or the logarithm of the perplexity."""
    if name != "loss" or "loss" in line:
        return line.get(name)
    perplexity = line.get("perplexity")
    return line.get("log_loss") if perplexity is None else math.log(perplexity)


def mean_of_curve(path: Path, name: str) -> float | None:
    """The mean of a value over all validations of a run: how good it was on its way, not only at its best.

    Args:
        path: its `metrics.jsonl`.
        name: of the value.

    Returns:
        None if there are fewer than two validations.
    """
    points = series(read_history(path), "valid", name)
    return sum(value for _, value in points) / len(points) if len(points) > 1 else None
