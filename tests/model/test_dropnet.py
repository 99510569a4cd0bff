"""DropNet: which branch counts how often, and always the average in evaluation."""

import pytest
import torch

from model import dropnet
from model.dropnet import DropNet

OWN, BERT = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -4.0]])
AVERAGE = torch.tensor([[3.0, -1.0]])
BRANCHES = {"own": OWN, "bert": BERT, "average": AVERAGE}


def branch(mix):
    (name,) = [name for name, value in BRANCHES.items() if torch.equal(mix, value)]
    return name


@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, 1.0])
def test_each_branch_counts_as_often_as_p_says(p):
    torch.manual_seed(0)
    drop_net, n = DropNet(p), 4000
    branches = [branch(drop_net(OWN, BERT)) for _ in range(n)]
    for name, expected in {"own": p / 2, "bert": p / 2, "average": 1 - p}.items():
        deviation = (expected * (1 - expected) / n) ** 0.5  # of a binomial's share
        assert branches.count(name) / n == pytest.approx(expected, abs=4 * deviation), name


@pytest.mark.parametrize(
    ("p", "u", "expected"),
    [
        (0.5, 0.0, "own"),
        (0.5, 0.2499, "own"),
        (0.5, 0.25, "average"),
        (0.5, 0.7499, "average"),
        (0.5, 0.75, "bert"),
        (0.5, 0.9999, "bert"),
        (1.0, 0.4999, "own"),
        (1.0, 0.5, "bert"),
        (0.0, 0.0, "average"),
    ],
)
def test_branch_of_a_draw(p, u, expected, monkeypatch):
    monkeypatch.setattr(dropnet.torch, "rand", lambda size: torch.tensor(u))
    assert branch(DropNet(p)(OWN, BERT)) == expected


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_evaluation_is_the_plain_average(p):
    drop_net = DropNet(p).eval()
    before = torch.get_rng_state()
    assert [branch(drop_net(OWN, BERT)) for _ in range(50)] == ["average"] * 50
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"


def test_without_a_rate_nothing_is_drawn():
    before = torch.get_rng_state()
    DropNet(0.0)(OWN, BERT)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_follows_the_seed():
    drop_net, runs = DropNet(0.8), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([branch(drop_net(OWN, BERT)) for _ in range(30)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_one_draw_decides_for_the_whole_batch():
    torch.manual_seed(0)
    drop_net, own, bert = DropNet(1.0), torch.zeros(64, 5, 8), torch.ones(64, 5, 8)
    means = {drop_net(own, bert).mean().item() for _ in range(40)}
    assert means == {0.0, 1.0}


def test_gradient_goes_to_what_counts(monkeypatch):
    for u, expected in ((0.1, (1.0, None)), (0.5, (0.5, 0.5)), (0.9, (None, 1.0))):
        monkeypatch.setattr(dropnet.torch, "rand", lambda size, u=u: torch.tensor(u))
        own, bert = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        DropNet(0.5)(own, bert).sum().backward()
        assert tuple(None if x.grad is None else x.grad[0].item() for x in (own, bert)) == expected


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_rates_that_make_no_sense(p):
    with pytest.raises(ValueError, match="it must be at least 0 and at most 1"):
        DropNet(p)
