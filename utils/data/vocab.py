"""Track ids: the special tokens that every model, array and metric agrees on, and the vocabulary of a dataset.

Tracks have ids from `N_SPECIAL` on, in descending order of their plays in the training split (ties by track id),
so that popularity-based samplers and adaptive softmaxes can work on the id itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

PAD = 0
"""Fills a batch where a session has no play."""
MASK = 1
"""Hides a track that a model has to find (BERT)."""
SKIP = 2
"""Stands for any skipped track of the history when `skip_encoding` is `token`."""
UNK = 3
"""A new track: one that is too rare, or was never seen in training."""
BOS = 4
"""Starts a sequence that is decoded step by step."""
N_SPECIAL = 5


def vocabulary_hash(track_ids: Iterable[str]) -> str:
    """SHA-256 over the track ids in id order: two datasets with the same hash share their embedding rows."""
    digest = hashlib.sha256()
    for track_id in track_ids:
        digest.update(str(track_id).encode())
        digest.update(b"\n")
    return digest.hexdigest()
