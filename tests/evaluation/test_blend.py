"""The mixture of a model and an n-gram: by hand, and equal to either of them at its ends."""

import numpy as np
import pytest
import torch
from conftest import N_IDS, make_dataset
from sized_models import NextTrackGRU
from torch import nn

from model.baselines_seq import ItemKNN, Ngram, Popularity
from model.next_track import examples, predict
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, UNK
from utils.evaluation import blend
from utils.evaluation.blend import Blend, choose_weight, predict_blend, rank_of
from utils.evaluation.predict import predict_seq
from utils.evaluation.scores import evaluate_seq

CPU = torch.device("cpu")


class Stubborn(nn.Module):
    """A model of four tracks, 5 to 8, with one answer to everything: 0.1, 0.2, 0.3, 0.4."""

    def logits(self, states):
        p = torch.tensor([0.0] * N_SPECIAL + [0.1, 0.2, 0.3, 0.4])
        return p.log().expand(len(states), -1)


def markov():
    """After 5 there were two plays of 6 and one of 7; plays are 3, 2, 1, 0, and one more of each for popularity."""
    tracks, offsets = np.array([5, 6, 5, 6, 5, 7]), np.array([0, 4, 6])
    fallback = Popularity.fit(tracks, n_ids=9)
    return Ngram.fit(tracks, offsets, order=1, fallback=fallback, discount=0.9)


NGRAM = [0.6 * 0.4, 1.1 / 3 + 0.6 * 0.3, 0.1 / 3 + 0.6 * 0.2, 0.6 * 0.1]
"""After 5: each count less 0.9, by three plays; the 0.6 that are left go by popularity."""
MODEL = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(("weight", "order"), [(0.0, [6, 5, 7, 8]), (0.25, [6, 5, 7, 8]), (0.75, [8, 6, 7, 5])])
def test_mixture_by_hand(weight, order):
    mixed = Blend(Stubborn(), markov(), weight).probability(torch.zeros(1, 2), torch.tensor([[0, 7, 5]]))
    by_hand = [weight * a + (1 - weight) * b for a, b in zip(MODEL, NGRAM, strict=True)]
    assert mixed.dtype == torch.float64
    assert mixed[0].tolist() == pytest.approx([0.0] * N_SPECIAL + by_hand, rel=1e-6)
    assert sum(NGRAM) == pytest.approx(1.0)
    assert mixed.sum().item() == pytest.approx(1.0, rel=1e-6)
    found = [rank_of(mixed, torch.tensor([track])) for track in order]
    assert [(rank.item(), tied.item()) for rank, tied in found] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_an_even_share_is_the_default():
    assert Blend(Stubborn(), markov()).weight == 0.5


def test_a_rank_is_the_middle_one_of_ties():
    p = torch.tensor([[0.9, 0, 0, 0, 0, 0.2, 0.3, 0.2, 0.2, 0.1]], dtype=torch.float64)
    ranks, tied = rank_of(p.expand(5, -1), torch.arange(5, 10))
    assert ranks.tolist() == [2, 0, 2, 2, 4], "three tracks share the places 1, 2 and 3; special ids have none"
    assert tied.tolist() == [3, 1, 3, 3, 1]
    assert ranks.dtype == tied.dtype == torch.float64


def test_ties_are_brute_force():
    generator = torch.Generator().manual_seed(0)
    p = torch.randint(0, 4, (60, 12), generator=generator).double() / 10
    targets = torch.randint(N_SPECIAL, 12, (60,), generator=generator)
    for row, target, rank, tied in zip(p.tolist(), targets.tolist(), *rank_of(p, targets), strict=True):
        tracks = row[N_SPECIAL:]
        assert tied == tracks.count(row[target])
        assert rank == sum(value > row[target] for value in tracks) + (tied - 1) / 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Short and long sessions, some tracks of which are unknown."""
    folder = make_dataset(tmp_path_factory.mktemp("blend") / "data", min_length=2)
    for split in ("valid", "test"):
        tracks = np.load(folder / split / "tracks.npy")
        tracks[::7] = UNK
        np.save(folder / split / "tracks.npy", tracks)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def parts(dataset):
    """A model that has learnt nothing, but has its preferences; and an n-gram."""
    torch.manual_seed(0)
    model = NextTrackGRU(N_IDS, dataset.features, d_model=16, d_hidden=20).eval()
    with torch.no_grad():
        model.head.bias.normal_()
        model.head.weight.mul_(6)
    plays = (np.array(dataset.train.tracks[:150]), np.append(dataset.train.offsets[:12], 150))
    return model, Ngram.fit(*plays, order=2, fallback=ItemKNN.fit(*plays, n_ids=N_IDS))


@pytest.fixture(params=["half", "every"])
def loader(request, dataset):
    size = 10 if request.param == "half" else 1
    return SessionLoader(dataset.test, batch_size=7, cut=request.param, history_size=6, target_size=size)


def test_all_of_the_model_is_the_model(parts, loader):
    model, ngram = parts
    ours, theirs = predict_blend(Blend(model, ngram, 1.0), CPU, loader), predict_seq(model, CPU, loader)
    assert np.array_equal(ours.tracks, theirs.tracks)
    assert np.array_equal(ours.rank, theirs.rank)
    assert np.array_equal(ours.tied, theirs.tied)
    assert np.isinf(ours.rank).any()
    np.testing.assert_allclose(ours.log_probability, theirs.log_probability, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_model_is_the_ngram(parts, loader):
    model, ngram = parts
    ours, theirs = predict_blend(Blend(model, ngram, 0.0), CPU, loader), predict(ngram, *examples(loader))
    assert np.array_equal(ours.tracks, theirs[0])
    np.testing.assert_allclose(ours.log_probability, theirs[1], rtol=1e-5, atol=1e-6)
    assert np.array_equal(ours.rank, theirs[2])
    assert np.array_equal(ours.tied, theirs[3])
    assert (ours.tied > 1).any()
    assert (ours.tied[np.isinf(ours.rank)] == 1).all()


def test_a_mixture_is_neither_and_its_probabilities_are_mixed(parts, loader):
    model, ngram = parts
    found = [predict_blend(Blend(model, ngram, weight), CPU, loader) for weight in (0.0, 0.3, 1.0)]
    ngram_p, mixed, model_p = (np.exp(one.log_probability[:, 0]) for one in found)
    known = found[0].log_probability[:, 0] != 0
    assert known.any()
    np.testing.assert_allclose(mixed[known], 0.3 * model_p[known] + 0.7 * ngram_p[known], rtol=1e-5)
    assert not np.array_equal(found[1].tracks, found[0].tracks)
    assert not np.array_equal(found[1].tracks, found[2].tracks)


def test_predictions_do_not_depend_on_how_many_are_held_at_once(parts, loader, monkeypatch):
    both = Blend(*parts)
    whole = predict_blend(both, CPU, loader)
    sizes = []
    monkeypatch.setattr(blend, "rows_at_once", lambda *size: sizes.append(size) or 3)
    for ours, theirs in zip(predict_blend(both, CPU, loader), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert sizes == [(N_IDS, 128)]


def test_a_continuation_follows_what_was_predicted_before(parts, loader):
    """Step by step by hand: the model reads the whole session, the n-gram its last six plays."""
    both = Blend(*parts)
    (batch, *_) = loader
    predicted = predict_blend(both, CPU, loader).tracks[batch.rows.numpy()]
    session = batch.history.tracks
    for step in range(loader.target_size):
        with torch.no_grad():
            states, _ = both.model.read(session)
        best = both.probability(states[:, -1], session[:, -6:]).argmax(1)
        assert best.tolist() == predicted[:, step].tolist()
        session = torch.cat([session, best[:, None]], dim=1)


def test_the_weight_with_the_best_mrr_is_chosen(parts, loader):
    both, weights = Blend(*parts), [1.0, 0.2, 0.6, 0.2]
    chosen, trials = choose_weight(both, weights, CPU, loader)
    expected = {
        f"weight {weight}": evaluate_seq(
            predict_blend(Blend(*parts, weight), CPU, loader), loader.targets(), n_ids=N_IDS
        )
        .numerators["mrr@20"]
        .sum()
        / loader.n_examples
        for weight in weights
    }
    assert trials == pytest.approx(expected)
    assert len(set(trials.values())) == 3
    assert f"weight {chosen.weight}" == max(trials, key=trials.__getitem__)
    assert (chosen.model, chosen.ngram) == (both.model, both.ngram)


def test_of_one_weight_there_is_no_choice(parts):
    chosen, trials = choose_weight(Blend(*parts), [0.9], CPU, None)
    assert (chosen.weight, trials) == (0.9, {})
