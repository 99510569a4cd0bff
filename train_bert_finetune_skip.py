"""Skip prediction with a pre-trained BERT, which reads all tracks of a session and the skips of its history.

    python train_bert_finetune_skip.py --config configs/bert_finetune_skip/demo.yml --pretrained runs/bert_pretrain/RUN
    python train_bert_finetune_skip.py --data.folder data/mssd --pretrained runs/bert_pretrain/STAMP --weighting maa
    python train_bert_finetune_skip.py --data.folder data/mssd --pretrained random --use_log false
    python train_bert_finetune_skip.py --config RUN/config.yml --run.resume RUN

The defaults are the original's. Exceptions: the original's BERT is half as wide (--bert.d_model 128), sees no skips,
and is trained on the history's skips as well. Make a pre-training run with train_bert_pretrain.py; "random" is the
control without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError
from utils.data.options import DataConfig, PastConfig
from utils.training.model_configs import BertConfig
from utils.training.options import RunConfig, TrainConfig, Weighting
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.bert import BertForSkips
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    pretrained: str = ""
    """Folder of a run of train_bert_pretrain.py, or "random" for an untrained BERT."""
    data: DataConfig = field(default_factory=lambda: DataConfig(new_plays=1))
    bert: BertConfig = field(default_factory=BertConfig)
    use_log: bool = True
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    use_ids: bool = True
    """Give each track a vector of its own; false tells tracks apart by their audio features (bert.use_features) and
    their past only, and needs --pretrained random: a pre-trained BERT knows tracks by their ids."""
    past: PastConfig = field(default_factory=PastConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, clip=1.0))
    weighting: Weighting = "uniform"
    """Loss weight of each position: uniform, or maa (what a mistake there costs)."""
    monitor: str = "maa"
    """Validation metric that chooses the best weights: maa, or log_loss on validation splits of a few hundred sessions,
    where the MAA is noise."""
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT, fine-tuned"))


def build(config: Config, dataset: Dataset) -> BertForSkips:
    """The model of this script for `dataset`."""
    from model.bert import BertForSkips
    from utils.training.pretrained import build_bert

    bert = build_bert(config.bert, dataset, config.data, sparse=True, use_ids=config.use_ids)
    return BertForSkips(bert, use_log=config.use_log, n_past=dataset.n_past, n_details=dataset.n_details)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights on validation, score once on test; returns the content of result.json."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.data.past import with_past
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import skip_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import skip_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.pretrained import RANDOM, check_pretrained, load_pretrained
    from utils.training.run import Run

    if not config.use_ids and config.pretrained != RANDOM:
        raise UserError("use_ids is false, but a pre-trained BERT knows tracks by their ids; add --pretrained random")
    check_pretrained(config)
    dataset = with_past(Dataset.open(config.data.folder, needs_skips=True), config.past)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    load_pretrained(model, config, dataset)
    predict = skip_predictor(model, device)
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(skip_loss, weighting=config.weighting)

    better = direction(config.monitor, "skip")
    run = Run("bert_finetune_skip", config, dataset)
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
