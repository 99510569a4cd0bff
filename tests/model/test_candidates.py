"""Candidates of a memory: by hand, alone or together, and never a special id."""

from __future__ import annotations

from math import exp, log, log1p, sqrt

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from small_sessions import FIVE, N_IDS, A, B, C, D, E, flat, histories, random_sessions

from model import candidates
from model.candidates import FEATURES, LITTLE, OF_HISTORY, CandidateFinder, Candidates
from model.memory import Memory
from utils.data.vocab import N_SPECIAL, PAD, UNK


def finder(sessions: list[list[int]], n_ids: int = N_IDS) -> CandidateFinder:
    return CandidateFinder(Memory.build(*flat(sessions), n_ids=n_ids))


MANY_IDS = N_SPECIAL + 30
MANY = random_sessions(80, n_ids=MANY_IDS, seed=2)
ASKED = histories(*random_sessions(40, n_ids=MANY_IDS, seed=3), [], [UNK], [UNK, UNK], size=8)


def assert_same(one: Candidates, two: Candidates) -> None:
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype
        assert_array_equal(a, b)


# By hand: after A, B. The weights of the five sessions are .5, .7, .9, 1.1 and 1.3.


@pytest.fixture(scope="module")
def after_a_b() -> dict[int, dict[str, float]]:
    """Track -> feature -> value."""
    found = finder(FIVE)(histories([A, B]))
    assert found.ids.tolist() == [A, B, C, D]
    assert found.starts.tolist() == [0, 4]
    return {
        int(b): dict(zip(FEATURES, row.tolist(), strict=True)) for b, row in zip(found.ids, found.features, strict=True)
    }


def close(value: float):
    return pytest.approx(value, rel=1e-3)


def logged(value: float):
    return close(log(value + LITTLE))


def test_ngram_by_hand(after_a_b) -> None:
    # After B: C with .5 + .7, D with .9, A with 1.1, together 3.2. After A, B: C with .5, D with .9.
    a, b, c, d = (after_a_b[track] for track in (A, B, C, D))
    assert [track["n-gram of order 1"] for track in (a, b, c, d)] == [
        *(logged(1.1 / 3.7), logged(0), logged(1.2 / 3.7), logged(0.9 / 3.7))
    ]
    assert [track["n-gram of order 2"] for track in (a, b, c, d)] == [
        *(logged(0), logged(0), logged(0.5 / 1.9), logged(0.9 / 1.9))
    ]
    assert c["n-gram of order 3"] == logged(0)
    # Order 1 takes .45 of each, order 2 .405 of each of the two, and leaves that to order 1.
    first = {A: 0.65 / 3.2, C: 0.75 / 3.2, D: 0.45 / 3.2}
    left = 0.81 / 1.4
    p = {A: left * first[A], C: 0.095 / 1.4 + left * first[C], D: 0.495 / 1.4 + left * first[D]}
    for track, value in p.items():
        assert after_a_b[track]["n-gram"] == logged(value)
        assert after_a_b[track]["n-gram, relative"] == pytest.approx(log((value + LITTLE) / (p[D] + LITTLE)), abs=1e-3)
    assert [track["longest order"] for track in (a, b, c, d)] == [1, 0, 2, 2]
    # A last followed B in session 3, C and D last followed A, B in sessions 0 and 2; B followed neither.
    assert [track["recency in it"] for track in (a, b, c, d)] == [*map(close, map(log1p, (2, 10, 5, 3)))]


def test_pairs_by_hand(after_a_b) -> None:
    # A and B have four plays each: a play of B weighs w / 9, one of A .75 w / 9, and .8 for each place between.
    of_b, of_a = 0.5 + 0.7 + 1.1 * 0.64, 0.75 * (0.5 * 0.8 + 1.1 * 0.8)
    assert after_a_b[C]["forward"] == logged((of_b + of_a) / 9)
    assert after_a_b[C]["backward"] == logged(0)
    assert after_a_b[D]["backward"] == logged(0.7 / 9)
    assert after_a_b[A]["forward"] == logged(1.1 / 9)
    assert after_a_b[A]["backward"] == logged((0.5 + 0.9) / 9)
    # C was played three times beside B, twice beside A, and three times in all.
    assert after_a_b[C]["cosine"] == logged((3 + 2 * 0.75) / sqrt(24 * 23))
    assert [after_a_b[track]["cover"] for track in (A, B, C, D)] == [0.5, 0.5, 1, 1]


def test_neighbours_by_hand(after_a_b) -> None:
    # Sessions 0, 2 and 3 hold both tracks, 1 holds B; B is matched where it stands.
    fresh = [0.3 + exp((s - 5) / 20_000) for s in range(5)]
    both, only_b = 1.75 / sqrt(24), 1 / sqrt(24)
    sims = [both * fresh[0], only_b * fresh[1], both * fresh[2], both * fresh[3], 0.75 / sqrt(24) * fresh[4]]
    c = after_a_b[C]
    assert c["sknn"] == logged(sims[0] + sims[1] + sims[3])
    # One place after B is where the next track would be; in session 3, C is two places farther.
    assert c["stan"] == logged(sims[0] ** 2 + sims[1] ** 2 + sims[3] ** 2 * exp(-2 / 3))
    assert c["most similar session"] == logged(sims[3])
    assert c["place in it"] == 2
    # D: one place before B in session 1, one after it in session 2.
    assert after_a_b[D]["stan"] == logged(sims[1] ** 2 * 0.5 * exp(-2 / 3) + sims[2] ** 2)
    assert after_a_b[D]["place in it"] == 0


def test_trends_and_repeats_by_hand(after_a_b) -> None:
    assert [after_a_b[track]["plays"] for track in (A, B, C, D)] == [*map(close, map(log1p, (4, 4, 3, 2)))]
    assert [after_a_b[track]["sessions since"] for track in (A, B, C, D)] == [*map(close, map(log1p, (1, 2, 2, 3)))]
    assert after_a_b[D]["plays of 100 sessions"] == logged(exp(-4 / 100) + exp(-3 / 100))
    assert [after_a_b[track]["repeat"] for track in (A, B, C, D)] == [0.5, 1, 0, 0]
    assert [after_a_b[track]["repeats"] for track in (A, B, C, D)] == [1, 1, 0, 0]


def test_the_history_by_hand() -> None:
    found = finder(FIVE)(histories([A, B], [B, B], [E, B, A, B], size=4))
    about = [dict(zip(OF_HISTORY, row.tolist(), strict=True)) for row in found.histories]
    p = 0.495 / 1.4 + 0.81 / 1.4 * 0.45 / 3.2
    assert about[0] == {
        "length": close(log1p(2)),
        "longest order": 2,
        "plays of order 1": close(log1p(4)),
        "plays of order 2": close(log1p(2)),
        "neighbours": close(log1p(5)),
        "distinct tracks": 1,
        "last two equal": 0,
        "highest n-gram": logged(p),
        "plays of the last track": close(log1p(4)),
    }
    assert about[1]["last two equal"] == 1
    assert [row["distinct tracks"] for row in about] == [1, 0.5, 0.75]
    assert [row["longest order"] for row in about] == [2, 1, 2]


# Any history, any batch


@pytest.fixture(scope="module")
def together() -> Candidates:
    return finder(MANY, MANY_IDS)(ASKED)


def test_machine_code_is_compiled_once(tmp_path) -> None:
    """For memories built and opened, and for one history or many: compiling takes half a minute."""
    built = Memory.build(*flat(FIVE), n_ids=N_IDS)
    built.save(tmp_path)
    for memory in (built, Memory.open(tmp_path)):
        for asked in (histories([A]), histories([A], [B], [])):
            CandidateFinder(memory)(asked)
    assert len(candidates._find.signatures) == 1


def test_together_is_as_one_by_one(together: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = finder(MANY, MANY_IDS)
    rows = [alone(row[None]) for row in ASKED]
    assert_array_equal(together.starts, np.append(0, np.cumsum([len(row.ids) for row in rows])))
    for name in ("ids", "features", "histories"):
        assert_array_equal(getattr(together, name), np.concatenate([getattr(row, name) for row in rows]))
    monkeypatch.setattr(candidates, "CASES_AT_ONCE", 7)
    assert_same(alone(ASKED), together)


def test_padding_changes_nothing(together: Candidates) -> None:
    wider = np.concatenate([np.full((len(ASKED), 9), PAD), ASKED], axis=1)
    assert_same(finder(MANY, MANY_IDS)(wider), together)


def test_candidates_are_sorted_tracks(together: Candidates) -> None:
    assert together.ids.min() >= N_SPECIAL
    assert together.ids.max() < MANY_IDS
    for first, end in zip(together.starts, together.starts[1:], strict=False):
        assert (np.diff(together.ids[first:end]) > 0).all()
    assert np.isfinite(together.features).all()
    assert np.isfinite(together.histories).all()


def test_nothing_known_finds_nothing() -> None:
    """No play, new tracks only, and a track that was never played, which is its own only candidate."""
    found = finder(FIVE)(histories([], [UNK, UNK], [E]))
    assert found.starts.tolist() == [0, 0, 0, 1]
    assert found.ids.tolist() == [E]
    of_e = dict(zip(FEATURES, found.features[0].tolist(), strict=True))
    assert [of_e["plays"], of_e["repeat"], of_e["sessions since"]] == [0, 1, close(log1p(10))]
    assert np.isfinite(found.features).all()
    assert np.isfinite(found.histories).all()
    assert found.histories[:, OF_HISTORY.index("length")].tolist() == [0, close(log1p(2)), close(log1p(1))]


def test_an_unknown_track_ends_the_context() -> None:
    found = finder([[A, B, C], [A, UNK, B, D]])(histories([A, UNK, B], [B]))
    order = found.histories[:, OF_HISTORY.index("longest order")]
    assert order.tolist() == [1, 1]


def test_the_tracks_of_a_history_are_candidates_however_old() -> None:
    history = list(range(N_SPECIAL, N_SPECIAL + candidates.AGES + 6))
    found = CandidateFinder(Memory.build(np.array([A, B], np.int32), np.array([0, 2]), n_ids=MANY_IDS))
    assert set(history) <= set(found(np.array([history])).ids.tolist())
