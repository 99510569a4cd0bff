"""Simulate listening sessions in exactly the files of the Music Streaming Sessions Dataset (MSSD), with known truth.

    python -m utils.synthetic --out data/raw/demo --sessions 120000 --tracks 5000 --days 10
    python -m utils.synthetic --out data/raw/large --sessions 1000000 --tracks 103000 --days 20 --processes 2

The generative process of a session (`utils/world.py` has the static world; docs/simulator.md all tables):

1. Length L from the real distribution; premium, start hour, shuffle style from fixed probabilities.
2. Transitions between plays, drawn from fixed probabilities whatever is skipped: *next* 0.8435, *back* 0.04125,
   *restart* 0.04125, *jump* 0.0465 (a click in the same list), *switch* 0.0275 (a click in another context).
3. Contexts. A start or a switch draws a context type, a list of that type by popularity, and the state of the shuffle
   button (it stays as it was, or flips). A list is played in a circle by a cursor: next +1, back -1, restart 0, jump
   anywhere. In order, the cursor starts at an album start or anywhere. Shuffled, the list is permuted first, either
   uniformly or *spread* (alternating between the two halves of the list); a jump permutes anew. The radio draws each
   track by popularity from a cluster that walks among near clusters; back and restart repeat the track.
4. The listener: type k of 4 (listener, listen-then-skip, skip-then-listen, skipper), propensity q on a grid of 9
   values, and taste g with P(g) proportional to exp(lambda * u_g . mean of v over the first five tracks).
5. Skips, y_t = skip_2 of play t:  logit P(y_t) = base(t) + profile_k(t / L) + q + own(track_t) + match(g, track_t)
   + coherence(track_t) + repeat(t) + premium + 0.9 * (+1 if y_{t-1} else -1; 0 for t = 1)
   where match = kappa * u_g . v, coherence = the part of v that resembles the first five tracks, and repeat = a
   (negative) constant if the track was heard before in the session.
6. Skip level (skip_1, skip_2, skip_3 only, played, no flag) given y_t, k and the transition that follows.
7. Log columns follow: the end reason from level and transition (back: backbtn; click: endplay; else trackdone if
   played, fwdbtn if skipped), the next start reason from it; pauses, seeks and the clock from level and reasons.

Everything hidden is discrete and, given tracks, levels and transitions, the log columns hold nothing more about the
listener. Hence the exact filter of `utils/oracle.py`: what it sees of z = (k, q, g) is the tracks (through P(g)), y and
the levels; what it sees of the list and the cursor is tracks, transitions, context type and shuffle state.
"""

from __future__ import annotations

import datetime
import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from gzip import GzipFile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from scipy.special import expit
from tqdm import tqdm

from utils.cli import UserError, cli
from utils.files import atomic_folder, write_json
from utils.schema import (
    CONTEXT_TYPES,
    FEATURE_COLUMNS,
    INPUT_COLUMNS,
    MAX_LENGTH,
    MIN_LENGTH,
    N_SPLITS,
    REASONS_END,
    REASONS_START,
    SESSION_COLUMNS,
    SKIP_1,
    SKIP_2,
    SKIP_3_ONLY,
    SKIP_NO_FLAG,
    SKIP_PLAYED,
    log_file,
)
from utils.world import (
    ALBUM,
    CATALOG,
    CONTEXT_SHARES,
    HOUR_WEIGHTS,
    MAX_LIST,
    PREMIUM_SHARE,
    RADIO,
    Lists,
    World,
    build_world,
    random_uuids,
)

START, NEXT, BACK, RESTART, JUMP, SWITCH = range(6)
"""Transitions into a play."""
TRANSITIONS = {NEXT: 0.8435, BACK: 0.04125, RESTART: 0.04125, JUMP: 0.0465, SWITCH: 0.0275}
MOVES = np.array([0, 1, -1, 0, 0, 0])
"""Steps of the cursor by transition."""

LENGTH_SESSIONS = (
    11025730, 9611839, 8407692, 7344162, 6460309, 5664259, 4994670, 4400713, 3917839, 3477536, 59645965,
)  # fmt: skip
"""Sessions of length 10..20 in MSSD's training set (its participants' count)."""
SHUFFLE_ON_TO_OFF, SHUFFLE_OFF_TO_ON = 0.48, 0.23
SHUFFLE_SHARE = SHUFFLE_OFF_TO_ON / (SHUFFLE_OFF_TO_ON + SHUFFLE_ON_TO_OFF)
"""The stationary share of the shuffle button; sessions start with it, so it is the share at any play."""
UNIFORM_SHUFFLE_SHARE = 0.3
"""Sessions whose shuffle is uniformly random."""
ALBUM_START_SHARE = 0.6
"""Ordered starts at an album start (of a playlist: at its top); the others start anywhere."""
CLOSED_SHARE = 0.5
"""Sessions of fewer than 20 plays that end by closing the player."""
SECONDS_PLAYED = np.array([60.0, 220.0, 120.0, 20.0, 6.0])
"""Typical seconds of a play by level (invented)."""
PREMIUM_CHANGE_SHARE = 1.3e-4
GARBAGE_DATE_SHARE = 2e-5
FIRST_DAY = "2018-07-15"
GARBAGE_DATES = (-17728, 5064)
"""Days from FIRST_DAY to 1969-12-31 and to 2032-05-26, the outermost dates of the real logs."""
PROFILE_TURN, PROFILE_SLOPE = 0.3, 6.0
"""Where in the session listen-then-skip and skip-then-listen turn, and how fast."""
TASTE_ROWS = 5
"""The first plays, which tell the prior of taste. Every history has them."""


@dataclass(frozen=True)
class Behaviour:
    """How listeners skip. The defaults are calibrated: `utils/calibration.py` says how."""

    base: tuple[float, ...] = (
        -0.281, 0.830, 0.926, 1.037, 1.059, 0.809, 0.768, 0.719, 0.631, 0.502,
        0.541, 0.610, 0.623, 0.685, 0.712, 0.755, 0.759, 0.735, 0.755, 0.742,
    )  # fmt: skip
    """By position 1..20."""
    type_shares: tuple[float, float, float, float] = (0.29, 0.21, 0.21, 0.29)
    """listener, listen-then-skip, skip-then-listen, skipper."""
    type_effect: float = 1.1
    propensity_sd: float = 0.95
    n_propensities: int = 9
    own_effect: float = 0.75
    match_effect: float = 1.2
    prior_sharpness: float = 2.0
    situation_effect: float = 2.0
    coherence_effect: float = 0.3
    repeat_effect: float = -1.0
    premium_effect: float = 0.2
    persistence: float = 0.9
    skip_1_share: tuple[float, float, float, float] = (0.765, 0.815, 0.815, 0.845)
    """P(skip_1 | skip_2) by listener type."""
    skip_3_share: tuple[float, float, float, float] = (0.11, 0.15, 0.15, 0.20)
    """P(skip_3 | not skip_2, a next transition) by listener type."""
    no_flag_share: float = 0.0125
    """P(no flag | not skip_2, a next transition)."""
    broken_no_flag_share: float = 0.15
    """P(no flag | not skip_2, a back, restart, jump or switch); otherwise skip_3."""

    def propensities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(values, probabilities) of the propensity grid: a normal distribution cut in slices of equal width."""
        edges = np.linspace(-2.25, 2.25, self.n_propensities)
        probability = np.exp(-(edges**2) / 2)
        probability /= probability.sum()
        return self.propensity_sd * edges / np.sqrt(probability @ edges**2), probability

    def profile(self, position: NDArray, length: NDArray) -> NDArray[np.float64]:
        """(..., 4) effect of the listener type at `position` (from 0) of a session of `length`."""
        rise = np.tanh(PROFILE_SLOPE * ((position + 0.5) / length - PROFILE_TURN))
        return self.type_effect * np.stack([-np.ones_like(rise), rise, -rise, np.ones_like(rise)], axis=-1)


class Sessions(NamedTuple):
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


class Situation(NamedTuple):
    """What the first play of each of S sessions tells, (S,) each."""

    premium: NDArray
    hour: NDArray
    context: NDArray

    def taste(self, world: World) -> NDArray[np.float32]:
        """(S, N_TASTE) what suits the situation."""
        vectors = world.hour_taste[self.hour] + world.premium_taste[self.premium.astype(np.int64)]
        return (vectors + world.context_taste[self.context]) / np.sqrt(3.0)


def taste_prior(world: World, behaviour: Behaviour, tracks: NDArray) -> NDArray[np.float64]:
    """(S, N_CLUSTERS) P(taste | tracks (S, at least TASTE_ROWS))."""
    mean = world.taste[tracks[:, :TASTE_ROWS]].mean(axis=1)
    score = behaviour.prior_sharpness * (mean @ world.listener_taste.T).astype(np.float64)
    score = np.exp(score - score.max(axis=1, keepdims=True))
    return score / score.sum(axis=1, keepdims=True)


def observed_logit(world: World, behaviour: Behaviour, tracks: NDArray, situation: Situation) -> NDArray[np.float64]:
    """(S, L) the part of the logit that tracks (S, L), positions and situation tell: base, own effect, coherence with
    the first five tracks, match with the situation, repeats, premium."""
    taste = world.taste[tracks]  # (S, 20, N_TASTE)
    # What the track has beyond its cluster, times the same of the first five: zero on average for every track.
    inner = taste - world.cluster_taste[world.cluster[tracks]]
    begun = inner[:, :TASTE_ROWS].sum(axis=1)
    resemblance = np.einsum("std,sd->st", inner, begun)
    resemblance[:, :TASTE_ROWS] -= (inner[:, :TASTE_ROWS] ** 2).sum(axis=2)  # not with itself
    repeat = np.zeros(tracks.shape)
    for position in range(1, tracks.shape[1]):
        repeat[:, position] = (tracks[:, :position] == tracks[:, position, None]).any(axis=1)
    return (
        np.asarray(behaviour.base)[: tracks.shape[1]]
        + behaviour.own_effect * world.own[tracks]
        - behaviour.coherence_effect * resemblance / 3.0
        + behaviour.repeat_effect * repeat
        - behaviour.situation_effect * np.einsum("std,sd->st", taste, situation.taste(world))
        + behaviour.premium_effect * (situation.premium[:, None] - PREMIUM_SHARE)
    )


def level_probabilities(behaviour: Behaviour) -> NDArray[np.float64]:
    """(4 types, 2 skipped, 2 broken, 5 levels) P(level | listener type, skip_2, next play is not a plain *next*)."""
    p = np.zeros((4, 2, 2, 5))
    skip_1, skip_3 = np.array(behaviour.skip_1_share), np.array(behaviour.skip_3_share)
    p[:, 1, :, SKIP_1] = skip_1[:, None]
    p[:, 1, :, SKIP_2] = 1 - skip_1[:, None]
    p[:, 0, 0, SKIP_3_ONLY] = skip_3
    p[:, 0, 0, SKIP_NO_FLAG] = behaviour.no_flag_share
    p[:, 0, 0, SKIP_PLAYED] = 1 - skip_3 - behaviour.no_flag_share
    p[:, 0, 1, SKIP_NO_FLAG] = behaviour.broken_no_flag_share
    p[:, 0, 1, SKIP_3_ONLY] = 1 - behaviour.broken_no_flag_share
    return p


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
) -> Sessions:
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
    return Sessions(
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
    """(S, 20) the transition that follows each play. What follows the last play is not logged: a session that was cut
    at 20 goes on as usual, half of the others end by closing the player (which looks like a switch)."""
    after = np.empty_like(transition)
    after[:, :-1] = transition[:, 1:]
    last = choose(rng, tuple(TRANSITIONS.values()), len(length)) + NEXT
    closed = rng.random(len(length)) < CLOSED_SHARE
    after[np.arange(len(length)), length - 1] = np.where(length == MAX_LENGTH, last, np.where(closed, SWITCH, NEXT))
    return after


def draw_plays(world: World, lists: Lists, rng: np.random.Generator, uniform_shuffle: NDArray) -> dict[str, NDArray]:
    """Transitions, contexts and tracks of a session for each entry of `uniform_shuffle` (S,): the fields `tracks`,
    `transition`, `context`, `shuffle`, `lists` and `propensity` of `Sessions`."""
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


# ----- log columns ------------------------------------------------------------------------------------------------


class LogColumns(NamedTuple):
    """What the log says beside ids, tracks and levels; (S, 20) each."""

    reason_start: NDArray  # index in REASONS_START
    reason_end: NDArray  # index in REASONS_END
    no_pause: NDArray
    short_pause: NDArray
    long_pause: NDArray
    seek_forward: NDArray
    seek_back: NDArray
    second: NDArray  # of the first day; 86,400 and more is the next day


def draw_log(rng: np.random.Generator, sessions: Sessions) -> LogColumns:
    """Reasons, pauses, seeks and the clock. They depend on levels and transitions only, never on the listener."""
    shape = sessions.level.shape
    reason_end = _draw_reason_end(rng, sessions)
    reason_start = _draw_reason_start(rng, sessions.transition, reason_end)

    followed = np.isin(reason_start, [REASONS_START.index("trackdone"), REASONS_START.index("fwdbtn")])
    pause = choose(rng, (0.80, 0.03, 0.10, 0.07), shape)  # none, short, short and long, long
    pause = np.where(~followed & (rng.random(shape) < 0.4), choose(rng, (0.0, 0.2, 0.5, 0.3), shape), pause)
    pause[:, 0] = np.where(rng.random(len(pause)) < 0.6, 4, pause[:, 0])  # 4: all three flags are 0
    seeks = [
        np.where(rng.random(shape) < share, rng.geometric(0.45, shape), 0).clip(max=60).astype(np.int16)
        for share in (0.022, 0.026)
    ]
    seconds = SECONDS_PLAYED[sessions.level] * np.exp(0.5 * rng.standard_normal(shape))
    elapsed = np.cumsum(seconds, axis=1) - seconds
    return LogColumns(
        reason_start=reason_start,
        reason_end=reason_end,
        no_pause=pause == 0,
        short_pause=(pause == 1) | (pause == 2),
        long_pause=(pause == 2) | (pause == 3),
        seek_forward=seeks[0],
        seek_back=seeks[1],
        second=(sessions.start_second[:, None] + elapsed).astype(np.int64),
    )


def _draw_reason_end(rng: np.random.Generator, sessions: Sessions) -> NDArray[np.int8]:
    index = REASONS_END.index
    reason = np.full(sessions.level.shape, index("fwdbtn"), dtype=np.int8)
    reason[sessions.level == SKIP_PLAYED] = index("trackdone")
    rare = np.array(
        [index(name) for name in ("logout", "remote", "clickrow", "appload", "clickside", "popup", "uriopen")]
    )
    unflagged = sessions.level == SKIP_NO_FLAG
    reason[unflagged] = rare[choose(rng, (0.66, 0.31, 0.01, 0.005, 0.005, 0.005, 0.005), int(unflagged.sum()))]
    reason[(sessions.after == BACK) | (sessions.after == RESTART)] = index("backbtn")
    reason[(sessions.after == JUMP) | (sessions.after == SWITCH)] = index("endplay")
    return reason


def _draw_reason_start(rng: np.random.Generator, transition: NDArray, reason_end: NDArray) -> NDArray[np.int8]:
    index = REASONS_START.index
    # What a plain next play starts with, by the end of the play before.
    follows = np.full(len(REASONS_END), index("fwdbtn"), dtype=np.int8)
    follows[REASONS_END.index("trackdone")] = index("trackdone")
    follows[REASONS_END.index("logout")] = index("appload")
    follows[REASONS_END.index("remote")] = index("remote")
    reason = np.empty(transition.shape, dtype=np.int8)
    reason[:, 1:] = follows[reason_end[:, :-1]]
    odd = (rng.random(transition.shape) < 0.006).nonzero()
    names = ("appload", "playbtn", "trackerror", "endplay", "remote")
    reason[odd] = np.array([index(name) for name in names])[choose(rng, (0.63, 0.15, 0.12, 0.03, 0.07), len(odd[0]))]
    names = ("clickrow", "fwdbtn", "appload", "trackdone", "backbtn")
    first = choose(rng, (0.57, 0.28, 0.08, 0.06, 0.01), len(reason))
    reason[:, 0] = np.array([index(name) for name in names])[first]
    reason[(transition == BACK) | (transition == RESTART)] = index("backbtn")
    clicked = ((transition == JUMP) | (transition == SWITCH)).nonzero()
    clicks = ("clickrow", "clickside", "popup", "uriopen")
    drawn = choose(rng, (0.997, 0.001, 0.001, 0.001), len(clicked[0]))
    reason[clicked] = np.array([index(name) for name in clicks])[drawn]
    return reason


def log_table(
    world: World, rng: np.random.Generator, sessions: Sessions, log: LogColumns, session_ids: NDArray, day: int
) -> pa.Table:
    """The rows of the sessions with MSSD's 21 columns, in file order."""
    played = np.arange(MAX_LENGTH) < sessions.length[:, None]
    flat = lambda values: values[played]  # noqa: E731
    per_session = lambda values: np.repeat(values, sessions.length)  # noqa: E731
    level = flat(sessions.level)
    n = len(level)
    position = flat(np.broadcast_to(np.arange(1, MAX_LENGTH + 1, dtype=np.int8), played.shape))

    second = flat(log.second)
    date = day + second // 86_400
    garbage = np.flatnonzero(rng.random(n) < GARBAGE_DATE_SHARE)
    garbage_dates = rng.integers(GARBAGE_DATES[0], GARBAGE_DATES[1] + 1, len(garbage))
    first_date = np.datetime64(FIRST_DAY, "D")
    dates, codes = np.unique(np.concatenate([date, garbage_dates]), return_inverse=True)
    date_codes = codes[:n].copy()
    date_codes[garbage] = codes[n:]

    changed = rng.random(len(sessions.length)) < PREMIUM_CHANGE_SHARE
    change_at = np.where(changed, rng.integers(1, MIN_LENGTH, len(changed)), MAX_LENGTH)
    premium = sessions.premium[:, None] ^ (np.arange(MAX_LENGTH) >= change_at[:, None])
    columns = (
        fixed_strings(per_session(session_ids)),
        position,
        per_session(sessions.length.astype(np.int8)),
        fixed_strings(world.track_ids[flat(sessions.tracks)]),
        level == SKIP_1,
        level >= SKIP_2,
        level >= SKIP_3_ONLY,
        level == SKIP_PLAYED,
        flat(sessions.transition == SWITCH).astype(np.int8),
        flat(log.no_pause).astype(np.int8),
        flat(log.short_pause).astype(np.int8),
        flat(log.long_pause).astype(np.int8),
        flat(log.seek_forward),
        flat(log.seek_back),
        flat(sessions.shuffle),
        (second // 3600 % 24).astype(np.int8),
        categories(date_codes, [str(first_date + int(offset)) for offset in dates]),
        flat(premium),
        categories(flat(sessions.context), CONTEXT_TYPES),
        categories(flat(log.reason_start), REASONS_START),
        categories(flat(log.reason_end), REASONS_END),
    )
    return pa.table([pa.array(column) for column in columns], names=list(SESSION_COLUMNS))


def fixed_strings(values: NDArray[np.bytes_]) -> pa.Array:
    """An Arrow string array of bytes of equal length, without a copy per value."""
    values = np.ascontiguousarray(values)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.dtype.itemsize
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(values))


def categories(codes: NDArray, names: Sequence[str]) -> pa.Array:
    """An Arrow string array of `names[codes]`."""
    return pa.array(names).take(pa.array(codes))


# ----- files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    out: str = "data/raw/demo"
    """Folder to write; must not exist."""
    sessions: int = 120_000
    """Training sessions in all, spread evenly over days and splits."""
    test_sessions: int = 6_000
    """Sessions of the challenge's test set in all: their second halves go to hidden_truth/ only."""
    tracks: int = 5_000
    """Tracks of the catalogue, 1,000 to 3,700,000."""
    days: int = 10
    """Days from 2018-07-15 on (MSSD has 66)."""
    splits: int = 1
    """Training files a day (MSSD has 10)."""
    seed: int = 0
    """The same seed and sizes give the same bytes, whatever the number of processes."""
    processes: int = 0
    """Processes that write files; 0 is one for each core."""
    gzip: bool = False
    """Write .csv.gz."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("sessions", 1, None),
            ("test_sessions", 0, None),
            ("days", 1, 366),
            ("splits", 1, N_SPLITS),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise UserError(f"--{name} {value} must be {low} or more" + (f" and at most {high}" if high else ""))


class Job(NamedTuple):
    """One (day, split) of the output; split `TEST` is the challenge's test set."""

    day: int
    split: int
    n_sessions: int


TEST = N_SPLITS
CHUNK_SESSIONS = 8192
"""Sessions simulated at once: bounds the memory of a job."""
MINI_SESSIONS = 10_000


def day_name(day: int) -> str:
    """YYYYMMDD of day `day`."""
    return (datetime.date.fromisoformat(FIRST_DAY) + datetime.timedelta(days=day)).strftime("%Y%m%d")


def main(config: Config) -> None:
    """Simulate and write everything below `config.out`, which appears when it is whole."""
    world = build_world(seed=config.seed, n_tracks=config.tracks)
    jobs = list(_jobs(config))
    with atomic_folder(Path(config.out), overwrite=config.overwrite, holds="hidden_truth") as folder:
        write_features(world, folder / "track_features", parts=2)
        write = partial(write_job, world, Behaviour(), folder, gz=config.gzip)
        rows, n_sessions = 0, config.sessions + config.test_sessions
        with tqdm(total=n_sessions, unit=" sessions", desc="simulating", disable=None) as bar:
            for job, job_rows in _map(write, jobs, processes=config.processes or os.cpu_count() or 1):
                rows += job_rows
                bar.update(job.n_sessions)
        write_mini(world, folder)
        truth = {"seed": config.seed, "n_tracks": config.tracks, "days": config.days, "splits": config.splits}
        truth |= {"sessions": config.sessions, "test_sessions": config.test_sessions, "rows": rows}
        write_json(folder / "hidden_truth" / "world.json", truth)
    print(f"{config.out}: {n_sessions:,} sessions, {rows:,} plays of {config.tracks:,} tracks over {config.days} days")


def day_index(name: str) -> int:
    """The day of YYYYMMDD: 0 is the first."""
    return (datetime.datetime.strptime(name, "%Y%m%d").date() - datetime.date.fromisoformat(FIRST_DAY)).days


def _jobs(config: Config) -> Iterator[Job]:
    for total, splits in ((config.sessions, range(config.splits)), (config.test_sessions, [TEST])):
        cells = [(day, split) for day in range(config.days) for split in splits]
        for i, (day, split) in enumerate(cells):
            n_sessions = total * (i + 1) // len(cells) - total * i // len(cells)
            if n_sessions:
                yield Job(day, split, n_sessions)


def _map(write: Callable[[Job], int], jobs: list[Job], *, processes: int) -> Iterator[tuple[Job, int]]:
    """(job, write(job)) in order of completion."""
    if processes == 1 or len(jobs) == 1:
        for job in jobs:
            yield job, write(job)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), initializer=_set_write, initargs=(write,)) as pool:
        futures = {pool.submit(_call_write, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


_write: Callable[[Job], int]
"""In a worker process: what it does with a job. Set once, so that the world is not sent with every job."""


def _set_write(write: Callable[[Job], int]) -> None:
    global _write
    _write = write


def _call_write(job: Job) -> int:
    return _write(job)


def job_chunks(world: World, behaviour: Behaviour, job: Job, *, seed: int) -> Iterator[tuple[Sessions, pa.Table]]:
    """The sessions of a job in the order of its file, in chunks: (simulated, their rows)."""
    rng = np.random.default_rng([seed, 10, job.day, job.split])
    lists = world.lists(job.day)
    ids = np.char.add(f"{job.day}_".encode(), np.sort(random_uuids(rng, job.n_sessions)))
    for start in range(0, job.n_sessions, CHUNK_SESSIONS):
        chunk_ids = ids[start : start + CHUNK_SESSIONS]
        sessions = draw_sessions(world, lists, behaviour, rng, len(chunk_ids))
        yield sessions, log_table(world, rng, sessions, draw_log(rng, sessions), chunk_ids, job.day)


def write_job(world: World, behaviour: Behaviour, folder: Path, job: Job, *, gz: bool = False) -> int:
    """Write the log of a job and its hidden truth; returns the number of plays."""
    day = day_name(job.day)
    end = ".csv.gz" if gz else ".csv"
    rows = 0
    with ExitStack() as stack:
        if job.split == TEST:
            name = "test_set"
            logs = [
                stack.enter_context(CsvFile(folder / name / f"log_{part}_{day}_000000000000{end}"))
                for part in ("prehistory", "input")
            ]
            answers = stack.enter_context(ParquetFile(folder / "hidden_truth" / name / f"second_half_{day}.parquet"))
        else:
            name = f"training_set_{job.split}"
            path = folder / name / log_file(job.split, day)
            logs = [stack.enter_context(CsvFile(path.with_suffix(end)))]
        listeners = stack.enter_context(ParquetFile(folder / "hidden_truth" / name / f"listeners_{day}.parquet"))
        propensities = stack.enter_context(ParquetFile(folder / "hidden_truth" / name / f"propensities_{day}.parquet"))
        for sessions, table in job_chunks(world, behaviour, job, seed=world.seed):
            rows += table.num_rows
            listeners.write(listener_table(behaviour, sessions, table))
            propensities.write(propensity_table(sessions, table))
            if job.split == TEST:
                position, length = (table[name].to_numpy() for name in ("session_position", "session_length"))
                first = position <= length // 2
                logs[0].write(table.filter(pa.array(first)))
                logs[1].write(table.filter(pa.array(~first)).select(list(INPUT_COLUMNS)))
                answers.write(table.filter(pa.array(~first)))
            else:
                logs[0].write(table)
    return rows


LISTENER_TYPES = ("listener", "listen-then-skip", "skip-then-listen", "skipper")


def listener_table(behaviour: Behaviour, sessions: Sessions, table: pa.Table) -> pa.Table:
    """What is hidden of each session: the listener, and whether shuffle is uniformly random."""
    first = table["session_position"].to_numpy() == 1
    return pa.table(
        {
            "session_id": table["session_id"].filter(pa.array(first)),
            "listener_type": categories(sessions.listener_type, LISTENER_TYPES),
            "propensity": behaviour.propensities()[0][sessions.listener_propensity],
            "taste": sessions.listener_taste,
            "uniform_shuffle": sessions.uniform_shuffle,
        }
    )


def propensity_table(sessions: Sessions, table: pa.Table) -> pa.Table:
    """Plays that a uniformly random shuffle chose, with the probability of its choice given the plays before."""
    propensity = sessions.propensity[np.arange(MAX_LENGTH) < sessions.length[:, None]]
    chosen = pa.array(~np.isnan(propensity))
    columns = table.select(["session_id", "session_position", "track_id_clean"]).filter(chosen)
    return columns.append_column("propensity", pa.array(propensity).filter(chosen))


class CsvFile:
    """A CSV file that is written table by table: no quotes, `true`/`false`, gzipped if its name ends in .gz."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No file name and no time in the gzip header: the same data gives the same bytes.
        self.raw = open(path, "wb")  # noqa: SIM115
        self.file = GzipFile("", "wb", 6, self.raw, mtime=0) if path.suffix == ".gz" else self.raw
        self.options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        self.started = False

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`, after a header if they are the first."""
        if not self.started:
            self.file.write((",".join(table.column_names) + "\n").encode())
            self.started = True
        pyarrow.csv.write_csv(table, self.file, self.options)

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.raw.close()


class ParquetFile:
    """A Parquet file that is written table by table."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.writer: pyarrow.parquet.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`."""
        if self.writer is None:
            self.writer = pyarrow.parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        self.writer.write_table(table)

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()


def write_features(world: World, folder: Path, *, parts: int) -> None:
    """Write `tf_*.csv`, sorted by track id."""
    table = feature_table(world)
    bounds = np.linspace(0, len(table), parts + 1).astype(int)
    for part, (start, stop) in enumerate(pairwise(bounds)):
        with CsvFile(folder / f"tf_{part:012d}.csv") as file:
            file.write(table.slice(start, stop - start))


def write_mini(world: World, folder: Path) -> None:
    """Write the mini set: the first sessions of the first log, booleans spelt `True`/`False`, and their tracks."""
    path = min((folder / "training_set_0").iterdir())
    log = folder / "data_mini" / "training_set" / "log_mini.csv"
    log.parent.mkdir(parents=True)
    tracks, sessions = set(), set()
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as lines, open(log, "w") as mini:
        mini.write(next(lines))
        for line in lines:
            session_id, _, _, track_id, _ = line.split(",", 4)
            sessions.add(session_id)
            if len(sessions) > MINI_SESSIONS:
                break
            tracks.add(track_id)
            mini.write(line.replace("true", "True").replace("false", "False"))
    table = feature_table(world)
    kept = pyarrow.compute.is_in(table["track_id"], pa.array(sorted(tracks)))
    with CsvFile(folder / "data_mini" / "track_features" / "tf_mini.csv") as file:
        file.write(table.filter(kept))


def feature_table(world: World) -> pa.Table:
    """MSSD's 30 track columns, sorted by track id."""
    order = np.argsort(world.track_ids)
    columns = world.audio_features()
    arrays = [fixed_strings(world.track_ids[order])]
    for name in FEATURE_COLUMNS[1:]:
        values = columns[name][order]
        arrays.append(categories(values, ("minor", "major")) if name == "mode" else pa.array(values))
    return pa.table(arrays, names=list(FEATURE_COLUMNS))


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
