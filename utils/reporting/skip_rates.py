"""When a listener skips: skip rates by hour, weekday, place in the session, reason of the start, shuffle and month."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.data import schema
from utils.evaluation.metrics import bootstrap_intervals
from utils.reporting.heard import Plays

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
QUARTERS = ("night, 0 to 6", "morning, 6 to 12", "afternoon, 12 to 18", "evening, 18 to 24")
"""Names of the quarters of a day."""
FEWEST = 20
"""Plays with a known end, below which a part of the listening has no row."""
FEWEST_IN_CELL = 5
"""The same for a cell of the heat map."""
LAST_POSITION = 20
"""Places in a session from this one on share a row."""
REASONS = {
    "trackdone": "the track before ended",
    "fwdbtn": "skipped forward",
    "backbtn": "skipped back",
    "clickrow": "chosen from a list",
    "playbtn": "play button",
    "appload": "the app started",
    "remote": "from another device",
    "trackerror": "the track before failed",
    "endplay": "playback had ended",
    "clickside": "chosen from the side",
    "popup": "from a pop-up",
    "uriopen": "a link was opened",
}
"""MSSD's reasons of a start as a reader would say them."""


class Rate(NamedTuple):
    """The skip rate of a part of the plays, with its 95 % interval (bootstrap over sessions)."""

    label: str
    plays: int
    """With a known end."""
    rate: float
    low: float
    high: float


class HeatMap(NamedTuple):
    """Plays with a known end by weekday (rows, from Monday) and hour (columns, from midnight): int64 (7, 24) each."""

    skipped: np.ndarray
    plays: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """float64 (7, 24), NaN in cells with fewer than `FEWEST_IN_CELL` plays."""
        enough = self.plays >= FEWEST_IN_CELL
        return np.divide(self.skipped, self.plays, out=np.full(self.plays.shape, np.nan), where=enough)


class Habits(NamedTuple):
    """When a listener skips. A part that is unknown has no rows."""

    overall: Rate
    quarters: list[Rate]
    hours: list[Rate]
    weekdays: list[Rate]
    positions: list[Rate]
    reasons: list[Rate]
    shuffle: list[Rate]
    months: list[Rate]
    heat_map: HeatMap | None


def skip_habits(plays: Plays) -> Habits:
    """All skip rates of a listener with some plays whose end is known."""
    everything = rates(plays, np.zeros(len(plays.track), np.int64), ["all plays"], fewest=1)
    positions = [f"play {i}" for i in range(1, LAST_POSITION)] + [f"play {LAST_POSITION} or later"]
    reason = plays.log_codes("hist_user_behavior_reason_start").astype(np.int64) - 1
    shuffle = plays.log_codes("hist_user_behavior_is_shuffle").astype(np.int64) - 1
    weekdays: list[Rate] = []
    months: list[Rate] = []
    cells = None
    if plays.time is None:
        hour = plays.log_codes("hour_of_day").astype(np.int64) - 1
    else:
        hour, weekday = hours(plays.time), weekday_of(plays.time)
        weekdays = rates(plays, weekday, WEEKDAYS)
        month = plays.time.astype("datetime64[M]")
        names, codes = np.unique(month, return_inverse=True)
        months = rates(plays, codes, [str(name) for name in names])
        cells = heat_map(plays, weekday, hour)
    reasons = rates(plays, reason, [REASONS[name] for name in schema.REASONS_START])
    return Habits(
        overall=everything[0],
        quarters=rates(plays, hour // 6, QUARTERS),  # -1, which is unknown, stays -1
        hours=rates(plays, hour, [f"{i}" for i in range(24)]),
        weekdays=weekdays,
        positions=rates(plays, np.minimum(plays.position, LAST_POSITION - 1), positions),
        reasons=sorted(reasons, key=lambda rate: -rate.plays),
        shuffle=rates(plays, shuffle, ["in order", "shuffled"]),
        months=months,
        heat_map=cells,
    )


def rates(plays: Plays, part: np.ndarray, labels: Sequence[str], *, fewest: int = FEWEST) -> list[Rate]:
    """The skip rate of each part that has enough plays.

    Args:
        plays: of the listener.
        part: place in `labels` of each play, int64 (n,); -1 where it has none.
        labels: of the parts.
        fewest: plays with a known end of a part that is told of.
    """
    counted = plays.known & (part >= 0)
    n = np.bincount(part[counted], minlength=len(labels))
    told = np.flatnonzero(n >= fewest)
    if not len(told):
        return []
    column = np.full(len(labels) + 1, -1)
    column[told] = np.arange(len(told))
    counted &= column[part] >= 0
    n_sessions = int(plays.session[-1]) + 1
    cell = plays.session * len(told) + column[part]

    def by_session(which: np.ndarray) -> np.ndarray:
        return np.bincount(cell[which], minlength=n_sessions * len(told)).reshape(n_sessions, len(told))

    mean, low, high = bootstrap_intervals(by_session(counted & plays.skipped), by_session(counted))
    return [
        Rate(labels[i], int(n[i]), *map(float, each)) for i, *each in zip(told.tolist(), mean, low, high, strict=True)
    ]


def heat_map(plays: Plays, weekday: np.ndarray, hour: np.ndarray) -> HeatMap:
    """Count plays by weekday and hour, int64 (n,) each."""
    cell = weekday * 24 + hour
    known = plays.known
    return HeatMap(
        *(np.bincount(cell[which], minlength=7 * 24).reshape(7, 24) for which in (known & plays.skipped, known))
    )


def hours(time: np.ndarray) -> np.ndarray:
    """Hour of the day, int64 0..23."""
    return (time - time.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.int64)


def weekday_of(time: np.ndarray) -> np.ndarray:
    """0 for Monday to 6 for Sunday, int64; 1 January 1970 was a Thursday."""
    return (time.astype("datetime64[D]").astype(np.int64) + 3) % 7


def extremes(parts: Sequence[Rate], overall: Rate) -> tuple[list[Rate], list[Rate]]:
    """Parts whose whole interval lies above the rate of all plays, highest first; and those below it, lowest first."""
    above = sorted((part for part in parts if part.low > overall.rate), key=lambda part: -part.rate)
    below = sorted((part for part in parts if part.high < overall.rate), key=lambda part: part.rate)
    return above, below
