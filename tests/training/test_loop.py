"""The shared loop: the best is kept, every option does what it says."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_bench import Bench, Weight, constant_gradient, scripted, seq_parts, skip_parts

from utils.core.errors import UserError
from utils.training import loop
from utils.training.loop import Progress, training_details
from utils.training.optimizers import lr_factor
from utils.training.options import TrainConfig


@pytest.fixture
def bench(dataset_folder, tmp_path):
    return Bench(dataset_folder, tmp_path)


# --- The best


@pytest.mark.parametrize(
    ("direction", "values", "best_epoch"),
    [
        ("max", [0.2, 0.5, 0.4, 0.6, 0.1], 4),
        ("min", [0.5, 0.2, 0.4, 0.1, 0.6], 4),
        ("max", [0.5, 0.5, 0.2, 0.1, 0.5], 1),
    ],
)
def test_the_best_is_kept(bench, direction, values, best_epoch):
    model, seen = Weight(), []
    rest = iter(values)

    def evaluate_fn():
        seen.append(model.p.item())
        if len(seen) > 1:
            best = bench.checkpoint("best.pt")
            so_far = (max if direction == "max" else min)(values[: len(seen) - 1])
            assert best["step"] == 2 * (values.index(so_far) + 1)
            assert best["model"]["p"].item() == seen[values.index(so_far)]
        return {"value": next(rest), "other": 9.0 * len(seen)}

    config = TrainConfig(epochs=5, batch_size=32, lr=0.1)
    progress = bench.fit(model, constant_gradient, evaluate_fn, config, direction=direction)
    assert len(seen) == 5
    assert (progress.best_step, progress.best_value) == (2 * best_epoch, values[best_epoch - 1])
    assert model.p.item() == seen[best_epoch - 1], "the model is left with its best weights"
    assert bench.checkpoint("last.pt")["model"]["p"].item() == seen[-1]
    assert [line["other"] for line in bench.lines("valid")] == [9, 18, 27, 36, 45]


def test_patience(bench):
    config = TrainConfig(epochs=9, batch_size=32, lr=0.1, patience=2)
    progress = bench.fit(Weight(), constant_gradient, scripted([0.3, 0.2, 0.4, 0.4, 0.1, 0.9]), config)
    assert (progress.step, progress.best_step) == (10, 6)
    again = bench.fit(Weight(), constant_gradient, scripted([]), config, resume=str(bench.last_run.folder))
    assert again.step == 10


@pytest.mark.parametrize(("clock", "function"), [("wall", "monotonic"), ("processor", "process_time")])
def test_max_seconds(bench, monkeypatch, clock, function):
    ticks = iter(range(1000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(**{function: lambda: next(ticks)}))  # a second for each step
    config = TrainConfig(epochs=9, batch_size=16, lr=0.1, max_seconds=6, clock=clock)
    progress = bench.fit(Weight(), constant_gradient, scripted([0.1, 0.2]), config)
    assert (progress.step, progress.seconds) == (6, 6)
    assert [line["step"] for line in bench.lines("valid")] == [4, 6]  # the end of the epoch, and where time ran out
    again = bench.fit(Weight(), constant_gradient, scripted([]), config, resume=str(bench.last_run.folder))
    assert again.step == 6


def test_an_undefined_or_unknown_monitor(bench):
    config = TrainConfig(epochs=1, batch_size=32)
    with pytest.raises(UserError, match="value is not defined on this validation split"):
        bench.fit(Weight(), constant_gradient, scripted([None]), config)
    with pytest.raises(UserError, match="no validation metric mma; choose one of value"):
        bench.fit(Weight(), constant_gradient, scripted([1.0]), config, monitor="mma")


# --- Steps


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("constant", 4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ("cosine", 2, [1 / 2, 1, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(6))]),
    ],
)
def test_learning_rates(bench, schedule, warmup, factors):
    """As `lr_factor` says, and as steps show."""
    said = [lr_factor(step, total=8, warmup=warmup, schedule=schedule) for step in range(8)]
    assert said == pytest.approx(factors)
    seen = []

    def loss_fn(model, batch):
        seen.append(model.p.item())
        return constant_gradient(model, batch)

    config = TrainConfig(epochs=2, batch_size=16, lr=0.5, schedule=schedule, warmup_steps=warmup)
    model = Weight()
    bench.fit(model, loss_fn, scripted([0.1, 0.2]), config)
    steps = [a - b for a, b in zip(seen, [*seen[1:], model.p.item()], strict=True)]
    assert steps == pytest.approx([0.5 * factor for factor in factors], abs=1e-5)


def test_weight_decay_is_decoupled_and_only_of_linear_weights(bench):
    model = nn.ModuleList([nn.Linear(1, 1), nn.LayerNorm(1), nn.EmbeddingBag(1, 1), Weight()])
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    config = TrainConfig(epochs=1, batch_size=32, lr=0.1, weight_decay=0.5)
    zero = lambda m, b: (0 * sum(p.sum() for p in m.parameters()), len(b.rows))  # noqa: E731
    bench.fit(model, zero, scripted([0.1]), config)
    decayed = pytest.approx((1 - 0.1 * 0.5) ** 2)
    assert {name: p.item() for name, p in model.named_parameters()} == {
        **{"0.weight": decayed, "0.bias": 1, "1.weight": 1, "1.bias": 1, "2.weight": 1, "3.p": 1},
    }


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 30.0), (2.0, 2.0), (50.0, 30.0)])
def test_clipping(bench, clip, norm):
    """Of the gradient of the batch's mean loss."""
    model = Weight()
    config = TrainConfig(epochs=1, batch_size=64, clip=clip)
    bench.fit(model, lambda m, b: (30 * m.p * 64, 64), scripted([0.1]), config)
    assert model.p.grad.item() == pytest.approx(norm, rel=1e-5)


def test_the_logged_loss_is_the_exact_mean(bench):
    """Over batches of 24, 24 and 16, and again from zero after each validation."""
    steps = iter(range(6))

    def loss_fn(model, batch):
        epoch = 1 + next(steps) // 3
        return model.p + epoch * batch.rows.sum(), len(batch.rows)

    bench.fit(Weight(), loss_fn, scripted([0.1, 0.2]), TrainConfig(epochs=2, batch_size=24, lr=1e-9))
    assert [line["loss"] for line in bench.lines("train")] == pytest.approx([31.5, 2 * 31.5], abs=1e-6)


def test_batches_without_targets_change_nothing(bench):
    model = Weight(1.0)
    bench.fit(model, lambda m, b: (0 * m.p, 0), scripted([0.1]), TrainConfig(epochs=1, batch_size=32))
    assert model.p.item() == 1
    assert bench.lines("train")[0]["loss"] == 0


def test_a_loss_that_is_not_finite_is_found_before_it_is_validated(bench):
    """Losses are read every few steps and before each validation, which could not make sense of such a model."""
    config = TrainConfig(epochs=1, batch_size=32)
    with pytest.raises(UserError, match=r"the loss became inf"):
        bench.fit(Weight(), lambda m, b: (m.p * 0 + math.inf, 1), lambda: pytest.fail("validated"), config)


def test_a_model_is_compiled_if_asked(bench, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    for asked in (False, True):
        model = Weight()
        bench.fit(model, constant_gradient, scripted([0.1]), TrainConfig(epochs=1, batch_size=32, compiled=asked))
    assert compiled == [model]


def test_nan_is_refused_and_the_last_good_state_stays(bench):
    def loss_fn(model, batch):
        loss, count = constant_gradient(model, batch)
        return (loss * math.nan if model.p.item() < -0.25 else loss), count

    config = TrainConfig(epochs=3, batch_size=32, lr=0.1)
    with pytest.raises(UserError, match=r"the loss became nan; lower --train.lr"):
        bench.fit(Weight(), loss_fn, scripted([0.1, 0.2, 0.3]), config)
    assert bench.checkpoint("last.pt")["model"]["p"].item() == pytest.approx(-0.2, rel=1e-5)


def test_modes(bench):
    model, modes = Weight(), []

    def loss_fn(model, batch):
        modes.append(model.training)
        return constant_gradient(model, batch)

    def evaluate_fn():
        model.eval()
        return {"value": 0.1}

    bench.fit(model, loss_fn, evaluate_fn, TrainConfig(epochs=2, batch_size=16, evaluate_every=1))
    assert modes == [True] * 8


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision(bench, precision, dtype):
    dtypes = []

    def loss_fn(model, batch):
        dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return constant_gradient(model, batch)

    model = Weight()
    bench.fit(model, loss_fn, scripted([0.1]), TrainConfig(epochs=1, batch_size=64, precision=precision))
    assert dtypes == [dtype]
    assert model.p.dtype == torch.float32


@pytest.mark.parametrize("parts", [skip_parts, seq_parts])
def test_models_train_in_bfloat16(bench, parts):
    model, loss_fn, _ = parts(bench.dataset)
    config = TrainConfig(epochs=1, batch_size=16, lr=1e-2, precision="bfloat16")
    bench.fit(model, loss_fn, scripted([0.1]), config)
    assert math.isfinite(bench.lines("train")[0]["loss"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("epochs", 0), ("batch_size", 0), ("lr", 0.0), ("lr", -1.0), ("clip", -1.0), ("weight_decay", -0.1)),
        *(("warmup_steps", -1), ("patience", -1), ("evaluate_every", -1), ("max_seconds", -1.0), ("clip", math.nan)),
    ],
)
def test_options_are_checked(option, value):
    with pytest.raises(UserError, match=f"train.{option} is {value}; it must be"):
        TrainConfig(**{option: value})


def test_parameters_are_counted_once_and_frozen_ones_too():
    """5 x 2 of the embedding and 2 x 5 + 5 of a linear layer; then the layer shares the table of the embedding."""
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5))
    progress = Progress(best_step=3, best_value=0.5, seconds=1.234)

    def counted():
        details = training_details(model, progress)
        return details["n_parameters"], details["n_trained_parameters"]

    assert counted() == (25, 25)
    model[0].requires_grad_(False)
    assert counted() == (25, 15)
    model[1].weight = model[0].weight
    assert counted() == (15, 5)
    model.requires_grad_(False)
    assert training_details(model, progress) == {
        "device": "cpu",
        "n_parameters": 15,
        "n_trained_parameters": 0,
        "best_step": 3,
        "best_value": 0.5,
        "training_seconds": 1.23,
    }
