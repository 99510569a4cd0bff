"""The prioritised replay buffer against sums, draws and weights worked by hand."""

import pytest
import torch
from conftest import random_batch

from utils.agents.replay import PrioritisedReplay, SumTree, Transition


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def transitions(n, seed=0, *, reward=None):
    history = random_batch(n=n, seed=seed).history
    after = random_batch(n=n, seed=seed + 1).history
    generator = torch.Generator().manual_seed(seed)
    return Transition(
        history,
        torch.randint(5, 45, (n,), generator=generator),
        torch.randn(n, 4, generator=generator),
        torch.arange(n, dtype=torch.float32) if reward is None else reward,
        after,
        torch.randint(5, 45, (n, 6), generator=generator),
        torch.arange(n) % 3 == 0,
    )


def flat(transition):
    history, item, proto, reward, after, candidates, done = transition
    return [*history, item, proto, reward, *after, candidates, done]


def tree_of(*values):
    tree = SumTree(len(values))
    tree.set(torch.arange(len(values)), doubles(*values))
    return tree


def test_sum_tree_by_hand():
    """10
      4      6
    1   3  2   4        (the leaves; node 1 is the root)"""
    tree = tree_of(1, 3, 2, 4)
    assert tree.nodes[1:].tolist() == [10, 4, 6, 1, 3, 2, 4]
    assert tree.total == 10
    found = tree.find(doubles(0, 0.99, 1, 3.99, 4, 5.99, 6, 9.99))
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    tree.set(torch.tensor([1, 2]), doubles(0, 5))
    assert tree.nodes[1:].tolist() == [10, 1, 9, 1, 0, 5, 4]
    assert tree.find(doubles(0.5, 1, 5.99, 6)).tolist() == [0, 2, 2, 3]
    assert tree.get(torch.tensor([3, 0])).tolist() == [4, 1]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100])
def test_sum_tree_of_any_size(n):
    values = torch.rand(n, dtype=torch.float64, generator=torch.manual_seed(n))
    tree = tree_of(*values.tolist())
    assert float(tree.total) == pytest.approx(float(values.sum()))
    edges = values.cumsum(0)
    assert tree.find(edges - 1e-9).tolist() == list(range(n))
    # Behind the last edge (as rounding may have it) still stands a leaf that has something.
    assert tree.find(tree.total[None] * (1 + 1e-12)).tolist() == [n - 1]


def test_leaves_may_repeat():
    tree = tree_of(1, 1, 1, 1)
    tree.set(torch.tensor([2, 2, 0]), doubles(7, 7, 2))
    assert tree.nodes[1:].tolist() == [11, 3, 8, 2, 1, 7, 1]


def test_what_is_stored_comes_back():
    replay = PrioritisedReplay(8, alpha=0.6)
    stored = transitions(8)
    replay.add(stored)
    transition, weights, places = replay.sample(8, beta=1.0)
    assert places.tolist() == list(range(8)), "equal priorities, one draw from each share"
    assert weights.tolist() == [1.0] * 8
    for before, after in zip(flat(stored), flat(transition), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_the_oldest_are_overwritten():
    replay = PrioritisedReplay(5, alpha=0.6)
    replay.add(transitions(3))
    assert len(replay) == 3
    assert set(replay.sample(30, beta=0.0).places.tolist()) == {0, 1, 2}
    replay.add(transitions(4, reward=torch.tensor([10.0, 11, 12, 13])))
    assert len(replay) == 5
    rewards = replay.sample(500, beta=0.0).transition.reward
    assert sorted(set(rewards.tolist())) == [2, 10, 11, 12, 13]
    with pytest.raises(ValueError, match="6 transitions do not fit into a replay buffer of 5"):
        replay.add(transitions(6))


def test_draws_follow_the_priorities():
    """Errors 0, 1, 3 with epsilon 1 and alpha 2: priorities 1, 4, 16."""
    replay = PrioritisedReplay(3, alpha=2.0, epsilon=1.0)
    replay.add(transitions(3))
    replay.update(torch.arange(3), torch.tensor([0.0, -1.0, 3.0]))
    assert replay.tree.get(torch.arange(3)).tolist() == [1, 4, 16]
    torch.manual_seed(0)
    drawn = torch.bincount(replay.sample(21_000, beta=0.0).places) / 21_000
    assert drawn.tolist() == pytest.approx([1 / 21, 4 / 21, 16 / 21], abs=1e-3)
    one_by_one = torch.bincount(torch.cat([replay.sample(1, beta=0.0).places for _ in range(600)])) / 600
    assert one_by_one.tolist() == pytest.approx([1 / 21, 4 / 21, 16 / 21], abs=0.06)


def test_weights_by_hand():
    """w_i = (3 P(i))^-beta over the largest: P = 1/21, 4/21, 16/21, so 1, (1/4)^beta, (1/16)^beta."""
    replay = PrioritisedReplay(3, alpha=2.0, epsilon=1.0)
    replay.add(transitions(3))
    replay.update(torch.arange(3), torch.tensor([0.0, -1.0, 3.0]))
    torch.manual_seed(0)
    for beta, expected in ((1.0, [1, 1 / 4, 1 / 16]), (0.5, [1, 1 / 2, 1 / 4]), (0.0, [1, 1, 1])):
        _, weights, places = replay.sample(1000, beta=beta)
        assert set(places.tolist()) == {0, 1, 2}
        assert weights.tolist() == pytest.approx([expected[place] for place in places.tolist()])


def test_weights_undo_the_priorities():
    """With beta 1 the weighted mean of anything is its plain mean, however skewed the draws are."""
    replay = PrioritisedReplay(50, alpha=1.0)
    replay.add(transitions(50))
    replay.update(torch.arange(50), torch.arange(50.0) / 10)
    transition, weights, _ = replay.sample(20_000, beta=1.0)
    assert float((weights * transition.reward).sum() / weights.sum()) == pytest.approx(24.5, rel=0.01)
    assert abs(float(transition.reward.mean()) - 24.5) > 5


def test_alpha_0_is_uniform():
    replay = PrioritisedReplay(4, alpha=0.0)
    replay.add(transitions(4))
    replay.update(torch.arange(4), torch.tensor([0.0, 1, 10, 100]))
    _, weights, places = replay.sample(4000, beta=1.0)
    assert torch.bincount(places).tolist() == [1000] * 4
    assert (weights == 1).all()


def test_new_transitions_come_first():
    replay = PrioritisedReplay(4, alpha=1.0, epsilon=0.0)
    replay.add(transitions(2))
    replay.update(torch.arange(2), torch.tensor([0.5, 6.0]))
    replay.add(transitions(1))
    assert replay.tree.get(torch.arange(3)).tolist() == [0.5, 6.0, 6.0]
    replay.update(torch.tensor([1, 2]), torch.tensor([0.5, 0.5]))
    assert replay.highest == 6.0


def test_state_dict_draws_the_same():
    replay = PrioritisedReplay(10, alpha=0.6)
    replay.add(transitions(7))
    replay.update(torch.arange(7), torch.arange(7.0))
    other = PrioritisedReplay(10, alpha=0.6)
    other.load_state_dict(replay.state_dict())
    for buffer in (replay, other):
        buffer.add(transitions(6, seed=3))
    assert len(other) == 10
    draws = []
    for buffer in (replay, other):
        torch.manual_seed(0)
        draws.append(buffer.sample(50, beta=0.7))
    for first, second in zip(*([*flat(draw.transition), *draw[1:]] for draw in draws), strict=True):
        assert torch.equal(first, second)
