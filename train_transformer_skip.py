"""Skip prediction with the encoder-decoder Transformer: which tracks of the second half are skipped?

    python train_transformer_skip.py --config configs/transformer_skip/demo.yml
    python train_transformer_skip.py --data.folder data/mssd --model.skip_encoding token --train.lr 1e-4
    python train_transformer_skip.py --data.folder data/catalogue --table.min_plays 5
    python train_transformer_skip.py --config configs/transformer_skip/personal.yml --past.protocol frozen
    python train_transformer_skip.py --config RUN/config.yml --run.resume RUN

The defaults are the original's, except for the learning rate, and for the skip encoding, which the original's code got
wrong.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import blame
from utils.data.options import DataConfig, PastConfig
from utils.training.model_configs import SkipTransformerConfig
from utils.training.options import RunConfig, TableConfig, TrainConfig, Weighting
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.transformer import SkipTransformer
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=lambda: DataConfig(new_plays=1))
    model: SkipTransformerConfig = field(default_factory=SkipTransformerConfig)
    past: PastConfig = field(default_factory=PastConfig)
    table: TableConfig = field(default_factory=TableConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    weighting: Weighting = "uniform"
    """Loss weight of each position: uniform, or maa (what a mistake there costs)."""
    monitor: str = "maa"
    """Validation metric that chooses the best weights: maa, or log_loss on validation splits of a few hundred sessions,
    where the MAA is noise."""
    run: RunConfig = field(default_factory=lambda: RunConfig(label="Transformer"))


def build(config: Config, dataset: Dataset) -> SkipTransformer:
    """The model of this script for `dataset`."""
    from model.transformer import SkipTransformer
    from utils.training.track_table import table_rows

    n_own, n_shared = table_rows(config.table, dataset, use_ids=config.model.use_ids)
    model = SkipTransformer(
        dataset.n_ids,
        dataset.features,
        history_size=config.data.history_size,
        target_size=config.data.target_size,
        n_own=n_own,
        n_shared=n_shared,
        sparse=True,
        n_past=dataset.n_past,
        n_details=dataset.n_details,
        **asdict(config.model),
    )
    model.decoder.tracks.table.requires_grad_(not config.table.freeze)
    return model


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights on validation, score once on test; returns the content of result.json."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.data.options import check_relations
    from utils.data.past import with_past
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import skip_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import skip_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.run import Run
    from utils.training.track_table import load_table

    check_relations(config.past, causal=config.model.causal)
    dataset = with_past(Dataset.open(config.data.folder, needs_skips=True), config.past)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    with blame("model"):
        model = build(config, dataset).to(device)
    if config.run.resume is None:
        load_table(model.decoder.tracks, config.table.vectors, dataset)
    predict = skip_predictor(model, device)
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(skip_loss, weighting=config.weighting)

    better = direction(config.monitor, "skip")
    run = Run("transformer_skip", config, dataset)
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
    return run.finish(task="skip", scores=scores, **training_details(model, progress))


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__, processes=True)
