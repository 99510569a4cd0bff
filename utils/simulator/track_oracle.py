"""Exact distribution of the next tracks of a simulated session, given its first half.

What is hidden is where the plays come from: which list, whether shuffle is uniform or spread, and what follows. The
log of the first half tells all its transitions (context_switch, start reasons), the context type and the shuffle
button, and the end reason of its last play tells the kind of the first transition to come. So the process of
`utils/simulator/sessions.py` gives, for the track at target step k:

- no switch up to k, list context: posterior over the lists that hold all tracks since the last switch, times
  P(cursor displacement d at k) for the known order, plus P(a jump happened) spread evenly over the list (a list is a
  circle, so a uniform cursor stays uniform). Shuffled lists: the tracks at cursors already heard are known, the others
  hold the unheard tracks with equal chances (spread shuffle: those of the right half of the list).
- no switch up to k, radio: the current track while only backs and restarts happen, else the cluster walk.
- a switch at step i <= k: the marginal of a fresh context k - i steps after its start, which is one vector over all
  tracks for each shuffle state, computed once a day.

Nothing is approximated except that lists with a posterior below 1e-12 are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.data.schema import MAX_LENGTH, half
from utils.simulator.figures import CONTEXT_SHARES
from utils.simulator.lists import ALBUM, CATALOG, MAX_LIST, MIN_LIST, N_CLUSTERS, RADIO, Lists
from utils.simulator.sessions import (
    ALBUM_START_SHARE,
    BACK,
    JUMP,
    MOVES,
    NEXT,
    RESTART,
    SHUFFLE_OFF_TO_ON,
    SHUFFLE_ON_TO_OFF,
    START,
    SWITCH,
    TRANSITIONS,
    UNIFORM_SHUFFLE_SHARE,
)
from utils.simulator.world import World

N_STEPS = MAX_LENGTH - half(MAX_LENGTH)
"""K: target steps that are predicted."""
NEGLIGIBLE = 1e-12
CACHED_VALUES = 30_000_000
"""Bounds the memory of the cache of shared parts."""


class FirstHalf(NamedTuple):
    """What the log of a first half of h plays tells."""

    tracks: NDArray  # (h,)
    steps: NDArray  # (h,) START, NEXT, BACK (also for a restart: the tracks tell which), JUMP or SWITCH
    context: NDArray  # (h,)
    shuffle: NDArray  # (h,) bool
    after: int  # NEXT, BACK or JUMP (which stands for a switch too): what follows the last play


class Continuation(NamedTuple):
    """The best guess at each target step, and the rank of the true next track."""

    tracks: NDArray[np.int64]  # (K,) the most probable track of each step
    probability: NDArray[np.float64]  # (K,) its probability
    rank: float  # of the true next track among all tracks, from 0: the middle one of ties; inf if not eligible
    tied: float  # how many tracks share its probability, itself included


def first_steps(after: int) -> dict[int, float]:
    """Probabilities of the first transition to come, given its kind."""
    kinds = {NEXT: (NEXT,), BACK: (BACK, RESTART), JUMP: (JUMP, SWITCH)}[after]
    total = sum(TRANSITIONS[step] for step in kinds)
    return {step: TRANSITIONS[step] / total if step in kinds else 0.0 for step in TRANSITIONS}


class Moves(NamedTuple):
    """Where the cursor of a list is after k = 0..n steps without a switch (masses, not normalised)."""

    displacement: NDArray[np.float64]  # (n + 1, 2 n + 1) no jump either: displacement -n..n
    jumped: NDArray[np.float64]  # (n + 1,) at least one jump


def cursor_moves(steps: Iterable[dict[int, float]]) -> Moves:
    """Moves under the given transition probabilities, one dict a step."""
    steps = list(steps)
    n = len(steps)
    displacement, jumped = np.zeros((n + 1, 2 * n + 1)), np.zeros(n + 1)
    displacement[0, n] = 1.0
    for k, step in enumerate(steps):
        now = displacement[k]
        for transition in (NEXT, BACK, RESTART):
            displacement[k + 1] += step[transition] * np.roll(now, MOVES[transition])
        jumped[k + 1] = (1 - step[SWITCH]) * jumped[k] + step[JUMP] * now.sum()
    return Moves(displacement, jumped)


class Fallback(NamedTuple):
    """The part of the distribution that all sessions with the same (first kind, shuffle, radio cluster) share."""

    moves: Moves  # of the list that plays now
    repeat: NDArray[np.float64]  # (K,) radio: only backs and restarts so far
    ordered: NDArray[np.float64]  # (K, K) weight of a fresh ordered context that is m steps old
    shuffled: NDArray[np.float64]  # (K,) weight of a fresh shuffled context
    radio: NDArray[np.float64]  # (K, N_CLUSTERS) weight of a track drawn from a cluster on the radio
    best: NDArray[np.int64]  # (K,) the most probable track of this part
    best_value: NDArray[np.float64]  # (K,)
    first: NDArray[np.float64]  # (N,) probabilities of this part at the first step
    first_sorted: NDArray[np.float64]  # the same of the eligible tracks, ascending


class ContinuationOracle:
    """Predicts the continuation of sessions of one day.

    Args:
        world: the world.
        lists: the lists of the day.
        eligible: (N,) tracks that may be predicted and are ranked; all of them if not given.

    Raises:
        ValueError: a list is so short that its cursor could come round to a track that was heard before.
    """

    def __init__(self, world: World, lists: Lists, eligible: NDArray[np.bool_] | None = None) -> None:
        # A first half has nine steps and ten more follow, too few to come round in a shuffled list of 20.
        if lists.sizes.min() < MIN_LIST:
            raise ValueError(f"a list has {lists.sizes.min()} tracks; all must have {MIN_LIST} or more")
        self.world, self.lists = world, lists
        self.eligible = np.ones(world.n_tracks, dtype=bool) if eligible is None else eligible
        self.list_of_entry = np.repeat(np.arange(len(lists)), lists.sizes)
        self.entries = np.argsort(lists.tracks, kind="stable")  # entries of the flat lists, by track
        plays = np.bincount(lists.tracks, minlength=world.n_tracks)
        self.entry_start = np.concatenate([[0], np.cumsum(plays)])
        self.within_cluster = world.wanted / world.cluster_wanted[world.cluster]
        self.fresh_ordered, self.fresh_shuffled, self.fresh_radio = self._fresh_contexts()
        self.fallback = lru_cache(maxsize=max(4, min(128, CACHED_VALUES // world.n_tracks)))(self._fallback)

    def _fresh_contexts(self) -> tuple[NDArray, NDArray, NDArray]:
        """Marginals of the track m = 0..K-1 steps after a fresh start, given no switch since: of ordered lists (K, N)
        and shuffled lists (N,), both times the share of lists, and of the radio's cluster (K, N_CLUSTERS), times the
        share of the radio."""
        lists = self.lists
        share = np.asarray(CONTEXT_SHARES) / np.sum(CONTEXT_SHARES)
        size = lists.sizes[self.list_of_entry]
        begin = lists.offsets[self.list_of_entry]
        position = np.arange(len(lists.tracks)) - begin
        weight = (share[lists.kinds] * lists.probabilities)[self.list_of_entry]
        start = ordered_start_probability(lists.kinds[self.list_of_entry], position, size)
        moves = cursor_moves([TRANSITIONS] * (N_STEPS - 1))
        ordered = np.zeros((N_STEPS, self.world.n_tracks))
        reach = N_STEPS - 1
        shifted = {d: start[begin + (position - d) % size] for d in range(-reach, reach + 1)}
        for m in range(N_STEPS):
            mass = moves.displacement[m].sum() + moves.jumped[m]
            chance = sum(moves.displacement[m, reach + d] * shifted[d] for d in range(-m, m + 1))
            chance = (chance + moves.jumped[m] / size) / mass
            ordered[m] = np.bincount(lists.tracks, weights=weight * chance, minlength=self.world.n_tracks)
        shuffled = np.bincount(lists.tracks, weights=weight / size, minlength=self.world.n_tracks)
        moving = (TRANSITIONS[NEXT] + TRANSITIONS[JUMP]) / (1 - TRANSITIONS[SWITCH])
        lazy = moving * self.world.radio_walk + (1 - moving) * np.eye(N_CLUSTERS)
        clusters = [self.world.cluster_wanted]
        for _ in range(reach):
            clusters.append(clusters[-1] @ lazy)
        return ordered, shuffled, share[RADIO] * np.array(clusters)

    def _fallback(self, after: int, shuffle: bool, cluster: int) -> Fallback:
        """`cluster` is that of the track on the radio, -1 where a list plays."""
        steps = [first_steps(after)] + [TRANSITIONS] * (N_STEPS - 1)
        ordered, shuffled = np.zeros((N_STEPS, N_STEPS)), np.zeros((N_STEPS, N_STEPS))
        radio, repeat = np.zeros((N_STEPS, N_CLUSTERS)), np.zeros(N_STEPS)
        button = np.array([0.0, 1.0]) if shuffle else np.array([1.0, 0.0])  # P(off), P(on)
        flip = np.array([[1 - SHUFFLE_OFF_TO_ON, SHUFFLE_OFF_TO_ON], [SHUFFLE_ON_TO_OFF, 1 - SHUFFLE_ON_TO_OFF]])
        same, walked = 1.0, np.zeros(N_CLUSTERS)
        here = np.eye(N_CLUSTERS)[cluster] if cluster >= 0 else np.zeros(N_CLUSTERS)
        for k, step in enumerate(steps):
            # Fresh contexts grow older by a step without a switch, or start now.
            if k:
                ordered[k, 1:] = (1 - step[SWITCH]) * ordered[k - 1, :-1]
                shuffled[k, 1:] = (1 - step[SWITCH]) * shuffled[k - 1, :-1]
            switched = button @ flip
            ordered[k, 0], shuffled[k, 0] = step[SWITCH] * switched
            button = (1 - step[SWITCH]) * button + step[SWITCH] * switched
            # The radio that plays now.
            moving, staying = step[NEXT] + step[JUMP], step[BACK] + step[RESTART]
            walked = moving * (same * here + walked) @ self.world.radio_walk + staying * walked
            same *= staying
            repeat[k] = same
            radio[k] = walked + (ordered[k] + shuffled[k]) @ self.fresh_radio
        shuffled_total = shuffled.sum(axis=1)
        best, best_value = np.zeros(N_STEPS, dtype=np.int64), np.zeros(N_STEPS)
        first = np.empty(0)
        for k in range(N_STEPS):
            values = self._shared(ordered[k], shuffled_total[k], radio[k], slice(None))
            first = values if k == 0 else first
            best[k] = np.where(self.eligible, values, -1.0).argmax()
            best_value[k] = values[best[k]]
        ranked = np.sort(first[self.eligible])
        return Fallback(cursor_moves(steps), repeat, ordered, shuffled_total, radio, best, best_value, first, ranked)

    def _shared(self, ordered: NDArray, shuffled: NDArray, radio: NDArray, tracks: NDArray | slice) -> NDArray:
        """Probabilities of `tracks` in the shared part; leading axes of the weights are kept."""
        of_radio = radio[..., self.world.cluster[tracks]] * self.within_cluster[tracks]
        of_shuffled = np.multiply.outer(shuffled, self.fresh_shuffled[tracks])
        return ordered @ self.fresh_ordered[:, tracks] + of_shuffled + of_radio

    def distribution(self, first: FirstHalf) -> tuple[NDArray[np.int64], NDArray[np.float64], Fallback]:
        """The distribution at each step, as (tracks (U,), their probabilities (K, U), the part of all other tracks)."""
        on_radio = first.context[-1] == RADIO
        last = int(first.tracks[-1])
        cluster = int(self.world.cluster[last]) if on_radio else -1
        fallback = self.fallback(int(first.after), bool(first.shuffle[-1]), cluster)
        if on_radio:
            tracks, probability = np.array([last]), fallback.repeat[:, None].copy()
        else:
            tracks, probability = self._of_lists(first, fallback.moves)
        probability += self._shared(fallback.ordered, fallback.shuffled, fallback.radio, tracks)
        return tracks, probability, fallback

    def predict(self, first: FirstHalf, true_next: int) -> Continuation:
        """Most probable track at each step and the rank of `true_next` at the first step.

        The most probable track of every step maximises accuracy at every position. It does not quite maximise mean
        average accuracy, which rewards right answers in a row; that would take more than the marginals computed here.
        """
        tracks, probability, fallback = self.distribution(first)
        best, value = fallback.best.copy(), fallback.best_value.copy()
        kept = self.eligible[tracks]
        tracks, probability = tracks[kept], probability[:, kept]
        if len(tracks):
            mine = probability.argmax(axis=1)
            # Where the best track of the shared part is one of `tracks`, its total is at least `best_value`.
            better = probability[np.arange(N_STEPS), mine] >= value
            best = np.where(better, tracks[mine], best)
            value = np.maximum(value, probability[np.arange(N_STEPS), mine])
        if not self.eligible[true_next]:
            return Continuation(best, value, np.inf, 1.0)
        place = np.flatnonzero(tracks == true_next)
        score = probability[0, place[0]] if len(place) else fallback.first[true_next]
        shared = fallback.first[tracks]
        below, up_to = (np.searchsorted(fallback.first_sorted, score, side=side) for side in ("left", "right"))
        greater = len(fallback.first_sorted) - up_to - (shared > score).sum() + (probability[0] > score).sum()
        equal = up_to - below - (shared == score).sum() + (probability[0] == score).sum()
        return Continuation(best, value, float(greater + (equal - 1) / 2), float(equal))

    def _of_lists(self, first: FirstHalf, moves: Moves) -> tuple[NDArray, NDArray]:
        """(tracks (U,), probability (K, U)) of the list that plays now, while there is no switch."""
        begins = np.flatnonzero((first.steps == START) | (first.steps == SWITCH)).tolist()
        style = np.array([UNIFORM_SHUFFLE_SHARE, 1 - UNIFORM_SHUFFLE_SHARE])
        for begin, end in pairwise(begins):  # earlier contexts tell the style of shuffle
            if first.shuffle[begin] and first.context[begin] != RADIO:
                _, _, likelihood = self._candidates(first, begin, end)
                style = style * likelihood.sum(axis=0)
                style /= style.sum()
        candidates, position, weight = self._candidates(first, begins[-1], len(first.tracks))
        shuffled = bool(first.shuffle[-1])
        if shuffled:
            weight = weight * style
        weight = weight / weight.sum()
        kept = weight.sum(axis=1) > NEGLIGIBLE
        candidates, position, weight = candidates[kept], position[kept], weight[kept]

        size = self.lists.sizes[candidates]
        begin_of = np.concatenate([[0], np.cumsum(size)[:-1]])  # of each list among the entries below
        owner = np.repeat(np.arange(len(candidates)), size)
        index = np.arange(size.sum()) - begin_of[owner]
        entries = self.lists.tracks[self.lists.offsets[candidates][owner] + index]
        moved = moves.displacement[1:]  # (K, 2 K + 1)
        chance = np.outer(moves.jumped[1:], (weight.sum(axis=1) / size)[owner])  # (K, entries)
        if not shuffled:
            shift = np.arange(-N_STEPS, N_STEPS + 1)
            target = begin_of[:, None] + (position[:, None] + shift) % size[:, None]
            for k in range(N_STEPS):
                spread = weight * moved[k]
                chance[k] += np.bincount(target.ravel(), weights=spread.ravel(), minlength=len(entries))
        else:
            chance += _shuffled_chance(first, moved, entries, owner, index, size, position, weight)
        tracks, inverse = np.unique(entries, return_inverse=True)
        probability: NDArray = np.stack([np.bincount(inverse, weights=row, minlength=len(tracks)) for row in chance])
        return tracks.astype(np.int64), probability

    def _candidates(self, first: FirstHalf, begin: int, end: int) -> tuple[NDArray, NDArray, NDArray]:
        """Lists that can have played the plays begin..end-1 (one context): (list ids (C,), position of the last track
        in each (C,), likelihood times prior (C, 1), or (C, 2) for (uniform, spread) shuffle)."""
        tracks, steps = first.tracks[begin:end], first.steps[begin:end]
        rarest = min(tracks, key=lambda track: self.entry_start[track + 1] - self.entry_start[track])
        held_by = self.list_of_entry[self.entries[self.entry_start[rarest] : self.entry_start[rarest + 1]]]
        candidates = held_by[self.lists.kinds[held_by] == first.context[begin]]
        size = self.lists.sizes[candidates]
        padded = self.lists.offsets[candidates][:, None] + np.minimum(np.arange(MAX_LIST), size[:, None] - 1)
        held = self.lists.tracks[padded][:, :, None] == tracks  # (C, MAX_LIST, plays)
        inside = held.any(axis=1).all(axis=1)
        candidates, size = candidates[inside], size[inside]
        position = held[inside].argmax(axis=1)  # (C, plays): where each track stands in each list
        prior = self.lists.probabilities[candidates]
        if first.shuffle[begin]:
            likelihood = prior[:, None] * _shuffled_likelihood(tracks, steps, position, size)
        else:
            kinds = self.lists.kinds[candidates]
            likelihood = (prior * _ordered_likelihood(steps, kinds, position, size))[:, None]
        possible = likelihood.sum(axis=1) > 0
        return candidates[possible], position[possible, -1], likelihood[possible]


def ordered_start_probability(kind: NDArray, position: NDArray, size: NDArray) -> NDArray[np.float64]:
    """P(cursor starts at `position`) in a list of `size` tracks played in order."""
    albums = np.where(kind == CATALOG, -(-size // ALBUM), 1)
    at_album = np.where(kind == CATALOG, position % ALBUM == 0, position == 0)
    return ALBUM_START_SHARE * at_album / albums + (1 - ALBUM_START_SHARE) / size


def _ordered_likelihood(steps: NDArray, kinds: NDArray, position: NDArray, size: NDArray) -> NDArray[np.float64]:
    """(C,) likelihood of the plays at `position` (C, plays), up to a factor that all lists share."""
    likelihood = ordered_start_probability(kinds, position[:, 0], size)
    for t in range(1, len(steps)):
        moved = (position[:, t] - position[:, t - 1]) % size
        if steps[t] == JUMP:
            likelihood = likelihood / size
        elif steps[t] == NEXT:
            likelihood = likelihood * (moved == 1)
        else:
            likelihood = likelihood * ((moved == 0) | (moved == size - 1))
    return likelihood


def _shuffled_cursors(tracks: NDArray, steps: NDArray) -> tuple[int, NDArray[np.int64]]:
    """(play at which the last permutation starts, cursor of each play from there on, relative to it)."""
    starts = np.flatnonzero(steps != NEXT)
    starts = starts[(steps[starts] == JUMP) | (starts == 0)]
    start = int(starts[-1])
    cursor = [0]
    for t in range(start + 1, len(tracks)):
        restarted = steps[t] == BACK and tracks[t] == tracks[t - 1]
        cursor.append(cursor[-1] + (1 if steps[t] == NEXT else 0 if restarted else -1))
    return start, np.array(cursor)


def _shuffled_likelihood(tracks: NDArray, steps: NDArray, position: NDArray, size: NDArray) -> NDArray[np.float64]:
    """(C, 2) likelihood under (uniform, spread) shuffle."""
    side = position >= size[:, None] // 2  # (C, plays)
    likelihood = np.ones((len(size), 2))
    bounds = [*np.flatnonzero((steps == JUMP) | (np.arange(len(steps)) == 0)), len(steps)]
    for begin, end in pairwise(bounds):
        _, cursor = _shuffled_cursors(tracks[begin:end], steps[begin:end])
        likelihood /= size[:, None]
        heard = {0: 0}  # cursor -> play of the segment
        for i in range(1, end - begin):
            where = int(cursor[i])
            if where in heard:
                same = tracks[begin + i] == tracks[begin + heard[where]]
                likelihood *= float(same)
                continue
            expected = side[:, begin] ^ bool(where % 2)
            n_heard_side = sum((c - where) % 2 == 0 for c in heard)
            likelihood[:, 0] /= size - len(heard)
            likelihood[:, 1] *= (side[:, begin + i] == expected) / (size / 2 - n_heard_side)
            heard[where] = i
    return likelihood


def _shuffled_chance(
    first: FirstHalf,
    moved: NDArray,
    entries: NDArray,
    owner: NDArray,
    index: NDArray,
    size: NDArray,
    position: NDArray,
    weight: NDArray,
) -> NDArray[np.float64]:
    """(K, entries) chance of each entry of the candidate lists while there is no jump: cursors that were heard keep
    their track, the other cursors hold the unheard tracks with equal chances."""
    begin = int(np.flatnonzero((first.steps == START) | (first.steps == SWITCH))[-1])
    start, cursor = _shuffled_cursors(first.tracks[begin:], first.steps[begin:])
    heard_tracks = first.tracks[begin + start :]
    displacement = np.arange(-N_STEPS, N_STEPS + 1)
    known = {int(c - cursor[-1]): int(track) for c, track in zip(cursor, heard_tracks, strict=True)}
    unknown = ~np.isin(displacement, list(known))
    heard = np.isin(entries, list(set(known.values())))
    chance = np.zeros((len(moved), len(entries)))
    for d, track in known.items():
        if abs(d) <= N_STEPS:
            chance += np.outer(moved[:, N_STEPS + d], weight.sum(axis=1)[owner] * (entries == track))
    n_heard = len(known)
    even = sum(d % 2 == 0 for d in known)  # heard on the side of the current track
    side = index >= size[owner] // 2
    here = (position >= size // 2)[owner]
    uniform = weight[owner, 0] / (size[owner] - n_heard)
    n_side = np.where(side == here, even, n_heard - even)
    spread = weight[owner, 1] / (size[owner] / 2 - n_side)
    for parity in (0, 1):
        mass = moved[:, unknown & (displacement % 2 == parity)].sum(axis=1)
        on_side = side == (here ^ bool(parity))
        chance += np.outer(mass, ~heard * (uniform + spread * on_side))
    return chance
