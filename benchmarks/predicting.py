"""What decoding and evaluation have in common: a SeqTransformer with random weights makes something of each session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from benchmarks import workload
from benchmarks.options import fill_in
from benchmarks.rounds import Contender, Step, measure, rows_of
from benchmarks.rows import Row
from benchmarks.workload import Sizes
from model.transformer import SeqTransformer
from utils.core.checks import check_at_least
from utils.core.memory import reuse_memory
from utils.data.batch import SessionBatch
from utils.data.dataset import SessionArrays

BATCHES = 4
"""Batches of sessions that are predicted, again and again."""
GATE_SESSIONS = 16


@dataclass
class Config:
    """Sizes of the measurement."""

    sizes: Sizes = field(default_factory=Sizes)
    rounds: int = 0
    """Rounds that are timed; 0: seven, or two if quick."""
    quick: bool = False
    """Two rounds; of decoding, greedy only."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if sizes are the defaults."""

    def __post_init__(self) -> None:
        fill_in(self, rounds=(7, 2))
        check_at_least(self, "benchmark", rounds=1)


Predict = Callable[[SessionBatch], Tensor]
"""Makes something of each session of a batch: (B, ...)."""
Predictor = Callable[[SeqTransformer], Predict]
"""Prepares a model for many batches."""
Check = Callable[[SeqTransformer, SessionBatch, SessionBatch], None]
"""A gate: compares outputs for a batch, or where that takes long for the second, small one."""


def ordered_batches(folder: Path, sizes: Sizes) -> Iterator[SessionBatch]:
    """Batches of a folder in order, the same again and again."""
    return chain.from_iterable(repeat(workload.loader(SessionArrays.open(folder), sizes, shuffle=False)))


def setup_predictor(folder: Path, sizes: Sizes, predictor: Predictor) -> Step:
    """Predictions for a batch; units are sessions. Memory is kept as in scoring, for the reference as well."""
    reuse_memory()
    batches = ordered_batches(folder, sizes)
    predict = predictor(workload.seq_transformer(sizes).eval())

    def step() -> float:
        return len(predict(next(batches)))

    return step


def measure_predictors(
    config: Config,
    folder: Path,
    predictors: Mapping[str, Predictor],
    checks: Sequence[Check],
    *,
    alone: Collection[str],
    title: str,
) -> list[Row]:
    """Gates, then rounds.

    Args:
        config: sizes and rounds.
        folder: for the simulated sessions.
        predictors: name of the row -> what is measured; the first is the reference.
        checks: all of them come before the first round.
        alone: rows that have no reference.
        title: of the progress bar.
    """
    sizes, test = config.sizes, folder / "test"
    workload.full_sessions(test, BATCHES * sizes.batch_size, sizes)
    model = workload.seq_transformer(sizes).eval()
    batch, few = (next(ordered_batches(test, replace(sizes, batch_size=n))) for n in (sizes.batch_size, GATE_SESSIONS))
    for check in tqdm(checks, desc="gates", leave=False):
        check(model, batch, few)
    contenders = [
        Contender(name, setup_predictor, {"folder": test, "sizes": sizes, "predictor": predictor})
        for name, predictor in predictors.items()
    ]
    measured = measure(contenders, rounds=config.rounds, title=title)
    return rows_of(measured, "sessions/s", quick=config.quick, alone=alone)
