"""Prioritised experience replay (Schaul et al. 2016, "Prioritized Experience Replay"), complete and vectorised.

Transition i is drawn with probability P(i) = p_i / sum_k p_k, where p_i = (|delta_i| + epsilon)^alpha and delta_i is
its last temporal-difference error (the proportional variant). New transitions get the highest priority so far. What is
drawn too often gets less weight: w_i = (n P(i))^-beta, divided by the largest weight of the draw, where n is the number
of transitions. Priorities stand in a sum tree, so that a draw or an update of B of them takes O(B log n).

Letters: N places in the buffer, B transitions of a draw; otherwise see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.data.batch import History


class Transition(NamedTuple):
    """B steps that an agent made: (s, a, r, s', done)."""

    history: History
    """s: the session so far, (B, S)."""
    item: Tensor
    """int64 (B,): the track that was executed."""
    proto: Tensor
    """float (B, D): the actor's own action; without noise, the executed track is the candidate nearest to it."""
    reward: Tensor
    """float (B,)"""
    next_history: History
    """s', (B, S)."""
    next_candidates: Tensor
    """int64 (B, C): the tracks among which the next one is chosen; PAD where there is none."""
    done: Tensor
    """bool (B,): whether the session ended with this step, so that s' has no value."""


class Draw(NamedTuple):
    """Transitions drawn from a replay buffer."""

    transition: Transition
    weights: Tensor
    """float32 (B,): importance weights, at most 1; they multiply each transition's loss."""
    places: Tensor
    """int64 (B,): where they stand, to update their priorities."""


class SumTree:
    """N numbers in the leaves of a binary tree whose nodes hold the sums below them.

    Node 1 is the root, node i has the children 2 i and 2 i + 1, and leaf j is node `size + j`.

    Args:
        n: N; the tree has as many leaves as the next power of two.
    """

    def __init__(self, n: int) -> None:
        self.depth = max(0, (n - 1).bit_length())
        self.size = 2**self.depth
        # float64: sums of a million priorities stay exact enough for the smallest of them to be found.
        self.nodes = torch.zeros(2 * self.size, dtype=torch.float64)

    @property
    def total(self) -> Tensor:
        """float64 (): the sum of all leaves."""
        return self.nodes[1]

    def get(self, leaves: Tensor) -> Tensor:
        """The numbers of leaves int64 (B,): float64 (B,)."""
        return self.nodes[self.size + leaves]

    def set(self, leaves: Tensor, values: Tensor) -> None:
        """Write values float64 (B,) to leaves int64 (B,), and the sums above them. No leaf may be there twice with
        different values."""
        node = self.size + leaves
        self.nodes[node] = values
        for _ in range(self.depth):
            # A parent that is here twice gets the same sum twice.
            node = node // 2
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def find(self, mass: Tensor) -> Tensor:
        """The leaves in which the cumulative sum first exceeds each mass, float64 (B,) in [0, total): int64 (B,)."""
        node = torch.ones(len(mass), dtype=torch.int64)
        for _ in range(self.depth):
            left = self.nodes[2 * node]
            # A subtree of sum 0 is never entered, even if rounding has left a mass at its edge.
            right = (mass >= left) & (self.nodes[2 * node + 1] > 0)
            mass = torch.where(right, mass - left, mass)
            node = 2 * node + right
        return node - self.size


class PrioritisedReplay:
    """The last `capacity` transitions, drawn by priority.

    Args:
        capacity: N; older transitions are overwritten.
        alpha: how much priorities matter; 0 draws uniformly.
        epsilon: added to each error, so that every transition can be drawn.
    """

    def __init__(self, capacity: int, *, alpha: float, epsilon: float = 1e-2) -> None:
        self.capacity = capacity
        self.alpha = alpha
        self.epsilon = epsilon
        self.tree = SumTree(capacity)
        self.highest = 1.0
        self.n_added = 0
        self._columns: list[Tensor] = []

    def __len__(self) -> int:
        """How many transitions there are."""
        return min(self.n_added, self.capacity)

    def add(self, transition: Transition) -> None:
        """Store B transitions, at most N, with the highest priority so far.

        Raises:
            ValueError: there are more than N.
        """
        values = _compact(transition)
        n = len(values[0])
        if n > self.capacity:
            raise ValueError(f"{n} transitions do not fit into a replay buffer of {self.capacity}")
        if not self._columns:
            self._columns = [value.new_zeros(self.capacity, *value.shape[1:]) for value in values]
        places = (self.n_added + torch.arange(n)) % self.capacity
        for column, value in zip(self._columns, values, strict=True):
            column[places] = value
        self.tree.set(places, torch.full((n,), self.highest, dtype=torch.float64))
        self.n_added += n

    def sample(self, batch_size: int, *, beta: float) -> Draw:
        """Draw B transitions by priority, with torch's generator: one from each of B equal shares of their sum.

        Args:
            batch_size: B.
            beta: how fully the importance weights correct for the priorities, 0 to 1.
        """
        share = (torch.arange(batch_size) + torch.rand(batch_size, dtype=torch.float64)) / batch_size
        places = self.tree.find(share * self.tree.total)
        probability = self.tree.get(places) / self.tree.total
        weights = (len(self) * probability) ** -beta
        return Draw(_expand([column[places] for column in self._columns]), (weights / weights.max()).float(), places)

    def update(self, places: Tensor, errors: Tensor) -> None:
        """New priorities (|delta| + epsilon)^alpha from errors float (B,) for the transitions at places int64 (B,)."""
        values = (errors.detach().cpu().double().abs() + self.epsilon) ** self.alpha
        self.highest = max(self.highest, float(values.max()))
        self.tree.set(places, values)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to draw the same transitions."""
        n = len(self)
        return {
            "columns": [column[:n].clone() for column in self._columns],
            "priorities": self.tree.get(torch.arange(n)),
            "highest": self.highest,
            "n_added": self.n_added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the transitions and priorities of a buffer of the same capacity."""
        n = len(state["priorities"])
        self.n_added, self.highest, self.tree = state["n_added"], state["highest"], SumTree(self.capacity)
        self._columns = [value.new_zeros(self.capacity, *value.shape[1:]) for value in state["columns"]]
        for column, value in zip(self._columns, state["columns"], strict=True):
            column[:n] = value
        self.tree.set(torch.arange(n), state["priorities"])


def _compact(transition: Transition) -> list[Tensor]:
    """The tensors of transitions as they are stored: ids take four bytes, codes one."""
    history, item, proto, reward, next_history, candidates, done = transition
    columns = [
        *(history.tracks.int(), history.skips.to(torch.uint8), history.log),
        *(item.int(), proto.detach(), reward),
        *(next_history.tracks.int(), next_history.skips.to(torch.uint8), next_history.log),
        *(candidates.int(), done),
    ]
    return [column.cpu() for column in columns]


def _expand(columns: list[Tensor]) -> Transition:
    """The inverse of `_compact`."""
    tracks, skips, log, item, proto, reward, next_tracks, next_skips, next_log, candidates, done = columns
    history = History(tracks.long(), skips.long(), log)
    next_history = History(next_tracks.long(), next_skips.long(), next_log)
    return Transition(history, item.long(), proto, reward, next_history, candidates.long(), done)
