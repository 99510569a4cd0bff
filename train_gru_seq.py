"""Continuation with a GRU that is trained at every play of a session: GRU4Rec, the quickest of the models here.

    python train_gru_seq.py --config configs/gru_seq/demo.yml
    python train_gru_seq.py --data.folder data/mssd --model.d_hidden 256 --model.d_model 256
    python train_gru_seq.py --config RUN/config.yml --run.resume RUN

Each play predicts the next one, so a session of n plays gives n - 1 targets, wherever it is cut. Of a long session, at
most history_size plays before its cut and target_size plays after it are read. `train_blend_seq.py` mixes a run of this
script with an n-gram.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError, blame
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.training.model_configs import NextTrackGRUConfig
from utils.training.options import LossConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.gru import NextTrackGRU
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: NextTrackGRUConfig = field(default_factory=NextTrackGRUConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=1e-3, clip=1.0))
    run: RunConfig = field(default_factory=lambda: RunConfig(label="Next-track GRU"))
    loss: LossConfig = field(default_factory=LossConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    monitor: str = "maa"
    """Validation metric that chooses the best weights. With data.every_prefix, only next tracks count: try mrr@20."""


def build(config: Config, dataset: Dataset) -> NextTrackGRU:
    """The model of this script for `dataset`."""
    from model.gru import NextTrackGRU

    sizes = asdict(config.model)
    return NextTrackGRU(dataset.n_ids, dataset.features, sparse=config.loss.is_sparse, **sizes)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by one validation metric, score once on test; returns result.json's content."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.decoding import allowed_tracks, step_by_step
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import seq_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import next_track_loss, track_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.run import Run

    if config.train.compiled:
        raise UserError("train.compiled has no meaning for this model: there is nothing around its GRU to compile")
    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    with blame("model"):
        model = build(config, dataset).to(device)
    predict = seq_predictor(
        model, device, step_by_step(config.decoding), allowed_tracks(config.decoding, dataset, config.data)
    )
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(next_track_loss, loss=track_loss(config.loss, dataset.train_plays))

    better = direction(config.monitor, "seq")
    run = Run("gru_seq", config, dataset)
    progress = fit(
        model,
        loss_fn,
        partial(validate, predict, dataset, valid),
        train,
        config=config.train,
        run=run,
        monitor=config.monitor,
        direction=better,
    )
    scores = score(predict, dataset, scoring_loaders(dataset, config.data), folder=run.folder)
    return run.finish(task="seq", scores=scores, **training_details(model, progress))


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__, processes=True)
