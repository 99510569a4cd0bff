"""Training steps on a GPU of every model that `fit` trains: time, share of the ceiling, memory, and an epoch.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --compiled true
    python -m benchmarks.gpu --device cpu --sizes.tracks 1000 --sizes.batch_size 64 --seconds 2

A step is all of it: loading the batch, the way to the GPU, forward, backward, optimiser. An epoch is 3.3 million
sessions, which are simulated. The ceiling is one large product of bfloat16 matrices on the same device. Models are
measured one after another in this process, each for so many seconds. The share of the ceiling counts matrix products
that torch's counter knows: of recurrent models not those inside cuDNN.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import workload
from benchmarks.large import Build, next_track_gru, seq_transformer, skip_transformer
from benchmarks.options import settings
from benchmarks.rounds import memory_mib
from benchmarks.rows import Row, heading, save_rows, table
from benchmarks.training import LR
from benchmarks.workload import Sizes
from model.attention import BertBranch
from model.bert import BertForContinuation, BertForSkips
from model.bert_augmented import BertAugmentedSeqTransformer, BertAugmentedSkipTransformer
from model.lstm import LSTMForContinuation, LSTMForSkips
from model.transformer import SeqTransformer, SkipTransformer
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.data.dataset import SessionArrays
from utils.training.loop import READ_EVERY, update
from utils.training.losses import LossFn, hidden_targets_loss, seq_loss, skip_loss, track_loss
from utils.training.machine import pick_device
from utils.training.masked_tracks import masked_loss
from utils.training.model_configs import SeqLSTMConfig, SeqTransformerConfig, SkipLSTMConfig, SkipTransformerConfig
from utils.training.optimizers import choose_gradients, make_optimizers
from utils.training.options import LossConfig, MaskingConfig

LATEST_GPU = Path(__file__).parent / "latest_gpu.json"
EPOCH = 3_300_000
"""Sessions."""
WARM_UP = 3
"""Updates before the clock starts."""
MATMUL = 8192
"""Rows and columns of the matrices of the ceiling."""


@dataclass
class Config:
    """What to measure."""

    device: str = "cuda"
    """cuda, cuda:1, mps; cpu to try it without a GPU."""
    sizes: Sizes = field(default_factory=lambda: Sizes(batch_size=2048))
    """Of the catalogue, the models and the batches."""
    seconds: float = 20.0
    """Time for each model."""
    sessions: int = 200_000
    """Simulated sessions."""
    compiled: bool = False
    """Measure each model but the next-track GRU, which cuDNN runs, compiled as well; compiling takes a minute each."""
    matmul_size: int = MATMUL
    """Rows and columns of the matrices whose product is the ceiling."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest_gpu.json, if sizes are the defaults and it is a GPU."""

    def __post_init__(self) -> None:
        check_at_least(self, "benchmark", seconds=0.01, sessions=1, matmul_size=1)


# --------------------------------------------------------------------------------------------------------- models


def full_seq_transformer(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """With the softmax over all tracks."""
    loss = track_loss(LossConfig("full"), workload.train_plays(arrays))
    return workload.seq_transformer(sizes, tie_weights=True), partial(seq_loss, loss=loss)


def bert(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """Pre-training."""
    masking = MaskingConfig()
    return workload.bert(sizes, sparse=True), partial(masked_loss, loss=workload.sampled_loss(arrays), masking=masking)


def augmented(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """A SeqTransformer beside a frozen BERT."""
    reader = workload.bert(sizes, sparse=True).bert
    options = asdict(SeqTransformerConfig()) | workload.model_options(sizes)
    branch = BertBranch(sizes.d_model, 0.0)
    transformer = SeqTransformer(sizes.n_ids, workload.features(sizes), branch=branch, sparse=True, **options)
    model = BertAugmentedSeqTransformer(transformer, reader, finetune_bert=False)
    return model, partial(seq_loss, loss=workload.sampled_loss(arrays))


def finetuned_seq(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """BERT that fills in the tracks of the second half."""
    reader = workload.bert(sizes, sparse=True).bert
    model = BertForContinuation(reader, target_size=sizes.target_size, tie_weights=True, sparse=True)
    return model, partial(hidden_targets_loss, loss=workload.sampled_loss(arrays))


def finetuned_skip(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """BERT that tells skips."""
    return BertForSkips(workload.bert(sizes, sparse=True).bert, use_log=True), skip_loss


def augmented_skip(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """A SkipTransformer beside a frozen BERT."""
    reader = workload.bert(sizes, sparse=True).bert
    options = asdict(SkipTransformerConfig()) | workload.model_options(sizes)
    branch = BertBranch(sizes.d_model, 0.0)
    transformer = SkipTransformer(sizes.n_ids, workload.features(sizes), branch=branch, sparse=True, **options)
    return BertAugmentedSkipTransformer(transformer, reader, finetune_bert=False), skip_loss


def lstm_skip(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """The LSTM that tells skips, without the labels between them, as in the configs."""
    options = asdict(SkipLSTMConfig(d_model=sizes.d_model, previous_label=False))
    features, history_size = workload.features(sizes), sizes.history_size
    model = LSTMForSkips(sizes.n_ids, features, history_size=history_size, sparse=True, **options)
    return model, skip_loss


def lstm_seq(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, LossFn]:
    """The LSTM that continues sessions."""
    options = asdict(SeqLSTMConfig(d_model=sizes.d_model))
    features, history_size = workload.features(sizes), sizes.history_size
    model = LSTMForContinuation(sizes.n_ids, features, history_size=history_size, sparse=True, **options)
    return model, partial(seq_loss, loss=workload.sampled_loss(arrays))


BUILDS: dict[str, Build] = {
    "seq-transformer": seq_transformer,
    "seq-transformer-full": full_seq_transformer,
    "skip-transformer": skip_transformer,
    "bert": bert,
    "bert-finetune-seq": finetuned_seq,
    "bert-finetune-skip": finetuned_skip,
    "seq-bert-augmented": augmented,
    "skip-bert-augmented": augmented_skip,
    "lstm-seq": lstm_seq,
    "lstm-skip": lstm_skip,
    "next-track-gru": next_track_gru,
}


# --------------------------------------------------------------------------------------------------- measurement


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def rate_of(step: Callable[[], float], device: torch.device, seconds: float) -> float:
    """Units a second of a step that is repeated for some time, after a warm-up."""
    for _ in range(WARM_UP):
        step()
    wait_for(device)
    started, units = time.perf_counter(), 0.0
    while units == 0 or time.perf_counter() - started < seconds:
        units += sum(step() for _ in range(READ_EVERY))
        wait_for(device)  # as `fit` does when it reads losses
    return units / (time.perf_counter() - started)


def ceiling(device: torch.device, size: int, seconds: float) -> float:
    """Floating-point operations a second of one large product in bfloat16."""
    a, b = torch.randn(2, size, size, device=device).bfloat16()

    def step() -> float:
        torch.mm(a, b)
        return 2.0 * size**3

    return rate_of(step, device, seconds)


def peak_mib(device: torch.device) -> float:
    """Of the device's memory; of this process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return memory_mib("VmHWM")


def measure_model(
    name: str, build: Build, arrays: SessionArrays, config: Config, device: torch.device, *, highest: float
) -> Row:
    """Updates as `fit` makes them; `highest` is the ceiling."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    model, loss_fn = build(arrays, config.sizes)
    model = model.to(device)
    if name.endswith("/compiled"):
        model.compile()
    choose_gradients(model)
    optimizers = make_optimizers(model, lr=LR)
    batches = chain.from_iterable(repeat(workload.loader(arrays, config.sizes)))

    def step() -> float:
        batch = next(batches)
        update(model, loss_fn, batch, optimizers, clip=0.0, precision="auto")
        return len(batch.rows)

    with FlopCounterMode(display=False) as counter:
        n_sessions = step()
    flops = counter.get_total_flops() / n_sessions
    if build is full_seq_transformer:  # the counter does not know its fused softmax: scores, and two gradients of them
        flops += 6.0 * config.sizes.target_size * config.sizes.d_model * config.sizes.n_ids
    rate = rate_of(step, device, config.seconds)
    return Row(name, rate, "sessions/s", peak_mib=peak_mib(device), ceiling_share=flops * rate / highest)


def measure_all(config: Config, folder: Path) -> list[Row]:
    """The ceiling, then model after model.

    Raises:
        UserError: there is no such device.
    """
    device = pick_device(config.device)
    sizes = config.sizes
    arrays = workload.full_sessions(folder, max(config.sessions, sizes.batch_size), sizes)
    highest = ceiling(device, config.matmul_size, min(config.seconds, 3.0))
    rows = [Row("gpu/matmul-bf16", highest / 1e9, "GFLOP/s")]
    for name, build in tqdm(BUILDS.items(), desc="models"):
        for variant in ("eager", "compiled") if config.compiled and name != "next-track-gru" else ("eager",):
            row = measure_model(f"gpu/{name}/{variant}", build, arrays, config, device, highest=highest)
            rows.append(row)
    return [replace(row, settings={**settings(config), "gpu": device_name(device)}) for row in rows]


def epochs(rows: list[Row], sizes: Sizes) -> str:
    """A line for each model: time of a step, and of an epoch."""
    lines = [f"{'':40}{'ms a step':>10}{'epoch':>12}"]
    for row in rows:
        if row.unit == "sessions/s":
            step, minutes = 1000 * sizes.batch_size / row.value, EPOCH / row.value / 60
            lines.append(f"{row.name.removeprefix('gpu/'):40}{step:10.1f}{minutes:8.1f} min")
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main(config: Config) -> list[Row]:
    """Measure, print and save.

    Raises:
        UserError: there is no such device.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA GPU here; --device cpu tries the benchmark on the processor")
    device = pick_device(config.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(config, Path(folder) / "train")
    print(f"{device_name(device)}; {heading()}", table(rows), epochs(rows, config.sizes), sep="\n\n")
    has_usual_sizes = replace(config, device="cuda", compiled=False, out=None) == Config()
    if config.out or (has_usual_sizes and device.type != "cpu"):
        save_rows(rows, config.out or LATEST_GPU)
    return rows


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
