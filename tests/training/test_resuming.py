"""Interrupted and resumed equals uninterrupted, to the bit."""

import pytest
import torch
from torch import nn
from training_bench import Bench, Weight, constant_gradient, scripted, seq_parts, skip_parts

from utils.core.errors import UserError
from utils.training import checkpoint, loop
from utils.training.optimizers import lr_factor
from utils.training.options import TrainConfig


@pytest.fixture
def bench(dataset_folder, tmp_path):
    return Bench(dataset_folder, tmp_path)


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
    monkeypatch.setattr("utils.training.loop.make_optimizers", lambda m, **_: [torch.optim.AdamW(m.parameters())])
    with pytest.raises(UserError, match=r"last.pt was trained on another kind of device.*--train.device"):
        bench.fit(model, loss_fn, evaluate_fn, config, monitor="maa", resume=str(folder))


@pytest.mark.parametrize(("schedule", "said"), [("cosine", True), ("constant", False)])
def test_a_resumed_schedule_follows_the_new_number_of_epochs_and_says_so(bench, schedule, said, capsys):
    """4 steps an epoch. After 4 of 4 steps a cosine is at 0; of 12 it is at half of (1 + cos(60 degrees)), 3/4."""
    one, three = (TrainConfig(epochs=n, batch_size=16, lr=1e-2, schedule=schedule) for n in (1, 3))
    bench.fit(Weight(), constant_gradient, scripted([1]), one)
    capsys.readouterr()
    model = Weight()
    bench.fit(model, constant_gradient, scripted([2, 3]), three, resume=str(bench.last_run.folder))
    line = "learning rate 0 becomes 0.0075: the schedule follows the number of epochs, and 4 of 12 steps are done now"
    assert [text for text in capsys.readouterr().out.splitlines() if "rate" in text] == ([line] if said else [])
    if said:
        rates = [1e-2 * lr_factor(step, total=4, warmup=0, schedule="cosine") for step in range(4)]
        rates += [1e-2 * lr_factor(step, total=12, warmup=0, schedule="cosine") for step in range(4, 12)]
        assert rates[4] == pytest.approx(0.0075)
        assert model.p.item() == pytest.approx(-sum(rates), rel=1e-4), "each step is as long as its rate"
