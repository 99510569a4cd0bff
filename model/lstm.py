"""The original's recurrent encoder-decoders, as its paper intends them: `LSTMForSkips` and `LSTMForContinuation`.

An encoder reads the history, a decoder goes on from its last state (Sutskever et al. 2014). Deviations from the
original, numbered:
    1  the decoder starts from what is known: the skip of the last play, the last track, or BOS (the original: the
       answer)
    2  to predict skips, the decoder reads the target tracks, with their features, and the label of the step before
    3  the decoder is fed the true labels in training (teacher forcing), and its own guesses in prediction
    4  to continue a session, the decoder reads the tracks before each target (the original: the target itself)
    5  a bidirectional encoder hands on both final states, projected (the original: the backward one)
    6  all parameters get a usual initialisation, and track vectors from elsewhere are loaded after it
    7  the head's input has the width of the track table, so that the two can be tied; dropout comes before it, too
    8  padding is skipped: sessions may have any length, and the last state is that of the last play
Embeddings are those of `model/embeddings.py`.
Shapes: see the legend in `utils/data/batch.py`; N layers, D' hidden units.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, PastEmbedding, TrackEmbedding, TrackHead, read_past
from model.names import Cell, SkipEncoding
from model.recurrent import Decoder, DecoderState, Encoder, LookAhead
from utils.data.batch import History, Past, is_skipped
from utils.data.vocab import BOS

NO_LABEL = 2
"""Code of a previous label that is unknown, besides 0 (not skipped) and 1 (skipped)."""


class LSTMForSkips(nn.Module):
    """Which of the given target tracks will be skipped?

    At each step the decoder reads a target track and, with `previous_label`, whether the track before it was skipped:
    the true label if given, otherwise the model's own hard guess. For the first target, the track before it is the
    history's last play; its label is "unknown" if skips are hidden (`skip_encoding` none).

    Args:
        n_ids: V.
        features: float (V, F).
        d_model: D, width of the embeddings.
        d_hidden: D', units of a layer.
        n_layers: N, of the encoder and of the decoder each.
        cell: LSTM or GRU.
        bidirectional: the encoder reads the history from both ends.
        attention: the decoder looks at all of the encoder's states, see `LuongAttention`.
        dropout: rate on embeddings, between layers and on the output.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        causal: whether step t sees only the target tracks up to t (the original), or all of them, see `LookAhead`.
        previous_label: feed the label of the step before to the decoder.
        scheduled_sampling: in training, feed the model's own guess instead of a given label with this probability
            (Bengio et al. 2015; p is constant here). Sequences are then decoded step by step.
        n_own, n_shared: which tracks share rows of the track table, and how many rows, see `TrackEmbedding`.
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
        history_size: S.
        use_ids: tracks have vectors of their own; otherwise only features and past tell them apart.
        n_past, n_details: P and K, if the model is told of the plays' past, see `PastEmbedding`.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int,
        d_hidden: int,
        n_layers: int,
        cell: Cell,
        bidirectional: bool,
        attention: bool,
        dropout: float,
        skip_encoding: SkipEncoding,
        use_log: bool,
        causal: bool,
        previous_label: bool,
        scheduled_sampling: float,
        use_ids: bool,
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
        history_size: int,
        n_past: int = 0,
        n_details: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling is {scheduled_sampling}; it must be from 0 to 1")
        if scheduled_sampling and not previous_label:
            raise ValueError("scheduled_sampling needs previous_label: there is nothing to guess")
        self.knows_skips = skip_encoding != "none"
        self.scheduled_sampling = scheduled_sampling
        self.tracks = TrackEmbedding(
            n_ids, d_model, features, by_id=use_ids, n_own=n_own, n_shared=n_shared, sparse=sparse
        )
        embed = HistoryEmbedding(
            self.tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        sizes: dict[str, Any] = {"cell": cell, "d_hidden": d_hidden, "n_layers": n_layers, "dropout": dropout}
        self.encoder = Encoder(embed, d_model, bidirectional=bidirectional, **sizes)
        self.decoder = Decoder(d_model, d_memory=self.encoder.d_output, attention=attention, **sizes)
        self.label = nn.Embedding(3, d_model) if previous_label else None
        self.ahead = None if causal else LookAhead(cell, d_model, d_hidden)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(d_hidden, 1)
        self.past = PastEmbedding.if_any(d_model, n_past=n_past, n_details=n_details)

    def forward(
        self, history: History, target_tracks: Tensor, past: Past | None = None, *, labels: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T) of a skip.

        Args:
            history: the plays before.
            target_tracks: int64 (B, T).
            past: of the plays, for a model with n_past or n_details.
            labels: int64 (B, T), 1 skipped, 0 not, -1 unknown. Training gives them: each is fed at the step after.
                Prediction does not: the model then feeds its own guesses.

        Raises:
            ValueError: labels are given to a model without `previous_label`; a past is missing, or is given to a model
                without one.
        """
        known = read_past(self.past, past, history)
        state = self.decoder.begin(*self.encoder(history, known.history))
        x = self.tracks(target_tracks)  # (B, T, D)
        x = self.dropout(x if known.targets is None else x + known.targets)
        if self.ahead is not None:
            x = x + self.dropout(self.ahead(x, target_tracks))
        if self.label is None:
            if labels is not None:
                raise ValueError("labels are given to a model without previous_label")
            return self.output(self.decoder(x, state)[0])[..., 0] + known.logits
        first = self.label_before(history)  # (B,)
        if labels is None:
            return self._step_by_step(x, state, self.label, first, None, known.logits)
        true = labels.masked_fill(labels < 0, NO_LABEL)
        if self.training and self.scheduled_sampling:
            return self._step_by_step(x, state, self.label, first, true, known.logits)
        previous = torch.cat([first[:, None], true[:, :-1]], dim=1)
        return self.output(self.decoder(x + self.label(previous), state)[0])[..., 0] + known.logits

    def label_before(self, history: History) -> Tensor:
        """The label (B,) before the first target: that of the last play, or unknown."""
        last = history.skips[:, -1]
        known = is_skipped(last).long().masked_fill(last == 0, NO_LABEL)
        return known if self.knows_skips else torch.full_like(last, NO_LABEL)

    def _step_by_step(
        self,
        x: Tensor,
        state: DecoderState,
        label: nn.Embedding,
        first: Tensor,
        true: Tensor | None,
        added: Tensor | float,
    ) -> Tensor:
        """Feed guesses or, with `true` labels (B, T), a mix of labels and guesses: logits (B, T), with what is `added`
        to them (B, T)."""
        n_steps = x.shape[1]
        each = added.unbind(1) if isinstance(added, Tensor) else [added] * n_steps
        previous, logits = first, []
        for step in range(n_steps):
            states, state = self.decoder((x[:, step] + label(previous))[:, None], state)
            logit = self.output(states)[:, 0, 0] + each[step]  # (B,)
            logits.append(logit)
            previous = (logit >= 0).long()
            if true is not None:
                guessed = torch.rand(len(x), device=x.device) < self.scheduled_sampling
                previous = torch.where(guessed, previous, true[:, step])
        return torch.stack(logits, dim=1)


class LSTMForContinuation(nn.Module):
    """Which tracks come next? The decoder reads the track before each target.

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, d_hidden, n_layers, cell, bidirectional, attention, dropout: as in `LSTMForSkips`.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        start: what stands before the first prediction: the last track of the history, or the BOS token.
        tie_weights: use the track table as output weights.
        n_own, n_shared: which tracks share rows of the track table, and how many rows, see `TrackEmbedding`.
        sparse: gradients of the track tables hold only the rows of a batch: for losses that look at some tracks only.
        history_size: S.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int,
        d_hidden: int,
        n_layers: int,
        cell: Cell,
        bidirectional: bool,
        attention: bool,
        dropout: float,
        skip_encoding: SkipEncoding,
        use_log: bool,
        start: Literal["last", "bos"],
        tie_weights: bool,
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
        history_size: int,
    ) -> None:
        super().__init__()
        self.start_token = start
        self.tracks = TrackEmbedding(n_ids, d_model, features, n_own=n_own, n_shared=n_shared, sparse=sparse)
        embed = HistoryEmbedding(
            self.tracks, d_model, history_size=history_size, skip_encoding=skip_encoding, use_log=use_log
        )
        sizes: dict[str, Any] = {"cell": cell, "d_hidden": d_hidden, "n_layers": n_layers, "dropout": dropout}
        self.encoder = Encoder(embed, d_model, bidirectional=bidirectional, **sizes)
        self.decoder = Decoder(d_model, d_memory=self.encoder.d_output, attention=attention, **sizes)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(d_hidden, d_model)
        self.head = TrackHead(n_ids, d_model, tie_to=self.tracks if tie_weights else None, sparse=sparse)

    def forward(self, history: History, previous: Tensor) -> Tensor:
        """History and previous tracks (B, T) -> states (B, T, D); each is blind to the tracks after it."""
        return self._read(self.begin(history), previous)[0]

    def begin(self, history: History) -> DecoderState:
        """Read a history once, for any number of steps."""
        return self.decoder.begin(*self.encoder(history))

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """The next tracks (B,), the start token first -> states (B, D) as in `forward`, and the state after them."""
        states, state = self._read(state, tracks[:, None])
        return states[:, 0], state

    def _read(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """The next tracks (B, T) -> states (B, T, D), and the state after them."""
        states, state = self.decoder(self.dropout(self.tracks(tracks)), state)  # (B, T, D')
        return self.output(states), state

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
