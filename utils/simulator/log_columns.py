"""What the log says of simulated plays besides tracks and skips: reasons, pauses, seeks, the clock; and MSSD's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from utils.data.schema import (
    CONTEXT_TYPES,
    MAX_LENGTH,
    MIN_LENGTH,
    REASONS_END,
    REASONS_START,
    SESSION_COLUMNS,
    SKIP_NO_FLAG,
    SKIP_PLAYED,
    skip_flags,
)
from utils.simulator.sessions import BACK, JUMP, RESTART, SWITCH, SimulatedSessions, choose
from utils.simulator.world import World

SECONDS_PLAYED = np.array([60.0, 220.0, 120.0, 20.0, 6.0])
"""Typical seconds of a play by level (invented)."""
PREMIUM_CHANGE_SHARE = 1.3e-4
GARBAGE_DATE_SHARE = 2e-5
FIRST_DAY = "2018-07-15"
GARBAGE_DATES = (-17728, 5064)
"""Days from FIRST_DAY to 1969-12-31 and to 2032-05-26, the outermost dates of the real logs."""


class LogColumns(NamedTuple):
    """What the log says besides ids, tracks and levels; (S, 20) each."""

    reason_start: NDArray  # index in REASONS_START
    reason_end: NDArray  # index in REASONS_END
    no_pause: NDArray
    short_pause: NDArray
    long_pause: NDArray
    seek_forward: NDArray
    seek_back: NDArray
    second: NDArray  # of the first day; 86,400 and more is the next day


def draw_log(rng: np.random.Generator, sessions: SimulatedSessions) -> LogColumns:
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


def _draw_reason_end(rng: np.random.Generator, sessions: SimulatedSessions) -> NDArray[np.int8]:
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
    # The start reason of a plain next play, by the end reason of the play before.
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
    world: World, rng: np.random.Generator, sessions: SimulatedSessions, log: LogColumns, session_ids: NDArray, day: int
) -> pa.Table:
    """The rows of the sessions with MSSD's 21 columns, in file order."""
    played = np.arange(MAX_LENGTH) < sessions.length[:, None]
    flat = lambda values: values[played]  # noqa: E731
    per_session = lambda values: np.repeat(values, sessions.length)  # noqa: E731
    level = flat(sessions.level)
    flags = skip_flags(level)
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
        *(flags[name] for name in ("skip_1", "skip_2", "skip_3", "not_skipped")),
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
