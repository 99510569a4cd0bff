"""What is known of plays beside their tracks, in all networks that predict skips: every rule a model owes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import (
    FEATURES,
    changed_steps,
    gradient_norms,
    other_track,
    overfit,
    random_sessions,
    randomise,
    shapes,
)
from sized_models import BertForSkips, BertTransformer, LSTMForSkips, SkipTransformer
from torch.nn.functional import gelu
from torch.testing import assert_close

from model.embeddings import PastEmbedding, TrackEmbedding
from utils.data.batch import History, Past
from utils.data.dataloaders import SessionLoader
from utils.data.vocab import MASK, N_SPECIAL, PAD, SKIP, UNK
from utils.evaluation.predict import predict_skip
from utils.evaluation.scores import evaluate_skip
from utils.training.losses import loss_of_skips, skip_loss

P, K = 4, 3
BOTH = {"n_past": P, "n_details": K}


def lstm(**options):
    sizes = {"d_model": 12, "d_hidden": 10, "dropout": 0.0, "causal": False, "previous_label": False}
    return LSTMForSkips(N_IDS, FEATURES, **sizes | options)


def guessing_lstm(**options):
    return lstm(**{"previous_label": True, "attention": True, "cell": "gru"} | options)


def transformer(**options):
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24, "dropout": 0.0, "causal": False}
    return SkipTransformer(N_IDS, FEATURES, **sizes | options)


def bert(*, n_past=0, n_details=0, use_ids=True, **options):
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24, "dropout": 0.0}
    reader = BertTransformer(N_IDS, FEATURES, use_ids=use_ids, **sizes | options)
    return BertForSkips(reader, n_past=n_past, n_details=n_details)


NETWORKS = {"lstm": lstm, "lstm with its own guesses": guessing_lstm, "transformer": transformer, "bert": bert}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def built(network, **options):
    torch.manual_seed(0)
    return network(**options).eval()


def batch_with_past(*, n_past=P, n_details=K, **sizes):
    """A batch whose past is 0 where there is no play, as the loader makes it."""
    batch = random_batch(**sizes)
    generator = torch.Generator().manual_seed(5)
    plays = torch.cat([batch.history.tracks, batch.target_tracks], dim=1) != PAD
    numbers = [torch.randn(*plays.shape, n_past, generator=generator) * plays[..., None]]
    n_history = batch.history.tracks.shape[1]
    details = torch.randn(*plays[:, :n_history].shape, n_details, generator=generator)
    return batch._replace(past=Past(numbers[0], details * plays[:, :n_history, None]))


def output(model, batch):
    """Logits (B, T), 0 at padding."""
    return model(*batch.inputs(torch.device("cpu"))) * (batch.target_tracks != PAD)


def changed_past(batch, place, *, details=False):
    """The same batch with one number of its past changed, at (play, column) of the first example."""
    part = batch.past.details if details else batch.past.plays
    new = part.clone()
    new[(0, *place)] += 2
    return batch._replace(past=batch.past._replace(**{"details" if details else "plays": new}))


# --- Every input counts


@each_network
@pytest.mark.parametrize("column", range(P))
def test_every_number_of_history_and_targets_reaches_the_output(network, column):
    batch, model = batch_with_past(), built(network, **BOTH)
    before = output(model, batch)
    for play in (0, 9, 10, 19):  # the first and last plays of the history and of the targets
        steps = changed_steps(before, output(model, changed_past(batch, (play, column))))
        assert steps.any(), play
        if play >= 10:
            assert steps[play - 10], "a target is told its own past"


@each_network
@pytest.mark.parametrize("column", range(K))
def test_every_detail_reaches_the_output(network, column):
    batch, model = batch_with_past(), built(network, **BOTH)
    before = output(model, batch)
    for play in (0, 9):
        assert changed_steps(before, output(model, changed_past(batch, (play, column), details=True))).any(), play


@each_network
@pytest.mark.parametrize("sizes", [{"n_past": P, "n_details": 0}, {"n_past": 0, "n_details": K}])
def test_either_may_come_alone(network, sizes):
    batch, model = batch_with_past(**sizes), built(network, **sizes)
    details = sizes["n_past"] == 0
    changed = changed_past(batch, (4, 1), details=details)
    assert changed_steps(output(model, batch), output(model, changed)).any()
    assert (model.past.guess is None) == (model.past.targets is None) == details


@each_network
def test_a_past_is_needed_where_it_was_promised_and_nowhere_else(network):
    batch = batch_with_past()
    with pytest.raises(ValueError, match="is called with a past"):
        built(network, **BOTH)(batch.history, batch.target_tracks)
    with pytest.raises(ValueError, match="and no other model is"):
        output(built(network), batch)
    with pytest.raises(ValueError, match=r"a past of \(4, 3\) columns is given to a model of \(4, 2\)"):
        output(built(network, n_past=P, n_details=2), batch)


# --- What each step knows


@pytest.mark.parametrize("network", [lstm, transformer])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_causal_model_sees_the_past_of_targets_up_to_its_own(network, step):
    batch, model = batch_with_past(), built(network, causal=True, **BOTH)
    for column in range(P):
        steps = changed_steps(output(model, batch), output(model, changed_past(batch, (10 + step, column))))
        assert steps.tolist() == [t >= step for t in range(10)]


@each_network
def test_labels_have_no_way_in(network):
    batch, model = batch_with_past(), built(network, **BOTH)
    changed = batch._replace(target_skips=1 - batch.target_skips)
    assert torch.equal(output(model, batch), output(model, changed))


def test_details_of_targets_and_their_labels_are_not_in_a_batch(tmp_path):
    """Other labels, logs and details of second halves come to the same inputs of a model."""
    arrays = random_sessions(tmp_path / "data").train
    rng = np.random.default_rng(0)
    n = len(arrays.tracks)
    numbers = {
        "past": rng.standard_normal((n, P)).astype(np.float16),
        "details": rng.standard_normal((n, K)).astype(np.float16),
    }
    second = np.arange(n) >= np.repeat(arrays.offsets[:-1] + arrays.lengths // 2, arrays.lengths)
    others = {
        "details": np.where(second[:, None], 9, numbers["details"]).astype(np.float16),
        "skips": np.where(second, 4, arrays.skips).astype(np.uint8),
        "log": np.where(second[:, None], 1, arrays.log).astype(np.uint8),
    }
    one, other = (
        next(iter(SessionLoader(replace(arrays, **numbers | more), batch_size=64))).inputs(torch.device("cpu"))
        for more in ({}, others)
    )
    for given, same in zip(one, other, strict=True):
        for tensor, again in zip(given, same, strict=True):
            assert torch.equal(tensor, again)
    assert one[2].details.abs().sum() > 0


# --- Padding and batches


@each_network
def test_padding_does_not_matter(network):
    batch, model = batch_with_past(), built(network, **BOTH)
    randomise(model)
    reference = output(model, batch)
    hidden = batch.history.tracks == PAD
    assert hidden.any()
    plays, details = (part.clone() for part in batch.past)
    plays[:, :10][hidden] = 3.0
    details[hidden] = 3.0
    assert_close(output(model, batch._replace(past=Past(plays, details))), reference)
    for row in range(len(hidden)):
        n, m = int((~hidden[row]).sum()), int((batch.target_tracks[row] != PAD).sum())
        history = History(*(tensor[row : row + 1, 10 - n :] for tensor in batch.history))
        past = Past(batch.past.plays[row : row + 1, 10 - n : 10 + m], batch.past.details[row : row + 1, 10 - n :])
        single = model(history, batch.target_tracks[row : row + 1, :m], past)
        assert_close(single[0], reference[row, :m], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def with_numbers(tmp_path_factory):
    """64 sessions of one track, whose skips are drawn, and numbers that tell each play from all others."""
    dataset = random_sessions(tmp_path_factory.mktemp("random") / "data")
    rng = np.random.default_rng(1)

    def numbered(arrays):
        n = len(arrays.tracks)
        past = rng.standard_normal((n, 12)).astype(np.float16)
        details = rng.standard_normal((n, 12)).astype(np.float16)
        return replace(arrays, tracks=np.full_like(arrays.tracks, N_SPECIAL), past=past, details=details)

    return replace(dataset, **{split: numbered(dataset.split(split)) for split in ("train", "valid", "test")})


@each_network
def test_any_batch_size_gives_the_same(network, with_numbers):
    model, cpu = built(network, n_past=12, n_details=12), torch.device("cpu")
    some, others = (predict_skip(model, cpu, SessionLoader(with_numbers.valid, batch_size=size)) for size in (3, 16))
    assert_close(torch.tensor(some.probability), torch.tensor(others.probability), atol=1e-5, rtol=1e-4)


def loss_given_labels(model, batch):
    logits = model(*batch.inputs(torch.device("cpu")), labels=batch.target_skips)
    return loss_of_skips(logits, batch.target_skips)


@pytest.mark.parametrize(
    ("network", "sizes", "steps"),
    [
        (lstm, {"cell": "gru", "d_model": 48, "d_hidden": 64}, 110),
        (guessing_lstm, {"d_model": 48, "d_hidden": 64}, 150),
        (transformer, {"d_model": 48, "n_layers": 1, "d_ff": 96}, 150),
        (bert, {"d_model": 48, "n_layers": 1, "d_ff": 96}, 150),
    ],
)
def test_64_sessions_by_heart_from_their_past_alone(network, sizes, steps, with_numbers):
    """No track tells anything here."""
    model = built(network, n_past=12, n_details=12, use_ids=False, **sizes)
    loss = loss_given_labels if network is guessing_lstm else skip_loss
    loader = overfit(model, loss, with_numbers, steps)
    maa = evaluate_skip(predict_skip(model, torch.device("cpu"), loader), loader.targets()).means()["maa"]
    assert maa > 0.95


# --- Parameters


@each_network
@pytest.mark.parametrize("use_ids", [True, False])
def test_every_parameter_gets_a_gradient(network, use_ids):
    batch, model = batch_with_past(n=20), built(network, use_ids=use_ids, **BOTH)
    loss = loss_given_labels if network is guessing_lstm else skip_loss
    norms = gradient_norms(model, loss(model, batch)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []


@each_network
def test_sizes_change_shapes_and_nothing_of_a_model_without_past(network):
    plain, told = shapes(built(network)), shapes(built(network, **BOTH))
    assert {name: shape for name, shape in told.items() if not name.startswith("past.")} == plain
    d_model = told["past.history.weight"][0]
    assert told["past.history.weight"] == (d_model, P + K)
    assert told["past.targets.weight"] == (d_model, P)
    assert told["past.guess.weight"] == (1, P)


def test_what_is_made_of_a_past_by_hand():
    batch, embedding = batch_with_past(), PastEmbedding(6, n_past=P, n_details=K)
    known = embedding(batch.past, 10)
    told = torch.cat([batch.past.plays[2, 7], batch.past.details[2, 7]])
    assert_close(known.history[2, 7], gelu(embedding.history.weight @ told + embedding.history.bias))
    of_target = batch.past.plays[2, 10]
    assert_close(known.targets[2, 0], gelu(embedding.targets.weight @ of_target + embedding.targets.bias))
    assert_close(known.logits[2, 0], embedding.guess.weight[0] @ of_target)


@each_network
def test_the_guess_is_added_to_the_logits(network):
    batch, model = batch_with_past(), built(network, **BOTH)
    with torch.no_grad():
        model.past.targets.weight.zero_()
        before = output(model, batch)
        added = model.past.guess.weight[0].mul_(0.01) / 0.01  # small, so that no guess of a label changes
        after = output(model, batch)
        wanted = 0.99 * (batch.past.plays[:, 10:] @ added)
    if network is not guessing_lstm:
        assert_close(before - after, wanted * (batch.target_tracks != PAD), atol=1e-5, rtol=1e-5)
    assert_close((before - after)[:, 0], wanted[:, 0], atol=1e-5, rtol=1e-5)


# --- Without ids


@each_network
def test_without_ids_tracks_are_their_features(network):
    batch, model = random_batch(), built(network, use_ids=False)
    tracks = (
        model.bert.tracks if network is bert else model.tracks if hasattr(model, "tracks") else model.decoder.tracks
    )
    before = output(model, batch)
    for part, place in (("history", (0, 3)), ("targets", (0, 3))):
        if part == "history":
            other = other_track(batch.history.tracks, place)
            changed = batch._replace(history=batch.history._replace(tracks=other))
        else:
            changed = batch._replace(target_tracks=other_track(batch.target_tracks, place))
        assert changed_steps(before, output(model, changed)).any(), "features tell tracks apart"
    with torch.no_grad():
        tracks.features.zero_()
    before = output(model, batch)
    new = batch._replace(
        history=batch.history._replace(tracks=batch.history.tracks.where(batch.history.tracks == PAD, UNK)),
        target_tracks=batch.target_tracks.where(batch.target_tracks == PAD, N_SPECIAL + 7),
    )
    assert_close(output(model, new), before, atol=1e-6, rtol=1e-6)


def test_a_table_without_ids_keeps_padding_mask_and_skip():
    tracks = TrackEmbedding(N_IDS, 6, FEATURES, by_id=False)
    assert tracks.table.weight.shape == (4, 6)
    assert (tracks(torch.tensor([PAD])) == 0).all()
    special = tracks(torch.tensor([MASK, SKIP, UNK]))
    assert_close(special, tracks.table.weight[1:4])
    some = torch.tensor([N_SPECIAL, N_IDS - 1])
    assert_close(tracks(some), tracks.table.weight[3] + FEATURES[some] @ tracks.project.weight.T)
    with pytest.raises(ValueError, match="without ids, all tracks share one row"):
        TrackEmbedding(N_IDS, 6, FEATURES, by_id=False, n_shared=2)


# --- Precision


@each_network
def test_bfloat16_autocast(network):
    batch, model = batch_with_past(), built(network, **BOTH)
    exact = output(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = output(model, batch)
        loss, _ = skip_loss(model, batch)
    if network is not guessing_lstm:
        assert_close(rough.float(), exact, atol=0.05, rtol=0.05)
    assert torch.isfinite(rough).all()
    assert all(norm > 0 for name, norm in gradient_norms(model, loss).items() if name.startswith("past."))
