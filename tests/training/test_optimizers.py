"""One step of the optimizers by hand, with dense and row-sparse gradients."""

import math

import pytest
import torch
from torch import nn

from utils.training.optimizers import clip_gradients, make_optimizers


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
    optimizers = make_optimizers(model, lr=0.1, weight_decay=0.5)
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
        optimizers = make_optimizers(model, lr=0.1)
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
    optimizers = make_optimizers(model, lr=0.1, weight_decay=0.5)
    assert len(optimizers) == 1 + (sparse and frozen != "0.weight")
    for optimizer in optimizers:
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"0.weight", "1.weight", "1.bias"} - {frozen}


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
