"""Which sessions of a table of plays train, validate and test: by time, within each listener, or as a column says."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from utils.core.errors import UserError
from utils.data.schema import SPLITS
from utils.preprocessing.options import Config
from utils.preprocessing.session_tables import Sessions
from utils.preprocessing.split_rules import TEST, TRAIN, VALID, split_in_order


class Splits(NamedTuple):
    """M sessions."""

    split: np.ndarray
    """uint8 (M,): place in `SPLITS`"""
    training_only: np.ndarray | None
    """bool (M,): sessions of listeners who have too few of them to be split; None if not split by listener"""
    empty: list[str]
    """Splits that are to have no sessions, since their fraction is 0."""


def choose_splits(config: Config, sessions: Sessions, *, per_listener: bool) -> Splits:
    """
    Args:
        sessions: see `play_tables.Arranged`.
        per_listener: split within each listener if `config` does not say.

    Raises:
        UserError: too few sessions, a split that the official ones lack, options that would be ignored.
    """
    n = len(sessions.lengths)
    split = np.full(n, TRAIN, np.uint8) if sessions.split is None else sessions.split.copy()
    asked = {VALID: config.valid_fraction, TEST: config.test_fraction}
    there = {part for part in (TRAIN, VALID, TEST) if (split == part).any()}
    if TRAIN not in there:
        raise UserError("no session that is kept is in the official split train (--plays_columns.split)")
    for part, fraction in asked.items():
        name = SPLITS[part]
        if part in there and fraction != default_of(f"{name}_fraction"):
            raise UserError(f"--{name}_fraction means nothing where --plays_columns.split gives a {name} split")
    fractions = {part: 0.0 if part in there else fraction for part, fraction in asked.items()}
    empty = [SPLITS[part] for part, fraction in asked.items() if part not in there and not fraction]
    if not any(fractions.values()):
        if config.split_by is not None:
            raise UserError("--split_by means nothing here: no split is cut off by time")
        return Splits(split, None, empty)

    by_listener = per_listener if config.split_by is None else config.split_by == "listener"
    mine = np.flatnonzero(split == TRAIN)
    group = np.zeros(len(mine), np.int32)
    if by_listener:
        if sessions.listener is None:
            raise UserError("--split_by listener needs --plays_columns.user: who listens")
        group = sessions.listener[mine]
    cut = split_in_order(group, ~sessions.begins[mine], valid_fraction=fractions[VALID], test_fraction=fractions[TEST])
    split[mine] = cut
    if (cut == TRAIN).all():
        parts = [SPLITS[part] for part, fraction in {TRAIN: 1.0, **fractions}.items() if fraction]
        who = "no listener has" if by_listener else f"{len(mine)} sessions are too few"
        what = f"sessions enough to {', '.join(parts)}" if by_listener else f"for {', '.join(parts)}"
        raise UserError(f"{who} {what}; add plays or change the fractions")
    if not by_listener:
        return Splits(split, None, empty)
    splits = np.zeros(group.max() + 1, bool)
    splits[group[cut != TRAIN]] = True
    training_only = np.zeros(n, bool)
    training_only[mine] = ~splits[group]
    return Splits(split, training_only, empty)


def default_of(option: str) -> float:
    """The default of an option of `Config`."""
    return next(item.default for item in dataclasses.fields(Config) if item.name == option)  # type: ignore[return-value]
