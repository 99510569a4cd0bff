"""The baselines of both tasks, which a model has to beat. Each gets a run folder of its own, like any model.

    python train_baselines.py --config configs/baselines/demo_skip.yml
    python train_baselines.py --config configs/baselines/nowplaying.yml --data.folder data/nowplaying
    python train_baselines.py --config configs/baselines/personal.yml --past.protocol frozen
    python train_baselines.py --data.folder data/mssd --task both --max_sessions 1000000

They are fitted on the training split only. Validation chooses the settings of seq baselines by MRR@20, and the number
of trees by log loss; `trials` in `result.json` lists what was tried. Without validation sessions, settings are the
defaults. A dataset without skips gets the seq baselines only, and so does `--data.every_prefix`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError
from utils.data.options import DataConfig, PastConfig, check_unused
from utils.training.baselines import Baseline, SkipExamples, baselines_of_seq
from utils.training.options import RunConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    task: Literal["skip", "seq", "both"] = "both"
    """Which baselines."""
    max_sessions: PositiveInt = 1_000_000
    """Most training sessions to use, to bound the memory: evenly spaced for skip, the last ones for seq. Boosted trees,
    and with a past the logistic regression, use 30,000 at most."""
    order: PositiveInt = 4
    """Longest context of the n-gram, in tracks."""
    past: PastConfig = field(default_factory=PastConfig)
    refit: bool = False
    """Seq: before test is scored, fit the chosen settings again, on training and validation sessions."""
    use_ids: bool = True
    """Logistic regression and trees know the skip rate of each track in training; false leaves them only its past."""


def skip_baselines(config: Config, dataset: Dataset) -> list[Baseline]:
    """The skip baselines; validation chooses nothing but the number of trees."""
    from model import baselines_skip as skip
    from model.trees_skip import HistoryTrees
    from utils.training.run import REPEAT_LAST

    examples = SkipExamples(dataset, config.data, max_sessions=config.max_sessions)
    rate = skip.TrackRate.fit(dataset.train.tracks, dataset.train.skips, n_ids=dataset.n_ids)
    known: Any = {"track_rate": rate if config.use_ids else None, "seed": config.run.seed}
    logistic: Any = partial(skip.HistoryLogistic.fit, **known)
    trees: Any = partial(HistoryTrees.fit, **known)
    return [
        Baseline("position_majority", "Position majority", lambda: (skip.PositionMajority.fit(*examples.many), {})),
        Baseline("skip_rate_of_the_track", "Skip rate of the track", lambda: (rate, {})),
        Baseline(REPEAT_LAST, "Repeat last action", lambda: (skip.RepeatLast.fit(*examples.many), {})),
        Baseline("logistic_on_the_history", "Logistic on the history", lambda: (logistic(*examples.for_logistic), {})),
        Baseline("boosted_trees", "Boosted trees", lambda: trees(examples.few, examples.valid())),
    ]


def seq_baselines(config: Config, dataset: Dataset, chosen: dict[str, str] | None = None) -> list[Baseline]:
    """The seq baselines, with settings that validation chooses, or those of `chosen`: see `baselines_of_seq`."""
    return baselines_of_seq(dataset, config.data, max_sessions=config.max_sessions, order=config.order, chosen=chosen)


def main(config: Config) -> list[dict[str, Any]]:
    """Fit and score each baseline; returns the contents of their result.json files."""
    from tqdm import tqdm

    from model import baselines_skip as skip
    from model import next_track
    from utils.data.dataset import Dataset
    from utils.data.past import with_past
    from utils.evaluation.predictions import SeqPredictions, SkipPredictions
    from utils.evaluation.scoring import score, scoring_loaders
    from utils.training.run import Run

    if config.task == "skip" and config.data.every_prefix:
        raise UserError("data.every_prefix has no meaning for skips; leave it out, or choose --task seq")
    if config.task == "seq" and (config.past != PastConfig() or not config.use_ids):
        raise UserError("past and use_ids have no meaning for the seq baselines; leave them out, or choose --task skip")
    if config.refit and config.task != "seq":
        raise UserError("refit is for the seq baselines; leave it out, or add --task seq")
    check_unused(config.data, "train_share", "train_cut", "new_plays", "valid_sessions", by="baselines")
    dataset = with_past(Dataset.open(config.data.folder, needs_skips=config.task == "skip"), config.past)
    loaders = list(scoring_loaders(dataset, config.data))
    test = [each for each in loaders if each[0].startswith("test")]
    earlier = [each for each in loaders if each not in test]
    examples = cache(next_track.examples)  # read each loader only once
    if config.refit and dataset.valid.n_sessions == 0:
        raise UserError(f"refit needs validation sessions, and {dataset.folder} has none; leave it out")
    tasks: dict[str, Any] = {
        "skip": (skip_baselines, lambda model, loader: SkipPredictions(*skip.predict(model, loader))),
        "seq": (seq_baselines, lambda model, loader: SeqPredictions(*next_track.predict(model, *examples(loader)))),
    }
    results = []
    for task in tasks if config.task == "both" else [config.task]:
        if task == "skip" and (not dataset.info["has_skips"] or config.data.every_prefix):
            why = "data.every_prefix is for seq" if dataset.info["has_skips"] else f"{dataset.folder} has no skips"
            tqdm.write(f"{why}: only the seq baselines run")
            continue
        baselines, predict = tasks[task]
        chosen: dict[str, str] = {}
        again = {each.id: each for each in seq_baselines(config, dataset, chosen)} if config.refit else {}
        for baseline in baselines(config, dataset):
            run = Run(baseline.id, config, dataset)
            model, trials = baseline.fit()
            scores = score(partial(predict, model), dataset, earlier, folder=run.folder)
            if config.refit:
                chosen[baseline.id] = max(trials, key=trials.__getitem__, default="")
                model, _ = again[baseline.id].fit()
            scores |= score(partial(predict, model), dataset, test, folder=run.folder)
            results.append(run.finish(task=task, kind="baseline", label=baseline.label, scores=scores, trials=trials))
    return results


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
