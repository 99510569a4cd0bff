"""From decoding options to functions that continue sessions, and the tracks that may be predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from model.catalogue import Catalogue
from utils.core.errors import UserError
from utils.data.batch import History
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL

Continue = Callable[[History, int], Tensor]
"""Continues sessions by so many tracks: int64 (B, length)."""


class Decoding(Protocol):
    """A config that chooses how sessions are continued."""

    def allowed_tracks(self, dataset: Dataset, data: DataConfig) -> Tensor | None:
        """The ids (A,) of the only tracks that may be predicted in sessions cut by `data`; nothing if all may be."""

    def continuation(self, model: Any, catalogue: Catalogue) -> Continue:
        """The function that it means, for a model that can be decoded so."""


def read_allow_list(file: str | None, dataset: Dataset, *, option: str) -> Tensor | None:
    """The ids (A,) of the tracks in a text file, one track id of the source a line; empty lines are passed over.

    Args:
        file: where the list is; nothing if there is none.
        dataset: knows the track ids.
        option: which option named the file.

    Raises:
        UserError: there is no such file, no track in it, or one that the dataset does not know.
    """
    if file is None:
        return None
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: cannot read {path} as text: {error}") from error
    names = pd.Index(dataset.track_names[N_SPECIAL:])
    tracks = pd.Series(lines, index=range(1, len(lines) + 1), dtype=object).str.strip()
    tracks = tracks[tracks != ""]
    if tracks.empty:
        raise UserError(f"{path} holds no track; write one track id a line, or leave out {option}")
    places = names.get_indexer(tracks)
    if (places < 0).any():
        unknown = tracks[places < 0]
        others = f" (and {len(unknown) - 1:,} other lines)" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}, line {unknown.index[0]}{others}: {dataset.folder} has no track {unknown.iloc[0]!r}; take the "
            f"line out, or see the track ids in {dataset.folder / 'tracks.parquet'}"
        )
    return torch.from_numpy(np.unique(places) + N_SPECIAL)
