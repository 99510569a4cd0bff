"""Training steps of each model under each loss, beside a straightforward reference and the ceiling of matrix products.

    python -m benchmarks.training
    python -m benchmarks.training --quick true
    python -m benchmarks.training --sizes.tracks 10000 --rounds 3

A step is all of it: loading the batch, forward, backward, optimiser. Sampled losses are other objectives than the full
softmax: their speed means something only beside the quality at equal wall time (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import reference, workload
from benchmarks.options import fill_in
from benchmarks.reference import Learn
from benchmarks.rounds import Contender, Step, gate, measure
from benchmarks.rows import Row, publish
from benchmarks.workload import Sizes
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.memory import reuse_memory
from utils.data.batch import SessionBatch
from utils.data.dataset import SessionArrays
from utils.training.loop import update
from utils.training.losses import LossFn, seq_loss, skip_loss, track_loss
from utils.training.optimizers import make_optimizers
from utils.training.options import LossConfig

Precision = Literal["float32", "bfloat16"]
LR = 1e-4
AT_ONCE = 2
"""Contenders beside a reference: each of their processes keeps one or two GiB, that of the reference nine."""
GATE_SESSIONS = 32
GATE_UPDATES = 3


@dataclass
class Config:
    """Sizes of the measurement."""

    sizes: Sizes = field(default_factory=Sizes)
    rounds: int = 0
    """Rounds that are timed; 0: seven, or two if quick."""
    steps: int = 0
    """Batches of a round, always 1 for softmaxes over all tracks; 0: four, or two if quick."""
    matmul_size: int = 4096
    """Rows and columns of the matrices whose product is the ceiling."""
    quick: bool = False
    """Two rounds of two steps, and only the most telling contenders."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if sizes are the defaults."""

    def __post_init__(self) -> None:
        fill_in(self, rounds=(7, 2), steps=(4, 2))
        check_at_least(self, "benchmark", rounds=1, steps=1, matmul_size=1)


@dataclass(frozen=True)
class Variant:
    """How a SeqTransformer is trained."""

    loss: LossConfig
    precision: Precision
    tolerance: float
    """Largest relative difference from the reference's loss."""


VARIANTS = {
    "full-fp32": Variant(LossConfig("full"), "float32", tolerance=1e-4),
    "full-bf16": Variant(LossConfig("full"), "bfloat16", tolerance=1e-2),
    "sampled-2048-fp32": Variant(LossConfig("sampled", n_negatives=2048), "float32", tolerance=0.1),
    "sampled-2048": Variant(LossConfig("sampled", n_negatives=2048), "bfloat16", tolerance=0.1),
    "sampled-8192": Variant(LossConfig("sampled", n_negatives=8192), "bfloat16", tolerance=0.1),
    "in-batch-2048": Variant(LossConfig("sampled", n_negatives=2048, in_batch=True), "bfloat16", tolerance=0.1),
    "gbce-2048": Variant(LossConfig("gbce", n_negatives=2048), "bfloat16", tolerance=5e-3),
}
"""bfloat16 where the name does not say fp32."""
QUICK_VARIANTS = ("full-fp32", "sampled-2048")

SKIP_PRECISIONS: dict[str, Precision] = {"ours": "float32", "ours-bf16": "bfloat16"}
SKIP_TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 2e-3}

CEILINGS: dict[Precision, str] = {"float32": "matmul/fp32", "bfloat16": "matmul/bf16"}
SEQ, SKIP = "train/seq-transformer", "train/skip-transformer"


# ---------------------------------------------------------------------------------------------------- contenders


def setup_matmul(size: int, precision: Precision) -> Step:
    """One large matrix product; units are GFLOP."""
    a, b, out = torch.randn(3, size, size).to(getattr(torch, precision))

    def step() -> float:
        torch.mm(a, b, out=out)
        return 2e-9 * size**3

    return step


def setup_reference_seq(folder: Path, sizes: Sizes) -> Step:
    """Python collation, dense softmax, dense Adam."""
    model = reference.without_fast_paths(workload.seq_transformer(sizes))
    return updates(reference.seq_learner(model, lr=LR), reference.batches(SessionArrays.open(folder), sizes), steps=1)


def setup_reference_skip(folder: Path, sizes: Sizes, steps: int) -> Step:
    """Python collation, dense Adam."""
    model = reference.without_fast_paths(workload.skip_transformer(sizes))
    return updates(
        reference.skip_learner(model, lr=LR), reference.batches(SessionArrays.open(folder), sizes), steps=steps
    )


def setup_seq(folder: Path, sizes: Sizes, steps: int, variant: Variant) -> Step:
    """What `train_transformer_seq.py` does."""
    arrays = SessionArrays.open(folder)
    steps = steps if variant.loss.is_sparse else 1
    return updates(seq_learner(arrays, sizes, variant), our_batches(arrays, sizes), steps=steps)


def setup_skip(folder: Path, sizes: Sizes, steps: int, precision: Precision) -> Step:
    """What `train_transformer_skip.py` does."""
    batches = our_batches(SessionArrays.open(folder), sizes)
    return updates(skip_learner(sizes, precision), batches, steps=steps)


def seq_learner(arrays: SessionArrays, sizes: Sizes, variant: Variant) -> Learn:
    """Updates of the SeqTransformer."""
    loss = track_loss(variant.loss, workload.train_plays(arrays))
    model = workload.seq_transformer(sizes, sparse=variant.loss.is_sparse)
    return learner(model, partial(seq_loss, loss=loss), variant.precision)


def skip_learner(sizes: Sizes, precision: Precision) -> Learn:
    """Updates of the SkipTransformer."""
    return learner(workload.skip_transformer(sizes, sparse=True), skip_loss, precision)


def learner(model: nn.Module, loss_fn: LossFn, precision: Precision) -> Learn:
    """Updates as `utils.training.loop.fit` makes them."""
    return learner_with(make_optimizers(model, lr=LR), model, loss_fn, precision)


def learner_with(
    optimizers: list[Optimizer],
    model: nn.Module,
    loss_fn: LossFn,
    precision: Precision | Literal["auto"] = "auto",
) -> Learn:
    """The same, with optimizers that somebody else keeps."""

    def learn(batch: SessionBatch) -> float:
        loss_sum, count = update(model, loss_fn, batch, optimizers, clip=0.0, precision=precision)
        return loss_sum.item() / count

    return learn


def our_batches(arrays: SessionArrays, sizes: Sizes) -> Iterable[SessionBatch]:
    """Shuffled batches for ever."""
    return chain.from_iterable(repeat(workload.loader(arrays, sizes)))


def updates(learn: Learn, batches: Iterable[SessionBatch], *, steps: int, units: int = 1) -> Step:
    """So many updates; a session is one unit, or `units` targets.

    Memory is kept as `utils.training.loop.fit` does, for the reference as well.
    """
    reuse_memory()
    batches = iter(batches)

    def step() -> float:
        n_sessions = 0
        for batch in islice(batches, steps):
            learn(batch)
            n_sessions += len(batch.rows)
        return n_sessions * units

    return step


# --------------------------------------------------------------------------------------------------------- gates


def check(arrays: SessionArrays, sizes: Sizes, variants: dict[str, Variant]) -> None:
    """Same batches; from the same weights, without dropout, the same losses; and other losses fall.

    Raises:
        UserError: not so.
    """
    sizes = replace(sizes, dropout=0.0, batch_size=GATE_SESSIONS)
    batch = same_batch(arrays, sizes)
    ours = partial(seq_learner, arrays, sizes)
    theirs = losses(reference.seq_learner(workload.seq_transformer(sizes), lr=LR), batch)
    gbce = {name: variant for name, variant in variants.items() if variant.loss.name == "gbce"}
    softmax = {name: variant for name, variant in variants.items() if name not in gbce}
    compare_variants(SEQ, softmax, ours, theirs, batch)
    for name, variant in gbce.items():
        dense = partial(reference.gbce, n_negatives=variant.loss.n_negatives, calibration=variant.loss.calibration)
        theirs = losses(reference.seq_learner(workload.seq_transformer(sizes), lr=LR, loss_fn=dense), batch)
        compare_variants(SEQ, {name: variant}, ours, theirs, batch)
    theirs = losses(reference.skip_learner(workload.skip_transformer(sizes), lr=LR), batch)
    for name, precision in SKIP_PRECISIONS.items():
        compare(f"{SKIP}/{name}", losses(skip_learner(sizes, precision), batch), theirs, SKIP_TOLERANCES[precision])


def same_batch(arrays: SessionArrays, sizes: Sizes) -> SessionBatch:
    """A batch of the loader, of which the reference's collation made the same."""
    loader = workload.loader(arrays, sizes)
    batch = next(iter(loader))
    gate(reference.makes_the_same(loader, batch), "a batch of SessionLoader is not that of the Python collation")
    return batch


def losses(learn: Learn, batch: SessionBatch) -> list[float]:
    """Losses of the same batch, each time with the same random numbers, while it is learnt."""
    result = []
    for _ in range(GATE_UPDATES):
        torch.manual_seed(1)
        result.append(learn(batch))
    return result


def compare_variants(
    group: str,
    variants: dict[str, Variant],
    learner_of: Callable[[Variant], Learn],
    theirs: list[float],
    batch: SessionBatch,
) -> None:
    """Compare the losses of each variant with the reference's; those that only estimate them have to fall.

    Raises:
        UserError: not so.
    """
    for name, variant in tqdm(variants.items(), desc="gates", leave=False):
        ours = losses(learner_of(variant), batch)
        if variant.loss.name == "full":
            compare(f"{group}/{name}", ours, theirs, variant.tolerance)
            continue
        # Only the first loss is an estimate of the reference's: what is learnt from it is something else.
        compare(f"{group}/{name}", ours[:1], theirs[:1], variant.tolerance)
        gate(ours[-1] < ours[0], f"the loss of {group}/{name} does not fall: {ours}")


def compare(name: str, ours: list[float], theirs: list[float], tolerance: float) -> None:
    """
    Raises:
        UserError: they differ by more than `tolerance`, relatively.
    """
    close = all(abs(a - b) <= tolerance * abs(b) for a, b in zip(ours, theirs, strict=True))
    gate(close, f"losses of {name} are {ours}, the reference's {theirs} (tolerance {tolerance:g})")


# --------------------------------------------------------------------------------------------------- measurement


class Work(NamedTuple):
    """What a session costs at least."""

    flops: float
    """Floating-point operations of the matrix products of its share of an update."""
    precision: Precision
    """In which numbers."""


def work_of(arrays: SessionArrays, sizes: Sizes, variants: dict[str, Variant]) -> dict[str, Work]:
    """The work of each row, by its name."""
    batch = next(iter(workload.loader(arrays, sizes)))
    few = next(iter(workload.loader(arrays, replace(sizes, batch_size=GATE_SESSIONS))))
    full = count_flops(reference.seq_learner(workload.seq_transformer(sizes), lr=LR), few)
    skip = count_flops(skip_learner(sizes, "float32"), batch)
    work = work_of_variants(SEQ, variants, lambda variant: seq_learner(arrays, sizes, variant), full, batch)
    work[f"{SKIP}/reference"] = Work(skip, "float32")
    return work | {f"{SKIP}/{name}": Work(skip, precision) for name, precision in SKIP_PRECISIONS.items()}


def work_of_variants(
    group: str,
    variants: dict[str, Variant],
    learner_of: Callable[[Variant], Learn],
    full: float,
    batch: SessionBatch,
) -> dict[str, Work]:
    """The work of the reference, `full`, and of each variant.

    All softmaxes over all tracks count as the plain one (forward and two products backward), whatever they compute
    again or spare: the share of the ceiling is that of useful work.
    """
    work = {f"{group}/reference": Work(full, "float32")}
    for name, variant in tqdm(variants.items(), desc="counting operations", leave=False):
        flops = count_flops(learner_of(variant), batch) if variant.loss.is_sparse else full
        work[f"{group}/{name}"] = Work(flops, variant.precision)
    return work


def count_flops(learn: Learn, batch: SessionBatch) -> float:
    """Operations of an update for each session of the batch."""
    with FlopCounterMode(display=False) as counter:
        learn(batch)
    return counter.get_total_flops() / len(batch.rows)


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds of the seq model, then of the skip model."""
    sizes = config.sizes
    n_sessions = (config.rounds + 1) * config.steps * sizes.batch_size
    arrays = workload.full_sessions(folder / "train", n_sessions, sizes)
    variants = {name: VARIANTS[name] for name in (QUICK_VARIANTS if config.quick else VARIANTS)}
    check(arrays, sizes, variants)
    work = work_of(arrays, sizes, variants)

    data = {"folder": folder / "train", "sizes": sizes}
    more = {**data, "steps": config.steps}
    seq = [Contender(f"{SEQ}/{name}", setup_seq, {**more, "variant": variant}) for name, variant in variants.items()]
    skip = [Contender(f"{SKIP}/reference", setup_reference_skip, more)]
    skip += [
        Contender(f"{SKIP}/{name}", setup_skip, {**more, "precision": precision})
        for name, precision in SKIP_PRECISIONS.items()
    ]
    tables, targets = [], sizes.target_size
    for first in range(0, len(seq), AT_ONCE):
        some = [Contender(f"{SEQ}/reference", setup_reference_seq, data), *seq[first : first + AT_ONCE]]
        tables.append(measure_beside_ceilings(some, work, config, title="training, seq", targets=targets))
    tables.append(measure_beside_ceilings(skip, work, config, title="training, skip", targets=targets))
    rows: dict[str, Row] = {}
    for row in chain(*tables):
        rows.setdefault(row.name, row)  # ceilings and reference stand in several tables
    return list(rows.values())


def measure_beside_ceilings(
    contenders: list[Contender],
    work: dict[str, Work],
    config: Config,
    *,
    title: str,
    targets: float,
    unit: str = "sessions/s",
) -> list[Row]:
    """The rows of the ceilings and of the contenders, the first of which is the reference.

    Args:
        targets: of each unit (session) that are learnt from.
    """
    ceilings = [
        Contender(name, setup_matmul, {"size": config.matmul_size, "precision": precision})
        for precision, name in CEILINGS.items()
    ]
    measured = measure([*ceilings, *contenders], rounds=config.rounds, title=title)
    rows = [measured[ceiling.name].row("GFLOP/s", quick=config.quick) for ceiling in ceilings]
    highest = {precision: 1e9 * max(measured[name].rates) for precision, name in CEILINGS.items()}
    for contender in contenders:
        found, (flops, precision) = measured[contender.name], work[contender.name]
        rows.append(
            found.row(
                unit,
                reference=measured[contenders[0].name],
                targets_per_second=found.rate * targets,
                ceiling_share=flops * found.rate / highest[precision],
                quick=config.quick,
            )
        )
    return rows


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
