"""The baselines of both tasks, which a model has to beat. Each gets a run folder of its own, like any model.

    python train_baselines.py --config configs/baselines/demo_skip.yml
    python train_baselines.py --config configs/baselines/nowplaying.yml --data.folder data/nowplaying
    python train_baselines.py --data.folder data/mssd --task both --max_sessions 1000000

They are fitted on the training split only. Settings are chosen by MRR@20 on validation; `trials` in `result.json` lists
every setting that was tried. A dataset without skips gets the seq baselines only, and so does `--data.every_prefix`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from jsonargparse.typing import PositiveInt

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError
from utils.data.options import DataConfig
from utils.training.options import RunConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from utils.data.dataloaders import SessionLoader
    from utils.data.dataset import Dataset
    from utils.evaluation.predictions import Predictions


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    task: Literal["skip", "seq", "both"] = "both"
    """Which baselines."""
    max_sessions: PositiveInt = 1_000_000
    """Most training sessions to use, to bound the memory: evenly spaced for skip, the last ones for seq."""
    order: PositiveInt = 4
    """Longest context of the n-gram, in tracks."""


class Baseline(NamedTuple):
    """A row of the leaderboard that is not fitted yet."""

    id: str
    """`experiment` in result.json, and the folder of its runs."""
    label: str
    fit: Callable[[], tuple[Any, dict[str, float]]]
    """Returns the model and its trials, see `next_track.choose`."""


def skip_baselines(config: Config, dataset: Dataset) -> list[Baseline]:
    """The skip baselines. They choose nothing on validation: the prior of their rates is fixed."""
    from model import baselines_skip as skip
    from utils.data.dataloaders import SessionLoader
    from utils.training.run import REPEAT_LAST

    s, t, n = config.data.history_size, config.data.target_size, config.max_sessions
    loader = SessionLoader(dataset.train, batch_size=4096, history_size=s, target_size=t, max_sessions=n)
    inputs, labels = skip.SkipInputs.of(loader), loader.targets().skips
    rate = skip.TrackRate.fit(dataset.train.tracks, dataset.train.skips, n_ids=dataset.n_ids)
    fit_logistic = partial(skip.HistoryLogistic.fit, track_rate=rate, seed=config.run.seed)
    return [
        Baseline("position_majority", "Position majority", lambda: (skip.PositionMajority.fit(inputs, labels), {})),
        Baseline("skip_rate_of_the_track", "Skip rate of the track", lambda: (rate, {})),
        Baseline(REPEAT_LAST, "Repeat last action", lambda: (skip.RepeatLast.fit(inputs, labels), {})),
        Baseline("logistic_on_the_history", "Logistic on the history", lambda: (fit_logistic(inputs, labels), {})),
    ]


def seq_baselines(config: Config, dataset: Dataset) -> list[Baseline]:
    """The seq baselines, with settings that validation chooses."""
    from model import baselines_seq as seq
    from model import next_track
    from utils.evaluation.metrics import reciprocal_rank
    from utils.evaluation.scoring import scoring_loader
    from utils.training.run import NGRAM

    offsets = dataset.train.offsets[-config.max_sessions - 1 :]
    plays = (dataset.train.tracks[offsets[0] :], offsets - offsets[0])
    popularity = seq.Popularity.fit(plays[0], n_ids=dataset.n_ids)
    valid = scoring_loader(dataset, config.data, "valid", prefixes=config.data.every_prefix)
    choose = partial(next_track.choose, valid, quality=lambda ranks: reciprocal_rank(ranks.rank, 20, ranks.tied))

    @cache  # asked for twice: it is a row of its own, and the n-gram's fallback
    def item_knn() -> tuple[Any, dict[str, float]]:
        return choose(seq.ItemKNN.fit(*plays, n_ids=dataset.n_ids))

    def ngram(order: int, fallback: Any) -> tuple[Any, dict[str, float]]:
        return choose(seq.Ngram.fit(*plays, order=order, fallback=fallback))

    return [
        Baseline("popularity", "Popularity", lambda: (popularity, {})),
        Baseline("markov", "Markov", lambda: ngram(1, popularity)),
        Baseline("item_knn", "Item-kNN", item_knn),
        Baseline(NGRAM, "n-gram with kNN", lambda: ngram(config.order, item_knn()[0])),
    ]


def main(config: Config) -> list[dict[str, Any]]:
    """Fit and score each baseline; returns the contents of their result.json files."""
    from tqdm import tqdm

    from model import baselines_skip as skip
    from model import next_track
    from utils.data.dataset import Dataset
    from utils.evaluation.predictions import SeqPredictions, SkipPredictions
    from utils.evaluation.scoring import score, scoring_loaders
    from utils.training.run import Run

    if config.task == "skip" and config.data.every_prefix:
        raise UserError("data.every_prefix has no meaning for skips; leave it out, or choose --task seq")
    dataset = Dataset.open(config.data.folder, needs_skips=config.task == "skip")
    loaders = list(scoring_loaders(dataset, config.data))
    skip_inputs, examples = cache(skip.SkipInputs.of), cache(next_track.examples)  # read each loader only once

    def predict_skips(model: Any, loader: SessionLoader) -> Predictions:
        return SkipPredictions(*model.predict(skip_inputs(loader)))

    def predict_tracks(model: Any, loader: SessionLoader) -> Predictions:
        return SeqPredictions(*next_track.predict(model, *examples(loader)))

    tasks = {"skip": (skip_baselines, predict_skips), "seq": (seq_baselines, predict_tracks)}
    results = []
    for task in tasks if config.task == "both" else [config.task]:
        if task == "skip" and (not dataset.info["has_skips"] or config.data.every_prefix):
            reason = "data.every_prefix is for seq" if dataset.info["has_skips"] else f"{dataset.folder} has no skips"
            tqdm.write(f"{reason}: only the seq baselines run")
            continue
        baselines, predict = tasks[task]
        for baseline in baselines(config, dataset):
            run = Run(baseline.id, config, dataset)
            model, trials = baseline.fit()
            scores = score(partial(predict, model), dataset, loaders, folder=run.folder)
            results.append(run.finish(task=task, kind="baseline", label=baseline.label, scores=scores, trials=trials))
    return results


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
