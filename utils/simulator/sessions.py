"""Draw listening sessions: what is played, who listens, and what is skipped.

The process, step by step (`world.py` has the static world, `log_columns.py` the log, docs/simulator.md all numbers):

1. Length L from the real distribution; premium, start hour, shuffle style from fixed probabilities.
2. Transitions between plays, drawn from fixed probabilities whatever is skipped: *next* 0.8435, *back* 0.04125,
   *restart* 0.04125, *jump* 0.0465 (a click in the same list), *switch* 0.0275 (a click in another context).
3. Contexts. A start or a switch draws a context type, a list of that type by popularity, and the state of the shuffle
   button (it stays as it was, or flips). A cursor plays the list in a circle: next +1, back -1, restart 0, jump
   anywhere. In order, the cursor starts at an album start or anywhere. Shuffled, the list is permuted first, either
   uniformly or *spread* (alternating between the two halves of the list); a jump permutes anew. The radio draws each
   track by popularity from a cluster that walks among near clusters; back and restart repeat the track.
4. The listener: type k of 4 (listener, listen-then-skip, skip-then-listen, skipper), propensity q on a grid of 9
   values, and taste g with P(g) proportional to exp(lambda * u_g . mean of v over the first five tracks).
5. Skips, y_t = skip_2 of play t:  logit P(y_t) = base(t) + profile_k(t / L) + q + own(track_t) - match(g, track_t)
   - situation(track_t) - coherence(track_t) + repeat(t) + premium + 0.9 * (+1 if y_{t-1} else -1; 0 for t = 1)
   where match = kappa * u_g . v, situation = the same with what suits hour, premium and first context, coherence = the
   part of v that resembles the first five tracks, and repeat = a (negative) constant if the track was heard before in
   the session.
6. Skip level (skip_1, skip_2, skip_3 only, played, no flag) given y_t, k and the transition that follows.
7. The log columns: the end reason from level and transition (back: backbtn; click: endplay; else trackdone if played,
   fwdbtn if skipped), the next start reason from it; pauses, seeks and the clock from level and reasons.

Everything hidden is discrete and, given tracks, levels and transitions, the log columns hold nothing more about the
listener. That makes the oracles exact. `skip_oracle.py` sees z = (k, q, g) through the tracks (by P(g)), y and the
levels; `track_oracle.py` sees the list and the cursor through tracks, transitions, context type and shuffle state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from utils.data.schema import (
    MAX_LENGTH,
    MIN_LENGTH,
)
from utils.simulator.behaviour import Behaviour, Situation, level_probabilities, observed_logit, taste_prior
from utils.simulator.figures import CONTEXT_SHARES, HOUR_WEIGHTS, LENGTH_SESSIONS, PREMIUM_SHARE
from utils.simulator.lists import ALBUM, CATALOG, MAX_LIST, RADIO, Lists
from utils.simulator.world import World

START, NEXT, BACK, RESTART, JUMP, SWITCH = range(6)
"""Transitions into a play."""
TRANSITIONS = {NEXT: 0.8435, BACK: 0.04125, RESTART: 0.04125, JUMP: 0.0465, SWITCH: 0.0275}
MOVES = np.array([0, 1, -1, 0, 0, 0])
"""Steps of the cursor by transition."""
SHUFFLE_ON_TO_OFF, SHUFFLE_OFF_TO_ON = 0.48, 0.23
SHUFFLE_SHARE = SHUFFLE_OFF_TO_ON / (SHUFFLE_OFF_TO_ON + SHUFFLE_ON_TO_OFF)
"""Stationary share of shuffle being on; sessions start with it, so it is the share at any play."""
UNIFORM_SHUFFLE_SHARE = 0.3
"""Share of the sessions whose shuffle is uniformly random."""
ALBUM_START_SHARE = 0.6
"""Share of the lists played in order that start at an album start (a playlist: at its top); the others start
anywhere."""
CLOSED_SHARE = 0.5
"""Share of the sessions of fewer than 20 plays that end by closing the player."""


class SimulatedSessions(NamedTuple):
    """A chunk of S simulated sessions; plays are padded to MAX_LENGTH columns."""

    length: NDArray  # (S,) 10..20
    tracks: NDArray  # (S, 20) int32
    transition: NDArray  # (S, 20) into each play: START, NEXT, ...
    context: NDArray  # (S, 20) context type
    shuffle: NDArray  # (S, 20) bool
    lists: NDArray  # (S, 20) list played from, -1 on the radio
    propensity: NDArray  # (S, 20) probability of the play under uniform shuffle, NaN elsewhere
    uniform_shuffle: NDArray  # (S,) bool
    premium: NDArray  # (S,) bool
    start_second: NDArray  # (S,) of the day
    listener_type: NDArray  # (S,) 0..3
    listener_propensity: NDArray  # (S,) index in the grid
    listener_taste: NDArray  # (S,) cluster
    level: NDArray  # (S, 20) SKIP_NO_FLAG..SKIP_1
    after: NDArray  # (S, 20) transition out of each play (invented for the last one)


def choose(
    rng: np.random.Generator, probabilities: NDArray | tuple[float, ...], size: int | tuple[int, ...]
) -> NDArray:
    """Indices drawn by inversion from `probabilities` (K,) (normalised here)."""
    cumulative = np.cumsum(np.asarray(probabilities, dtype=float))
    return np.searchsorted(cumulative[:-1] / cumulative[-1], rng.random(size), side="right").astype(np.int8)


def choose_rows(rng: np.random.Generator, probabilities: NDArray) -> NDArray:
    """One index for each row of `probabilities` (S, K)."""
    cumulative = np.cumsum(probabilities, axis=1)
    return (rng.random((len(probabilities), 1)) * cumulative[:, -1:] >= cumulative[:, :-1]).sum(axis=1).astype(np.int8)


def draw_sessions(
    world: World, lists: Lists, behaviour: Behaviour, rng: np.random.Generator, n_sessions: int
) -> SimulatedSessions:
    """Simulate `n_sessions` sessions of a day whose lists are `lists`."""
    length = (MIN_LENGTH + choose(rng, LENGTH_SESSIONS, n_sessions)).astype(np.int64)
    premium = rng.random(n_sessions) < PREMIUM_SHARE
    uniform_shuffle = rng.random(n_sessions) < UNIFORM_SHUFFLE_SHARE
    hours = choose(rng, HOUR_WEIGHTS, n_sessions)
    start_second = (hours + rng.random(n_sessions)) * 3600
    plays = draw_plays(world, lists, rng, uniform_shuffle)

    listener_type = choose(rng, behaviour.type_shares, n_sessions)
    values, probabilities = behaviour.propensities()
    listener_propensity = choose(rng, probabilities, n_sessions)
    listener_taste = choose_rows(rng, taste_prior(world, behaviour, plays["tracks"]))

    situation = Situation(premium, hours, plays["context"][:, 0])
    logit = observed_logit(world, behaviour, plays["tracks"], situation)
    logit += values[listener_propensity][:, None]
    likes = behaviour.match_effect * world.listener_taste[listener_taste]
    logit -= np.einsum("std,sd->st", world.taste[plays["tracks"]], likes)
    positions = np.broadcast_to(np.arange(MAX_LENGTH), logit.shape)
    profile = behaviour.profile(positions, length[:, None])
    logit += np.take_along_axis(profile, listener_type[:, None, None].astype(np.int64), axis=2)[:, :, 0]

    after = _transitions_after(rng, plays["transition"], length)
    broken = (after != NEXT).astype(np.int8)
    cumulative = np.cumsum(level_probabilities(behaviour), axis=-1)
    level = np.empty(logit.shape, dtype=np.uint8)
    previous = np.zeros(n_sessions)
    u = rng.random((2, *logit.shape))
    for t in range(MAX_LENGTH):
        skipped = u[0, :, t] < expit(logit[:, t] + behaviour.persistence * previous)
        bounds = cumulative[listener_type, skipped.astype(np.int8), broken[:, t]]
        level[:, t] = (u[1, :, t, None] >= bounds[:, :-1]).sum(axis=1)
        previous = 2.0 * skipped - 1
    return SimulatedSessions(
        length=length,
        **plays,
        uniform_shuffle=uniform_shuffle,
        premium=premium,
        start_second=start_second,
        listener_type=listener_type,
        listener_propensity=listener_propensity,
        listener_taste=listener_taste,
        level=level,
        after=after,
    )


def _transitions_after(rng: np.random.Generator, transition: NDArray, length: NDArray) -> NDArray:
    """(S, 20) the transition that follows each play. The log does not have what follows the last play: a session that
    was cut at 20 goes on as usual, half of the others end by closing the player (which looks like a switch)."""
    after = np.empty_like(transition)
    after[:, :-1] = transition[:, 1:]
    last = choose(rng, tuple(TRANSITIONS.values()), len(length)) + NEXT
    closed = rng.random(len(length)) < CLOSED_SHARE
    after[np.arange(len(length)), length - 1] = np.where(length == MAX_LENGTH, last, np.where(closed, SWITCH, NEXT))
    return after


def draw_plays(world: World, lists: Lists, rng: np.random.Generator, uniform_shuffle: NDArray) -> dict[str, NDArray]:
    """Transitions, contexts and tracks of a session for each entry of `uniform_shuffle` (S,): the fields `tracks`,
    `transition`, `context`, `shuffle`, `lists` and `propensity` of `SimulatedSessions`."""
    n = len(uniform_shuffle)
    shape = (n, MAX_LENGTH)
    transition = choose(rng, tuple(TRANSITIONS.values()), shape) + np.int8(NEXT)
    transition[:, 0] = START
    tracks = np.empty(shape, dtype=np.int32)
    context, shuffle = np.empty(shape, dtype=np.int8), np.empty(shape, dtype=bool)
    played_list, propensity = np.empty(shape, dtype=np.int32), np.full(shape, np.nan, dtype=np.float32)

    kind, list_id = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    button = rng.random(n) < SHUFFLE_SHARE
    size = np.full(n, MAX_LIST)
    queue = np.zeros((n, MAX_LIST), dtype=np.int32)  # the list in the order of playing
    cursor, lowest, highest = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    cluster = np.zeros(n, dtype=np.int64)  # the radio's
    walk = np.cumsum(world.radio_walk, axis=1)

    for t in range(MAX_LENGTH):
        step = transition[:, t]
        fresh = np.flatnonzero((step == START) | (step == SWITCH))
        kind[fresh] = choose(rng, CONTEXT_SHARES, len(fresh))
        flip = np.where(button[fresh], SHUFFLE_ON_TO_OFF, SHUFFLE_OFF_TO_ON)
        if t > 0:
            button[fresh] ^= rng.random(len(fresh)) < flip
        on_radio = kind == RADIO

        tuned = fresh[on_radio[fresh]]
        list_id[tuned] = -1
        cluster[tuned] = choose(rng, world.cluster_wanted, len(tuned))
        walking = np.flatnonzero(on_radio & ((step == NEXT) | (step == JUMP)))
        cluster[walking] = (rng.random((len(walking), 1)) >= walk[cluster[walking], :-1]).sum(axis=1)

        opened = fresh[~on_radio[fresh]]
        list_id[opened] = lists.draw(kind[opened], rng.random(len(opened)))
        size[opened] = lists.sizes[list_id[opened]]
        cursor += MOVES[step]
        jumped = np.flatnonzero((step == JUMP) & ~on_radio)
        cursor[jumped] = rng.integers(0, size[jumped])
        in_order = opened[~button[opened]]
        queue[in_order] = _padded(lists, list_id[in_order])
        cursor[in_order] = _ordered_start(rng, kind[in_order], size[in_order])
        shuffled = np.concatenate([opened[button[opened]], jumped[button[jumped]]])
        queue[shuffled] = _shuffle(rng, _padded(lists, list_id[shuffled]), size[shuffled], ~uniform_shuffle[shuffled])
        cursor[shuffled] = lowest[shuffled] = highest[shuffled] = 0

        # Uniform shuffle chooses among the tracks that its permutation has not shown yet.
        chosen = button & uniform_shuffle & ~on_radio & ((cursor < lowest) | (cursor > highest))
        left = size - (highest - lowest + 1)
        propensity[chosen, t] = 1.0 / left[chosen]
        new = np.zeros(n, dtype=bool)
        new[shuffled] = True
        new &= uniform_shuffle
        propensity[new, t] = 1.0 / size[new]
        np.minimum(lowest, cursor, out=lowest)
        np.maximum(highest, cursor, out=highest)

        tracks[:, t] = queue[np.arange(n), cursor % size]
        drawn = np.concatenate([tuned, walking])
        low, high = (world.wanted_cumulative[world.cluster_start[cluster[drawn] + i]] for i in (0, 1))
        position = low + rng.random(len(drawn)) * (high - low)
        tracks[drawn, t] = np.searchsorted(world.wanted_cumulative, position, side="right") - 1
        again = np.flatnonzero(on_radio & ((step == BACK) | (step == RESTART)))
        tracks[again, t] = tracks[again, t - 1]
        context[:, t], shuffle[:, t], played_list[:, t] = kind, button, list_id
    np.clip(tracks, 0, world.n_tracks - 1, out=tracks)
    return {
        "tracks": tracks,
        "transition": transition,
        "context": context,
        "shuffle": shuffle,
        "lists": played_list,
        "propensity": propensity,
    }


def _padded(lists: Lists, list_id: NDArray) -> NDArray[np.int32]:
    """(R, MAX_LIST) the tracks of the lists; what lies behind the end of a list is never played."""
    index = lists.offsets[list_id][:, None] + np.arange(MAX_LIST)
    return lists.tracks[np.minimum(index, len(lists.tracks) - 1)]


def _ordered_start(rng: np.random.Generator, kind: NDArray, size: NDArray) -> NDArray[np.int64]:
    """(R,) cursor of the first play of a list in order."""
    albums = np.where(kind == CATALOG, -(-size // ALBUM), 1)
    anywhere = rng.integers(0, size)
    album = rng.integers(0, albums) * ALBUM
    return np.where(rng.random(len(size)) < ALBUM_START_SHARE, album, anywhere)


def _shuffle(rng: np.random.Generator, rows: NDArray, size: NDArray, spread: NDArray) -> NDArray[np.int32]:
    """Permute the first `size[i]` tracks of each row: uniformly, or alternating between the halves where `spread`."""
    column = np.arange(MAX_LIST)
    key = rng.random(rows.shape)
    key[column >= size[:, None]] = 2.0
    half_size = size[:, None] // 2
    key += np.where(spread[:, None], 4.0 * (column >= half_size), 4.0 * (column >= size[:, None]))
    order = np.argsort(key, axis=1)
    first_half = rng.integers(0, 2, size=(len(rows), 1))
    alternating = column // 2 + half_size * ((column + first_half) % 2)
    position = np.where(spread[:, None] & (column < size[:, None]), alternating, column)
    return np.take_along_axis(rows, np.take_along_axis(order, position, axis=1), axis=1)
