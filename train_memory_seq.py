"""Next tracks by memory and network: a memory of the training sessions proposes tracks, a small network chooses.

    python train_memory_seq.py --config configs/memory_seq/demo.yml
    python train_memory_seq.py --config configs/memory_seq/nowplaying.yml --network runs/gru_seq/STAMP
    python train_memory_seq.py --config RUN/config.yml --run.resume RUN

The memory counts which tracks followed the last ones, were played near them, or stand in similar sessions
(model/memory.py, model/candidates.py). The network (model/scorer.py) learns on the last part of the training sessions,
with a memory of the sessions before, how far to trust each. Then the memory takes in all of them, and for test the
validation sessions, too.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utils.core.cli import TYPE_CHECKING, cli
from utils.data.options import DataConfig, check_unused
from utils.training.model_configs import ScorerConfig
from utils.training.options import CasesConfig, RunConfig, TrainConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    import torch

    from model.network_source import NetworkSource
    from model.scorer import CandidateScorer, MemoryModel
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=lambda: DataConfig(history_size=20, valid_sessions=2000))
    cases: CasesConfig = field(default_factory=CasesConfig)
    model: ScorerConfig = field(default_factory=ScorerConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=4, batch_size=128, lr=3e-3, weight_decay=0.01, clip=1.0, schedule="cosine"
        )
    )
    run: RunConfig = field(default_factory=lambda: RunConfig(label="Memory and network"))
    network: str = ""
    """Folder of a finished run of train_gru_seq.py, train_transformer_seq.py or another script with --decoding, trained
    with --data.train_share 0.9 or less: one more source of candidates."""
    monitor: str = "mrr@20"
    """Validation metric of the next track that chooses the best weights."""


def build(config: Config, dataset: Dataset) -> CandidateScorer:
    """The network that chooses among candidates."""
    from model.candidates import FEATURES
    from model.network_source import NETWORK_FEATURES
    from model.scorer import CandidateScorer

    n_features = len(FEATURES) + len(NETWORK_FEATURES) * bool(config.network)
    return CandidateScorer(n_features=n_features, **asdict(config.model))


def source_of(folder: Path, dataset: Dataset, device: torch.device) -> NetworkSource:
    """The network of a finished run, as a source of candidates; `dataset` has its vocabulary."""
    from model.network_source import NetworkSource
    from utils.core.files import read_json
    from utils.training.rebuild import rebuild

    script = importlib.import_module(f"train_{read_json(folder / 'result.json')['experiment']}")
    trained = rebuild(script, folder, device=device, data=str(dataset.folder))
    return NetworkSource(trained.model, device, history_size=trained.config.data.history_size)


def remembered(
    config: Config,
    scorer: CandidateScorer,
    folder: Path,
    dataset: Dataset,
    device: torch.device,
    *,
    n_sessions: int | None = None,
) -> MemoryModel:
    """What a finished run predicts with: its scorer, with the memory and the network in its folder.

    Args:
        config, scorer, folder: of the run.
        dataset: the run's, or another of its vocabulary.
        device: of the scorer and the network.
        n_sessions: how many sessions the memory may know, the first ones; all of them if not given.
    """
    from model.candidates import CandidateFinder
    from model.memory import Memory
    from model.scorer import MemoryModel

    memory = Memory.open(folder / "memory")
    memory = memory if n_sessions is None else memory.first(n_sessions)
    network = source_of(folder / "network", dataset, device) if config.network else None
    return MemoryModel.of(CandidateFinder(memory, network), scorer)


def main(config: Config) -> dict[str, Any]:
    """Remember, train, score once on test; returns result.json's content."""
    from model.candidates import CandidateFinder
    from model.scorer import MemoryModel
    from utils.core.errors import blame
    from utils.data.dataset import Dataset
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import predict_by_counting
    from utils.evaluation.scoring import score, scoring_loaders
    from utils.training.loop import fit, training_details
    from utils.training.machine import pick_device, seed_everything
    from utils.training.memory_cases import case_loss, memory_of, training_cases, validate_next, validation_cases
    from utils.training.memory_files import check_network, keep_network, save_memory
    from utils.training.run import Run

    check_unused(config.data, "train_share", "train_cut", "new_plays", by="a memory")
    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    network = None
    if config.network:
        check_network(config.network, dataset, config.cases)
        network = source_of(Path(config.network), dataset, device)
    seed_everything(config.run.seed)
    with blame("model"):
        scorer = build(config, dataset).to(device)
    run = Run("memory_seq", config, dataset)
    order = {"batch_size": config.train.batch_size, "seed": config.run.seed}
    cases = training_cases(dataset, config.data, config.cases, network=network, **order)
    scorer.standardise(cases.candidates)
    memory = memory_of([dataset.train], dataset.n_ids)
    late = memory_of([dataset.train, dataset.valid], dataset.n_ids) if config.cases.remember_valid else memory
    save_memory(late, run.folder)
    keep_network(config.network, run.folder)
    finder, late_finder = CandidateFinder(memory, network), CandidateFinder(late, network)
    valid = validation_cases(dataset, config.data, finder)
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
    scores: dict[str, Any] = {}
    for name, loader in scoring_loaders(dataset, config.data):
        model = MemoryModel.of(late_finder if name.startswith("test") else finder, scorer)
        scores |= score(partial(predict_by_counting, model), dataset, [(name, loader)], folder=run.folder)
    return run.finish(task="seq", scores=scores, **training_details(scorer, progress))


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
