"""Pre-training steps of BERT under each loss, beside a straightforward reference and the ceiling of matrix products.

    python -m benchmarks.pretraining
    python -m benchmarks.pretraining --quick true
    python -m benchmarks.pretraining --sizes.tracks 10000 --rounds 3

The BERT has as many layers as encoder and decoder of the other models together, and twice their heads: four of each by
default, as in the seed. Like the other models of the benchmarks, and unlike the seed's BERT, it reads audio features.
Targets are the tracks to be found: a fifth of a session's plays, on average.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import reference, workload
from benchmarks.reference import Learn
from benchmarks.rounds import Contender, Step
from benchmarks.rows import Row, publish
from benchmarks.training import (
    GATE_SESSIONS,
    LR,
    VARIANTS,
    Config,
    Variant,
    Work,
    compare_variants,
    count_flops,
    learner,
    losses,
    measure_beside_ceilings,
    our_batches,
    same_batch,
    updates,
    work_of_variants,
)
from benchmarks.workload import Sizes
from utils.core.cli import cli
from utils.data.dataset import SessionArrays
from utils.training.losses import track_loss
from utils.training.masked_tracks import masked_loss
from utils.training.options import MaskingConfig

BERT = "pretrain/bert"
MASKING = MaskingConfig()
NAMES = ("full-bf16", "sampled-2048")
"""Of `benchmarks.training.VARIANTS`."""
QUICK_NAMES = ("sampled-2048",)


def setup_reference(folder: Path, sizes: Sizes) -> Step:
    """Python collation, dense softmax, dense Adam."""
    model = reference.without_fast_paths(workload.bert(sizes))
    learn = reference.masked_learner(model, MASKING, lr=LR)
    return updates(learn, reference.batches(SessionArrays.open(folder), sizes), steps=1)


def setup_bert(folder: Path, sizes: Sizes, steps: int, variant: Variant) -> Step:
    """What `train_bert_pretrain.py` does."""
    arrays = SessionArrays.open(folder)
    steps = steps if variant.loss.is_sparse else 1
    return updates(bert_learner(arrays, sizes, variant), our_batches(arrays, sizes), steps=steps)


def bert_learner(arrays: SessionArrays, sizes: Sizes, variant: Variant) -> Learn:
    """Updates of the BERT."""
    loss = track_loss(variant.loss, workload.train_plays(arrays))
    model = workload.bert(sizes, sparse=variant.loss.is_sparse)
    return learner(model, partial(masked_loss, loss=loss, masking=MASKING), variant.precision)


def check(arrays: SessionArrays, sizes: Sizes, variants: dict[str, Variant]) -> None:
    """From the same weights and with the same masks, without dropout, the same losses; estimates of them fall.

    Raises:
        UserError: not so.
    """
    sizes = replace(sizes, dropout=0.0, batch_size=GATE_SESSIONS)
    batch = same_batch(arrays, sizes)
    theirs = losses(reference.masked_learner(workload.bert(sizes), MASKING, lr=LR), batch)
    compare_variants(BERT, variants, lambda variant: bert_learner(arrays, sizes, variant), theirs, batch)


def work_of(arrays: SessionArrays, sizes: Sizes, variants: dict[str, Variant]) -> dict[str, Work]:
    """The work of each row, by its name."""
    batch = next(iter(workload.loader(arrays, sizes)))
    full = count_flops(reference.masked_learner(workload.bert(sizes), MASKING, lr=LR), batch)
    return work_of_variants(BERT, variants, lambda variant: bert_learner(arrays, sizes, variant), full, batch)


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds."""
    sizes = config.sizes
    n_sessions = (config.rounds + 1) * config.steps * sizes.batch_size
    arrays = workload.full_sessions(folder / "train", n_sessions, sizes)
    variants = {name: VARIANTS[name] for name in (QUICK_NAMES if config.quick else NAMES)}
    check(arrays, sizes, variants)
    work = work_of(arrays, sizes, variants)
    data = {"folder": folder / "train", "sizes": sizes}
    contenders = [Contender(f"{BERT}/reference", setup_reference, data)]
    contenders += [
        Contender(f"{BERT}/{name}", setup_bert, {**data, "steps": config.steps, "variant": variant})
        for name, variant in variants.items()
    ]
    rows = measure_beside_ceilings(
        contenders,
        work,
        config,
        title="pre-training",
        targets=MASKING.rate * (sizes.history_size + sizes.target_size),
    )
    return rows[-len(contenders) :]  # the rows of the ceilings are those of benchmarks.training


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
