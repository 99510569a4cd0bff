"""The original's two Transformers, as its paper intends them: `SeqTransformer` and `SkipTransformer`.

An encoder reads the history, a decoder reads the targets (Vaswani et al. 2017). Deviations from the original, numbered:
    1, 2  embeddings: see `model/embeddings.py`
    3     encoder and decoder have a final norm each (the original shares one object)
    4     padding is masked: sessions may have any length
    5     the decoder has positions of its own (the original uses one table for both halves)
    6     the output of SeqTransformer can be tied to the track table, and never scores the special ids
With a `BertBranch`, each layer also attends to BERT's states: `model/bert_augmented.py` says how, and provides them.
Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from model.attention import BertBranch, DecoderLayer, EncoderLayer, KeysValues, Memory, causal, real
from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, PastEmbedding, TrackEmbedding, TrackHead, read_past
from model.names import SkipEncoding
from utils.data.batch import History, Past
from utils.data.vocab import BOS


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
        branch: BertBranch | None = None,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.d_bert = None if branch is None else branch.d_bert
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, n_heads, d_ff, dropout=dropout, branch=branch) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, history: History, bert: Memory | None = None, *, added: Tensor | None = None) -> Memory:
        """History, BERT's states, and vectors to add to the plays (B, S, D) -> states (B, S, D), which attention sees
        only at plays.

        Raises:
            ValueError: BERT's states are missing, or are given to layers without attention to them.
        """
        if (bert is None) != (self.d_bert is None):
            given = "no states of BERT are" if bert is None else "states of BERT are"
            raise ValueError(f"{given} given to a Transformer built with d_bert {self.d_bert}")
        mask = real(history.tracks)
        x = self.dropout(self.embed(history, added))
        for layer in self.layers:
            x = layer(x, mask, bert)
        return Memory(self.norm(x), mask)


class DecoderState(NamedTuple):
    """What a decoder keeps between two steps; all tensors have the rows first."""

    past: tuple[KeysValues, ...]
    """Each layer's self-attention: the steps so far."""
    memories: tuple[tuple[KeysValues, ...], ...]
    """Each layer's attention to the encoder, and to BERT if there is one; computed once."""


class Decoder(nn.Module):
    """Reads target tracks and attends to an encoder's memory."""

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
        branch: BertBranch | None = None,
    ) -> None:
        super().__init__()
        self.tracks = tracks
        self.positions = nn.Parameter(torch.randn(target_size, d_model) * 0.02)
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, n_heads, d_ff, dropout=dropout, branch=branch) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tracks: Tensor,
        mask: Tensor,
        memory: Memory,
        bert: Memory | None = None,
        *,
        added: Tensor | None = None,
    ) -> Tensor:
        """Tracks (B, T), mask (B or 1, T, T), the encoder's memory, BERT's states, and vectors to add to the tracks
        (B, T, D) -> states (B, T, D)."""
        x = self.tracks(tracks) + self.positions[: tracks.shape[1]]
        x = self.dropout(x if added is None else x + added)
        for layer in self.layers:
            x = layer(x, mask, memory, bert)
        return self.norm(x)

    def begin(self, memory: Memory, bert: Memory | None = None) -> DecoderState:
        """The encoder's memory and BERT's states -> the state before the first step."""
        memories = tuple(layer.remember(memory, bert) for layer in self._layers())
        past = tuple(KeysValues(*(tensor[:, :, :0] for tensor in encoder)) for encoder, *_ in memories)
        return DecoderState(past, memories)

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """One more track for each session (B,) -> states (B, D) as in `forward` at this step, and the state after it.

        Raises:
            ValueError: `target_size` tracks have been read already.
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


class SkipTransformer(nn.Module):
    """Which of the given target tracks will be skipped?

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, n_heads, n_layers, d_ff, dropout: sizes of encoder and decoder alike.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        causal: whether step t sees only the target tracks up to t (the original), or all of them.
        n_own, n_shared: which tracks share rows of the track table, and how many rows, see `TrackEmbedding`.
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
        history_size, target_size: S and T.
        branch: makes layers attend to BERT's states as well, see `EncoderLayer`.
        use_ids: tracks have vectors of their own; otherwise only features and past tell them apart.
        n_past, n_details: P and K, if the model is told of the plays' past, see `PastEmbedding`.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int,
        n_heads: int,
        n_layers: int,
        d_ff: int,
        dropout: float,
        skip_encoding: SkipEncoding,
        use_log: bool,
        causal: bool,
        use_ids: bool,
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
        history_size: int,
        target_size: int,
        branch: BertBranch | None = None,
        n_past: int = 0,
        n_details: int = 0,
    ) -> None:
        super().__init__()
        self.causal = causal
        tracks = TrackEmbedding(n_ids, d_model, features, by_id=use_ids, n_own=n_own, n_shared=n_shared, sparse=sparse)
        embed = HistoryEmbedding(
            tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        sizes: dict[str, Any] = {"n_heads": n_heads, "n_layers": n_layers, "d_ff": d_ff, "dropout": dropout}
        sizes |= {"branch": branch}
        self.encoder = Encoder(embed, d_model, **sizes)
        self.decoder = Decoder(tracks, d_model, target_size=target_size, **sizes)
        self.output = nn.Linear(d_model, 1)
        self.past = PastEmbedding.if_any(d_model, n_past=n_past, n_details=n_details)

    def forward(
        self, history: History, target_tracks: Tensor, past: Past | None = None, *, bert: Memory | None = None
    ) -> Tensor:
        """History, target tracks (B, T), the plays' past and, with a branch, BERT's states -> logits (B, T) of a skip.

        Raises:
            ValueError: a past is missing, or is given to a model without one.
        """
        # Targets are padded on the right, so the causal mask hides the padding from every real step.
        mask = causal(target_tracks.shape[1], target_tracks.device) if self.causal else real(target_tracks)
        known = read_past(self.past, past, history)
        memory = self.encoder(history, bert, added=known.history)
        states = self.decoder(target_tracks, mask, memory, bert, added=known.targets)  # (B, T, D)
        return self.output(states)[..., 0] + known.logits


class SeqTransformer(nn.Module):
    """Which tracks come next?

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, n_heads, n_layers, d_ff, dropout: sizes of encoder and decoder alike.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        start: what stands before the first prediction: the last track of the history (the original), or the BOS token.
        tie_weights: use the track table as output weights.
        sparse: gradients of the track tables hold only the rows of a batch: for losses that look at some tracks only.
        history_size, target_size: S and T.
        branch: makes layers attend to BERT's states as well, see `EncoderLayer`.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int,
        n_heads: int,
        n_layers: int,
        d_ff: int,
        dropout: float,
        skip_encoding: SkipEncoding,
        use_log: bool,
        start: Literal["last", "bos"],
        tie_weights: bool,
        sparse: bool = False,
        history_size: int,
        target_size: int,
        branch: BertBranch | None = None,
    ) -> None:
        super().__init__()
        self.start_token = start
        tracks = TrackEmbedding(n_ids, d_model, features, sparse=sparse)
        embed = HistoryEmbedding(
            tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        sizes: dict[str, Any] = {"n_heads": n_heads, "n_layers": n_layers, "d_ff": d_ff, "dropout": dropout}
        sizes |= {"branch": branch}
        self.encoder = Encoder(embed, d_model, **sizes)
        self.decoder = Decoder(tracks, d_model, target_size=target_size, **sizes)
        self.head = TrackHead(n_ids, d_model, tie_to=tracks if tie_weights else None, sparse=sparse)

    def forward(self, history: History, previous: Tensor, *, bert: Memory | None = None) -> Tensor:
        """History, previous tracks (B, T) and, with a branch, BERT's states of the history -> states (B, T, D).

        Each is blind to the tracks after it.
        """
        mask = causal(previous.shape[1], previous.device)
        return self.decoder(previous, mask, self.encoder(history, bert), bert)

    def begin(self, history: History, *, bert: Memory | None = None) -> DecoderState:
        """Read a history once, for any number of steps."""
        return self.decoder.begin(self.encoder(history, bert), bert)

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """The next tracks (B,), the start token first -> states (B, D) as in `forward`, and the state after them."""
        return self.decoder.step(state, tracks)

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores of all ids (..., V), minus infinity at the special ones."""
        return self.head(states)

    def start(self, history: History) -> Tensor:
        """The token (B, 1) before the first prediction."""
        last = history.tracks[:, -1:]
        return last if self.start_token == "last" else torch.full_like(last, BOS)

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Targets (B, T) shifted right, after the start token."""
        return torch.cat([self.start(history), targets[:, :-1]], dim=1)
