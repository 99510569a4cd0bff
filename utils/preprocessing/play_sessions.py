"""Sessions of plays that are in order, in one pass: which plays are there again, and which belong together.

Some plays are in memory, and nothing of the sessions that have ended: memory does not grow with the plays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from utils.preprocessing.play_order import Columns, joined

LIMITS = ("user", "split")
"""Columns that must be the same for all plays of a session."""


class Cut(NamedTuple):
    """What ends a session, or a piece of one."""

    silence: int | None
    """More microseconds without a play; None: all plays of an owner are one session."""
    longest: int | None
    """A session of more plays is cut in pieces of so many; None: never."""
    repeats: bool
    """Drop plays that equal one before in owner, place, time and track."""


class Found(NamedTuple):
    """What `find_sessions` says of some plays."""

    plays: Columns
    """Without those that are dropped; (N,)"""
    shares: np.ndarray
    """Whether a play has the place of a neighbour of its owner, bool (N,)"""
    repeats: int
    """Plays that are dropped."""
    pieces: Columns
    """Of the sessions, or pieces of sessions, that end here (M,): `owner`, `session` (its number for the owner, from
    1), `piece` (from 0), `plays`, `shared` (plays with a neighbour's place), `start` (microseconds since 1970, if there
    are times), `least_x` and `greatest_x` for each x of `LIMITS` that plays have"""


class Open(NamedTuple):
    """Where the plays so far have ended."""

    owner: int = -1
    place: float = 0
    session: int = 0
    """Number of the session for its owner, from 1."""
    plays: int = 0
    """Of this session, so far."""


def find_sessions(batches: Iterator[Columns], cut: Cut) -> Iterator[Found]:
    """Sessions of plays in order of owner, place and row.

    Args:
        batches: see `play_order.in_order`.
    """
    before = Open()
    held: Columns = {}  # the last piece, which may go on
    plays: Columns = {}
    for plays in whole_places(batches):
        new_place = ~same_place(plays)
        again = find_repeats(plays, new_place) if cut.repeats else np.zeros(0, np.int64)
        if len(again):
            kept = np.ones(len(new_place), bool)
            kept[again] = False
            plays, new_place = {name: values[kept] for name, values in plays.items()}, new_place[kept]
        shares = sharing(new_place)
        pieces, goes_on, before = cut_pieces(plays, shares, cut, before)
        if held:
            pieces = continued(held, pieces) if goes_on else joined([held, pieces])
        held = {name: values[-1:] for name, values in pieces.items()}
        yield Found(plays, shares, len(again), {name: values[:-1] for name, values in pieces.items()})
    if held:
        yield Found({name: values[:0] for name, values in plays.items()}, np.zeros(0, bool), 0, held)


def whole_places(batches: Iterator[Columns]) -> Iterator[Columns]:
    """The same plays in batches that keep together those of one owner at one place."""
    held: list[Columns] = []
    for plays in batches:
        last = {name: plays[name][-1] for name in ("owner", "place")}
        others = np.flatnonzero((plays["owner"] != last["owner"]) | (plays["place"] != last["place"]))
        n = int(others[-1]) + 1 if len(others) else 0
        if n == 0 and held and all(held[0][name][0] == value for name, value in last.items()):
            held.append(plays)
            continue
        if held or n:
            yield joined([*held, {name: values[:n] for name, values in plays.items()}])
        held = [{name: values[n:] for name, values in plays.items()}]
    if held:
        yield joined(held)


def same_place(plays: Columns) -> np.ndarray:
    """Whether a play has the owner and the place of the one before it: bool (N,)."""
    same = np.zeros(len(plays["row"]), bool)
    same[1:] = (plays["owner"][1:] == plays["owner"][:-1]) & (plays["place"][1:] == plays["place"][:-1])
    return same


def sharing(new_place: np.ndarray) -> np.ndarray:
    """Whether a play has the owner and the place of a neighbour, if `new_place` says so of the one before: (N,)."""
    shares = ~new_place
    shares[:-1] |= ~new_place[1:]
    return shares


def find_repeats(plays: Columns, new_place: np.ndarray) -> np.ndarray:
    """Which plays equal one before in owner, place, time and track: int64.

    Args:
        new_place: which plays do not have the owner and the place of the one before, bool (N,).
    """
    some = np.flatnonzero(sharing(new_place))
    keys = [np.cumsum(new_place)[some], plays["time"][some], plays["track"][some]]
    order = np.lexsort(keys[::-1])  # it is stable: equal plays stay in the order of their rows
    equal = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    return some[order[1:][equal]]


def cut_pieces(plays: Columns, shares: np.ndarray, cut: Cut, before: Open) -> tuple[Columns, bool, Open]:
    """Cut some plays where sessions and pieces of sessions begin.

    Returns:
        The pieces, as in `Found`; whether the first is the rest of the last piece before; where the plays end.
    """
    owner, place = plays["owner"], plays["place"]
    new_owner = np.diff(owner, prepend=np.int32(before.owner)) != 0
    starts = new_owner
    if cut.silence is not None:
        starts = new_owner | (np.diff(place, prepend=place.dtype.type(before.place)) > cut.silence)
    first = np.flatnonzero(starts)  # the first play of each session that starts here
    order = np.arange(len(first))
    owners_first = np.maximum.accumulate(np.where(new_owner[first], order, -before.session))
    session = np.concatenate([[before.session], order - owners_first + 1])
    of_play = np.cumsum(starts)  # place in `session`
    # The place of each play in its session, from 0.
    at = np.arange(len(owner)) - np.maximum.accumulate(np.where(starts, np.arange(len(owner)), -before.plays))
    new_piece = starts if cut.longest is None else starts | (at % cut.longest == 0)
    goes_on = not new_piece[0]
    begin = np.flatnonzero(new_piece)
    begin = np.concatenate([[0], begin]) if goes_on else begin
    pieces = {
        "owner": owner[begin],
        "session": session[of_play[begin]],
        "piece": at[begin] // cut.longest if cut.longest is not None else np.zeros(len(begin), np.int64),
        "plays": np.diff(begin, append=len(owner)),
        "shared": np.add.reduceat(shares, begin, dtype=np.int64),
    }
    if "time" in plays:
        pieces["start"] = np.minimum.reduceat(plays["time"], begin)
    for name in LIMITS:
        if name in plays:
            pieces[f"least_{name}"] = np.minimum.reduceat(plays[name], begin)
            pieces[f"greatest_{name}"] = np.maximum.reduceat(plays[name], begin)
    return pieces, goes_on, Open(int(owner[-1]), place[-1].item(), int(session[-1]), int(at[-1]) + 1)


def continued(held: Columns, pieces: Columns) -> Columns:
    """Pieces of which the first is the rest of the one that is held."""
    for name, values in pieces.items():
        first, rest = held[name][0], values[0]
        if name in ("plays", "shared"):
            values[0] = first + rest
        elif name == "start" or name.startswith("least_"):
            values[0] = min(first, rest)
        elif name.startswith("greatest_"):
            values[0] = max(first, rest)
        else:
            values[0] = first
    return pieces
