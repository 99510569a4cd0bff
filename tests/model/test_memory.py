"""The memory of sessions by hand."""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_sessions import FIVE, N_IDS, A, B, C, D, E, flat, random_sessions

from model.memory import LONGEST, TRENDS, Memory, before, context_range
from utils.data.vocab import N_SPECIAL, PAD, UNK

PLAYS = [PAD, A, B, C, PAD, D, B, C, PAD, A, B, D, PAD, B, A, UNK, C, PAD, A, PAD]
"""The places of `FIVE`: sessions begin at 1, 5, 9, 13 and 18."""


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory.build(*flat(FIVE), n_ids=N_IDS)


def places(memory: Memory, *context: int) -> list[int]:
    """Where a context, its last track last, ends in a play that a track follows."""
    *earlier, last = context
    low, high = memory.context_starts[last], memory.context_starts[last + 1]
    for back, track in enumerate(reversed(earlier), start=1):
        low, high = context_range(memory.plays, memory.by_context, low, high, back, track)
    return memory.by_context[low:high].tolist()


def test_sessions_stand_between_gaps(memory: Memory) -> None:
    assert memory.plays.tolist() == PLAYS
    assert memory.session.tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 5 + [4] * 2
    assert (memory.n_sessions, memory.n_ids) == (5, N_IDS)


def test_plays_of_each_track_in_order_of_time(memory: Memory) -> None:
    starts = memory.track_starts
    of_each = {track: memory.by_track[starts[track] : starts[track + 1]].tolist() for track in range(N_IDS)}
    nothing = {track: [] for track in range(N_SPECIAL)}
    assert of_each == nothing | {A: [1, 9, 14, 18], B: [2, 6, 10, 13], C: [3, 7, 16], D: [5, 11], E: []}
    assert starts.tolist() == [0] * (N_SPECIAL + 1) + [4, 8, 11, 13, 13]


def test_contexts_are_plays_that_a_track_follows(memory: Memory) -> None:
    # The A at 14 is followed by an unknown track, the one at 18 by nothing; B is in order of the track before it.
    assert places(memory, A) == [1, 9]
    assert places(memory, B) == [13, 2, 10, 6]
    assert places(memory, C) == []
    assert places(memory, D) == [5]
    assert memory.context_starts.tolist() == [0] * (N_SPECIAL + 1) + [2, 6, 6, 7, 7]


def test_a_longer_context_is_a_range_within_a_shorter_one(memory: Memory) -> None:
    assert places(memory, A, B) == [2, 10]
    assert places(memory, D, B) == [6]
    assert places(memory, C, B) == places(memory, E, B) == places(memory, B, A) == []


def test_contexts_of_all_lengths_equal_a_search() -> None:
    sessions = random_sessions(80, n_ids=N_SPECIAL + 3, seed=4)
    memory = Memory.build(*flat(sessions), n_ids=N_SPECIAL + 3)
    first = np.cumsum([1, *(len(session) + 1 for session in sessions)])
    found: dict[tuple[int, ...], list[int]] = {}
    for start, session in zip(first, sessions, strict=False):
        for end in range(1, len(session)):
            for length in range(1, min(LONGEST, end) + 1):
                context = tuple(session[end - length : end])
                if context[-1] >= N_SPECIAL and session[end] >= N_SPECIAL:
                    found.setdefault(context, []).append(int(start) + end - 1)
    assert max(map(len, found)) == LONGEST
    assert max(map(len, found.values())) > 20
    for context, expected in found.items():
        assert sorted(places(memory, *context)) == expected


def test_what_stands_before(memory: Memory) -> None:
    assert [before(memory.plays, 11, back) for back in range(6)] == [D, B, A, PAD, PAD, PAD]
    assert [before(memory.plays, 16, back) for back in range(4)] == [C, UNK, A, B]


def test_unknown_tracks_are_no_plays_of_a_track(memory: Memory) -> None:
    """They keep their place, but neither list holds one, and no context of the second is followed by one."""
    for listed in (memory.by_track, memory.by_context):
        assert (memory.plays[listed] >= N_SPECIAL).all()
    assert (memory.plays[memory.by_context + 1] >= N_SPECIAL).all()


def test_recent_plays_fade_with_sessions(memory: Memory) -> None:
    # Now is session 5: A was played 5, 3, 2 and 1 sessions ago, D 4 and 3.
    for k, constant in enumerate(TRENDS):
        assert memory.recent_plays[A, k] == pytest.approx(sum(exp(-ago / constant) for ago in (5, 3, 2, 1)), rel=1e-6)
        assert memory.recent_plays[D, k] == pytest.approx(sum(exp(-ago / constant) for ago in (4, 3)), rel=1e-6)
    assert_array_equal(memory.recent_plays[E], 0)


def test_saved_and_opened_is_the_same(memory: Memory, tmp_path: Path) -> None:
    memory.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.npy" for name in Memory._fields}
    for kept, mapped in zip(memory, Memory.open(tmp_path), strict=True):
        assert kept.dtype == mapped.dtype
        assert_array_equal(kept, mapped)


def test_sessions_without_plays_and_tracks_without_sessions() -> None:
    memory = Memory.build(np.array([A, B], np.int32), np.array([0, 0, 2, 2]), n_ids=N_IDS)
    assert memory.plays.tolist() == [PAD, PAD, A, B, PAD, PAD]
    assert memory.n_sessions == 3
    assert places(memory, A) == [2]
    assert_allclose(memory.recent_plays[A], [exp(-2 / constant) for constant in TRENDS], rtol=1e-6)


@pytest.mark.parametrize("n_sessions", [1, 3, 4, 5])
def test_the_first_sessions_make_the_memory_that_was_built_of_them(memory: Memory, n_sessions: int) -> None:
    whole = Memory.build(*flat(FIVE[:n_sessions]), n_ids=N_IDS)
    for cut, built in zip(memory.first(n_sessions), whole, strict=True):
        assert cut.dtype == built.dtype
        assert_array_equal(cut, built)
