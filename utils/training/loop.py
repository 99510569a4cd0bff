"""The training loop that scripts share. It knows no task, model or data; a script gives it two functions:

    loss_fn(model, batch)     -> (sum of losses, number of them); the batch is on the CPU
    evaluate_fn()             -> {metric: value} on the validation split; {} if it is empty

A run that is interrupted and resumed equals an uninterrupted one, bit for bit on the CPU.

A step never waits for the GPU: the CPU finds out what depends on the data's shape, and losses are read every
`READ_EVERY` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from model.catalogue import bfloat16_is_fast
from utils.core import distributed
from utils.core.errors import UserError
from utils.core.memory import reuse_memory
from utils.data.batch import SessionBatch, device_of
from utils.data.dataloaders import SessionLoader
from utils.training.checkpoint import load_weights, rng_state, save_checkpoint, set_rng_state
from utils.training.data_parallel import average_sparse, averaging
from utils.training.losses import LossFn
from utils.training.optimizers import choose_gradients, clip_gradients, lr_factor, make_optimizers
from utils.training.options import Precision, TrainConfig
from utils.training.run import Run

READ_EVERY = 10
"""Steps between readings of their losses from the device."""
EvaluateFn = Callable[[], dict[str, float | None]]


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
        """Add the sums of the losses of some steps, and empty the list.

        Raises:
            UserError: one of them is not finite.
        """
        values = torch.stack(losses).tolist() if losses else []
        losses.clear()
        wrong = [value for value in values if not math.isfinite(value)]
        if distributed.total(len(wrong)):  # all processes stop together
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
    """Train `model`, validate it, and leave it with the weights of its best validation, or with the last ones if there
    is none.

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
    optimizers = make_optimizers(model, lr=config.lr, weight_decay=config.weight_decay)
    loss_fn = averaging(model, loss_fn)
    total_steps = config.epochs * len(loader)
    schedules = [
        LambdaLR(optimizer, partial(lr_factor, total=total_steps, warmup=config.warmup_steps, schedule=config.schedule))
        for optimizer in optimizers
    ]
    progress = Progress()
    losses: list[Tensor] = []
    if not distributed.is_first():  # each process has its own rows, and its own dropout for them
        torch.manual_seed(torch.initial_seed() + 1_000_003 * distributed.rank())
    if run.resumed:
        progress = _restore(run, model, optimizers, schedules, loader, vocabulary_hash)
        run.rewind(progress.step)
        _follow(schedules, progress.step, total_steps)

    def validate() -> bool:
        """Evaluate, keep the best weights, save the state; true if training should stop."""
        progress.take_in(losses)
        values = evaluate_fn()
        value = monitored(values, monitor) if values else None
        loss = sum(distributed.from_all(progress.loss_sum)) / max(distributed.total(progress.loss_count), 1)
        run.log(progress.step, loader.epoch, "train", {"loss": loss})
        if values:
            run.log(progress.step, loader.epoch, "valid", values)
        progress.loss_sum, progress.loss_count = 0.0, 0
        best = keep_best(model, value, progress, run=run, direction=direction)
        _save(run, model, optimizers, schedules, loader, progress, vocabulary_hash)
        tqdm.write(f"step {progress.step}: train loss {loss:.4f}, {validated(monitor, value, best=best)}")
        return 0 < config.patience <= progress.validations_since_best

    now = clock(config.clock)
    stopped = progress.reached(config.max_seconds) or 0 < config.patience <= progress.validations_since_best
    while loader.epoch < config.epochs and not stopped:
        model.train()
        bar = tqdm(loader, initial=loader.next_batch, total=len(loader), unit="batch", desc=f"epoch {loader.epoch + 1}")
        started = now()
        for batch in bar:
            loss_sum, count = update(model, loss_fn, batch, optimizers, clip=config.clip, precision=config.precision)
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
    """The clock that counts training time, in seconds."""
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


def validated(monitor: str, value: float | None, *, best: bool) -> str:
    """What a line of progress says of a validation."""
    return "no validation" if value is None else f"valid {monitor} {value:.4f}{' (best)' if best else ''}"


def keep_best(
    model: nn.Module, value: float | None, progress: Progress, *, run: Run, direction: Literal["max", "min"]
) -> bool:
    """Record a validation's value, and write `best.pt` if it is the best so far; returns whether it is.

    Without a value, the last weights are the best ones.
    """
    sign = 1 if direction == "max" else -1
    progress.validations_since_best += 1
    if value is not None and progress.best_value is not None and not sign * value > sign * progress.best_value:
        return False
    progress.best_step, progress.best_value, progress.validations_since_best = progress.step, value, 0
    weights = {"model": model.state_dict(), "vocabulary_hash": run.dataset.vocabulary_hash, "step": progress.step}
    if distributed.is_first():
        save_checkpoint(run.folder / "best.pt", weights)
    return True


def training_details(model: nn.Module, progress: Progress) -> dict[str, Any]:
    """What `result.json` says of a trained model besides its scores; trained parameters are those not frozen."""
    return {
        "device": str(device_of(model)),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "best_step": progress.best_step,
        "best_value": progress.best_value,
        "training_seconds": round(progress.seconds, 2),
    }


def update(
    model: nn.Module,
    loss_fn: LossFn,
    batch: SessionBatch,
    optimizers: list[Optimizer],
    *,
    clip: float,
    precision: Precision,
) -> tuple[Tensor, int]:
    """Make one update; returns the sum (on the model's device) and the number of the losses of the batch, or of this
    process's share of it."""
    model.zero_grad(set_to_none=True)
    with autocast(device_of(model), precision):
        loss_sum, count = loss_fn(model, batch)
    # The mean over the whole batch: each process has losses of its own, and gradients are averaged over processes.
    (loss_sum * distributed.n_processes() / max(distributed.total(count), 1)).backward()
    average_sparse(model)
    if clip:
        clip_gradients(model, clip)
    for optimizer in optimizers:
        optimizer.step()
    return loss_sum.detach(), count


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass in `precision`."""
    enabled = precision == "bfloat16" or (precision == "auto" and bfloat16_is_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


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


def _follow(schedules: list[LambdaLR], step: int, total_steps: int) -> None:
    """Go on with the learning rate of `step` in a training of `total_steps`, and say so if it is another than the
    checkpoint's: a cosine is longer or shorter with another number of epochs."""
    for i, schedule in enumerate(schedules):
        for group, base, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            before, group["lr"] = group["lr"], base * factor(step)
        if i == 0 and not math.isclose(before, group["lr"], rel_tol=1e-9, abs_tol=1e-12):
            tqdm.write(
                f"learning rate {before:.3g} becomes {group['lr']:.3g}: the schedule follows the number of epochs, and "
                f"{step:,} of {total_steps:,} steps are done now"
            )


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
    if distributed.rank() < len(state["rng"]):  # a process that was not there before keeps its own states
        set_rng_state(state["rng"][distributed.rank()], device_of(model))
    return Progress(**state["progress"])
