"""Score a trained run again: on any split of its dataset, or on sessions from outside.

    python evaluate.py --run runs/transformer_skip/STAMP --split valid
    python evaluate.py --run runs/transformer_seq/STAMP --plays my_plays.csv --plays_columns.session session_id \
        --plays_columns.position position
    python evaluate.py --run runs/transformer_skip/STAMP --predictions predictions.csv

Prints every metric with its 95 % interval over sessions. Tracks that the run's dataset does not know become `unk`;
their share is printed. Nothing in the run folder is changed.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from utils.checkpoint import load_weights
from utils.cli import UserError, cli, parse_config
from utils.dataloaders import Dataset, SessionArrays
from utils.files import read_json
from utils.importers.plays import PlaysColumns, read_plays
from utils.preparing import SplitWriter
from utils.run import pick_device
from utils.scoring import predictions_table, score_split, seq_predictor, skip_predictor, write_table


@dataclass
class Config:
    """What to score."""

    run: str
    """Folder of a finished run of a model."""
    split: Literal["train", "valid", "test"] = "test"
    """Split of the run's dataset."""
    plays: str | None = None
    """Score these sessions instead: a table of plays, CSV or Parquet."""
    plays_columns: PlaysColumns = field(default_factory=PlaysColumns)
    data: str | None = None
    """Dataset folder, if it is not where it was when the run was trained."""
    predictions: str | None = None
    """Write the prediction of every target to this file (.csv or .parquet)."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def main(config: Config) -> dict[str, Any]:
    """Print the scores and return them, as `Scores.summary()`."""
    folder = Path(config.run)
    result = read_json(folder / "result.json")
    if result["kind"] != "model":
        raise UserError(f"{folder} is a {result['kind']}, which keeps no weights; run its script again instead")
    # The script is the experiment: it knows how to build its model from its config.
    script = importlib.import_module(f"train_{result['experiment']}")
    trained = parse_config(script.Config, ["--config", str(folder / "config.yml")])
    dataset = Dataset.open(config.data or trained.data.folder)
    device = pick_device(config.device)
    model = script.build(trained, dataset).to(device)
    load_weights(model, folder / "best.pt", vocabulary_hash=dataset.vocabulary_hash)
    with tempfile.TemporaryDirectory() as temporary:
        split = config.split
        if config.plays is not None:
            outside = Path(temporary) / "plays"
            import_plays(config, dataset, outside)
            split, dataset = "test", replace(dataset, test=SessionArrays.open(outside))
        predict = skip_predictor(model, device) if result["task"] == "skip" else seq_predictor(model, device)
        loader, predictions, scores = score_split(predict, dataset, trained.data, split)
        if config.predictions is not None:
            write_table(Path(config.predictions), predictions_table(predictions, loader, dataset))
    summary = scores.summary()
    print_scores(f"{result['label']} on {config.plays or split} ({summary['n_sessions']:,} sessions)", summary)
    return summary


def import_plays(config: Config, dataset: Dataset, folder: Path) -> None:
    """Write the sessions of `config.plays` as a split to `folder`, and print how many of their plays are unknown."""
    tracks = pq.read_table(dataset.folder / "tracks.parquet", columns=["track_id", "index"])
    chunk, unknown = read_plays(Path(str(config.plays)), config.plays_columns, tracks)
    writer = SplitWriter(folder)
    writer.add(chunk)
    writer.close()
    print(f"{unknown:.2%} of the plays are of tracks that {dataset.folder} does not know")


def print_scores(title: str, summary: dict[str, Any]) -> None:
    """One line for each metric."""
    print(title)
    for name, value in summary["metrics"].items():
        if value["mean"] is not None:
            interval = "" if value["low"] is None else f"  [{value['low']:.4f}, {value['high']:.4f}]"
            print(f"  {name:15} {value['mean']:9.4f}{interval}")


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
