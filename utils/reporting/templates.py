"""Templates of the pages, and how they write numbers and names. All text from outside is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from utils.reporting import text
from utils.reporting.leaderboard import title

SLICE_NAMES = {
    "length": "Session length",
    "context_type": "Where the listener started",
    "shuffle": "Shuffle mode",
    "premium": "Premium account",
    "history": "Kind of listener, by the first half",
    "continuation": "First transition seen in training",
    "listener": "Listener",
    "plays": "Training plays of the track: accuracy",
}


def render_template(name: str, **values: Any) -> str:
    """Fill in a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "metric": text.format_metric,
        "number": text.format_number,
        "share": text.format_share,
        "count": text.format_count,
        "seconds": text.format_seconds,
        "memory": text.format_memory,
        "metric_name": title,
        "slice_name": lambda name: SLICE_NAMES.get(name, name.replace("_", " ")),
    }
    return environment.get_template(name).render(**values)
