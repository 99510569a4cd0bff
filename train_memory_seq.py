"""Next tracks by memory and network: a memory of the training sessions proposes tracks, a small network chooses.

    python train_memory_seq.py --config configs/memory_seq/demo.yml
    python train_memory_seq.py --data.folder data/mssd --cases.max_cases 200000 --model.n_members 3
    python train_memory_seq.py --config RUN/config.yml --run.resume RUN

The memory counts which tracks followed the last ones, were played near them, or stand in similar sessions
(model/memory.py, model/candidates.py). The network (model/scorer.py) learns from the last part of the training sessions
how far to trust each, with a memory that knows only the sessions before. Then the memory takes in all training sessions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.data.options import DataConfig
from utils.training.model_configs import ScorerConfig
from utils.training.options import CasesConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.scorer import CandidateScorer
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=lambda: DataConfig(history_size=20, valid_sessions=2000))
    cases: CasesConfig = field(default_factory=CasesConfig)
    model: ScorerConfig = field(default_factory=ScorerConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=6, batch_size=128, lr=3e-3, weight_decay=0.01, clip=1.0, schedule="cosine"
        )
    )
    run: RunConfig = field(default_factory=lambda: RunConfig(label="Memory and network"))
    monitor: str = "mrr@20"
    """Validation metric of the next track that chooses the best weights."""


def build(config: Config, dataset: Dataset) -> CandidateScorer:
    """The network of this script."""
    from model.scorer import CandidateScorer

    return CandidateScorer(**asdict(config.model))


def main(config: Config) -> dict[str, Any]:
    """Remember, train, score once on test; returns result.json's content."""
    from model.scorer import MemoryModel
    from utils.core.errors import blame
    from utils.data.dataset import Dataset
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import predict_by_counting
    from utils.evaluation.scoring import score, scoring_loaders
    from utils.training.loop import fit, training_details
    from utils.training.machine import pick_device, seed_everything
    from utils.training.memory_cases import case_loss, memory_of, training_cases, validate_next, validation_cases
    from utils.training.run import Run

    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    cases = training_cases(
        dataset, config.data, config.cases, batch_size=config.train.batch_size, seed=config.run.seed
    )
    memory = memory_of(dataset.train, dataset.n_ids)
    valid = validation_cases(dataset, config.data, memory)
    seed_everything(config.run.seed)
    with blame("model"):
        scorer = build(config, dataset).to(device)
    scorer.standardise(cases.candidates)
    run = Run("memory_seq", config, dataset)
    progress = fit(
        scorer,
        partial(case_loss, cases=cases),
        partial(validate_next, scorer, valid, memory, dataset),
        cases.loader,
        config=config.train,
        run=run,
        monitor=config.monitor,
        direction=direction(config.monitor, "seq"),
    )
    model = MemoryModel.of(memory, scorer)
    predict = partial(predict_by_counting, model)
    scores = score(predict, dataset, scoring_loaders(dataset, config.data), folder=run.folder)
    return run.finish(task="seq", scores=scores, **training_details(scorer, progress))


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
