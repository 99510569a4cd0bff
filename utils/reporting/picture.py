"""One picture of the skip task: how often predictions are right at each position, from the floor to the ceiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.core.files import atomic_file
from utils.reporting.charts import as_percent
from utils.reporting.leaderboard import Table
from utils.reporting.rows import Row

COLOURS = {"floor": "#8a8a8a", "model": "#c2410c", "ceiling": "#1f2937"}


def plot_accuracy_by_position(path: Path, table: Table) -> bool:
    """Draw repeat-last, the best model and the oracle of a skip table; returns whether it has any of them."""
    rows = {"floor": table.repeat_last, "model": table.find("model"), "ceiling": table.find("oracle")}
    curves = {part: row for part, row in rows.items() if row is not None and len(_accuracy(row)) > 1}
    if not curves:
        return False
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for part, row in curves.items():
        accuracy = _accuracy(row)
        position = np.arange(1, len(accuracy) + 1)
        axes.plot(position, accuracy, color=COLOURS[part], marker="o", markersize=4, linewidth=2)
        axes.annotate(
            row.label,
            (position[-1], accuracy[-1]),
            (8, 0),
            textcoords="offset points",
            color=COLOURS[part],
            va="center",
        )
    axes.set_title(f"How often is a skip predicted right? {table.name}, {table.sessions}", loc="left", fontsize=11)
    axes.set_xlabel("track of the second half of the session")
    axes.set_ylabel("predictions that are right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(as_percent)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    return True


def _accuracy(row: Row) -> np.ndarray:
    """float64 (T,): of the row's latest run, NaN where no session has that position."""
    values = row.runs[0].scores.get("by_position", {}).get("accuracy", [])
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
