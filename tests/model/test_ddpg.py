"""The agent: its networks, losses worked by hand, what it may see, and whether it learns what is known to be best."""

import copy

import numpy as np
import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import FEATURES, changed_steps, other_track, perturbations, randomise, seq_output, skip_output
from sized_models import ActorCritic, DDPGForSkips
from torch.nn.functional import normalize

from model.ddpg import (
    STATE_LISTENED,
    STATE_SKIPPED,
    STATE_UNKNOWN,
    DDPGForContinuation,
    actor_loss,
    bellman_target,
    critic_loss,
    played,
    soft_update,
)
from model.decoding import beam_search, greedy, select
from utils.agents.calibration import SCALES, calibrate_ranks, calibrate_skips, calibration_loader, sampled_ranking
from utils.agents.environment import LoggedSessions
from utils.agents.learner import Learner, noise_mask, noise_rate
from utils.agents.options import DDPGConfig, EnvironmentConfig, NoiseConfig
from utils.agents.replay import PrioritisedReplay, Transition
from utils.data.batch import History, SessionBatch, is_skipped
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation.predict import judge, predict_seq, predict_skip
from utils.evaluation.scores import evaluate_skip
from utils.evaluation.scoring import scoring_loader

SIZES = {"d_model": 6, "d_hidden": 10}
CPU = torch.device("cpu")


def agent_of(seed=0, **options):
    torch.manual_seed(seed)
    return ActorCritic(N_IDS, FEATURES, **(SIZES | options))


def transition_of(n=12, seed=0):
    history, after = (random_batch(n=n, seed=seed + i).history for i in (0, 1))
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(N_SPECIAL, N_IDS, (n, 5), generator=generator)
    candidates[:, 3] = PAD
    item = torch.randint(N_SPECIAL, N_IDS, (n,), generator=generator)
    proto = normalize(torch.randn(n, SIZES["d_model"], generator=generator), dim=1)
    reward = torch.randint(-1, 2, (n,), generator=generator).float()
    return Transition(history, item, proto, reward, after, candidates, torch.arange(n) % 2 == 0)


def loss_of(agent, target, transition, weights, *, item=True, gamma=0.9):
    return critic_loss(
        agent,
        target,
        history=transition.history,
        action=transition.item if item else transition.proto,
        reward=transition.reward,
        next_history=transition.next_history,
        next_candidates=transition.next_candidates if item else None,
        done=transition.done,
        weights=weights,
        gamma=gamma,
    )


def weights_of(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before, module):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


# ----- pieces --------------------------------------------------------------------------------------------------------


def test_bellman_target_by_hand():
    reward, done, value = torch.tensor([1.0, -1, 0]), torch.tensor([False, True, False]), torch.tensor([2.0, 5, -4])
    assert bellman_target(reward, done, value, 0.9).tolist() == pytest.approx([2.8, -1, -3.6])
    # What comes after the end has no value, not even one that is no number.
    assert bellman_target(reward, done, torch.tensor([2.0, torch.inf, -4]), 0.5).tolist() == [2, -1, -2]


def test_played_by_hand():
    history = History(torch.tensor([[PAD, 7], [8, 9]]), torch.tensor([[0, 2], [5, 2]]), torch.ones(2, 2, 12).byte())
    new = played(
        history, torch.tensor([11, 12]), torch.tensor([STATE_SKIPPED, STATE_LISTENED]), torch.tensor([True, False])
    )
    assert new.tracks.tolist() == [[7, 11], [8, 9]]
    assert new.skips.tolist() == [[2, STATE_SKIPPED], [5, 2]]
    assert new.log[:, :, 0].tolist() == [[1, 0], [1, 1]]
    assert is_skipped(torch.tensor([STATE_UNKNOWN, STATE_LISTENED, STATE_SKIPPED])).tolist() == [False, False, True]


def test_soft_update_by_hand():
    target, online = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    with torch.no_grad():
        target.weight.copy_(torch.tensor([[1.0, 0]]))
        online.weight.copy_(torch.tensor([[0.0, 10]]))
    soft_update(target, online, 0.1)
    assert target.weight.tolist() == [[pytest.approx(0.9), pytest.approx(1.0)]]
    assert online.weight.tolist() == [[0, 10]]


def test_choose_is_the_largest_dot_product():
    agent = agent_of(normalise=False)
    table = torch.zeros(N_IDS, 6)
    table[5, :2], table[6, :2], table[7, :2], table[8, :2] = (
        torch.tensor(v) for v in ([1.0, 0], [0, 1], [-1, -3], [2, -1])
    )
    agent.items = lambda tracks: table[tracks]
    action = torch.tensor([[1.0, 2, 0, 0, 0, 0]]).expand(3, -1)
    candidates = torch.tensor([[5, 6, 7, 8], [PAD, 7, PAD, 8], [PAD, PAD, 7, PAD]])
    assert agent.choose(action, candidates).tolist() == [1, 3, 2], "scores 1, 2, -7, 0; padding is none"
    first_only = torch.tensor([[True, *[False] * 5]]).expand(3, -1)
    assert agent.choose(action, candidates, first_only).tolist() == [3, 3, 2], "1, 0, -1, 2"
    nothing = torch.zeros(3, 6, dtype=torch.bool)
    assert agent.choose(action, candidates, nothing).tolist() == [0, 1, 2], "all alike: the first candidate"


def test_items_and_actions_are_on_the_sphere():
    history = random_batch().history
    for normalise in (True, False):
        agent = agent_of(normalise=normalise)
        norms = torch.cat([agent(history).norm(dim=1), agent.items(torch.arange(1, N_IDS)).norm(dim=1)])
        assert bool(((norms - 1).abs() < 1e-5).all()) == normalise
        assert not agent.items(torch.tensor(PAD)).any()


def test_recent_state_by_hand():
    """(u, u * m, m): u the mean of all plays, m the sum of the last two that were not skipped."""
    agent = agent_of(state="recent", memory=2)
    tracks = torch.tensor([[PAD, 10, 11, 12, 13], [PAD, PAD, PAD, PAD, 14]])
    skips = torch.tensor(
        [[0, STATE_LISTENED, STATE_LISTENED, STATE_SKIPPED, STATE_UNKNOWN], [0, 0, 0, 0, STATE_SKIPPED]]
    )
    state = agent.encoder(History(tracks, skips, torch.zeros(2, 5, 12).byte()))
    v = {i: agent.encoder.tracks(torch.tensor(i)) for i in range(10, 15)}
    u, m = (v[10] + v[11] + v[12] + v[13]) / 4, v[11] + v[13]
    assert torch.allclose(state[0], torch.cat([u, u * m, m]))
    nothing = torch.zeros(6)
    assert torch.allclose(state[1], torch.cat([v[14], nothing, nothing]))


def test_gru_state_does_not_know_the_padding():
    agent = agent_of(history_size=10)
    history = random_batch(s=10).history
    short = (history.tracks != PAD).sum(1) <= 6
    assert short.any()
    whole = History(*(value[short] for value in history))
    cut = History(*(value[:, 4:] for value in whole))
    assert torch.allclose(agent.encoder(whole), agent.encoder(cut), atol=1e-6)
    # It is the GRU's last state over the plays alone.
    row = int(short.byte().argmax())
    plays = History(*(value[row : row + 1][:, history.tracks[row] != PAD] for value in history))
    _, last = agent.encoder.gru(agent.encoder.embed(plays))
    assert torch.allclose(agent.encoder(history)[row], last[0, 0], atol=1e-6)


# ----- learning ------------------------------------------------------------------------------------------------------


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


def learner_of(**options):
    return Learner(agent_of(), DDPGConfig(**options))


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


# ----- what the models may see ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["actor", "critic"])
@pytest.mark.parametrize("advance", [False, True])
def test_skip_model_uses_every_input(score, advance):
    model, batch = DDPGForSkips(agent_of(), score=score, advance=advance), random_batch()
    randomise(model)
    before = skip_output(model, batch)
    for name, perturbed in perturbations(batch).items():
        assert changed_steps(before, skip_output(model, perturbed)).any(), name


def test_recent_state_uses_tracks_and_skips():
    model, batch = DDPGForSkips(agent_of(state="recent", memory=9)), random_batch()
    before = skip_output(model, batch)
    for name in ("tracks", "skips"):
        assert changed_steps(before, skip_output(model, perturbations(batch)[name])).any(), name


def test_skip_model_without_log_or_skips():
    batch = random_batch()
    model = DDPGForSkips(agent_of(use_log=False, skip_encoding="none"))
    before = skip_output(model, batch)
    for name, perturbed in perturbations(batch).items():
        assert changed_steps(before, skip_output(model, perturbed)).any() == (name in ("tracks", "order")), name


def test_skip_targets_are_judged_one_by_one():
    """Another target changes its own logit; with `advance` also those after it, and never those before it."""
    batch = random_batch()
    changed_batch = batch._replace(target_tracks=other_track(batch.target_tracks, (0, 4)))
    for advance, expected in ((False, [4]), (True, [4, 5, 6, 7, 8, 9])):
        model = DDPGForSkips(agent_of(), advance=advance)
        difference = changed_steps(skip_output(model, batch), skip_output(model, changed_batch))
        assert difference.nonzero()[:, 0].tolist() == expected


def test_advance_takes_note_of_decisions():
    """The logit of the second target is that of a history that was lengthened by the first and its decision."""
    model, batch = DDPGForSkips(agent_of(), advance=True), random_batch()
    model.slope.fill_(3.0)
    logits = model(batch.history, batch.target_tracks)
    first = batch.target_tracks[:, 0]
    skips = torch.where(logits[:, 0] >= 0, STATE_SKIPPED, STATE_LISTENED)
    assert len(skips.unique()) == 2
    longer = played(batch.history, first, skips, torch.ones_like(first, dtype=torch.bool))
    again = DDPGForSkips(model.agent, advance=False)
    again.slope.fill_(3.0)
    assert torch.allclose(again(longer, batch.target_tracks[:, 1:2])[:, 0], logits[:, 1], atol=1e-6)


def test_skip_scores_by_the_formulas():
    batch, agent = random_batch(), agent_of()
    state, vectors = agent.encoder(batch.history), agent.items(batch.target_tracks)
    actor = DDPGForSkips(agent).scores(batch.history, batch.target_tracks)
    assert torch.allclose(actor, (vectors * agent.actor(state)[:, None]).sum(2), atol=1e-6)
    critic = DDPGForSkips(agent, score="critic").scores(batch.history, batch.target_tracks)
    assert torch.allclose(critic[:, 3], agent.critic(state, vectors[:, 3]), atol=1e-6)
    model = DDPGForSkips(agent)
    model.slope.fill_(2.0)
    model.intercept.copy_(torch.arange(10.0))
    assert torch.allclose(model(batch.history, batch.target_tracks), torch.arange(10.0) - 2 * actor, atol=1e-5)


def test_seq_states_are_blind_to_what_comes():
    model, batch = DDPGForContinuation(agent_of()).eval(), random_batch()
    before = seq_output(model, batch)
    later = batch._replace(target_tracks=other_track(batch.target_tracks, (0, 4)))
    assert changed_steps(before, seq_output(model, later)).nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9]
    for name, perturbed in perturbations(batch).items():
        assert changed_steps(before, seq_output(model, perturbed)).any(), name


def test_seq_steps_are_the_teacher_forced_states():
    model, batch = DDPGForContinuation(agent_of()).eval(), random_batch()
    model.scale.fill_(5.0)
    previous = model.previous_tracks(batch.history, batch.target_tracks)
    assert torch.equal(previous[:, 0], batch.history.tracks[:, -1])
    states, state = model(batch.history, previous), model.begin(batch.history)
    for step in range(3):
        one, state = model.step(state, previous[:, step])
        assert torch.equal(one, states[:, step])
    # The first state is that of the history, scaled; the start token is no news.
    assert torch.allclose(states[:, 0], 5 * model.agent(batch.history))
    rows = torch.tensor([2, 0])
    assert torch.equal(select(state, rows).history.tracks, state.history.tracks[rows])


def test_head_scores_items():
    model = DDPGForContinuation(agent_of())
    with torch.no_grad():
        model.agent.encoder.tracks.table.weight[N_SPECIAL:].mul_(-1.7)
    model.eval()
    history = random_batch().history
    action = model.agent(history)
    logits = model.logits(action)
    expected = action @ model.agent.items(torch.arange(N_IDS)).T
    assert torch.allclose(logits[:, N_SPECIAL:], expected[:, N_SPECIAL:], atol=1e-6)
    assert torch.isinf(logits[:, :N_SPECIAL]).all()
    assert greedy(model, history, 3)[:, 0].tolist() == logits.argmax(1).tolist()
    assert torch.equal(beam_search(model, history, 3, width=1).tracks[:, 0], greedy(model, history, 3))


def test_predictions_do_not_depend_on_batches_or_answers(dataset_folder):
    """Second-half skips and logs are changed; batches have other sizes: the predictions stay."""
    dataset = Dataset.open(dataset_folder)
    arrays = copy.copy(dataset.valid)
    second_half = np.concatenate([np.arange(n) >= n // 2 for n in arrays.lengths])
    other = {"skips": np.where(second_half, (arrays.skips + 3) % 5, arrays.skips).astype(np.uint8)}
    other["log"] = np.where(second_half[:, None], 1 - (arrays.log > 0), arrays.log).astype(np.uint8)
    perturbed = type(arrays)(arrays.folder, arrays.tracks, arrays.offsets, other["skips"], other["log"])
    agent = ActorCritic(dataset.n_ids, dataset.features, **SIZES)
    skip, seq = DDPGForSkips(agent, advance=True), DDPGForContinuation(agent)
    skips, tracks = [], []
    for source, size in ((arrays, 256), (perturbed, 256), (arrays, 3)):
        loader = SessionLoader(source, batch_size=size)
        skips.append(predict_skip(skip, CPU, loader).probability)
        tracks.append(predict_seq(seq, CPU, loader))
    known = loader.targets().skips >= 0
    for probability, prediction in zip(skips[1:], tracks[1:], strict=True):
        np.testing.assert_allclose(probability[known], skips[0][known], atol=1e-6)
        np.testing.assert_array_equal(prediction.tracks, tracks[0].tracks)
        np.testing.assert_array_equal(prediction.rank, tracks[0].rank)


# ----- calibration and sampled ranking -------------------------------------------------------------------------------


def test_calibrated_probabilities_are_the_rates(dataset_folder):
    """Logistic regression with an intercept for each position: mean probability = mean label at each of them."""
    dataset = Dataset.open(dataset_folder)
    model = DDPGForSkips(ActorCritic(dataset.n_ids, dataset.features, **SIZES), advance=True)
    loader = calibration_loader(dataset, DataConfig(folder=str(dataset_folder)))
    calibrate_skips(model, loader)
    assert model.advance
    predictions, targets = predict_skip(model, CPU, loader), loader.targets()
    known = targets.skips >= 0
    for position in range(10):
        rows = known[:, position]
        rate = (targets.skips[rows, position] == 1).mean()
        assert predictions.probability[rows, position].mean() == pytest.approx(rate, abs=0.02)
    calibrated = evaluate_skip(predictions, targets).means()["log_loss"]
    model.slope.fill_(1.0)
    model.intercept.zero_()
    assert calibrated < evaluate_skip(predict_skip(model, CPU, loader), targets).means()["log_loss"]


def test_calibration_finds_slope_and_intercept():
    """Skips drawn from 0.5 - 40 x score, with scores a hundredth large: units do not matter."""
    generator = np.random.default_rng(0)
    scores = generator.normal(0, 0.05, (5000, 4))
    labels = (generator.random(scores.shape) < 1 / (1 + np.exp(40 * scores - 0.5))).astype(np.int8)
    labels[:, 3] = -1

    class Loader:
        def targets(self):
            return type("Targets", (), {"skips": labels})

        def __iter__(self):
            history = History(torch.zeros(5000, 1), torch.zeros(5000, 1), torch.zeros(5000, 1, 12))
            yield SessionBatch(history, torch.zeros(5000, 4), None, None, torch.arange(5000))

    model = DDPGForSkips(agent_of(), target_size=4)
    model.target_scores = lambda history, tracks: torch.from_numpy(scores)
    SessionBatch.to, to = lambda self, device: self, SessionBatch.to
    try:
        calibrate_skips(model, Loader())
    finally:
        SessionBatch.to = to
    assert float(model.slope) == pytest.approx(40, rel=0.05)
    assert model.intercept[:3].tolist() == pytest.approx([0.5] * 3, abs=0.1)


@pytest.mark.parametrize("length", [1, 100])
def test_scale_is_the_most_probable_one(length, dataset_folder):
    dataset = Dataset.open(dataset_folder)
    model = DDPGForContinuation(ActorCritic(dataset.n_ids, dataset.features, **SIZES | {"normalise": length == 1}))
    with torch.no_grad():
        model.agent.encoder.tracks.table.weight.mul_(length)
    loader = SessionLoader(dataset.train, batch_size=64)
    (batch,) = loader
    # An action that is near the next track: neither any scale nor the largest is best.
    model.agent.actor.forward = lambda state: model.agent.items(batch.target_tracks[:, 0]) + 0.3
    calibrate_ranks(model, loader)
    states = (model(batch.history, model.start(batch.history)) / model.scale).detach()
    total = {scale: float(judge(model, states * scale, batch.target_tracks[:, :1])[0].sum()) for scale in SCALES}
    assert float(model.scale) == pytest.approx(max(total, key=total.get))
    assert 1 < float(model.scale) * length**2 < 512


def test_sampled_ranking(dataset_folder):
    """Ties count half: a model that likes all tracks alike is in the middle, 49.5 others before it."""
    dataset, data = Dataset.open(dataset_folder), DataConfig(folder=str(dataset_folder))
    model = DDPGForContinuation(ActorCritic(dataset.n_ids, dataset.features, **SIZES))
    batch = next(iter(scoring_loader(dataset, data, "valid")))
    items = model.agent.items
    model.agent.items = lambda tracks: torch.ones(*tracks.shape, 6)
    scores = sampled_ranking(model, dataset, data, "valid")
    assert scores["hr@1"] == scores["hr@10"] == 0
    assert scores["n_sessions"] == dataset.valid.n_sessions
    assert 1 / 50.5 <= scores["mrr"] < 1 / 45, "draws of the track itself are no rivals"
    model.agent.items = items
    true = batch.target_tracks[:, 0]
    model.agent.forward = lambda history: items(true)
    assert sampled_ranking(model, dataset, data, "valid")["mrr"] == 1.0
    model.agent.forward = lambda history: -items(true)
    assert sampled_ranking(model, dataset, data, "valid")["hr@10"] == 0


# ----- does it learn? ------------------------------------------------------------------------------------------------


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
    batch = SessionBatch(history, targets, labels, torch.zeros(n, 4, 12).byte(), torch.arange(n))
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
