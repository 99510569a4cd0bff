"""The seed's recurrent encoder-decoders, as its paper means them: `LSTMForSkips` and `LSTMForContinuation`.

An encoder reads the history, a decoder goes on from its last state (Sutskever et al. 2014). Deviations from the seed,
numbered:
    1  the decoder starts from what is known: the skip of the last play, the last track, or BOS (the seed: the answer)
    2  to predict skips, the decoder reads the target tracks, with their features, and the label of the step before
    3  labels are fed as they are known in training (teacher forcing), and as the model guesses them in prediction
    4  to continue a session, the decoder reads the tracks before each target (the seed: the target itself)
    5  of a bidirectional encoder both final states are handed on, projected (the seed: the backward one)
    6  all parameters have a usual start, and track tables from elsewhere are loaded after it
    7  what the head sees has the width of the track table, so that the two can be tied; dropout is before it, too
    8  padding is skipped: sessions have any length, and the last state is that of the last play
Embeddings are those of `model/embeddings.py`. Shapes: see the legend in `utils/batch.py`; N layers, D' hidden units.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, SkipEncoding, TrackEmbedding, TrackHead, plays_first
from model.transformer import Memory
from utils.batch import History, is_skipped
from utils.vocab import BOS, PAD

Cell = Literal["lstm", "gru"]
Hidden = tuple[Tensor, ...]
"""What a recurrent network keeps between two steps: hidden state and, of an LSTM, cell state, each (B, N, D')."""
UNKNOWN = 2
"""A previous label that nobody knows, after 0 (not skipped) and 1 (skipped)."""


class Recurrent(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho et al. 2014) that keeps its state with the rows first.

    Recurrent weights start orthogonal (Saxe et al. 2014), for each gate; the forget gates of an LSTM open, with a bias
    of 1 (Jozefowicz et al. 2015).

    Args:
        cell: which.
        d_input: width of the input.
        d_hidden: D', units of each layer and direction.
        n_layers: N.
        bidirectional: read from both ends; output and states then have 2 D' columns.
        dropout: between two layers.
    """

    def __init__(
        self,
        cell: Cell,
        d_input: int,
        d_hidden: int,
        *,
        n_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        between = dropout if n_layers > 1 else 0.0
        self.rnn = kind(d_input, d_hidden, n_layers, batch_first=True, bidirectional=bidirectional, dropout=between)
        self.n_directions = 2 if bidirectional else 1
        for name, parameter in self.rnn.named_parameters():
            for gate, weights in enumerate(parameter.detach().split(d_hidden)):  # (D', D or D'), or (D',) of a bias
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(weights)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(weights)
                else:  # the forget gate is the second of an LSTM, and has two biases
                    nn.init.constant_(weights, float(cell == "lstm" and gate == 1 and name.startswith("bias_ih")))

    def forward(self, x: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Go on from a state: x (B, T, D) -> output (B, T, D') and the state behind it."""
        # Under autocast a projected state is bfloat16, and embeddings are float32.
        first = tuple(part.transpose(0, 1).contiguous().to(x.dtype) for part in hidden)
        output, last = self.rnn(x, first if len(first) > 1 else first[0])
        return output, self._rows_first(last)

    def read(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Hidden]:
        """Read the first `lengths` (B,), at least 1, of x (B, T, D): output (B, T, D'), 0 behind them, and last state.

        The last state is that of each row's own last input; of the backward direction, that of its first.
        """
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, last = self.rnn(packed)
        return pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0], self._rows_first(last)

    def _rows_first(self, last: Tensor | tuple[Tensor, Tensor]) -> Hidden:
        """torch's states (N * directions, B, D') -> (B, N, directions * D')."""
        parts = (last,) if isinstance(last, Tensor) else last
        return tuple(part.unflatten(0, (-1, self.n_directions)).permute(2, 0, 1, 3).flatten(2) for part in parts)


class LuongAttention(nn.Module):
    """Global attention with the score "general" (Luong et al. 2015, equations 5, 7 and 8), without input feeding.

    As nothing of it is fed back, a whole sequence can be decoded first and attend then.

    Args:
        d_hidden: D', of the decoder.
        d_memory: D'', width of the encoder's states.
    """

    def __init__(self, d_hidden: int, d_memory: int) -> None:
        super().__init__()
        self.general = nn.Linear(d_hidden, d_memory, bias=False)
        self.combine = nn.Linear(d_memory + d_hidden, d_hidden, bias=False)

    def forward(self, states: Tensor, memory: Memory) -> Tensor:
        """The decoder's states (B, T, D') and the encoder's -> states (B, T, D') that know both."""
        context = self.weights(states, memory) @ memory.states  # (B, T, D'')
        return self.combine(torch.cat([context, states], dim=2)).tanh()

    def weights(self, states: Tensor, memory: Memory) -> Tensor:
        """How much each step looks at each position of the memory: (B, T, M), 0 where it is hidden."""
        scores = self.general(states) @ memory.states.transpose(1, 2)
        return scores.float().masked_fill(~memory.mask, -torch.inf).softmax(2).to(scores.dtype)


class DecoderState(NamedTuple):
    """What a decoder keeps between two steps; all tensors have the rows first."""

    hidden: Hidden
    memory: tuple[Memory, ...]
    """The encoder's states, once if there is attention to them."""


class Encoder(nn.Module):
    """Embeds a history and reads it.

    Args:
        embed: of a history.
        d_model: D.
        cell, d_hidden, n_layers, bidirectional, dropout: see `Recurrent`; dropout is of the embeddings, too.
    """

    def __init__(
        self,
        embed: HistoryEmbedding,
        d_model: int,
        *,
        cell: Cell,
        d_hidden: int,
        n_layers: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.rnn = Recurrent(cell, d_model, d_hidden, n_layers=n_layers, bidirectional=bidirectional, dropout=dropout)
        self.d_output = d_hidden * self.rnn.n_directions
        self.dropout = Dropout(dropout)
        # Both final states become one, of the decoder's width: apart for hidden and cell state.
        n_states = 2 if cell == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(2 * d_hidden, d_hidden) for _ in range(n_states if bidirectional else 0))

    def forward(self, history: History) -> tuple[Memory, Hidden]:
        """History -> its states (B, S, D' or 2 D'), padded on the right, and the state to go on from.

        No loader makes an empty history; one is read as a single play of padding.
        """
        size = history.tracks.shape[1]
        n_pad = (history.tracks == PAD).sum(1).clamp(max=size - 1)
        x = plays_first(self.dropout(self.embed(history)), n_pad)  # (B, S, D)
        lengths = size - n_pad
        states, last = self.rnn.read(x, lengths)
        shown = torch.arange(size, device=n_pad.device) < lengths[:, None]  # (B, S)
        if self.bridges:
            last = tuple(bridge(part) for bridge, part in zip(self.bridges, last, strict=True))
        return Memory(states, shown[:, None]), last


class Decoder(nn.Module):
    """Goes on from an encoder's last state, and looks back at all its states if there is attention.

    Args:
        d_model: D, width of its input.
        d_memory: width of the encoder's states.
        cell, d_hidden, n_layers, dropout: see `Recurrent`; dropout is of the output, too.
        attention: look at the encoder's states.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_memory: int,
        cell: Cell,
        d_hidden: int,
        n_layers: int,
        attention: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.rnn = Recurrent(cell, d_model, d_hidden, n_layers=n_layers, dropout=dropout)
        self.attention = LuongAttention(d_hidden, d_memory) if attention else None
        self.dropout = Dropout(dropout)

    def begin(self, memory: Memory, hidden: Hidden) -> DecoderState:
        """What an encoder says -> the state before the first step."""
        return DecoderState(hidden, () if self.attention is None else (memory,))

    def forward(self, x: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Inputs x (B, T, D) of the next steps -> their outputs (B, T, D'), and the state behind them."""
        states, hidden = self.rnn(x, state.hidden)
        if self.attention is not None:
            states = self.attention(states, *state.memory)
        return self.dropout(states), state._replace(hidden=hidden)


class LookAhead(nn.Module):
    """Tells each step of all target tracks, which are known: reads them from both ends, half of the units each.

    Args:
        cell, d_hidden: see `Recurrent`.
        d_model: D.
    """

    def __init__(self, cell: Cell, d_model: int, d_hidden: int) -> None:
        super().__init__()
        half = -(-d_hidden // 2)
        self.rnn = Recurrent(cell, d_model, half, bidirectional=True)
        self.output = nn.Linear(2 * half, d_model)

    def forward(self, x: Tensor, target_tracks: Tensor) -> Tensor:
        """Embeddings (B, T, D) of target tracks (B, T), padded on the right -> what there is around each (B, T, D)."""
        lengths = (target_tracks != PAD).sum(1).clamp(min=1)
        return self.output(self.rnn.read(x, lengths)[0])


class LSTMForSkips(nn.Module):
    """Which of the known tracks of the second half will be skipped?

    At each step the decoder reads a target track and, with `previous_label`, whether the track before it was skipped:
    the truth where it is given, the model's own hard guess where not. Before the first target stands the last play of
    the history, or "unknown" if its skips are hidden (`skip_encoding` none).

    Args:
        n_ids: V.
        features: float (V, F).
        d_model: D, width of the embeddings.
        d_hidden: D', units of a layer.
        n_layers: N, of the encoder, and of the decoder.
        cell: LSTM or GRU.
        bidirectional: the encoder reads the history from both ends.
        attention: the decoder looks at all of the encoder's states, see `LuongAttention`.
        dropout: of embeddings, between layers and of the output.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        causal: whether step t sees only the target tracks up to t (the seed), or all of them, see `LookAhead`.
        previous_label: feed the label of the step before.
        scheduled_sampling: in training, feed the model's own guess instead of a given label with this probability
            (Bengio et al. 2015; p is constant here). Sequences are then decoded step by step.
        n_own, n_shared: which tracks share rows of the track table, and how many, see `TrackEmbedding`.
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
        history_size: S.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int = 100,
        d_hidden: int = 512,
        n_layers: int = 1,
        cell: Cell = "lstm",
        bidirectional: bool = False,
        attention: bool = False,
        dropout: float = 0.5,
        skip_encoding: SkipEncoding = "embedding",
        use_log: bool = True,
        causal: bool = True,
        previous_label: bool = True,
        scheduled_sampling: float = 0.0,
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
        history_size: int = 10,
    ) -> None:
        super().__init__()
        if not 0 <= scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling is {scheduled_sampling}; it must be from 0 to 1")
        if scheduled_sampling and not previous_label:
            raise ValueError("scheduled_sampling needs previous_label: there is nothing to guess")
        self.knows_skips = skip_encoding != "none"
        self.scheduled_sampling = scheduled_sampling
        self.tracks = TrackEmbedding(n_ids, d_model, features, n_own=n_own, n_shared=n_shared, sparse=sparse)
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

    def forward(self, history: History, target_tracks: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, T) of a skip.

        Args:
            history: the past.
            target_tracks: int64 (B, T).
            labels: int64 (B, T), 1 skipped, 0 not, -1 unknown: what is fed at the step after, in training. Without
                them, which is how the model predicts, it feeds its own guesses.

        Raises:
            ValueError: labels are given to a model without `previous_label`.
        """
        state = self.decoder.begin(*self.encoder(history))
        x = self.dropout(self.tracks(target_tracks))  # (B, T, D)
        if self.ahead is not None:
            x = x + self.dropout(self.ahead(x, target_tracks))
        if self.label is None:
            if labels is not None:
                raise ValueError("labels are given to a model without previous_label")
            return self.output(self.decoder(x, state)[0])[..., 0]
        first = self.label_before(history)  # (B,)
        if labels is None:
            return self._step_by_step(x, state, self.label, first, None)
        known = labels.masked_fill(labels < 0, UNKNOWN)
        if self.training and self.scheduled_sampling:
            return self._step_by_step(x, state, self.label, first, known)
        previous = torch.cat([first[:, None], known[:, :-1]], dim=1)
        return self.output(self.decoder(x + self.label(previous), state)[0])[..., 0]

    def label_before(self, history: History) -> Tensor:
        """The label (B,) before the first target: of the last play, or unknown."""
        last = history.skips[:, -1]
        known = is_skipped(last).long().masked_fill(last == 0, UNKNOWN)
        return known if self.knows_skips else torch.full_like(last, UNKNOWN)

    def _step_by_step(
        self, x: Tensor, state: DecoderState, label: nn.Embedding, first: Tensor, known: Tensor | None
    ) -> Tensor:
        """Feed guesses, or with known labels (B, T) a mix of these and guesses: logits (B, T)."""
        previous, logits = first, []
        for step in range(x.shape[1]):
            states, state = self.decoder((x[:, step] + label(previous))[:, None], state)
            logit = self.output(states)[:, 0, 0]  # (B,)
            logits.append(logit)
            previous = (logit >= 0).long()
            if known is not None:
                guessed = torch.rand(len(x), device=x.device) < self.scheduled_sampling
                previous = torch.where(guessed, previous, known[:, step])
        return torch.stack(logits, dim=1)


class LSTMForContinuation(nn.Module):
    """Which tracks come next? The decoder reads the track before each target.

    Args:
        n_ids: V.
        features: float (V, F).
        d_model, d_hidden, n_layers, cell, bidirectional, attention, dropout: as of `LSTMForSkips`.
        skip_encoding, use_log: how the history's skips and log columns enter, see `HistoryEmbedding`.
        start: what stands before the first prediction: the last track of the history, or the BOS token.
        tie_weights: use the track table as output weights.
        n_own, n_shared: which tracks share rows of the track table, and how many, see `TrackEmbedding`.
        sparse: gradients of the track tables hold only the rows of a batch: for losses that look at some tracks only.
        history_size: S.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int = 100,
        d_hidden: int = 512,
        n_layers: int = 1,
        cell: Cell = "lstm",
        bidirectional: bool = False,
        attention: bool = False,
        dropout: float = 0.2,
        skip_encoding: SkipEncoding = "none",
        use_log: bool = False,
        start: Literal["last", "bos"] = "last",
        tie_weights: bool = False,
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
        history_size: int = 10,
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
        """The next tracks (B,), first the start token -> states (B, D) as `forward` has them, and the state after."""
        states, state = self._read(state, tracks[:, None])
        return states[:, 0], state

    def _read(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """The next tracks (B, T) -> states (B, T, D), and the state behind them."""
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
        """Targets (B, T) shifted right behind the start token."""
        return torch.cat([self.start(history), targets[:, :-1]], dim=1)
