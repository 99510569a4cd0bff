"""Scoring sessions against the full catalogue: the ten best next tracks, and the rank of each true track.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --quick true

Each unit includes the model's forward pass. The ten best need one state of each session, ranks one of each target.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.predicting import Config, Predict, measure_predictors
from benchmarks.rounds import gate
from benchmarks.rows import Row, publish
from model.catalogue import Catalogue
from model.transformer import SeqTransformer
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.data.batch import SessionBatch
from utils.evaluation.predict import judge

K = 10


# ---------------------------------------------------------------------------------------------------- contenders


def reference_top(model: SeqTransformer) -> Predict:
    """The largest of all scores: int64 (B, K)."""
    return lambda batch: reference.top_next(model, batch.history, K)


def our_top(model: SeqTransformer) -> Predict:
    """One state of each session, and the search of decoding: int64 (B, K)."""
    catalogue = Catalogue(model.head)

    @torch.no_grad()
    def top(batch: SessionBatch) -> Tensor:
        states, _ = model.step(model.begin(batch.history), model.start(batch.history)[:, 0])
        return catalogue.top_k(states, K).ids

    return top


def our_ranks(model: SeqTransformer) -> Predict:
    """Rank of each target from 0, its ties and its log-probability, as after each epoch of training: (B, T)."""

    @torch.no_grad()
    def ranks(batch: SessionBatch) -> Tensor:
        states = model(batch.history, model.previous_tracks(batch.history, batch.target_tracks))
        return judge(model, states, batch.target_tracks)[1]

    return ranks


# --------------------------------------------------------------------------------------------------------- gates


def check_top(model: SeqTransformer, batch: SessionBatch, few: SessionBatch) -> None:
    """
    Raises:
        UserError: the best tracks are not the reference's.
    """
    expected, tracks = reference_top(model)(batch), our_top(model)(batch)
    gate(torch.equal(tracks, expected), f"{(tracks != expected).sum()} ids of evaluate/top-{K} are not the reference's")


@torch.no_grad()
def check_ranks(model: SeqTransformer, batch: SessionBatch, few: SessionBatch) -> None:
    """
    Raises:
        UserError: log-probabilities, ranks and ties are not those of all scores, normalised and sorted.
    """
    states = model(few.history, model.previous_tracks(few.history, few.target_tracks))
    log_p, ranks, tied = judge(model, states, few.target_tracks)
    logits, targets = model.logits(states), few.target_tracks[:, :, None]
    expected = logits.log_softmax(-1).gather(2, targets)[:, :, 0]
    gate(torch.allclose(log_p, expected, rtol=1e-4), "log-probabilities of evaluate/ranks are not those of a softmax")
    places = (logits.argsort(-1, descending=True) == targets).int().argmax(-1)
    # Two scores that differ by rounding only may change places.
    gate(bool((ranks - places).abs().max() <= 1), "evaluate/ranks are not the places in sorted scores")
    equal = (logits == logits.gather(2, targets)).sum(-1)
    gate(bool((tied - equal).abs().max() <= 1), "ties of evaluate/ranks are not the equal scores")


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds."""
    check_at_least(config.sizes, "sizes", tracks=K)
    ranks = "evaluate/ranks"
    predictors = {f"evaluate/top-{K}/reference": reference_top, f"evaluate/top-{K}/ours": our_top, ranks: our_ranks}
    return measure_predictors(config, folder, predictors, [check_top, check_ranks], alone=[ranks], title="evaluation")


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
