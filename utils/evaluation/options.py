"""Options of decoding: how a model continues sessions. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.names import Order
from utils.core.checks import check_at_least, check_used
from utils.core.errors import UserError


@dataclass
class DecodingConfig:
    """How a seq model continues sessions track by track, on all splits alike."""

    method: Literal["greedy", "beam", "sample"] = "greedy"
    """greedy: the most probable track at each step. beam: the most probable continuation that a beam search finds.
    sample: tracks drawn at random from the most probable ones."""
    beam_width: int = 10
    """beam: partial continuations kept at each step."""
    top_p: float = 0.9
    """sample: draw among the most probable tracks that together have this probability (nucleus sampling)."""
    temperature: float = 1.0
    """sample: divides the scores; below 1 for more probable tracks, above 1 for more surprising ones."""
    no_repeat: int = 0
    """How many of the session's last tracks (history and continuation) may not come next; 0 for no such rule."""
    allow_list: str | None = None
    """Text file of the only tracks that may be predicted: one track id of the source a line. Ranks and perplexity are
    still over all tracks."""
    seed: int = 0
    """sample: seed of the random numbers."""

    def __post_init__(self) -> None:
        check_at_least(self, "decoding", beam_width=1, no_repeat=0, temperature=0.001)
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.beam_width > 1000:
            raise UserError(f"decoding.beam_width is {self.beam_width}; it must be at most 1000")
        drawn = ("sample",)
        check_used(self, "decoding", "method", beam_width=("beam",), top_p=drawn, temperature=drawn, seed=drawn)


@dataclass
class FillingConfig:
    """How BERT continues sessions: it fills in masks behind the history, on all splits alike."""

    order: Order = "parallel"
    """parallel: all masks in one pass (the original). confident: in each pass those that the model is most sure of.
    left_to_right: in each pass the next ones."""
    passes: int = 10
    """confident, left_to_right: number of passes, each of which fills an equal share of masks. Time grows with it."""
    allow_list: str | None = None
    """Text file of the only tracks that may be predicted: one track id of the source a line. Ranks and perplexity are
    still over all tracks."""

    def __post_init__(self) -> None:
        check_at_least(self, "filling", passes=1)
        check_used(self, "filling", "order", passes=("confident", "left_to_right"))
