"""Adam for every parameter: row-sparse where a loss looks at some tracks only, dense elsewhere."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from utils.data.batch import device_of


def sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of embeddings with row-sparse gradients, each once."""
    sparse = {module.weight for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse}
    return [parameter for parameter in model.parameters() if parameter in sparse and parameter.requires_grad]


def choose_gradients(model: nn.Module) -> None:
    """Keep row-sparse gradients on the CPU only: elsewhere all of a model's tables get dense ones.

    To know which rows a batch touched, a step would have to wait for the GPU. And gradient, weights and both moments of
    103,000 x 128 are 0.2 GB, which a GPU moves in less than a millisecond.
    """
    if device_of(model).type != "cpu":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = False


def make_optimizers(model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> list[Optimizer]:
    """Adam for all parameters that are not frozen; embeddings with sparse gradients change only rows a batch touched.

    A row that no batch touches keeps its moments as they are ("lazy" Adam); dense Adam would let them fade and the row
    drift. Only the weights of linear layers are decayed: no embeddings, positions, biases or norms.
    """
    linear_weights = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sparse = sparse_tables(model)
    decayed = [parameter for parameter in trained if parameter in linear_weights]
    rest = [parameter for parameter in trained if parameter not in linear_weights | set(sparse)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=lr, fused=True)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=lr))
    return optimizers


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Scale all gradients, dense and sparse, so that their common norm is at most `max_norm`."""
    values = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = nn.utils.get_total_norm(values)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in values:
        gradient.mul_(factor)


def lr_factor(step: int, *, total: int, warmup: int, schedule: Literal["constant", "cosine"]) -> float:
    """Share of the peak learning rate at `step` (from 0) of `total`: a linear warm-up, then the schedule."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
