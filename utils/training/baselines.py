"""What train_baselines.py fits: rows of the leaderboard, and the examples of the skip baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

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


def last_plays(splits: Sequence[SessionArrays], max_sessions: int) -> tuple[np.ndarray, np.ndarray]:
    """The last sessions of some splits, which follow each other in time: flat tracks (n_events,), starts (n + 1,)."""
    import numpy as np

    lengths = np.concatenate([split.lengths for split in splits])[-max_sessions:]
    tracks = splits[0].tracks if len(splits) == 1 else np.concatenate([split.tracks for split in splits])
    offsets = np.append(0, lengths.cumsum())
    return tracks[len(tracks) - offsets[-1] :], offsets


def baselines_of_seq(
    dataset: Dataset, data: DataConfig, *, max_sessions: int, order: int, chosen: dict[str, str] | None
) -> list[Baseline]:
    """The seq baselines, with settings that validation chooses, or their defaults if there is no validation.

    Args:
        dataset, data: what to fit on, and how validation cuts sessions.
        max_sessions: most sessions to fit on, the last ones.
        order: longest context of the n-gram.
        chosen: of each baseline, the name of its setting; then validation sessions are fitted on, too.
    """
    from model import baselines_seq as seq
    from model import next_track
    from utils.evaluation.metrics import reciprocal_rank
    from utils.evaluation.scoring import scoring_loader
    from utils.training.run import NGRAM

    splits = [dataset.train] if chosen is None else [dataset.train, dataset.valid]
    plays = last_plays(splits, max_sessions)
    popularity = seq.Popularity.fit(plays[0], n_ids=dataset.n_ids)

    def choose(name: str, model: Any) -> tuple[Any, dict[str, float]]:
        if chosen is not None:
            return dict(model.settings())[chosen[name]], {}
        if dataset.valid.n_sessions == 0:
            return model, {}
        valid = scoring_loader(dataset, data, "valid", prefixes=data.every_prefix)
        return next_track.choose(valid, model, quality=lambda ranks: reciprocal_rank(ranks.rank, 20, ranks.tied))

    @cache  # asked for twice: it is a row of its own, and the n-gram's fallback
    def item_knn() -> tuple[Any, dict[str, float]]:
        return choose("item_knn", seq.ItemKNN.fit(*plays, n_ids=dataset.n_ids))

    def ngram(name: str, longest: int, fallback: Any) -> tuple[Any, dict[str, float]]:
        return choose(name, seq.Ngram.fit(*plays, order=longest, fallback=fallback))

    return [
        Baseline("popularity", "Popularity", lambda: (popularity, {})),
        Baseline("markov", "Markov", lambda: ngram("markov", 1, popularity)),
        Baseline("item_knn", "Item-kNN", item_knn),
        Baseline(NGRAM, "n-gram with kNN", lambda: ngram(NGRAM, order, item_knn()[0])),
    ]


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
