"""Which tracks may come next after a history, and what a memory says of each: the first of two stages.

A candidate is a track that one of the sources proposes, and each source gives it features, too. Letters as in
`model/memory.py`; h is a history x_1 ... x_n, t = 0 its last track, and w_s = 0.5 + s / S the weight of session s.

    n-gram      c_m(b), the plays of b after the last m tracks, weighted by w_s. P is their interpolation by absolute
                discounting (Ney, Essen and Kneser 1994): P_m(b) = max(c_m(b) - D^m / 2, 0) / c_m + left_m P_{m-1}(b),
                with P_0 = 0; the half is the weight of the oldest session.
    pairs       forward(b) = sum over t and the plays of x_{n-t} of A^t w_s G^(gap - 1) / (n(x) + 5), for b played `gap`
                places later in the session; backward(b) for b played earlier; cosine(b), both without regard to order;
                cover(b), the share of the history's tracks that b was played with.
    neighbours  sim(s) = sum over t of A^t [x_{n-t} in s] / sqrt(n(x) + 20), more for recent sessions. Of the most
                similar sessions: sknn(b), the sum of sim over those with b (session kNN); stan(b), where b's place
                relative to the track that was matched counts, too (after STAN, Garg et al. 2019); the highest sim.
    repeats     the tracks of the history itself.
    trends      how often b is played, how often lately, and how long ago it was.

Everything about one history is computed from that history alone, so batches change nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from model.catalogue import rows_at_once
from model.memory import LONGEST, Memory, context_range
from model.network_source import PROPOSED, NetworkSource, describe
from model.scratch import (
    BACKWARD,
    COSINE,
    COUNTS,
    COVER,
    FORWARD,
    LAST_AGE,
    LAST_NEIGHBOUR,
    LATEST,
    MATCH_AGE,
    MATCHED,
    MAX_SIM,
    ORDER,
    PLACE,
    SIM,
    SKNN,
    STAN,
    P,
    Scratch,
    meet,
    meet_session,
)
from utils.core.compiled import compiled
from utils.data.vocab import N_SPECIAL, PAD

AGES = 8
"""Distinct tracks of the history whose plays are looked up, the last ones."""
PLAYS = 200
"""Plays of each of them that are looked at, the latest ones."""
CONTEXTS = 2000
"""Plays of each context that are looked at: the latest ones of a track, evenly spaced ones of a longer context."""
NEIGHBOURS = 200
"""Most similar sessions."""
REACH = 10
"""Places before and after a play in which tracks count as played together."""
STRETCH = 30
"""Places before and after a matched play in which a neighbour session's tracks are looked at."""
AGE_DECAY, GAP_DECAY, DISCOUNT = 0.75, 0.8, 0.9
FRESHNESS = 20_000.0
"""Sessions after which an older session's similarity is a third of what remains of it."""
BY_NGRAM, BY_STAN, BY_SKNN, BY_FORWARD, BY_COSINE = 150, 80, 60, 60, 60
"""Candidates of each source."""
CASES_AT_ONCE = 256
LITTLE = 1e-4
"""Added to a score before its logarithm."""

FEATURES = (
    *(f"n-gram of order {m}" for m in range(1, LONGEST + 1)),
    *("n-gram", "longest order", "recency in it"),
    *("sknn", "stan", "most similar session", "place in it"),
    *("forward", "backward", "cosine", "cover"),
    *("plays", "plays of 100 sessions", "plays of 500 sessions", "plays of 5,000 sessions", "sessions since"),
    *("repeat", "repeats"),
    *("n-gram, relative", "sknn, relative", "stan, relative", "forward, relative", "cosine, relative"),
)
"""What is known of a candidate. Relative features are differences to the history's best candidate."""
OF_HISTORY = (
    *("length", "longest order", "plays of order 1", "plays of order 2", "neighbours"),
    *("distinct tracks", "last two equal", "highest n-gram", "plays of the last track"),
)
"""What is known of a history, the same for all of its candidates."""


class Candidates(NamedTuple):
    """The candidates of N histories, one history after the other, in order of their ids. M candidates in all."""

    ids: np.ndarray
    """int32 (M,)"""
    starts: np.ndarray
    """int64 (N + 1,)"""
    features: np.ndarray
    """float16 (M, F): `FEATURES`, and with a network `NETWORK_FEATURES`"""
    histories: np.ndarray
    """float32 (N, number of `OF_HISTORY`)"""


class CandidateFinder:
    """Finds candidates in a memory, in bounded memory: that of the result, and some numbers for each track and session.

    Args:
        memory: of the training sessions.
        second_source: a network that proposes candidates, too, and describes all of them.
    """

    def __init__(self, memory: Memory, second_source: NetworkSource | None = None) -> None:
        self.memory = memory
        self.second_source = second_source

    def __call__(self, history: np.ndarray, *, bar: str = "") -> Candidates:
        """The candidates of histories int (N, S), padded on the left; with the text of a progress bar, if any."""
        n, size = history.shape
        n_proposed = 0 if self.second_source is None else PROPOSED
        met = LONGEST * CONTEXTS + AGES * PLAYS * 2 * REACH + NEIGHBOURS * 2 * STRETCH + size + n_proposed
        scratch = Scratch.of(self.memory, n_tracks=met, n_sessions=AGES * PLAYS)
        at_once = min(
            n, CASES_AT_ONCE if self.second_source is None else rows_at_once(self.memory.n_ids, CASES_AT_ONCE)
        )
        most = at_once * (BY_NGRAM + BY_STAN + BY_SKNN + BY_FORWARD + BY_COSINE + size + n_proposed)
        ids, features = np.empty(most, np.int32), np.empty((most, len(FEATURES)), np.float32)
        about, counts, parts = np.empty((n, len(OF_HISTORY)), np.float32), np.zeros(n, np.int64), []
        for start in tqdm(range(0, n, at_once), desc=bar, leave=False, delay=2, disable=not bar):
            i = slice(start, start + at_once)
            plays = history[i].astype(np.int32)
            proposed, log_p = (np.zeros((len(plays), 0), np.int32), None)
            if self.second_source is not None:
                proposed, log_p = self.second_source(plays)
            found = _find(self.memory, scratch, plays, proposed, ids, features, about[i], counts[i])
            values = [features[:found]]
            if log_p is not None:
                rows = np.repeat(np.arange(len(plays)), counts[i])
                values.append(describe(ids[:found], rows, proposed, log_p))
            parts.append((ids[:found].copy(), np.concatenate(values, axis=1).astype(np.float16)))
        all_ids, all_features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Candidates(all_ids, np.append(0, counts.cumsum()), all_features, about)


@compiled
def _find(
    memory: Memory,
    scratch: Scratch,
    history: np.ndarray,
    proposed: np.ndarray,
    ids: np.ndarray,
    features: np.ndarray,
    numbers: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Candidates of each row; fills `ids` and `features` from their beginning, and returns how many there are."""
    found = 0
    for i in range(len(history)):
        scratch.counter[0] += 1
        scratch.counter[1:] = 0
        n = 0  # plays of the history: those of new tracks count, though nothing is known of them
        while n < history.shape[1] and history[i, history.shape[1] - 1 - n] != PAD:
            n += 1
        plays = history[i, history.shape[1] - n :][::-1]  # the last one first
        _ngram(memory, scratch, plays, numbers[i])
        _pairs(memory, scratch, plays)
        _neighbours(memory, scratch, n, numbers[i])
        marked = np.zeros(scratch.counter[1] + n + proposed.shape[1], np.bool_)
        for j in range(n):
            if plays[j] >= N_SPECIAL:
                marked[meet(scratch, plays[j])] = True
        for j in range(proposed.shape[1]):
            if proposed[i, j] >= N_SPECIAL:
                marked[meet(scratch, proposed[i, j])] = True
        met = scratch.numbers[: scratch.counter[1]]
        wanted = marked[: len(met)]
        _top(met[:, P], BY_NGRAM, wanted)
        _top(met[:, STAN], BY_STAN, wanted)
        _top(met[:, SKNN], BY_SKNN, wanted)
        _top(met[:, FORWARD], BY_FORWARD, wanted)
        _top(met[:, COSINE], BY_COSINE, wanted)
        chosen = np.sort(scratch.met[: len(met)][wanted])
        counts[i] = len(chosen)
        for track in chosen:
            ids[found] = track
            _describe(memory, scratch, plays, track, features[found])
            found += 1
        _relate(features[found - len(chosen) : found])
        _describe_history(memory, plays, numbers[i])
    return found


@compiled
def _ngram(memory: Memory, scratch: Scratch, plays: np.ndarray, about: np.ndarray) -> None:
    """Count what followed each context at the end of the history, and interpolate.

    Args:
        memory, scratch: where from, and where to.
        plays: the history, its last play first.
        about: of `OF_HISTORY`; gets the longest order, the plays of orders 1 and 2, and the highest probability.
    """
    about[:] = 0
    totals = np.zeros(LONGEST)
    n_sessions = memory.session[-1] + 1
    low, high, longest = 0, 0, 0
    for m in range(1, min(LONGEST, len(plays)) + 1):
        track = plays[m - 1]
        if track < N_SPECIAL:
            break
        if m == 1:
            low, high = memory.context_starts[track], memory.context_starts[track + 1]
        else:
            low, high = context_range(memory.plays, memory.by_context, low, high, m - 1, track)
        if low == high:
            break
        longest = m
        if m <= 2:
            about[1 + m] = np.log1p(high - low)
        n, latest = high - low, memory.track_starts[track + 1]
        if m == 1:
            n = latest - memory.track_starts[track]
        for k in range(min(n, CONTEXTS)):
            if m == 1:
                place = memory.by_track[latest - 1 - k]
                if memory.plays[place + 1] < N_SPECIAL:
                    continue
            else:
                place = memory.by_context[low + k * n // min(n, CONTEXTS)]
            row = scratch.numbers[meet(scratch, memory.plays[place + 1])]
            session = memory.session[place]
            weight = 0.5 + session / n_sessions
            row[COUNTS + m - 1] += weight
            totals[m - 1] += weight
            if row[ORDER] < m:
                row[ORDER], row[LATEST] = m, session
            row[LATEST] = max(row[LATEST], session)
    about[1] = longest
    n = scratch.counter[1]
    for m in range(1, longest + 1):
        taken, total = 0.5 * DISCOUNT**m, totals[m - 1]
        if total == 0:  # the latest plays of a track may all have ended sessions
            continue
        left = 1.0
        for i in range(n):
            left -= max(scratch.numbers[i, COUNTS + m - 1] - taken, 0.0) / total
        for i in range(n):
            row = scratch.numbers[i]
            row[P] = max(row[COUNTS + m - 1] - taken, 0.0) / total + left * row[P]
    highest = 0.0
    for i in range(n):
        highest = max(highest, scratch.numbers[i, P])
        for m in range(1, longest + 1):
            scratch.numbers[i, COUNTS + m - 1] /= totals[m - 1] + 0.5
    about[7] = np.log(highest + LITTLE)


@compiled
def _pairs(memory: Memory, scratch: Scratch, plays: np.ndarray) -> None:
    """Go through the plays of the history's last tracks, and note what was played around them, and in which session."""
    n_sessions, age = memory.session[-1] + 1, 0
    for i in range(len(plays)):
        track, again = plays[i], False
        for j in range(i):
            again |= plays[j] == track
        if track < N_SPECIAL or again:
            continue
        first, end = memory.track_starts[track], memory.track_starts[track + 1]
        n = min(end - first, PLAYS)
        decay = AGE_DECAY**i
        for k in range(end - 1, end - 1 - n, -1):
            place = memory.by_track[k]
            session = memory.session[place]
            meet_session(scratch, session, place, i, decay / np.sqrt(end - first + 20.0))
            weight = 0.5 + session / n_sessions
            near = decay * weight / (n + 5.0)
            together = decay / np.sqrt(n + 20.0)
            for way in (1, -1):
                share = near
                for gap in range(1, REACH + 1):
                    other = memory.plays[place + way * gap]
                    if other == PAD:
                        break
                    if other >= N_SPECIAL:
                        row = scratch.numbers[meet(scratch, other)]
                        row[FORWARD if way == 1 else BACKWARD] += share
                        row[COSINE] += together
                        if row[LAST_AGE] != i:
                            row[LAST_AGE] = i
                            row[COVER] += 1
                    share *= GAP_DECAY
        age += 1
        if age == AGES:
            break
    for i in range(scratch.counter[1]):
        track = scratch.met[i]
        n = min(memory.track_starts[track + 1] - memory.track_starts[track], PLAYS)
        scratch.numbers[i, COSINE] /= np.sqrt(n + 20.0)
        scratch.numbers[i, COVER] /= max(age, 1)


@compiled
def _neighbours(memory: Memory, scratch: Scratch, length: int, about: np.ndarray) -> None:
    """Go through the most similar sessions, and note which tracks they have, and where."""
    met = scratch.neighbours[: scratch.counter[2]]
    for i in range(len(met)):
        met[i, SIM] *= 0.3 + np.exp((scratch.neighbour_ids[i] - memory.session[-1] - 1) / FRESHNESS)
    chosen = np.zeros(len(met), np.bool_)
    _top(met[:, SIM], NEIGHBOURS, chosen)
    about[4] = np.log1p(chosen.sum())
    place_decay = np.exp(-np.arange(STRETCH + length + 2) / 3)
    for neighbour in np.flatnonzero(chosen):
        sim, matched, age = met[neighbour, SIM], int(met[neighbour, MATCHED]), int(met[neighbour, MATCH_AGE])
        for way in (1, -1):
            for gap in range(1, STRETCH + 1):
                track = memory.plays[matched + way * gap]
                if track == PAD:
                    break
                if track < N_SPECIAL:
                    continue
                row = scratch.numbers[meet(scratch, track)]
                place = way * gap - 1 - age  # 0: where the next track of the history would be
                row[STAN] += sim * sim * (1.0 if way == 1 else 0.5) * place_decay[abs(place)]
                if row[LAST_NEIGHBOUR] != neighbour:
                    row[LAST_NEIGHBOUR] = neighbour
                    row[SKNN] += sim
                    if sim > row[MAX_SIM]:
                        row[MAX_SIM], row[PLACE] = sim, place


@compiled
def _top(scores: np.ndarray, n: int, wanted: np.ndarray) -> None:
    """Mark the n highest scores above 0; of equal ones, the first."""
    if len(scores) == 0:
        return
    limit = 0.0
    if len(scores) > n:
        limit = np.partition(scores, len(scores) - n)[len(scores) - n]
    left = n
    for i in range(len(scores)):
        if scores[i] > limit:
            wanted[i] = True
            left -= 1
    if limit > 0:
        for i in range(len(scores)):
            if scores[i] == limit and left > 0:
                wanted[i] = True
                left -= 1


@compiled
def _describe(memory: Memory, scratch: Scratch, plays: np.ndarray, track: int, out: np.ndarray) -> None:
    """Write the features of a candidate but for the relative ones: `out` (number of `FEATURES`,)."""
    row = scratch.numbers[scratch.slot[track]]
    n_sessions = memory.session[-1] + 1
    for m in range(LONGEST):
        out[m] = np.log(row[COUNTS + m] + LITTLE)
    k = LONGEST
    out[k] = np.log(row[P] + LITTLE)
    out[k + 1] = row[ORDER]
    out[k + 2] = np.log1p(n_sessions - row[LATEST]) if row[ORDER] > 0 else np.log1p(2.0 * n_sessions)
    out[k + 3] = np.log(row[SKNN] + LITTLE)
    out[k + 4] = np.log(row[STAN] + LITTLE)
    out[k + 5] = np.log(row[MAX_SIM] + LITTLE)
    out[k + 6] = min(max(row[PLACE], -10.0), 10.0)
    out[k + 7] = np.log(row[FORWARD] + LITTLE)
    out[k + 8] = np.log(row[BACKWARD] + LITTLE)
    out[k + 9] = np.log(row[COSINE] + LITTLE)
    out[k + 10] = row[COVER]
    first, end = memory.track_starts[track], memory.track_starts[track + 1]
    out[k + 11] = np.log1p(end - first)
    for j in range(3):
        out[k + 12 + j] = np.log(memory.recent_plays[track, j] + LITTLE)
    latest = memory.session[memory.by_track[end - 1]] if end > first else -n_sessions
    out[k + 15] = np.log1p(n_sessions - latest)
    out[k + 16], out[k + 17] = 0.0, 0.0
    for j in range(len(plays) - 1, -1, -1):
        if plays[j] == track:
            out[k + 16] = 1.0 / (j + 1)
            out[k + 17] += 1.0


@compiled
def _relate(features: np.ndarray) -> None:
    """Write the relative features of a history's candidates (M, number of `FEATURES`)."""
    k = LONGEST + 18
    for j, column in enumerate((LONGEST, LONGEST + 3, LONGEST + 4, LONGEST + 7, LONGEST + 9)):
        highest = np.log(LITTLE)
        for i in range(len(features)):
            highest = max(highest, features[i, column])
        for i in range(len(features)):
            features[i, k + j] = features[i, column] - highest


@compiled
def _describe_history(memory: Memory, plays: np.ndarray, about: np.ndarray) -> None:
    """Write what is known of the history but for what `_ngram` and `_neighbours` wrote."""
    about[0] = np.log1p(len(plays))
    distinct = 0
    for i in range(len(plays)):
        again = False
        for j in range(i):
            again |= plays[j] == plays[i]
        distinct += not again
    about[5] = distinct / max(len(plays), 1)
    about[6] = 1.0 if len(plays) > 1 and plays[0] == plays[1] else 0.0
    if len(plays) > 0 and plays[0] >= N_SPECIAL:
        about[8] = np.log1p(memory.track_starts[plays[0] + 1] - memory.track_starts[plays[0]])
