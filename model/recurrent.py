"""Recurrent layers that read padded sequences: encoder, decoder, attention.

Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.attention import Memory
from model.catalogue import bfloat16_is_fast
from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, plays_first
from model.names import Cell
from utils.data.batch import History
from utils.data.vocab import PAD

Hidden = tuple[Tensor, ...]
"""What a recurrent network keeps between two steps: hidden state and, of an LSTM, cell state, each (B, N, D')."""


class Recurrent(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho et al. 2014) that keeps its state with the rows first.

    The recurrent weights of each gate start orthogonal (Saxe et al. 2014). The forget gates of an LSTM start open, with
    a bias of 1 (Jozefowicz et al. 2015).

    Args:
        cell: LSTM or GRU.
        d_input: width of the input.
        d_hidden: D', units of each layer and direction.
        n_layers: N.
        bidirectional: read from both ends; output and states then have 2 D' columns.
        dropout: rate between two layers.
    """

    def __init__(
        self,
        cell: Cell,
        d_input: int,
        d_hidden: int,
        *,
        n_layers: int,
        bidirectional: bool,
        dropout: float,
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
                else:  # an LSTM's forget gate is its second, and has two biases
                    nn.init.constant_(weights, float(cell == "lstm" and gate == 1 and name.startswith("bias_ih")))

    def forward(self, x: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Go on from a state: x (B, T, D) -> output (B, T, D') and the state after it."""
        # Under autocast a projected state is bfloat16, and embeddings are float32.
        first = tuple(part.transpose(0, 1).contiguous().to(x.dtype) for part in hidden)
        with _possible_precision(x.device):
            output, last = self.rnn(x, first if len(first) > 1 else first[0])
        return output, self._rows_first(last)

    def read(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Hidden]:
        """Read the first `lengths` (B,), at least 1, of x (B, T, D): output (B, T, D'), 0 after them, and last state.

        The last state is that after each row's own last input; in the backward direction, after its first.
        """
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        with _possible_precision(x.device):
            output, last = self.rnn(packed)
        return pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0], self._rows_first(last)

    def _rows_first(self, last: Tensor | tuple[Tensor, Tensor]) -> Hidden:
        """torch's states (N * directions, B, D') -> (B, N, directions * D')."""
        parts = (last,) if isinstance(last, Tensor) else last
        return tuple(part.unflatten(0, (-1, self.n_directions)).permute(2, 0, 1, 3).flatten(2) for part in parts)


def _possible_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Leave autocast as it is, except on CPUs without bfloat16, where torch has no LSTM in bfloat16."""
    if device.type == "cpu" and not bfloat16_is_fast(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class LuongAttention(nn.Module):
    """Global attention with the score "general" (Luong et al. 2015, equations 5, 7 and 8), without input feeding.

    As its output is not fed back, a whole sequence can be decoded first and attend afterwards.

    Args:
        d_hidden: D', of the decoder.
        d_memory: D'', width of the encoder's states.
    """

    def __init__(self, d_hidden: int, d_memory: int) -> None:
        super().__init__()
        self.general = nn.Linear(d_hidden, d_memory, bias=False)
        self.combine = nn.Linear(d_memory + d_hidden, d_hidden, bias=False)

    def forward(self, states: Tensor, memory: Memory) -> Tensor:
        """The decoder's states (B, T, D') and the encoder's -> states (B, T, D') that combine both."""
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
    """The encoder's states; empty without attention."""


class Encoder(nn.Module):
    """Embeds a history and reads it.

    Args:
        embed: turns a history into vectors.
        d_model: D.
        cell, d_hidden, n_layers, bidirectional, dropout: see `Recurrent`; dropout is on the embeddings, too.
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
        # Project both directions' final states to one of the decoder's width, apart for hidden and cell state.
        n_states = 2 if cell == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(2 * d_hidden, d_hidden) for _ in range(n_states if bidirectional else 0))

    def forward(self, history: History, added: Tensor | None = None) -> tuple[Memory, Hidden]:
        """History, and vectors to add to its plays (B, S, D) -> its states (B, S, D' or 2 D'), padded on the right, and
        the state to go on from.

        No loader makes an empty history; this would read one as a single play of padding.
        """
        size = history.tracks.shape[1]
        n_pad = (history.tracks == PAD).sum(1).clamp(max=size - 1)
        x = plays_first(self.dropout(self.embed(history, added)), n_pad)  # (B, S, D)
        lengths = size - n_pad
        states, last = self.rnn.read(x, lengths)
        shown = torch.arange(size, device=n_pad.device) < lengths[:, None]  # (B, S)
        if self.bridges:
            last = tuple(bridge(part) for bridge, part in zip(self.bridges, last, strict=True))
        return Memory(states, shown[:, None]), last


class Decoder(nn.Module):
    """Goes on from an encoder's last state and, with attention, looks back at all its states.

    Args:
        d_model: D, width of its input.
        d_memory: width of the encoder's states.
        cell, d_hidden, n_layers, dropout: see `Recurrent`; dropout is on the output, too.
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
        self.rnn = Recurrent(cell, d_model, d_hidden, n_layers=n_layers, bidirectional=False, dropout=dropout)
        self.attention = LuongAttention(d_hidden, d_memory) if attention else None
        self.dropout = Dropout(dropout)

    def begin(self, memory: Memory, hidden: Hidden) -> DecoderState:
        """An encoder's output -> the state before the first step."""
        return DecoderState(hidden, () if self.attention is None else (memory,))

    def forward(self, x: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Inputs x (B, T, D) of the next steps -> their outputs (B, T, D'), and the state after them."""
        states, hidden = self.rnn(x, state.hidden)
        if self.attention is not None:
            states = self.attention(states, *state.memory)
        return self.dropout(states), state._replace(hidden=hidden)


class LookAhead(nn.Module):
    """Tells each step about all target tracks, which are given: reads them from both ends, each with half the units.

    Args:
        cell, d_hidden: see `Recurrent`.
        d_model: D.
    """

    def __init__(self, cell: Cell, d_model: int, d_hidden: int) -> None:
        super().__init__()
        half = -(-d_hidden // 2)
        self.rnn = Recurrent(cell, d_model, half, n_layers=1, bidirectional=True, dropout=0.0)
        self.output = nn.Linear(2 * half, d_model)

    def forward(self, x: Tensor, target_tracks: Tensor) -> Tensor:
        """Embeddings (B, T, D) of target tracks (B, T), padded on the right -> the context of each (B, T, D)."""
        lengths = (target_tracks != PAD).sum(1).clamp(min=1)
        return self.output(self.rnn.read(x, lengths)[0])
