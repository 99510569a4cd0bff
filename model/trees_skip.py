"""Boosted trees for the skip task: the rival that a network has to beat where there are few sessions.

One binary classifier for all target positions, as `HistoryLogistic`, but on many more features, which trees combine as
they like: see `_features`. Letters as in `model/baselines_skip.py`, and P, K as in `utils/data/batch.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from tqdm import tqdm

from model.baselines_skip import SkipInputs, TrackRate, classify, in_chunks, logit, signed_skips, with_neighbours
from utils.data.vocab import PAD, UNK

N_FOLDS = 10
"""Parts of the training sessions: the skip rates of tracks in one of them are counted in the others."""
MAX_SESSIONS = 30_000
"""As many training sessions as are of use: their 300,000 labels with 100 features take 0.2 GB, with 400 0.7 GB."""
UNWATCHED = 150
"""Trees where no validation split says how many are best."""
EXAMPLES_AT_ONCE = 2_000
"""Examples whose features are in memory together."""
RECENT = 3
"""Plays at the history's end of which trees see each detail."""
PATIENCE = 30
"""Trees without a better log loss on the validation split, after which no more are added."""


@dataclass(frozen=True)
class HistoryTrees:
    """Gradient-boosted trees on the history, the past of plays and the targets' tracks."""

    classifier: HistGradientBoostingClassifier
    track_rate: TrackRate | None

    @classmethod
    def fit(
        cls,
        train: tuple[SkipInputs, np.ndarray],
        valid: tuple[SkipInputs, np.ndarray] | None,
        *,
        track_rate: TrackRate | None,
        seed: int = 0,
        max_trees: int = 1000,
    ) -> tuple[Self, dict[str, float]]:
        """Add trees until the log loss of the validation split has stopped falling.

        A track's rate must not tell a play's own label, as it would through the counts of a rare track. To leave only
        the play itself out does not help: given the counts, trees could tell the label by what is missing. So the
        examples are dealt into `N_FOLDS` parts, and the rates of each part come from the plays outside it.

        Args:
            train: N examples, whose plays `track_rate` has counted, and their labels (N, T): 1 skipped, 0 not, -1
                unknown.
            valid: examples and labels of the validation split; without known labels there, `UNWATCHED` trees are made.
            track_rate: fitted on the training split; None to tell tracks apart by their past only.
            seed: of the parts, and of the trees.
            max_trees: most trees.

        Returns:
            The trees, and the log loss of the validation split by their number: every `PATIENCE` of them, and the last.
        """
        parts = tqdm(_parts(*train, track_rate, seed), "features", N_FOLDS, leave=False, delay=2, unit="part")
        features, answers = zip(*(_known(*part) for part in parts), strict=True)
        watched = None if valid is None or not (valid[1] >= 0).any() else _known(*valid, track_rate)
        classifier = HistGradientBoostingClassifier(
            learning_rate=0.05,
            max_iter=min(max_trees, UNWATCHED) if watched is None else max_trees,
            max_leaf_nodes=15,
            min_samples_leaf=40,
            l2_regularization=5.0,
            max_features=0.3,
            early_stopping=watched is not None,
            n_iter_no_change=PATIENCE,
            random_state=seed,
        )
        given = np.concatenate(features), np.concatenate(answers)
        if watched is None:
            return cls(classifier.fit(*given), track_rate), {}
        classifier.fit(*given, X_val=watched[0], y_val=watched[1])
        losses = -classifier.validation_score_
        shown = sorted({*range(0, len(losses), PATIENCE), len(losses) - 1})
        return cls(classifier, track_rate), {f"{n} trees": float(losses[n]) for n in shown}

    def predict(self, inputs: SkipInputs) -> tuple[np.ndarray, np.ndarray]:
        """Probability float32 (N, T) and decision bool (N, T)."""
        return classify(self.classifier, lambda part: _features(part, self.track_rate), inputs, EXAMPLES_AT_ONCE)


def _parts(
    inputs: SkipInputs, labels: np.ndarray, track_rate: TrackRate | None, seed: int
) -> Iterator[tuple[SkipInputs, np.ndarray, TrackRate | None]]:
    """`N_FOLDS` random parts of the examples, with their labels and the rates of tracks outside the part."""
    part = np.random.default_rng(seed).permutation(len(labels)) % N_FOLDS
    for k in range(N_FOLDS):
        mine, answers = inputs.part(part == k), labels[part == k]
        yield mine, answers, None if track_rate is None else track_rate.without(mine, answers)


def _known(inputs: SkipInputs, labels: np.ndarray, rate: TrackRate | None) -> tuple[np.ndarray, np.ndarray]:
    """Features of the targets whose labels (N, T) are known, float32 (their number, features), and these labels."""
    known = labels >= 0
    chunks = in_chunks(len(labels), EXAMPLES_AT_ONCE)
    return np.concatenate([_features(inputs.part(i), rate)[known[i]] for i in chunks]), labels[known]


def _features(inputs: SkipInputs, rate: TrackRate | None) -> np.ndarray:
    """Features of every target, float32 (N, T, features); NaN where there is no such play.

    Of the history: see `_of_history`. Of the target: position, number of targets, what befell its track before in the
    session, and how often; the rate and plays in training of its track and its neighbours'. Of the past, if there is
    one: that of the target and of the plays before and after it, and the means over history and targets.
    """
    n, n_targets = inputs.target_tracks.shape
    s = inputs.history_tracks.shape[1]
    tracks = np.concatenate([inputs.history_tracks, inputs.target_tracks], axis=1)  # (N, S + T)
    played = tracks != PAD
    signed = signed_skips(inputs.history_skips).astype(np.float32)
    length = played[:, s:].sum(axis=1, keepdims=True)
    position = np.broadcast_to(np.arange(n_targets), (n, n_targets))
    same = inputs.target_tracks[:, :, None] == inputs.history_tracks[:, None, :]  # (N, T, S)
    new = inputs.target_tracks == UNK
    before = np.where(new, np.nan, (same * signed[:, None, :]).sum(axis=2))
    times = np.where(new, np.nan, same.sum(axis=2))
    of_target = [position, length - position, np.broadcast_to(length, position.shape), before, times]
    history = [_of_history(inputs, signed)]
    if rate is not None:
        rates = np.where(played, logit(rate.rates(tracks)), np.nan)
        plays = np.where(played, np.log1p(rate.plays[tracks]), np.nan)
        of_target += [*with_neighbours(rates, s, nothing=np.nan), *with_neighbours(plays, s, nothing=np.nan)]
        surprise = np.where(signed == 0, np.nan, (signed > 0) - rate.rates(inputs.history_tracks))
        history += [surprise[:, -RECENT:], _mean(surprise[..., None])]
    blocks = [np.stack(of_target, axis=2)]
    if inputs.past is not None:
        past = np.where(played[..., None], inputs.past.astype(np.float32), np.nan)  # (N, S + T, P)
        blocks += with_neighbours(past, s, nothing=np.nan)
        followed = np.where(signed[..., None] == 0, np.nan, signed[..., None] * past[:, :s])
        history += [_mean(past[:, :s]), _mean(past[:, s:]), _mean(followed)]
    shared = np.concatenate([block.reshape(n, -1) for block in history], axis=1)
    blocks.append(np.broadcast_to(shared[:, None, :], (n, n_targets, shared.shape[1])))
    return np.concatenate(blocks, axis=2, dtype=np.float32)


def _of_history(inputs: SkipInputs, signed: np.ndarray) -> np.ndarray:
    """What the history says without its tracks, (N, features).

    Skip states by recency, `signed` (N, S), those of the last plays in degrees, and their shares, changes, streak and
    length; log columns of the last plays and means of the flags among them; details of the last plays, and their means.
    """
    known = signed != 0
    count = known.sum(axis=1)
    skipped = (signed > 0).sum(axis=1)
    last = signed[:, -1:]
    streak = (np.cumprod(signed[:, ::-1] == last, axis=1).sum(axis=1)) * last[:, 0]
    changes = (signed[:, 1:] * signed[:, :-1] < 0).sum(axis=1)
    odds = np.log((skipped + 1) / (count - skipped + 1))
    blocks = [signed, inputs.history_skips[:, -RECENT:], np.column_stack([odds, streak, changes, count, skipped])]
    here = inputs.history_tracks != PAD
    blocks.append(here.sum(axis=1, keepdims=True))
    if inputs.log is not None:
        blocks += [inputs.log[:, -RECENT:].reshape(len(signed), -1)]
        blocks += [_mean(np.where(here[..., None], inputs.log, np.nan))]
    if inputs.details is not None:
        details = np.where(here[..., None], inputs.details.astype(np.float32), np.nan)
        blocks += [details[:, -RECENT:].reshape(len(signed), -1), _mean(details)]
    return np.concatenate(blocks, axis=1, dtype=np.float32)


def _mean(values: np.ndarray) -> np.ndarray:
    """Means (N, ...) over the plays of (N, plays, ...) that are there, NaN where none is."""
    there = ~np.isnan(values)
    count = there.sum(axis=1)
    return np.where(count > 0, np.where(there, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
