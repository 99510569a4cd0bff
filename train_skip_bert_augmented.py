"""Skip prediction with the BERT-augmented Transformer: its layers also look at a pre-trained BERT's states.

    python train_skip_bert_augmented.py --config configs/skip_bert_augmented/demo.yml --pretrained RUN
    python train_skip_bert_augmented.py --pretrained RUN --warm_start runs/transformer_skip/STAMP --finetune_bert true
    python train_skip_bert_augmented.py --data.folder data/mssd --pretrained random --drop_net 0.8
    python train_skip_bert_augmented.py --config RUN/config.yml --run.resume RUN

The sizes are the original's, but the original has --train.lr 1e-5, its Transformer sees no skips, and its BERT sees no
target tracks. Make a pre-training run with train_bert_pretrain.py; "random" is the control without one. A warm start
copies the weights of a run of train_transformer_skip.py with the same sizes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import blame
from utils.data.options import DataConfig
from utils.training.model_configs import BertConfig, SkipTransformerConfig
from utils.training.options import RunConfig, TrainConfig, Weighting
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.bert_augmented import BertAugmentedSkipTransformer
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    pretrained: str = ""
    """Folder of a run of train_bert_pretrain.py, or "random" for an untrained BERT."""
    warm_start: str = ""
    """Folder of a run of train_transformer_skip.py whose weights the Transformer starts from; empty for none."""
    finetune_bert: bool = False
    """Train BERT, too; false freezes it."""
    drop_net: float = 0.0
    """DropNet: probability that, in a training step, a layer looks at its own states only or at BERT's only."""
    data: DataConfig = field(default_factory=lambda: DataConfig(new_plays=1))
    model: SkipTransformerConfig = field(
        default_factory=lambda: SkipTransformerConfig(d_model=256, n_heads=2, n_layers=2, dropout=0.2)
    )
    bert: BertConfig = field(default_factory=BertConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    weighting: Weighting = "uniform"
    """Loss weight of each position: uniform, or maa (what a mistake there costs)."""
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT-augmented Transformer"))


def build(config: Config, dataset: Dataset) -> BertAugmentedSkipTransformer:
    """The model of this script for `dataset`."""
    from model.attention import BertBranch
    from model.bert_augmented import BertAugmentedSkipTransformer
    from model.transformer import SkipTransformer
    from utils.training.pretrained import build_bert

    with blame("model"):
        transformer = SkipTransformer(
            dataset.n_ids,
            dataset.features,
            history_size=config.data.history_size,
            target_size=config.data.target_size,
            branch=BertBranch(config.bert.d_model, config.drop_net),
            sparse=True,
            **asdict(config.model),
        )
    bert = build_bert(config.bert, dataset, config.data, sparse=True)
    return BertAugmentedSkipTransformer(transformer, bert, finetune_bert=config.finetune_bert)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by validation MAA, score once on test; returns the content of result.json."""
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.predict import skip_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.loop import fit, training_details
    from utils.training.losses import skip_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.pretrained import check_pretrained, load_pretrained, warm_start
    from utils.training.run import Run

    check_pretrained(config)
    dataset = Dataset.open(config.data.folder, needs_skips=True)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    load_pretrained(model, config, dataset)
    warm_start(model, config, dataset, experiment="transformer_skip")
    predict = skip_predictor(model, device)
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)

    run = Run("skip_bert_augmented", config, dataset)
    progress = fit(
        model,
        partial(skip_loss, weighting=config.weighting),
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
