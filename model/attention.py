"""Attention, and encoder and decoder layers (Vaswani et al. 2017) that can also attend to BERT's states.

Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.dropnet import DropNet
from model.dropout import Dropout
from utils.data.vocab import PAD


class Memory(NamedTuple):
    """M positions that attention looks at, and which of them each query may see."""

    states: Tensor
    """(B, M, D')"""
    mask: Tensor
    """bool (B or 1, T or 1, M): true where a query may look."""


class KeysValues(NamedTuple):
    """Keys and values of a memory for each of H heads, computed once for any number of queries."""

    keys: Tensor
    """(B, H, M, D/H)"""
    values: Tensor
    """(B, H, M, D/H)"""
    mask: Tensor
    """That of the memory."""


class Attention(nn.Module):
    """Multi-head attention of queries over a memory.

    Args:
        d_model: D, width of queries and output.
        n_heads: H, a divisor of D.
        d_memory: width of the memory; D if not given.
        dropout: rate on the attention weights.
    """

    def __init__(self, d_model: int, n_heads: int, *, d_memory: int | None = None, dropout: float) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is no multiple of n_heads {n_heads}")
        self.n_heads = n_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model)
        # A bias of the keys would add the same number to all scores of a query, which the softmax ignores.
        self.key = nn.Linear(d_memory or d_model, d_model, bias=False)
        self.value = nn.Linear(d_memory or d_model, d_model)
        self.output = nn.Linear(d_model, d_model)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Attend from x (B, T, D) to a memory: (B, T, D)."""
        return self.attend(x, self.remember(memory))

    def remember(self, memory: Memory) -> KeysValues:
        """The keys and values of a memory, for any number of queries."""
        return KeysValues(self._heads(self.key(memory.states)), self._heads(self.value(memory.states)), memory.mask)

    def attend(self, x: Tensor, memory: KeysValues) -> Tensor:
        """Attend from x (B, T, D) to a memory: (B, T, D)."""
        q = self._heads(self.query(x))  # (B, H, T, D/H)
        y = scaled_dot_product_attention(
            q,
            memory.keys,
            memory.values,
            attn_mask=memory.mask[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, T, D/H)
        return self.output(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, d_ff: int, *, dropout: float) -> None:
        super().__init__(nn.Linear(d_model, d_ff), nn.ReLU(), Dropout(dropout), nn.Linear(d_ff, d_model))


class BertBranch(NamedTuple):
    """What a layer needs to attend to BERT's states as well."""

    d_bert: int
    """Width of BERT's states."""
    drop_net: float
    """`p` of the `DropNet` that mixes both attentions."""


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and norm (post-norm, as in the paper).

    Args:
        d_model, n_heads, d_ff, dropout: sizes.
        branch: adds attention to BERT's states, mixed with the self-attention; None for a layer without it.
    """

    bert_attention: Attention  # only with a branch
    mix: DropNet

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        dropout: float,
        branch: BertBranch | None = None,
    ) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)
        if branch is not None:
            self.bert_attention = Attention(d_model, n_heads, d_memory=branch.d_bert, dropout=dropout)
            self.mix = DropNet(branch.drop_net)

    def forward(self, x: Tensor, mask: Tensor, bert: Memory | None = None) -> Tensor:
        """x (B, S, D), mask bool (B, S or 1, S), BERT's states -> (B, S, D)."""
        seen = self.attention(x, Memory(x, mask))
        if bert is not None:
            seen = self.mix(seen, self.bert_attention(x, bert))
        x = self.norms[0](x + self.dropout(seen))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder, feed-forward, each followed by residual and norm.

    Args:
        d_model, n_heads, d_ff, dropout, branch: as in `EncoderLayer`, except that BERT attention is mixed with
            cross-attention.
    """

    bert_attention: Attention  # only with a branch
    mix: DropNet

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        dropout: float,
        branch: BertBranch | None = None,
    ) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.cross_attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = Dropout(dropout)
        if branch is not None:
            self.bert_attention = Attention(d_model, n_heads, d_memory=branch.d_bert, dropout=dropout)
            self.mix = DropNet(branch.drop_net)

    def forward(self, x: Tensor, mask: Tensor, memory: Memory, bert: Memory | None = None) -> Tensor:
        """x (B, T, D) with mask (B or 1, T, T), the encoder's memory, BERT's states -> (B, T, D)."""
        return self._attend(x, self.attention.remember(Memory(x, mask)), self.remember(memory, bert))

    def remember(self, memory: Memory, bert: Memory | None = None) -> tuple[KeysValues, ...]:
        """Keys and values of the encoder's memory and, if given, of BERT's states: the same at every step."""
        own = self.cross_attention.remember(memory)
        return (own,) if bert is None else (own, self.bert_attention.remember(bert))

    def step(self, x: Tensor, past: KeysValues, memories: tuple[KeysValues, ...]) -> tuple[Tensor, KeysValues]:
        """One more position x (B, 1, D) after those in `past` -> its output (B, 1, D), and the past including it."""
        new = self.attention.remember(Memory(x, x.new_ones(len(x), 1, 1, dtype=torch.bool)))
        past = KeysValues(*(torch.cat(both, dim=2) for both in zip(past, new, strict=True)))
        return self._attend(x, past, memories), past

    def _attend(self, x: Tensor, own: KeysValues, memories: tuple[KeysValues, ...]) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention.attend(x, own)))
        encoder, *bert = memories
        seen = self.cross_attention.attend(x, encoder)
        if bert:
            seen = self.mix(seen, self.bert_attention.attend(x, *bert))
        x = self.norms[1](x + self.dropout(seen))
        return self.norms[2](x + self.dropout(self.feed_forward(x)))


def real(tracks: Tensor) -> Tensor:
    """Attention mask (B, 1, M) that shows the plays among tracks (B, M), and hides the padding."""
    return (tracks != PAD)[:, None, :]


def causal(size: int, device: torch.device) -> Tensor:
    """Attention mask (1, T, T) that lets each step see itself and the steps before it."""
    return torch.ones(1, size, size, dtype=torch.bool, device=device).tril()
