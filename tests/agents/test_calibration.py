"""Probabilities of what an agent likes, and its ranking among random tracks."""

import numpy as np
import pytest
import torch
from agent_models import SIZES, agent_of
from sized_models import ActorCritic, DDPGForSkips

from model.ddpg import DDPGForContinuation
from utils.agents.calibration import SCALES, calibrate_ranks, calibrate_skips, calibration_loader, sampled_ranking
from utils.data.batch import History, SessionBatch
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL
from utils.evaluation.predict import judge, predict_skip
from utils.evaluation.scores import evaluate_skip
from utils.evaluation.scoring import scoring_loader

CPU = torch.device("cpu")


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
            yield SessionBatch(history, torch.zeros(5000, 4), None, torch.arange(5000))

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
    """A model that likes all tracks alike: every place among the tied ones is as probable as any other."""
    dataset, data = Dataset.open(dataset_folder), DataConfig(folder=str(dataset_folder))
    model = DDPGForContinuation(ActorCritic(dataset.n_ids, dataset.features, **SIZES))
    batch = next(iter(scoring_loader(dataset, data, "valid")))
    items = model.agent.items
    model.agent.items = lambda tracks: torch.ones(*tracks.shape, 6)
    scores = sampled_ranking(model, dataset, data, "valid")
    true = batch.target_tracks[:, :1]
    drawn = torch.randint(N_SPECIAL, dataset.n_ids, (len(true), 99), generator=torch.Generator().manual_seed(0))
    n_tied = [1 + n for n in (drawn != true).sum(1).tolist()]
    assert 90 < min(n_tied) < max(n_tied) <= 100, "draws of the track itself are no rivals"
    assert scores["n_sessions"] == dataset.valid.n_sessions == len(n_tied)
    assert scores["hr@1"] == pytest.approx(np.mean([1 / n for n in n_tied]))
    assert scores["hr@10"] == pytest.approx(np.mean([10 / n for n in n_tied]))
    assert scores["mrr"] == pytest.approx(np.mean([sum(1 / place for place in range(1, n + 1)) / n for n in n_tied]))
    model.agent.items = items
    true = batch.target_tracks[:, 0]
    model.agent.forward = lambda history: items(true)
    assert sampled_ranking(model, dataset, data, "valid")["mrr"] == 1.0
    model.agent.forward = lambda history: -items(true)
    assert sampled_ranking(model, dataset, data, "valid")["hr@10"] == 0
