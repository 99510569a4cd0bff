"""What a run of a memory keeps in its folder, so that the folder is all that a prediction needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model.memory import Memory
from utils.core.errors import UserError
from utils.core.files import atomic_folder
from utils.data.dataset import Dataset
from utils.training.options import CasesConfig
from utils.training.rebuild import step_by_step_run

KEPT = ("config.yml", "best.pt", "result.json")
"""Files of a network's run that are copied."""


def check_network(folder: str, dataset: Dataset, cases: CasesConfig) -> None:
    """Check that a run's network may help a memory of this dataset.

    Raises:
        UserError: it is no finished run of a seq model, knows another vocabulary, reads more than tracks, or learnt
            from the sessions from which the scorer is to learn.
    """
    finished = step_by_step_run(folder, option="network")
    config: dict[str, Any] = finished["config"]
    if finished["dataset"]["hash"] != dataset.vocabulary_hash:
        raise UserError(f"network: {folder} was trained on another vocabulary than that of {dataset.folder}")
    if config["model"].get("skip_encoding", "none") != "none" or config["model"].get("use_log", False):
        raise UserError(f"network: {folder} reads skips or log columns; a memory gives it tracks only")
    most = 1 - cases.share * cases.folds
    if config["data"].get("train_share", 1.0) > most + 1e-9:
        raise UserError(
            f"network: {folder} was trained on sessions from which the scorer is to learn, so that it would be trusted "
            f"too much; train it with --data.train_share {most:g}"
        )


def save_memory(memory: Memory, folder: Path) -> None:
    """Write the memory to `memory` in a run's folder."""
    with atomic_folder(folder / "memory", overwrite=True, holds="plays.npy") as temporary:
        memory.save(temporary)


def keep_network(network: str, folder: Path) -> None:
    """Copy a network's run to `network` in a run's folder, if there is one."""
    if not network:
        return
    with atomic_folder(folder / "network", overwrite=True, holds="best.pt") as temporary:
        for name in KEPT:
            shutil.copyfile(Path(network) / name, temporary / name)
