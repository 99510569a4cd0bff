"""Mix a finished run's probabilities with the n-gram's. A blend trains nothing, and is a row of its own.

    python train_blend_seq.py --config configs/blend_seq/chosen.yml --neural runs/gru_seq/STAMP
    python train_blend_seq.py --neural runs/transformer_seq/STAMP --weights '[0.1, 0.3, 0.5, 0.7, 0.9]'
    python train_blend_seq.py --neural RUN --scored '[valid]' --max_sessions 100000 --device cuda

The run must continue sessions track by track; its seed is the blend's. The n-gram, with item-kNN as its fallback as in
train_baselines.py, is fitted on the run's dataset. The blend cuts sessions as the run does, but always continues them
greedily, over all tracks.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from utils.core.cli import cli
from utils.core.errors import UserError
from utils.data.options import check_splits
from utils.data.schema import SPLITS
from utils.training.options import RunConfig


@dataclass
class Config:
    """Experiment."""

    neural: str = ""
    """Folder of a finished run of train_gru_seq.py, train_transformer_seq.py or another script with --decoding."""
    weights: list[float] = field(default_factory=lambda: [0.5])
    """The model's share, from 0 (the n-gram alone) to 1. Of several, the one with the best MRR@20 on validation."""
    scored: list[str] = field(default_factory=lambda: list(SPLITS))
    """Splits to score."""
    max_sessions: PositiveInt = 1_000_000
    """Most training sessions to fit the n-gram on (the last ones)."""
    order: PositiveInt = 4
    """Longest context of the n-gram, in tracks."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model and the mixture are computed."""
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.weights or not all(0 <= weight <= 1 for weight in self.weights):
            raise UserError(f"weights is {self.weights}; it must be a list of numbers from 0 to 1, such as [0.5]")
        check_splits("scored", self.scored)


def main(config: Config) -> dict[str, Any]:
    """Fit the n-gram, load the model, mix them and score the mixture; returns result.json's content."""
    import train_baselines
    from utils.evaluation.blend import Blend, choose_weight, predict_blend
    from utils.evaluation.scoring import score, scoring_loaders, validation_loader
    from utils.training.machine import pick_device
    from utils.training.rebuild import rebuild, step_by_step_run
    from utils.training.run import NGRAM, Run

    if config.run.seeds > 1:
        raise UserError("run.seeds: a blend is of one run and has its seed; blend the runs of other seeds one by one")
    folder, finished = Path(config.neural), step_by_step_run(config.neural, option="neural")
    script, device = importlib.import_module(f"train_{finished['experiment']}"), pick_device(config.device)
    trained, dataset, model = rebuild(script, folder, device=device)
    data = replace(trained.data, scored=config.scored)

    # The run's options replace its folder, so that blends of runs that differ in their seed share a row.
    options = asdict(config) | {"neural": {name: v for name, v in asdict(trained).items() if name != "run"}}
    run = Run("blend_seq", config, dataset)
    baselines = train_baselines.Config(data=data, max_sessions=config.max_sessions, order=config.order)
    fits = {each.id: each for each in train_baselines.seq_baselines(baselines, dataset)}
    ngram, trials = fits[NGRAM].fit()
    valid = validation_loader(dataset, data)
    blend, of_weights = choose_weight(Blend(model, ngram), config.weights, device, valid)
    predict = partial(predict_blend, blend, device)
    scores = score(predict, dataset, scoring_loaders(dataset, data), folder=run.folder)
    return run.finish(
        task="seq",
        label=config.run.label or f"{finished['label']} and {fits[NGRAM].label}",
        scores=scores,
        seed=finished["seed"],
        config=options,
        device=str(device),
        n_parameters=finished["n_parameters"],
        neural=str(folder),
        weight=blend.weight,
        trials=trials | of_weights,
    )


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
