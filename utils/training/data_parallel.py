"""Average the gradients of one model over several processes. In one process nothing here does anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.dropnet import DropNet
from utils.core.distributed import gathered, mine, n_processes, total
from utils.data.batch import SessionBatch, whole_sessions
from utils.data.vocab import PAD, UNK
from utils.training.losses import LossFn
from utils.training.optimizers import sparse_tables


class LossOfBatch(nn.Module):
    """A loss as a module whose call is the whole forward pass, as DistributedDataParallel needs it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: SessionBatch) -> tuple[Tensor, int]:
        return self.loss_fn(self.model, batch)


def averaging(model: nn.Module, loss_fn: LossFn) -> LossFn:
    """The loss of this process's share of a batch; its backward pass averages gradients over the processes.

    It leaves row-sparse gradients to `average_sparse`, because NCCL cannot sum sparse tensors.
    """
    if n_processes() == 1:
        return loss_fn
    wrapped = LossOfBatch(model, loss_fn)
    tables = set(sparse_tables(model))
    theirs = [name for name, value in wrapped.named_parameters(remove_duplicate=False) if value in tables]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, theirs)
    some_unused = any(isinstance(module, DropNet) and module.p > 0 for module in model.modules())
    parallel = DistributedDataParallel(
        wrapped, forward_sync_buffers=False, find_unused_parameters=some_unused, gradient_as_bucket_view=True
    )

    def loss_of_share(_: Any, batch: SessionBatch) -> tuple[Tensor, int]:
        own = batch.take(mine())
        return parallel(own if len(own.rows) else _nothing_known(batch))

    return loss_of_share


def _nothing_known(batch: SessionBatch) -> SessionBatch:
    """One session without any loss, for a process without rows: the others wait for its gradients.

    It shows what the first row of the batch shows, so no row of a table is touched that the batch itself does not.
    """
    row = batch.take(slice(1))
    tracks = whole_sessions(row)
    unknown = tracks.where(tracks == PAD, UNK)
    return row._replace(target_skips=torch.full_like(row.target_skips, -1), answers=unknown)


def average_sparse(model: nn.Module) -> None:
    """Replace row-sparse gradients by their means over the processes."""
    if n_processes() == 1:
        return
    for table in sparse_tables(model):
        if total(int(table.grad is not None)) == 0:
            continue
        rows = torch.empty(0, dtype=torch.int64, device=table.device)
        values = table.detach()[:0]
        if table.grad is not None:
            gradient = table.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values() / n_processes()
        rows, values = gathered(rows), gathered(values)
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
