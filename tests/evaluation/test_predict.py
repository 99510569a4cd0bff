"""From models to predictions: the judgement of true tracks, and leaks, found by perturbation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import N_IDS, make_dataset
from numpy.testing import assert_allclose, assert_array_equal
from tiny_models import seq_model, skip_model
from torch.testing import assert_close

from model.embeddings import TrackHead
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation import predict as predicting
from utils.evaluation.predict import judge, predict_seq, predict_skip
from utils.evaluation.scores import evaluate_seq
from utils.evaluation.scoring import scoring_loader

CPU = torch.device("cpu")


def mean(scores, name):
    return scores.means()[name]


def lookup(n_tracks):
    """A model whose states are its scores of the tracks; it thinks highly of special ids, which do not count."""
    weight = torch.cat([torch.full((N_SPECIAL, n_tracks), 100.0), torch.eye(n_tracks)])
    return SimpleNamespace(head=SimpleNamespace(weight=weight, bias=torch.zeros(len(weight))))


def test_judge_by_hand():
    states = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]).expand(1, 6, 5)
    log_p, rank, tied = judge(lookup(5), states, torch.tensor([[5, 6, 7, 9, UNK, PAD]]))
    total = math.log(sum(math.exp(x) for x in (3, 1, 2, 2, 0)))
    assert_allclose(log_p, [[3 - total, 1 - total, 2 - total, 0 - total, 0, 0]], rtol=1e-6)
    assert rank.tolist() == [[0, 3, 1.5, 4, math.inf, math.inf]]  # 7 and 8 tie: half of the ties are above
    assert tied.tolist() == [[1, 1, 2, 1, 1, 1]]
    _, rank, tied = judge(lookup(100), torch.zeros(1, 1, 100), torch.tensor([[60]]))
    assert (rank.item(), tied.item()) == (99 / 2, 100)


def test_judge_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states, targets = torch.randn(7, 3, 20, generator=generator), torch.randint(0, 25, (7, 3), generator=generator)
    whole = judge(lookup(20), states, targets)
    monkeypatch.setattr("utils.evaluation.predict.LOGIT_ROWS", 5)
    monkeypatch.setattr("utils.evaluation.predict._ROWS_IN_CACHE", 2)
    for chunked, expected in zip(judge(lookup(20), states, targets), whole, strict=True):
        torch.testing.assert_close(chunked, expected)


@pytest.fixture
def perturbed(tmp_path):
    """A dataset and its twin, of which the second halves of the test sessions have other skips and logs."""
    folder, twin = make_dataset(tmp_path / "data"), make_dataset(tmp_path / "twin")
    rng = np.random.default_rng(5)
    offsets = np.load(twin / "test" / "offsets.npy")
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    second = position >= np.repeat(lengths // 2, lengths)
    skips, log = np.load(twin / "test" / "skips.npy"), np.load(twin / "test" / "log.npy")
    skips[second] = rng.choice([0, 1, 2, 3, 4, 255], second.sum())
    log[second] = rng.integers(0, list(schema.LOG_COLUMNS.values()), (second.sum(), log.shape[1]))
    np.save(twin / "test" / "skips.npy", skips)
    np.save(twin / "test" / "log.npy", log)
    return Dataset.open(folder), Dataset.open(twin), second


@pytest.mark.parametrize("is_causal", [True, False])
def test_no_leak_of_second_halves_in_skip(perturbed, is_causal):
    dataset, twin, _ = perturbed
    model = skip_model(causal=is_causal)
    ours, theirs = (predict_skip(model, CPU, scoring_loader(d, DataConfig(), "test")) for d in (dataset, twin))
    assert_array_equal(ours.probability, theirs.probability)
    targets = [scoring_loader(d, DataConfig(), "test").targets().skips for d in (dataset, twin)]
    assert (targets[0] != targets[1]).mean() > 0.2, "the perturbation must reach the answers"


@pytest.mark.parametrize("start", ["last", "bos"])
def test_no_leak_of_second_halves_in_seq(perturbed, start):
    dataset, twin, second = perturbed
    model = seq_model(use_log=True, skip_encoding="embedding", start=start)
    ours, theirs = (predict_seq(model, CPU, scoring_loader(d, DataConfig(), "test")) for d in (dataset, twin))
    for mine, other in zip(ours, theirs, strict=True):
        assert_array_equal(mine, other)
    # Free-running: no track of the second half matters for the continuation, whatever it is.
    tracks = np.load(twin.folder / "test" / "tracks.npy")
    tracks[second] = np.random.default_rng(1).integers(N_SPECIAL, N_IDS, second.sum())
    np.save(twin.folder / "test" / "tracks.npy", tracks)
    changed = predict_seq(model, CPU, scoring_loader(Dataset.open(twin.folder), DataConfig(), "test"))
    assert_array_equal(ours.tracks, changed.tracks)
    assert (ours.log_probability != changed.log_probability).any(), "teacher-forced: there the targets count"


def test_history_reaches_the_predictions(perturbed):
    dataset, twin, second = perturbed
    skips = np.load(twin.folder / "test" / "skips.npy")
    skips[~second] = np.where(skips[~second] == schema.SKIP_1, schema.SKIP_PLAYED, schema.SKIP_1)
    np.save(twin.folder / "test" / "skips.npy", skips)
    model = skip_model(use_log=False)
    loaders = [scoring_loader(d, DataConfig(), "test") for d in (dataset, Dataset.open(twin.folder))]
    ours, theirs = (predict_skip(model, CPU, loader).probability for loader in loaders)
    assert (np.abs(ours - theirs).max(1) > 1e-4).all()


def test_predictions_do_not_depend_on_batch_size_or_pass(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    loaders = [SessionLoader(dataset.train, batch_size=size) for size in (3, 64)]
    skip, seq = skip_model(), seq_model()
    first, other = (predict_skip(skip, CPU, loader).probability for loader in loaders)
    again = predict_skip(skip, CPU, loaders[0]).probability
    assert_array_equal(first, again)
    assert_allclose(first, other, atol=1e-6)
    assert first.std() > 0.01
    one, two = (predict_seq(seq, CPU, loader) for loader in loaders)
    repeated = predict_seq(seq, CPU, loaders[0])
    assert_array_equal(one.tracks, repeated.tracks)
    assert_array_equal(one.tracks, two.tracks)
    assert_allclose(one.log_probability, two.log_probability, atol=1e-5)
    assert_array_equal(one.rank, two.rank)
    assert_array_equal(one.tied, two.tied)


def test_predict_seq_by_hand(dataset_folder):
    """Log-probabilities and ranks against the plain softmax over all scores."""
    dataset = Dataset.open(dataset_folder)
    loader = SessionLoader(dataset.test, batch_size=5)
    model = seq_model().eval()
    predictions = predict_seq(model, CPU, loader)
    (batch,) = SessionLoader(dataset.test, batch_size=100)
    targets = batch.target_tracks
    with torch.no_grad():
        logits = model.logits(model(batch.history, model.previous_tracks(batch.history, targets)))
    expected = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0].masked_fill(targets == PAD, 0)
    assert_allclose(predictions.log_probability, expected, atol=1e-5)
    order = logits[:, 0].argsort(descending=True)
    assert_array_equal(predictions.rank, (order == targets[:, :1]).nonzero()[:, 1])
    assert_array_equal(predictions.tied, np.ones(len(targets)))
    scores = evaluate_seq(predictions, loader.targets(), n_ids=N_IDS)
    known = targets != PAD
    assert mean(scores, "perplexity") == pytest.approx(math.exp(-expected[known].mean()), rel=1e-5)
    assert ((predictions.tracks >= N_SPECIAL) & (predictions.tracks < N_IDS)).all()


def test_ties_of_a_model_reach_the_metrics(dataset_folder):
    """A model that gives all tracks the same score hits one of k in n_tracks."""
    dataset = Dataset.open(dataset_folder)
    model = seq_model().eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    loader, n_tracks = SessionLoader(dataset.test, batch_size=5), N_IDS - N_SPECIAL
    predictions = predict_seq(model, CPU, loader)
    assert (predictions.rank == (n_tracks - 1) / 2).all()
    assert (predictions.tied == n_tracks).all()
    scores = evaluate_seq(predictions, loader.targets(), n_ids=N_IDS)
    assert [mean(scores, f"hr@{k}") for k in (1, 10, 20)] == pytest.approx([k / n_tracks for k in (1, 10, 20)])
    assert mean(scores, "mrr@20") == pytest.approx(sum(1 / place for place in range(1, 21)) / n_tracks)


@torch.no_grad()
def test_judge_is_brute_force():
    torch.manual_seed(0)
    head = TrackHead(300, 8)
    head.bias.normal_()
    head.weight[200:240], head.bias[200:240] = head.weight[100:140], head.bias[100:140]  # ties

    class Model:
        pass

    model = Model()
    model.head = head
    states, targets = 3 * torch.randn(30, 20, 8), torch.randint(0, 300, (30, 20))
    targets[0, 0], targets[0, 1] = PAD, 105
    log_p, rank, tied = judge(model, states, targets)
    logits = head(states)
    true = logits.gather(2, targets[..., None])
    inside = targets >= N_SPECIAL
    assert_close(log_p, logits.log_softmax(2).gather(2, targets[..., None])[..., 0].masked_fill(~inside, 0.0))
    expected = (logits > true).sum(2) + ((logits == true).sum(2) - 1) / 2
    assert_close(rank, expected.masked_fill(~inside, torch.inf))
    assert rank[0, 1] % 1 == 0.5
    assert_close(tied, (logits[..., N_SPECIAL:] == true).sum(2).float().masked_fill(~inside, 1.0))
    assert tied[0, 1] == 2
    with torch.autocast("cpu", torch.bfloat16):  # it is float32 all the same
        assert all(torch.equal(*both) for both in zip(judge(model, states, targets), (log_p, rank, tied), strict=True))


@torch.no_grad()
def test_judge_holds_few_scores_of_a_large_catalogue(monkeypatch):
    torch.manual_seed(0)
    model = SimpleNamespace(head=TrackHead(300, 8))
    states, targets = torch.randn(3, 20, 8), torch.randint(N_SPECIAL, 300, (3, 20))
    whole, seen = judge(model, states, targets), []
    monkeypatch.setattr(predicting, "rows_at_once", lambda *sizes: seen.append(sizes) or 7)
    for some, expected in zip(judge(model, states, targets), whole, strict=True):
        assert_close(some, expected)
    assert seen == [(300 - N_SPECIAL, predicting.LOGIT_ROWS)]
