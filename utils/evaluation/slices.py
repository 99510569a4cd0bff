"""Parts of a split that are scored separately: sessions by label, and targets by training plays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import SessionArrays, pair_keys
from utils.data.vocab import N_SPECIAL, UNK

MOST_LISTENERS = 20
"""With more, there is no slice for each."""
PLAYS = (0, 1, 5, 50, 500)
"""The training plays at which each group of `by_plays` begins."""
OUTSIDE = "unknown"
"""Key of the group of `by_plays` outside the vocabulary: people are shown "new tracks"."""
Labels: TypeAlias = "pd.Categorical[str]"
"""A label of each example or session, one byte each."""


def session_slices(loader: SessionLoader, train: SessionArrays | None = None) -> dict[str, Labels]:
    """Labels of each example for sliced scores: length, context, shuffle, premium, skipper type, listener, whether the
    session has new tracks, first transition.

    Args:
        loader: an ordered loader of halves.
        train: training split; if given, the slice `continuation` says whether the pair (last track of the history,
            first target) occurs anywhere in training.

    Returns:
        name -> label of each example (N,). Slices that the source does not know are left out.
    """
    arrays = loader.arrays
    lengths = arrays.lengths[loader.session]
    longest = schema.MAX_LENGTH
    names = [*(f"{n:02d}" for n in range(longest + 1)), f"over {longest}"]
    slices = {"length": _labelled(np.minimum(lengths, longest + 1), names)}
    columns = arrays.columns_of_sessions("context_type", "shuffle", "premium")
    codes = {name: column[loader.session] for name, column in columns.items()}
    for name, code in codes.items():
        if code.any():
            labels = schema.CONTEXT_TYPES if name == "context_type" else ("no", "yes")
            slices[name] = _labelled(code, ["unknown", *labels])
    start = arrays.offsets[loader.session]
    cut = start + lengths // 2
    if (arrays.skips[start] != schema.SKIP_UNKNOWN).any():
        slices["history"] = _skipper_type(arrays, start, cut)
    slices |= _listeners(arrays, loader.session)
    if arrays.full_ids is not None:
        new = np.add.reduceat(arrays.tracks == UNK, arrays.offsets[:-1], dtype=np.int64)[loader.session]
        slices["new_tracks"] = _labelled((new > 0) + (2 * new >= lengths).astype(int), ["none", "some", "half or more"])
    if train is not None:
        seen = train.has_pairs(pair_keys(arrays.tracks[cut - 1], arrays.tracks[cut]))
        slices["continuation"] = _labelled(seen, ["unseen", "seen in training"])
    return slices


def _labelled(codes: np.ndarray, names: Sequence[str]) -> Labels:
    """The label of each code, a place in `names`."""
    return pd.Categorical.from_codes(codes.astype(np.int8), pd.Index(names))


def _listeners(arrays: SessionArrays, session: np.ndarray) -> dict[str, Labels]:
    """The slice `listener`, if there are two listeners or more, and not too many."""
    users = arrays.users
    if users is None or users.null_count:
        return {}
    codes = users.indices.to_numpy()[session]
    there, place = np.unique(codes, return_inverse=True)
    if not 2 <= len(there) <= MOST_LISTENERS:
        return {}
    names = users.dictionary.take(pa.array(there)).to_pylist()
    order = np.argsort(names)
    return {"listener": _labelled(np.argsort(order)[place], [names[i] for i in order])}


def targets_by_plays(tracks: np.ndarray, known: np.ndarray, train_plays: np.ndarray) -> dict[str, np.ndarray]:
    """Which targets are of tracks that were never, seldom or often played in training.

    Args:
        tracks: int (N, T).
        known: bool (N, T), targets that count.
        train_plays: int (V,), training plays of each id.

    Returns:
        "0", "1 to 4", ..., and `OUTSIDE` for tracks outside the vocabulary -> bool (N, T). Groups without targets are
        left out.
    """
    ends = [f" to {after - 1}" if after > first + 1 else "" for first, after in pairwise(PLAYS)]
    names = [OUTSIDE, *(f"{first}{end}" for first, end in zip(PLAYS, [*ends, " or more"], strict=True))]
    group_of_id = np.digitize(train_plays, PLAYS).astype(np.uint8)
    group_of_id[:N_SPECIAL] = 0
    group = group_of_id[tracks]
    groups = {name: known & (group == i) for i, name in enumerate(names)}
    return {name: mine for name, mine in groups.items() if mine.any()}


def _skipper_type(arrays: SessionArrays, start: np.ndarray, cut: np.ndarray) -> Labels:
    """The four types of Meggetto et al. (CIKM 2021), read off the first half by thresholds instead of clusters."""
    length = cut - start
    first = np.cumsum(length) - length
    skips = arrays.skips[np.repeat(start - first, length) + np.arange(length.sum())]  # of the first halves
    skipped = np.concatenate([[0], np.cumsum(schema.is_skip(skips))])
    middle = length // 2
    early = (skipped[first + middle] - skipped[first]) / np.maximum(middle, 1)
    late = (skipped[first + length] - skipped[first + middle]) / np.maximum(length - middle, 1)
    names = ["listener", "listen, then skip", "skip, then listen", "skipper"]
    return _labelled(2 * (early >= 0.5) + (late >= 0.5), names)
