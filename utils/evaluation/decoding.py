"""From decoding options to functions that continue sessions, and the tracks that may be predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.decoding import SeqModel, beam_search, greedy, sample
from model.filling import SlotModel, fill
from utils.core.errors import UserError
from utils.data.batch import History
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL
from utils.evaluation.options import DecodingConfig, FillingConfig

Continue = Callable[[History, int, Tensor], Tensor]
"""Continues sessions by a number of tracks: int64 (B, length). The third argument, int64 (B,), is the row of each
session in its loader, of which its random numbers are made."""


Decoding = Callable[[Any, Catalogue], Continue]
"""From a model and a catalogue of tracks to a `Continue`."""


def step_by_step(config: DecodingConfig) -> Decoding:
    """Continue track by track, with `model/decoding.py`; for models that have `begin` and `step`."""

    def decoding(model: SeqModel, catalogue: Catalogue) -> Continue:
        common: dict[str, Any] = {"catalogue": catalogue, "no_repeat": config.no_repeat}
        common |= {"top_p": config.top_p, "temperature": config.temperature} if config.method == "sample" else {}

        def continued(history: History, length: int, rows: Tensor) -> Tensor:
            if config.method == "beam":
                return beam_search(model, history, length, width=config.beam_width, **common).tracks[:, 0]
            if config.method == "sample":
                return sample(model, history, length, seed=config.seed, rows=rows, **common)
            return greedy(model, history, length, **common)

        return continued

    return decoding


def mask_filling(config: FillingConfig) -> Decoding:
    """Fill in masks behind the history, with `model/filling.py`; for a BERT."""

    def decoding(model: SlotModel, catalogue: Catalogue) -> Continue:
        def continued(history: History, length: int, rows: Tensor) -> Tensor:
            return fill(model, history, length, order=config.order, passes=config.passes, catalogue=catalogue)

        return continued

    return decoding


def allowed_tracks(config: DecodingConfig | FillingConfig, dataset: Dataset, data: DataConfig) -> Tensor | None:
    """The ids (A,) of the only tracks that may be predicted in sessions cut by `data`; None if all may be.

    Raises:
        UserError: see `read_allow_list`; or `no_repeat` may leave no track for the last target.
    """
    if isinstance(config, FillingConfig):
        return read_allow_list(config.allow_list, dataset, option="filling.allow_list")
    allowed = read_allow_list(config.allow_list, dataset, option="decoding.allow_list")
    n_tracks = dataset.n_ids - N_SPECIAL if allowed is None else len(allowed)
    if n_tracks <= min(config.no_repeat, data.history_size + data.target_size - 1):
        raise UserError(
            f"decoding.no_repeat is {config.no_repeat}, but only {n_tracks} tracks may be predicted; make it smaller"
        )
    return allowed


def read_allow_list(file: str | None, dataset: Dataset, *, option: str) -> Tensor | None:
    """The ids (A,) of the tracks in a text file, which has one track id of the source a line; empty lines do not count.

    Args:
        file: path of the list; None gives None.
        dataset: knows the track ids.
        option: the option that named the file.

    Raises:
        UserError: there is no such file, no track in it, or one that the dataset does not know.
    """
    if file is None:
        return None
    path = Path(file)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # no other line ends: they may be part of a name
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: cannot read {path} as text: {error}") from error
    names = pd.Index(dataset.track_names[N_SPECIAL:])
    tracks = pd.Series(lines, index=range(1, len(lines) + 1), dtype=object).str.removesuffix("\r")
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
