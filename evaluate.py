"""Score a finished run again, on any split of its dataset or on other sessions.

    python evaluate.py --run RUN --plays plays.csv --plays_columns.session session_id --plays_columns.position position
    python evaluate.py --run RUN --source spotify my_spotify_data.zip
    python evaluate.py --run RUN --predictions predictions.csv --split valid
    python evaluate.py --run runs/transformer_seq/STAMP --decoding.method beam --decoding.beam_width 20
    python evaluate.py --run runs/bert_finetune_seq/STAMP --filling.order confident --filling.passes 5

The command prints every metric with its 95 % interval over sessions. With --plays, it also prints the share of plays of
new tracks, which the run's dataset does not know. The run folder stays as it is.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from utils.core.cli import cli
from utils.core.errors import UserError
from utils.evaluation.options import DecodingConfig, FillingConfig
from utils.preprocessing.options import PlaysColumns, SourceName, SourceOptions, check_source, spell_out_source


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
    source: SourceName | None = None
    """Whose files --plays are, instead of a table of plays; also written --source NAME PATH."""
    source_options: SourceOptions = field(default_factory=SourceOptions)
    newer: bool = False
    """Of --plays, score only sessions after the dataset's last play: a newer export holds the older ones, too."""
    data: str | None = None
    """Dataset folder, if it has moved since the run was trained."""
    decoding: DecodingConfig | None = None
    """How to continue sessions track by track, instead of the run's way."""
    filling: FillingConfig | None = None
    """How a BERT fills in masks to continue sessions, instead of the run's way."""
    predictions: str | None = None
    """Write the prediction of every target to this file (.csv or .parquet)."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def main(config: Config) -> dict[str, Any]:
    """Print the scores and return them, as `Scores.summary()`."""
    from utils.core.files import read_json
    from utils.data.newer import newer_sessions
    from utils.data.past import past_of
    from utils.evaluation.decoding import allowed_tracks, mask_filling, step_by_step
    from utils.evaluation.predict import predict_by_counting, seq_predictor, skip_predictor
    from utils.evaluation.scoring import score_loader, scoring_loader
    from utils.evaluation.tables import check_table_path, predictions_table, print_scores, write_table
    from utils.preprocessing.outside_plays import plays_as_split
    from utils.training.machine import pick_device
    from utils.training.masked_tracks import masked_predictor
    from utils.training.rebuild import rebuild

    check_source(config.plays_columns, config.source, config.source_options, config.plays)
    if config.predictions is not None:
        check_table_path(Path(config.predictions))
    if config.newer and config.plays is None:
        raise UserError("--newer is about the sessions of --plays; give them, or leave it out")
    folder = Path(config.run)
    result = read_json(folder / "result.json")
    if result["kind"] != "model" or not (folder / "best.pt").exists():
        raise UserError(f"{folder} ({result['label']}) keeps no weights; run its script again instead")
    script, device = importlib.import_module(f"train_{result['experiment']}"), pick_device(config.device)
    trained, dataset, model = rebuild(script, folder, device=device, data=config.data)
    how = decoding_of(trained, config)
    with tempfile.TemporaryDirectory() as temporary:
        split = config.split
        if config.plays is not None:
            outside = plays_as_split(
                Path(config.plays),
                config.plays_columns,
                dataset,
                Path(temporary) / "plays",
                source=config.source,
                options=config.source_options,
            )
            outside = newer_sessions(outside, dataset) if config.newer else outside
            if hasattr(trained, "past"):
                outside = past_of(outside, dataset, trained.past)
            split, dataset = "test", replace(dataset, test=outside)
        if how is not None:
            decoding = mask_filling(how) if isinstance(how, FillingConfig) else step_by_step(how)
            predict = seq_predictor(model, device, decoding, allowed_tracks(how, dataset, trained.data))
        elif result["experiment"] == "memory_seq":
            before = None if split == "test" else dataset.train.n_sessions  # it knows nothing later than the split
            remembered = script.remembered(trained, model, folder, dataset, device, n_sessions=before)
            predict = partial(predict_by_counting, remembered)
        elif result["task"] == "pretrain":
            predict = masked_predictor(model, device, trained.masking)
        else:
            predict = skip_predictor(model, device)
        loader = scoring_loader(dataset, trained.data, split)
        predictions, scores = score_loader(predict, dataset, loader)
        summary = scores.summary()
        print_scores(f"{result['label']} on {config.plays or split} ({summary['n_sessions']:,} sessions)", summary)
        if config.predictions is not None:  # after the scores: a full disk does not lose them
            write_table(Path(config.predictions), predictions_table(predictions, loader, dataset))
    return summary


def decoding_of(trained: Any, config: Config) -> DecodingConfig | FillingConfig | None:
    """How to continue sessions: as `config` asks, or as the run with the options `trained` did; None if it does not.

    Raises:
        UserError: the run's model cannot do what `config` asks.
    """
    own = next((name for name in ("decoding", "filling") if hasattr(trained, name)), None)
    for name in ("decoding", "filling"):
        if name != own and getattr(config, name) is not None:
            how = "no sessions, so there is nothing to decode" if own is None else f"sessions by --{own}"
            raise UserError(f"{config.run} continues {how}; leave out --{name}")
    return None if own is None else getattr(config, own) or getattr(trained, own)


if __name__ == "__main__":
    cli(main, Config, description=__doc__, shorthand=spell_out_source)
