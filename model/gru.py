"""A GRU that reads a session track by track and predicts the next track at each play.

GRU4Rec (Hidasi et al. 2016, "Session-based recommendations with recurrent neural networks"; Hidasi and Karatzoglou
2018, "Recurrent neural networks with top-k gains"). Deviations from it, numbered:
    1  whole sessions are padded, batched and trained at once, not cut into steps that carry a state over
    2  the gates have no biases. Padding is the zero vector, so a state stays exactly zero until the first play: no
       mask is needed, and how far a session is padded on the left changes nothing
    3  a linear map leads from the state to the width of the track vectors, so the two widths are independent
    4  audio features are added to the track vectors, see `model/embeddings.py`
    5  the loss is any of `utils/training/losses.py`, not TOP1 or BPR-max with the batch's own targets
The history's skips and log columns do not enter: a play to come has none yet, and the GRU reads all plays alike.
Shapes: see the legend in `utils/data/batch.py`; M plays of a session, history and targets together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model.dropout import Dropout
from model.embeddings import TrackEmbedding, TrackHead
from utils.data.batch import History
from utils.data.vocab import PAD


class NextTrackGRU(nn.Module):
    """Which track comes next, after every play?

    Args:
        n_ids: V.
        features: float (V, F).
        d_model: D, of the track vectors.
        d_hidden: H, width of the GRU's state.
        n_layers: GRUs, each reading the states of the one before.
        dropout: rate on track vectors, between layers, and on the states that predict.
        tie_weights: use the track table as output weights.
        sparse: gradients of the track tables hold only the rows of a batch: for losses that look at some tracks only.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int,
        d_hidden: int,
        n_layers: int,
        dropout: float,
        tie_weights: bool,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.tracks = TrackEmbedding(n_ids, d_model, features, sparse=sparse)
        between = dropout if n_layers > 1 else 0.0
        self.gru = nn.GRU(d_model, d_hidden, n_layers, bias=False, dropout=between, batch_first=True)
        self.output = nn.Linear(d_hidden, d_model)
        self.dropout = Dropout(dropout)
        self.head = TrackHead(n_ids, d_model, tie_to=self.tracks if tie_weights else None, sparse=sparse)

    def read(self, tracks: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read plays, going on from what was read before.

        Args:
            tracks: int64 (B, M), padded on the left, the right or both sides.
            memory: (n_layers, B, H), states of width H of the GRU's layers; zero if nothing was read before.

        Returns:
            states (B, M, D): each has seen the plays up to its own, and predicts the next one;
            the memory after the last of the M positions: that of the last play, unless padding follows it.
        """
        states, memory = self.gru(self.dropout(self.tracks(tracks)), memory)  # (B, M, H)
        return self.output(self.dropout(states)), memory

    def forward(self, history: History, previous: Tensor) -> Tensor:
        """History and previous tracks (B, T), the first of which is the history's last -> states (B, T, D)."""
        states, _ = self.read(torch.cat([history.tracks[:, :-1], previous], dim=1))
        return states[:, -previous.shape[1] :]

    def begin(self, history: History) -> Tensor:
        """Read a history without its last play, which is the start token: memory (B, n_layers, H)."""
        _, memory = self.read(pad(history.tracks[:, :-1], (1, 0), value=PAD))  # padding, as there may be one play only
        return memory.transpose(0, 1)

    def step(self, state: Tensor, tracks: Tensor) -> tuple[Tensor, Tensor]:
        """The next tracks (B,), the start token first -> states (B, D) as in `forward`, and the memory after them."""
        states, memory = self.read(tracks[:, None], state.transpose(0, 1).contiguous())
        return states[:, 0], memory.transpose(0, 1)

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores of all ids (..., V), minus infinity at the special ones."""
        return self.head(states)

    def start(self, history: History) -> Tensor:
        """The last track of the history (B, 1): the first prediction is made when it is read."""
        return history.tracks[:, -1:]

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Targets (B, T) shifted right, after the history's last track."""
        return torch.cat([self.start(history), targets[:, :-1]], dim=1)
