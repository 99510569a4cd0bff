"""Rows of measurements: merged into `benchmarks/latest.json` and printed as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from utils.files import read_json, write_json

LATEST = Path(__file__).parent / "latest.json"


class Row(TypedDict):
    name: str
    """What was measured, unique: "preprocessing: whole job"."""
    value: float
    unit: str
    ratio: float | None
    """To the first row of the same benchmark in the same run, above 1 if `value` is larger."""
    peak_mib: float | None


def save_rows(rows: Sequence[Row], path: Path = LATEST) -> None:
    """Replace the rows of the same names in `path`, keep the others, add what is new."""
    latest = {row["name"]: row for row in (read_json(path) if path.exists() else [])}
    latest.update((row["name"], row) for row in rows)
    write_json(path, list(latest.values()))


def table(rows: Sequence[Row]) -> str:
    """The rows as text, aligned."""
    lines = [f"{'':<52}{'value':>14} {'unit':<10}{'ratio':>8}{'peak MiB':>10}"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
        lines.append(f"{row['name']:<52}{row['value']:>14,.3g} {row['unit']:<10}{ratio:>8}{peak:>10}")
    return "\n".join(lines)
