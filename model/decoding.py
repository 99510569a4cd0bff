"""How a seq model continues a session on its own. Nothing here ever sees a target."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from model.embeddings import TrackHead
from utils.batch import History


class SeqModel(Protocol):
    """What decoding, losses and evaluation need of a model."""

    head: TrackHead

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def __call__(self, history: History, previous: Tensor) -> Tensor:
        """Teacher-forced states (B, T, D): the one at step t has seen the history and the targets before t."""

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Targets (B, T) shifted right behind the start token: what a teacher-forced decoder is fed."""

    def encode(self, history: History) -> Tensor:
        """History -> memory (B, S, D)."""

    def decode(self, history: History, memory: Tensor, previous: Tensor) -> Tensor:
        """Previous tracks (B, t) -> states (B, t, D)."""

    def start(self, history: History) -> Tensor:
        """The token (B, 1) that stands before the first prediction."""

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores (..., V); the special ids are at minus infinity."""


@torch.inference_mode()
def greedy(model: SeqModel, history: History, length: int) -> Tensor:
    """The most probable track, again and again: int64 (B, length). The encoder runs once."""
    memory = model.encode(history)
    tracks = model.start(history)  # (B, 1)
    for _ in range(length):
        states = model.decode(history, memory, tracks)  # (B, t, D)
        tracks = torch.cat([tracks, model.logits(states[:, -1]).argmax(-1, keepdim=True)], dim=1)
    return tracks[:, 1:]
