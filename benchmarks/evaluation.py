"""Scoring sessions against the full catalogue: the ten best next tracks, and the rank of each true track.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --quick true

Each unit includes the model's forward pass. The ten best need one state of each session, ranks one of each target.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import reference, workload
from benchmarks.rounds import Contender, gate, measure, rows_of
from benchmarks.rows import Row, publish
from benchmarks.workload import Predict, Predictor, Sizes, setup_predictor
from model import SeqTransformer
from model.catalogue import Catalogue
from utils.batch import SessionBatch
from utils.cli import check_at_least, cli
from utils.scoring import judge

K = 10
GATE_SESSIONS = 16


@dataclass
class Config:
    """Sizes of the measurement."""

    sizes: Sizes = field(default_factory=Sizes)
    rounds: int = 7
    """Rounds that are timed."""
    quick: bool = False
    """Two rounds."""

    def __post_init__(self) -> None:
        check_at_least(self, "benchmark", rounds=1)


# ---------------------------------------------------------------------------------------------------- contenders


def reference_top(model: SeqTransformer) -> Predict:
    """Scores of all tracks at all positions: int64 (B, K)."""
    return lambda batch: reference.top_next(model, batch, K)


def our_top(model: SeqTransformer) -> Predict:
    """One state of each session, and the search of decoding: int64 (B, K)."""
    catalogue = Catalogue(model.head)

    @torch.no_grad()
    def top(batch: SessionBatch) -> Tensor:
        states, _ = model.step(model.begin(batch.history), model.start(batch.history)[:, 0])
        return catalogue.top_k(states, K).ids

    return top


def our_ranks(model: SeqTransformer) -> Predict:
    """Rank of each target from 0, and its log-probability, as after each epoch of training: (B, T)."""

    @torch.no_grad()
    def ranks(batch: SessionBatch) -> Tensor:
        states = model(batch.history, model.previous_tracks(batch.history, batch.target_tracks))
        return judge(model, states, batch.target_tracks)[1]

    return ranks


# --------------------------------------------------------------------------------------------------------- gates


def check_top(folder: Path, sizes: Sizes) -> None:
    """
    Raises:
        UserError: the best tracks are not the reference's.
    """
    model, batch = workload.seq_transformer(sizes).eval(), next(workload.ordered_batches(folder, sizes))
    expected, tracks = reference_top(model)(batch), our_top(model)(batch)
    gate(torch.equal(tracks, expected), f"{(tracks != expected).sum()} ids of evaluate/top-{K} are not the reference's")


@torch.no_grad()
def check_ranks(folder: Path, sizes: Sizes) -> None:
    """
    Raises:
        UserError: log-probabilities and ranks are not those of all scores, normalised and sorted.
    """
    model = workload.seq_transformer(sizes).eval()
    batch = next(workload.ordered_batches(folder, replace(sizes, batch_size=GATE_SESSIONS)))
    states = model(batch.history, model.previous_tracks(batch.history, batch.target_tracks))
    log_p, ranks = judge(model, states, batch.target_tracks)
    logits, targets = model.logits(states), batch.target_tracks[:, :, None]
    expected = logits.log_softmax(-1).gather(2, targets)[:, :, 0]
    gate(torch.allclose(log_p, expected, rtol=1e-4), "log-probabilities of evaluate/ranks are not those of a softmax")
    places = (logits.argsort(-1, descending=True) == targets).int().argmax(-1)
    # Two scores that differ by rounding only may change places.
    gate(bool((ranks - places).abs().max() <= 1), "evaluate/ranks are not the places in sorted scores")


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds."""
    sizes = config.sizes
    workload.full_sessions(folder / "test", workload.BATCHES * sizes.batch_size, sizes)
    for check in tqdm((check_top, check_ranks), desc="gates", leave=False):
        check(folder / "test", sizes)
    predictors: dict[str, Predictor] = {
        f"evaluate/top-{K}/reference": reference_top,
        f"evaluate/top-{K}/ours": our_top,
        "evaluate/ranks": our_ranks,
    }
    contenders = [
        Contender(name, setup_predictor, {"folder": folder / "test", "sizes": sizes, "predictor": predictor})
        for name, predictor in predictors.items()
    ]
    measured = measure(contenders, rounds=config.rounds, title="evaluation")
    return rows_of(measured, "sessions/s", quick=config.quick, alone={"evaluate/ranks"})


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    if config.quick:
        config = replace(config, rounds=2)
    with tempfile.TemporaryDirectory() as folder:
        return publish(measure_all(config, Path(folder)))


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
