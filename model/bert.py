"""BERT on listening sessions (Devlin et al. 2019; for sequences of items Sun et al. 2019, "BERT4Rec").

`BertTransformer` reads a session in both directions. Three small models put a head on it: one finds hidden tracks
(pre-training), one continues a session, one predicts its skips. Deviations from the original, numbered:
    1  padding is masked: sessions may have any length
    2  positions count from the first play shown (in a long session a later one), wherever the padding is
    3  to continue a session, masks follow the history (the original's code shifts the labels instead, and so leaks)
    4  skips enter as a vector added to each play of the history; those of the targets are unknown
Shapes: see the legend in `utils/data/batch.py`; M plays of a session, history and targets together.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model.attention import EncoderLayer, real
from model.dropout import Dropout
from model.embeddings import LogEmbedding, PastEmbedding, TrackEmbedding, TrackHead, read_past
from utils.data.batch import N_SKIP_STATES, History, Past
from utils.data.vocab import MASK


class BertTransformer(nn.Module):
    """Reads whole sessions with a stack of encoder layers.

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, n_heads, n_layers, d_ff, dropout: sizes.
        max_length: the longest session.
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
        use_ids: tracks have vectors of their own; otherwise only features and what is added tell them apart.
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
        max_length: int,
        use_ids: bool,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.frozen = False
        self.max_length = max_length
        self.tracks = TrackEmbedding(n_ids, d_model, features, by_id=use_ids, sparse=sparse)
        self.positions = nn.Parameter(torch.randn(max_length, d_model) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(d_model, n_heads, d_ff, dropout=dropout) for _ in range(n_layers))
        self.dropout = Dropout(dropout)

    def freeze(self) -> Self:
        """Fix the model from now on: no gradients, and no dropout even after `train()`. Returns itself."""
        self.requires_grad_(False)
        self.frozen = True
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode (unless the model is frozen) or to evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, tracks: Tensor, added: Tensor | None = None) -> Tensor:
        """Sessions (B, M), padded on any side, and vectors to add to the plays (B, M, D) -> states (B, M, D)."""
        mask = real(tracks)  # (B, 1, M)
        position = (mask[:, 0].cumsum(1) - 1).clamp(min=0)  # (B, M)
        x = self.tracks(tracks) + self.positions[position]  # (B, M, D)
        x = self.dropout(x if added is None else x + added)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class BertForMaskedTracks(nn.Module):
    """Which tracks are behind the masks? For pre-training.

    Args:
        bert: reads the sessions.
        tie_weights: use BERT's track table as output weights.
        sparse: gradients of the output table hold only the rows that a loss looked up.
    """

    def __init__(self, bert: BertTransformer, *, tie_weights: bool, sparse: bool = False) -> None:
        super().__init__()
        self.bert = bert
        self.head = _head(bert, tie_weights=tie_weights, sparse=sparse)

    def forward(self, tracks: Tensor) -> Tensor:
        """Sessions (B, M) with some tracks masked -> states (B, M, D) for `head`."""
        return self.bert(tracks)


class BertForContinuation(nn.Module):
    """Which tracks come next? Masks follow the history, and the model fills in each.

    Args:
        bert, tie_weights, sparse: as in `BertForMaskedTracks`.
        target_size: T, slots after the history: always T, so that all inputs look alike, however many are asked for.
    """

    def __init__(self, bert: BertTransformer, *, target_size: int, tie_weights: bool, sparse: bool = False) -> None:
        super().__init__()
        self.bert = bert
        self.target_size = target_size
        self.head = _head(bert, tie_weights=tie_weights, sparse=sparse)

    def forward(self, history: History, slots: Tensor) -> Tensor:
        """History and slots (B, up to T), tracks or `MASK` -> states (B, up to T, D) of the slots.

        Raises:
            ValueError: there are more than T slots.
        """
        size = slots.shape[1]
        if size > self.target_size:
            raise ValueError(f"there are {size} slots, but target_size is {self.target_size}")
        slots = pad(slots, (0, self.target_size - size), value=MASK)
        return self.bert(torch.cat([history.tracks, slots], dim=1))[:, history.tracks.shape[1] :][:, :size]

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores of all ids (..., V), minus infinity at the special ones."""
        return self.head(states)

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Masks in place of all targets (B, T): the model predicts all at once and sees none."""
        return torch.full_like(targets, MASK)


class BertForSkips(nn.Module):
    """Which of the given target tracks will be skipped?

    Args:
        bert: reads the sessions.
        use_log: add the history's log columns.
        n_past, n_details: P and K, if the model is told of the plays' past, see `PastEmbedding`.
    """

    def __init__(self, bert: BertTransformer, *, use_log: bool, n_past: int = 0, n_details: int = 0) -> None:
        super().__init__()
        self.bert = bert
        self.skip_state = nn.Embedding(N_SKIP_STATES, bert.d_model)
        nn.init.normal_(self.skip_state.weight, std=0.02)
        self.log = LogEmbedding(bert.d_model) if use_log else None
        self.output = nn.Linear(bert.d_model, 1)
        self.past = PastEmbedding.if_any(bert.d_model, n_past=n_past, n_details=n_details)

    def forward(self, history: History, target_tracks: Tensor, past: Past | None = None) -> Tensor:
        """History, target tracks (B, T) and the plays' past -> logits (B, T) of a skip.

        Raises:
            ValueError: a past is missing, or is given to a model without one.
        """
        known = read_past(self.past, past, history)
        n_targets = target_tracks.shape[1]
        added = self.skip_state(pad(history.skips, (0, n_targets)))  # (B, S + T, D); state 0: unknown
        if self.log is not None:
            added = added + pad(self.log(history.log), (0, 0, 0, n_targets))
        if known.history is not None:
            added = added + pad(known.history, (0, 0, 0, n_targets))
        if known.targets is not None:
            added = added + pad(known.targets, (0, 0, history.tracks.shape[1], 0))
        states = self.bert(torch.cat([history.tracks, target_tracks], dim=1), added)
        return self.output(states[:, history.tracks.shape[1] :])[..., 0] + known.logits


def _head(bert: BertTransformer, *, tie_weights: bool, sparse: bool) -> TrackHead:
    tie_to = bert.tracks if tie_weights else None
    return TrackHead(len(bert.tracks.features), bert.d_model, tie_to=tie_to, sparse=sparse)
