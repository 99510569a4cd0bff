"""Continuation with the BERT-augmented Transformer: its layers also look at a pre-trained BERT's states.

    python train_seq_bert_augmented.py --config configs/seq_bert_augmented/demo.yml --pretrained runs/bert_pretrain/RUN
    python train_seq_bert_augmented.py --pretrained RUN --warm_start runs/transformer_seq/STAMP --finetune_bert true
    python train_seq_bert_augmented.py --data.folder data/mssd --pretrained random --drop_net 0.8
    python train_seq_bert_augmented.py --config RUN/config.yml --run.resume RUN

The defaults are the original's, except that the original has --loss.name full. Make a pre-training run with
train_bert_pretrain.py; "random" is the control without one. A warm start copies the weights of a run of
train_transformer_seq.py with the same sizes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import blame
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.training.model_configs import BertConfig, SeqTransformerConfig
from utils.training.options import LossConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.bert_augmented import BertAugmentedSeqTransformer
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    pretrained: str = ""
    """Folder of a run of train_bert_pretrain.py, or "random" for an untrained BERT."""
    warm_start: str = ""
    """Folder of a run of train_transformer_seq.py whose weights the Transformer starts from; empty for none."""
    finetune_bert: bool = False
    """Train BERT, too; false freezes it."""
    drop_net: float = 0.0
    """DropNet: probability that, in a training step, a layer looks at its own states only or at BERT's only."""
    data: DataConfig = field(default_factory=DataConfig)
    model: SeqTransformerConfig = field(default_factory=SeqTransformerConfig)
    bert: BertConfig = field(default_factory=BertConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT-augmented Transformer"))
    loss: LossConfig = field(default_factory=LossConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    monitor: str = "maa"
    """Validation metric that chooses the best weights. With data.every_prefix, only next tracks count: try mrr@20."""


def build(config: Config, dataset: Dataset) -> BertAugmentedSeqTransformer:
    """The model of this script for `dataset`."""
    from model.attention import BertBranch
    from model.bert_augmented import BertAugmentedSeqTransformer
    from model.transformer import SeqTransformer
    from utils.training.pretrained import build_bert

    sparse = config.loss.is_sparse
    with blame("model"):
        transformer = SeqTransformer(
            dataset.n_ids,
            dataset.features,
            history_size=config.data.history_size,
            target_size=config.data.target_size,
            branch=BertBranch(config.bert.d_model, config.drop_net),
            sparse=sparse,
            **asdict(config.model),
        )
    bert = build_bert(config.bert, dataset, config.data, sparse=sparse)
    return BertAugmentedSeqTransformer(transformer, bert, finetune_bert=config.finetune_bert)


def main(config: Config, experiment: str = "seq_bert_augmented") -> dict[str, Any]:
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
    from utils.training.pretrained import check_pretrained, load_pretrained, warm_start
    from utils.training.run import Run

    check_pretrained(config)
    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    load_pretrained(model, config, dataset)
    warm_start(model, config, dataset, experiment="transformer_seq")
    predict = seq_predictor(
        model, device, step_by_step(config.decoding), allowed_tracks(config.decoding, dataset, config.data)
    )
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(seq_loss, loss=track_loss(config.loss, dataset.train_plays))

    better = direction(config.monitor, "seq")
    run = Run(experiment, config, dataset)
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
