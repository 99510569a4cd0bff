"""What train_baselines.py fits: rows of the leaderboard, and the examples of the skip baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.core.errors import UserError
from utils.data.options import DataConfig

if TYPE_CHECKING:
    import numpy as np

    from model.baselines_skip import SkipInputs
    from utils.data.dataset import Dataset, SessionArrays


class Baseline(NamedTuple):
    """A row of the leaderboard that is not fitted yet."""

    id: str
    """`experiment` in result.json, and the folder of its runs."""
    label: str
    fit: Callable[[], tuple[Any, dict[str, float]]]
    """Returns the model and its trials, see `next_track.choose`."""


def check_data(data: DataConfig) -> None:
    """
    Raises:
        UserError: an option is given that only models use.
    """
    for name in ("train_cut", "new_plays", "valid_sessions"):
        if getattr(data, name) != getattr(DataConfig(), name):
            raise UserError(f"data.{name} has no meaning for baselines, only for the training of models; leave it out")


class SkipExamples:
    """Inputs and labels of the skip baselines, read when they are first asked for.

    Args:
        dataset: perhaps with a past.
        data: how sessions are cut.
        max_sessions: most training sessions, evenly spaced.
    """

    def __init__(self, dataset: Dataset, data: DataConfig, *, max_sessions: int) -> None:
        self.dataset = dataset
        self.data = data
        self.max_sessions = max_sessions

    @cached_property
    def many(self) -> tuple[SkipInputs, np.ndarray]:
        """Up to `max_sessions` training sessions, without their past, which would take gigabytes."""
        return self._read(replace(self.dataset.train, past=None, details=None), self.max_sessions)

    @cached_property
    def few(self) -> tuple[SkipInputs, np.ndarray]:
        """As many training sessions as trees can use, with their past."""
        from model.trees_skip import MAX_SESSIONS

        return self._read(self.dataset.train, min(self.max_sessions, MAX_SESSIONS))

    @property
    def for_logistic(self) -> tuple[SkipInputs, np.ndarray]:
        """Many of them, or with a past a few."""
        return self.few if self.dataset.n_past or self.dataset.n_details else self.many

    def valid(self) -> tuple[SkipInputs, np.ndarray] | None:
        """Validation sessions, as many as the trees learn from at most; None if there are none."""
        from model.trees_skip import MAX_SESSIONS

        return self._read(self.dataset.valid, MAX_SESSIONS) if self.dataset.valid.n_sessions else None

    def _read(self, arrays: SessionArrays, n: int) -> tuple[SkipInputs, np.ndarray]:
        from model.baselines_skip import SkipInputs
        from utils.data.dataloaders import SessionLoader

        s, t = self.data.history_size, self.data.target_size
        loader = SessionLoader(arrays, batch_size=4096, history_size=s, target_size=t, max_sessions=n)
        return SkipInputs.of(loader), loader.targets().skips
