"""What a model is given, and what it is judged by.

Shape legend, for the whole project:
    B sessions (or examples) in a batch     V ids in the vocabulary
    S positions of the history              D model width
    T positions of the targets              F audio features
    L log columns                           H attention heads
    P statistics and relations of a play    K details of a play in the history
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.data import schema

N_SKIP_STATES = schema.SKIP_1 + 2
"""Skip states of a history: 0 unknown or no play, else 1 + `schema.SKIP_*`."""


class History(NamedTuple):
    """The past: all that a model may know of it. Padded on the left, so the last play is at S - 1."""

    tracks: Tensor
    """int64 (B, S); `PAD` where there is no play."""
    skips: Tensor
    """int64 (B, S); skip states, ordinal, 0 where unknown."""
    log: Tensor
    """uint8 (B, S, L); codes of `schema.LOG_COLUMNS`, 0 where there is no play."""

    def to(self, device: torch.device) -> History:
        """The same history on `device`."""
        return History(*(to_device(tensor, device) for tensor in self))


class Past(NamedTuple):
    """What `utils/data/past.py` knows of the plays of a batch: numbers of comparable size, 0 where there is no play."""

    plays: Tensor
    """float32 (B, S + T, P): statistics and relations of the plays of history and targets."""
    details: Tensor
    """float32 (B, S, K): what was logged of the history's plays. Those of targets are never in a batch."""

    def to(self, device: torch.device) -> Past:
        """The same on `device`."""
        return Past(*(to_device(tensor, device) for tensor in self))


class SessionBatch(NamedTuple):
    """Examples of one batch. Targets are padded on the right.

    A model is called with `history` and, where the task gives them, `target_tracks` and `past`; it sees nothing else.
    """

    history: History
    target_tracks: Tensor
    """int64 (B, T); known to the model in the skip task, the answer in the seq task."""
    target_skips: Tensor
    """int64 (B, T); 1 skipped, 0 not, -1 no play or unknown: the answer in the skip task."""
    rows: Tensor
    """int64 (B,); which example of its loader each row is."""
    past: Past | None = None
    """What is known of the plays' past, if the dataset was opened with it; a third argument of the model then."""
    answers: Tensor | None = None
    """int64 (B, S + T): the true tracks, if history and targets show some of them as `UNK` (`DataConfig.new_plays`).
    Losses over tracks look at them."""

    def to(self, device: torch.device) -> SessionBatch:
        """The same batch on `device`."""
        tracks, skips, rows = (
            to_device(tensor, device) for tensor in (self.target_tracks, self.target_skips, self.rows)
        )
        past = None if self.past is None else self.past.to(device)
        answers = None if self.answers is None else to_device(self.answers, device)
        return SessionBatch(self.history.to(device), tracks, skips, rows, past, answers)

    def inputs(self, device: torch.device) -> tuple[Any, ...]:
        """What a model is given, on `device`: `history`, `target_tracks` and, if there is one, `past`."""
        inputs = self.history.to(device), to_device(self.target_tracks, device)
        return inputs if self.past is None else (*inputs, self.past.to(device))

    def take(self, rows: slice) -> SessionBatch:
        """Some of its rows."""
        history = History(*(tensor[rows] for tensor in self.history))
        past = None if self.past is None else Past(*(tensor[rows] for tensor in self.past))
        answers = None if self.answers is None else self.answers[rows]
        return SessionBatch(history, self.target_tracks[rows], self.target_skips[rows], self.rows[rows], past, answers)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on `device`; this process does not wait until it has arrived."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from unpinned memory the copy would wait for all that the GPU still has to do
    return tensor.to(device, non_blocking=True)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next(model.parameters()).device


def whole_sessions(batch: SessionBatch) -> Tensor:
    """All plays of each session of a batch, as the model sees them: int64 (B, S + T), padded on both sides."""
    return torch.cat([batch.history.tracks, batch.target_tracks], dim=1)


def true_sessions(batch: SessionBatch) -> Tensor:
    """The same with the true track of each play: what a model has to predict."""
    return whole_sessions(batch) if batch.answers is None else batch.answers


def true_targets(batch: SessionBatch) -> Tensor:
    """The true track of each target: int64 (B, T)."""
    return true_sessions(batch)[:, batch.history.tracks.shape[1] :]


def is_skipped(skips: Any) -> Any:
    """Which skip states of a history mean skip_2: an array or tensor in, bool of the same shape out."""
    return schema.is_skip(skips - 1)
