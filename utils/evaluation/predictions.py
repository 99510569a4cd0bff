"""What a model predicts, in the order of a loader's examples: the contract between predicting and scoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from utils.data.dataloaders import SessionLoader


class SkipPredictions(NamedTuple):
    """Predictions of the skip task, in loader order."""

    probability: np.ndarray
    """float32 (N, T): probability that the target is skipped."""
    decision: np.ndarray
    """bool (N, T): the yes-or-no answer that the challenge's metric needs."""

    @classmethod
    def of(cls, probability: np.ndarray) -> SkipPredictions:
        """Predictions that decide "skipped" where `probability` is at least one half."""
        return cls(probability.astype(np.float32), probability >= 0.5)


class SeqPredictions(NamedTuple):
    """Predictions of the seq task, in loader order."""

    tracks: np.ndarray
    """int32 (N, T): the continuation, decoded without a look at the targets."""
    log_probability: np.ndarray | None
    """float32 (N, T): of each true target, given the true ones before it (teacher-forced); a model that fills in masks
    is given the history only. None if the model has none."""
    rank: np.ndarray | None
    """float32 (N,): rank of the first true target over the full catalogue, from 0; the middle of a tie, inf if new."""
    tied: np.ndarray | None = None
    """float32 (N,): how many tracks share the score of the first true target, itself included; None for no ties."""


class MaskedPredictions(NamedTuple):
    """Predictions of the tracks that are hidden from a model, in loader order; M plays of a session."""

    tracks: np.ndarray
    """int32 (N, M): the hidden tracks, PAD elsewhere."""
    log_probability: np.ndarray
    """float32 (N, M): of each hidden track."""
    rank: np.ndarray
    """float32 (N, M): of each hidden track over the full catalogue, from 0: the middle one of tied tracks."""
    tied: np.ndarray | None = None
    """float32 (N, M): how many tracks share its score, itself included; None for no ties."""


Predictions = SkipPredictions | SeqPredictions | MaskedPredictions
Predict = Callable[[SessionLoader], Predictions]
"""Predicts all examples of a loader, in order; the type of the predictions tells the task."""
