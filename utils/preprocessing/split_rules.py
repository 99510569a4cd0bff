"""Which sessions are kept, and which of them train, validate and test.

`docs/preprocessing.md` says what each protocol is for. No protocol depends on an engine's own hash, so a dataset is the
same wherever it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from utils.core.errors import UserError
from utils.data import schema
from utils.preprocessing.mssd import LogFile

ORIGINAL_TRAIN_SPLIT, ORIGINAL_TEST_SPLIT = 0, 9
ORIGINAL_DAYS = 60
ORIGINAL_MIN_COUNT = 150
DEFAULT_MIN_COUNT = 5
TRAIN, VALID, TEST = 0, 1, 2


class SplitRules(NamedTuple):
    """How sessions are chosen and split."""

    assign: Callable[[LogFile, pa.Array], np.ndarray]
    """(log, its session ids) -> uint8 (M,): TRAIN, VALID or TEST"""
    lengths: tuple[int, int]
    """Shortest and longest session kept."""
    min_count: int
    known_tracks_only: bool
    """Drop a session with a track outside the vocabulary, instead of coding the track as `vocab.UNK`."""
    count_all: bool
    """Count the plays of every row of the training files, not only of the training sessions."""


def right_length(rules: SplitRules, plays: np.ndarray) -> np.ndarray:
    """Which sessions, by their plays, have a length that the protocol keeps: bool (M,)."""
    shortest, longest = rules.lengths
    return (plays >= shortest) & (plays <= longest)


def counted_sessions(
    rules: SplitRules, log: LogFile, session_ids: pa.Array, plays: np.ndarray, complete: np.ndarray
) -> np.ndarray:
    """Which sessions of a log count for the vocabulary: bool (M,)."""
    training = rules.assign(log, session_ids) == TRAIN
    if rules.count_all:
        return np.full(len(training), training.any())
    return training & complete & right_length(rules, plays)


def session_share(session_ids: pa.Array) -> np.ndarray:
    """A number in [0, 1) for each session id, float64 (M,): the same on every machine and engine."""
    digests = [hashlib.blake2b(s.encode(), digest_size=8).digest() for s in session_ids.to_pylist()]
    return np.frombuffer(b"".join(digests), ">u8") / 2.0**64


def split_days(days: Sequence[str], *, valid_days: int | None, test_days: int | None) -> dict[str, int]:
    """TRAIN, VALID or TEST for each of `days`: the last ones test, those before validate.

    Raises:
        UserError: no day is left to train on.
    """
    ordered = sorted(set(days))
    tenth = max(1, round(len(ordered) / 10))
    n_valid = tenth if valid_days is None else valid_days
    n_test = tenth if test_days is None else test_days
    n_train = len(ordered) - n_valid - n_test
    if n_valid < 1 or n_test < 1:
        raise UserError("--valid_days and --test_days must be 1 or more")
    if n_train < 1:
        raise UserError(
            f"{len(ordered)} days (from {ordered[0]}) leave none to train on after {n_valid} for valid and {n_test} "
            "for test; add days, or split a single day with --protocol session"
        )
    return dict(zip(ordered, [TRAIN] * n_train + [VALID] * n_valid + [TEST] * n_test, strict=True))


def all_sessions(assign: Callable[[LogFile, pa.Array], np.ndarray], min_count: int | None) -> SplitRules:
    """Keep sessions of 10 to 20 plays; tracks below `min_count` (5) training plays count as new."""
    return SplitRules(
        assign,
        lengths=(schema.MIN_LENGTH, schema.MAX_LENGTH),
        min_count=DEFAULT_MIN_COUNT if min_count is None else min_count,
        known_tracks_only=False,
        count_all=False,
    )


def temporal(
    logs: Sequence[LogFile],
    *,
    min_count: int | None = None,
    valid_days: int | None = None,
    test_days: int | None = None,
) -> SplitRules:
    """`all_sessions`, split by day.

    Raises:
        UserError: the mini set, or too few days.
    """
    if logs[0].day == "":
        raise UserError(f"{logs[0].path} is a part of a single day: split it with --protocol session")
    split_of_day = split_days([log.day for log in logs], valid_days=valid_days, test_days=test_days)

    def assign(log: LogFile, session_ids: pa.Array) -> np.ndarray:
        return np.full(len(session_ids), split_of_day[log.day], np.uint8)

    return all_sessions(assign, min_count)


def by_session(*, valid_fraction: float, test_fraction: float, min_count: int | None = None) -> SplitRules:
    """`all_sessions`, split by a hash of the session id."""

    def assign(log: LogFile, session_ids: pa.Array) -> np.ndarray:
        share = session_share(session_ids)
        bounds = [valid_fraction, valid_fraction + test_fraction]
        return np.array([VALID, TEST, TRAIN], np.uint8)[np.digitize(share, bounds)]

    return all_sessions(assign, min_count)


def original(*, valid_fraction: float, min_count: int | None = None) -> SplitRules:
    """The original's sample, from the logs of `original_logs`: split 9 tests, split 0 trains and validates.

    A hash of the session id chooses what validates. Sessions have 20 plays, all of tracks with `min_count` (150) plays
    or more in split 0.
    """

    def assign(log: LogFile, session_ids: pa.Array) -> np.ndarray:
        if log.split == ORIGINAL_TEST_SPLIT:
            return np.full(len(session_ids), TEST, np.uint8)
        return np.where(session_share(session_ids) < valid_fraction, VALID, TRAIN).astype(np.uint8)

    return SplitRules(
        assign,
        lengths=(schema.MAX_LENGTH, schema.MAX_LENGTH),
        min_count=ORIGINAL_MIN_COUNT if min_count is None else min_count,
        known_tracks_only=True,
        count_all=True,
    )


def original_logs(logs: Sequence[LogFile]) -> list[LogFile]:
    """Split 0 and split 9 of the first 60 days.

    Raises:
        UserError: one of the two splits is not there.
    """
    days = sorted({log.day for log in logs})[:ORIGINAL_DAYS]
    chosen = [log for log in logs if log.split in {ORIGINAL_TRAIN_SPLIT, ORIGINAL_TEST_SPLIT} and log.day in days]
    missing = {ORIGINAL_TRAIN_SPLIT, ORIGINAL_TEST_SPLIT} - {log.split for log in chosen}
    if missing:
        raise UserError(
            f"--protocol original needs logs of split {min(missing)} (log_{min(missing)}_*.csv); there are none"
        )
    return chosen


def split_in_order(
    group: np.ndarray, continues: np.ndarray, *, valid_fraction: float, test_fraction: float
) -> np.ndarray:
    """TRAIN, VALID or TEST for each session, uint8 (M,): of each group, the last sessions test, those before validate.

    A part of a group's sessions is `fraction` of them, rounded, and at least one, unless the fraction is 0. A group too
    small for all three (two without test or valid) trains.

    Args:
        group: int (M,), from 0 on: which sessions are split together, such as those of a listener; in order of time.
        continues: bool (M,): whether a session is a piece of the one before it in its group; pieces stay together.
    """
    # A table of plays may have tens of millions of sessions, so there is no array of int64 that can be spared.
    size = np.bincount(group)
    order = np.argsort(group, kind="stable") if len(size) > 1 else slice(None)
    n_test, n_valid = (
        np.maximum(1, np.round(size * fraction)).astype(np.int64) if fraction else np.zeros_like(size)
        for fraction in (test_fraction, valid_fraction)
    )
    n_test = np.minimum(n_test, size)
    n_valid = np.minimum(n_valid, size - n_test)
    parts = np.stack([size - n_test - n_valid, n_valid, n_test], axis=1).ravel()
    found = np.repeat(np.tile(np.array([TRAIN, VALID, TEST], np.uint8), len(size)), parts)
    if continues.any():
        found = found[np.maximum.accumulate(np.where(continues[order], 0, np.arange(len(found))))]
    wanted = [TRAIN, *([VALID] if valid_fraction else []), *([TEST] if test_fraction else [])]
    starts = (np.cumsum(size) - size)[size > 0]  # a group may be empty
    whole = np.logical_and.reduce([np.logical_or.reduceat(found == part, starts) for part in wanted])
    found[np.repeat(~whole, size[size > 0])] = TRAIN
    split = np.empty_like(found)
    split[order] = found
    return split
