"""Candidates of a memory beside dictionaries and loops, written from the definitions."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import exp, log, log1p, sqrt

import numpy as np
import pytest
from small_sessions import flat

from model import candidates as c
from model.candidates import FEATURES, LITTLE, OF_HISTORY, CandidateFinder, Candidates
from model.memory import LONGEST, TRENDS, Memory
from utils.data.vocab import N_SPECIAL, PAD, UNK

Sums = dict[int, float]
CAPS = {"n-gram": c.BY_NGRAM, "stan": c.BY_STAN, "sknn": c.BY_SKNN, "forward": c.BY_FORWARD, "cosine": c.BY_COSINE}
"""How many candidates each score proposes."""


def draw_sessions(n: int, seed: int, *, n_tracks: int, longest: int = 14) -> list[list[int]]:
    """Walks with jumps, repeats and unknown tracks; some have a single play, some two of the same track in a row."""
    rng = np.random.default_rng(seed)
    sessions = []
    for _ in range(n):
        track, session = int(rng.integers(n_tracks)), []
        for _ in range(rng.integers(1, longest + 1)):
            kind = rng.random()
            if kind < 0.7:
                track = (track + int(rng.choice([1, 1, 2, 5]))) % n_tracks
            elif kind < 0.9:
                track = int(rng.integers(n_tracks))
            session.append(N_SPECIAL + track if rng.random() < 0.94 else UNK)
        sessions.append(session)
    return sessions


def known(track: int) -> bool:
    return track >= N_SPECIAL


class Reference:
    """What a memory of `sessions` says of the tracks after a history."""

    def __init__(self, sessions: list[list[int]]) -> None:
        self.sessions = sessions
        self.n = len(sessions)
        self.plays: dict[int, list[tuple[int, int]]] = defaultdict(list)  # track -> (session, place), by time
        for s, session in enumerate(sessions):
            for place, track in enumerate(session):
                if known(track):
                    self.plays[track].append((s, place))

    def weight(self, s: int) -> float:
        return 0.5 + s / self.n

    def endings(self, context: list[int]) -> list[tuple[int, int]]:
        """Where the context ends in a play that a track follows, by time."""
        m, found = len(context), []
        for s, place in self.plays[context[-1]]:
            session = self.sessions[s]
            followed = place + 1 < len(session) and known(session[place + 1])
            if followed and place + 1 >= m and session[place + 1 - m : place + 1] == context:
                found.append((s, place))
        return found

    def looked_at(self, context: list[int], endings: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The endings within the bound: of the latest plays of one track, or evenly spaced by what stands before."""
        if len(context) == 1:
            latest = set(self.plays[context[0]][-c.CONTEXTS :])
            return [ending for ending in endings if ending in latest]

        def earlier(ending: tuple[int, int]) -> tuple[int, ...]:
            s, place = ending
            return tuple(self.sessions[s][place - b] if place >= b else PAD for b in range(len(context), LONGEST))

        n, ordered = len(endings), sorted(endings, key=earlier)
        return ordered if n <= c.CONTEXTS else [ordered[k * n // c.CONTEXTS] for k in range(c.CONTEXTS)]

    def ngram(self, history: list[int]) -> None:
        """Counts of each order, their interpolation, the longest order of each track and the session it was last in."""
        self.counts: list[Sums] = []
        self.totals: list[float] = []
        self.n_endings = [0] * (LONGEST + 1)
        self.order, self.latest = Counter(), {}
        self.longest = 0
        p: Sums = defaultdict(float)
        for m in range(1, min(LONGEST, len(history)) + 1):
            context = history[-m:]
            endings = self.endings(context) if all(map(known, context)) else []
            if not endings:
                break
            self.longest, self.n_endings[m] = m, len(endings)
            count: Sums = defaultdict(float)
            last: dict[int, int] = {}
            for s, place in self.looked_at(context, endings):
                track = self.sessions[s][place + 1]
                count[track] += self.weight(s)
                last[track] = max(last.get(track, 0), s)
            for track, s in last.items():
                self.order[track], self.latest[track] = m, s
            total = sum(count.values())
            self.counts.append(count)
            self.totals.append(total)
            if total:
                own = {track: max(n - 0.5 * c.DISCOUNT**m, 0) / total for track, n in count.items()}
                left = 1 - sum(own.values())
                p = defaultdict(float, {b: own.get(b, 0) + left * p.get(b, 0) for b in {*own, *p}})
        self.p = p

    def looked_up(self, history: list[int]) -> list[tuple[int, int]]:
        """(t, track) of the last `AGES` distinct known tracks, each where it was played last."""
        found: list[tuple[int, int]] = []
        for t, track in enumerate(reversed(history)):
            if known(track) and track not in (other for _, other in found):
                found.append((t, track))
        return found[: c.AGES]

    def pairs(self, history: list[int]) -> None:
        """What was played around the plays of the history's tracks."""
        self.forward, self.backward, self.cosine = defaultdict(float), defaultdict(float), defaultdict(float)
        partners: dict[int, set[int]] = defaultdict(set)
        tracks = self.looked_up(history)

        def n(track: int) -> int:
            return min(len(self.plays[track]), c.PLAYS)

        for t, x in tracks:
            for s, at in self.plays[x][-c.PLAYS :]:
                for place, b in enumerate(self.sessions[s]):
                    gap = place - at
                    if gap == 0 or abs(gap) > c.REACH or not known(b):
                        continue
                    side = self.forward if gap > 0 else self.backward
                    side[b] += c.AGE_DECAY**t * self.weight(s) * c.GAP_DECAY ** (abs(gap) - 1) / (n(x) + 5)
                    self.cosine[b] += c.AGE_DECAY**t / sqrt((n(x) + 20) * (n(b) + 20))
                    partners[b].add(x)
        self.cover = {b: len(xs) / len(tracks) for b, xs in partners.items()}

    def neighbours(self, history: list[int]) -> None:
        """The most similar sessions, and what stands where in them."""
        sim: Sums = defaultdict(float)
        match: dict[int, tuple[int, int]] = {}  # session -> t and place of the first track that was matched
        for t, x in self.looked_up(history):
            latest: dict[int, int] = {}
            for s, place in self.plays[x][-c.PLAYS :]:
                latest[s] = place
            for s, place in latest.items():
                sim[s] += c.AGE_DECAY**t / sqrt(len(self.plays[x]) + 20)
                match.setdefault(s, (t, place))
        for s in sim:
            sim[s] *= 0.3 + exp(-(self.n - s) / c.FRESHNESS)
        nearest = sorted(sim, key=lambda s: sim[s], reverse=True)[: c.NEIGHBOURS]
        self.n_neighbours = len(nearest)
        self.sknn, self.stan = defaultdict(float), defaultdict(float)
        self.nearest: dict[int, tuple[float, int]] = {}  # track -> similarity of the most similar session, place in it
        for s in nearest:
            t, at = match[s]
            gaps: dict[int, list[int]] = defaultdict(list)
            for place, b in enumerate(self.sessions[s]):
                if place != at and abs(place - at) <= c.STRETCH and known(b):
                    gaps[b].append(place - at)
            for b, all_gaps in gaps.items():
                self.sknn[b] += sim[s]
                for gap in all_gaps:
                    far = gap - 1 - t
                    self.stan[b] += sim[s] ** 2 * (exp(-abs(far) / 3) if gap > 0 else 0.5 * exp(far / 3))
                later = [gap for gap in all_gaps if gap > 0]
                first = min(later) if later else max(all_gaps)
                if b not in self.nearest or sim[s] > self.nearest[b][0]:
                    self.nearest[b] = (sim[s], first - 1 - t)

    def read(self, history: list[int]) -> None:
        """Everything about a history."""
        self.history = history
        self.ngram(history)
        self.pairs(history)
        self.neighbours(history)

    def proposals(self) -> tuple[set[int], set[int]]:
        """Tracks that must be candidates, and those that may be: of equal scores, which ones are taken is open."""
        scores = {"n-gram": self.p, "stan": self.stan, "sknn": self.sknn, "forward": self.forward}
        must, may = set(filter(known, self.history)), set()
        for name, values in (scores | {"cosine": self.cosine}).items():
            positive = sorted((value for value in values.values() if value > 0), reverse=True)
            limit = positive[CAPS[name] - 1] if len(positive) > CAPS[name] else 0.0
            above = {b for b, value in values.items() if value > limit * (1 + 1e-9)}
            level = {b for b, value in values.items() if value > limit * (1 - 1e-9)} - above
            may |= above | level
            must |= above | (level if len(above) + len(level) <= CAPS[name] else set())
        return must, may | must

    def features(self, tracks: list[int]) -> np.ndarray:
        """`FEATURES` of these candidates."""
        rows = []
        for b in tracks:
            row: Sums = {}
            for m in range(1, LONGEST + 1):
                count = self.counts[m - 1].get(b, 0) / (self.totals[m - 1] + 0.5) if m <= self.longest else 0.0
                row[f"n-gram of order {m}"] = log(count + LITTLE)
            row["n-gram"] = log(self.p.get(b, 0) + LITTLE)
            row["longest order"] = self.order[b]
            row["recency in it"] = log1p(self.n - self.latest[b] if b in self.latest else 2 * self.n)
            for name, values in {"sknn": self.sknn, "stan": self.stan}.items():
                row[name] = log(values.get(b, 0) + LITTLE)
            similarity, place = self.nearest.get(b, (0.0, 0))
            row["most similar session"] = log(similarity + LITTLE)
            row["place in it"] = min(max(place, -10), 10)
            for name, values in {"forward": self.forward, "backward": self.backward, "cosine": self.cosine}.items():
                row[name] = log(values.get(b, 0) + LITTLE)
            row["cover"] = self.cover.get(b, 0)
            plays = self.plays[b]
            row["plays"] = log1p(len(plays))
            for name, constant in zip(("100", "500", "5,000"), TRENDS, strict=True):
                row[f"plays of {name} sessions"] = log(sum(exp((s - self.n) / constant) for s, _ in plays) + LITTLE)
            row["sessions since"] = log1p(self.n - plays[-1][0] if plays else 2 * self.n)
            ages = [t for t, track in enumerate(reversed(self.history)) if track == b]
            row["repeat"], row["repeats"] = (1 / (ages[0] + 1) if ages else 0.0), len(ages)
            rows.append(row)
        for name in ("n-gram", "sknn", "stan", "forward", "cosine"):
            highest = max((row[name] for row in rows), default=0.0)
            for row in rows:
                row[f"{name}, relative"] = row[name] - highest
        return np.array([[row[name] for name in FEATURES] for row in rows]).reshape(-1, len(FEATURES))

    def of_history(self) -> list[float]:
        """`OF_HISTORY`."""
        h = self.history
        numbers = {
            "length": log1p(len(h)),
            "longest order": self.longest,
            "plays of order 1": log1p(self.n_endings[1]),
            "plays of order 2": log1p(self.n_endings[2]),
            "neighbours": log1p(self.n_neighbours),
            "distinct tracks": len(set(h)) / max(len(h), 1),
            "last two equal": float(len(h) > 1 and h[-1] == h[-2]),
            "highest n-gram": log(max(self.p.values(), default=0) + LITTLE),
            "plays of the last track": log1p(len(self.plays[h[-1]])) if h and known(h[-1]) else 0.0,
        }
        return [numbers[name] for name in OF_HISTORY]


def find(sessions: list[list[int]], histories: list[list[int]], n_tracks: int) -> Candidates:
    """What the compiled version says."""
    size = max(1, *map(len, histories))
    rows = np.array([[PAD] * (size - len(history)) + history for history in histories], np.int32)
    return CandidateFinder(Memory.build(*flat(sessions), n_ids=N_SPECIAL + n_tracks))(rows)


def check(sessions: list[list[int]], histories: list[list[int]], n_tracks: int) -> tuple[Candidates, list[Reference]]:
    """Compare the two; returns both."""
    found, references = find(sessions, histories, n_tracks), []
    for i, history in enumerate(histories):
        reference = Reference(sessions)
        reference.read(history)
        part = slice(found.starts[i], found.starts[i + 1])
        ids, (must, may) = found.ids[part].tolist(), reference.proposals()
        assert must <= set(ids) <= may
        assert ids == sorted(set(ids))
        expected = reference.features(ids)
        for column, name in enumerate(FEATURES):
            np.testing.assert_allclose(
                found.features[part, column], expected[:, column], rtol=1e-3, atol=2e-5, err_msg=f"{history}: {name}"
            )
        np.testing.assert_allclose(found.histories[i], reference.of_history(), rtol=1e-5, atol=1e-6)
        references.append(reference)
    return found, references


@pytest.mark.parametrize("seed", range(3))
def test_few_tracks(seed: int) -> None:
    """No bound is reached but that of `AGES`, so the candidates are exactly those of the definition."""
    sessions = draw_sessions(100, seed, n_tracks=45)
    histories = [[], [UNK], [UNK, UNK], *draw_sessions(15, seed + 50, n_tracks=50, longest=25)]
    histories += [session[: 1 + len(session) // 2] for session in sessions[::7]]
    found, references = check(sessions, histories, 50)
    for reference in references:
        must, may = reference.proposals()
        assert must == may, "every tie is inside"
    assert max(len(set(history)) for history in histories) > c.AGES + 2
    assert max(reference.longest for reference in references) == LONGEST
    assert len(found.ids) > 300


def test_many_tracks() -> None:
    """Every source proposes more than it may, and more sessions are similar than are asked."""
    sessions = draw_sessions(900, 8, n_tracks=250, longest=30)
    histories = draw_sessions(5, 9, n_tracks=250, longest=40) + draw_sessions(3, 10, n_tracks=250, longest=3)
    long = max(histories, key=len)
    _, references = check(sessions, histories, 250)
    reference = references[histories.index(long)]
    assert reference.n_neighbours == c.NEIGHBOURS
    for name in ("stan", "sknn", "forward", "cosine"):
        assert len(getattr(reference, name)) > CAPS[name], name


def test_tracks_of_many_plays() -> None:
    """More plays of a track than are looked at, more of a context, too, and more successors than are proposed."""
    x, y, *others = range(N_SPECIAL, N_SPECIAL + 260)
    rng = np.random.default_rng(3)
    before = [[], [others[0]], [others[1]]]
    sessions = [[*before[rng.integers(3)], x, y, others[2 + rng.integers(250)]] for _ in range(c.CONTEXTS + 300)]
    _, (reference, _) = check(sessions, [[x, y], [others[5], y]], 260)
    assert len(reference.plays[y]) > c.CONTEXTS > c.PLAYS
    assert reference.n_endings[2] > c.CONTEXTS
    assert len(reference.p) > CAPS["n-gram"]


def test_a_track_whose_latest_plays_all_end_sessions() -> None:
    """What followed it is out of reach, and the longer context speaks alone."""
    x, y, b = range(N_SPECIAL, N_SPECIAL + 3)
    sessions = [[x, y, b]] + [[y]] * c.CONTEXTS
    found, (reference,) = check(sessions, [[x, y]], 3)
    assert reference.totals == [0, 0.5]
    assert found.ids.tolist() == [x, y, b]
