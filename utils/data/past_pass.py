"""The compiled pass over each listener's plays: plays in order of time in, statistics out (docs/past.md).

Importing this module imports numba, so it happens when a past is made, and not before. The pass is linear in the number
of plays. An *entity* is a track, an artist or an album; each has an integer of its own, -1 where unknown.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from utils.core.compiled import compiled

LISTENER_MEAN, LISTENER_PLAYS = 0.4, 20.0
LONG_DECAY, LONG_PRIOR = 0.995, 20.0
SHORT_DECAY, SHORT_PRIOR = 0.95, 5.0
ARTIST_PRIOR, ALBUM_PRIOR, TRACK_PRIOR = 4.0, 3.0, 2.0
LAST_DECAY, LAST_PRIOR = 0.7, 1.0
TRANSITION_PRIOR, HOUR_PRIOR, QUARTER_PRIOR, SESSION_PRIOR = 1.0, 10.0, 2.0, 2.0
LENGTH_SECONDS, LENGTH_PLAYS = 210.0, 5.0
HOUR = 3_600_000_000
DAY = 24 * HOUR
HALF_LIFE = 30.0 * DAY
LONGEST = 5.0 * 365 * 24
"""Hours since something that never was."""

# Columns of `State.numbers`, one row an entity.
ALL, LABELLED, SKIPS, MONTH_LABELLED, MONTH_SKIPS, MONTH_TIME, LAST_PLAY, LAST_SKIP, STREAK, WEEK, MONTH = range(11)
# Of tracks only.
RECENT_LABELLED, RECENT_SKIPS, HEARD, SKIPPED_AT, SECONDS, QUARTERS = 11, 12, 13, 14, 15, 16
N_NUMBERS = 24

# Columns of `State.listener`.
(N, S, LONG_N, LONG_S, SHORT_N, SHORT_S, SESSION_N, SESSION_S, HEARD_N, HEARD_SECONDS, LAST_TIME) = range(11)
# Columns of `State.cursor`: next play to be learnt, first plays inside 7 and 30 days, entities, listener, last session.
NEXT, WEEK_AT, MONTH_AT, USED, WHO, SESSION = range(6)


class Group(NamedTuple):
    """Sessions of some listeners, all of each, one listener after the other in order of time. N plays, M sessions."""

    offsets: np.ndarray
    """int64 (M + 1,)"""
    starts: np.ndarray
    """int64 (M,): start of each session, microseconds; its rank where there are no times"""
    listeners: np.ndarray
    """int64 (M,): 0, 1, ..."""
    entities: np.ndarray
    """int32 (N, 3): track, artist, album"""
    outcomes: np.ndarray
    """int8 (N,): 1 skipped, 0 not, -1 unknown"""
    times: np.ndarray
    """int64 (N,): start of each play"""
    seconds: np.ndarray
    """float32 (N,): NaN where unknown"""
    sessions: np.ndarray
    """int64 (N,): session of each play"""
    known: np.ndarray
    """int64 (N,): when each play's outcome is known"""
    order: np.ndarray
    """int64 (L,): plays that are learnt from, by listener and the time at which they are known"""
    bounds: np.ndarray
    """int64 (listeners + 1,): where each listener's plays begin in `order`"""


class State(NamedTuple):
    """What is known of one listener at one moment."""

    slot_of: np.ndarray
    """int32 (entities,): row of `numbers`, -1 if never played"""
    entity_of: np.ndarray
    """int32 (slots,)"""
    numbers: np.ndarray
    """float64 (slots, N_NUMBERS)"""
    pairs: np.ndarray
    """int64 (2^k,): hash table of (previous track, track); -1 is free"""
    pair_counts: np.ndarray
    """float64 (2^k, 2): labelled plays, skips"""
    hours: np.ndarray
    """float64 (24, 2): labelled plays, skips"""
    listener: np.ndarray
    """float64 (11,)"""
    cursor: np.ndarray
    """int64 (6,)"""


def new_state(group: Group, n_entities: int, slot_of: np.ndarray) -> State:
    """Room for the listener of a group that has most plays; nobody is known yet."""
    plays = int(np.bincount(group.listeners, np.diff(group.offsets)).max())
    slots, size = min(3 * plays, n_entities) + 1, table_size(plays)
    return State(
        slot_of,
        np.empty(slots, np.int32),
        np.empty((slots, N_NUMBERS)),
        np.empty(size, np.int64),
        np.empty((size, 2)),
        np.zeros((24, 2)),
        np.zeros(11),
        np.array([0, 0, 0, 0, -1, -1]),
    )


@compiled
def table_size(plays: int) -> int:
    """A power of two, at least twice the number of plays."""
    size = 4
    while size < 2 * plays:
        size *= 2
    return size


@compiled
def find_pair(pairs: Any, mask: int, previous: int, track: int) -> Any:
    """Where a transition stands in the hash table, or the free place where it belongs."""
    key = (previous + 1) * 4294967296 + track
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    at = np.int64(mixed >> np.uint64(32)) & mask
    while pairs[at] != -1 and pairs[at] != key:
        at = (at + 1) & mask
    return at


@compiled
def outcome_times(group: Any) -> None:
    """Fill `known`: the end of a play, or its start where its length is unknown; never before an earlier play's."""
    for session in range(len(group.starts)):
        latest = group.starts[session]
        for i in range(group.offsets[session], group.offsets[session + 1]):
            end = group.times[i]
            if group.seconds[i] > 0:
                end += np.int64(group.seconds[i] * 1e6)
            latest = max(latest, end)
            group.known[i] = latest


@compiled
def hour_of(time: int) -> int:
    """Hour of the day, UTC."""
    return (time // HOUR) % 24


@compiled
def decayed(hours: float) -> float:
    """What is left of a unit after some microseconds, with the half-life of 30 days."""
    return 2.0 ** (-hours / HALF_LIFE)


@compiled
def forget(state: Any, plays: int) -> None:
    """Make the state that of a listener of whom nothing is known."""
    for slot in range(state.cursor[USED]):
        state.slot_of[state.entity_of[slot]] = -1
    size = table_size(plays)
    state.pairs[:size] = -1
    state.pair_counts[:size] = 0.0
    state.hours[:] = 0.0
    state.listener[:] = 0.0
    state.cursor[USED], state.cursor[SESSION] = 0, -1


@compiled
def learn(group: Any, state: Any, i: int, mask: int) -> None:
    """Add play `i` to what is known."""
    label, known, who, session = group.outcomes[i], group.known[i], state.listener, group.sessions[i]
    if session != state.cursor[SESSION]:
        state.cursor[SESSION] = session
        who[SESSION_N] = who[SESSION_S] = 0.0
    who[LAST_TIME] = known
    if label >= 0:
        who[N] += 1.0
        who[S] += label
        who[LONG_N] = LONG_DECAY * who[LONG_N] + 1.0
        who[LONG_S] = LONG_DECAY * who[LONG_S] + label
        who[SHORT_N] = SHORT_DECAY * who[SHORT_N] + 1.0
        who[SHORT_S] = SHORT_DECAY * who[SHORT_S] + label
        who[SESSION_N] += 1.0
        who[SESSION_S] += label
        hour = hour_of(group.times[i])
        state.hours[hour, 0] += 1.0
        state.hours[hour, 1] += label
    for kind in range(3):
        entity = group.entities[i, kind]
        if entity < 0:
            continue
        slot = state.slot_of[entity]
        if slot < 0:
            slot = state.cursor[USED]
            state.cursor[USED] += 1
            state.slot_of[entity], state.entity_of[slot] = slot, entity
            state.numbers[slot] = 0.0
            state.numbers[slot, MONTH_TIME] = known
        row = state.numbers[slot]
        row[ALL] += 1.0
        row[WEEK] += 1.0
        row[MONTH] += 1.0
        row[LAST_PLAY] = known
        if label >= 0:
            left = decayed(known - row[MONTH_TIME])
            row[MONTH_TIME] = known
            row[MONTH_LABELLED] = left * row[MONTH_LABELLED] + 1.0
            row[MONTH_SKIPS] = left * row[MONTH_SKIPS] + label
            row[LABELLED] += 1.0
            row[SKIPS] += label
            if label == 1:
                row[LAST_SKIP] = known
            sign = 1.0 if label == 1 else -1.0
            row[STREAK] = sign if row[STREAK] * sign < 0 else row[STREAK] + sign
    track, seconds = group.entities[i, 0], group.seconds[i]
    if label == 0 and seconds > 0:
        who[HEARD_N] += 1.0
        who[HEARD_SECONDS] += seconds
    if track < 0:
        return
    row = state.numbers[state.slot_of[track]]
    if seconds >= 0:
        row[SECONDS] = seconds + 1e-9  # above 0: a length is known
        if label == 0:
            row[HEARD] = max(row[HEARD], seconds)
        else:
            row[SKIPPED_AT] = max(row[SKIPPED_AT], seconds)
    if label >= 0:
        row[RECENT_LABELLED] = LAST_DECAY * row[RECENT_LABELLED] + 1.0
        row[RECENT_SKIPS] = LAST_DECAY * row[RECENT_SKIPS] + label
        quarter = QUARTERS + 2 * (hour_of(group.times[i]) // 6)
        row[quarter] += 1.0
        row[quarter + 1] += label
        first = i == group.offsets[session]
        previous = -1 if first else group.entities[i - 1, 0]
        if first or previous >= 0:
            at = find_pair(state.pairs, mask, previous, track)
            state.pairs[at] = (previous + 1) * 4294967296 + track
            state.pair_counts[at, 0] += 1.0
            state.pair_counts[at, 1] += label


@compiled
def expire(group: Any, state: Any, column: int, which: int, before: int) -> None:
    """Take plays that were known by `before` out of a count of the last days."""
    while state.cursor[which] < state.cursor[NEXT]:
        i = group.order[state.cursor[which]]
        if group.known[i] > before:
            return
        for kind in range(3):
            entity = group.entities[i, kind]
            if entity >= 0:
                state.numbers[state.slot_of[entity], column] -= 1.0
        state.cursor[which] += 1


@compiled
def logit(rate: float) -> float:
    """log(p / (1 - p))"""
    return math.log(rate / (1.0 - rate))


@compiled
def shrunk(skips: float, labelled: float, prior: float, weight: float) -> float:
    """A rate of few plays, drawn towards `prior` as if it had been seen in `weight` plays."""
    return (skips + weight * prior) / (labelled + weight)


@compiled
def hours_since(now: int, then: float) -> float:
    """log(1 + hours)"""
    return math.log1p(min((now - then) / HOUR, LONGEST))


@compiled
def personal(group: Any, state: Any, first: int, last: int, out: Any) -> None:
    """Statistics of all plays of sessions `first` to `last` of a group: the first 42 columns of `out`, float32.

    A session's statistics are made of the plays in `order` whose outcome is known by its start, of sessions that
    started before it. Calls follow each other in order of sessions: the state remembers where the last one ended.
    """
    cursor, who = state.cursor, state.listener
    counts, nothing = np.empty(2), np.zeros(N_NUMBERS)
    rates, month = np.empty(3), np.empty(3)
    base = group.offsets[first]
    mask = 0
    for session in range(first, last):
        listener, now = group.listeners[session], group.starts[session]
        begin, end = group.bounds[listener], group.bounds[listener + 1]
        mask = table_size(end - begin) - 1
        if listener != cursor[WHO]:
            forget(state, end - begin)
            cursor[WHO] = listener
            cursor[NEXT] = cursor[WEEK_AT] = cursor[MONTH_AT] = begin
        while cursor[NEXT] < end:
            i = group.order[cursor[NEXT]]
            if group.known[i] > now or group.starts[group.sessions[i]] >= now:
                break
            learn(group, state, i, mask)
            cursor[NEXT] += 1
        expire(group, state, WEEK, WEEK_AT, now - 7 * DAY)
        expire(group, state, MONTH, MONTH_AT, now - 30 * DAY)

        p = shrunk(who[S], who[N], LISTENER_MEAN, LISTENER_PLAYS)
        p_long = shrunk(who[LONG_S], who[LONG_N], p, LONG_PRIOR)
        p_short = shrunk(who[SHORT_S], who[SHORT_N], p_long, SHORT_PRIOR)
        hour = hour_of(now)
        counts[:] = 0.0
        for around in range(-1, 2):
            counts += state.hours[(hour + around) % 24]
        p_hour = shrunk(counts[1], counts[0], p_long, HOUR_PRIOR)
        p_session = shrunk(who[SESSION_S], who[SESSION_N], p_long, SESSION_PRIOR)
        since = hours_since(now, who[LAST_TIME]) if cursor[NEXT] > begin else math.log1p(LONGEST)
        typical = (who[HEARD_SECONDS] + LENGTH_PLAYS * LENGTH_SECONDS) / (who[HEARD_N] + LENGTH_PLAYS)
        for i in range(group.offsets[session], group.offsets[session + 1]):
            line = out[i - base]
            above, above_month = p_long, p_long
            for kind in (1, 2, 0):  # artist, album, track: each is drawn towards the one before
                entity = group.entities[i, kind]
                slot = state.slot_of[entity] if entity >= 0 else -1
                row = state.numbers[slot] if slot >= 0 else nothing
                weight = ARTIST_PRIOR if kind == 1 else (ALBUM_PRIOR if kind == 2 else TRACK_PRIOR)
                left = decayed(now - row[MONTH_TIME]) if slot >= 0 else 0.0
                above = shrunk(row[SKIPS], row[LABELLED], above, weight)
                above_month = shrunk(left * row[MONTH_SKIPS], left * row[MONTH_LABELLED], above_month, weight)
                rates[kind], month[kind] = above, above_month
                at = 14 + 8 * kind
                line[at] = math.log1p(row[ALL])
                line[at + 1] = math.log1p(row[LABELLED])
                line[at + 2] = math.log1p(row[WEEK])
                line[at + 3] = math.log1p(row[MONTH])
                line[at + 4] = hours_since(now, row[LAST_PLAY]) if row[ALL] > 0 else math.log1p(LONGEST)
                line[at + 5] = hours_since(now, row[LAST_SKIP]) if row[SKIPS] > 0 else math.log1p(LONGEST)
                line[at + 6] = math.copysign(math.log1p(abs(row[STREAK])), row[STREAK])
                line[at + 7] = 0.0 if row[ALL] > 0 else 1.0
            track = group.entities[i, 0]
            slot = state.slot_of[track] if track >= 0 else -1
            row = state.numbers[slot] if slot >= 0 else nothing
            counts[:] = 0.0
            opening = i == group.offsets[session]
            if track >= 0 and (opening or group.entities[i - 1, 0] >= 0):
                at = find_pair(state.pairs, mask, -1 if opening else group.entities[i - 1, 0], track)
                counts[:] = state.pair_counts[at]
            quarter = QUARTERS + 2 * (hour // 6)
            r = rates[0]
            line[0], line[1], line[2] = logit(p), logit(p_long), logit(p_short)
            line[3], line[4], line[5] = logit(rates[1]), logit(rates[2]), logit(r)
            line[6], line[7], line[8] = logit(month[1]), logit(month[2]), logit(month[0])
            line[9] = logit(shrunk(row[RECENT_SKIPS], row[RECENT_LABELLED], r, LAST_PRIOR))
            line[10] = logit(shrunk(counts[1], counts[0], r, TRANSITION_PRIOR))
            line[11] = logit(p_hour)
            line[12] = logit(shrunk(row[quarter + 1], row[quarter], r, QUARTER_PRIOR))
            line[13] = logit(p_session)
            length = row[HEARD] if row[HEARD] > 0 else max(typical, row[SKIPPED_AT])
            line[38] = min(row[SECONDS] / length, 1.0) if row[SECONDS] > 0 else np.nan
            line[39] = math.log(length)
            line[40] = math.log1p(counts[0])
            line[41] = since


@compiled
def add_moments(numbers: Any, wanted: Any, sums: Any) -> None:
    """Add the wanted rows, bool (N,), of float32 (N, C) to `sums`, float64 (3, C): how many are known, sum, squares."""
    for i in range(len(numbers)):
        if wanted[i]:
            for j in range(numbers.shape[1]):
                value = np.float64(numbers[i, j])
                if not math.isnan(value):
                    sums[0, j] += 1.0
                    sums[1, j] += value
                    sums[2, j] += value * value


@compiled
def standardise(numbers: Any, mean: Any, deviation: Any, most: float) -> None:
    """Standardise float32 (N, C) in place, clip at plus and minus `most`; 0 where there is no number."""
    for i in range(len(numbers)):
        for j in range(numbers.shape[1]):
            value = (numbers[i, j] - mean[j]) / deviation[j]
            numbers[i, j] = 0.0 if math.isnan(value) else min(max(value, -most), most)


@compiled
def scatter(rows: Any, lengths: Any, places: Any, wanted: Any, out: Any) -> None:
    """Copy the rows of wanted sessions, which follow each other in `rows`, to their places in `out`, both (..., C)."""
    at = 0
    for session in range(len(lengths)):
        if wanted[session]:
            for i in range(lengths[session]):
                for j in range(rows.shape[1]):
                    out[places[session] + i, j] = rows[at + i, j]
        at += lengths[session]
