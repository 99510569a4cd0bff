"""Dropout whose random numbers do not cost more than the layers around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that takes one random byte per element on the CPU.

    On the CPU, torch draws a Bernoulli variable for each element, which takes a third of a Transformer's training step.
    Here one draw of 64 bits decides for eight elements. The rate is rounded to a multiple of 1/256, and the scale of
    what is kept follows from the rounded rate, so the expectation is exact in float32 (in bfloat16 the scale itself is
    rounded, by up to 0.4 %). Other devices and compiled models use torch's own dropout.

    Args:
        p: share of the elements that become zero in training.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1 or 0 < p <= 1 / 512:
            raise ValueError(f"dropout is {p}; it must be 0, or above 1/512 and below 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (...) -> the same shape; x itself in evaluation."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(x, self.p)
        dropped = min(round(self.p * 256), 255)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        kept = (draws.view(torch.uint8)[: x.numel()] >= dropped).view(x.shape)
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"p={self.p}"
