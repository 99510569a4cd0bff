"""BERT: both directions, padding, masks that hide, what its heads see, torch's own encoder as reference."""

import numpy as np
import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import (
    FEATURES,
    SIZES,
    changed_steps,
    check_skip_padding,
    copy_layer,
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
from sized_models import BertForContinuation, BertForMaskedTracks, BertForSkips, BertTransformer
from torch import nn
from torch.nn.functional import pad
from torch.testing import assert_close

from model.attention import Attention
from model.dropout import Dropout
from utils.data import schema
from utils.data.vocab import MASK, N_SPECIAL, PAD
from utils.evaluation.metrics import average_accuracy
from utils.evaluation.predict import predict_skip
from utils.evaluation.scores import evaluate_skip
from utils.training.losses import full_softmax, seq_loss, skip_loss, track_loss
from utils.training.masked_tracks import mask_tracks, masked_loss
from utils.training.options import LossConfig, MaskingConfig


def bert_model(**options):
    torch.manual_seed(0)
    bert = BertTransformer(N_IDS, FEATURES, **SIZES | options)
    with torch.no_grad():
        bert.positions.mul_(20)  # so that a wrong position is no small change
    return bert.eval()


def masked_model(*, tie_weights=True, **options):
    return BertForMaskedTracks(bert_model(**options), tie_weights=tie_weights).eval()


def seq_model(*, target_size=10, tie_weights=True, **options):
    return BertForContinuation(bert_model(**options), target_size=target_size, tie_weights=tie_weights).eval()


def skip_model(*, use_log=True, **options):
    return BertForSkips(bert_model(**options), use_log=use_log).eval()


def whole(batch):
    """Sessions (B, S + T), padded on both sides."""
    return torch.cat([batch.history.tracks, batch.target_tracks], dim=1)


# --- BertTransformer


@pytest.mark.parametrize("place", [0, 7, 19])
def test_every_state_sees_every_track(place):
    tracks, bert = whole(random_batch()), bert_model()
    assert (tracks[0] != PAD).all()
    assert changed_steps(bert(tracks), bert(other_track(tracks, (0, place)))).all()


def test_order_matters():
    tracks, bert = whole(random_batch()), bert_model()
    swapped = tracks.clone()
    swapped[0, [3, 6]] = tracks[0, [6, 3]]
    assert tracks[0, 3] != tracks[0, 6]
    assert changed_steps(bert(tracks), bert(swapped)).all()


def test_padding_on_any_side_does_not_matter():
    tracks, bert = whole(random_batch()), bert_model(max_length=20)
    states = bert(tracks)
    for row in range(len(tracks)):
        here = tracks[row] != PAD
        session = tracks[row, here][None]
        alone = bert(session)[0]
        assert_close(alone, states[row, here], atol=1e-5, rtol=1e-5)
        assert_close(bert(pad(session, (3, 0)))[0, 3:], alone, atol=1e-5, rtol=1e-5)
        assert_close(bert(pad(session, (0, 4)))[0, :-4], alone, atol=1e-5, rtol=1e-5)


def test_positions_are_counted_from_the_first_play():
    bert = bert_model(n_layers=0, dropout=0.0)
    tracks = torch.tensor([[PAD, PAD, 9, 12, PAD], [7, 8, 9, 10, 11]])
    x = bert.tracks(tracks)
    assert_close(bert(tracks)[1], x[1] + bert.positions[:5])
    assert_close(bert(tracks)[0, 2:4], x[0, 2:4] + bert.positions[:2])


def test_what_is_added_is_added():
    bert, tracks = bert_model(n_layers=0), whole(random_batch())
    added = torch.randn(*tracks.shape, 16)
    assert_close(bert(tracks, added), bert(tracks) + added)


def test_bert_is_torchs_encoder():
    bert = bert_model(n_heads=4, n_layers=3, dropout=0.0)
    randomise(bert.layers)
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=False)
    reference = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    for ours, theirs in zip(bert.layers, reference.layers, strict=True):
        copy_layer(ours, theirs)
    tracks = pad(whole(random_batch())[:, 10:], (2, 0))
    first = 2 * torch.ones(len(tracks), dtype=torch.long)
    places = (torch.arange(12) - first[:, None]).clamp(min=0)
    x = bert.tracks.table.weight[tracks] + FEATURES[tracks] @ bert.tracks.project.weight.T + bert.positions[places]
    expected = reference(x, src_key_padding_mask=tracks == PAD)
    here = tracks != PAD
    assert_close(bert(tracks)[here], expected[here], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("option", "value", "where"),
    [
        ("d_model", 20, "positions"),
        ("n_layers", 3, "layers.2.norms.0.weight"),
        ("d_ff", 30, "layers.0.feed_forward.0.weight"),
        ("max_length", 7, "positions"),
    ],
)
def test_every_size_changes_a_shape(option, value, where):
    before, after = shapes(bert_model()), shapes(bert_model(**{option: value}))
    assert before.get(where) != after[where]


def test_heads_dropout_and_sparse_arrive():
    bert = bert_model(n_heads=8, dropout=0.35, sparse=True)
    attentions = [module for module in bert.modules() if isinstance(module, Attention)]
    assert [(a.n_heads, a.dropout) for a in attentions] == [(8, 0.35)] * 2
    assert {module.p for module in bert.modules() if isinstance(module, Dropout)} == {0.35}
    bert(whole(random_batch())).sum().backward()
    assert bert.tracks.table.weight.grad.is_sparse


def test_dropout_acts_in_training_only():
    tracks, bert = whole(random_batch()), bert_model(dropout=0.5)
    assert_close(bert(tracks), bert(tracks), rtol=0, atol=0)
    bert.train()
    assert (bert(tracks) - bert(tracks)).abs().max() > 1e-3


def test_dropout_drops_what_is_added_as_well():
    """The sum of track, position and skips or log is dropped as a whole, or doubled."""
    bert, tracks = bert_model(n_layers=0, dropout=0.5), whole(random_batch())
    added = torch.randn(*tracks.shape, 16)
    expected = bert(tracks, added)
    found = bert.train()(tracks, added)
    dropped = found == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert_close(found, (2 * expected).masked_fill(dropped, 0.0))


def test_frozen_it_ignores_training():
    tracks, bert = whole(random_batch()), bert_model(dropout=0.5)
    expected = bert(tracks).detach()
    model = nn.Sequential(bert.train().freeze(), Dropout(0.5))
    assert model[0] is bert, "freeze returns the model"
    assert not any(module.training for module in bert.modules()), "at once"
    for mode in (True, False, True):
        model.train(mode)
        assert model[1].training == mode
        assert not any(module.training for module in bert.modules())
        states = bert(tracks)
        assert not states.requires_grad
        assert torch.equal(states, expected)
    assert not any(parameter.requires_grad for parameter in bert.parameters())


# --- Masked tracks


def test_a_hidden_track_cannot_be_seen():
    """Two sessions that differ in a masked track only look the same to the model; in a track that is shown, not."""
    batch, model = random_batch(n=64), masked_model()
    tracks, config = whole(batch), MaskingConfig(rate=0.5)

    def states_of(tracks):
        masked = mask_tracks(tracks, N_IDS, config, generator=torch.Generator().manual_seed(1))
        return masked, model(masked.inputs)

    masked, before = states_of(tracks)
    hidden = masked.inputs == MASK
    shown = (masked.labels != PAD) & (masked.inputs == tracks)
    assert hidden.sum() > 150
    assert shown.sum() > 10
    for places, seen in ((hidden, False), (shown, True)):
        for row, place in places.nonzero()[:20].tolist():
            changed, after = states_of(other_track(tracks, (row, place)))
            assert changed.labels[row, place] != masked.labels[row, place]
            assert ((after - before)[row, place].abs().max() > 1e-6) == seen


def test_masks_read_both_sides():
    model, tracks = masked_model(), whole(random_batch())
    tracks[0, 10] = MASK
    for place in (9, 11, 0, 19):
        assert changed_steps(model(tracks), model(other_track(tracks, (0, place))))[10]


@pytest.mark.parametrize("tie_weights", [False, True])
def test_tied_weights_share_storage(tie_weights):
    for model in (masked_model(tie_weights=tie_weights), seq_model(tie_weights=tie_weights)):
        assert (model.head.weight is model.bert.tracks.table.weight) == tie_weights
        assert {name.split(".")[0] for name in model.state_dict()} == {"bert", "head"}


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_every_parameter_gets_a_gradient_from_masked_tracks(tie_weights, loss):
    loss_of_tracks = track_loss(LossConfig(name=loss), torch.ones(N_IDS).long())
    model = masked_model(tie_weights=tie_weights)
    sum_of_losses, _ = masked_loss(model, random_batch(n=32), loss=loss_of_tracks, masking=MaskingConfig())
    norms = gradient_norms(model, sum_of_losses)
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert (model.bert.tracks.table.weight.grad[MASK] != 0).any()
    assert (model.bert.tracks.table.weight.grad[PAD] == 0).all()


# --- Continuation


def test_targets_cannot_be_seen_at_all():
    """Not even how many there are; a model that is told the tracks sees them."""
    batch, model = random_batch(), seq_model()
    others = other_track(batch.target_tracks, ...).masked_fill(torch.arange(10) > 4, PAD)
    slots = model.previous_tracks(batch.history, batch.target_tracks)
    assert slots.shape == (6, 10)
    assert (slots == MASK).all()
    before = model(batch.history, slots)
    assert torch.equal(before, model(batch.history, model.previous_tracks(batch.history, others)))
    told = slots.clone()
    told[0, 4] = 9
    assert changed_steps(before, model(batch.history, told)).all()


def test_states_are_those_of_the_slots():
    history, model = random_batch().history, seq_model()
    slots = torch.full((6, 10), MASK)
    slots[:, 3] = 9
    assert torch.equal(model(history, slots), model.bert(torch.cat([history.tracks, slots], dim=1))[:, 10:])


@pytest.mark.parametrize("n_slots", [1, 4])
def test_states_do_not_depend_on_how_many_are_asked_for(n_slots):
    history, model = random_batch().history, seq_model()
    slots = torch.full((6, 10), MASK)
    states = model(history, slots[:, :n_slots])
    assert states.shape == (6, n_slots, 16)
    assert_close(states, model(history, slots)[:, :n_slots])


def test_slots_differ_and_have_an_end():
    history, model = random_batch().history, seq_model(target_size=4)
    states = model(history, torch.full((6, 4), MASK))
    assert (states[:, 1:] - states[:, :-1]).abs().amax(-1).min() > 1e-3
    with pytest.raises(ValueError, match="there are 5 slots, but target_size is 4"):
        model(history, torch.full((6, 5), MASK))


def test_only_the_tracks_of_the_history_are_seen():
    batch, model = random_batch(seed=1), seq_model()
    before = seq_output(model, batch)
    for name, changed in perturbations(batch).items():
        difference = (seq_output(model, changed) - before)[0].abs().max()
        assert (difference > 1e-5) == (name in ("tracks", "order")), name


def test_seq_padding_does_not_matter():
    batch, model = random_batch(), seq_model()
    reference = model(batch.history, torch.full((6, 10), MASK))
    for row in range(6):
        n = int((batch.history.tracks[row] != PAD).sum())
        short = type(batch.history)(*(tensor[row : row + 1, 10 - n :] for tensor in batch.history))
        assert_close(model(short, torch.full((1, 10), MASK))[0], reference[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tie_weights", [False, True])
def test_every_parameter_of_continuation_gets_a_gradient(tie_weights):
    model = seq_model(tie_weights=tie_weights)
    norms = gradient_norms(model, seq_loss(model, random_batch(), full_softmax)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []


def test_special_ids_are_never_predicted():
    model, batch = seq_model(), random_batch()
    with torch.no_grad():
        model.head.bias[:N_SPECIAL] = 100
    logits = model.logits(model(batch.history, model.previous_tracks(batch.history, batch.target_tracks)))
    assert logits.shape == (6, 10, N_IDS)
    assert (logits[..., :N_SPECIAL] == -torch.inf).all()
    assert torch.isfinite(logits[..., N_SPECIAL:]).all()


# --- Skips


@pytest.mark.parametrize("use_log", [False, True])
def test_inputs_of_skips(use_log):
    batch, model = random_batch(seed=1), skip_model(use_log=use_log)
    before = skip_output(model, batch)
    for name, changed in perturbations(batch).items():
        difference = (skip_output(model, changed) - before)[0].abs().max()
        assert (difference > 1e-6) == (use_log or name not in schema.LOG_COLUMNS), name


@pytest.mark.parametrize("step", [0, 9])
def test_every_target_track_is_seen_by_all(step):
    batch, model = random_batch(), skip_model()
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    assert changed_steps(skip_output(model, batch), skip_output(model, changed)).all()


@pytest.mark.parametrize("output", [(skip_model, skip_output), (seq_model, seq_output)], ids=["skip", "seq"])
def test_targets_skips_and_logs_have_no_way_in(output):
    make, output_of = output
    batch, model = random_batch(), make()
    changed = batch._replace(target_skips=1 - batch.target_skips)
    assert torch.equal(output_of(model, batch), output_of(model, changed))


@pytest.mark.parametrize("state", [1, 2, 3, 4, 5])
def test_all_skip_states_are_told_apart_from_unknown(state):
    batch, model = random_batch(), skip_model(use_log=False)
    outputs = []
    for value in (0, state):
        skips = batch.history.skips.clone()
        skips[0, 3] = value
        outputs.append(skip_output(model, batch._replace(history=batch.history._replace(skips=skips))))
    assert (outputs[1] - outputs[0])[0].abs().max() > 1e-4


def test_what_is_added_to_each_play():
    """Skip state and log of the history; of the targets the unknown state, and no log."""
    batch, model = random_batch(), skip_model()
    table = model.skip_state.weight
    expected = torch.cat(
        [table[batch.history.skips] + model.log(batch.history.log), table[:1].expand(6, 10, 16)], dim=1
    )
    states = model.bert(whole(batch), expected)[:, 10:]
    assert_close(
        model(batch.history, batch.target_tracks), (states @ model.output.weight.T)[..., 0] + model.output.bias
    )


def test_skip_padding_does_not_matter():
    check_skip_padding(skip_model(), random_batch())


@pytest.mark.parametrize("use_log", [False, True])
def test_every_parameter_of_skips_gets_a_gradient(use_log):
    model = skip_model(use_log=use_log)
    norms = gradient_norms(model, skip_loss(model, random_batch())[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert any(name.startswith("log.") for name in norms) == use_log


# --- Over-fitting


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory):
    return random_sessions(tmp_path_factory.mktemp("random") / "data")


SMALL = {"dropout": 0.0, "d_model": 48, "n_layers": 1, "d_ff": 96}


def test_skips_of_64_sessions_by_heart(random_labels):
    model = skip_model(**SMALL)
    loader = overfit(model, skip_loss, random_labels, 110)
    maa = evaluate_skip(predict_skip(model, torch.device("cpu"), loader), loader.targets()).means()["maa"]
    assert maa > 0.95


def test_continuations_of_64_sessions_by_heart(random_labels):
    model = seq_model(**SMALL)
    (batch,) = overfit(model, lambda m, b: seq_loss(m, b, full_softmax), random_labels, 100)
    slots = model.previous_tracks(batch.history, batch.target_tracks)
    predicted = model.eval().logits(model(batch.history, slots)).argmax(-1)
    correct, known = (predicted == batch.target_tracks).numpy(), (batch.target_tracks != PAD).numpy()
    assert np.nanmean(average_accuracy(correct, known)) > 0.95
