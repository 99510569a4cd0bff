"""The shared loop: interrupted equals uninterrupted, the best is kept, every option does what it says."""

import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from conftest import N_IDS
from sized_models import SeqTransformer, SkipTransformer
from torch import nn

from utils.core.errors import UserError
from utils.data.dataloaders import training_loader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.predict import skip_predictor
from utils.evaluation.scoring import validate
from utils.training import checkpoint, loop
from utils.training.loop import Progress, fit, training_details
from utils.training.losses import seq_loss, skip_loss, track_loss
from utils.training.optimizers import clip_gradients, make_optimizers
from utils.training.options import LossConfig, RunConfig, TrainConfig
from utils.training.run import Run

CPU = torch.device("cpu")


@dataclass
class Config:
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


class Weight(nn.Module):
    """One number, from zero."""

    def __init__(self, start=0.0):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(start))


class Bench:
    """A dataset, a run folder and a loop over 64 sessions."""

    def __init__(self, dataset_folder, folder):
        self.dataset = Dataset.open(dataset_folder)
        self.folder = folder

    def run(self, config, resume=None):
        return Run("bench", Config(config, RunConfig(folder=str(self.folder), resume=resume)), self.dataset)

    def fit(self, model, loss_fn, evaluate_fn, config, *, resume=None, monitor="value", **options):
        self.last_run = self.run(config, resume)
        loader = training_loader(self.dataset, DataConfig(), batch_size=config.batch_size, seed=1)
        return fit(model, loss_fn, evaluate_fn, loader, config=config, run=self.last_run, monitor=monitor, **options)

    def lines(self, split):
        text = (self.last_run.folder / "metrics.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["split"] == split]

    def checkpoint(self, name):
        return torch.load(self.last_run.folder / name, weights_only=True)


@pytest.fixture
def bench(dataset_folder, tmp_path):
    return Bench(dataset_folder, tmp_path)


def constant_gradient(model, batch):
    """The gradient of the mean loss is 1, so each step of Adam is as long as the learning rate."""
    return model.p * len(batch.rows), len(batch.rows)


def scripted(values):
    """An evaluation that reads its values from a list."""
    rest = iter(values)
    return lambda model: {"value": next(rest)}


# --- Interrupted and resumed


def skip_parts(dataset):
    torch.manual_seed(3)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "dropout": 0.3}
    model = SkipTransformer(N_IDS, dataset.features, **sizes)
    return model, skip_loss, lambda m: validate(skip_predictor(m, CPU), dataset, DataConfig())


def seq_parts(dataset):
    torch.manual_seed(3)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "dropout": 0.3}
    model = SeqTransformer(N_IDS, dataset.features, sparse=True, **sizes)
    loss = track_loss(LossConfig(n_negatives=6), dataset.train_plays)  # draws random numbers in training
    return model, lambda m, b: seq_loss(m, b, loss), lambda m: {"maa": float(m.head.bias.detach().sum())}


def interrupted(loss_fn, at_step):
    """The same loss, but Ctrl-C in that step (from 1)."""
    count = 0

    def wrapped(model, batch):
        nonlocal count
        count += 1
        if count == at_step:
            raise KeyboardInterrupt
        return loss_fn(model, batch)

    return wrapped


def assert_same(one, two, path=""):
    """Equal to the bit, but for times."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one.keys() - {"seconds"}:
            assert_same(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{path}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    else:
        assert one == two, path


@pytest.mark.parametrize("parts", [skip_parts, seq_parts])
@pytest.mark.parametrize("at_step", [4, 6, 8, 9, 12])
def test_resumed_equals_uninterrupted(bench, parts, at_step):
    """4 steps an epoch, a validation each 3 steps and at each end: last.pt stands at 3, 4, 6, 8, 9, 12."""
    config = TrainConfig(
        epochs=3,
        batch_size=16,
        lr=1e-2,
        evaluate_every=3,
        schedule="cosine",
        warmup_steps=2,
        clip=1.0,
        weight_decay=0.1,
    )
    whole_model, loss_fn, evaluate_fn = parts(bench.dataset)
    whole = bench.fit(whole_model, loss_fn, evaluate_fn, config, monitor="maa")
    text = (bench.last_run.folder / "metrics.jsonl").read_text()
    assert [line["step"] for line in bench.lines("valid")] == [3, 4, 6, 8, 9, 12]
    assert [line["epoch"] for line in bench.lines("valid")] == [0, 1, 1, 2, 2, 3]
    last, best = bench.checkpoint("last.pt"), bench.checkpoint("best.pt")

    model, loss_fn, evaluate_fn = parts(bench.dataset)
    with pytest.raises(KeyboardInterrupt):
        bench.fit(model, interrupted(loss_fn, at_step), evaluate_fn, config, monitor="maa")
    folder = str(bench.last_run.folder)
    model, loss_fn, evaluate_fn = parts(bench.dataset)
    torch.manual_seed(99)  # the state comes from the checkpoint
    progress = bench.fit(model, loss_fn, evaluate_fn, config, monitor="maa", resume=folder)
    assert_same(bench.checkpoint("last.pt"), last)
    assert_same(bench.checkpoint("best.pt"), best)
    assert_same(model.state_dict(), whole_model.state_dict())
    assert (bench.last_run.folder / "metrics.jsonl").read_text() == text
    assert_same(vars(progress), vars(whole))


def test_lines_after_the_last_save_are_forgotten(bench, monkeypatch):
    config = TrainConfig(epochs=3, batch_size=32, lr=0.1)
    bench.fit(Weight(), constant_gradient, scripted([0.1, 0.2, 0.3]), config)
    text = (bench.last_run.folder / "metrics.jsonl").read_text()
    save, count = loop._save, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise OSError("no space left on device")
        save(*arguments)

    monkeypatch.setattr(loop, "_save", failing)
    with pytest.raises(OSError, match="no space"):
        bench.fit(Weight(), constant_gradient, scripted([0.1, 0.2, 0.3]), config)
    assert len(bench.lines("valid")) == 2
    bench.fit(Weight(), constant_gradient, scripted([0.2, 0.3]), config, resume=str(bench.last_run.folder))
    assert (bench.last_run.folder / "metrics.jsonl").read_text() == text


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_generator_of_a_device_is_saved_and_restored(kind, monkeypatch):
    restored = []
    where = torch.device("cuda:1") if kind == "cuda" else torch.device("mps")
    device = [where] if kind == "cuda" else []  # those of MPS take none: there is one
    state = torch.tensor([7, 8], dtype=torch.uint8)
    monkeypatch.setattr(getattr(torch, kind), "get_rng_state", lambda *args: state if list(args) == device else None)
    monkeypatch.setattr(getattr(torch, kind), "set_rng_state", lambda state, *args: restored.append((state, [*args])))
    states = checkpoint.rng_state(where)
    checkpoint.set_rng_state(states, torch.device("cpu"))
    assert restored == []
    checkpoint.set_rng_state(states, where)
    assert restored == [(state, device)]
    assert torch.equal(torch.get_rng_state(), states["cpu"])


def test_more_epochs_can_be_added(bench):
    model = Weight()
    bench.fit(model, constant_gradient, scripted([0.1, 0.2]), TrainConfig(epochs=2, batch_size=32, lr=0.1))
    folder = str(bench.last_run.folder)
    longer = TrainConfig(epochs=4, batch_size=32, lr=0.1)
    progress = bench.fit(Weight(), constant_gradient, scripted([0.3, 0.4]), longer, resume=folder)
    assert (progress.step, progress.best_value) == (8, 0.4)
    assert [line["step"] for line in bench.lines("valid")] == [2, 4, 6, 8]


def test_a_finished_run_resumes_to_nothing(bench):
    config = TrainConfig(epochs=2, batch_size=32, lr=0.1)
    bench.fit(Weight(), constant_gradient, scripted([0.2, 0.1]), config)
    model = Weight(5.0)
    progress = bench.fit(model, constant_gradient, scripted([]), config, resume=str(bench.last_run.folder))
    assert progress.step == 4
    assert model.p.item() == pytest.approx(-0.2, rel=1e-5)  # of the best step, 2


def test_resuming_with_another_model_is_refused(bench):
    config = TrainConfig(epochs=1, batch_size=32)
    bench.fit(Weight(), constant_gradient, scripted([0.1]), config)
    with pytest.raises(UserError, match=r"last.pt does not fit the configured model"):
        bench.fit(nn.Linear(1, 1), constant_gradient, scripted([]), config, resume=str(bench.last_run.folder))


def test_another_kind_of_device_cannot_go_on(bench, monkeypatch):
    """On the CPU a table has an optimizer of its own, elsewhere not."""
    config = TrainConfig(epochs=1, batch_size=32)
    model, loss_fn, evaluate_fn = seq_parts(bench.dataset)
    bench.fit(model, loss_fn, evaluate_fn, config, monitor="maa")
    folder = bench.last_run.folder
    monkeypatch.setattr("utils.training.loop.make_optimizers", lambda m, _: [torch.optim.AdamW(m.parameters())])
    with pytest.raises(UserError, match=r"last.pt was trained on another kind of device.*--train.device"):
        bench.fit(model, loss_fn, evaluate_fn, config, monitor="maa", resume=str(folder))


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

    def evaluate_fn(model):
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
        bench.fit(Weight(), lambda m, b: (m.p * 0 + math.inf, 1), lambda _: pytest.fail("validated"), config)


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
    modes = []

    def loss_fn(model, batch):
        modes.append(model.training)
        return constant_gradient(model, batch)

    def evaluate_fn(model):
        model.eval()
        return {"value": 0.1}

    bench.fit(Weight(), loss_fn, evaluate_fn, TrainConfig(epochs=2, batch_size=16, evaluate_every=1))
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


# --- Optimisers


def looked_up(sparse):
    """An embedding of five rows and a weight of its own, with gradients of rows 1 (twice) and 3."""
    model = nn.Sequential(nn.Embedding(5, 2, sparse=sparse), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(10.0).view(5, 2))
        model[1].weight.fill_(2.0)
    model(torch.tensor([1, 3, 1])).sum().backward()
    return model


@pytest.mark.parametrize("sparse", [False, True])
def test_first_step_of_adam_moves_touched_rows_by_the_learning_rate(sparse):
    model = looked_up(sparse)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = make_optimizers(model, TrainConfig(lr=0.1, weight_decay=0.5))
    assert len(optimizers) == 1 + sparse
    for optimizer in optimizers:
        optimizer.step()
    moved = torch.zeros(5, 2)
    moved[[1, 3]] = -0.1
    torch.testing.assert_close(model[0].weight - before["0.weight"], moved)
    # The linear layer is decayed: p - lr * decay * p - lr.
    torch.testing.assert_close(model[1].weight, before["1.weight"] * (1 - 0.05) - 0.1)


def test_rows_that_no_batch_touches_stay():
    """Dense Adam lets a row drift on by its moments, lazy Adam does not."""
    for sparse in (False, True):
        model = looked_up(sparse)
        optimizers = make_optimizers(model, TrainConfig(lr=0.1))
        for tracks in ([1, 3, 1], [3]):
            model.zero_grad()
            model(torch.tensor(tracks)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        assert (model[0].weight[1, 0].item() == pytest.approx(2 - 0.1)) == sparse
        assert model[0].weight[3, 0].item() < 6 - 0.19


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("frozen", ["0.weight", "1.weight"])
def test_what_is_frozen_stays(sparse, frozen):
    """Not even decayed: of the embedding, with dense or sparse gradients, and of the linear layer."""
    model = looked_up(sparse)
    dict(model.named_parameters())[frozen].requires_grad_(False)  # has a gradient already
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = make_optimizers(model, TrainConfig(lr=0.1, weight_decay=0.5))
    assert len(optimizers) == 1 + (sparse and frozen != "0.weight")
    for optimizer in optimizers:
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"0.weight", "1.weight", "1.bias"} - {frozen}


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


@pytest.mark.parametrize("sparse", [False, True])
def test_clipping_is_by_the_common_norm(sparse):
    model = looked_up(sparse)
    # Rows 1 (twice) and 3 of [2, 2] each, the weight's [2 + 2 + 6, 3 + 3 + 7], the bias's 3.
    norm = math.sqrt(2 * 4**2 + 2 * 2**2 + 10**2 + 13**2 + 3**2)
    clip_gradients(model, 1.0)
    assert model[0].weight.grad.to_dense()[1].tolist() == pytest.approx([4 / norm] * 2, rel=1e-5)
    assert model[0].weight.grad.to_dense()[3].tolist() == pytest.approx([2 / norm] * 2, rel=1e-5)
    assert model[1].weight.grad[0].tolist() == pytest.approx([10 / norm, 13 / norm], rel=1e-5)
    clip_gradients(model, 2.0)  # is below that now
    assert model[1].bias.grad.item() == pytest.approx(3 / norm, rel=1e-5)
