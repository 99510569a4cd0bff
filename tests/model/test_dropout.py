"""Dropout: rates, scale, gradients, and nothing in evaluation."""

import pytest
import torch

from model.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_and_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, dtype=dtype)
    y = Dropout(p)(x)
    rate = round(256 * p) / 256
    assert y.dtype == dtype
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.002)
    assert y[y != 0].unique().item() == pytest.approx(1 / (1 - rate), rel=0.004)
    assert y.float().mean().item() == pytest.approx(1, abs=0.01)


def test_each_of_the_eight_bytes_of_a_draw_is_fair():
    torch.manual_seed(0)
    kept = Dropout(0.25)(torch.ones(800_000)).view(-1, 8) != 0
    assert kept.float().mean(0).tolist() == pytest.approx([0.75] * 8, abs=0.005)
    together = (kept[:, :-1] & kept[:, 1:]).float().mean(0)  # neighbours are independent
    assert together.tolist() == pytest.approx([0.75**2] * 7, abs=0.005)


def test_gradient_passes_where_the_value_does():
    torch.manual_seed(0)
    x = torch.randn(7, 13, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())
    assert 0.2 < (x.grad == 0).float().mean() < 0.8


def test_evaluation_and_zero_rate_change_nothing():
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_it_follows_the_seed():
    x, dropout = torch.ones(100), Dropout(0.5)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(dropout(x))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("p", [-0.1, 1.0, 0.001, 1 / 512, float("nan")])
def test_rates_that_make_no_sense(p):
    with pytest.raises(ValueError, match="it must be 0, or above 1/512 and below 1"):
        Dropout(p)
