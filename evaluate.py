"""Score a trained run again: on any split of its dataset, or on sessions from outside.

    python evaluate.py --run runs/transformer_skip/STAMP --split valid
    python evaluate.py --run runs/transformer_seq/STAMP --plays my_plays.csv --plays_columns.session session_id \
        --plays_columns.position position
    python evaluate.py --run runs/transformer_skip/STAMP --predictions predictions.csv
    python evaluate.py --run runs/transformer_seq/STAMP --decoding.method beam --decoding.beam_width 20

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

from utils import scoring
from utils.checkpoint import load_weights
from utils.cli import UserError, cli, parse_config
from utils.dataloaders import Dataset, SessionArrays
from utils.files import read_json
from utils.importers.plays import PlaysColumns, read_plays
from utils.preparing import SplitWriter
from utils.run import pick_device


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
    decoding: scoring.DecodingConfig | None = None
    """Continue sessions in this way instead of the run's."""
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
    if config.decoding is not None and result["task"] != "seq":
        raise UserError(f"{folder} predicts skips of known tracks, so there is nothing to decode; leave out --decoding")
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
        if result["task"] == "skip":
            predict = scoring.skip_predictor(model, device)
        else:
            decoding = config.decoding or trained.decoding
            predict = scoring.seq_predictor(model, device, decoding, decoding.allowed_tracks(dataset))
        loader, predictions, scores = scoring.score_split(predict, dataset, trained.data, split)
        if config.predictions is not None:
            scoring.write_table(Path(config.predictions), scoring.predictions_table(predictions, loader, dataset))
    summary = scores.summary()
    scoring.print_scores(f"{result['label']} on {config.plays or split} ({summary['n_sessions']:,} sessions)", summary)
    return summary


def import_plays(config: Config, dataset: Dataset, folder: Path) -> None:
    """Write the sessions of `config.plays` as a split to `folder`, and print how many of their plays are unknown."""
    tracks = pq.read_table(dataset.folder / "tracks.parquet", columns=["track_id", "index"])
    chunk, unknown = read_plays(Path(str(config.plays)), config.plays_columns, tracks)
    writer = SplitWriter(folder)
    writer.add(chunk)
    writer.close()
    print(f"{unknown:.2%} of the plays are of tracks that {dataset.folder} does not know")


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
