"""The shared loop. Nothing in it knows the task, the model or the data: two functions are the seam.

    loss_fn(model, batch)     -> (sum of losses, number of them); the batch is on the CPU
    evaluate_fn(model)        -> {metric: value} on the validation split

Interrupted and resumed equals uninterrupted, bit for bit on the CPU.

A GPU is never waited for in a step: what depends on the data's shape is found out on the CPU, and losses are read
every `READ_EVERY` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from model.catalogue import bfloat16_is_fast
from utils import distributed
from utils.allocator import reuse_memory
from utils.batch import LossFn, SessionBatch, device_of
from utils.checkpoint import load_weights, save_checkpoint
from utils.cli import UserError, check_at_least
from utils.dataloaders import SessionLoader
from utils.distributed import sparse_tables
from utils.run import Run

READ_EVERY = 10
"""Steps after which their losses are read from the device."""
EvaluateFn = Callable[[Any], dict[str, float | None]]


@dataclass
class TrainConfig:
    """How long and how to train."""

    epochs: int = 5
    """Passes over the training sessions."""
    batch_size: int = 256
    """Sessions of a step."""
    lr: float = 1e-4
    """Peak learning rate of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the weights of linear layers."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up; cosine falls to zero at the last epoch's end."""
    evaluate_every: int = 0
    """Steps between validations; 0 for the end of each epoch only."""
    patience: int = 0
    """Validations without a new best after which training stops; 0 to never stop early."""
    max_seconds: float = 0.0
    """Training time after which to stop, validations not counted; 0 for no limit."""
    clock: Literal["wall", "processor"] = "wall"
    """What max_seconds counts: wall-clock time, or processor time of this process (of all its threads), which other
    jobs of a shared machine do not use up."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass (autocast); auto is bfloat16 where the processor multiplies it fast."""
    compiled: bool = False
    """Compile the model (torch.compile), which takes minutes before the first step. For GPUs: benchmarks.gpu --compiled
    true tells whether it helps; on the CPU it does not (docs/log.md)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        check_at_least(self, "train", epochs=1, batch_size=1, weight_decay=0, clip=0, warmup_steps=0)
        check_at_least(self, "train", evaluate_every=0, patience=0, max_seconds=0)
        if not self.lr > 0:
            raise UserError(f"train.lr is {self.lr}; it must be positive")


@dataclass
class Progress:
    """Where training stands; saved and resumed."""

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    validations_since_best: int = 0
    seconds: float = 0.0
    """Training time without validations, by `TrainConfig.clock`."""
    loss_sum: float = 0.0
    """Since the last validation."""
    loss_count: int = 0

    def take_in(self, losses: list[Tensor]) -> None:
        """Add the sums of the losses of some steps, and forget them.

        Raises:
            UserError: one of them is not finite.
        """
        values = torch.stack(losses).tolist() if losses else []
        losses.clear()
        wrong = [value for value in values if not math.isfinite(value)]
        if distributed.total(len(wrong)):  # all stop together
            value = wrong[0] if wrong else math.nan
            raise UserError(f"the loss became {value}; lower --train.lr, or clip the gradient with --train.clip 1.0")
        for value in values:
            self.loss_sum += value

    def reached(self, max_seconds: float) -> bool:
        """Whether the time is up; 0 for no limit."""
        return 0 < max_seconds <= self.seconds


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    evaluate_fn: EvaluateFn,
    loader: SessionLoader,
    *,
    config: TrainConfig,
    run: Run,
    monitor: str,
    direction: Literal["max", "min"] = "max",
) -> Progress:
    """Train `model`, validate it, and leave it with the weights of its best validation.

    Args:
        model: on the device on which to train.
        loader: shuffled training batches.
        run: where to log and to save; if it is resumed, training goes on from its `last.pt`.
        monitor: the one metric of `evaluate_fn` that chooses the best weights; `direction` says which way is better.

    Returns:
        Progress, with the best step and value.

    Raises:
        UserError: the loss is not finite, `monitor` is not measured, or `last.pt` does not fit.
    """
    reuse_memory()
    vocabulary_hash = run.dataset.vocabulary_hash
    choose_gradients(model)
    if config.compiled:
        model.compile()
    optimizers = make_optimizers(model, config)
    loss_fn = distributed.averaging(model, loss_fn)
    total_steps = config.epochs * len(loader)
    schedules = [LambdaLR(optimizer, lambda step: _lr_factor(step, total_steps, config)) for optimizer in optimizers]
    progress = Progress()
    losses: list[Tensor] = []
    if not distributed.is_first():  # each has its own rows of a batch, and drops out others of their units
        torch.manual_seed(torch.initial_seed() + 1_000_003 * distributed.rank())
    if run.resumed:
        progress = _restore(run, model, optimizers, schedules, loader, vocabulary_hash)
        run.rewind(progress.step)

    def validate() -> bool:
        """Evaluate, keep the best weights, save the state; true if training should stop."""
        progress.take_in(losses)
        values = evaluate_fn(model)
        value = monitored(values, monitor)
        loss = sum(distributed.from_all(progress.loss_sum)) / max(distributed.total(progress.loss_count), 1)
        run.log(progress.step, loader.epoch, "train", {"loss": loss})
        run.log(progress.step, loader.epoch, "valid", values)
        progress.loss_sum, progress.loss_count = 0.0, 0
        best = " (best)" if keep_best(model, value, progress, run=run, direction=direction) else ""
        _save(run, model, optimizers, schedules, loader, progress, vocabulary_hash)
        tqdm.write(f"step {progress.step}: train loss {loss:.4f}, valid {monitor} {value:.4f}{best}")
        return 0 < config.patience <= progress.validations_since_best

    now = clock(config.clock)
    stopped = progress.reached(config.max_seconds) or 0 < config.patience <= progress.validations_since_best
    while loader.epoch < config.epochs and not stopped:
        model.train()
        bar = tqdm(loader, initial=loader.next_batch, total=len(loader), unit="batch", desc=f"epoch {loader.epoch + 1}")
        started = now()
        for batch in bar:
            loss_sum, count = update(model, loss_fn, batch, optimizers, config)
            for schedule in schedules:
                schedule.step()
            progress.step += 1
            progress.loss_count += count
            losses.append(loss_sum)
            if progress.step % READ_EVERY == 0:
                progress.take_in(losses)
                bar.set_postfix(loss=f"{progress.loss_sum / max(progress.loss_count, 1):.4f}", refresh=False)
            progress.seconds += now() - started
            stopped = distributed.agreed(progress.reached(config.max_seconds)) if config.max_seconds else False
            inside = loader.next_batch < len(loader)
            if inside and (stopped or (config.evaluate_every and progress.step % config.evaluate_every == 0)):
                stopped = validate() or stopped
                model.train()
            if inside and stopped:
                break
            started = now()
        else:
            stopped = validate() or stopped
    load_weights(model, run.folder / "best.pt", vocabulary_hash=vocabulary_hash)
    return progress


def clock(name: Literal["wall", "processor"]) -> Callable[[], float]:
    """What training time is counted by, in seconds."""
    return time.monotonic if name == "wall" else time.process_time


def monitored(values: dict[str, float | None], monitor: str) -> float:
    """The value of the metric that chooses the best weights.

    Raises:
        UserError: it is not measured, or not defined.
    """
    if monitor not in values:
        raise UserError(f"there is no validation metric {monitor}; choose one of {', '.join(values)}")
    value = values[monitor]
    if value is None:
        raise UserError(f"the validation metric {monitor} is not defined on this validation split; use a larger one")
    return value


def keep_best(
    model: nn.Module, value: float, progress: Progress, *, run: Run, direction: Literal["max", "min"]
) -> bool:
    """Take note of a validation's value, and write `best.pt` if it is the best so far; whether it is."""
    sign = 1 if direction == "max" else -1
    progress.validations_since_best += 1
    if progress.best_value is not None and not sign * value > sign * progress.best_value:
        return False
    progress.best_step, progress.best_value, progress.validations_since_best = progress.step, value, 0
    weights = {"model": model.state_dict(), "vocabulary_hash": run.dataset.vocabulary_hash, "step": progress.step}
    if distributed.is_first():
        save_checkpoint(run.folder / "best.pt", weights)
    return True


def training_details(model: nn.Module, progress: Progress) -> dict[str, Any]:
    """What `result.json` says of a trained model beside its scores; of its parameters, how many are not frozen."""
    return {
        "device": str(device_of(model)),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "best_step": progress.best_step,
        "best_value": progress.best_value,
        "training_seconds": round(progress.seconds, 2),
    }


def choose_gradients(model: nn.Module) -> None:
    """Row-sparse gradients are for the CPU only: elsewhere all of a model's tables get dense ones.

    To sort out which rows a batch touched, a GPU would have to be waited for; and gradient, weights and both moments of
    103,000 x 128 are 0.2 GB, which it moves in less than a millisecond.
    """
    if device_of(model).type != "cpu":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = False


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Adam for all parameters but frozen ones: of embeddings with sparse gradients only the rows that a batch touched.

    A row that no batch touches keeps its moments as they are, where the dense algorithm would let them fade and the
    row drift ("lazy" Adam). Only the weights of linear layers are decayed: no embeddings, positions, biases or norms.
    """
    linear_weights = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sparse = sparse_tables(model)
    decayed = [parameter for parameter in trained if parameter in linear_weights]
    rest = [parameter for parameter in trained if parameter not in linear_weights | set(sparse)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, fused=True)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=config.lr))
    return optimizers


def update(
    model: nn.Module, loss_fn: LossFn, batch: SessionBatch, optimizers: list[Optimizer], config: TrainConfig
) -> tuple[Tensor, int]:
    """One update; returns the sum (on the model's device) and the number of the losses of a batch, or of this process's
    share of it."""
    model.zero_grad(set_to_none=True)
    with autocast(device_of(model), config.precision):
        loss_sum, count = loss_fn(model, batch)
    # The mean over the whole batch: gradients are averaged over processes, each of which has losses of its own.
    (loss_sum * distributed.n_processes() / max(distributed.total(count), 1)).backward()
    distributed.average_sparse(model)
    if config.clip:
        clip_gradients(model, config.clip)
    for optimizer in optimizers:
        optimizer.step()
    return loss_sum.detach(), count


def autocast(device: torch.device, precision: Literal["auto", "float32", "bfloat16"]) -> torch.autocast:
    """The context of a forward pass in `precision`."""
    enabled = precision == "bfloat16" or (precision == "auto" and bfloat16_is_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Scale all gradients, dense and sparse, so that their common norm is at most `max_norm`."""
    values = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = nn.utils.get_total_norm(values)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in values:
        gradient.mul_(factor)


def _lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at `step` (from 0)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _save(
    run: Run,
    model: nn.Module,
    optimizers: list[Optimizer],
    schedules: list[LambdaLR],
    loader: SessionLoader,
    progress: Progress,
    vocabulary_hash: str,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedules": [schedule.state_dict() for schedule in schedules],
        "loader": loader.state_dict(),
        "progress": vars(progress),
        "vocabulary_hash": vocabulary_hash,
        "rng": distributed.from_all(rng_state(device_of(model))),
    }
    if distributed.is_first():
        save_checkpoint(run.folder / "last.pt", state)


def _restore(
    run: Run,
    model: nn.Module,
    optimizers: list[Optimizer],
    schedules: list[LambdaLR],
    loader: SessionLoader,
    vocabulary_hash: str,
) -> Progress:
    state = load_weights(model, run.folder / "last.pt", vocabulary_hash=vocabulary_hash)
    if len(state["optimizers"]) != len(optimizers):
        raise UserError(f"{run.folder}/last.pt was trained on another kind of device: go on there, by --train.device")
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    for schedule, values in zip(schedules, state["schedules"], strict=True):
        schedule.load_state_dict(values)
    loader.load_state_dict(state["loader"])
    if distributed.rank() < len(state["rng"]):  # a process that was not there before goes on with its own
        set_rng_state(state["rng"][distributed.rank()], device_of(model))
    return Progress(**state["progress"])


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, of the CPU and of `device`, for a checkpoint."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put torch's generators in the states of a checkpoint; that of `device` only if it is of the same type."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
