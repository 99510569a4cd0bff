"""Options of the data: which sessions, and how they are cut. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from utils.core.checks import check_at_least
from utils.core.errors import UserError
from utils.data.schema import SPLITS

Cut = Literal["half", "random", "every"]


@dataclass
class DataConfig:
    """Which sessions, and how they are cut into history and targets."""

    folder: str = "data/demo"
    """Dataset folder written by `python -m utils.datapreprocessing`."""
    train_share: float = 1.0
    """Share of the training sessions to train on, the first ones by time: below 1 for a network that is to help a
    memory (train_memory_seq.py --network), whose scorer learns from the sessions after them."""
    train_cut: Cut = "half"
    """Where training sessions are cut: half (the first half is the history, as in MSSD), random (anew in each epoch),
    every (each prefix is an example)."""
    history_size: int = 10
    """How many plays of the history a model sees, at most (the last ones)."""
    target_size: int = 10
    """How many plays after the history are targets, at most (the first ones)."""
    new_plays: int = 0
    """How many of a track's first training plays models see as plays of a new track (`unk`), which in test a track's
    first plays are. Without effect where the vocabulary is the whole catalogue: no track is `unk` there."""
    min_length: int = 2
    """Shortest session whose second half is scored (the shortest of MSSD have 10 plays anyway)."""
    valid_sessions: int = 0
    """How many validation sessions to score during training, evenly spaced; 0 for all (the end always scores all)."""
    scored: list[str] = field(default_factory=lambda: list(SPLITS))
    """Splits to score at the end; give [valid] to choose between settings without a look at test."""
    every_prefix: bool = False
    """Seq: also score the next track after every prefix of every session."""

    OLDER: ClassVar[dict[str, Any]] = {"new_plays": 0}
    """What options mean in the `config.yml` of a run that is older than they are, where it is not the default."""

    def __post_init__(self) -> None:
        check_at_least(self, "data", history_size=1, target_size=1, new_plays=0, min_length=2, valid_sessions=0)
        check_splits("data.scored", self.scored)
        if not 0 < self.train_share <= 1:
            raise UserError(f"data.train_share is {self.train_share}; it must be above 0 and at most 1")


@dataclass
class PastConfig:
    """What a model is told of each play beside its track (docs/past.md)."""

    protocol: Literal["none", "frozen", "running"] = "none"
    """Statistics of the listener's past plays of a track, its artist and album: none, frozen (what training knows), or
    running (what is known when the session starts). Their figures are never in one table."""
    relations: bool = False
    """How a play relates to its neighbours: the same track, artist, album as the one before and the one after, and how
    often they came before in the session. Needs a model that sees all target tracks (causal false)."""
    details: bool = False
    """What was logged of the history's plays, as numbers: seconds, share of the track, pause before."""


def check_unused(data: DataConfig, *names: str, by: str) -> None:
    """
    Raises:
        UserError: one of these options is given, which is only for the training of other models.
    """
    for name in names:
        if getattr(data, name) != getattr(DataConfig(), name):
            raise UserError(f"data.{name} has no meaning for {by}, only for the training of models; leave it out")


def check_relations(past: PastConfig, *, causal: bool) -> None:
    """
    Raises:
        UserError: a causal model would be told of the target after its own, by relations.
    """
    if past.relations and causal:
        raise UserError(
            "past.relations tells each target about the one after it, and model.causal hides that; add "
            "--model.causal false, or leave out --past.relations"
        )


def check_splits(option: str, names: Sequence[str]) -> None:
    """
    Raises:
        UserError: the value is not some of the splits; names the option.
    """
    if not names or set(names) - set(SPLITS):
        raise UserError(f"{option} is {list(names)}; it must be some of {', '.join(SPLITS)}")
