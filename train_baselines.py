"""The honest baselines of both tasks: what has to be beaten. Each gets a run folder of its own, like any model.

    python train_baselines.py --config configs/baselines/demo_skip.yml
    python train_baselines.py --config configs/baselines/nowplaying.yml --data.folder data/nowplaying
    python train_baselines.py --data.folder data/mssd --task both --max_sessions 1000000

They are fitted on the training split only. What must be chosen is chosen by MRR@20 on validation, and every setting
that was tried stands in `result.json` under `trials`. A dataset without skips gets the seq baselines only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from model import baselines_seq as seq
from model import baselines_skip as skip
from model import next_track
from utils.core.cli import cli
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.predictions import Predictions, SeqPredictions, SkipPredictions
from utils.evaluation.scoring import score, scoring_loader
from utils.training.options import RunConfig
from utils.training.run import Run
from utils.training.seeds import each_seed

Fits = dict[
    str, Callable[[], tuple[Any, dict[str, float]]]
]  # label -> fit: the model, and its trials (`next_track.choose`)


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    task: Literal["skip", "seq", "both"] = "both"
    """Which baselines."""
    max_sessions: PositiveInt = 1_000_000
    """Training sessions in use at most, to bound the memory: evenly spaced for skip, the last ones for seq."""
    order: PositiveInt = 4
    """Tracks of the n-gram's longest context."""


def skip_fits(config: Config, dataset: Dataset) -> Fits:
    """The skip baselines. Nothing is chosen on validation: the prior of their rates is fixed."""
    s, t, n = config.data.history_size, config.data.target_size, config.max_sessions
    loader = SessionLoader(dataset.train, batch_size=4096, history_size=s, target_size=t, max_sessions=n)
    inputs, labels = skip.SkipInputs.of(loader), loader.targets().skips
    rate = skip.TrackRate.fit(dataset.train.tracks, dataset.train.skips, n_ids=dataset.n_ids)
    fit_logistic = partial(skip.HistoryLogistic.fit, track_rate=rate, seed=config.run.seed)
    return {
        "Position majority": lambda: (skip.PositionMajority.fit(inputs, labels), {}),
        "Skip rate of the track": lambda: (rate, {}),
        "Repeat last action": lambda: (skip.RepeatLast.fit(inputs, labels), {}),
        "Logistic on the history": lambda: (fit_logistic(inputs, labels), {}),
    }


def seq_fits(config: Config, dataset: Dataset) -> Fits:
    """The seq baselines, their settings chosen on validation."""
    offsets = dataset.train.offsets[-config.max_sessions - 1 :]
    plays = (dataset.train.tracks[offsets[0] :], offsets - offsets[0])
    popularity = seq.Popularity.fit(plays[0], n_ids=dataset.n_ids)
    choose = partial(
        next_track.choose, scoring_loader(dataset, config.data, "valid", prefixes=config.data.every_prefix)
    )
    fit_knn = partial(seq.ItemKNN.fit, *plays, n_ids=dataset.n_ids)
    return {
        "Popularity": lambda: (popularity, {}),
        "Markov": lambda: choose(seq.Ngram.fit(*plays, order=1, fallback=popularity)),
        "Item-kNN": lambda: choose(fit_knn()),
        "n-gram with kNN": lambda: choose(seq.Ngram.fit(*plays, order=config.order, fallback=choose(fit_knn())[0])),
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Fit and score each baseline; returns the contents of their result.json files."""
    dataset = Dataset.open(config.data.folder, needs_skips=config.task == "skip")
    tasks: dict[str, tuple[Callable[[Config, Dataset], Fits], Callable[[Any, SessionLoader], Predictions]]] = {
        "skip": (skip_fits, lambda model, loader: SkipPredictions(*skip.predict(model, loader))),
        "seq": (seq_fits, lambda model, loader: SeqPredictions(*next_track.predict(model, loader))),
    }
    results = []
    for task in tasks if config.task == "both" else [config.task]:
        if task == "skip" and not dataset.info["has_skips"]:
            tqdm.write(f"{dataset.folder} has no skips: only the seq baselines run")
            continue
        fits, predict = tasks[task]
        for label, fit in fits(config, dataset).items():
            run = Run(re.sub(r"\W+", "_", label.lower()), config, dataset)
            model, trials = fit()
            scores = score(partial(predict, model), dataset, config.data, folder=run.folder)
            results.append(run.finish(task=task, kind="baseline", label=label, scores=scores, trials=trials))
    return results


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
