"""The next-track GRU: nothing is seen too early, every input counts, padding does not; and its loss, by hand."""

import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import (
    FEATURES,
    changed_steps,
    gradient_norms,
    other_track,
    overfit,
    perturbations,
    random_sessions,
    seq_output,
    shapes,
)
from sized_models import NextTrackGRU
from torch.nn.functional import cross_entropy, pad
from torch.testing import assert_close

from model.decoding import beam_search, greedy, select
from model.dropout import Dropout
from utils.data.batch import History, whole_sessions
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation.predict import predict_seq
from utils.evaluation.scores import evaluate_seq
from utils.training.losses import full_softmax, next_track_loss, seq_loss, track_loss
from utils.training.options import LossConfig

SIZES = {"d_model": 16, "d_hidden": 20, "n_layers": 2}


def model_of(**options):
    torch.manual_seed(0)
    return NextTrackGRU(N_IDS, FEATURES, **SIZES | options).eval()


def history_of(tracks):
    """A history that tells tracks (B, S) only."""
    return History(tracks, torch.zeros_like(tracks), torch.zeros(*tracks.shape, 12, dtype=torch.uint8))


# --- What is seen


@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_target_is_seen_by_later_steps_only(step):
    batch, model = random_batch(), model_of()
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    assert changed_steps(seq_output(model, batch), seq_output(model, changed)).tolist() == [t > step for t in range(10)]


def test_each_play_is_seen_by_its_own_state_and_later_ones():
    """Which is all that the loss trains: no state may know the play that it predicts."""
    tracks, model = whole_sessions(random_batch()), model_of()
    before, _ = model.read(tracks)
    for place in range(tracks.shape[1]):
        after, _ = model.read(other_track(tracks, (0, place)))
        assert changed_steps(before, after).tolist() == [i >= place for i in range(20)]


def test_inputs():
    """Tracks and their order, but neither skips nor log columns."""
    model, batch = model_of(), random_batch(seed=1)
    before = seq_output(model, batch)
    for name, changed in perturbations(batch).items():
        difference = (seq_output(model, changed) - before)[0].abs().max()
        assert (difference > 1e-5) == (name in ("tracks", "order")), name


def test_answers_have_no_way_in():
    batch, model = random_batch(), model_of()
    changed = batch._replace(target_skips=1 - batch.target_skips)
    assert_close(seq_output(model, batch), seq_output(model, changed), rtol=0, atol=0)


def test_features_reach_the_output():
    batch, model = random_batch(), model_of()
    before = seq_output(model, batch)
    for track in (batch.history.tracks[0, 3], batch.target_tracks[0, 3]):
        model.tracks.features.copy_(FEATURES)
        model.tracks.features[track] += 1
        assert (seq_output(model, batch) - before).abs().max() > 1e-3
    bare = NextTrackGRU(N_IDS, torch.zeros(N_IDS, 0), **SIZES)
    assert bare.tracks.project is None
    assert torch.isfinite(seq_output(bare, batch)).all()


# --- Padding


def test_padding_and_other_sessions_do_not_matter():
    batch, model = random_batch(), model_of()
    reference = seq_output(model, batch)
    history = batch.history
    assert (history.tracks == PAD).any()
    for row in range(len(history.tracks)):
        n, m = int((history.tracks[row] != PAD).sum()), int((batch.target_tracks[row] != PAD).sum())
        short = History(*(tensor[row : row + 1, 10 - n :] for tensor in history))
        alone = model(short, model.previous_tracks(short, batch.target_tracks[row : row + 1, :m]))
        assert_close(alone[0], reference[row, :m], atol=1e-5, rtol=1e-5)


def test_a_state_is_zero_until_the_first_play():
    """Exactly, after any padding and in any layer, with dropout and in bfloat16, too."""
    model = model_of(dropout=0.5, n_layers=3).train()
    model.tracks.table.weight.data[1:] += 1
    tracks = torch.tensor([[PAD] * 30 + [9, 8]])
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            _, memory = model.read(tracks[:, :30])
            assert (memory == 0).all()
            assert (model.read(tracks)[1] != 0).any()
    model.eval()
    assert (model.begin(history_of(tracks[:, :31])) == 0).all(), "the last play of a history is the start token"
    assert_close(model.read(tracks)[0][:, 30:], model.read(tracks[:, 30:])[0], atol=1e-6, rtol=1e-5)


# --- Step by step


@pytest.mark.parametrize("size", [1, 2, 10])
def test_steps_are_forward(size):
    batch, model = random_batch(), model_of()
    history = History(*(tensor[:, -size:] for tensor in batch.history))
    previous = model.previous_tracks(history, batch.target_tracks)
    assert torch.equal(previous, torch.cat([history.tracks[:, -1:], batch.target_tracks[:, :-1]], dim=1))
    expected = model(history, previous)
    assert torch.equal(model.start(history), previous[:, :1])
    state = model.begin(history)
    for t in range(10):
        states, state = model.step(state, previous[:, t])
        assert_close(states, expected[:, t], atol=1e-6, rtol=1e-5)


def test_sessions_can_be_reordered_between_steps():
    batch, model = random_batch(), model_of()
    rows = torch.tensor([4, 0, 0, 5])
    tracks = batch.history.tracks[:, -1]
    _, state = model.step(model.begin(batch.history), tracks)
    expected, _ = model.step(state, tracks)
    found, _ = model.step(select(state, rows), tracks[rows])
    assert_close(found, expected[rows])
    assert torch.equal(beam_search(model, batch.history, 4, width=1).tracks[:, 0], greedy(model, batch.history, 4))


def test_a_step_by_hand():
    """Cho et al. 2014 in the form of torch: r, z from both inputs, the candidate with r on the state's part."""
    model = model_of(n_layers=1)
    x, h = model.tracks(torch.tensor([9])), torch.randn(1, 20)
    w, u = model.gru.weight_ih_l0, model.gru.weight_hh_l0
    wr, wz, wn = (x @ w.T).split(20, dim=1)
    ur, uz, un = (h @ u.T).split(20, dim=1)
    r, z = torch.sigmoid(wr + ur), torch.sigmoid(wz + uz)
    after = (1 - z) * torch.tanh(wn + r * un) + z * h
    states, memory = model.step(h[:, None], torch.tensor([9]))
    assert_close(memory[:, 0], after, atol=1e-6, rtol=1e-5)
    assert_close(states, after @ model.output.weight.T + model.output.bias, atol=1e-6, rtol=1e-5)
    assert_close(model.logits(states)[:, N_SPECIAL:], (states @ model.head.weight.T + model.head.bias)[:, N_SPECIAL:])
    assert (model.logits(states)[:, :N_SPECIAL] == -torch.inf).all()


# --- Loss


def test_every_play_but_the_first_is_a_target():
    """Each by a model that is given the plays before it alone, whatever the cut."""
    model, batch = model_of(), random_batch()
    batch.target_tracks[0, 1] = batch.history.tracks[0, 5] = UNK  # read, but nothing to learn
    total, n = 0.0, 0
    for row in whole_sessions(batch):
        plays = row[row != PAD]
        for i in range(1, len(plays)):
            if plays[i] != UNK:
                states, _ = model.read(plays[None, :i])
                total += cross_entropy(model.logits(states[0, -1:]), plays[i : i + 1]).item()
                n += 1
    loss, count = next_track_loss(model, batch, full_softmax)
    assert count == n == int((whole_sessions(batch) != PAD).sum()) - len(batch.rows) - 2
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_targets_cost_what_seq_loss_says():
    """The second half's share of the loss is that of the encoder-decoders."""
    model, batch = model_of(), random_batch()
    first = batch._replace(target_tracks=torch.full_like(batch.target_tracks, PAD))
    parts = [next_track_loss(model, first, full_softmax), seq_loss(model, batch, full_softmax)]
    whole = next_track_loss(model, batch, full_softmax)
    assert whole[0].item() == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-5)
    assert whole[1] == sum(count for _, count in parts)


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("loss", ["full", "sampled", "gbce"])
def test_every_parameter_gets_a_gradient(tie_weights, loss):
    model = model_of(tie_weights=tie_weights)
    loss_of_tracks = track_loss(LossConfig(name=loss), torch.ones(N_IDS).long())
    norms = gradient_norms(model, next_track_loss(model, random_batch(), loss_of_tracks)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert (model.tracks.table.weight.grad[PAD] == 0).all()


@pytest.mark.parametrize("tie_weights", [False, True])
def test_sparse_gradients_are_the_dense_ones(tie_weights):
    loss_of_tracks, batch = track_loss(LossConfig(), torch.ones(N_IDS).long()), random_batch()
    found = []
    for sparse in (True, False):
        model = model_of(tie_weights=tie_weights, sparse=sparse)
        torch.manual_seed(1)
        next_track_loss(model, batch, loss_of_tracks)[0].backward()
        assert model.tracks.table.weight.grad.is_sparse == sparse
        assert model.head.table.weight.grad.is_sparse == sparse
        found.append({name: p.grad.to_dense() for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-4)


def test_bfloat16():
    model, batch = model_of(dropout=0.0), random_batch(n=40)
    exact, _ = next_track_loss(model, batch, full_softmax)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = next_track_loss(model, batch, full_softmax)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=5e-3)
    ours, theirs = gradient_norms(model, loss), gradient_norms(model, exact)
    assert all(ours[name] == pytest.approx(theirs[name], rel=0.05) for name in theirs)


# --- Sizes


@pytest.mark.parametrize(
    ("option", "value", "where"),
    [
        ("d_model", 24, "tracks.table.weight"),
        ("d_model", 24, "gru.weight_ih_l0"),
        ("d_hidden", 24, "gru.weight_hh_l0"),
        ("n_layers", 3, "gru.weight_ih_l2"),
    ],
)
def test_every_size_changes_a_shape(option, value, where):
    before, after = shapes(model_of()), shapes(model_of(**{option: value}))
    assert before.get(where) != after[where]
    assert [name for name in after if "bias" in name] == ["output.bias", "head.bias"]


def test_dropout_arrives_and_acts_in_training_only():
    model, tracks = model_of(dropout=0.35), whole_sessions(random_batch())
    assert [module.p for module in model.modules() if isinstance(module, Dropout)] == [0.35]
    assert model.gru.dropout == 0.35
    assert model_of(n_layers=1).gru.dropout == 0
    for layers in (1, 2):
        model = model_of(dropout=0.35, n_layers=layers)
        assert_close(model.read(tracks)[0], model.read(tracks)[0], rtol=0, atol=0)
        model.train()
        assert (model.read(tracks)[0] - model.read(tracks)[0]).abs().max() > 1e-2


def test_track_vectors_and_states_are_dropped():
    """A share of both: with p 0.5 half of what the GRU and the last map read is zero."""
    model = model_of(dropout=0.5, n_layers=1).train()
    seen = {}
    model.gru.register_forward_pre_hook(lambda module, inputs: seen.update(gru=inputs[0]))
    model.output.register_forward_pre_hook(lambda module, inputs: seen.update(output=inputs[0]))
    model.read(torch.randint(N_SPECIAL, N_IDS, (50, 20)))
    assert {name: round(float((x == 0).float().mean()), 1) for name, x in seen.items()} == {"gru": 0.5, "output": 0.5}


def test_tied_weights_share_storage():
    tied, free = model_of(tie_weights=True), model_of()
    assert tied.head.weight is tied.tracks.table.weight
    assert free.head.weight.data_ptr() != free.tracks.table.weight.data_ptr()


# --- Over-fitting


def test_64_sessions_are_learnt_by_heart(tmp_path):
    dataset = random_sessions(tmp_path / "data")
    torch.manual_seed(0)
    model = NextTrackGRU(N_IDS, dataset.features, d_model=48, d_hidden=96, dropout=0.0)
    loader = overfit(model, lambda m, b: next_track_loss(m, b, full_softmax), dataset, 120)
    predictions = predict_seq(model, torch.device("cpu"), loader)
    scores = evaluate_seq(predictions, loader.targets(), n_ids=N_IDS).means()
    assert scores["maa"] > 0.95
    (batch,) = loader
    tracks = whole_sessions(batch)
    best = model.logits(model.read(tracks[:, :-1])[0]).argmax(-1)  # (B, S + T - 1)
    n_before = (tracks != PAD).cumsum(1)[:, :-1]
    sure = (tracks[:, 1:] >= N_SPECIAL) & (n_before >= 3)  # several sessions may begin alike
    assert (best == tracks[:, 1:])[sure].float().mean() > 0.95


def test_pad_is_where_begin_puts_it():
    """`begin` puts PAD before the history, as there may be nothing before its last play."""
    tracks = whole_sessions(random_batch())[:, 5:12]
    model = model_of()
    assert_close(model.begin(history_of(pad(tracks, (0, 1), value=9))).transpose(0, 1), model.read(tracks)[1])
