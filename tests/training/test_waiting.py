"""What a GPU wants of a training step, tried without one.

It is never asked for a value, for which it would have to finish all its work first: models are put on the meta device,
which has no values to give. And a model's forward pass is one graph that can be compiled.
"""

from contextlib import nullcontext

import pytest
import torch

from benchmarks import gpu, workload
from benchmarks.workload import Sizes
from utils.training.optimizers import choose_gradients, clip_gradients

SIZES = Sizes(tracks=200, features=3, d_model=16, n_heads=2, n_layers=1, d_ff=16, batch_size=16)
READ_LENGTHS = ("lstm-seq", "lstm-skip")
"""torch's packed sequences want the lengths on the CPU."""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return workload.full_sessions(tmp_path_factory.mktemp("waiting") / "train", 64, SIZES)


def step(name, arrays, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which the meta device does not know
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model, loss_fn = gpu.BUILDS[name](arrays, SIZES)
    model = model.to("meta").train()
    choose_gradients(model)
    loss_sum, count = loss_fn(model, next(iter(workload.loader(arrays, SIZES))))
    assert loss_sum.is_meta
    assert count > 0
    (loss_sum / count).backward()
    clip_gradients(model, 1.0)
    return [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.parametrize("name", [name for name in gpu.BUILDS if name not in READ_LENGTHS])
def test_no_value_is_read_in_a_step(name, arrays, monkeypatch):
    assert step(name, arrays, monkeypatch) == []


@pytest.mark.parametrize("name", READ_LENGTHS)
def test_recurrent_encoders_read_lengths(name, arrays, monkeypatch):
    with pytest.raises(NotImplementedError, match="meta"):
        step(name, arrays, monkeypatch)


def test_there_are_no_row_sparse_gradients_beside_the_cpu(arrays):
    model, _ = gpu.BUILDS["seq-transformer"](arrays, SIZES)
    choose_gradients(model)
    assert model.head.table.sparse
    choose_gradients(model.to("meta"))
    assert not any(module.sparse for module in model.modules() if isinstance(module, torch.nn.Embedding))


@pytest.mark.parametrize("name", ["skip-transformer", "seq-bert-augmented"])
def test_a_forward_pass_is_one_graph(name, arrays):
    """With the parts that a GPU runs (`choose_gradients`), and without a compiler behind the graph."""
    torch.manual_seed(0)
    model, loss_fn = gpu.BUILDS[name](arrays, SIZES)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.sparse = False
    batch = next(iter(workload.loader(arrays, SIZES)))
    torch.manual_seed(1)
    expected, _ = loss_fn(model.eval(), batch)
    model.compile(backend="eager", fullgraph=True)
    torch.manual_seed(1)
    torch.testing.assert_close(loss_fn(model, batch)[0], expected)
    loss_fn(model.train(), batch)[0].backward()
