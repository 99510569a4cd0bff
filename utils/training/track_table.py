"""A model's track table: which tracks have rows of their own, and the vectors that it starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from model.embeddings import TrackEmbedding
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL
from utils.track_vectors.files import load_vectors
from utils.training.options import TableConfig


def table_rows(config: TableConfig, dataset: Dataset, *, use_ids: bool = True) -> tuple[int, int]:
    """`n_own` and `n_shared` of a model's `TrackEmbedding`: ids with rows of their own, and rows that the others share.

    Raises:
        UserError: no track is as rare as `config` says, or the model has no such table (`use_ids` false).
    """
    if not use_ids and config != TableConfig():
        raise UserError("model.use_ids is false, so there is no table of tracks; leave out the options of --table")
    if not config.min_plays:
        return dataset.n_ids, 0
    n_own = N_SPECIAL + int((dataset.train_plays[N_SPECIAL:] >= config.min_plays).sum())  # most played first
    if n_own == dataset.n_ids:
        raise UserError(
            f"table.min_plays is {config.min_plays}, and every track of {dataset.folder} has as many training plays; "
            "leave it out, or run the preprocessing with a lower --min_count"
        )
    return n_own, config.shared_rows


def load_table(tracks: TrackEmbedding, vectors: str, dataset: Dataset, *, width: str = "model.d_model") -> None:
    """Copy the vectors of a file, if there is one, into a table; special ids and shared rows keep what they have.

    Call it after the model is initialised, or the initialisation overwrites the vectors (the original's mistake).

    Args:
        tracks: holds the model's table.
        vectors: the file; empty for none.
        dataset: whose tracks they are.
        width: the option that sets the table's width.

    Raises:
        UserError: see `load_vectors`, or they have another width than the table.
    """
    if not vectors:
        return
    loaded = load_vectors(Path(vectors), vocabulary_hash=dataset.vocabulary_hash).vectors
    own = slice(N_SPECIAL, tracks.n_own)
    d_model = tracks.table.embedding_dim
    if loaded.shape[1] != d_model:
        raise UserError(
            f"{vectors} has vectors of {loaded.shape[1]} dimensions, the model's tracks have {d_model}; "
            f"add --{width} {loaded.shape[1]}"
        )
    with torch.no_grad():
        tracks.table.weight[own] = loaded[own]
