"""Continuation with the BERT-augmented Transformer and DropNet: train_seq_bert_augmented.py with other defaults.

    python train_seq_bert_augmented_dropnet.py --config configs/seq_bert_augmented/demo.yml --pretrained RUN
    python train_seq_bert_augmented_dropnet.py --data.folder data/mssd --pretrained runs/bert_pretrain/STAMP
    python train_seq_bert_augmented_dropnet.py --data.folder data/mssd --pretrained RUN --drop_net 1.0
    python train_seq_bert_augmented_dropnet.py --config RUN/config.yml --run.resume RUN

The defaults are the original's, except that the original has --train.lr 1e-5 and --loss.name full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import train_seq_bert_augmented
from train_seq_bert_augmented import build
from utils.core.cli import cli
from utils.training.options import RunConfig, TrainConfig
from utils.training.seeds import each_seed

__all__ = ["Config", "build", "main"]


@dataclass
class Config(train_seq_bert_augmented.Config):
    """Experiment."""

    drop_net: float = 0.8
    """DropNet: probability that, in a training step, a layer looks at its own states only or at BERT's only."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10))
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT-augmented Transformer, DropNet"))


def main(config: Config) -> dict[str, Any]:
    """Train as train_seq_bert_augmented.py does; returns result.json's content."""
    return train_seq_bert_augmented.main(config, experiment="seq_bert_augmented_dropnet")


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__, processes=True)
