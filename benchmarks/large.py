"""The whole catalogue of MSSD, 3.7 million tracks: training, ranking and decoding, beside the same for 103,000.

    python -m benchmarks.large
    python -m benchmarks.large --quick true
    python -m benchmarks.large --sizes.tracks 1000000

Width 64 and one table for input and output, so that a table of vectors and its two moments of Adam are 2.8 GB. Ratios
say how much slower the large catalogue is than the small one. There is no straightforward reference: its scores of one
batch alone would take 38 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks import workload
from benchmarks.decoding import our_greedy
from benchmarks.evaluation import our_ranks, our_top
from benchmarks.options import fill_in
from benchmarks.predicting import Predictor, ordered_batches
from benchmarks.rounds import Contender, Step, measure, rows_of
from benchmarks.rows import Row, publish
from benchmarks.training import LR, learner_with, our_batches, updates
from benchmarks.workload import Sizes
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.memory import reuse_memory
from utils.data.dataset import SessionArrays
from utils.training.losses import LossFn, next_track_loss, seq_loss, skip_loss
from utils.training.optimizers import make_optimizers

FEW_TRACKS = 103_000
MANY = Sizes(tracks=3_700_000, d_model=64, d_ff=256)
PREDICTED_AT_ONCE = 64
"""Sessions of a batch in evaluation and decoding."""
N_BATCHES = 4


@dataclass
class Config:
    """Sizes of the measurement."""

    sizes: Sizes = field(default_factory=lambda: MANY)
    rounds: int = 0
    """Rounds that are timed; 0: five, or two if quick."""
    steps: int = 0
    """Batches of a round of training; 0: four, or two if quick."""
    quick: bool = False
    """Two rounds, a tenth of the tracks."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if sizes are the defaults."""

    def __post_init__(self) -> None:
        fill_in(self, rounds=(5, 2), steps=(4, 2))
        check_at_least(self, "benchmark", rounds=1, steps=1)
        if self.quick and self.sizes == MANY:
            self.sizes = replace(MANY, tracks=MANY.tracks // 10)


# ---------------------------------------------------------------------------------------------------- contenders


Build = Callable[[SessionArrays, Sizes], tuple[nn.Module, LossFn]]
"""A model and its loss."""


def seq_transformer(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """2,048 negatives."""
    loss = workload.sampled_loss(arrays)
    return workload.seq_transformer(sizes, sparse=True, tie_weights=True), partial(seq_loss, loss=loss)


def next_track_gru(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """2,048 negatives."""
    loss = workload.sampled_loss(arrays)
    return workload.next_track_gru(sizes, sparse=True, tie_weights=True), partial(next_track_loss, loss=loss)


def skip_transformer(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """Its tracks are given."""
    return workload.skip_transformer(sizes, sparse=True), skip_loss


BUILDS: dict[str, Build] = {
    "seq-transformer": seq_transformer,
    "next-track-gru": next_track_gru,
    "skip-transformer": skip_transformer,
}
PREDICTORS: dict[str, Predictor] = {"top-10": our_top, "ranks": our_ranks, "greedy": our_greedy}


def setup_training(folder: Path, sizes: Sizes, steps: int, build: Build) -> Step:
    """Updates as `fit` makes them, with all moments of Adam in memory, as they are when each track has been seen."""
    arrays = SessionArrays.open(folder)
    model, loss_fn = build(arrays, sizes)
    optimizers = make_optimizers(model, lr=LR)
    step = updates(learner_with(optimizers, model, loss_fn), our_batches(arrays, sizes), steps=steps)
    step()
    fill_memory(optimizers)
    return step


def fill_memory(optimizers: list[Optimizer]) -> None:
    """Write all moments once: pages of zeros that nobody has written take no memory."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].add_(1e-12)


def setup_prediction(folder: Path, sizes: Sizes, predictor: Predictor) -> Step:
    """Predictions for a small batch of a model with one table; units are sessions."""
    reuse_memory()
    batches = ordered_batches(folder, replace(sizes, batch_size=PREDICTED_AT_ONCE))
    predict = predictor(workload.seq_transformer(sizes, tie_weights=True).eval())
    return lambda: len(predict(next(batches)))


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Each in rounds with itself on the small catalogue: two processes at a time, which bounds the memory."""
    many, rows = config.sizes, list[Row]()
    few = replace(many, tracks=min(FEW_TRACKS, many.tracks))
    folders = {sizes: folder / str(sizes.tracks) for sizes in dict.fromkeys((few, many))}
    for sizes, place in folders.items():
        n_sessions = max(config.steps * (config.rounds + 2), N_BATCHES) * sizes.batch_size
        workload.full_sessions(place, n_sessions, sizes)

    tasks: dict[str, tuple[Callable[..., Step], dict[str, Any]]] = {}
    for kind, build in BUILDS.items():
        tasks[f"train/{kind}"] = setup_training, {"steps": config.steps, "build": build}
    for kind, predictor in PREDICTORS.items():
        tasks[kind] = setup_prediction, {"predictor": predictor}
    for name, (setup, options) in tasks.items():
        pair = [
            Contender(f"large/{name}/{size}", setup, {"folder": folders[sizes], "sizes": sizes, **options})
            for size, sizes in (("few-tracks", few), ("all-tracks", many))
        ]
        measured = measure(pair, rounds=config.rounds, title=f"large, {name}")
        rows += rows_of(measured, "sessions/s", quick=config.quick)
    return rows


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
