"""The compiled passes that need no listener: relations within a session, and statistics of all earlier days."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from utils.core.compiled import compiled
from utils.data.past_pass import LISTENER_MEAN, LISTENER_PLAYS, LONGEST, logit, shrunk

N_POSITIONS = 20
"""Positions from this on share one rate."""
SHARED_PRIOR, TRACK_PRIOR, RECENT_PRIOR = 20.0, 10.0, 10.0
HALF_LIFE = 7.0
"""Days."""


@compiled
def relations(offsets: Any, entities: Any, seen: Any, at: int, out: Any) -> None:
    """How each play relates to the others of its session, by identities only.

    Args:
        offsets: int64 (M + 1,), from 0.
        entities: int32 (plays, 3).
        seen: int32 (all entities,), zeros before and after.
        at: first column of `out` that is filled.
        out: float32 (plays, columns): twelve of its columns are filled.
    """
    for session in range(len(offsets) - 1):
        first, last = offsets[session], offsets[session + 1]
        for i in range(first, last):
            line = out[i, at:]
            for kind in range(3):
                entity = entities[i, kind]
                line[kind] = 1.0 if i > first and entity >= 0 and entities[i - 1, kind] == entity else 0.0
                line[3 + kind] = 1.0 if i + 1 < last and entity >= 0 and entities[i + 1, kind] == entity else 0.0
                line[6 + kind] = math.log1p(seen[entity]) if entity >= 0 else 0.0
                if entity >= 0:
                    seen[entity] += 1
            line[9] = math.log1p(i - first)
            line[10] = math.log1p(last - 1 - i)
            line[11] = 1.0 if i + 1 == last else 0.0
        for i in range(first, last):
            for kind in range(3):
                if entities[i, kind] >= 0:
                    seen[entities[i, kind]] = 0


class Shared(NamedTuple):
    """What is known of all sessions of earlier days."""

    numbers: np.ndarray
    """float64 (entities, 6): plays, labelled, skips, decayed labelled, decayed skips, day of the last play"""
    positions: np.ndarray
    """float64 (N_POSITIONS + 1, 2): labelled plays and skips at each position; the last row is of all positions"""


@compiled
def learn_shared(offsets: Any, entities: Any, outcomes: Any, day: int, shared: Any) -> None:
    """Add the plays of some sessions of one day."""
    for session in range(len(offsets) - 1):
        for i in range(offsets[session], offsets[session + 1]):
            label = outcomes[i]
            if label >= 0:
                position = min(i - offsets[session], N_POSITIONS - 1)
                for row in (position, N_POSITIONS):
                    shared.positions[row, 0] += 1.0
                    shared.positions[row, 1] += label
            for kind in range(3):
                entity = entities[i, kind]
                if entity < 0:
                    continue
                numbers = shared.numbers[entity]
                left = 2.0 ** (-(day - numbers[5]) / HALF_LIFE)
                numbers[3] *= left
                numbers[4] *= left
                numbers[5] = day
                numbers[0] += 1.0
                if label >= 0:
                    numbers[1] += 1.0
                    numbers[2] += label
                    numbers[3] += 1.0
                    numbers[4] += label


@compiled
def of_all(offsets: Any, entities: Any, day: int, shared: Any, out: Any) -> None:
    """Statistics over all sessions of the days before `day` into the first 17 columns of `out`, float32 (plays, ...).

    The plays are of sessions of `day`.
    """
    total = shared.positions[N_POSITIONS]
    p = shrunk(total[1], total[0], LISTENER_MEAN, LISTENER_PLAYS)
    nothing = np.zeros(6)
    for session in range(len(offsets) - 1):
        for i in range(offsets[session], offsets[session + 1]):
            line = out[i]
            place = shared.positions[min(i - offsets[session], N_POSITIONS - 1)]
            line[0] = logit(p)
            line[1] = logit(shrunk(place[1], place[0], p, SHARED_PRIOR))
            above = p
            for kind in (1, 2, 0):
                entity = entities[i, kind]
                row = shared.numbers[entity] if entity >= 0 else nothing
                above = shrunk(row[2], row[1], above, TRACK_PRIOR if kind == 0 else SHARED_PRIOR)
                left = 2.0 ** (-(day - row[5]) / HALF_LIFE)
                at = 2 + 5 * kind
                line[at] = logit(above)
                line[at + 1] = logit(shrunk(left * row[4], left * row[3], above, RECENT_PRIOR))
                line[at + 2] = math.log1p(row[0])
                line[at + 3] = math.log1p(row[1])
                line[at + 4] = math.log1p(day - row[5]) if row[0] > 0 else math.log1p(LONGEST / 24)
