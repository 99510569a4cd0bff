"""How a seq model continues a session on its own: greedily, by beam search, or by sampling.

Nothing here ever sees a target. A model reads the history once (`begin`), and then one track at a time (`step`). The
catalogue decides what may be predicted, except for repeats: with `no_repeat` n, none of the last n tracks of the
session so far (history and continuation) comes next.

Probabilities are renormalised over the tracks that may come next; a forbidden track has none.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.embeddings import TrackHead
from model.random_numbers import keys_of
from utils.data.batch import History

State = Any
"""What a model keeps between two steps: tensors with the rows first, in tuples, named tuples or lists of any depth."""
BEAMS_AT_ONCE = 2560
"""Beams of all sessions together whose states are held at once."""


class HasHead(Protocol):
    """A model that scores tracks."""

    @property
    def head(self) -> TrackHead:
        """What scores them."""


class TargetModel(HasHead, Protocol):
    """A model with a state for each target: what losses and evaluation need."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def __call__(self, history: History, previous: Tensor) -> Tensor:
        """States (B, T, D): the one at step t has seen the history and, of the targets, at most those before t."""

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """What of the targets (B, T) the model is fed: (B, T), such as all of them shifted right by one step."""


class SeqModel(TargetModel, Protocol):
    """A model that continues sessions step by step: what decoding needs."""

    def start(self, history: History) -> Tensor:
        """The token (B, 1) that stands before the first prediction."""

    def begin(self, history: History) -> State:
        """Read a history, once for all steps."""

    def step(self, state: State, tracks: Tensor) -> tuple[Tensor, State]:
        """Read the next tracks (B,), the start token first -> states (B, D), as teacher-forced, and the state after."""

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores (..., V); the special ids are at minus infinity."""


def select(state: State, rows: Tensor) -> State:
    """The state of these rows, int64 (N,) or bool (B,): to drop, repeat or reorder sessions between two steps."""
    if isinstance(state, Tensor):
        return state[rows]
    parts = [select(part, rows) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def recent(session: Tensor, n: int) -> Tensor:
    """The last n tracks of sessions (B, S), or all if they are shorter: (B, up to n)."""
    return session[:, max(0, session.shape[1] - n) :]


@torch.no_grad()
def greedy(
    model: SeqModel, history: History, length: int, *, catalogue: Catalogue | None = None, no_repeat: int = 0
) -> Tensor:
    """The most probable track, again and again: int64 (B, length).

    Args:
        model, history: the model continues these sessions.
        length: by how many tracks.
        catalogue: the tracks that may be predicted, of this model's head; prepare one for many calls. All tracks if not
            given.
        no_repeat: how many of the last tracks may not come next.

    Raises:
        ValueError: `no_repeat` might forbid all tracks.
    """
    among = Catalogue(model.head) if catalogue is None else catalogue

    def best(states: Tensor, forbidden: Tensor) -> Tensor:
        return among.top_k(states, 1, forbidden).ids[:, 0]

    return _one_by_one(model, history, length, best, no_repeat)


@torch.no_grad()
def sample(
    model: SeqModel,
    history: History,
    length: int,
    *,
    top_p: float,
    seed: int,
    rows: Tensor,
    temperature: float = 1.0,
    catalogue: Catalogue | None = None,
    no_repeat: int = 0,
) -> Tensor:
    """Tracks drawn one after another by nucleus sampling: int64 (B, length).

    Args:
        model, history, length, catalogue, no_repeat: as in `greedy`.
        top_p, temperature: see `Catalogue.draw`; a `top_p` near 0 leaves only the most probable track.
        seed: of the random numbers.
        rows: int64 (B,), which session each is: its random numbers depend on it, and not on the other sessions.

    Raises:
        ValueError: `no_repeat` might forbid all tracks.
    """
    among = Catalogue(model.head) if catalogue is None else catalogue

    steps = count()

    def drawn(states: Tensor, forbidden: Tensor) -> Tensor:
        keys = keys_of(seed, rows, next(steps))
        return among.draw(states, forbidden, top_p=top_p, temperature=temperature, keys=keys)

    return _one_by_one(model, history, length, drawn, no_repeat)


def _one_by_one(
    model: SeqModel, history: History, length: int, choose: Callable[[Tensor, Tensor], Tensor], no_repeat: int
) -> Tensor:
    """Continue sessions by what `choose` picks, given states (B, D) and forbidden tracks (B, m): int64 (B, length)."""
    state, tracks, session = model.begin(history), model.start(history)[:, 0], history.tracks
    for _ in range(length):
        states, state = model.step(state, tracks)
        tracks = choose(states, recent(session, no_repeat))
        session = torch.cat([session, tracks[:, None]], dim=1)
    return session[:, history.tracks.shape[1] :]


class Beams(NamedTuple):
    """The most probable continuations that a beam search found, the best first.

    W is the width, or less if there are fewer continuations.
    """

    tracks: Tensor
    """int64 (B, W, length)"""
    log_probability: Tensor
    """float32 (B, W): of the whole continuation; minus infinity after the last one if a session has fewer than W."""


@torch.no_grad()
def beam_search(
    model: SeqModel,
    history: History,
    length: int,
    *,
    width: int,
    catalogue: Catalogue | None = None,
    no_repeat: int = 0,
) -> Beams:
    """Keep the `width` most probable beginnings at each step; all continuations have the same length.

    Args:
        model, history, length, catalogue, no_repeat: as in `greedy`, which is the search of width 1.
        width: how many beginnings to keep, at least 1.

    Raises:
        ValueError: `no_repeat` might forbid all tracks.
    """
    catalogue = Catalogue(model.head) if catalogue is None else catalogue
    size = max(1, BEAMS_AT_ONCE // width)
    parts = [
        _beam_search(model, History(*chunk), length, width, catalogue, no_repeat)
        for chunk in zip(*(tensor.split(size) for tensor in history), strict=True)
    ]
    return Beams(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _beam_search(
    model: SeqModel, history: History, length: int, width: int, catalogue: Catalogue, no_repeat: int
) -> Beams:
    state, tracks, session = model.begin(history), model.start(history)[:, 0], history.tracks
    n = len(session)
    first = torch.arange(n, device=session.device)[:, None]  # each session's place
    total = torch.zeros(n, 1, device=session.device)  # (B, W)
    for _ in range(length):
        states, state = model.step(state, tracks)  # (B * W, D)
        forbidden = recent(session, no_repeat)
        k = min(width, len(catalogue))
        log_p, ids = catalogue.top_k_log_p(states, k, forbidden)  # (B * W, k)
        longer = (total[:, :, None] + log_p.view(n, -1, k)).flatten(1)  # (B, W * k)
        rows_of_each = total.shape[1]
        total, best = longer.topk(min(width, longer.shape[1]), dim=1)
        rows = (first * rows_of_each + best // k).flatten()  # (B * W,)
        tracks = ids.view(n, -1).gather(1, best).flatten()
        state = select(state, rows)
        session = torch.cat([session[rows], tracks[:, None]], dim=1)
    return Beams(session[:, history.tracks.shape[1] :].unflatten(0, (n, -1)), total)
