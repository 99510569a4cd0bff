"""Random numbers of sessions: each session has its own, whatever the other sessions of its batch are.

A number is a hash of the seed, the session's row, the step and the draw ("counter-based", as in Salmon et al. 2011), so
batches of any size, in any number of processes and on any device, draw the same ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def keys_of(seed: int, rows: Tensor, step: int) -> Tensor:
    """What `uniform` draws from in one step of sessions: int64 (N,).

    Args:
        seed: of all sessions, from 0.
        rows: int64 (N,), which session each is; from 0.
        step: from 0.
    """
    of_seed = _hashed(np.array([seed], np.uint64), 0)
    of_rows = _hashed(of_seed ^ rows.cpu().numpy().astype(np.uint64), 1)
    return torch.from_numpy(_hashed(of_rows, step).view(np.int64))


def uniform(keys: Tensor, draw: int) -> Tensor:
    """A number in [0, 1) for each key (N,), different in each draw (from 0): float64 (N,), on the CPU."""
    bits = _hashed(keys.numpy().view(np.uint64), draw) >> np.uint64(11)
    return torch.from_numpy(bits * 2.0**-53)


def _hashed(x: np.ndarray, counter: int) -> np.ndarray:
    """The `counter`-th number of SplitMix64 after the state x (Steele et al. 2014): uint64 (N,)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(counter + 1) * _GAMMA
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
