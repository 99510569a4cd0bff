"""What a listener skips and when, as text for a terminal; and the words that the page shares."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rich.box
import rich.table
import rich.text

from utils.reporting.changed_habits import SURE, Change, Changes
from utils.reporting.heard import Plays
from utils.reporting.skip_rates import FEWEST, WEEKDAYS, Habits, HeatMap, Rate, extremes
from utils.reporting.text import WIDTH, format_share, render

HOURS_TOGETHER = 3
"""Hours that share a column of the terminal's heat map."""
MONTHS_SHOWN = 12
MOST_SAID = 4
"""Parts of the listening that one sentence tells of, above the rest and below."""
TITLES = {
    ("skipped_now", "tracks"): "Tracks now skipped, and not before",
    ("skipped_now", "artists"): "Artists now skipped, and not before",
    ("back", "tracks"): "Tracks skipped before, and not now",
    ("back", "artists"): "Artists skipped before, and not now",
}


class Answers(NamedTuple):
    """All answers about one listener."""

    listener: str | None
    plays: int
    sessions: int
    known: int
    """Plays of which it is known whether they were skipped."""
    habits: Habits | None
    """None without such plays."""
    changes: Changes | None
    """None without such plays, or without times."""
    first: np.datetime64 | None
    """The first and the last play, local time; None without times."""
    last: np.datetime64 | None

    @classmethod
    def of(cls, listener: str | None, plays: Plays, habits: Habits | None, changes: Changes | None) -> Answers:
        """Put what was found together."""
        ends = (None, None) if plays.time is None else (plays.time[0], plays.time[-1])
        n_sessions = int(plays.session[-1]) + 1
        return cls(listener, len(plays.track), n_sessions, int(plays.known.sum()), habits, changes, *ends)


def format_answers(title: str, answers: Answers, *, min_sessions: int) -> str:
    """All answers about one listener, in tables of `WIDTH` columns at most.

    Args:
        title: what is told of.
        answers: to tell.
        min_sessions: fewest sessions before and now of what was compared.
    """
    parts = [headline(title, answers)]
    if answers.habits is None:
        return "\n".join([*parts, "Of none of these plays is it known whether it was skipped."])
    if answers.changes is None:
        parts.append("\nWhat changed cannot be told: the dataset has no times.")
    else:
        parts += textwrap.wrap(moved(answers.changes), WIDTH)
        for (direction, what), heading in TITLES.items():
            rows = getattr(answers.changes, direction)[what]
            grid = change_grid(rows, what, direction)
            parts += ["", heading, *([render(grid)] if rows else [])]
            parts += textwrap.wrap(basis(answers.changes, direction, what, min_sessions), WIDTH)
    habits = answers.habits
    parts += [
        "",
        "When it is skipped",
        *(wrapped for line in findings(habits) for wrapped in textwrap.wrap(line, WIDTH)),
    ]
    if habits.heat_map is not None:
        parts += ["", f"Skipped plays in percent, by weekday and hour (· fewer than {FEWEST} plays)"]
        parts.append(render(heat_grid(habits.heat_map)))
    if habits.months:
        parts += ["", "By month, the last ones", render(rate_grid(habits.months[-MONTHS_SHOWN:]))]
    return "\n".join(parts)


def headline(title: str, answers: Answers) -> str:
    """Who, how much, from when to when."""
    who = "" if answers.listener is None else f"{answers.listener}: "
    period = "" if answers.first is None else f", {day(answers.first)} to {day(answers.last)}"
    return f"{who}{answers.plays:,} plays in {answers.sessions:,} sessions{period} ({title})"


def moved(changes: Changes) -> str:
    """How the skip rate of all plays moved, in a sentence; "" if there are too few plays."""
    if len(changes.overall) < 2:
        return ""
    before, now = changes.overall
    apart = before.high < now.low or now.high < before.low
    rates = [f"{format_share(rate.rate)} of {rate.plays:,} plays ({between(rate)})" for rate in (before, now)]
    verdict = "" if apart else "; these are not told apart"
    return f"Skipped before {day(changes.now_from)}: {rates[0]}; since then: {rates[1]}{verdict}."


def findings(habits: Habits) -> list[str]:
    """The parts of the listening that surely differ from the rest, in sentences."""
    overall = habits.overall
    sentences = [
        f"{format_share(overall.rate)} of {overall.plays:,} plays with a known end were skipped "
        f"(95 % interval {between(overall)})."
    ]
    for words, rates in (
        ("by hour", habits.quarters),
        ("by weekday", habits.weekdays),
        ("by place in the session", habits.positions),
        ("by how the play started", habits.reasons),
        ("with and without shuffle", habits.shuffle),
    ):
        above, below = extremes(rates, overall)
        told = [f"more: {'; '.join(map(said, above[:MOST_SAID]))}"] if above else []
        told += [f"less: {'; '.join(map(said, below[:MOST_SAID]))}"] if below else []
        if told:
            sentences.append(f"Skipped {words}, {'; '.join(told)}.")
        elif len(rates) > 1:
            sentences.append(f"Skipped {words}: no part is told apart from the rest.")
    return sentences


def rate_tables(habits: Habits) -> dict[str, list[Rate]]:
    """Heading -> rows, of the tables that say how the skip rate depends on something; empty ones are left out."""
    tables = {
        "By hour of the day": habits.quarters,
        "By weekday": habits.weekdays,
        "By place in the session": habits.positions,
        "By what started the play": habits.reasons,
        "By shuffle": habits.shuffle,
        "By month": habits.months,
    }
    return {heading: rates for heading, rates in tables.items() if rates}


def basis(changes: Changes, direction: str, what: str, min_sessions: int) -> str:
    """What a table of changes rests on, and how many of its rows may be chance."""
    rows: Sequence[Change] = getattr(changes, direction)[what]
    compared = f"{changes.compared[what]:,} {what} of {min_sessions} sessions or more both before and now are compared"
    now = f'"now" is {day(changes.now_from)} to {day(changes.last)}'
    if not rows:
        return f"None for certain (at least {format_share(SURE)}): {compared}; {now}."
    chance = sum(1 - row.probability for row in rows)
    of_rows = f"{len(rows)} row" + "s" * (len(rows) > 1)
    return f"{compared[0].upper()}{compared[1:]}; {now}. Chance alone may explain about {chance:.1f} of {of_rows}."


def change_grid(rows: Sequence[Change], what: str, direction: str) -> rich.table.Table:
    """Tracks or artists whose skip rate changed, surest first."""
    grid = _grid()
    grid.add_column(what.removesuffix("s"), overflow="fold", max_width=30)
    if what == "tracks":
        grid.add_column("artist", overflow="fold", max_width=20)
    for header in ("skipped before", "now", "sure"):
        grid.add_column(header, justify="right", no_wrap=header != "skipped before")
    grid.add_column("last not skipped", no_wrap=False)
    if direction == "skipped_now":
        grid.add_column("mostly in the")
    for row in rows:
        names = [row.name, row.artist] if what == "tracks" else [row.name]
        s0, n0, s1, n1 = map(int, row.plays)
        cells = [f"{s0} of {n0}", f"{s1} of {n1}", format_share(row.probability), day(row.last_kept)]
        cells += [row.mostly] * (direction == "skipped_now")
        grid.add_row(*map(rich.text.Text, [*names, *cells]))
    return grid


def rate_grid(rates: Sequence[Rate]) -> rich.table.Table:
    """Skip rates of parts of the listening."""
    grid = _grid()
    grid.add_column("")
    for header in ("plays", "skipped", "95 % interval"):
        grid.add_column(header, justify="right")
    for rate in rates:
        grid.add_row(rate.label, f"{rate.plays:,}", format_share(rate.rate), between(rate))
    return grid


def heat_grid(cells: HeatMap) -> rich.table.Table:
    """Skip rates in percent by weekday and blocks of hours."""
    grid = _grid()
    grid.add_column("")
    for hour in range(0, 24, HOURS_TOGETHER):
        grid.add_column(f"{hour}-{hour + HOURS_TOGETHER}", justify="right")
    skipped, n = (each.reshape(7, -1, HOURS_TOGETHER).sum(2) for each in (cells.skipped, cells.plays))
    for i, name in enumerate(WEEKDAYS):
        grid.add_row(
            name, *(f"{100 * s / k:.0f}" if k >= FEWEST else "·" for s, k in zip(skipped[i], n[i], strict=True))
        )
    return grid


def said(rate: Rate) -> str:
    """A part of the listening and its rate, in words."""
    return f"{rate.label} ({format_share(rate.rate)} of {rate.plays:,})"


def between(rate: Rate) -> str:
    """The interval of a rate, in percent."""
    return f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"


def day(time: np.datetime64 | None) -> str:
    """A date as a reader would say it: 3 May 2024; "never" for none."""
    if time is None:
        return "never"
    date = time.astype("datetime64[D]").item()
    return f"{date.day} {date:%b} {date.year}"


def _grid() -> rich.table.Table:
    return rich.table.Table(box=rich.box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
