"""How plays become vectors, and vectors become scores over tracks.

Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from model.names import SkipEncoding
from utils.data import schema
from utils.data.batch import N_SKIP_STATES, History, Past, is_skipped
from utils.data.vocab import N_SPECIAL, PAD, SKIP, UNK


class TrackEmbedding(nn.Module):
    """A track as the sum of a learned vector and a linear map of its audio features.

    The original concatenates a 26-column feature table to the track vector. Adding a projection instead makes the width
    independent of the number of features (deviation 1); a concatenation followed by a linear layer is the same family.

    Rare tracks, the last ids, may share rows of the table; then only their features tell them apart. Without shared
    rows, a rare track's vector is its projected features alone.

    Args:
        n_ids: V.
        d_model: D.
        features: float (V, F), standardised; part of the model's state, so that a checkpoint is complete.
        by_id: tracks have vectors of their own; otherwise they share one, new ones too, so only their features tell
            them apart; padding, MASK and SKIP keep theirs.
        n_own: ids below it, the special ids among them, have a row of their own; all if not given.
        n_shared: rows that the other ids share.
        sparse: gradients of the table hold only the rows that a batch looked up.

    Raises:
        ValueError: nothing would tell rare tracks apart, a special id would be rare, `features` does not fit V, or some
            ids are to share rows of a table without ids.
    """

    features: Tensor

    def __init__(
        self,
        n_ids: int,
        d_model: int,
        features: Tensor,
        *,
        by_id: bool = True,
        n_own: int | None = None,
        n_shared: int = 0,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if len(features) != n_ids:
            raise ValueError(f"features have {len(features)} rows for {n_ids} ids")
        n_own = n_ids if n_own is None else n_own
        if not N_SPECIAL <= n_own <= n_ids:
            raise ValueError(f"{n_own} ids with rows of their own; there are {N_SPECIAL} special ids, {n_ids} in all")
        if n_own < n_ids and not n_shared and not features.shape[1]:
            raise ValueError("tracks have no audio features, so rare tracks need rows to share")
        if not by_id and (n_own, n_shared) != (n_ids, 0):
            raise ValueError("without ids, all tracks share one row; leave out n_own and n_shared")
        self.n_own, self.n_shared = (n_own, n_shared) if by_id else (UNK, 1)
        self.table = nn.Embedding(self.n_own + self.n_shared, d_model, padding_idx=PAD, sparse=sparse)
        nn.init.normal_(self.table.weight, std=d_model**-0.5)
        with torch.no_grad():
            self.table.weight[PAD].zero_()
        self.register_buffer("features", features.clone())
        self.project = nn.Linear(features.shape[1], d_model, bias=False) if features.shape[1] else None

    def forward(self, tracks: Tensor) -> Tensor:
        """Ids (...) -> vectors (..., D)."""
        x = self.table(self.rows(tracks))
        if self.project is not None:
            x = x + self.project(self.features[tracks])
        return x

    def rows(self, tracks: Tensor) -> Tensor:
        """Ids (...) -> their rows of the table (...).

        Ids are in order of plays, so the remainder spreads rare tracks evenly over the shared rows, in every run alike.
        """
        if self.n_own == len(self.features):
            return tracks
        # The row of PAD is zero and learns nothing.
        shared = self.n_own + (tracks - self.n_own) % self.n_shared if self.n_shared else torch.full_like(tracks, PAD)
        return torch.where(tracks < self.n_own, tracks, shared)


def plays_first(x: Tensor, n_padding: Tensor) -> Tensor:
    """Move the padding of (B, S, D) from left to right, so that a recurrent network starts with the first play.

    Args:
        x: vectors of S positions.
        n_padding: int64 (B,), how many of them are padding.
    """
    place = (torch.arange(x.shape[1], device=x.device) + n_padding[:, None]) % x.shape[1]
    return x.gather(1, place[:, :, None].expand_as(x))


class LogEmbedding(nn.Module):
    """The sum of one learned vector for each log column's code; "unknown" (code 0) adds nothing.

    Args:
        d_model: D.
    """

    first_code: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        sizes = torch.tensor(list(schema.LOG_COLUMNS.values()))
        self.register_buffer("first_code", sizes.cumsum(0) - sizes, persistent=False)
        self.table = nn.EmbeddingBag(int(sizes.sum()), d_model, mode="sum")
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, log: Tensor) -> Tensor:
        """Codes uint8 (B, S, L) -> vectors (B, S, D)."""
        codes = log.long()
        index = (codes + self.first_code).flatten(0, 1)  # (B * S, L)
        known = (codes > 0).flatten(0, 1).to(self.table.weight.dtype)
        return self.table(index, per_sample_weights=known).view(*log.shape[:2], -1)


class FromPast(NamedTuple):
    """What a model makes of a `Past`."""

    history: Tensor | None = None
    """To be added to the vectors of the history's plays: (B, S, D)."""
    targets: Tensor | None = None
    """To be added to the vectors of the targets: (B, T, D)."""
    logits: Tensor | float = 0.0
    """To be added to the logits of the targets: (B, T)."""


class PastEmbedding(nn.Module):
    """What is known of plays beside their tracks (`Past`), as vectors to add to theirs and as a first guess.

    The guess is linear, so that a model starts where a logistic regression on the targets' own past would end.

    Args:
        d_model: D.
        n_past: P, statistics and relations of each play.
        n_details: K, details of each play of the history.
    """

    def __init__(self, d_model: int, *, n_past: int, n_details: int) -> None:
        super().__init__()
        self.n_past = n_past
        self.n_details = n_details
        self.history = nn.Linear(n_past + n_details, d_model)
        self.targets = nn.Linear(n_past, d_model) if n_past else None
        self.guess = nn.Linear(n_past, 1, bias=False) if n_past else None

    @classmethod
    def if_any(cls, d_model: int, *, n_past: int, n_details: int) -> Self | None:
        """None for a model that is told nothing of the past."""
        return cls(d_model, n_past=n_past, n_details=n_details) if n_past or n_details else None

    def forward(self, past: Past, n_history: int) -> FromPast:
        """The past of plays, of which the first `n_history` (S) are the history's.

        Raises:
            ValueError: the past has other columns than the model was built for.
        """
        given = past.plays.shape[2], past.details.shape[2]
        if given != (self.n_past, self.n_details):
            raise ValueError(f"a past of {given} columns is given to a model of {(self.n_past, self.n_details)}")
        of_history, of_targets = past.plays[:, :n_history], past.plays[:, n_history:]
        history = gelu(self.history(torch.cat([of_history, past.details], dim=2)))  # (B, S, D)
        if self.targets is None or self.guess is None:
            return FromPast(history)
        return FromPast(history, gelu(self.targets(of_targets)), self.guess(of_targets)[..., 0])


def read_past(embedding: PastEmbedding | None, past: Past | None, history: History) -> FromPast:
    """What `embedding` makes of `past`: nothing, for a model that is told nothing.

    Raises:
        ValueError: a past is missing, or is given to a model without one.
    """
    if embedding is None or past is None:
        if embedding is not None or past is not None:
            raise ValueError("a model with n_past or n_details is called with a past, and no other model is")
        return FromPast()
    return embedding(past, history.tracks.shape[1])


class HistoryEmbedding(nn.Module):
    """Each play of a history as a vector: track, position, and what the listener did.

    Positions are learned and counted twice, from the start and from the end of the history: sessions begin at
    position 1, and the last play is the most telling (deviation 2: the original counts from the start only).

    Args:
        tracks: track embedding, shared with the targets.
        d_model: D.
        history_size: S.
        skip_encoding: "token" puts the SKIP token in place of skipped tracks (the original's paper), "embedding"
            keeps the track and adds a vector for its skip state, "none" hides the skips.
        use_log: add the log columns (which reveal the skips too, by `reason_end`).
    """

    def __init__(
        self, tracks: TrackEmbedding, d_model: int, *, history_size: int, skip_encoding: SkipEncoding, use_log: bool
    ) -> None:
        super().__init__()
        self.tracks = tracks
        self.skip_encoding = skip_encoding
        self.from_start = nn.Embedding(history_size, d_model)
        nn.init.normal_(self.from_start.weight, std=0.02)
        self.from_end = nn.Parameter(torch.randn(history_size, d_model) * 0.02)
        self.skip_state = nn.Embedding(N_SKIP_STATES, d_model) if skip_encoding == "embedding" else None
        self.log = LogEmbedding(d_model) if use_log else None

    def forward(self, history: History, added: Tensor | None = None) -> Tensor:
        """History, and vectors to add to its plays (B, S, D) -> (B, S, D)."""
        tracks, padding = history.tracks, history.tracks == PAD
        if self.skip_encoding == "token":
            tracks = tracks.masked_fill(is_skipped(history.skips) & ~padding, SKIP)
        size = tracks.shape[1]
        n_pad = padding.sum(1, keepdim=True)  # (B, 1)
        from_start = (torch.arange(size, device=tracks.device) - n_pad).clamp(min=0)  # (B, S)
        x = self.tracks(tracks) + self.from_start(from_start) + self.from_end[-size:]  # (B, S, D)
        if self.skip_state is not None:
            x = x + self.skip_state(history.skips)
        if self.log is not None:
            x = x + self.log(history.log)
        return x if added is None else x + added


class TrackHead(nn.Module):
    """Scores of all tracks; the special ids can never be predicted.

    Args:
        n_ids: V.
        d_model: D.
        tie_to: an embedding whose table also serves as output weights; `None` for a table of its own.
        sparse: gradients of its own table hold only the rows that a loss looked up (see `at`).

    Raises:
        ValueError: tracks share rows of the table to tie to, so they would get the same scores.
    """

    def __init__(self, n_ids: int, d_model: int, *, tie_to: TrackEmbedding | None = None, sparse: bool = False) -> None:
        super().__init__()
        if tie_to is not None:
            if tie_to.n_own < n_ids:
                raise ValueError("tied weights need a row for each track; untie them, or let no tracks share rows")
            self.table = tie_to.table
        else:
            self.table = nn.Embedding(n_ids, d_model, sparse=sparse)
            nn.init.normal_(self.table.weight, std=d_model**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_ids))

    @property
    def weight(self) -> Tensor:
        """(V, D): the vector of each track; its score is the dot product with a state, plus `bias`."""
        return self.table.weight

    def at(self, tracks: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (...) -> their vectors (..., D) and biases (...)."""
        return self.table(tracks), self.bias[tracks]

    def forward(self, states: Tensor) -> Tensor:
        """States (..., D) -> logits (..., V), minus infinity at the special ids."""
        logits = nn.functional.linear(states, self.weight, self.bias)
        logits[..., :N_SPECIAL] = -torch.inf
        return logits
