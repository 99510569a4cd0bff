"""The machine that makes a run: its device, its memory, the code that it runs."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from pathlib import Path

import torch

from utils.core.errors import UserError


def git_commit() -> str | None:
    """The commit of the code, with "+" if the working tree differs from it; `None` outside a repository."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty else "")


def peak_memory_mib() -> int:
    """Peak resident memory of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if platform.system() == "Darwin" else 1024)


def seed_everything(seed: int) -> None:
    """Seed torch's generators, for weights, dropout and negatives; numpy generators are seeded where they are made.

    The generators of several processes diverge when training starts, for dropout.
    """
    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else MPS, else the CPU.

    Raises:
        UserError: the device does not exist here, or torchrun started more processes than there are GPUs.
    """
    if name == "auto":
        if torch.cuda.is_available():
            n_gpus = torch.cuda.device_count()
            if int(os.environ.get("LOCAL_RANK", "0")) >= n_gpus:
                raise UserError(f"more processes than GPUs ({n_gpus}); start fewer, or choose --train.device cpu")
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try auto") from None
    return device
