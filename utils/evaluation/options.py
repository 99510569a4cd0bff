"""Options of decoding: how a model continues sessions. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.decoding import SeqModel, beam_search, greedy, sample
from model.filling import SlotModel, fill
from model.names import Order
from utils.core.checks import check_at_least, check_used
from utils.core.errors import UserError
from utils.data.batch import History
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL
from utils.evaluation.decoding import Continue, read_allow_list


@dataclass
class DecodingConfig:
    """How a seq model continues sessions track by track, on all splits alike."""

    method: Literal["greedy", "beam", "sample"] = "greedy"
    """greedy: the most probable track, again and again. beam: the most probable continuation that a beam search finds.
    sample: tracks drawn at random from the most probable ones."""
    beam_width: int = 10
    """beam: beginnings that are kept at each step."""
    top_p: float = 0.9
    """sample: draw among the most probable tracks that together have this probability (nucleus sampling)."""
    temperature: float = 1.0
    """sample: divides the scores; below 1 for more probable tracks, above 1 for more surprising ones."""
    no_repeat: int = 0
    """None of the last so many tracks of the session, history and continuation, comes next; 0 for no such rule."""
    allow_list: str | None = None
    """Text file of the only tracks that may be predicted: one track id of the source a line. Ranks and perplexity are
    over all tracks all the same."""
    seed: int = 0
    """sample: of the random numbers."""

    def __post_init__(self) -> None:
        check_at_least(self, "decoding", beam_width=1, no_repeat=0, temperature=0.001)
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.beam_width > 1000:
            raise UserError(f"decoding.beam_width is {self.beam_width}; it must be at most 1000")
        drawn = ("sample",)
        check_used(self, "decoding", "method", beam_width=("beam",), top_p=drawn, temperature=drawn, seed=drawn)

    def allowed_tracks(self, dataset: Dataset, data: DataConfig) -> Tensor | None:
        """The ids (A,) of the allow-list; without one, nothing.

        Raises:
            UserError: see `read_allow_list`; or the rule against repeats may leave no track for the last target.
        """
        allowed = read_allow_list(self.allow_list, dataset, option="decoding.allow_list")
        n_tracks = dataset.n_ids - N_SPECIAL if allowed is None else len(allowed)
        if n_tracks <= min(self.no_repeat, data.history_size + data.target_size - 1):
            raise UserError(
                f"decoding.no_repeat is {self.no_repeat}, but only {n_tracks} tracks may be predicted; make it smaller"
            )
        return allowed

    def continuation(self, model: SeqModel, catalogue: Catalogue) -> Continue:
        """See `model/decoding.py`."""
        common: dict[str, Any] = {"catalogue": catalogue, "no_repeat": self.no_repeat}
        if self.method == "beam":

            def best_beam(history: History, length: int) -> Tensor:
                return beam_search(model, history, length, width=self.beam_width, **common).tracks[:, 0]

            return best_beam
        if self.method == "sample":
            generator = torch.Generator().manual_seed(self.seed)
            common |= {"top_p": self.top_p, "temperature": self.temperature, "generator": generator}
            return partial(sample, model, **common)
        return partial(greedy, model, **common)


@dataclass
class FillingConfig:
    """How BERT continues sessions: it fills in masks behind the history, on all splits alike."""

    order: Order = "parallel"
    """parallel: all in one pass (the seed). confident: in each pass those that the model is most sure of.
    left_to_right: in each pass the next ones."""
    passes: int = 10
    """confident, left_to_right: equal shares in which the masks are filled. Time grows with it."""
    allow_list: str | None = None
    """Text file of the only tracks that may be predicted: one track id of the source a line. Ranks and perplexity are
    over all tracks all the same."""

    def __post_init__(self) -> None:
        check_at_least(self, "filling", passes=1)
        check_used(self, "filling", "order", passes=("confident", "left_to_right"))

    def allowed_tracks(self, dataset: Dataset, data: DataConfig) -> Tensor | None:
        """The ids (A,) of the allow-list; without one, nothing. How sessions are cut is of no matter here.

        Raises:
            UserError: see `read_allow_list`.
        """
        return read_allow_list(self.allow_list, dataset, option="filling.allow_list")

    def continuation(self, model: SlotModel, catalogue: Catalogue) -> Continue:
        """See `model/filling.py`."""
        return partial(fill, model, order=self.order, passes=self.passes, catalogue=catalogue)
