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

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, SkipEncoding, TrackEmbedding, TrackHead
from utils.batch import History
from utils.vocab import BOS, PAD


class KeysValues(NamedTuple):
    """What attention looks at: a memory of M positions, seen by each of H heads."""

    keys: Tensor
    """(B, H, M, D/H)"""
    values: Tensor
    """(B, H, M, D/H)"""


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
        return self.attend(x, self.remember(memory), mask)

    def remember(self, memory: Tensor) -> KeysValues:
        """Memory (B, M, D') -> its keys and values, which serve any number of queries."""
        return KeysValues(self._heads(self.key(memory)), self._heads(self.value(memory)))

    def attend(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        """Attend from x (B, T, D) to all of a memory, or to where `mask`, bool (B or 1, T or 1, M), is true."""
        q = self._heads(self.query(x))  # (B, H, T, D/H)
        y = scaled_dot_product_attention(
            q,
            *memory,
            attn_mask=None if mask is None else mask[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, T, D/H)
        return self.output(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, d_ff: int, *, dropout: float) -> None:
        super().__init__(nn.Linear(d_model, d_ff), nn.ReLU(), Dropout(dropout), nn.Linear(d_ff, d_model))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with residual and norm after it (post-norm, as in the paper)."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)

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
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """x (B, T, D) with mask (B or 1, T, T), memory (B, S, D) with mask (B, 1, S) -> (B, T, D)."""
        return self._attend(x, self.attention.remember(x), mask, self.cross_attention.remember(memory), memory_mask)

    def step(self, x: Tensor, past: KeysValues, memory: KeysValues, memory_mask: Tensor) -> tuple[Tensor, KeysValues]:
        """One more position x (B, 1, D) behind the ones in `past` -> its output (B, 1, D), and the past with it."""
        new = self.attention.remember(x)
        past = KeysValues(*(torch.cat(both, dim=2) for both in zip(past, new, strict=True)))
        return self._attend(x, past, None, memory, memory_mask), past

    def _attend(
        self, x: Tensor, own: KeysValues, mask: Tensor | None, memory: KeysValues, memory_mask: Tensor
    ) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention.attend(x, own, mask)))
        x = self.norms[1](x + self.dropout(self.cross_attention.attend(x, memory, memory_mask)))
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
        self.dropout = Dropout(dropout)

    def forward(self, history: History) -> Tensor:
        """History -> memory (B, S, D)."""
        mask = real(history.tracks)
        x = self.dropout(self.embed(history))
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class DecoderState(NamedTuple):
    """What a decoder keeps between two steps; all tensors have the rows first."""

    past: tuple[KeysValues, ...]
    """Of each layer's self-attention, for the steps so far."""
    memory: tuple[KeysValues, ...]
    """Of each layer's attention to the encoder, computed once."""
    memory_mask: Tensor
    """bool (B, 1, S)"""


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
        self.dropout = Dropout(dropout)

    def forward(self, tracks: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Tracks (B, T), mask (B or 1, T, T), memory (B, S, D), its mask (B, 1, S) -> states (B, T, D)."""
        x = self.dropout(self.tracks(tracks) + self.positions[: tracks.shape[1]])
        for layer in self.layers:
            x = layer(x, mask, memory, memory_mask)
        return self.norm(x)

    def begin(self, memory: Tensor, memory_mask: Tensor) -> DecoderState:
        """Memory (B, S, D) and its mask (B, 1, S) -> the state before the first step."""
        memories = tuple(layer.cross_attention.remember(memory) for layer in self._layers())
        past = tuple(KeysValues(*(tensor[:, :, :0] for tensor in pair)) for pair in memories)
        return DecoderState(past, memories, memory_mask)

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """One more track each (B,) -> states (B, D) as `forward` has them at this step, and the state behind it."""
        n_past = state.past[0].keys.shape[2]
        x = self.dropout(self.tracks(tracks) + self.positions[n_past])[:, None]  # (B, 1, D)
        past = []
        for layer, own, memory in zip(self._layers(), state.past, state.memory, strict=True):
            x, own = layer.step(x, own, memory, state.memory_mask)
            past.append(own)
        return self.norm(x)[:, 0], state._replace(past=tuple(past))

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))


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
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
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
        sparse: bool = False,
        history_size: int = 10,
        target_size: int = 10,
    ) -> None:
        super().__init__()
        self.causal = causal
        tracks = TrackEmbedding(n_ids, d_model, features, sparse=sparse)
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
        sparse: gradients of the track tables hold only the rows of a batch: for losses that look at some tracks only.
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
        sparse: bool = False,
        history_size: int = 10,
        target_size: int = 10,
    ) -> None:
        super().__init__()
        self.start_token = start
        tracks = TrackEmbedding(n_ids, d_model, features, sparse=sparse)
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
        self.head = TrackHead(n_ids, d_model, tie_to=tracks if tie_weights else None, sparse=sparse)

    def forward(self, history: History, previous: Tensor) -> Tensor:
        """History and previous tracks (B, T) -> states (B, T, D), each blind to the tracks after it."""
        mask = causal(previous.shape[1], previous.device)
        return self.decoder(previous, mask, self.encoder(history), real(history.tracks))

    def begin(self, history: History) -> DecoderState:
        """Read a history once, for any number of steps."""
        return self.decoder.begin(self.encoder(history), real(history.tracks))

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """The next tracks (B,), first the start token -> states (B, D) as `forward` has them, and the state after."""
        return self.decoder.step(state, tracks)

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
