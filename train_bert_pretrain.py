"""Pre-training of BERT: which tracks of a session do the masks hide?

    python train_bert_pretrain.py --config configs/bert_pretrain/demo.yml
    python train_bert_pretrain.py --data.folder data/mssd --loss.name full --masking.last_item 0.1
    python train_bert_pretrain.py --config RUN/config.yml --run.resume RUN
    python -m utils.track_vectors --vectors RUN/track_embeddings.safetensors --track TRACK_ID

The sizes are the original's, but the original has --loss.name full and an output table of its own (--tie_weights
false). The run folder also gets the track vectors as BERT sees them, and a picture of them. Other scripts start from
the run with --pretrained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.data.options import DataConfig
from utils.training.model_configs import BertConfig
from utils.training.options import LossConfig, MaskingConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.bert import BertForMaskedTracks
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    bert: BertConfig = field(default_factory=BertConfig)
    tie_weights: bool = True
    """Use BERT's track table as output weights."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=7, clip=1.0))
    run: RunConfig = field(default_factory=lambda: RunConfig(label="BERT, pre-training"))
    loss: LossConfig = field(default_factory=LossConfig)
    monitor: str = "mrr@20"
    """Validation metric of the hidden tracks that chooses the best weights."""


def build(config: Config, dataset: Dataset) -> BertForMaskedTracks:
    """The model of this script for `dataset`."""
    from model.bert import BertForMaskedTracks
    from utils.training.pretrained import build_bert

    sparse = config.loss.is_sparse
    bert = build_bert(config.bert, dataset, config.data, sparse=sparse)
    return BertForMaskedTracks(bert, tie_weights=config.tie_weights, sparse=sparse)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by one validation metric, score once on test; returns result.json's content."""
    import torch

    from utils.core.distributed import once
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.metrics import direction
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.track_vectors.files import PICTURE, save_vectors
    from utils.track_vectors.picture import plot_vectors
    from utils.training.loop import fit, training_details
    from utils.training.losses import track_loss
    from utils.training.machine import pick_device, seed_everything
    from utils.training.masked_tracks import check_whole, masked_loss, masked_predictor
    from utils.training.run import Run

    dataset = Dataset.open(config.data.folder)
    check_whole(dataset, config.data)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    predict = masked_predictor(model, device, config.masking)
    train = training_loader(dataset, config.data, batch_size=config.train.batch_size, seed=config.run.seed)
    valid = validation_loader(dataset, config.data)
    loss_fn = partial(masked_loss, loss=track_loss(config.loss, dataset.train_plays), masking=config.masking)

    better = direction(config.monitor, "pretrain")
    run = Run("bert_pretrain", config, dataset)
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
    with torch.no_grad():
        vectors = model.bert.tracks(torch.arange(dataset.n_ids, device=device))  # (V, D)
    once(partial(save_vectors, run.folder, vectors, dataset))
    scores = score(predict, dataset, scoring_loaders(dataset, config.data))
    result = run.finish(task="pretrain", scores=scores, **training_details(model, progress))
    once(partial(plot_vectors, run.folder / PICTURE, vectors, dataset))  # last, because a run is finished without it
    return result


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__, processes=True)
