"""Continuation with a recurrent encoder-decoder: which tracks come next, in order?

    python train_lstm_seq.py --config configs/lstm_seq/demo.yml
    python train_lstm_seq.py --data.folder data/mssd --loss.name full --model.attention true
    python train_lstm_seq.py --data.folder data/mssd --table.vectors VECTORS/track_embeddings.safetensors
    python train_lstm_seq.py --config RUN/config.yml --run.resume RUN

The defaults are the original's, except for the decoder's input, which the original's code got wrong, and for the loss:
the original has --loss.name full. `python -m utils.track_vectors.word2vec` makes track vectors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import blame
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.training.model_configs import SeqLSTMConfig
from utils.training.options import LossConfig, RunConfig, TableConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.lstm import LSTMForContinuation
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: SeqLSTMConfig = field(default_factory=SeqLSTMConfig)
    table: TableConfig = field(default_factory=TableConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10, clip=1.0))
    run: RunConfig = field(default_factory=lambda: RunConfig(label="LSTM"))
    loss: LossConfig = field(default_factory=LossConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    monitor: str = "maa"
    """Validation metric that chooses the best weights. With data.every_prefix, only next tracks count: try mrr@20."""


def build(config: Config, dataset: Dataset) -> LSTMForContinuation:
    """The model of this script for `dataset`."""
    from model.lstm import LSTMForContinuation
    from utils.training.track_table import table_rows

    n_own, n_shared = table_rows(config.table, dataset)
    model = LSTMForContinuation(
        dataset.n_ids,
        dataset.features,
        history_size=config.data.history_size,
        n_own=n_own,
        n_shared=n_shared,
        sparse=config.loss.is_sparse,
        **asdict(config.model),
    )
    model.tracks.table.requires_grad_(not config.table.freeze)
    return model


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
    from utils.training.track_table import load_table

    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    with blame("model"):
        model = build(config, dataset).to(device)
    if config.run.resume is None:
        load_table(model.tracks, config.table.vectors, dataset)
    predict = seq_predictor(
        model, device, step_by_step(config.decoding), allowed_tracks(config.decoding, dataset, config.data)
    )
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(seq_loss, loss=track_loss(config.loss, dataset.train_plays))

    better = direction(config.monitor, "seq")
    run = Run("lstm_seq", config, dataset)
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
