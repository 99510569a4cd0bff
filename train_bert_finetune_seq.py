"""Continuation with a pre-trained BERT, which fills in masks behind the history.

    python train_bert_finetune_seq.py --config configs/bert_finetune_seq/demo.yml --pretrained runs/bert_pretrain/STAMP
    python train_bert_finetune_seq.py --data.folder data/mssd --pretrained RUN --masks random --filling.order confident
    python train_bert_finetune_seq.py --data.folder data/mssd --pretrained random
    python train_bert_finetune_seq.py --config RUN/config.yml --run.resume RUN

The defaults are the original's, such as filling in all masks at once. Exceptions: the original has --loss.name full, an
output table of its own (--tie_weights false), and a BERT half as wide (--bert.d_model 128). Make a pre-training run
with train_bert_pretrain.py; "random" is the control without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from utils.core.cli import TYPE_CHECKING, cli
from utils.data.options import DataConfig
from utils.evaluation.options import FillingConfig
from utils.training.model_configs import BertConfig
from utils.training.options import LossConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.bert import BertForContinuation
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    pretrained: str = ""
    """Folder of a run of train_bert_pretrain.py, or "random" for an untrained BERT."""
    data: DataConfig = field(default_factory=DataConfig)
    bert: BertConfig = field(default_factory=BertConfig)
    tie_weights: bool = True
    """Use BERT's track table as output weights; must be as in the pre-training run."""
    masks: Literal["all", "random"] = "all"
    """What training hides: all targets (the original), or a random number of them (Ghazvininejad et al. 2019), for a
    model that fills in masks in more than one pass."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, clip=1.0))
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT, fine-tuned"))
    loss: LossConfig = field(default_factory=LossConfig)
    filling: FillingConfig = field(default_factory=FillingConfig)
    monitor: str = "maa"
    """Validation metric that chooses the best weights. With data.every_prefix, only next tracks count: try mrr@20."""


def build(config: Config, dataset: Dataset) -> BertForContinuation:
    """The model of this script for `dataset`."""
    from model.bert import BertForContinuation
    from utils.training.pretrained import build_bert

    sparse = config.loss.is_sparse
    bert = build_bert(config.bert, dataset, config.data, sparse=sparse)
    return BertForContinuation(bert, target_size=config.data.target_size, tie_weights=config.tie_weights, sparse=sparse)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by one validation metric, score once on test; returns result.json's content."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.decoding import allowed_tracks, mask_filling
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import seq_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import hidden_targets_loss, seq_loss, track_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.pretrained import check_pretrained, load_pretrained
    from utils.training.run import Run

    check_pretrained(config)
    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    load_pretrained(model, config, dataset)
    predict = seq_predictor(
        model, device, mask_filling(config.filling), allowed_tracks(config.filling, dataset, config.data)
    )
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    hidden_loss = seq_loss if config.masks == "all" else hidden_targets_loss
    loss_fn = partial(hidden_loss, loss=track_loss(config.loss, dataset.train_plays))

    better = direction(config.monitor, "seq")
    run = Run("bert_finetune_seq", config, dataset)
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
