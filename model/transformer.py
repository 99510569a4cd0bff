"""The seed's two Transformers, as its paper means them: `SeqTransformer` and `SkipTransformer`.

An encoder reads the history, a decoder reads the targets (Vaswani et al. 2017). Deviations from the seed, numbered:
    1, 2  embeddings: see `model/embeddings.py`
    3     encoder and decoder have a final norm each (the seed shares one object)
    4     padding is masked: sessions have any length
    5     the decoder's positions are its own (the seed uses one table for both halves)
    6     the output of SeqTransformer can be tied to the track table, and never scores the special ids
Shapes: see the legend in `utils/batch.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.embeddings import HistoryEmbedding, SkipEncoding, TrackEmbedding, TrackHead
from utils.batch import History
from utils.vocab import BOS, PAD


class Attention(nn.Module):
    """Multi-head attention of queries over a memory.

    Args:
        d_model: D, of queries and output.
        n_heads: H, a divisor of D.
        d_memory: width of the memory; D if not given.
        dropout: of the attention weights.
    """

    def __init__(self, d_model: int, n_heads: int, *, d_memory: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is no multiple of n_heads {n_heads}")
        self.n_heads = n_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model)
        # A bias of the keys would add the same to all scores of a query: the softmax does not see it.
        self.key = nn.Linear(d_memory or d_model, d_model, bias=False)
        self.value = nn.Linear(d_memory or d_model, d_model)
        self.output = nn.Linear(d_model, d_model)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attend from x (B, T, D) to memory (B, M, D') where `mask`, bool (B or 1, T or 1, M), is true: (B, T, D)."""
        q, k, v = (self._heads(y) for y in (self.query(x), self.key(memory), self.value(memory)))  # (B, H, T or M, D/H)
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], dropout_p=dropout)  # (B, H, T, D/H)
        return self.output(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, d_ff: int, *, dropout: float) -> None:
        super().__init__(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_ff, d_model))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with residual and norm after it (post-norm, as in the paper)."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D), mask bool (B, S or 1, S) -> (B, S, D)."""
        x = self.norms[0](x + self.dropout(self.attention(x, x, mask)))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder, feed-forward, each with residual and norm after it."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.cross_attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """x (B, T, D) with mask (B or 1, T, T), memory (B, S, D) with mask (B, 1, S) -> (B, T, D)."""
        x = self.norms[0](x + self.dropout(self.attention(x, x, mask)))
        x = self.norms[1](x + self.dropout(self.cross_attention(x, memory, memory_mask)))
        return self.norms[2](x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """Embeds a history and reads it with a stack of encoder layers."""

    def __init__(
        self, embed: HistoryEmbedding, d_model: int, *, n_heads: int, n_layers: int, d_ff: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(EncoderLayer(d_model, n_heads, d_ff, dropout=dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, history: History) -> Tensor:
        """History -> memory (B, S, D)."""
        mask = real(history.tracks)
        x = self.dropout(self.embed(history))
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class Decoder(nn.Module):
    """Reads tracks of the second half, in the light of an encoder's memory."""

    def __init__(
        self,
        tracks: TrackEmbedding,
        d_model: int,
        *,
        target_size: int,
        n_heads: int,
        n_layers: int,
        d_ff: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tracks = tracks
        self.positions = nn.Parameter(torch.randn(target_size, d_model) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(d_model, n_heads, d_ff, dropout=dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tracks: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Tracks (B, T), mask (B or 1, T, T), memory (B, S, D), its mask (B, 1, S) -> states (B, T, D)."""
        x = self.dropout(self.tracks(tracks) + self.positions[: tracks.shape[1]])
        for layer in self.layers:
            x = layer(x, mask, memory, memory_mask)
        return self.norm(x)


def real(tracks: Tensor) -> Tensor:
    """Attention mask (B, 1, M) that shows the real plays among tracks (B, M)."""
    return (tracks != PAD)[:, None, :]


def causal(size: int, device: torch.device) -> Tensor:
    """Attention mask (1, T, T) that shows each step itself and the steps before it."""
    return torch.ones(1, size, size, dtype=torch.bool, device=device).tril()


class SkipTransformer(nn.Module):
    """Which of the known tracks of the second half will be skipped?

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, n_heads, n_layers, d_ff, dropout: sizes of encoder and decoder alike.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        causal: whether step t sees only the target tracks up to t (the seed), or all of them.
        history_size, target_size: S and T.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int = 128,
        n_heads: int = 4,
        n_layers: int = 4,
        d_ff: int = 2048,
        dropout: float = 0.1,
        skip_encoding: SkipEncoding = "embedding",
        use_log: bool = True,
        causal: bool = True,
        history_size: int = 10,
        target_size: int = 10,
    ) -> None:
        super().__init__()
        self.causal = causal
        tracks = TrackEmbedding(n_ids, d_model, features)
        embed = HistoryEmbedding(
            tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        self.encoder = Encoder(embed, d_model, n_heads=n_heads, n_layers=n_layers, d_ff=d_ff, dropout=dropout)
        self.decoder = Decoder(
            tracks,
            d_model,
            target_size=target_size,
            n_heads=n_heads,
            n_layers=n_layers,
            d_ff=d_ff,
            dropout=dropout,
        )
        self.output = nn.Linear(d_model, 1)

    def forward(self, history: History, target_tracks: Tensor) -> Tensor:
        """History and target tracks (B, T) -> logits (B, T) of a skip."""
        # Targets are padded on the right, so the causal mask hides the padding from every real step.
        mask = causal(target_tracks.shape[1], target_tracks.device) if self.causal else real(target_tracks)
        states = self.decoder(target_tracks, mask, self.encoder(history), real(history.tracks))  # (B, T, D)
        return self.output(states)[..., 0]


class SeqTransformer(nn.Module):
    """Which tracks come next?

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, n_heads, n_layers, d_ff, dropout: sizes of encoder and decoder alike.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        start: what stands before the first prediction: the last track of the history (the seed), or the BOS token.
        tie_weights: use the track table as output weights.
        history_size, target_size: S and T.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int = 256,
        n_heads: int = 2,
        n_layers: int = 2,
        d_ff: int = 2048,
        dropout: float = 0.2,
        skip_encoding: SkipEncoding = "none",
        use_log: bool = False,
        start: Literal["last", "bos"] = "last",
        tie_weights: bool = False,
        history_size: int = 10,
        target_size: int = 10,
    ) -> None:
        super().__init__()
        self.start_token = start
        tracks = TrackEmbedding(n_ids, d_model, features)
        embed = HistoryEmbedding(
            tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        self.encoder = Encoder(embed, d_model, n_heads=n_heads, n_layers=n_layers, d_ff=d_ff, dropout=dropout)
        self.decoder = Decoder(
            tracks,
            d_model,
            target_size=target_size,
            n_heads=n_heads,
            n_layers=n_layers,
            d_ff=d_ff,
            dropout=dropout,
        )
        self.head = TrackHead(n_ids, d_model, tie_to=tracks if tie_weights else None)

    def forward(self, history: History, previous: Tensor) -> Tensor:
        """History and previous tracks (B, T) -> states (B, T, D); `logits` makes scores of them."""
        return self.decode(history, self.encode(history), previous)

    def encode(self, history: History) -> Tensor:
        """History -> memory (B, S, D)."""
        return self.encoder(history)

    def decode(self, history: History, memory: Tensor, previous: Tensor) -> Tensor:
        """Previous tracks (B, t) -> states (B, t, D), each blind to the tracks after it."""
        mask = causal(previous.shape[1], previous.device)
        return self.decoder(previous, mask, memory, real(history.tracks))

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores of all ids (..., V), minus infinity at the special ones."""
        return self.head(states)

    def start(self, history: History) -> Tensor:
        """The token (B, 1) before the first prediction."""
        last = history.tracks[:, -1:]
        return last if self.start_token == "last" else torch.full_like(last, BOS)

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Targets (B, T) shifted right behind the start token."""
        return torch.cat([self.start(history), targets[:, :-1]], dim=1)
