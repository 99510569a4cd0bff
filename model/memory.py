"""What a memory of the training sessions holds: for each track and each context, where it was played.

A context is the last few tracks of a session. Two lists of plays answer all questions:

    by_track     plays in order of (track, time). The plays of a track are a range, the latest ones its end.
    by_context   plays that another play follows, in order of (track, the track before it, the one before that, ...).
                 The plays that end in a context of any length are a range, and a longer context is a range within it.

Both come from stable counting sorts, so building is linear in the plays. Letters: E plays, S sessions, V ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.core.compiled import compiled
from utils.data.vocab import N_SPECIAL, PAD

LONGEST = 5
"""Tracks of the longest context."""
TRENDS = (100.0, 500.0, 5000.0)
"""Time constants of a track's recent popularity, in sessions."""


class Memory(NamedTuple):
    """The training sessions in time order, and where to find what was played in them."""

    plays: np.ndarray
    """int32 (E + S + 1,): track ids; `PAD` stands before the first session and after each one."""
    session: np.ndarray
    """int32 (E + S + 1,): the session of each play; `PAD`s have that of the play before."""
    by_track: np.ndarray
    """int32 (plays of tracks,): places in `plays`"""
    track_starts: np.ndarray
    """int64 (V + 1,): where the plays of each track begin in `by_track`"""
    by_context: np.ndarray
    """int32 (plays that a track follows,): places in `plays`"""
    context_starts: np.ndarray
    """int64 (V + 1,): where the plays of each track begin in `by_context`"""
    recent_plays: np.ndarray
    """float32 (V, number of `TRENDS`): plays of each track, weighted by exp(-sessions since then / time constant)"""

    @property
    def n_sessions(self) -> int:
        """S"""
        return int(self.session[-1]) + 1

    @property
    def n_ids(self) -> int:
        """V"""
        return len(self.track_starts) - 1

    @classmethod
    def build(cls, tracks: np.ndarray, offsets: np.ndarray, *, n_ids: int) -> Memory:
        """Remember sessions.

        Args:
            tracks, offsets: sessions in order of time, flat (E,) and their starts (S + 1,); at least one.
            n_ids: V.

        Raises:
            ValueError: there are more than 2^31 plays and sessions.
        """
        n_sessions = len(offsets) - 1
        n = len(tracks) + n_sessions + 1
        if n >= 2**31:
            raise ValueError(f"a memory of {n:,} plays and sessions; it can be of {2**31 - 1:,}")
        plays, session = np.full(n, PAD, np.int32), np.zeros(n, np.int32)
        _with_gaps(tracks, offsets, plays, session)
        every = np.flatnonzero(plays >= N_SPECIAL).astype(np.int32)
        by_track = _sorted(plays, every, 0, n_ids)
        by_context = every[plays[every + 1] >= N_SPECIAL]
        for back in range(LONGEST - 1, -1, -1):
            by_context = _sorted(plays, by_context, back, n_ids)
        memory = cls(
            plays=plays,
            session=session,
            by_track=by_track,
            track_starts=_starts(plays[by_track], n_ids),
            by_context=by_context,
            context_starts=_starts(plays[by_context], n_ids),
            recent_plays=_recent_plays(plays, session, n_ids, np.array(TRENDS)),
        )
        for array in memory:
            array.flags.writeable = False  # as `open` maps them: machine code is compiled for one kind of memory
        return memory

    def first(self, n_sessions: int) -> Memory:
        """The memory of the first sessions only."""
        end = int(np.searchsorted(self.session, n_sessions))
        plays = self.plays[:end]
        gaps = np.flatnonzero(plays == PAD)  # before the first session and after each one
        return Memory.build(plays[plays != PAD], gaps - np.arange(len(gaps)), n_ids=self.n_ids)

    def save(self, folder: Path) -> None:
        """Write each array as a file of `folder`, which exists."""
        for name, array in self._asdict().items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> Memory:
        """Map what `save` wrote."""
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in cls._fields))


def _starts(tracks: np.ndarray, n_ids: int) -> np.ndarray:
    """Where each id begins among sorted ids: int64 (V + 1,)."""
    return np.append(0, np.bincount(tracks, minlength=n_ids).cumsum())


@compiled
def _with_gaps(tracks: np.ndarray, offsets: np.ndarray, plays: np.ndarray, session: np.ndarray) -> None:
    place = 1
    for s in range(len(offsets) - 1):
        for i in range(offsets[s], offsets[s + 1]):
            plays[place] = tracks[i]
            session[place] = s
            place += 1
        session[place] = s
        place += 1


@compiled
def before(plays: np.ndarray, place: int, back: int) -> int:
    """The track `back` plays before a place, `PAD` where the session does not go back so far."""
    for i in range(1, back + 1):
        if plays[place - i] == PAD:
            return PAD
    return plays[place - back]


@compiled
def _sorted(plays: np.ndarray, order: np.ndarray, back: int, n_ids: int) -> np.ndarray:
    """Places in a stable order of the track that was played `back` plays before each."""
    starts = np.zeros(n_ids + 1, np.int64)
    for place in order:
        starts[before(plays, place, back) + 1] += 1
    for i in range(n_ids):
        starts[i + 1] += starts[i]
    result = np.empty_like(order)
    for place in order:
        key = before(plays, place, back)
        result[starts[key]] = place
        starts[key] += 1
    return result


@compiled
def _recent_plays(plays: np.ndarray, session: np.ndarray, n_ids: int, constants: np.ndarray) -> np.ndarray:
    result = np.zeros((n_ids, len(constants)), np.float32)
    now = session[-1] + 1
    for place in range(len(plays)):
        for k in range(len(constants)):
            result[plays[place], k] += np.exp((session[place] - now) / constants[k])
    return result


@compiled
def context_range(
    plays: np.ndarray, by_context: np.ndarray, low: int, high: int, back: int, track: int
) -> tuple[int, int]:
    """Within a range of `by_context` that shares a context of `back` tracks, the range with `track` before it."""
    first, last = low, high
    while first < last:
        middle = (first + last) // 2
        if before(plays, by_context[middle], back) < track:
            first = middle + 1
        else:
            last = middle
    start, last = first, high
    while first < last:
        middle = (first + last) // 2
        if before(plays, by_context[middle], back) <= track:
            first = middle + 1
        else:
            last = middle
    return start, first
