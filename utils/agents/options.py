"""Options of the agents. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.names import SkipEncoding
from utils.core.checks import check_at_least, check_used
from utils.core.errors import UserError


@dataclass
class AgentConfig:
    """Sizes and inputs of the agent."""

    d_model: int = 32
    """Width of the items' vectors and of the actions (the original: 8)."""
    d_hidden: int = 64
    """Width of the GRU and of the hidden layers (the original: 16)."""
    state: Literal["gru", "recent"] = "gru"
    """gru: reads the session so far. recent: the original's wide and deep state, of the last items that were liked."""
    memory: int = 5
    """recent: number of liked items."""
    skip_encoding: SkipEncoding = "embedding"
    """gru: how the skips so far enter: none, token, embedding."""
    use_log: bool = True
    """gru: give it the history's log columns."""
    use_features: bool = True
    """Add a linear map of the audio features to the items' vectors (the original's items have none)."""
    normalise: bool = True
    """Keep items and actions on the unit sphere."""
    vectors: str = ""
    """File of track vectors (docs/track_vectors.md), d_model wide, that the items start from; empty for random ones."""

    def __post_init__(self) -> None:
        check_at_least(self, "agent", d_model=1, d_hidden=1, memory=1)
        check_used(self, "agent", "state", memory=("recent",), skip_encoding=("gru",), use_log=("gru",))


@dataclass
class NoiseConfig:
    """Exploration: dimensions of the dot product that do not count when a candidate is chosen."""

    schedule: Literal["none", "constant", "decay"] = "decay"
    """Whether and how the rate falls from episode to episode; an episode is one batch of sessions."""
    rate: float = 0.5
    """Probability, at first, that a dimension does not count."""
    decay: float = 0.99
    """decay: factor of the rate after each episode."""

    def __post_init__(self) -> None:
        check_used(self, "noise", "schedule", rate=("constant", "decay"), decay=("decay",))
        for name in ("rate", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"noise.{name} is {getattr(self, name)}; it must be from 0 to 1")


@dataclass
class DDPGConfig:
    """How long and how to train an agent."""

    epochs: int = 1
    """Passes over the training sessions."""
    sessions: int = 1024
    """Sessions that are played at once: an episode."""
    batch_size: int = 512
    """Transitions of an update."""
    updates: int = 1
    """Updates after each step of an episode."""
    lr: float = 1e-3
    """Learning rate of Adam, for critic, encoder and items (the original: 1e-4)."""
    actor_lr: float = 1e-3
    """Learning rate of Adam, for the actor."""
    clip: float = 0.0
    """Largest norm of a gradient; 0 for no clipping."""
    gamma: float = 0.9
    """Discount of later rewards."""
    tau: float = 0.005
    """Share of the networks' weights in the next weights of their target networks."""
    critic_on: Literal["item", "proto"] = "item"
    """Which action the critic judges. item: the executed item. proto: the actor's own vector (the original)."""
    capacity: int = 100_000
    """Transitions in the replay buffer (the original: 10,000)."""
    alpha: float = 0.6
    """How much priorities matter; 0 draws uniformly."""
    beta: float = 0.4
    """How fully importance weights correct for the priorities, at first; rises to 1."""
    beta_updates: int = 1000
    """Updates until beta is 1."""
    evaluate_every: int = 0
    """Episodes between validations; 0 for the end of each epoch only."""
    patience: int = 0
    """Validations without a new best after which training stops; 0 to never stop early."""
    max_seconds: float = 0.0
    """Training time after which to stop, validations not counted; 0 for no limit."""
    clock: Literal["wall", "processor"] = "wall"
    """What max_seconds counts: wall-clock time, or processor time of this process (of all its threads)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        check_at_least(self, "train", epochs=1, sessions=1, batch_size=1, updates=0, clip=0, capacity=1)
        check_at_least(self, "train", alpha=0, beta_updates=1, evaluate_every=0, patience=0, max_seconds=0)
        for name in ("gamma", "tau", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("lr", "actor_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be positive")
        if self.capacity < max(self.sessions, self.batch_size):
            raise UserError(
                f"train.capacity is {self.capacity}; it must hold train.sessions {self.sessions} and "
                f"train.batch_size {self.batch_size}"
            )


@dataclass
class EnvironmentConfig:
    """Candidates and rewards."""

    negatives: int = 1
    """Random tracks beside each of a session's own tracks."""
    skip_reward: float = -1.0
    """Skip: reward of an own track that the listener skipped; one that was listened to brings 1."""
    position_matched: bool = False
    """Seq: only the track that was played at this very step brings a reward."""

    def __post_init__(self) -> None:
        check_at_least(self, "environment", negatives=0)
