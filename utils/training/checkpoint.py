"""Checkpoints are dictionaries of plain values and tensors, loaded with `weights_only=True`: loading runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.core.errors import UserError
from utils.core.files import atomic_file


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` atomically."""
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, *, vocabulary_hash: str | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Args:
        path: written by `save_checkpoint`.
        vocabulary_hash: of the dataset in use, to be sure that embedding rows mean the same tracks.

    Raises:
        UserError: no such file, not a checkpoint, or made with another vocabulary.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train the model first") from None
    except Exception as error:  # the unpickler raises nearly anything when a file is not a checkpoint
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no readable checkpoint ({first_line})") from None
    if not isinstance(state, dict) or "vocabulary_hash" not in state:
        raise UserError(f"{path} is no checkpoint of this project (it holds no vocabulary hash)")
    if vocabulary_hash is not None and state["vocabulary_hash"] != vocabulary_hash:
        raise UserError(
            f"{path} was trained on another vocabulary ({state['vocabulary_hash'][:12]}, the dataset has "
            f"{vocabulary_hash[:12]}); use the dataset that it was trained on"
        )
    return state


def load_weights(model: nn.Module, path: Path, *, vocabulary_hash: str) -> dict[str, Any]:
    """Load the weights of a checkpoint into `model`, strictly; returns the whole checkpoint.

    Raises:
        UserError: as `load_checkpoint`, or the sizes of model and checkpoint differ.
    """
    state = load_checkpoint(path, vocabulary_hash=vocabulary_hash)
    try:
        model.load_state_dict(state["model"], strict=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the configured model: {error}") from None
    return state


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, of the CPU and of `device`, for a checkpoint."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put torch's generators in the states of a checkpoint; that of `device` only if the checkpoint has its type."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
