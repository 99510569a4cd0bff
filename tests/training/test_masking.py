"""Hidden tracks: how often, which, the same again, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import N_IDS, make_dataset, random_batch
from sized_models import BertForMaskedTracks, BertTransformer
from torch import Tensor, nn

from model.embeddings import TrackEmbedding, TrackHead
from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import MASK, N_SPECIAL, PAD, UNK
from utils.evaluation.predictions import MaskedPredictions
from utils.evaluation.scores import evaluate_masked
from utils.evaluation.scoring import scores_of, scoring_loader
from utils.evaluation.tables import predictions_table
from utils.training import masked_tracks as module
from utils.training.losses import full_softmax, seq_loss, track_loss
from utils.training.masked_tracks import (
    check_whole,
    last,
    mask_tracks,
    masked_loss,
    masked_predictor,
    predict_masked,
    whole_sessions,
)
from utils.training.options import LossConfig, MaskingConfig

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sessions(n: int, m: int = 20, seed: int = 1) -> Tensor:
    """Ragged sessions, padded on both sides, a tenth of their plays unknown."""
    rng = generator(seed)
    tracks = torch.randint(N_SPECIAL, N_IDS, (n, m), generator=rng)
    tracks[torch.rand(n, m, generator=rng) < 0.1] = UNK
    left, right = torch.randint(0, m // 2, (2, n, 1), generator=rng)
    place = torch.arange(m)
    return tracks.masked_fill((place < left) | (place >= m - right), PAD)


def within(count: float, n: int, p: float) -> bool:
    """Whether a binomial count is within five standard deviations of n p."""
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_rate_and_80_10_10(rate):
    tracks = torch.randint(N_SPECIAL, N_IDS, (20_000, 20), generator=generator(1))
    inputs, labels = mask_tracks(tracks, N_IDS, MaskingConfig(rate), generator=generator())
    selected = labels != PAD
    n = int(selected.sum())
    # A session of 20 has no play with probability (1 - rate)^20, and gets one then.
    assert within(n, tracks.numel(), rate + (1 - rate) ** 20 / 20)
    assert torch.equal(labels[selected], tracks[selected])
    assert torch.equal(inputs[~selected], tracks[~selected])
    masked = selected & (inputs == MASK)
    assert within(int(masked.sum()), n, 0.8)
    changed = selected & ~masked & (inputs != tracks)
    n_tracks = N_IDS - N_SPECIAL
    assert within(int(changed.sum()), n, 0.1 * (1 - 1 / n_tracks))  # a random track may be the true one
    # Random tracks are uniform, from the first to the last of the vocabulary.
    counts = torch.bincount(inputs[changed], minlength=N_IDS)
    assert not counts[:N_SPECIAL].any()
    share = int(counts.sum()) / n_tracks
    assert all(abs(count - share) < 5 * math.sqrt(share) for count in counts[N_SPECIAL:].tolist())
    # Every position alike.
    assert all(within(count, len(tracks), n / tracks.numel()) for count in selected.sum(0).tolist())


def test_padding_and_unknown_tracks_are_left_alone():
    tracks = sessions(2000)
    for config in (MaskingConfig(1.0), MaskingConfig(0.3), MaskingConfig(0.3, last_item=0.5)):
        inputs, labels = mask_tracks(tracks, N_IDS, config, generator=generator())
        special = tracks < N_SPECIAL
        assert torch.equal(inputs[special], tracks[special])
        assert not labels[special].any()
        if config.rate == 1:
            assert torch.equal(labels, tracks.masked_fill(special, PAD)), "all that can be selected is"


@pytest.mark.parametrize("last_item", [0.0, 0.5, 1.0])
def test_at_least_one_track_of_each_session_is_selected(last_item):
    tracks = sessions(3000, m=6)
    labels = mask_tracks(tracks, N_IDS, MaskingConfig(1e-9, last_item), generator=generator()).labels
    n_selected = (labels != PAD).sum(1)
    has_tracks = (tracks >= N_SPECIAL).any(1)
    assert torch.equal(n_selected, has_tracks.long())
    assert not has_tracks.all(), "some of these sessions hold only unknown tracks"


def test_the_one_that_is_added_is_any():
    tracks = torch.tensor([[PAD, 7, UNK, 8, 9, PAD]]).repeat(9000, 1)
    labels = mask_tracks(tracks, N_IDS, MaskingConfig(1e-9), generator=generator()).labels
    assert [within(count, 9000, 1 / 3) for count in (labels != PAD).sum(0)[[1, 3, 4]].tolist()] == [True] * 3


def test_of_some_sessions_only_the_last_track_is_masked():
    tracks = torch.tensor([[PAD, 7, 8, 9, UNK, PAD]]).repeat(5000, 1)
    inputs, labels = mask_tracks(tracks, N_IDS, MaskingConfig(1e-9, last_item=1.0), generator=generator())
    assert torch.equal(labels, torch.tensor([[0, 0, 0, 9, 0, 0]]).expand(5000, 6))
    assert torch.equal(inputs, torch.tensor([[PAD, 7, 8, MASK, UNK, PAD]]).expand(5000, 6)), "MASK, always"
    labels = mask_tracks(tracks, N_IDS, MaskingConfig(1.0, last_item=0.25), generator=generator()).labels
    assert within(int((labels[:, 1] == PAD).sum()), 5000, 0.25)


def test_last():
    known = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert last(known).nonzero().tolist() == [[0, 2], [1, 0], [3, 3]]


def test_the_same_masks_in_batches_of_any_size():
    tracks, config, whole, parts = sessions(50), MaskingConfig(0.3, last_item=0.2), generator(3), generator(3)
    together = mask_tracks(tracks, N_IDS, config, generator=whole)
    for size in (1, 7, 50):
        parts = generator(3)
        pieces = [mask_tracks(piece, N_IDS, config, generator=parts) for piece in tracks.split(size)]
        assert torch.equal(torch.cat([piece.inputs for piece in pieces]), together.inputs)
        assert torch.equal(torch.cat([piece.labels for piece in pieces]), together.labels)
    other = mask_tracks(tracks, N_IDS, config, generator=generator(4))
    assert not torch.equal(other.labels, together.labels)


def test_training_masks_come_from_torchs_own_generator():
    tracks = sessions(50)
    torch.manual_seed(5)
    first = mask_tracks(tracks, N_IDS, MaskingConfig())
    second = mask_tracks(tracks, N_IDS, MaskingConfig())
    torch.manual_seed(5)
    again = mask_tracks(tracks, N_IDS, MaskingConfig())
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("values", [{"rate": 0.0}, {"rate": 1.1}, {"rate": math.nan}, {"last_item": -0.1}])
def test_bad_masking(values):
    (name,) = values
    with pytest.raises(UserError, match=f"masking.{name} is "):
        MaskingConfig(**values)


# ------------------------------------------------------------------------------------------------------------ loss


class Lookup(nn.Module):
    """A model whose states are the vectors of its inputs: easy to work out by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tracks = TrackEmbedding(N_IDS, 4, torch.zeros(N_IDS, 0))
        self.head = TrackHead(N_IDS, 4)

    def forward(self, tracks: Tensor) -> Tensor:
        return self.tracks(tracks)


def test_loss_is_the_mean_over_the_selected_tracks():
    model, batch = Lookup(), random_batch()
    torch.manual_seed(2)
    total, count = masked_loss(model, batch, loss=full_softmax, masking=MaskingConfig(0.3))
    torch.manual_seed(2)
    inputs, labels = mask_tracks(whole_sessions(batch), N_IDS, MaskingConfig(0.3))
    expected = [
        -torch.log_softmax(model.head(model.tracks(inputs[row, place])), 0)[labels[row, place]]
        for row, place in (labels != PAD).nonzero().tolist()
    ]
    assert count == len(expected) > 10
    assert total.item() == pytest.approx(sum(expected).item(), rel=1e-5)


def test_only_selected_positions_cost(monkeypatch):
    """What a model says where nothing was selected makes no difference, and gets no gradient."""
    batch = random_batch()
    states = torch.randn(6, 20, 4, requires_grad=True)
    model = Lookup()
    model.forward = lambda tracks: states
    torch.manual_seed(2)
    masked_loss(model, batch, loss=full_softmax, masking=MaskingConfig(0.3))[0].backward()
    torch.manual_seed(2)
    labels = mask_tracks(whole_sessions(batch), N_IDS, MaskingConfig(0.3)).labels
    assert torch.equal(states.grad.abs().sum(2) > 0, labels != PAD)
    # Another label where nothing was selected: still PAD for the loss, so the same loss.
    drawn = mask_tracks(whole_sessions(batch), N_IDS, MaskingConfig(0.3), generator=generator())

    def loss_of(labels: Tensor) -> tuple[float, int]:
        monkeypatch.setattr(module, "mask_tracks", lambda *_, **__: drawn._replace(labels=labels))
        total, count = masked_loss(model, batch, loss=full_softmax, masking=MaskingConfig(0.3))
        return total.item(), count

    unselected = drawn.labels == PAD
    assert loss_of(drawn.labels.masked_fill(unselected, UNK)) == loss_of(drawn.labels)
    assert loss_of(drawn.labels.where(unselected, 7)) != loss_of(drawn.labels)


@pytest.mark.parametrize("name", ["full", "sampled", "gbce"])
def test_every_loss_of_the_catalogue_serves(name):
    dataset_plays = torch.arange(N_IDS).masked_fill(torch.arange(N_IDS) < N_SPECIAL, 0)
    config = LossConfig(name)
    bert = BertTransformer(N_IDS, torch.zeros(N_IDS, 0), d_model=8, n_heads=2, n_layers=1, d_ff=8, dropout=0.0)
    model = BertForMaskedTracks(bert)
    loss, count = masked_loss(model, random_batch(), loss=track_loss(config, dataset_plays), masking=MaskingConfig())
    loss.backward()
    assert count > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_seq_loss_still_counts_its_targets_only():
    """`seq_loss` shares the selection of targets."""

    class Seq(Lookup):
        def forward(self, history, previous):
            return self.tracks(previous)

        def previous_tracks(self, history, targets):
            return torch.full_like(targets, MASK)

    batch, model = random_batch(), Seq()
    total, count = seq_loss(model, batch, full_softmax)
    log_p = torch.log_softmax(model.head(model.tracks(torch.tensor(MASK))), 0)
    targets = batch.target_tracks[batch.target_tracks != PAD]
    assert count == len(targets)
    assert total.item() == pytest.approx(-log_p[targets].sum().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def dataset(dataset_folder) -> Dataset:
    return Dataset.open(dataset_folder)


def tiny_bert(dataset: Dataset, max_length: int = 20) -> BertForMaskedTracks:
    torch.manual_seed(0)
    bert = BertTransformer(
        dataset.n_ids, dataset.features, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_length=max_length
    )
    return BertForMaskedTracks(bert)


def loader(dataset: Dataset, batch_size: int) -> SessionLoader:
    return SessionLoader(dataset.valid, batch_size=batch_size)


def test_hidden_tracks_are_the_same_at_each_evaluation(dataset):
    model, config = tiny_bert(dataset), MaskingConfig(0.3, last_item=0.3)
    predict = masked_predictor(model, CPU, config)
    first = predict(loader(dataset, 16))
    torch.manual_seed(99)
    for size in (16, 5, 1):
        again = predict(loader(dataset, size))
        assert np.array_equal(again.tracks, first.tracks)
        np.testing.assert_allclose(again.log_probability, first.log_probability, atol=1e-5)
    assert not model.training


def test_predictions_are_those_of_the_model(dataset):
    """Log-probability and rank of each hidden track, worked out over the whole catalogue."""
    model, config = tiny_bert(dataset), MaskingConfig(0.3)
    found = predict_masked(model, CPU, loader(dataset, 16), masking=config)
    (batch,) = loader(dataset, 16)
    sessions = whole_sessions(batch)
    labels = mask_tracks(sessions, N_IDS, config, generator=generator(module.EVALUATION_SEED)).labels
    assert np.array_equal(found.tracks, labels.numpy())
    hidden = sessions.masked_fill(labels != PAD, MASK)  # all of them: what stays in training could be copied
    log_p = torch.log_softmax(model.head(model(hidden)), -1)
    for row, place in (labels != PAD).nonzero().tolist():
        true = log_p[row, place, labels[row, place]]
        assert found.log_probability[row, place] == pytest.approx(true.item(), abs=1e-5)
        assert found.rank[row, place] == int((log_p[row, place] > true).sum())
        assert found.tied[row, place] == int((log_p[row, place] == true).sum()) == 1
    assert np.isinf(found.rank[found.tracks == PAD]).all()


@torch.no_grad()
def test_hidden_tracks_that_are_liked_alike_share_all_places(dataset):
    model = tiny_bert(dataset)
    model.head.weight.zero_()
    model.head.bias.zero_()
    order, n_tracks = loader(dataset, 16), N_IDS - N_SPECIAL
    found = predict_masked(model, CPU, order, masking=MaskingConfig(0.3))
    hidden = found.tracks != PAD
    assert (found.rank[hidden] == (n_tracks - 1) / 2).all()
    assert (found.tied == np.where(hidden, n_tracks, 1)).all()
    means = evaluate_masked(found, order.targets()).means()
    assert [means[f"hr@{k}"] for k in (1, 10, 20)] == pytest.approx([k / n_tracks for k in (1, 10, 20)])
    assert means["mrr@20"] == pytest.approx(sum(1 / place for place in range(1, 21)) / n_tracks)


def test_scores_by_hand():
    """Two sessions: three hidden tracks at ranks 0, 1 and 30, and one at rank 10."""
    tracks = np.array([[5, 0, 6, 7], [0, 8, 0, 0]], np.int32)
    rank = np.array([[0, 99, 1, 30], [0, 10, 0, 0]], np.float32)
    log_p = np.log(np.array([[0.5, 0.1, 0.25, 0.125], [0.1, 0.5, 0.1, 0.1]], np.float32))
    targets = scoring_targets(np.array([3, 4]))
    scores = evaluate_masked(MaskedPredictions(tracks, log_p, rank), targets)
    assert scores.n_sessions == 2
    assert scores.means() == {
        "mrr@20": pytest.approx((1 + 1 / 2 + 1 / 11) / 4),
        "hr@1": pytest.approx(1 / 4),
        "hr@10": pytest.approx(2 / 4),
        "hr@20": pytest.approx(3 / 4),
        "perplexity": pytest.approx((2 * 4 * 8 * 2) ** (1 / 4)),
    }
    assert scores.denominators["hr@1"].tolist() == [3, 1]
    summary = scores.summary()
    assert summary["metrics"]["hr@1"]["low"] == 0
    assert summary["metrics"]["hr@1"]["high"] == pytest.approx(1 / 3)
    assert summary["slices"] == {}
    assert summary["by_position"]["accuracy"] == summary["histogram"] == []


def scoring_targets(session: np.ndarray):
    from utils.data.dataloaders import Targets

    nothing = np.zeros((len(session), 2), np.int32)
    return Targets(nothing, nothing.astype(np.int8), session)


def test_broken_predictions_are_refused():
    tracks, targets = np.array([[5, 0]], np.int32), scoring_targets(np.array([0]))
    number, nan = np.zeros((1, 2), np.float32), np.full((1, 2), np.nan, np.float32)
    with pytest.raises(ValueError, match="log-probabilities"):
        evaluate_masked(MaskedPredictions(tracks, nan, number), targets)
    with pytest.raises(ValueError, match="shape"):
        evaluate_masked(MaskedPredictions(tracks, number, number[:, :1]), targets)


def test_table_for_people_names_the_hidden_plays(dataset):
    order = loader(dataset, 16)
    predictions = predict_masked(tiny_bert(dataset), CPU, order, masking=MaskingConfig(0.3))
    table = predictions_table(predictions, order, dataset)
    plays = pd.DataFrame(
        {
            "session_id": np.repeat(dataset.valid.sessions["session_id"].to_numpy(), dataset.valid.lengths),
            "position": np.concatenate([np.arange(1, n + 1) for n in dataset.valid.lengths]),
            "track_id": dataset.track_names[dataset.valid.tracks],
        }
    )
    assert len(table) == (predictions.tracks != PAD).sum() > 0
    merged = table.merge(plays, on=["session_id", "position", "track_id"])
    assert len(merged) == len(table), "each row is a play of the dataset"
    assert table["rank"].between(1, N_IDS - N_SPECIAL).all()
    assert table["probability"].between(0, 1).all()


def test_scores_of_hidden_tracks_find_their_judge(dataset):
    order = scoring_loader(dataset, DataConfig(), "valid")
    scores = scores_of(predict_masked(tiny_bert(dataset), CPU, order, masking=MaskingConfig()), order, dataset)
    assert set(scores.means()) == {"mrr@20", "hr@1", "hr@10", "hr@20", "perplexity"}


# ----------------------------------------------------------------------------------------------------- whole sessions


def test_whole_sessions_are_read_whole(dataset):
    arrays = dataset.train
    seen = []
    for batch in SessionLoader(arrays, batch_size=10):
        seen += [row[row != PAD].tolist() for row in whole_sessions(batch)]
    expected = np.split(arrays.tracks, arrays.offsets[1:-1])
    assert seen == [session.tolist() for session in expected]


@pytest.mark.parametrize(("sizes", "said"), [((10, 10), False), ((9, 10), True), ((10, 9), True)])
def test_sessions_that_do_not_fit_are_counted(dataset, capsys, sizes, said):
    """The longest of the tiny sessions have 20 plays."""
    check_whole(dataset, DataConfig(history_size=sizes[0], target_size=sizes[1]))
    out = capsys.readouterr().out
    assert bool(out) == said
    if said:
        first = out.splitlines()[0]
        halves = dataset.train.lengths // 2
        n = ((halves > sizes[0]) | (dataset.train.lengths - halves > sizes[1])).sum()
        assert first.startswith(f"train: only the middle of {n} of 64 sessions is read; the longest has 20 plays")
        assert first.endswith("--data.history_size 10 --data.target_size 10")


def test_odd_sessions_need_a_longer_second_half(tmp_path, capsys):
    dataset = Dataset.open(make_dataset(tmp_path / "data"))
    n_19 = (dataset.train.lengths >= 19).sum()
    check_whole(dataset, DataConfig(history_size=10, target_size=9))
    assert f"train: only the middle of {n_19} of 64" in capsys.readouterr().out, "19 plays are 9 and 10"


@pytest.mark.parametrize("values", [{"train_cut": "random"}, {"train_cut": "every"}, {"every_prefix": True}])
def test_other_cuts_are_refused(dataset, values):
    with pytest.raises(UserError, match="pre-training reads whole sessions; leave out "):
        check_whole(dataset, DataConfig(**values))
