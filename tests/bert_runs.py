"""The scripts that start from a pre-trained BERT, with tiny sizes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import yaml

import train_bert_finetune_seq
import train_bert_finetune_skip
import train_bert_pretrain
import train_seq_bert_augmented
import train_seq_bert_augmented_dropnet
import train_skip_bert_augmented
from utils.core.cli import parse_config
from utils.data.dataset import Dataset
from utils.training.checkpoint import save_checkpoint

SCRIPTS = {
    "bert_finetune_seq": train_bert_finetune_seq,
    "bert_finetune_skip": train_bert_finetune_skip,
    "seq_bert_augmented": train_seq_bert_augmented,
    "skip_bert_augmented": train_skip_bert_augmented,
    "seq_bert_augmented_dropnet": train_seq_bert_augmented_dropnet,
}
AUGMENTED = [name for name in SCRIPTS if "augmented" in name]
TRAIN = ["--train.epochs", "2", "--train.batch_size", "16", "--train.lr", "0.01", "--train.device", "cpu"]
BERT = ["--bert.d_model", "8", "--bert.n_heads", "2", "--bert.n_layers", "1", "--bert.d_ff", "8"]
MODEL = ["--model.d_model", "12", "--model.n_heads", "2", "--model.n_layers", "1", "--model.d_ff", "8"]


def options(name: str, dataset_folder: Path, tmp_path: Path, *more: str) -> list[str]:
    """Arguments of a tiny run of a script."""
    common = ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TRAIN]
    bert = BERT if "bert" in name else []
    model = MODEL if "augmented" in name or "transformer" in name else []
    return [*common, *bert, *model, *more]


def make_pretrained(folder: Path, dataset_folder: Path, *more: str) -> Path:
    """What a pre-training run leaves for others, but not trained."""
    torch.manual_seed(77)
    config = parse_config(train_bert_pretrain.Config, ["--data.folder", str(dataset_folder), *BERT, *more])
    dataset = Dataset.open(dataset_folder)
    model = train_bert_pretrain.build(config, dataset)
    with torch.no_grad():
        model.head.bias.normal_()
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    weights = {"model": model.state_dict(), "vocabulary_hash": dataset.vocabulary_hash, "step": 0}
    save_checkpoint(folder / "best.pt", weights)
    (folder / "result.json").touch()
    return folder
