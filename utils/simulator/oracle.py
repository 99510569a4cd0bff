"""The best possible predictions on a simulated dataset: exact Bayes, by an oracle that knows the generator.

    python -m utils.simulator.oracle --raw data/raw/demo --data.folder data/demo

The oracle sees what a model may see: all columns of the first half and the track ids of the second half (`skip`) or
the first half alone (`seq`). It also knows the world and the calibrated constants, but nothing hidden of a session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError
from utils.data.options import DataConfig
from utils.data.schema import MAX_LENGTH, MIN_LENGTH, half
from utils.data.vocab import PAD, UNK
from utils.training.options import RunConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from utils.data.dataloaders import SessionLoader
    from utils.evaluation.predictions import Predict, SeqPredictions, SkipPredictions
    from utils.simulator.behaviour import Behaviour
    from utils.simulator.oracle_logs import Logs
    from utils.simulator.world import World

CHUNK = 512
"""Sessions that the oracle filters at once: 512 x 720 states x 30 arrays are some 90 MB."""


def predict_skips(world: World, behaviour: Behaviour, logs: Logs) -> SkipPredictions:
    """Exact probabilities and the decisions that are optimal for mean average accuracy, (N, 10)."""
    import numpy as np
    from tqdm import tqdm

    from utils.evaluation.predictions import SkipPredictions
    from utils.simulator.behaviour import Situation
    from utils.simulator.sessions import NEXT
    from utils.simulator.skip_oracle import MAX_TARGETS, best_decisions, skip_posterior

    probability = np.zeros((len(logs.length), MAX_TARGETS), np.float32)
    decision = np.zeros((len(logs.length), MAX_TARGETS), bool)
    with tqdm(total=len(logs.length), desc="skip oracle", unit="session", leave=False, delay=2) as bar:
        for length in range(MIN_LENGTH, MAX_LENGTH + 1):
            alike = np.flatnonzero(logs.length == length)
            for rows in (alike[start : start + CHUNK] for start in range(0, len(alike), CHUNK)):
                posterior = skip_posterior(
                    world,
                    behaviour,
                    length=length,
                    tracks=logs.tracks[rows, :length],
                    situation=Situation(*(values[rows] for values in logs.situation)),
                    level=logs.level[rows, : half(length)],
                    broken=logs.after[rows, : half(length)] != NEXT,
                )
                n_targets = length - half(length)
                probability[rows, :n_targets] = posterior.probability
                decision[rows, :n_targets] = best_decisions(posterior)
                bar.update(len(rows))
    return SkipPredictions(probability, decision)


def predict_tracks(world: World, logs: Logs, ids: NDArray[np.int64]) -> SeqPredictions:
    """The most probable track of every step, (N, 10), and the rank of the first true one.

    Args:
        ids: (N tracks of the world,) their ids in the dataset; the oracle predicts no track that is UNK there.
    """
    import numpy as np
    from tqdm import tqdm

    from utils.evaluation.predictions import SeqPredictions
    from utils.simulator.oracle_logs import first_half
    from utils.simulator.skip_oracle import MAX_TARGETS
    from utils.simulator.track_oracle import ContinuationOracle

    tracks = np.full((len(logs.length), MAX_TARGETS), PAD, np.int32)
    rank, tied = np.full(len(logs.length), np.inf, np.float32), np.ones(len(logs.length), np.float32)
    with tqdm(total=len(logs.length), desc="seq oracle", unit="session", leave=False, delay=2) as bar:
        for day in np.unique(logs.day):
            oracle = ContinuationOracle(world, world.lists(int(day)), ids != UNK)
            for row in np.flatnonzero(logs.day == day).tolist():
                cut, length = half(int(logs.length[row])), int(logs.length[row])
                guess = oracle.predict(first_half(logs, row), int(logs.tracks[row, cut]))
                tracks[row, : length - cut] = ids[guess.tracks[: length - cut]]
                rank[row], tied[row] = guess.rank, guess.tied
                bar.update()
    return SeqPredictions(tracks, None, rank, tied)


LABELS = {
    "skip": "Oracle (the simulator's optimum)",
    # Not quite the optimum of MAA, which rewards right answers in a row: up to 0.0012 more of it is possible.
    "seq": "Oracle (best track at each position)",
}


@dataclass
class Config:
    """Experiment."""

    raw: str = "data/raw/demo"
    """Folder that `python -m utils.simulator` wrote, from which the dataset was made."""
    data: DataConfig = field(default_factory=lambda: DataConfig(scored=["valid", "test"]))
    run: RunConfig = field(default_factory=RunConfig)
    task: Literal["skip", "seq", "both"] = "both"
    """Which oracle."""

    def __post_init__(self) -> None:
        if (self.data.history_size, self.data.target_size) != (
            MAX_LENGTH // 2,
            MAX_LENGTH - MAX_LENGTH // 2,
        ) or self.data.every_prefix:
            raise UserError("the oracle sees whole halves: leave data.history_size, target_size and every_prefix alone")


def main(config: Config) -> list[dict[str, Any]]:
    """Score the oracle; returns the contents of the result.json files."""
    from utils.core.files import read_json
    from utils.data.dataset import Dataset
    from utils.evaluation.scoring import score, scoring_loaders
    from utils.simulator.behaviour import Behaviour
    from utils.simulator.oracle_logs import dataset_ids, read_logs
    from utils.simulator.world import build_world
    from utils.training.run import Run

    raw = Path(config.raw)
    truth = read_json(raw / "hidden_truth" / "world.json")
    world = build_world(seed=truth["seed"], n_tracks=truth["n_tracks"])
    dataset = Dataset.open(config.data.folder, needs_skips=True)
    logs: dict[Path, Logs] = {}

    def logs_of(loader: SessionLoader) -> Logs:
        folder = loader.arrays.folder
        if folder not in logs:
            logs[folder] = read_logs(raw, world, loader.arrays.sessions.iloc[loader.session])
        return logs[folder]

    ids = dataset_ids(world, dataset)
    predictors: dict[str, Predict] = {
        "skip": lambda loader: predict_skips(world, Behaviour(), logs_of(loader)),
        "seq": lambda loader: predict_tracks(world, logs_of(loader), ids),
    }
    results = []
    for task, predict in predictors.items():
        if config.task in (task, "both"):
            run = Run(f"oracle_{task}", config, dataset)
            scores = score(predict, dataset, scoring_loaders(dataset, config.data), folder=run.folder)
            results.append(run.finish(task=task, kind="oracle", label=LABELS[task], scores=scores))
    return results


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
