"""Actor and critic: their pieces by hand, and what the models made of them may see."""

import copy

import numpy as np
import pytest
import torch
from agent_models import SIZES, agent_of
from conftest import N_IDS, random_batch
from model_checks import changed_steps, other_track, perturbations, randomise, seq_output, skip_output
from sized_models import ActorCritic, DDPGForSkips

from model.ddpg import (
    STATE_LISTENED,
    STATE_SKIPPED,
    STATE_UNKNOWN,
    DDPGForContinuation,
    bellman_target,
    played,
    soft_update,
)
from model.decoding import beam_search, greedy, select
from utils.data.batch import History, is_skipped
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation.predict import predict_seq, predict_skip

CPU = torch.device("cpu")


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
        np.testing.assert_array_equal(prediction.tied, tracks[0].tied)
