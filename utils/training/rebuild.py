"""Rebuild the model of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.dataset import Dataset
from utils.data.past import with_past
from utils.training.checkpoint import load_weights


class Rebuilt(NamedTuple):
    """A trained model, with the options and the dataset that it was trained with."""

    config: Any
    """The script's Config."""
    dataset: Dataset
    model: Any


def step_by_step_run(folder: str, *, option: str) -> dict[str, Any]:
    """`result.json` of a finished run whose model continues sessions track by track.

    Raises:
        UserError: `folder`, the value of `option`, is no such run's.
    """
    if not folder or not (Path(folder) / "result.json").exists():
        raise UserError(f"{option} is {folder!r}, which is no folder of a finished run; train a model first")
    finished = read_json(Path(folder) / "result.json")
    if "decoding" not in finished["config"]:
        raise UserError(f"{folder} is a run of {finished['experiment']}, which does not continue track by track")
    return finished


def rebuild(
    script: Any, folder: Path, *, device: torch.device, data: str | None = None, needs_skips: bool = False
) -> Rebuilt:
    """The model of a finished run, with its best weights, on `device`.

    Args:
        script: the module of the run's script; its `build` makes the model.
        folder: the run's.
        device: of the model.
        data: dataset folder, if it has moved since the run was trained.
        needs_skips: the dataset must have skips.

    Raises:
        UserError: there is no such dataset, it has another vocabulary or no skips, or the weights do not fit.
    """
    config = parse_config(script.Config, ["--config", str(folder / "config.yml")])
    dataset = Dataset.open(data or config.data.folder, needs_skips=needs_skips)
    if hasattr(config, "past"):
        dataset = with_past(dataset, config.past)
    model = script.build(config, dataset).to(device)
    load_weights(model, folder / "best.pt", vocabulary_hash=dataset.vocabulary_hash)
    return Rebuilt(config, dataset, model)
