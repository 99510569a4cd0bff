"""Training steps of the next-track GRU, beside the straightforward Transformer of the other rows, in targets/s.

    python -m benchmarks.next_track
    python -m benchmarks.next_track --quick true
    python -m benchmarks.next_track --sizes.tracks 10000 --rounds 3

Families of models learn from different numbers of targets in the same session: an encoder-decoder from the second
half, ten tracks, the GRU from every track but the first, nineteen. So the unit is the target here, and ratios are in
targets. The GRU is as wide as the Transformer. A second table has straightforward versions of the same network (Python
collation, dense Adam), with a softmax over all tracks at once and with the same negatives in plain autograd: the share
of our doing in the whole ratio.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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
    compare,
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
from utils.training.losses import Negatives, next_track_loss, track_loss
from utils.training.options import LossConfig

GRU, TRANSFORMER = "next-track/gru", "next-track/transformer"
NAMES = ("sampled-2048", "sampled-2048-fp32")
"""Of `benchmarks.training.VARIANTS`."""
QUICK_NAMES = ("sampled-2048",)
N_NEGATIVES = 2048
SAMPLED_REFERENCE = f"{GRU}/reference-{N_NEGATIVES}"


def targets_of(sizes: Sizes) -> int:
    """Targets of a whole session: all of its tracks but the first."""
    return sizes.history_size + sizes.target_size - 1


def setup_transformer(folder: Path, sizes: Sizes) -> Step:
    """The reference of `benchmarks.training`; units are targets."""
    model = reference.without_fast_paths(workload.seq_transformer(sizes))
    batches = reference.batches(SessionArrays.open(folder), sizes)
    return updates(reference.seq_learner(model, lr=LR), batches, steps=1, units=sizes.target_size)


def setup_reference(folder: Path, sizes: Sizes) -> Step:
    """The same GRU with Python collation, dense softmax, dense Adam."""
    model = reference.without_fast_paths(workload.next_track_gru(sizes))
    batches = reference.batches(SessionArrays.open(folder), sizes)
    return updates(reference.next_track_learner(model, lr=LR), batches, steps=1, units=targets_of(sizes))


def setup_sampled_reference(folder: Path, sizes: Sizes, steps: int, n_negatives: int) -> Step:
    """The same GRU with the same negatives, and Python collation, plain autograd, dense Adam."""
    arrays = SessionArrays.open(folder)
    model = reference.without_fast_paths(workload.next_track_gru(sizes))
    learn = reference.sampled_next_track_learner(model, negatives_of(arrays, sizes, n_negatives), lr=LR)
    return updates(learn, reference.batches(arrays, sizes), steps=steps, units=targets_of(sizes))


def negatives_of(arrays: SessionArrays, sizes: Sizes, n: int) -> Negatives:
    """The negatives of our sampled softmax."""
    return Negatives(workload.train_plays(arrays), n=n, power=LossConfig().power)


def setup_gru(folder: Path, sizes: Sizes, steps: int, variant: Variant) -> Step:
    """What `train_gru_seq.py` does."""
    arrays = SessionArrays.open(folder)
    learn = gru_learner(arrays, sizes, variant)
    return updates(learn, our_batches(arrays, sizes), steps=steps, units=targets_of(sizes))


def gru_learner(arrays: SessionArrays, sizes: Sizes, variant: Variant) -> Learn:
    """Updates of the GRU."""
    loss = track_loss(variant.loss, workload.train_plays(arrays))
    model = workload.next_track_gru(sizes, sparse=variant.loss.is_sparse)
    return learner(model, partial(next_track_loss, loss=loss), variant.precision)


def check(arrays: SessionArrays, sizes: Sizes, variants: dict[str, Variant]) -> None:
    """From the same weights, without dropout, the same losses as the straightforward GRU; estimates of them fall.

    With the same negatives, the first loss is that of plain autograd (later ones differ: dense Adam moves all rows).

    Raises:
        UserError: not so.
    """
    sizes = replace(sizes, dropout=0.0, batch_size=GATE_SESSIONS)
    batch = same_batch(arrays, sizes)
    full = {"full-fp32": VARIANTS["full-fp32"]}  # is not timed, but says most
    theirs = losses(reference.next_track_learner(workload.next_track_gru(sizes), lr=LR), batch)
    compare_variants(GRU, full | variants, lambda variant: gru_learner(arrays, sizes, variant), theirs, batch)
    for name, variant in variants.items():
        negatives = negatives_of(arrays, sizes, variant.loss.n_negatives)
        plain = reference.sampled_next_track_learner(workload.next_track_gru(sizes), negatives, lr=LR)
        tolerance = 1e-4 if variant.precision == "float32" else 1e-2
        ours = losses(gru_learner(arrays, sizes, variant), batch)
        compare(f"{GRU}/{name}", ours[:1], losses(plain, batch)[:1], tolerance)


def work_of(arrays: SessionArrays, sizes: Sizes, variants: dict[str, Variant]) -> dict[str, Work]:
    """The work of each row for a target, by its name."""
    few = next(iter(workload.loader(arrays, replace(sizes, batch_size=GATE_SESSIONS))))
    batch = next(iter(workload.loader(arrays, sizes)))
    transformer = count_flops(reference.seq_learner(workload.seq_transformer(sizes), lr=LR), few)
    full = count_flops(reference.next_track_learner(workload.next_track_gru(sizes), lr=LR), few)
    work = work_of_variants(GRU, variants, lambda variant: gru_learner(arrays, sizes, variant), full, batch)
    of_target = {name: Work(flops / targets_of(sizes), precision) for name, (flops, precision) in work.items()}
    negatives = negatives_of(arrays, sizes, N_NEGATIVES)
    plain = count_flops(reference.sampled_next_track_learner(workload.next_track_gru(sizes), negatives, lr=LR), batch)
    of_target[SAMPLED_REFERENCE] = Work(plain / targets_of(sizes), "float32")
    return of_target | {f"{TRANSFORMER}/reference": Work(transformer / sizes.target_size, "float32")}


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds beside the Transformer, then beside the straightforward GRU."""
    sizes = config.sizes
    n_sessions = (config.rounds + 1) * config.steps * sizes.batch_size
    arrays = workload.full_sessions(folder / "train", n_sessions, sizes)
    variants = {name: VARIANTS[name] for name in (QUICK_NAMES if config.quick else NAMES)}
    check(arrays, sizes, variants)
    work = work_of(arrays, sizes, variants)
    data: dict[str, Any] = {"folder": folder / "train", "sizes": sizes}
    gru = [
        Contender(f"{GRU}/{name}", setup_gru, {**data, "steps": config.steps, "variant": variant})
        for name, variant in variants.items()
    ]
    tables = [[Contender(f"{TRANSFORMER}/reference", setup_transformer, data), *gru]]
    if not config.quick:
        sampled = {**data, "steps": config.steps, "n_negatives": N_NEGATIVES}
        plain = Contender(SAMPLED_REFERENCE, setup_sampled_reference, sampled)
        # Half a batch: the scores of all tracks for a whole one, and their gradients, take 19 GB.
        half = {**data, "sizes": replace(sizes, batch_size=max(sizes.batch_size // 2, 1))}
        tables.append([Contender(f"{GRU}/reference", setup_reference, half), plain, gru[0]])
    rows: dict[str, Row] = {}
    for contenders in tables:
        measured = measure_beside_ceilings(contenders, work, config, title="next track", targets=1, unit="targets/s")
        for row in measured[-len(contenders) :]:  # the rows of the ceilings are those of benchmarks.training
            rows.setdefault(row.name, row)
    return list(rows.values())


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
