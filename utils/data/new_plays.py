"""A track's first plays in training, which may stand as new there, as new tracks do in test."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from utils.data.vocab import N_SPECIAL

PLAYS_AT_ONCE = 4_000_000
"""Plays that are ranked at a time."""


def first_plays(tracks: np.ndarray, n: int, *, n_ids: int) -> np.ndarray:
    """Which plays are among the first n of their track, in the order of the array: bool (n_events,).

    Plays of special ids never are. Beside the result, only `PLAYS_AT_ONCE` plays are in memory at a time.

    Args:
        tracks: int32 (n_events,).
        n: how many plays of each track.
        n_ids: V.
    """
    first = np.zeros(len(tracks), bool)
    left = np.full(n_ids, n, np.int64)  # of each track's first plays
    left[:N_SPECIAL] = 0
    starts = range(0, len(tracks), PLAYS_AT_ONCE)
    for start in tqdm(starts, desc="first plays", unit="part", leave=False, delay=2):
        part = np.asarray(tracks[start : start + PLAYS_AT_ONCE])
        places = np.flatnonzero(left[part] > 0)  # few of them, once most tracks have been played
        order = places[np.argsort(part[places], kind="stable")]
        ids, begin, plays = np.unique(part[order], return_index=True, return_counts=True)
        number = np.arange(len(order)) - np.repeat(begin, plays)  # 0, 1, ... among the part's plays of the track
        first[start + order[number < left[part[order]]]] = True
        left[ids] -= np.minimum(left[ids], plays)
    return first
