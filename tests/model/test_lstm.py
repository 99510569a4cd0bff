"""The recurrent encoder-decoders: what each step knows, padding, sizes, decoding, learning."""

import pytest
import torch
from conftest import N_IDS, random_batch
from lstm_models import BOTH, SIZES, seq_model, skip_model, spread, teacher_forced, variants
from model_checks import (
    FEATURES,
    changed_steps,
    gradient_norms,
    other_track,
    overfit,
    perturbations,
    random_sessions,
    randomise,
    seq_output,
    shapes,
    skip_output,
)
from sized_models import LSTMForSkips
from torch import nn
from torch.testing import assert_close

from model.decoding import beam_search, greedy, sample, select
from model.dropout import Dropout
from utils.data import schema
from utils.data.batch import History
from utils.data.dataloaders import SessionLoader
from utils.data.vocab import BOS, PAD
from utils.evaluation.predict import predict_seq, predict_skip
from utils.evaluation.scores import evaluate_seq, evaluate_skip
from utils.training.losses import full_softmax, loss_of_skips, seq_loss, skip_loss, track_loss
from utils.training.options import LossConfig

# --- What each step knows


@variants
@pytest.mark.parametrize("step", [0, 4, 9])
def test_skip_sees_tracks_up_to_its_own(options, step):
    batch, model = random_batch(), skip_model(**options)
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    expected = [t >= step for t in range(10)]
    assert changed_steps(teacher_forced(model, batch), teacher_forced(model, changed)).tolist() == expected
    before, after = skip_output(model, batch), skip_output(model, changed)
    assert not changed_steps(before, after)[:step].any(), "guesses cannot know more"


def test_skip_without_causality_sees_all_tracks():
    batch, model = random_batch(), skip_model(causal=False)
    for step in (0, 9):
        changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
        assert changed_steps(skip_output(model, batch), skip_output(model, changed)).all()


@variants
@pytest.mark.parametrize("causal", [False, True])
def test_targets_skips_and_logs_have_no_way_into_predictions(options, causal):
    batch, model = random_batch(), spread(skip_model(causal=causal, **options))
    changed = batch._replace(target_skips=1 - batch.target_skips)
    assert torch.equal(skip_output(model, batch), skip_output(model, changed))


@variants
@pytest.mark.parametrize("step", [0, 4, 9])
def test_seq_sees_tracks_before_its_own(options, step):
    batch, model = random_batch(), seq_model(**options)
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    assert changed_steps(seq_output(model, batch), seq_output(model, changed)).tolist() == [t > step for t in range(10)]


# --- Every input counts, or is hidden


@BOTH
@pytest.mark.parametrize("skip_encoding", ["none", "token", "embedding"])
@pytest.mark.parametrize("use_log", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_inputs(make, output, skip_encoding, use_log, training):
    model, batch = make(skip_encoding=skip_encoding, use_log=use_log, dropout=0.0).train(training), random_batch(seed=1)
    before = output(model, batch)
    for name, changed in perturbations(batch).items():
        shown = name in ("tracks", "order") or (use_log if name in schema.LOG_COLUMNS else skip_encoding != "none")
        if name == "tracks" and skip_encoding == "token" and batch.history.skips[0, 3] >= 4:
            shown = False  # a skipped track is the SKIP token, whatever it was
        difference = (output(model, changed) - before)[0].abs().max()
        assert (difference > 1e-6) == shown, name


@BOTH
def test_features_reach_the_output(make, output):
    batch, model = random_batch(), make()
    before = output(model, batch)
    for track in (batch.history.tracks[0, 3], batch.target_tracks[0, 3]):
        model.tracks.features.copy_(FEATURES)
        assert_close(output(model, batch), before)
        model.tracks.features[track] += 1
        assert (output(model, batch) - before).abs().max() > 1e-4


def test_a_model_without_features():
    model = LSTMForSkips(N_IDS, torch.zeros(N_IDS, 0), **SIZES)
    assert model.tracks.project is None
    assert torch.isfinite(skip_output(model, random_batch())).all()


# --- Padding


def alone(batch, row):
    """One session of a batch without any padding."""
    n, m = int((batch.history.tracks[row] != PAD).sum()), int((batch.target_tracks[row] != PAD).sum())
    history = History(*(tensor[row : row + 1, tensor.shape[1] - n :] for tensor in batch.history))
    return history, batch.target_tracks[row : row + 1, :m]


def assert_padding_does_not_matter(output, batch, of_one):
    """Neither how much there is, nor what stands there, nor what else is in the batch.

    Biases have to be random: with those of the start, a state stays zero while it reads zeros.
    """
    reference, history = output(batch), batch.history
    hidden = history.tracks == PAD
    assert hidden.any()
    skips, log = history.skips.masked_fill(hidden, 5), history.log.masked_fill(hidden[..., None], 1)
    assert_close(output(batch._replace(history=history._replace(skips=skips, log=log))), reference)
    for row in range(len(hidden)):
        single = of_one(*alone(batch, row))[0]
        assert_close(single, reference[row, : len(single)], atol=1e-5, rtol=1e-5)


@variants
@pytest.mark.parametrize("causal", [False, True])
def test_skip_padding_does_not_matter(options, causal):
    model = skip_model(causal=causal, **options)
    randomise(model)
    assert_padding_does_not_matter(lambda batch: skip_output(model, batch), random_batch(), model)


@variants
def test_seq_padding_does_not_matter(options):
    model = seq_model(use_log=True, skip_encoding="embedding", **options)
    randomise(model)

    def of_one(history, targets):
        return model(history, model.previous_tracks(history, targets))

    assert_padding_does_not_matter(lambda batch: seq_output(model, batch), random_batch(), of_one)


@variants
def test_histories_of_one_play_and_of_none(options):
    model = skip_model(**options)
    batch = random_batch(n=2)
    history = History(*(tensor.clone() for tensor in batch.history))
    for tensor in history:
        tensor[0, :-1] = 0
        tensor[1] = 0
    logits = model(history, batch.target_tracks)
    assert torch.isfinite(logits).all()
    short = History(*(tensor[:, -1:] for tensor in history))
    assert_close(model(short, batch.target_tracks), logits, atol=1e-6, rtol=1e-5)


# --- Parameters and sizes


@variants
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("skip_encoding", ["none", "token", "embedding"])
def test_every_parameter_of_skip_gets_a_gradient(options, causal, skip_encoding):
    batch, model = random_batch(n=20), skip_model(causal=causal, skip_encoding=skip_encoding, **options)
    norms = gradient_norms(model, loss_of_skips(teacher_forced(model, batch), batch.target_skips)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert (model.tracks.table.weight.grad[PAD] == 0).all()


@variants
@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("start", ["last", "bos"])
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_every_parameter_of_seq_gets_a_gradient(options, tie_weights, start, loss):
    model = seq_model(tie_weights=tie_weights, start=start, skip_encoding="embedding", use_log=True, **options)
    loss_of_tracks = track_loss(LossConfig(name=loss), torch.ones(N_IDS).long())
    norms = gradient_norms(model, seq_loss(model, random_batch(), loss_of_tracks)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert (model.tracks.table.weight.grad[BOS].abs().sum() > 0) == (start == "bos")


@BOTH
@pytest.mark.parametrize(
    ("option", "value", "where"),
    [
        ("d_model", 20, "tracks.table.weight"),
        ("d_hidden", 14, "decoder.rnn.rnn.weight_hh_l0"),
        ("n_layers", 2, "encoder.rnn.rnn.weight_ih_l1"),
        ("cell", "gru", "decoder.rnn.rnn.weight_ih_l0"),
        ("bidirectional", True, "encoder.rnn.rnn.weight_ih_l0_reverse"),
        ("attention", True, "decoder.attention.general.weight"),
        ("history_size", 7, "encoder.embed.from_end"),
    ],
)
def test_every_size_changes_a_shape(make, output, option, value, where):
    before, after = shapes(make()), shapes(make(**{option: value}))
    assert before.get(where) != after[where]


@BOTH
def test_dropout_arrives_and_acts_in_training_only(make, output):
    batch, model = random_batch(), make(dropout=0.35, n_layers=2)
    places = [module for module in model.modules() if isinstance(module, Dropout)]
    assert [place.p for place in places] == [0.35] * 3
    used = []
    for place in places:
        place.register_forward_hook(lambda place, *_: used.append(place))
    assert {module.dropout for module in model.modules() if isinstance(module, nn.RNNBase)} == {0.35}
    assert torch.equal(output(model, batch), output(model, batch))
    assert set(used) == set(places)
    model.train()
    assert (output(model, batch) - output(model, batch)).abs().max() > 1e-3


def test_encoder_and_decoder_share_the_tracks_and_nothing_else():
    for model in (skip_model(), seq_model()):
        assert model.encoder.embed.tracks is model.tracks
        encoder, decoder = ({p.data_ptr() for p in part.parameters()} for part in (model.encoder, model.decoder))
        assert decoder
        assert not encoder & decoder


def test_tied_weights_share_storage():
    tied, free = seq_model(tie_weights=True), seq_model()
    assert tied.head.weight is tied.tracks.table.weight
    assert free.head.weight.data_ptr() != free.tracks.table.weight.data_ptr()


# --- What the encoder hands on


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_both_final_states_of_an_encoder_are_handed_on(cell):
    """Each bridge is given the forward state after the last play and the backward state after the first."""
    batch, encoder = random_batch(), skip_model(cell=cell, bidirectional=True).encoder
    _, hidden = encoder(batch.history)
    assert len(encoder.bridges) == len(hidden) == (2 if cell == "lstm" else 1)
    for row in range(6):
        _, states = encoder.rnn.rnn(encoder.embed(alone(batch, row)[0]))
        for bridge, mine, theirs in zip(encoder.bridges, hidden, states if cell == "lstm" else [states], strict=True):
            assert_close(mine[row, 0], bridge(torch.cat([theirs[0, 0], theirs[1, 0]])), atol=1e-6, rtol=1e-5)


@BOTH
def test_attention_to_padding_is_zero(make, output):
    batch, model = random_batch(), make(attention=True)
    seen = []
    weights = model.decoder.attention.weights
    model.decoder.attention.weights = lambda *given: seen.append(weights(*given)) or seen[-1]
    output(model, batch)
    n = (batch.history.tracks != PAD).sum(1)
    for weight in seen:  # (B, T, S), the plays first
        hidden = torch.arange(10) >= n[:, None]
        assert (weight.masked_select(hidden[:, None]) == 0).all()
        assert (weight.masked_select(~hidden[:, None]) > 0).all()
        assert_close(weight.sum(2), torch.ones(weight.shape[:2]))


def test_attention_looks_at_the_middle():
    """With attention, and the last state taken away, the decoder still knows the history."""
    batch = random_batch()
    for attention in (False, True):
        model = seq_model(attention=attention)
        state = model.begin(batch.history)
        nothing = state._replace(hidden=tuple(torch.zeros_like(part) for part in state.hidden))
        states, _ = model.step(nothing, batch.target_tracks[:, 0].fill_(9))
        assert torch.allclose(states[0], states[1], atol=1e-6) != attention


# --- Decoding


@variants
def test_steps_are_the_teacher_forced_call(options):
    batch, model = random_batch(), seq_model(use_log=True, **options)
    previous = model.previous_tracks(batch.history, batch.target_tracks)
    whole = model(batch.history, previous)
    state = model.begin(batch.history)
    for step in range(10):
        states, state = model.step(state, previous[:, step])
        assert_close(states, whole[:, step], atol=1e-5, rtol=1e-5)


@variants
def test_states_can_be_reordered(options):
    """What a beam search does: after any step, rows are dropped, repeated and swapped."""
    batch, model = random_batch(), seq_model(**options)
    rows = torch.tensor([4, 4, 0, 2])
    _, state = model.step(model.begin(batch.history), model.start(batch.history)[:, 0])
    expected, _ = model.step(state, batch.target_tracks[:, 0])
    states, _ = model.step(select(state, rows), batch.target_tracks[rows, 0])
    assert_close(states, expected[rows], atol=1e-6, rtol=1e-5)


@variants
def test_all_decodings_run_and_the_first_beam_is_greedy(options):
    history, model = random_batch().history, seq_model(**options)
    tracks = greedy(model, history, 10, no_repeat=20)
    assert torch.equal(beam_search(model, history, 10, width=1, no_repeat=20).tracks[:, 0], tracks)
    for row in torch.cat([history.tracks, tracks], dim=1):
        played = row[row != PAD]
        assert len(set(played[-10:].tolist())) == 10
    beams = beam_search(model, history, 4, width=6)
    assert (beams.log_probability[:, :-1] >= beams.log_probability[:, 1:]).all()
    drawn = sample(model, history, 10, top_p=1e-6, seed=0, rows=torch.arange(len(history.tracks)), no_repeat=20)
    assert torch.equal(drawn, tracks)


def test_start_tokens():
    batch = random_batch()
    targets = batch.target_tracks
    last, bos = (seq_model(start=start).previous_tracks(batch.history, targets) for start in ("last", "bos"))
    assert torch.equal(last[:, 0], batch.history.tracks[:, -1])
    assert (bos[:, 0] == BOS).all()
    for previous in (last, bos):
        assert torch.equal(previous[:, 1:], targets[:, :-1])


# --- Precision and learning


@variants
def test_bfloat16_autocast(options):
    batch, model = random_batch(), skip_model(**options)
    exact = teacher_forced(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = teacher_forced(model, batch)
        loss, _ = loss_of_skips(rough, batch.target_skips)
    assert rough.dtype == torch.bfloat16
    assert_close(rough.float(), exact, atol=0.03, rtol=0.03)
    assert all(norm > 0 for norm in gradient_norms(model, loss).values())
    model = seq_model(**options)
    exact = seq_output(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(seq_output(model, batch).float(), exact, atol=0.03, rtol=0.03)


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory):
    return random_sessions(tmp_path_factory.mktemp("random") / "data")


def skip_loss_given_labels(model, batch):
    return loss_of_skips(model(batch.history, batch.target_tracks, labels=batch.target_skips), batch.target_skips)


@pytest.mark.parametrize(
    ("options", "loss_fn"),
    [
        ({"previous_label": False}, skip_loss),
        ({"scheduled_sampling": 0.5, "attention": True}, skip_loss_given_labels),
    ],
)
def test_skip_learns_64_sessions_by_heart(options, loss_fn, random_labels):
    model = skip_model(dropout=0.0, cell="gru", d_model=32, d_hidden=64, **options)
    loader = overfit(model, loss_fn, random_labels, 70)
    maa = evaluate_skip(predict_skip(model, torch.device("cpu"), loader), loader.targets()).means()["maa"]
    assert maa > 0.95


def test_seq_learns_64_sessions_by_heart(random_labels):
    model = seq_model(dropout=0.0, d_model=48, d_hidden=96)
    loader = overfit(model, lambda m, b: seq_loss(m, b, full_softmax), random_labels, 100)
    predictions = predict_seq(model, torch.device("cpu"), loader)
    assert evaluate_seq(predictions, loader.targets(), n_ids=N_IDS).means()["maa"] > 0.95


@BOTH
def test_any_batch_size_gives_the_same(make, output, random_labels):
    model, cpu = make(attention=True, bidirectional=True), torch.device("cpu")
    predict = predict_skip if make is skip_model else predict_seq
    some, others = (predict(model, cpu, SessionLoader(random_labels.valid, batch_size=size)) for size in (3, 16))
    for one, other in zip(some, others, strict=True):
        assert_close(torch.tensor(one), torch.tensor(other), atol=1e-5, rtol=1e-4)
