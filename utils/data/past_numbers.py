"""The numbers of `utils/data/past.py` before they are standardised, a block of whole sessions at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from utils.core.errors import UserError
from utils.data import past_pass, past_plays, past_shared
from utils.data.dataset import SessionArrays
from utils.data.options import PastConfig
from utils.data.past_columns import RELATIONS, SHARED_STATISTICS, STATISTICS
from utils.data.past_plays import Catalogue, Facts, Plays, Timeline
from utils.data.schema import SPLITS


class Work(NamedTuple):
    """What numbers are made of."""

    sources: Sequence[SessionArrays]
    """The splits, in the order of `SPLITS`; a fourth one if it is for sessions from outside."""
    facts: Facts
    config: PastConfig
    catalogue: Catalogue

    @property
    def is_outside(self) -> bool:
        """Whether it is for sessions from outside."""
        return len(self.sources) > len(SPLITS)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of all statistics that are made."""
        if self.config.protocol == "none":
            return ()
        return STATISTICS if self.facts.listeners else SHARED_STATISTICS

    def room(self, plays: int) -> np.ndarray:
        """For statistics and relations of some plays."""
        return np.empty((plays, len(self.statistics) + len(RELATIONS)), np.float32)


class Block(NamedTuple):
    """Numbers of the plays of some sessions."""

    sessions: Timeline
    numbers: dict[str, np.ndarray]
    """The field of `SessionArrays` -> float32 (plays, columns), not yet standardised"""


def blocks(work: Work, tables: dict[str, tuple[str, ...]]) -> Iterator[Block]:
    """All sessions with their numbers, each once; NaN where a number has no meaning.

    Args:
        work: if there are sessions from outside, only sessions of their listeners need to come.
        tables: field -> names of its columns.
    """
    seen = np.zeros(work.catalogue.n_entities, np.int32)
    statistics = (*work.statistics, *RELATIONS)
    for plays, numbers in statistics_of(work):
        past_shared.relations(plays.offsets, plays.entities, seen, len(work.statistics), numbers)
        found = {}
        if "details" in tables:
            columns = details_of(plays, {name: numbers[:, i] for i, name in enumerate(work.statistics)})
            found["details"] = np.stack([columns[name] for name in tables["details"]], axis=1, dtype=np.float32)
        if "past" in tables:
            places = [statistics.index(name) for name in tables["past"]]
            found["past"] = numbers if tables["past"] == statistics else numbers.take(places, axis=1)
        yield Block(plays.sessions, found)


def statistics_of(work: Work) -> Iterator[tuple[Plays, np.ndarray]]:
    """All sessions with their statistics, in front of room for their relations: float32 (plays, columns)."""
    if work.config.protocol == "none":
        still = np.zeros(sum(arrays.n_sessions for arrays in work.sources), np.int32)
        timeline = past_plays.timeline_of(work.sources, still, past_plays.starts_of(work.sources, work.facts))
        if work.is_outside:
            timeline = timeline.take(timeline.source == len(SPLITS))
        for part in timeline.pieces(past_plays.PLAYS_AT_ONCE):
            plays = past_plays.gather(work.sources, timeline.take(part), work.catalogue, work.facts)
            yield plays, work.room(len(plays.outcomes))
    elif work.facts.listeners:
        yield from personal_statistics(work)
    else:
        yield from shared_statistics(work)


def personal_statistics(work: Work) -> Iterator[tuple[Plays, np.ndarray]]:
    """Statistics of each listener's past."""
    listeners, starts = past_plays.listeners_of(work.sources), past_plays.starts_of(work.sources, work.facts)
    timeline = past_plays.timeline_of(work.sources, listeners, starts, _copies(work, listeners, starts))
    if work.is_outside:
        timeline = timeline.take(np.isin(timeline.group, timeline.group[timeline.source == len(SPLITS)]))
    slot_of = np.full(work.catalogue.n_entities, -1, np.int32)
    for part in timeline.parts(past_plays.PLAYS_AT_ONCE):
        sessions = timeline.take(part)
        plays = past_plays.gather(work.sources, sessions, work.catalogue, work.facts)
        group = group_of(plays, work)
        state = past_pass.new_state(group, work.catalogue.n_entities, slot_of)
        for piece in sessions.pieces(past_plays.PLAYS_AT_ONCE):
            first, last = plays.offsets[piece.start], plays.offsets[piece.stop]
            numbers = work.room(last - first)
            past_pass.personal(group, state, piece.start, piece.stop, numbers)
            yield plays.take(piece), numbers
        past_pass.forget(state, 0)


def _copies(work: Work, listeners: np.ndarray, starts: np.ndarray) -> np.ndarray | None:
    """Sessions of the dataset that come from outside, too, and so are not their own past: bool, if there may be any."""
    if not work.is_outside:
        return None
    if not (work.facts.listeners and work.facts.times):
        return past_plays.copies_in(work.sources)
    n = work.sources[-1].n_sessions
    pairs = np.stack([listeners, starts], axis=1).view("i8,i8")[:, 0]  # numbers of sessions differ between exports
    return np.append(np.isin(pairs[:-n], pairs[-n:]), np.zeros(n, bool))


def group_of(plays: Plays, work: Work) -> Any:
    """What the compiled pass reads: plays, and the order in which they are learnt from."""
    sessions = plays.sessions
    changes = np.flatnonzero(np.diff(sessions.group)) + 1
    listeners = np.zeros(len(sessions.group), np.int64)
    listeners[changes] = 1
    listeners = np.cumsum(listeners)
    of_play = np.repeat(np.arange(len(listeners)), sessions.length)
    group = past_pass.Group(
        plays.offsets,
        sessions.start,
        listeners,
        plays.entities,
        plays.outcomes,
        plays.times,
        plays.seconds,
        of_play,
        plays.times.copy(),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
    )
    if work.facts.times:
        past_pass.outcome_times(group)
    learnt = np.arange(len(of_play))
    if work.config.protocol == "frozen":
        learnt = learnt[sessions.source[of_play] == 0]
    owner = listeners[of_play[learnt]]
    known = group.known[learnt]
    if ((known[1:] < known[:-1]) & (owner[1:] == owner[:-1])).any():  # sessions of one listener overlap
        order = np.lexsort((known, owner))
        learnt, owner = learnt[order], owner[order]
    bounds = np.searchsorted(owner, np.arange(listeners[-1] + 2))
    return group._replace(order=learnt, bounds=bounds)


def shared_statistics(work: Work) -> Iterator[tuple[Plays, np.ndarray]]:
    """Statistics over all sessions of earlier days."""
    days = past_plays.days_of(work.sources)
    if (days < 0).any():
        raise UserError(f"some sessions of {work.sources[-1].folder} have no day; choose --past.protocol none")
    still = np.zeros(len(days), np.int64)
    timeline = past_plays.timeline_of(work.sources, days, still, _copies(work, days, still))
    n_wanted = len(SPLITS) if work.is_outside else 0
    shared = past_shared.Shared(np.zeros((work.catalogue.n_entities, 6)), np.zeros((past_shared.N_POSITIONS + 1, 2)))
    for part in timeline.parts(1):
        sessions = timeline.take(part)
        day = int(sessions.group[0])
        wanted = sessions.take(sessions.source >= n_wanted)
        for piece in wanted.pieces(past_plays.PLAYS_AT_ONCE):
            plays = past_plays.gather(work.sources, wanted.take(piece), work.catalogue, work.facts)
            numbers = work.room(len(plays.outcomes))
            past_shared.of_all(plays.offsets, plays.entities, day, shared, numbers)
            yield plays, numbers
        learnt = sessions.take(sessions.source == 0) if work.config.protocol == "frozen" else sessions
        for piece in learnt.pieces(past_plays.PLAYS_AT_ONCE):
            plays = past_plays.gather(work.sources, learnt.take(piece), work.catalogue, work.facts)
            past_shared.learn_shared(plays.offsets, plays.entities, plays.outcomes, day, shared)


def details_of(plays: Plays, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was logged of each play itself, as numbers: name -> float32 (N,)."""
    angle = 2 * np.pi * plays.hours / 24
    found = {"seconds": np.log1p(plays.seconds.clip(0)), "hour_sin": np.sin(angle), "hour_cos": np.cos(angle)}
    ends = plays.times + np.nan_to_num(plays.seconds.clip(0) * 1e6).astype(np.int64)
    gap = np.zeros(len(plays.times), np.float32)
    gap[1:] = np.log1p(((plays.times[1:] - ends[:-1]) / 1e6).clip(0))
    gap[plays.offsets[:-1]] = 0
    found["gap"] = gap
    if "track_length" in columns:
        found["fraction"] = (plays.seconds.clip(0) / np.exp(columns["track_length"])).clip(max=1)
    logit = columns.get("track", columns.get("track_all"))
    if logit is not None:
        residual = 2 * (plays.outcomes - 1 / (1 + np.exp(-logit)))
        found["residual"] = np.where(plays.outcomes < 0, np.float32(np.nan), residual)
    return found
