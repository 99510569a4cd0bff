"""Continuation with the encoder-decoder Transformer: which tracks come next, in order?

    python train_transformer_seq.py --config configs/transformer_seq/demo.yml
    python train_transformer_seq.py --data.folder data/mssd --loss.name full --model.tie_weights false
    python train_transformer_seq.py --config RUN/config.yml --run.resume RUN

The sizes, greedy decoding, and a model that sees no skips are the original's; but the original has --loss.name full.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import blame
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.training.model_configs import SeqTransformerConfig
from utils.training.options import LossConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.transformer import SeqTransformer
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: SeqTransformerConfig = field(default_factory=SeqTransformerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(label="Transformer"))
    loss: LossConfig = field(default_factory=LossConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    monitor: str = "maa"
    """Validation metric that chooses the best weights. With data.every_prefix, only next tracks count: try mrr@20."""


def build(config: Config, dataset: Dataset) -> SeqTransformer:
    """The model of this script for `dataset`."""
    from model.transformer import SeqTransformer

    return SeqTransformer(
        dataset.n_ids,
        dataset.features,
        history_size=config.data.history_size,
        target_size=config.data.target_size,
        sparse=config.loss.is_sparse,
        **asdict(config.model),
    )


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by one validation metric, score once on test; returns result.json's content."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.decoding import allowed_tracks, step_by_step
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import seq_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import seq_loss, track_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.run import Run

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
    loss_fn = partial(seq_loss, loss=track_loss(config.loss, dataset.train_plays))

    better = direction(config.monitor, "seq")
    run = Run("transformer_seq", config, dataset)
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
