"""DropNet: in training, a layer must sometimes make do with its own attention alone, or with BERT's alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class DropNet(nn.Module):
    """Mixes what a layer's own attention saw with what its attention to BERT saw (Zhu et al. 2020, section 4).

    In training each call draws a number U, uniform over [0, 1). Below p / 2 only the layer's own attention counts, from
    1 - p / 2 on only the one to BERT, and in between the average of both. In evaluation it is always the average. U
    comes from torch's generator (in the original from Python's, which its runs do not seed).

    Args:
        p: rate from 0, always the average, to 1, never the average in training.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"drop_net is {p}; it must be at least 0 and at most 1")
        self.p = p

    def forward(self, own: Tensor, bert: Tensor) -> Tensor:
        """What both attentions saw (...) -> their mix, of the same shape."""
        if self.training and self.p > 0:
            u = torch.rand(())
            if dist.is_initialized():  # all processes must train the same weights in a step
                dist.broadcast(u, 0)
            if u < self.p / 2:
                return own
            if u >= 1 - self.p / 2:
                return bert
        return (own + bert) / 2

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"p={self.p}"
