"""The cases that a scorer of candidates learns from: no memory knows the session of a case, or a later one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from model.candidates import CandidateFinder, Candidates
from model.memory import Memory
from model.network_source import NetworkSource
from model.next_track import best, examples, log_probability_of, rank
from model.scorer import CandidateScorer, candidate_loss, joined, next_scores, popularity, take
from utils.core.errors import UserError
from utils.data.batch import SessionBatch
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import DataConfig
from utils.evaluation.predictions import SeqPredictions
from utils.evaluation.scoring import scores_of
from utils.training.options import CasesConfig

PREDICTED_AT_ONCE = 1024
"""Cases whose candidates are scored together."""


class Cases(NamedTuple):
    """Histories with their candidates, in the order of a loader's examples."""

    loader: SessionLoader
    """Every prefix of some sessions, with the track that follows it."""
    candidates: Candidates
    targets: np.ndarray
    """int32 (N,): the tracks that follow"""


def memory_of(splits: Sequence[SessionArrays], n_ids: int) -> Memory:
    """The memory of all sessions of some splits, which follow each other in time."""
    plays = [split.tracks[split.offsets[0] : split.offsets[-1]] for split in splits]
    lengths = np.concatenate([split.lengths for split in splits])
    return Memory.build(np.concatenate(plays), np.append(0, lengths.cumsum()), n_ids=n_ids)


def training_cases(
    dataset: Dataset,
    data: DataConfig,
    config: CasesConfig,
    *,
    network: NetworkSource | None,
    batch_size: int,
    seed: int,
) -> Cases:
    """Every prefix of sessions of the last folds of training; the loader is shuffled.

    Args:
        dataset, data, config: which sessions, cut and chosen how.
        network: a source of candidates that was trained on none of these sessions, if there is one.
        batch_size, seed: of the loader.

    Raises:
        UserError: there are too few sessions for the folds.
    """
    n = dataset.train.n_sessions
    bounds = [n - round(n * config.share * k) for k in range(config.folds, -1, -1)]
    if bounds[0] < 1 or len(set(bounds)) < len(bounds):
        raise UserError(
            f"{dataset.folder} has {n:,} training sessions, too few for cases.folds {config.folds} of "
            f"cases.share {config.share}; make the share larger, or the folds fewer"
        )
    learnt = dataset.train.between(bounds[0], n)
    of_session = (learnt.lengths - 1).mean()
    most = max(1, int(config.max_cases / max(of_session, 1.0)))
    ordered = _prefixes(learnt, data, max_sessions=most)
    history, targets = examples(ordered)
    parts = []
    for k, (first, end) in enumerate(pairwise(bounds), start=1):
        mine = (ordered.session >= first - bounds[0]) & (ordered.session < end - bounds[0])
        if not mine.any():  # few cases, or sessions of one play
            continue
        memory = memory_of([dataset.train.between(0, first)], dataset.n_ids)
        parts.append(CandidateFinder(memory, network)(history[mine], bar=f"candidates, fold {k} of {config.folds}"))
    loader = _prefixes(learnt, data, max_sessions=most, batch_size=batch_size, shuffle=True, seed=seed)
    return Cases(loader, joined(parts), targets[:, 0])


def validation_cases(dataset: Dataset, data: DataConfig, finder: CandidateFinder) -> Cases | None:
    """Every prefix of validation sessions, at most `data.valid_sessions` of them; None if there are none."""
    if dataset.valid.n_sessions == 0:
        return None
    loader = _prefixes(dataset.valid, data, max_sessions=data.valid_sessions or None)
    history, targets = examples(loader)
    return Cases(loader, finder(history, bar="candidates, validation"), targets[:, 0])


def case_loss(scorer: CandidateScorer, batch: SessionBatch, cases: Cases) -> tuple[Tensor, int]:
    """`candidate_loss` of the cases whose rows are in the batch."""
    rows = batch.rows.numpy()
    return candidate_loss(scorer, take(cases.candidates, rows), cases.targets[rows])


def predict_next(scorer: CandidateScorer, cases: Cases, by_popularity: np.ndarray) -> SeqPredictions:
    """The most probable next track of each case, with log-probability and rank of the true one."""
    scorer.eval()
    n = len(cases.targets)
    tracks, log_p = np.empty((n, 1), np.int32), np.zeros((n, 1), np.float32)
    ranks, ties = np.empty(n, np.float32), np.empty(n, np.float32)
    for start in range(0, n, PREDICTED_AT_ONCE):
        rows = np.arange(start, min(n, start + PREDICTED_AT_ONCE))
        scores = next_scores(scorer, take(cases.candidates, rows), len(by_popularity))
        targets = cases.targets[rows]
        tracks[rows, 0] = best(scores, by_popularity)
        ranks[rows], ties[rows] = rank(scores, by_popularity, targets)
        log_p[rows, 0] = log_probability_of(scores, by_popularity, targets)
    return SeqPredictions(tracks, log_p, ranks, ties)


def validate_next(scorer: CandidateScorer, cases: Cases | None, memory: Memory, dataset: Dataset) -> dict[str, Any]:
    """Metrics of the next track of validation cases, which training watches; none if there are none."""
    if cases is None:
        return {}
    return scores_of(predict_next(scorer, cases, popularity(memory)), cases.loader, dataset).means()


def _prefixes(
    arrays: SessionArrays, data: DataConfig, *, max_sessions: int | None, batch_size: int = 4096, **order: Any
) -> SessionLoader:
    return SessionLoader(
        arrays,
        batch_size=batch_size,
        cut="every",
        history_size=data.history_size,
        target_size=1,
        min_length=2,
        max_sessions=max_sessions,
        **order,
    )
