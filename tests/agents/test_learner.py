"""What an update changes and what it does not, and that agents learn what is best."""

import pytest
import torch
from agent_models import agent_of, learner_of, loss_of, transition_of
from conftest import random_batch
from sized_models import ActorCritic

from model.ddpg import STATE_LISTENED, actor_loss
from model.decoding import select
from utils.agents.environment import LoggedSessions
from utils.agents.learner import Learner, noise_mask, noise_rate
from utils.agents.options import DDPGConfig, EnvironmentConfig, NoiseConfig
from utils.agents.replay import PrioritisedReplay, Transition
from utils.data.batch import History, SessionBatch
from utils.data.vocab import N_SPECIAL, PAD


def weights_of(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before, module):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("item", [True, False])
def test_critic_loss_by_the_formula(item):
    agent, target, transition = agent_of(0), agent_of(1), transition_of()
    weights = torch.linspace(0.1, 1, 12)
    loss, errors = loss_of(agent, target, transition, weights, item=item, gamma=0.8)
    next_state = target.encoder(transition.next_history)
    a = target.actor(next_state)
    if item:
        scores = (target.items(transition.next_candidates) * a[:, None]).sum(2)
        scores[:, 3] = -1e9  # padding
        a = target.items(transition.next_candidates[torch.arange(12), scores.argmax(1)])
    y = transition.reward + 0.8 * (1 - transition.done.float()) * target.critic(next_state, a)
    q = agent.critic(agent.encoder(transition.history), agent.items(transition.item) if item else transition.proto)
    assert torch.allclose(errors, y - q, atol=1e-6)
    assert loss.item() == pytest.approx((weights * (y - q) ** 2).mean().item(), rel=1e-5)
    assert not errors.requires_grad
    loss.backward()
    assert all(value.grad is None for value in target.parameters())
    assert all(value.grad is None for value in agent.actor.parameters())


def test_done_stops_bootstrapping():
    agent, target, transition = agent_of(0), agent_of(1), transition_of()
    over = transition._replace(done=torch.ones(12, dtype=torch.bool))
    _, errors = loss_of(agent, target, over, torch.ones(12))
    q = agent.critic(agent.encoder(transition.history), agent.items(transition.item))
    assert torch.allclose(errors, transition.reward - q, atol=1e-6)
    _, going_on = loss_of(agent, target, transition, torch.ones(12))
    assert ((errors - going_on).abs() > 1e-6).tolist() == (~transition.done).tolist()


def test_each_optimizer_moves_its_own_part():
    transition = transition_of()
    for left_out, moved in (("critic_optimizers", "actor."), ("actor_optimizers", ("critic.", "encoder."))):
        learner = learner_of()
        setattr(learner, left_out, [])
        before = weights_of(learner.agent)
        learner.update(transition, torch.ones(12))
        names = changed(before, learner.agent)
        assert names
        assert all(name.startswith(moved) for name in names)
    everything = {name for name in before if name.startswith("encoder.") or name.startswith("critic.")}
    assert everything - names <= {"encoder.embed.skip_state.weight"}, "all of critic and encoder learn"


def test_the_actors_loss_leaves_nothing_in_the_critic():
    """With target networks that stand still the critic learns the same, whether the actor learns or not."""
    transition, learners = transition_of(), [learner_of(tau=0.0), learner_of(tau=0.0)]
    learners[1].actor_optimizers = []
    for learner in learners:
        for _ in range(3):
            learner.update(transition, torch.ones(12))
    first, second = (learner.agent for learner in learners)
    assert all(map(torch.equal, first.critic.parameters(), second.critic.parameters()))
    assert all(map(torch.equal, first.encoder.parameters(), second.encoder.parameters()))
    assert not all(map(torch.equal, first.actor.parameters(), second.actor.parameters()))


def test_actor_loss_climbs_the_critic():
    agent, history = agent_of(), random_batch(n=30).history
    loss = actor_loss(agent, history)
    state = agent.encoder(history)
    assert float(loss) == pytest.approx(-float(agent.critic(state, agent.actor(state)).mean()), rel=1e-5)
    loss.backward()
    assert all(value.grad is None for value in agent.encoder.parameters())
    optimizer = torch.optim.SGD(agent.actor.parameters(), lr=0.05)
    optimizer.step()
    assert float(actor_loss(agent, history)) < float(loss)


def test_target_networks_move_by_exactly_tau():
    learner, transition = learner_of(tau=0.01), transition_of()
    assert all(map(torch.equal, learner.agent.parameters(), learner.target.parameters()))
    assert learner.agent is not learner.target
    for _ in range(3):
        before = weights_of(learner.target)
        learner.update(transition, torch.ones(12))
        for name, value in learner.target.named_parameters():
            expected = 0.01 * learner.agent.get_parameter(name) + 0.99 * before[name]
            assert torch.allclose(value, expected, rtol=1e-6, atol=1e-7), name
            assert not value.requires_grad


def test_weights_multiply_the_loss():
    """A transition of weight 0 teaches nothing."""
    transition, weights = transition_of(), torch.ones(12)
    weights[6:] = 0
    other = transition._replace(reward=torch.where(weights > 0, transition.reward, 100.0))
    learners = learner_of(tau=0.0), learner_of(tau=0.0)
    for learner, seen in zip(learners, (transition, other), strict=True):
        learner.actor_optimizers = []
        errors, _ = learner.update(seen, weights)
    assert float(errors[6:].abs().min()) > 50
    assert all(map(torch.equal, learners[0].agent.parameters(), learners[1].agent.parameters()))


def test_beta_rises_to_one():
    learner = learner_of(beta=0.4, beta_updates=10)
    seen = []
    for learner.updates in (0, 5, 10, 20):
        seen.append(learner.beta)
    assert seen == pytest.approx([0.4, 0.7, 1, 1])


def test_clipping_bounds_the_step():
    agent = agent_of()
    learner = Learner(agent, DDPGConfig(clip=1e-3))
    learner.critic_optimizers = [torch.optim.SGD(learner.critic_part.parameters(), lr=1.0)]
    learner.actor_optimizers = []
    before = weights_of(agent)
    learner.update(transition_of(), torch.ones(12))
    norm = sum(float(((value - before[name]) ** 2).sum()) for name, value in agent.named_parameters()) ** 0.5
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_noise_by_hand():
    noise = NoiseConfig(rate=0.4, decay=0.5)
    assert [noise_rate(noise, episode) for episode in range(3)] == [0.4, 0.2, 0.1]
    assert [noise_rate(NoiseConfig("constant", rate=0.4), episode) for episode in (0, 9)] == [0.4, 0.4]
    assert noise_rate(NoiseConfig("none"), 0) == 0
    action = torch.zeros(5000, 4)
    torch.manual_seed(0)
    kept = noise_mask(action, noise_rate(noise, 1)).float().mean(0)
    assert kept.tolist() == pytest.approx([0.8] * 4, abs=0.03)
    assert noise_mask(action, noise_rate(NoiseConfig("none"), 0)).all()


def live(agent, batch, *, episodes, config, noise):
    """The scripts' loop on one batch again and again; returns the environment."""
    environment = LoggedSessions(N_SPECIAL + 12, "skip", EnvironmentConfig())
    learner, replay = Learner(agent, config), PrioritisedReplay(config.capacity, alpha=config.alpha)
    for episode in range(episodes):
        environment.reset(batch)
        while environment.active.any():
            s, candidates, active = environment.history, environment.candidates, environment.active
            with torch.no_grad():
                a = agent(s)
                choice = agent.choose(a, candidates, noise_mask(a, noise_rate(noise, episode)))
            r, done = environment.step(choice)
            item = candidates.gather(1, choice[:, None])[:, 0]
            replay.add(select(Transition(s, item, a, r, environment.history, environment.candidates, done), active))
            for _ in range(config.updates if len(replay) >= config.batch_size else 0):
                transition, weights, places = replay.sample(config.batch_size, beta=learner.beta)
                before = replay.tree.get(places)
                delta, _ = learner.update(transition, weights)
                replay.update(places, delta)
                assert not torch.equal(before, replay.tree.get(places)), "priorities change"
    return environment


@torch.no_grad()
def earn(environment, batch, choose):
    """Mean reward of an episode, of all sessions."""
    environment.reset(batch)
    total = 0.0
    while environment.active.any():
        total += float(environment.step(choose(environment))[0].sum())
    return total / len(batch.rows)


@pytest.mark.parametrize("options", [{}, {"state": "recent"}])
def test_a_known_optimum_is_found(options):
    """Four own tracks, 5 to 8. After track 9 the listener likes 5 and 6, after track 10 only 7 and 8: play the two and
    then strangers for nothing, which makes 2. Whoever plays blindly makes 0."""
    n = 128
    first = torch.arange(n) % 2 == 0
    tracks = torch.where(first, 9, 10)[:, None]
    history = History(tracks, torch.full((n, 1), STATE_LISTENED), torch.zeros(n, 1, 12).byte())
    targets = torch.tensor([[5, 6, 7, 8]]).expand(n, -1)
    labels = torch.where(first[:, None], torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 0, 0]]))
    batch = SessionBatch(history, targets, labels, torch.arange(n))
    torch.manual_seed(0)
    features = torch.zeros(N_SPECIAL + 12, 0)
    agent = ActorCritic(N_SPECIAL + 12, features, d_model=8, d_hidden=16, history_size=1, **options)
    config = DDPGConfig(batch_size=128, updates=2, lr=5e-3, actor_lr=5e-3, tau=0.05, capacity=4096, sessions=n)
    environment = live(agent, batch, episodes=60, config=config, noise=NoiseConfig(rate=0.5, decay=0.95))
    torch.manual_seed(1)
    blind = earn(
        environment,
        batch,
        lambda world: torch.rand(world.candidates.shape).masked_fill(world.candidates == PAD, 0).argmax(1),
    )
    best = earn(environment, batch, lambda world: agent.choose(agent(world.history), world.candidates))
    assert abs(blind) < 0.3
    assert best > 0.95 * 2
