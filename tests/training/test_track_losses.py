"""Losses among all tracks: by hand, beside torch's, and unbiased over all draws."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from model.embeddings import TrackHead
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.training import losses
from utils.training.losses import Negatives, full_softmax, gbce, sampled_softmax, track_loss
from utils.training.options import LossConfig

V, D = 11, 4


@pytest.fixture
def scored():
    """States, a head and targets over V ids."""
    torch.manual_seed(0)
    head = TrackHead(V, D)
    torch.nn.init.normal_(head.bias)
    return torch.randn(200, D, requires_grad=True), head, torch.randint(N_SPECIAL, V, (200,))


def plays():
    return torch.tensor([0] * N_SPECIAL + [64, 32, 16, 0, 4, 1])


def gradients(loss, states, head):
    return torch.autograd.grad(loss, [states, head.weight, head.bias], retain_graph=True)


def test_full_softmax_is_cross_entropy_over_tracks(scored):
    states, head, targets = scored
    ours = full_softmax(states, head, targets)
    reference = cross_entropy(head(states), targets, reduction="sum")
    torch.testing.assert_close(ours, reference)
    for ours_grad, reference_grad in zip(
        gradients(ours, states, head), gradients(reference, states, head), strict=True
    ):
        torch.testing.assert_close(ours_grad, reference_grad)
    assert (ours_grad[:N_SPECIAL] == 0).all(), "special ids get no gradient"


def test_full_softmax_in_bfloat16_is_right_for_large_batches():
    """Sums of bfloat16 numbers stand still from some hundreds on: here the most frequent track has 510 targets."""
    torch.manual_seed(0)
    n, v = 10_240, 1000
    head = TrackHead(v, 16)
    states = torch.randn(n, 16, requires_grad=True)
    targets = N_SPECIAL + (torch.rand(n) ** 3 * (v - N_SPECIAL)).long()
    assert targets.bincount().max() > 400
    expected = cross_entropy(head(states), targets, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        ours = full_softmax(states, head, targets)
    assert ours.item() == pytest.approx(expected.item(), rel=0.005)
    for mine, exact in zip(gradients(ours, states, head), gradients(expected, states, head), strict=True):
        assert (mine - exact).norm() < 0.005 * exact.norm()


def test_the_full_softmax_holds_few_scores_of_a_large_catalogue(monkeypatch, scored):
    """Rows get fewer as tracks get more, and the loss stays."""
    states, head, targets = scored
    before = full_softmax(states, head, targets)
    seen = []
    monkeypatch.setattr(losses, "rows_at_once", lambda *sizes: seen.append(sizes) or 7)
    torch.testing.assert_close(full_softmax(states, head, targets), before)
    assert seen == [(V - N_SPECIAL, losses.CHUNK)]


class Scripted(Negatives):
    """Negatives that are given instead of drawn."""

    def draw(self):
        return self.given


def expectation(loss, negatives):
    """The exact mean of `loss()` over all draws: each k-tuple of tracks, weighted by its probability."""
    total = 0.0
    q = negatives.expected.double() / negatives.n
    for given in product(range(N_SPECIAL, V), repeat=negatives.n):
        negatives.given = torch.tensor(given)
        total = total + q[negatives.given].prod() * loss().double()
    return total


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("power", [0, 0.75])
def test_sampled_partition_function_is_unbiased(scored, k, power):
    """exp(loss) is the partition function over exp(s_y); so is its gradient the expected one."""
    states, head, targets = scored
    states = states[:1]
    negatives = Scripted(plays(), n=k, power=power)
    sampled = expectation(lambda: sampled_softmax(states, head, targets[:1], negatives=negatives).exp(), negatives)
    full = full_softmax(states, head, targets[:1]).exp().double()
    torch.testing.assert_close(sampled, full, rtol=1e-5, atol=0)
    for ours, theirs in zip(gradients(sampled, states, head), gradients(full, states, head), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_sampled_gradient_is_unbiased_if_negatives_follow_the_model(scored):
    """Blanc and Rendle 2018: q must be the softmax over the negatives themselves; another q is biased."""
    states, head, targets = scored
    states, targets = states[:1], targets[:1]
    scores = head(states)[0].detach()
    scores[targets] = -torch.inf
    negatives = Scripted(plays(), n=2, power=1)
    negatives.expected = 2 * scores.softmax(0)
    full = gradients(full_softmax(states, head, targets), states, head)
    sampled = expectation(lambda: sampled_softmax(states, head, targets, negatives=negatives), negatives)
    for ours, theirs in zip(gradients(sampled, states, head), full, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    negatives = Scripted(plays(), n=2, power=1)
    sampled = expectation(lambda: sampled_softmax(states, head, targets, negatives=negatives), negatives)
    assert (gradients(sampled, states, head)[0] - full[0]).norm() > 0.05 * full[0].norm()


@pytest.mark.parametrize("in_batch", [False, True])
def test_more_negatives_bring_the_sampled_gradient_to_the_full_one(scored, in_batch):
    states, head, targets = scored
    full = gradients(full_softmax(states, head, targets), states, head)
    errors = []
    for n in (10, 1000, 100_000):
        torch.manual_seed(1)
        loss = sampled_softmax(states, head, targets, negatives=Negatives(plays(), n=n, power=0.75), in_batch=in_batch)
        errors.append((gradients(loss, states, head)[1] - full[1]).norm() / full[1].norm())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.01


def plain_sampled_softmax(states, head, targets, negatives, in_batch):
    """The formula over all pairs at once, differentiated by torch; `negatives` are given."""
    drawn, n_more = negatives.draw(), 0
    if in_batch:
        drawn, n_more = torch.cat([targets, drawn]), int((targets >= N_SPECIAL).sum()) - 1
    expected = negatives.expected[drawn] + n_more * negatives.popularity[drawn]
    scores = states @ head.weight[drawn].T + head.bias[drawn] - expected.log()
    hidden = (drawn == targets[:, None]) | (drawn < N_SPECIAL)
    own = (states * head.weight[targets]).sum(1) + head.bias[targets]
    both = torch.cat([own[:, None], scores.masked_fill(hidden, -1e30)], dim=1)
    return ((both.logsumexp(1) - own) * (targets >= N_SPECIAL)).sum()


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("n", [2, 128, 300])
def test_gradients_of_the_sampled_softmax_are_those_of_its_formula(in_batch, n):
    """They are written by hand, for some rows at a time; some targets are padding, some are drawn as well."""
    torch.manual_seed(0)
    head = TrackHead(40, 8)
    torch.nn.init.normal_(head.bias)
    states = torch.randn(n, 8, requires_grad=True)
    targets = torch.randint(N_SPECIAL, 40, (n,))
    targets[2::5] = PAD
    negatives = Scripted(torch.tensor([0] * N_SPECIAL + [9] * 35), n=20, power=0.5)
    negatives.given = torch.randint(N_SPECIAL, 40, (20,))
    ours = 3 * sampled_softmax(states, head, targets, negatives=negatives, in_batch=in_batch)
    plain = 3 * plain_sampled_softmax(states, head, targets, negatives, in_batch)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    exact = gradients(plain, states, head)
    for mine, theirs in zip(gradients(ours, states, head), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = 3 * sampled_softmax(states, head, targets, negatives=negatives, in_batch=in_batch)
    assert rough.dtype == torch.float32
    for mine, theirs in zip(gradients(rough, states, head), exact, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_in_batch_negatives_by_hand(scored):
    """Three targets, one of them twice; a draw of one negative: m_j = q_j + 2 p_j."""
    states, head, _ = scored
    states, targets = states[:3], torch.tensor([5, 6, 6])
    negatives = Scripted(plays(), n=1, power=1)
    negatives.given = torch.tensor([9])
    p = torch.tensor([0.0] * N_SPECIAL + [64, 32, 16, 1, 4, 1]) / 118
    m = 3 * p  # q is p
    ours = sampled_softmax(states, head, targets, negatives=negatives, in_batch=True)
    s = head(states)
    by_hand = [
        torch.log(s[0, 5].exp() + 2 * s[0, 6].exp() / m[6] + s[0, 9].exp() / m[9]) - s[0, 5],
        *(torch.log(s[i, 6].exp() + s[i, 5].exp() / m[5] + s[i, 9].exp() / m[9]) - s[i, 6] for i in (1, 2)),
    ]
    torch.testing.assert_close(ours, sum(by_hand))


def test_a_negative_that_is_the_target_is_hidden(scored):
    states, head, targets = scored
    negatives = Scripted(plays(), n=3, power=1)
    negatives.given = targets[:1].repeat(3)
    loss = sampled_softmax(states[:1], head, targets[:1], negatives=negatives)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(grad).all() for grad in gradients(loss, states, head))
    loss = gbce(states[:1], head, targets[:1], negatives=negatives, calibration=0)
    assert loss.item() == pytest.approx(-logsigmoid(head(states[0])[targets[0]] - math.log(5)).item() / 4, rel=1e-5)


@pytest.mark.parametrize("calibration", [0, 0.75, 1])
def test_gbce_by_hand(scored, calibration):
    """Six tracks and two uniform negatives: a = 2/5."""
    states, head, targets = scored
    negatives = Scripted(plays(), n=2, power=0)
    negatives.given = torch.tensor([N_SPECIAL + (targets[0] - N_SPECIAL + i) % 6 for i in (1, 2)])
    s = head(states[0]) - math.log(5)  # scores of zero mean the odds 1 : 5
    beta = 2 / 5 * (calibration * (1 - 5 / 2) + 5 / 2)
    # Drawn from all six tracks instead of the five others, each negative counts by 6/5.
    by_hand = -(beta * logsigmoid(s[targets[0]]) + 6 / 5 * logsigmoid(-s[negatives.given]).sum()) / 3
    ours = gbce(states[:1], head, targets[:1], negatives=negatives, calibration=calibration)
    torch.testing.assert_close(ours, by_hand)


@pytest.mark.parametrize("power", [0, 0.75])
def test_gbce_of_full_calibration_learns_probabilities(power):
    """At the true probabilities the expected gradient is zero, however the negatives are drawn."""
    probabilities = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    head = TrackHead(V, D)
    with torch.no_grad():
        head.bias[N_SPECIAL:] = probabilities.logit() + math.log(5)
    states = torch.zeros(1, D)
    negatives = Scripted(plays(), n=2, power=power)
    for calibration, most in ((1, 1e-6), (0, None)):
        gradient = torch.zeros(V, dtype=torch.float64)
        for track, probability in enumerate(probabilities, start=N_SPECIAL):
            target = torch.tensor([track])
            loss = expectation(
                lambda t=target, c=calibration: gbce(states, head, t, negatives=negatives, calibration=c), negatives
            )
            gradient += probability * torch.autograd.grad(loss, head.bias)[0]
        assert gradient.abs().max() < most if most else gradient.abs().max() > 0.01


def test_gbce_of_a_catalogue_of_one_track():
    head, states = TrackHead(N_SPECIAL + 1, D), torch.randn(3, D, requires_grad=True)
    negatives = Negatives(torch.tensor([0] * N_SPECIAL + [7]), n=5, power=0.75)
    loss = gbce(states, head, torch.full((3,), N_SPECIAL), negatives=negatives, calibration=0.75)
    # k = a = 5, no other track: beta = 5 (0.75 (1 - 1/5) + 1/5) = 4
    by_hand = -4 * logsigmoid(head(states)[:, N_SPECIAL]).sum() / 6
    torch.testing.assert_close(loss, by_hand)


def test_gbce_sums_in_float32_under_autocast():
    """Thousands of negatives with a loss of one size each: a sum in bfloat16 would be off by up to 0.4 %."""
    torch.manual_seed(0)
    head, states, targets = TrackHead(1000, 16), torch.randn(200, 16), torch.randint(N_SPECIAL, 1000, (200,))
    negatives = Negatives(torch.ones(1000).long(), n=2048, power=0.75)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(gbce(states, head, targets, negatives=negatives, calibration=0.75))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-4, atol=0)


LOSSES = [
    LossConfig(name="full"),
    LossConfig(name="sampled", n_negatives=50),
    LossConfig(name="sampled", n_negatives=50, power=0),
    LossConfig(name="gbce", n_negatives=50),
]


@pytest.mark.parametrize("config", LOSSES, ids=lambda c: f"{c.name}-{c.power}")
def test_losses_sum_over_targets(scored, config):
    states, head, targets = scored
    loss = track_loss(config, plays())
    torch.manual_seed(4)
    whole = loss(states, head, targets)
    parts = []
    for part in (slice(0, 77), slice(77, None)):
        torch.manual_seed(4)
        parts.append(loss(states[part], head, targets[part]))
    torch.testing.assert_close(whole, sum(parts))
    assert all(torch.isfinite(grad).all() for grad in gradients(whole, states, head))


@pytest.mark.parametrize("config", [*LOSSES, LossConfig(in_batch=True)], ids=lambda c: f"{c.name}-{c.in_batch}")
def test_targets_that_are_no_tracks_cost_nothing(scored, config):
    states, head, targets = scored
    loss = track_loss(config, plays())
    real = torch.arange(len(targets)) % 3 > 0
    mixed = torch.where(real, targets, torch.tensor([PAD, UNK])[targets % 2])
    results = []
    for some_states, some_targets in ((states[real], targets[real]), (states, mixed)):
        torch.manual_seed(4)
        total = loss(some_states, head, some_targets)
        results.append([total, *gradients(total, states, head)])
    for of_real, of_mixed in zip(*results, strict=True):
        torch.testing.assert_close(of_mixed, of_real)


@pytest.mark.parametrize(
    ("power", "weights"), [(1.0, [64, 32, 16, 1, 4, 1]), (0.5, [8, 32**0.5, 4, 1, 2, 1]), (0, [1] * 6)]
)
def test_negatives_follow_flattened_popularity(power, weights):
    torch.manual_seed(1)
    negatives = Negatives(plays(), n=60_000, power=power)
    share = torch.bincount(negatives.draw(), minlength=V) / 60_000
    assert (share[:N_SPECIAL] == 0).all()
    q = np.array(weights) / sum(weights)
    np.testing.assert_allclose(share[N_SPECIAL:], q, atol=0.007)
    np.testing.assert_allclose(negatives.expected[N_SPECIAL:], 60_000 * q, rtol=1e-5)
    np.testing.assert_allclose(negatives.popularity[N_SPECIAL:], np.array([64, 32, 16, 1, 4, 1]) / 118, rtol=1e-6)


def test_a_large_power_draws_the_most_played_track():
    negatives = Negatives(plays(), n=4, power=1000)  # 64^1000 is more than float64 can hold
    assert negatives.draw().tolist() == [N_SPECIAL] * 4
    torch.testing.assert_close(negatives.expected.sum(), torch.tensor(4.0))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_extreme_draws_are_tracks(monkeypatch, uniform):
    negatives = Negatives(plays(), n=2, power=0.75)
    monkeypatch.setattr(torch, "rand", lambda n, dtype: torch.full((n,), uniform, dtype=dtype))
    assert negatives.draw().tolist() == [N_SPECIAL if uniform == 0 else V - 1] * 2
