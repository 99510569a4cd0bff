"""From an agent's scores to probabilities and ranks, estimated on training sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from model.ddpg import DDPGForContinuation, DDPGForSkips
from model.decoding import select
from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader, new_plays
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL
from utils.evaluation import metrics
from utils.evaluation.predict import judge
from utils.evaluation.scoring import scoring_loader

N_CALIBRATION = 5000
"""Most training sessions, evenly spaced, to calibrate on."""
SCALES = tuple(2 ** (i / 2) for i in range(-40, 19))
"""Factors of dot products to compare, from a millionth to 512, for vectors of any length."""
N_SAMPLED = 99
"""Negatives of the sampled ranking that the original reported."""


def calibration_loader(dataset: Dataset, data: DataConfig, *, labels: bool = False) -> SessionLoader:
    """Training sessions to calibrate on, cut at half like those that are scored, with new tracks as in training.

    Args:
        labels: whether they have to tell skips.

    Raises:
        UserError: they have no skipped tracks, or no others.
    """
    loader = SessionLoader(
        dataset.train,
        batch_size=256,
        history_size=data.history_size,
        target_size=data.target_size,
        min_length=data.min_length,
        max_sessions=N_CALIBRATION,
        new=new_plays(dataset, data),
    )
    if labels and not {0, 1} <= set(np.unique(loader.targets().skips).tolist()):
        raise UserError(f"{dataset.folder / 'train'} has no skipped tracks, or no others; there is nothing to learn")
    return loader


@torch.no_grad()
def calibrate_skips(model: DDPGForSkips, loader: SessionLoader) -> None:
    """Fit the probability of a skip to the score, by logistic regression on a loader's sessions: one slope, and an
    intercept for each position."""
    device = model.slope.device
    labels = loader.targets().skips
    known = labels >= 0
    position = np.eye(labels.shape[1])[known.nonzero()[1]]
    walks = model.advance
    for model.advance in [False, True] if walks else [False]:  # decisions along the way need a first fit
        scores = np.zeros(labels.shape)
        for batch in loader:
            history, tracks = batch.inputs(device)
            scores[batch.rows.numpy()] = model.target_scores(history, tracks).cpu().numpy()
        flat = scores[known]
        spread = max(float(flat.std()), 1e-6)  # the regression's penalty depends on the scale of the scores
        columns = np.column_stack([-flat / spread, position])
        fit = LogisticRegression(C=100.0, fit_intercept=False, max_iter=300).fit(columns, labels[known])
        model.slope.fill_(fit.coef_[0, 0] / spread)
        model.intercept.copy_(torch.as_tensor(fit.coef_[0, 1:]))


@torch.no_grad()
def calibrate_ranks(model: DDPGForContinuation, loader: SessionLoader) -> None:
    """Choose the factor of the dot products under which the first targets of a loader are most probable.

    The log-probability is concave in the factor, so the better of two neighbours is on the side of the best one.
    """
    device = model.scale.device
    model.eval()
    model.scale.fill_(1.0)
    known = []
    for batch in loader:
        history, targets = batch.inputs(device)
        known.append((model(history, model.start(history)), targets[:, :1]))  # (B, 1, D) and (B, 1)

    def log_probability(scale: float) -> float:
        return sum(float(judge(model, states * scale, targets)[0].sum()) for states, targets in known)

    low, high = 0, len(SCALES) - 1
    while low < high:
        middle = (low + high) // 2
        if log_probability(SCALES[middle]) < log_probability(SCALES[middle + 1]):
            low = middle + 1
        else:
            high = middle
    model.scale.fill_(SCALES[low])


@torch.no_grad()
def sampled_ranking(
    model: DDPGForContinuation, dataset: Dataset, data: DataConfig, split: str, *, seed: int = 0
) -> dict[str, Any]:
    """Rank the first target of each session among 99 other tracks, drawn uniformly, as the original did.

    Warning: such numbers are not those of the full catalogue and need not even order models alike (Krichene and Rendle
    2020, "On sampled metrics for item recommendation"). Most random tracks are easy to tell from any session's own.

    Returns:
        `split`; `hr@1`, `hr@10`, `mrr` over sessions whose first target is a known track, ties counting half;
        `n_sessions`.
    """
    model.eval()
    device, generator = model.scale.device, torch.Generator().manual_seed(seed)
    ranks = []
    for batch in scoring_loader(dataset, data, split):
        history, targets = batch.inputs(device)
        inside = targets[:, 0] >= N_SPECIAL
        history, true = select(history, inside), targets[inside, :1]
        drawn = torch.randint(N_SPECIAL, dataset.n_ids, (len(true), N_SAMPLED), generator=generator).to(device)
        action = model.agent(history)
        scores = torch.einsum("bd,bcd->bc", action, model.agent.items(torch.cat([true, drawn], dim=1)))
        others, own = scores[:, 1:].masked_fill(drawn == true, -torch.inf), scores[:, :1]
        tied = (others == own).sum(1)
        ranks.append(torch.stack([(others > own).sum(1) + 0.5 * tied, 1 + tied]))
    rank, tied_in_all = torch.cat(ranks, dim=1).double().cpu().numpy()
    hits = {f"hr@{k}": float(metrics.hit_rate(rank, k, tied_in_all).mean()) for k in (1, 10)}
    mrr = metrics.reciprocal_rank(rank, N_SAMPLED + 1, tied_in_all).mean()
    return {"split": split, **hits, "mrr": float(mrr), "n_sessions": len(rank)}
