"""The seed's two Transformers, as its paper means them: `SeqTransformer` and `SkipTransformer`.

An encoder reads the history, a decoder reads the targets (Vaswani et al. 2017). Deviations from the seed, numbered:
    1, 2  embeddings: see `model/embeddings.py`
    3     encoder and decoder have a final norm each (the seed shares one object)
    4     padding is masked: sessions have any length
    5     the decoder's positions are its own (the seed uses one table for both halves)
    6     the output of SeqTransformer can be tied to the track table, and never scores the special ids
With `d_bert`, each layer looks at BERT's states as well: `model/bert_augmented.py` says how, and gives them.
Shapes: see the legend in `utils/batch.py`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.dropnet import DropNet
from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, SkipEncoding, TrackEmbedding, TrackHead
from utils.batch import History
from utils.vocab import BOS, PAD


class Memory(NamedTuple):
    """What attention looks at: M positions, and which of them are shown."""

    states: Tensor
    """(B, M, D')"""
    mask: Tensor
    """bool (B or 1, T or 1, M): true where a query may look."""


class KeysValues(NamedTuple):
    """A memory as each of H heads sees it, computed once for any number of queries."""

    keys: Tensor
    """(B, H, M, D/H)"""
    values: Tensor
    """(B, H, M, D/H)"""
    mask: Tensor
    """As of the memory."""


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

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Attend from x (B, T, D) to a memory: (B, T, D)."""
        return self.attend(x, self.remember(memory))

    def remember(self, memory: Memory) -> KeysValues:
        """The keys and values of a memory, which serve any number of queries."""
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


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with residual and norm after it (post-norm, as in the paper).

    Args:
        d_model, n_heads, d_ff, dropout: sizes.
        d_bert: width of BERT's states; what an attention to them sees is mixed with what the self-attention sees. None
            for a layer without.
        drop_net: p of the mix, see `DropNet`.
    """

    bert_attention: Attention  # only with `d_bert`
    mix: DropNet

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        dropout: float,
        d_bert: int | None = None,
        drop_net: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)
        if d_bert is not None:
            self.bert_attention = Attention(d_model, n_heads, d_memory=d_bert, dropout=dropout)
            self.mix = DropNet(drop_net)

    def forward(self, x: Tensor, mask: Tensor, bert: Memory | None = None) -> Tensor:
        """x (B, S, D), mask bool (B, S or 1, S), BERT's states -> (B, S, D)."""
        seen = self.attention(x, Memory(x, mask))
        if bert is not None:
            seen = self.mix(seen, self.bert_attention(x, bert))
        x = self.norms[0](x + self.dropout(seen))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder, feed-forward, each with residual and norm after it.

    Args:
        d_model, n_heads, d_ff, dropout, d_bert, drop_net: as of `EncoderLayer`, but that what the attention to BERT
            sees is mixed with what the attention to the encoder sees.
    """

    bert_attention: Attention  # only with `d_bert`
    mix: DropNet

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        dropout: float,
        d_bert: int | None = None,
        drop_net: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = Attention(d_model, n_heads, dropout=dropout)
        self.cross_attention = Attention(d_model, n_heads, dropout=dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout=dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = Dropout(dropout)
        if d_bert is not None:
            self.bert_attention = Attention(d_model, n_heads, d_memory=d_bert, dropout=dropout)
            self.mix = DropNet(drop_net)

    def forward(self, x: Tensor, mask: Tensor, memory: Memory, bert: Memory | None = None) -> Tensor:
        """x (B, T, D) with mask (B or 1, T, T), the encoder's memory, BERT's states -> (B, T, D)."""
        return self._attend(x, self.attention.remember(Memory(x, mask)), self.remember(memory, bert))

    def remember(self, memory: Memory, bert: Memory | None = None) -> tuple[KeysValues, ...]:
        """The encoder's memory, and BERT's states if there are any, as this layer sees them at every step."""
        own = self.cross_attention.remember(memory)
        return (own,) if bert is None else (own, self.bert_attention.remember(bert))

    def step(self, x: Tensor, past: KeysValues, memories: tuple[KeysValues, ...]) -> tuple[Tensor, KeysValues]:
        """One more position x (B, 1, D) behind the ones in `past` -> its output (B, 1, D), and the past with it."""
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


class Encoder(nn.Module):
    """Embeds a history and reads it with a stack of encoder layers."""

    def __init__(
        self,
        embed: HistoryEmbedding,
        d_model: int,
        *,
        n_heads: int,
        n_layers: int,
        d_ff: int,
        dropout: float,
        d_bert: int | None = None,
        drop_net: float = 0.0,
    ) -> None:
        super().__init__()
        if drop_net and d_bert is None:
            raise ValueError(f"drop_net is {drop_net}, but without d_bert there is nothing to drop")
        self.embed = embed
        self.d_bert = d_bert
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, n_heads, d_ff, dropout=dropout, d_bert=d_bert, drop_net=drop_net)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, history: History, bert: Memory | None = None) -> Memory:
        """History and BERT's states -> states (B, S, D), shown where there are plays.

        Raises:
            ValueError: BERT's states are missing, or there is no attention to them.
        """
        if (bert is None) != (self.d_bert is None):
            given = "no states of BERT are" if bert is None else "states of BERT are"
            raise ValueError(f"{given} given to a Transformer built with d_bert {self.d_bert}")
        mask = real(history.tracks)
        x = self.dropout(self.embed(history))
        for layer in self.layers:
            x = layer(x, mask, bert)
        return Memory(self.norm(x), mask)


class DecoderState(NamedTuple):
    """What a decoder keeps between two steps; all tensors have the rows first."""

    past: tuple[KeysValues, ...]
    """Of each layer's self-attention, for the steps so far."""
    memories: tuple[tuple[KeysValues, ...], ...]
    """Of each layer's attention to the encoder, and to BERT if there is one; computed once."""


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
        d_bert: int | None = None,
        drop_net: float = 0.0,
    ) -> None:
        super().__init__()
        self.tracks = tracks
        self.positions = nn.Parameter(torch.randn(target_size, d_model) * 0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, n_heads, d_ff, dropout=dropout, d_bert=d_bert, drop_net=drop_net)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, tracks: Tensor, mask: Tensor, memory: Memory, bert: Memory | None = None) -> Tensor:
        """Tracks (B, T), mask (B or 1, T, T), the encoder's memory, BERT's states -> states (B, T, D)."""
        x = self.dropout(self.tracks(tracks) + self.positions[: tracks.shape[1]])
        for layer in self.layers:
            x = layer(x, mask, memory, bert)
        return self.norm(x)

    def begin(self, memory: Memory, bert: Memory | None = None) -> DecoderState:
        """The encoder's memory and BERT's states -> the state before the first step."""
        memories = tuple(layer.remember(memory, bert) for layer in self._layers())
        past = tuple(KeysValues(*(tensor[:, :, :0] for tensor in encoder)) for encoder, *_ in memories)
        return DecoderState(past, memories)

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """One more track each (B,) -> states (B, D) as `forward` has them at this step, and the state behind it.

        Raises:
            ValueError: there were `target_size` tracks before.
        """
        n_past = state.past[0].keys.shape[2]
        if n_past == len(self.positions):
            raise ValueError(f"the model was built to continue sessions by {n_past} tracks (target_size)")
        x = self.dropout(self.tracks(tracks) + self.positions[n_past])[:, None]  # (B, 1, D)
        past = []
        for layer, own, memories in zip(self._layers(), *state, strict=True):
            x, own = layer.step(x, own, memories)
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
        n_own, n_shared: which tracks share rows of the track table, and how many, see `TrackEmbedding`.
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
        history_size, target_size: S and T.
        d_bert, drop_net: for layers that look at BERT's states, too, see `EncoderLayer`.
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
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
        history_size: int = 10,
        target_size: int = 10,
        d_bert: int | None = None,
        drop_net: float = 0.0,
    ) -> None:
        super().__init__()
        self.causal = causal
        tracks = TrackEmbedding(n_ids, d_model, features, n_own=n_own, n_shared=n_shared, sparse=sparse)
        embed = HistoryEmbedding(
            tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        sizes: dict[str, Any] = {"n_heads": n_heads, "n_layers": n_layers, "d_ff": d_ff, "dropout": dropout}
        sizes |= {"d_bert": d_bert, "drop_net": drop_net}
        self.encoder = Encoder(embed, d_model, **sizes)
        self.decoder = Decoder(tracks, d_model, target_size=target_size, **sizes)
        self.output = nn.Linear(d_model, 1)

    def forward(self, history: History, target_tracks: Tensor, *, bert: Memory | None = None) -> Tensor:
        """History, target tracks (B, T) and, with `d_bert`, BERT's states -> logits (B, T) of a skip."""
        # Targets are padded on the right, so the causal mask hides the padding from every real step.
        mask = causal(target_tracks.shape[1], target_tracks.device) if self.causal else real(target_tracks)
        states = self.decoder(target_tracks, mask, self.encoder(history, bert), bert)  # (B, T, D)
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
        d_bert, drop_net: for layers that look at BERT's states, too, see `EncoderLayer`.
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
        d_bert: int | None = None,
        drop_net: float = 0.0,
    ) -> None:
        super().__init__()
        self.start_token = start
        tracks = TrackEmbedding(n_ids, d_model, features, sparse=sparse)
        embed = HistoryEmbedding(
            tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        sizes: dict[str, Any] = {"n_heads": n_heads, "n_layers": n_layers, "d_ff": d_ff, "dropout": dropout}
        sizes |= {"d_bert": d_bert, "drop_net": drop_net}
        self.encoder = Encoder(embed, d_model, **sizes)
        self.decoder = Decoder(tracks, d_model, target_size=target_size, **sizes)
        self.head = TrackHead(n_ids, d_model, tie_to=tracks if tie_weights else None, sparse=sparse)

    def forward(self, history: History, previous: Tensor, *, bert: Memory | None = None) -> Tensor:
        """History, previous tracks (B, T) and, with `d_bert`, BERT's states of the history -> states (B, T, D).

        Each is blind to the tracks after it.
        """
        mask = causal(previous.shape[1], previous.device)
        return self.decoder(previous, mask, self.encoder(history, bert), bert)

    def begin(self, history: History, *, bert: Memory | None = None) -> DecoderState:
        """Read a history once, for any number of steps."""
        return self.decoder.begin(self.encoder(history, bert), bert)

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
