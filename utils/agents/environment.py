"""Logged sessions as an environment in which an agent chooses tracks, thousands of sessions at once.

An episode is one batch of sessions, whose second halves are played at once. At each step of a session, the agent sees
the session so far and a set of candidates: the session's own next tracks and, for each of them, some random tracks of
the catalogue (negatives), in random order. The candidate that it executes is removed (position_matched: the track that
was played at this step is, whatever the agent executes). A session has one step per usable target.

    task      reward of an own track                        what the session so far gains
    skip      +1 listened, -1 skipped (skip_2)              the executed own track, and whether it was skipped
    seq       1                                             the executed own track
    seq, position_matched   1 if it is the track played at this very step, else 0      the track played at this step

Negatives bring no reward and leave the session as it was. Of the second half's log and skips, the environment looks
only at the label that makes the reward, and the state tells it only after the agent has executed the track. Shapes: see
the legend in `utils/data/batch.py`; C candidates.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from model.ddpg import STATE_LISTENED, STATE_SKIPPED, STATE_UNKNOWN, played
from utils.agents.options import EnvironmentConfig
from utils.core.errors import UserError
from utils.data.batch import SessionBatch, true_targets
from utils.data.vocab import N_SPECIAL, PAD


class LoggedSessions:
    """B sessions that are played at once.

    Args:
        n_ids: V, negatives are drawn uniformly from its tracks.
        task: decides the reward.
        config: see `EnvironmentConfig`.

    Raises:
        UserError: an option of the other task is set.

    After `reset`, `history` is the session so far and `candidates` int64 (B, C) the tracks that may be executed, PAD
    where there is none.
    """

    def __init__(self, n_ids: int, task: Literal["skip", "seq"], config: EnvironmentConfig) -> None:
        for name, of in (("skip_reward", "skip"), ("position_matched", "seq")):
            if task != of and getattr(config, name) != getattr(EnvironmentConfig(), name):
                raise UserError(f"environment.{name} has no meaning for {task}; leave it out")
        self.n_ids = n_ids
        self.task = task
        self.config = config
        self.walks = task == "seq" and config.position_matched

    def reset(self, batch: SessionBatch) -> None:
        """Begin an episode, each session of `batch` at its cut; torch's generator draws the negatives."""
        own, labels = true_targets(batch), batch.target_skips
        usable = own >= N_SPECIAL
        gain, skips = torch.ones(own.shape, device=own.device), torch.full_like(own, STATE_UNKNOWN)
        if self.task == "skip":
            usable &= labels >= 0
            gain[labels == 1] = self.config.skip_reward
            skips = torch.where(labels == 1, STATE_SKIPPED, STATE_LISTENED)
        n_own, ratio = own.shape[1], self.config.negatives
        # The usable targets come first: a session has one step for each.
        order = (~usable).byte().argsort(dim=1, stable=True)
        own, gain, skips, usable = (values.gather(1, order) for values in (own, gain, skips, usable))
        negatives = torch.randint(N_SPECIAL, self.n_ids, (len(own), n_own * ratio), device=own.device)
        strange = ~(negatives[:, :, None] == own[:, None, :]).any(2)  # (B, T * ratio): not one of the session's own
        tracks = torch.cat([own, negatives], dim=1)
        allowed = torch.cat([usable, strange & usable.repeat(1, ratio)], dim=1)
        gain = torch.cat([gain, torch.zeros_like(negatives, dtype=gain.dtype)], dim=1)
        skips = torch.cat([skips, torch.full_like(negatives, STATE_UNKNOWN)], dim=1)
        steps = torch.arange(tracks.shape[1], device=own.device).expand_as(tracks)
        shuffled = torch.rand(tracks.shape, device=own.device).argsort(1)
        self.history = batch.history
        self.candidates = tracks.masked_fill(~allowed, PAD).gather(1, shuffled)
        self.left = usable.sum(1)
        """int64 (B,): steps to come."""
        self._gain, self._skips = gain.gather(1, shuffled), skips.gather(1, shuffled)
        self._step_of = steps.masked_fill(steps >= n_own, -1).gather(1, shuffled)  # of own tracks, -1 for negatives
        self._step = 0

    @property
    def active(self) -> Tensor:
        """bool (B,): which sessions are not over."""
        return self.left > 0

    @torch.no_grad()
    def step(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Execute the candidates at places `choice`, int64 (B,); sessions that are over stay as they are.

        Returns:
            reward float (B,), 0 where the session was over; done bool (B,), true where it is over now.

        Raises:
            ValueError: a session that is not over has no candidate at its place.
        """
        active, place = self.active, choice[:, None]
        item = self.candidates.gather(1, place)[:, 0]
        if (active & (item == PAD)).any():
            raise ValueError("a place was chosen at which there is no candidate")
        step_of, gain = self._step_of.gather(1, place)[:, 0], self._gain.gather(1, place)[:, 0]
        heard = active & (step_of >= 0)
        if self.walks:  # the log goes on, whatever is chosen
            place = (self._step_of == self._step).byte().argmax(1, keepdim=True)
            gain = (item == self.candidates.gather(1, place)[:, 0]).to(gain.dtype)  # a track may be a candidate twice
            heard = active
        tracks, skips = (values.gather(1, place)[:, 0] for values in (self.candidates, self._skips))
        self.history = played(self.history, tracks, skips, heard)
        removed = torch.zeros_like(self.candidates, dtype=torch.bool).scatter(1, place, active[:, None])
        self.candidates = self.candidates.masked_fill(removed, PAD)
        self.left = self.left - active.long()
        self._step += 1
        return gain * active, active & (self.left == 0)
