"""Baselines beside a few lines of dictionaries each, on small random sessions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from math import log, sqrt

import numpy as np
import pytest

from model import next_track
from model.baselines_seq import ItemKNN, Ngram, Popularity
from model.baselines_skip import PRIOR, PositionMajority, RepeatLast, SkipInputs, TrackRate
from utils.data.schema import SKIP_1, SKIP_2, SKIP_NO_FLAG, SKIP_PLAYED, SKIP_UNKNOWN
from utils.data.vocab import N_SPECIAL, PAD, UNK

TRACKS = range(N_SPECIAL, N_SPECIAL + 14)
N_IDS = TRACKS.stop
S, T = 6, 4
Chances = Callable[[list[int]], dict[int, float]]
"""The plays before -> the probability of each track as the next one."""


def draw_sessions(n: int, seed: int) -> list[list[int]]:
    """Random walks with jumps and unknown tracks; some have a single play."""
    rng = np.random.default_rng(seed)
    sessions = []
    for _ in range(n):
        track, session = int(rng.choice(TRACKS)), []
        for _ in range(rng.integers(1, 11)):
            near = N_SPECIAL + (track - N_SPECIAL + int(rng.choice([1, 1, 2, 5]))) % len(TRACKS)
            track = near if rng.random() < 0.7 else int(rng.choice(TRACKS[:8]))
            session.append(track if rng.random() < 0.95 else UNK)
        sessions.append(session)
    return sessions


def flat(sessions: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(sessions).astype(np.int32), np.cumsum([0, *map(len, sessions)])


# References


def popularity(sessions: list[list[int]]) -> Chances:
    """One more than its plays, as a share."""
    plays = Counter(track for session in sessions for track in session if track in TRACKS)
    total = sum(plays.values()) + len(TRACKS)
    return lambda history: {track: (plays[track] + 1) / total for track in TRACKS}


def ngram(sessions: list[list[int]], order: int, discount: float, fallback: Chances) -> Chances:
    """P_k(b | h) = max(c(h, b) - d^k, 0) / c(h) + left P_{k-1}(b | shorter h); unseen contexts are passed over."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for session in sessions:
        for place, track in enumerate(session):
            for k in range(1, min(order, place) + 1):
                if track in TRACKS:
                    counts[tuple(session[place - k : place])][track] += 1

    def chances(history: list[int]) -> dict[int, float]:
        found = fallback(history)
        for k in range(1, min(order, len(history)) + 1):
            after = counts.get(tuple(history[-k:]))
            if after:
                own = {track: max(n - discount**k, 0) / after.total() for track, n in after.items()}
                left = 1 - sum(own.values())
                found = {track: own.get(track, 0) + left * found[track] for track in TRACKS}
        return found

    return chances


def item_knn(
    sessions: list[list[int]], neighbours: int, shrinkage: float, decay: float, repeat: float, share: float
) -> Chances:
    """Neighbours by shrunk cosine of sessions, scaled to sum to 1; plays weigh decay^age, a part stays with them."""
    held = [set(session) & set(TRACKS) for session in sessions]
    n = {a: sum(a in session for session in held) for a in TRACKS}
    both = {(a, b): sum({a, b} <= session for session in held) for a in TRACKS for b in TRACKS if a != b}
    cosine = {(a, b): c / sqrt((n[a] + shrinkage) * (n[b] + shrinkage)) for (a, b), c in both.items() if c}
    near: dict[int, dict[int, float]] = {}
    for a in TRACKS:
        row = sorted(((value, b) for (of, b), value in cosine.items() if of == a), reverse=True)
        assert len(row) <= neighbours or row[neighbours - 1][0] > row[neighbours][0], "which one is kept is open"
        total = sum(value for value, _ in row[:neighbours])
        near[a] = {b: value / total for value, b in row[:neighbours]}
    most_played = popularity(sessions)

    def chances(history: list[int]) -> dict[int, float]:
        weights = [(decay**age, track) for age, track in enumerate(reversed(history)) if near.get(track)]
        total = sum(weight for weight, _ in weights)
        rest = share if weights else 1.0
        found = {track: rest * chance for track, chance in most_played(history).items()}
        for weight, track in weights:
            found[track] += (1 - share) * repeat * weight / total
            for other, value in near[track].items():
                found[other] += (1 - share) * (1 - repeat) * value * weight / total
        return found

    return chances


def pairs(sessions: list[list[int]]) -> dict[str, tuple[next_track.NextTrack, Chances]]:
    """Each baseline with its reference."""
    tracks, offsets = flat(sessions)
    most_played, played = Popularity.fit(tracks, n_ids=N_IDS), popularity(sessions)
    knn = ItemKNN.fit(tracks, offsets, n_ids=N_IDS, n_neighbours=100, shrinkage=3.0)
    few = ItemKNN.fit(tracks, offsets, n_ids=N_IDS, n_neighbours=4, shrinkage=0.0)
    few = ItemKNN(few.popularity, few.table, decay=0.9, repeat=0.2, popularity_share=0.1)
    of_knn = item_knn(sessions, 100, 3.0, 0.7, 0.1, 0.05)
    return {
        "popularity": (most_played, played),
        "markov": (Ngram.fit(tracks, offsets, order=1, fallback=most_played), ngram(sessions, 1, 0.9, played)),
        "n-gram": (
            Ngram.fit(tracks, offsets, order=3, fallback=knn, discount=0.6),
            ngram(sessions, 3, 0.6, of_knn),
        ),
        "item-kNN": (knn, of_knn),
        "few neighbours": (few, item_knn(sessions, 4, 0.0, 0.9, 0.2, 0.1)),
    }


# The next track


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["popularity", "markov", "n-gram", "item-kNN", "few neighbours"])
def test_next_tracks(name: str, seed: int) -> None:
    """Probability of every track, of the true ones, rank of the first and the greedy continuation."""
    model, chances = pairs(draw_sessions(90, seed))[name]
    asked = [session for session in draw_sessions(150, seed + 50) if len(session) > 1]
    halves = [(session[: len(session) // 2], session[len(session) // 2 :][:T]) for session in asked]
    history = np.array([[PAD] * (S - len(past)) + past for past, _ in halves], np.int32)
    targets = np.array([future + [PAD] * (T - len(future)) for _, future in halves], np.int32)

    found, rest = next_track.score(model, history)
    dense = found.toarray() + rest[:, None] * model.popularity
    log_p, ranks = next_track.score_targets(model, history, targets)
    continued = next_track.continue_greedily(model, history, T)
    for i, (past, future) in enumerate(halves):
        expected = chances(past)
        assert dense[i] == pytest.approx([expected.get(track, 0) for track in range(N_IDS)], abs=1e-7)
        assert sum(expected.values()) == pytest.approx(1)
        for t, track in enumerate(future):
            before = (past + future[:t])[-S:]
            assert log_p[i, t] == pytest.approx(log(chances(before)[track]) if track in TRACKS else 0, abs=1e-5)
        if future[0] in TRACKS:
            own = expected[future[0]]
            equal = sum(abs(p - own) < 1e-9 for p in expected.values())
            assert ranks.rank[i] == sum(p > own + 1e-9 for p in expected.values()) + (equal - 1) / 2
            assert ranks.tied[i] == equal
        else:
            assert (ranks.rank[i], ranks.tied[i]) == (np.inf, 1)
        for t in range(T):
            before = chances((past + continued[i, :t].tolist())[-S:])
            best = max(before.values())
            assert continued[i, t] == min(track for track, p in before.items() if p > best - 1e-9)


# Skips


def rate(skips: float, n: float, overall: float) -> float:
    """As if 20 plays at the overall rate had been seen before."""
    return (skips + PRIOR * overall) / (n + PRIOR)


def skip_examples(seed: int) -> tuple[SkipInputs, np.ndarray]:
    """Histories, skip states, target tracks and labels (-1 unknown)."""
    rng = np.random.default_rng(seed)
    n_past, n_future = rng.integers(1, S + 1, (120, 1)), rng.integers(1, T + 1, (120, 1))
    past, future = np.arange(S) >= S - n_past, np.arange(T) < n_future
    states = rng.integers(0, 6, past.shape) * past
    states[::7] = 0  # nothing is known
    tracks, targets = (rng.choice([UNK, *TRACKS], mask.shape) * mask for mask in (past, future))
    labels = np.where(future & (rng.random(future.shape) < 0.85), rng.integers(0, 2, future.shape), -1)
    return SkipInputs(tracks, states, targets), labels


def last_action(states: np.ndarray) -> int | None:
    """1 if the last play whose state is known was skipped, 0 if not, None if none is known."""
    known = [int(state) - 1 for state in states if state > 0]
    return None if not known else int(known[-1] in (SKIP_2, SKIP_1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", [PositionMajority, RepeatLast])
def test_rates_of_skips_by_position(model: type[PositionMajority] | type[RepeatLast], seed: int) -> None:
    """Position majority counts by number of targets and position, repeat-last by last action and position."""
    (inputs, labels), (asked, _) = skip_examples(seed), skip_examples(seed + 9)

    def group(states: np.ndarray, targets: np.ndarray) -> int | None:
        return last_action(states) if model is RepeatLast else int((targets != PAD).sum())

    n, skips = Counter(), Counter()
    for states, targets, answers in zip(inputs.history_skips, inputs.target_tracks, labels, strict=True):
        for t, answer in enumerate(answers):
            if answer >= 0:
                n[group(states, targets), t] += 1
                skips[group(states, targets), t] += int(answer)
    overall = skips.total() / n.total()
    probability, decision = model.fit(inputs, labels).predict(asked)
    for i, (states, targets) in enumerate(zip(asked.history_skips, asked.target_tracks, strict=True)):
        for t in range(T):
            cell = (group(states, targets), t)
            expected = rate(skips[cell], n[cell], overall)
            assert probability[i, t] == pytest.approx(expected, rel=1e-6)
            repeats = model is RepeatLast and cell[0] is not None
            assert decision[i, t] == (bool(cell[0]) if repeats else expected >= 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_skip_rates_of_tracks(seed: int) -> None:
    """Counted over all plays whose skip is known; unknown tracks are one track."""
    rng = np.random.default_rng(seed)
    tracks = rng.choice([UNK, *TRACKS[:-1]], 400)
    codes = rng.choice([SKIP_NO_FLAG, SKIP_PLAYED, SKIP_2, SKIP_1, SKIP_UNKNOWN], 400).astype(np.uint8)
    n, skips = Counter(), Counter()
    for track, code in zip(tracks.tolist(), codes.tolist(), strict=True):
        n[track] += code != SKIP_UNKNOWN
        skips[track] += code in (SKIP_2, SKIP_1)
    overall = skips.total() / n.total()
    inputs, _ = skip_examples(seed)
    probability, decision = TrackRate.fit(tracks, codes, n_ids=N_IDS).predict(inputs)
    for place, track in np.ndenumerate(inputs.target_tracks):
        expected = rate(skips[track], n[track], overall)
        assert probability[place] == pytest.approx(expected, rel=1e-6)
        assert decision[place] == (expected >= 0.5)
