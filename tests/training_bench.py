"""Training of tiny models by the shared loop, with losses and evaluations of which everything is known."""

import json
from dataclasses import dataclass, field
from functools import partial

import torch
from conftest import N_IDS
from sized_models import SeqTransformer, SkipTransformer
from torch import nn

from utils.data.dataloaders import training_loader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.predict import skip_predictor
from utils.evaluation.scoring import validate, validation_loader
from utils.training.loop import fit
from utils.training.losses import seq_loss, skip_loss, track_loss
from utils.training.options import LossConfig, RunConfig, TrainConfig
from utils.training.run import Run

CPU = torch.device("cpu")


@dataclass
class Config:
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


class Weight(nn.Module):
    """One number, from zero."""

    def __init__(self, start=0.0):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(start))


class Bench:
    """A dataset, a run folder and a loop over 64 sessions."""

    def __init__(self, dataset_folder, folder):
        self.dataset = Dataset.open(dataset_folder)
        self.folder = folder

    def run(self, config, resume=None):
        return Run("bench", Config(config, RunConfig(folder=str(self.folder), resume=resume)), self.dataset)

    def fit(self, model, loss_fn, evaluate_fn, config, *, resume=None, monitor="value", **options):
        self.last_run = self.run(config, resume)
        loader = training_loader(self.dataset, DataConfig(), batch_size=config.batch_size, seed=1)
        return fit(model, loss_fn, evaluate_fn, loader, config=config, run=self.last_run, monitor=monitor, **options)

    def lines(self, split):
        text = (self.last_run.folder / "metrics.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["split"] == split]

    def checkpoint(self, name):
        return torch.load(self.last_run.folder / name, weights_only=True)


def constant_gradient(model, batch):
    """The gradient of the mean loss is 1, so each step of Adam is as long as the learning rate."""
    return model.p * len(batch.rows), len(batch.rows)


def scripted(values):
    """An evaluation that reads its values from a list."""
    rest = iter(values)
    return lambda: {"value": next(rest)}


def skip_parts(dataset):
    torch.manual_seed(3)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "dropout": 0.3}
    model = SkipTransformer(N_IDS, dataset.features, **sizes)
    valid = validation_loader(dataset, DataConfig())
    return model, skip_loss, partial(validate, skip_predictor(model, CPU), dataset, valid)


def seq_parts(dataset):
    torch.manual_seed(3)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "dropout": 0.3}
    model = SeqTransformer(N_IDS, dataset.features, sparse=True, **sizes)
    loss = track_loss(LossConfig(n_negatives=6), dataset.train_plays)  # draws random numbers in training
    return model, partial(seq_loss, loss=loss), lambda: {"maa": float(model.head.bias.detach().sum())}
