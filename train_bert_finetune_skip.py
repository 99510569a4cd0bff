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
from utils.data.options import DataConfig
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
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, clip=1.0))
    weighting: Weighting = "uniform"
    """Loss weight of each position: uniform, or maa (what a mistake there costs)."""
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT, fine-tuned"))


def build(config: Config, dataset: Dataset) -> BertForSkips:
    """The model of this script for `dataset`."""
    from model.bert import BertForSkips
    from utils.training.pretrained import build_bert

    return BertForSkips(build_bert(config.bert, dataset, config.data, sparse=True), use_log=config.use_log)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by validation MAA, score once on test; returns the content of result.json."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.predict import skip_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import skip_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.pretrained import check_pretrained, load_pretrained
    from utils.training.run import Run

    check_pretrained(config)
    dataset = Dataset.open(config.data.folder, needs_skips=True)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    load_pretrained(model, config, dataset)
    predict = skip_predictor(model, device)
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(skip_loss, weighting=config.weighting)

    run = Run("bert_finetune_skip", config, dataset)
    progress = fit(
        model,
        loss_fn,
        partial(validate, predict, dataset, valid),
        train,
        config=config.train,
        run=run,
        monitor="maa",
    )
    scores = score(predict, dataset, scoring_loaders(dataset, config.data), folder=run.folder)
    return run.finish(task="skip", scores=scores, **training_details(model, progress))


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__, processes=True)
