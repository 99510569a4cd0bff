"""How a model that fills in masks continues a session: all at once, the most confident first, or left to right.

As many masks follow the history as tracks are asked for. A pass reads the whole session and fills a share of the masks,
each with its best track; the next pass sees these tracks. One pass over all masks ("parallel") is what the original
describes: no prediction knows of another, so two of them may be the same track. P passes cost P times as much: each
reads all sessions anew, since every filled mask changes all states.

    order           scores computed for T tracks, P passes (T and P equal: one track a pass)
    parallel        T
    left_to_right   T
    confident       T in the first pass, T - T/P in the second, ...: every open mask in every pass, in float32

Nothing here ever sees a target. Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.decoding import HasHead
from model.names import Order
from utils.data.batch import History
from utils.data.vocab import MASK


class SlotModel(HasHead, Protocol):
    """What `fill` needs of a model."""

    target_size: int
    """T: slots after the history, at most."""

    def __call__(self, history: History, slots: Tensor) -> Tensor:
        """History and slots (B, up to T), known tracks or `MASK` -> states (B, up to T, D) of the slots."""


class Choice(NamedTuple):
    """Which of the open masks of each session are filled in a pass, and with what."""

    open: Tensor
    """int64 (B, n): their places among the open ones."""
    tracks: Tensor
    """int64 (B, n)"""


@torch.no_grad()
def fill(
    model: SlotModel,
    history: History,
    length: int,
    *,
    order: Order = "parallel",
    passes: int = 10,
    catalogue: Catalogue | None = None,
) -> Tensor:
    """Put masks after histories and fill them in: int64 (B, length).

    Args:
        model, history: the model continues these sessions.
        length: by how many tracks, at most the model's T.
        order: parallel: all masks in one pass. confident: in each pass those whose best track has the highest
            probability among all tracks of the catalogue (mask-predict, Ghazvininejad et al. 2019, in its easy-first
            form: what is filled stays); ties go to the left. left_to_right: the leftmost open masks.
        passes: for the last two orders, in how many equal shares to fill the masks; with more passes than masks, one
            mask a pass.
        catalogue: the tracks that may be predicted, of this model's head; prepare one for many calls. All tracks if not
            given.

    Raises:
        ValueError: `length` is above T.
    """
    if length > model.target_size:
        raise ValueError(f"{length} tracks are asked for, but the model has {model.target_size} slots")
    among = Catalogue(model.head) if catalogue is None else catalogue
    choose = _most_confident if order == "confident" else _leftmost
    slots = torch.full((len(history.tracks), length), MASK, device=history.tracks.device)
    for size in shares(length, 1 if order == "parallel" else passes):
        places = (slots == MASK).nonzero()[:, 1].view(len(slots), -1)  # (B, open): equally many in each session
        states = model(history, slots)  # (B, length, D)
        states = states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))  # (B, open, D)
        chosen = choose(among, states, size)
        slots.scatter_(1, places.gather(1, chosen.open), chosen.tracks)
    return slots


def shares(length: int, passes: int) -> list[int]:
    """How many of `length` masks each pass fills: shares as equal as can be, none of them empty."""
    n = min(passes, length)
    return [length * (i + 1) // n - length * i // n for i in range(n)]


def _leftmost(catalogue: Catalogue, states: Tensor, size: int) -> Choice:
    """The first open masks; only these are scored."""
    states = states[:, :size]
    tracks = catalogue.top_k(states.flatten(0, 1), 1).ids.view(states.shape[:2])
    return Choice(torch.arange(size, device=states.device).expand_as(tracks), tracks)


def _most_confident(catalogue: Catalogue, states: Tensor, size: int) -> Choice:
    """The open masks whose best tracks are the most probable."""
    log_p, tracks = (best.view(states.shape[:2]) for best in catalogue.top_k_log_p(states.flatten(0, 1), 1))
    chosen = log_p.sort(dim=1, descending=True, stable=True).indices[:, :size]
    return Choice(chosen, tracks.gather(1, chosen))
