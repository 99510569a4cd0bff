"""Several processes that train one model, on one machine or on several:

    torchrun --nproc-per-node 2 train_transformer_seq.py --config configs/transformer_seq/demo.yml

Every process holds the whole model and takes every n-th row of each batch. So `train.batch_size` means the same as in
one process, and the gradients of all processes add up to the same sums. The first process draws for all what belongs to
a batch and not to its rows (negatives, which branch DropNet drops); each process draws for itself what belongs to rows
(dropout, masks). The processes share out predictions, too, and put them together before anything is scored, so metrics
are those of one process.
Only the first process writes files and prints; the run's folder must be on a file system that all can read.

In one process every function here does nothing, at no cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from utils.core.errors import UserError

T = TypeVar("T")


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started; all but the first are silent until the block ends."""
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    # Name both backends: the default is one for the accelerator only, but numbers on the CPU are exchanged, too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if is_first():
        yield
    else:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            yield
    dist.destroy_process_group()


def n_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes files; a process that is alone does."""
    return rank() == 0


def mine() -> slice:
    """Which rows of a batch are for this process; possibly none, if there are fewer rows than processes."""
    return slice(rank(), None, n_processes())


def shared(tensor: Tensor) -> Tensor:
    """The first process's values, in all processes, whatever `tensor` (of the same shape and type) held there."""
    if n_processes() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def agreed(decision: bool) -> bool:
    """The first process's decision."""
    return bool(shared(torch.tensor(decision))) if n_processes() > 1 else decision


def total(number: int) -> int:
    """The sum of all processes' numbers."""
    if n_processes() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor)
    return int(tensor)


def gathered(tensor: Tensor) -> Tensor:
    """The tensors (N, ...) of all processes, one after the other: (sum of N, ...). N may differ between them."""
    if n_processes() == 1:
        return tensor
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(n_processes())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
    longest = max(int(size) for size in sizes)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def put_together(*arrays: np.ndarray, rows: list[np.ndarray]) -> None:
    """Fill in the rows of arrays (N, ...) that other processes have computed, in place.

    Args:
        arrays: numbers; what they hold in the rows of other processes does not matter.
        rows: int64, the rows that this process has computed; each row belongs to one process.
    """
    if n_processes() == 1:
        return
    others = np.ones(len(arrays[0]), bool)
    for own in rows:
        others[own] = False
    for array in arrays:
        array[others] = 0
        dist.all_reduce(torch.from_numpy(array))  # adding zeros changes nothing


def once(function: Callable[[], T]) -> T:
    """Call the function in the first process only; every process returns its result, or raises its `UserError`."""
    if n_processes() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def from_all(value: T) -> list[T]:
    """The values of all processes, in order; tensors must be on the CPU."""
    values: list[Any] = [value] * n_processes()
    if n_processes() > 1:
        dist.all_gather_object(values, value)
    return values
