"""Where `model/candidates.py` adds up what a memory says of the tracks and sessions that one history meets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from model.memory import LONGEST, Memory
from utils.core.compiled import compiled

# Columns of `Scratch.numbers`: sums for each track that was met.
(SKNN, STAN, FORWARD, BACKWARD, COSINE, COVER, LAST_AGE, MAX_SIM, PLACE, LAST_NEIGHBOUR, P, ORDER, LATEST) = range(13)
COUNTS = 13
N_NUMBERS = COUNTS + LONGEST
# Columns of `Scratch.neighbours`: sessions that were met.
SIM, MATCHED, MATCH_AGE, SIM_AGE = range(4)


class Scratch(NamedTuple):
    """Where one history after the other is worked on; never cleared, but stamped with the history's number."""

    stamp: np.ndarray
    """int64 (V,): the last history that met the track"""
    slot: np.ndarray
    """int32 (V,): its row in `numbers`"""
    met: np.ndarray
    """int32: the tracks that were met, in that order"""
    numbers: np.ndarray
    """float64 (most tracks that one history can meet, N_NUMBERS)"""
    session_stamp: np.ndarray
    """int64 (S,)"""
    session_slot: np.ndarray
    """int32 (S,)"""
    neighbours: np.ndarray
    """float64 (most sessions that one history can meet, 4)"""
    neighbour_ids: np.ndarray
    """int32: sessions that were met, in that order"""
    counter: np.ndarray
    """int64 (3,): histories so far; tracks and sessions that this one has met"""

    @classmethod
    def of(cls, memory: Memory, *, n_tracks: int, n_sessions: int) -> Scratch:
        """For histories of this memory, each of which meets at most so many tracks and sessions."""
        v, s, rows = memory.n_ids, memory.n_sessions, min(memory.n_ids, n_tracks)
        return cls(
            *(np.zeros(v, np.int64), np.zeros(v, np.int32), np.zeros(rows, np.int32), np.zeros((rows, N_NUMBERS))),
            *(np.zeros(s, np.int64), np.zeros(s, np.int32), np.zeros((n_sessions, 4)), np.zeros(n_sessions, np.int32)),
            np.zeros(3, np.int64),
        )


@compiled
def meet(scratch: Scratch, track: int) -> int:
    """The row of a track in `scratch.numbers`, a new one if this history has not met it."""
    if scratch.stamp[track] != scratch.counter[0]:
        scratch.stamp[track] = scratch.counter[0]
        scratch.slot[track] = scratch.counter[1]
        scratch.met[scratch.counter[1]] = track
        scratch.numbers[scratch.counter[1]] = 0
        scratch.numbers[scratch.counter[1], LAST_AGE] = -1
        scratch.numbers[scratch.counter[1], LAST_NEIGHBOUR] = -1
        scratch.counter[1] += 1
    return scratch.slot[track]


@compiled
def meet_session(scratch: Scratch, session: int, place: int, age: int, similarity: float) -> None:
    """Add to a session's similarity, once for each track of the history; `place` is where that track was played."""
    if scratch.session_stamp[session] != scratch.counter[0]:
        scratch.session_stamp[session] = scratch.counter[0]
        slot = scratch.counter[2]
        scratch.session_slot[session] = slot
        scratch.neighbour_ids[slot] = session
        scratch.neighbours[slot, SIM] = 0.0
        scratch.neighbours[slot, MATCHED] = place
        scratch.neighbours[slot, MATCH_AGE] = age
        scratch.neighbours[slot, SIM_AGE] = -1
        scratch.counter[2] += 1
    row = scratch.neighbours[scratch.session_slot[session]]
    if row[SIM_AGE] != age:
        row[SIM_AGE] = age
        row[SIM] += similarity
