"""What surrounds an agent's loop: episodes, validation, the best weights, resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from utils.agents.learner import Learner
from utils.agents.replay import PrioritisedReplay
from utils.core.errors import UserError
from utils.data.batch import SessionBatch, device_of
from utils.data.dataloaders import SessionLoader
from utils.training.checkpoint import load_weights, rng_state, save_checkpoint, set_rng_state
from utils.training.loop import Progress, clock, keep_best, monitored, training_details, validated
from utils.training.run import Run


class Training:
    """What surrounds an agent's loop: episodes, validation, the best weights, resuming.

    A run that is interrupted and resumed equals an uninterrupted one, bit for bit on the CPU: `last.pt` holds the
    replay buffer as well.

    Args:
        model: what is validated and saved; holds the learner's agent.
        learner, replay: saved and resumed.
        loader: shuffled training sessions; each batch is an episode.
        run: where to log and to save; if it is resumed, training goes on from its `last.pt`.
        evaluate_fn: {metric: value} on the validation split; {} if it is empty.
        monitor: the metric that chooses the best weights; `direction` says which way is better.
    """

    def __init__(
        self,
        model: nn.Module,
        learner: Learner,
        replay: PrioritisedReplay,
        loader: SessionLoader,
        *,
        run: Run,
        evaluate_fn: Callable[[], dict[str, float | None]],
        monitor: str,
        direction: Literal["max", "min"] = "max",
    ) -> None:
        self.model, self.learner, self.replay, self.loader, self.run = model, learner, replay, loader, run
        self.config = learner.config
        self.evaluate_fn = evaluate_fn
        self.monitor = monitor
        self.direction: Literal["max", "min"] = direction
        self.progress = Progress()
        """`step` counts the steps of single sessions; the loss is the critic's."""
        self.reward = 0.0
        """Sum since the last validation."""
        self.n_rewards = 0
        if run.resumed:
            self._restore()

    @property
    def episode(self) -> int:
        """Number of the current episode, from 0."""
        return self.loader.epoch * len(self.loader) + max(self.loader.next_batch - 1, 0)

    def episodes(self) -> Iterator[SessionBatch]:
        """Training sessions, an episode at a time; validates between episodes, and ends with the best weights.

        Raises:
            UserError: the critic's loss is not finite any more, or there was no update.
        """
        device = device_of(self.model)
        now, limit = clock(self.config.clock), self.config.max_seconds
        loader, progress = self.loader, self.progress
        stopped = progress.reached(limit) or 0 < self.config.patience <= progress.validations_since_best
        while loader.epoch < self.config.epochs and not stopped:
            epoch = loader.epoch + 1
            bar = tqdm(loader, initial=loader.next_batch, total=len(loader), unit="episode", desc=f"epoch {epoch}")
            started = now()
            for batch in bar:
                yield batch.to(device)
                progress.seconds += now() - started
                bar.set_postfix(reward=f"{self.reward / max(self.n_rewards, 1):.4f}", refresh=False)
                stopped = progress.reached(limit)
                inside = loader.next_batch < len(loader)
                due = self.config.evaluate_every and loader.next_batch % self.config.evaluate_every == 0
                if inside and (stopped or due):
                    stopped = self._validate() or stopped
                if inside and stopped:
                    break
                started = now()
            else:
                stopped = self._validate() or stopped
        if self.config.updates and not self.learner.updates:
            raise UserError(
                f"nothing was learnt: {len(self.replay)} transitions are fewer than train.batch_size "
                f"{self.config.batch_size}; lower it, or play more sessions"
            )
        load_weights(self.model, self.run.folder / "best.pt", vocabulary_hash=self.run.dataset.vocabulary_hash)

    def count(self, reward: Tensor, active: Tensor) -> None:
        """Record the rewards (B,) of a step in the sessions that are `active` (B,)."""
        n = int(active.sum())
        self.progress.step += n
        self.n_rewards += n
        self.reward += float(reward.sum())

    def learn(self, draw_loss: float) -> None:
        """Record the critic's loss in an update."""
        self.progress.loss_sum += draw_loss
        self.progress.loss_count += 1

    def details(self) -> dict[str, Any]:
        """What `result.json` says of a trained agent besides its scores."""
        return training_details(self.learner.agent, self.progress) | {
            "environment_steps": self.progress.step,
            "updates": self.learner.updates,
        }

    def _validate(self) -> bool:
        """Evaluate, keep the best weights, save the state; true if training should stop."""
        progress, run = self.progress, self.run
        loss = progress.loss_sum / max(progress.loss_count, 1)
        if not np.isfinite(loss):  # before such weights are evaluated
            raise UserError(f"the critic's loss became {loss}; lower --train.lr, or clip with --train.clip 1.0")
        values = self.evaluate_fn()
        value = monitored(values, self.monitor) if values else None
        reward = self.reward / max(self.n_rewards, 1)
        run.log(progress.step, self.loader.epoch, "train", {"reward": reward, "critic_loss": loss})
        if values:
            run.log(progress.step, self.loader.epoch, "valid", values)
        self.reward, self.n_rewards, progress.loss_sum, progress.loss_count = 0.0, 0, 0.0, 0
        best = keep_best(self.model, value, progress, run=run, direction=self.direction)
        self._save()
        tqdm.write(f"step {progress.step:,}: reward {reward:.4f}, {validated(self.monitor, value, best=best)}")
        return 0 < self.config.patience <= progress.validations_since_best

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "loader": self.loader.state_dict(),
            "progress": vars(self.progress),
            "vocabulary_hash": self.run.dataset.vocabulary_hash,
            "rng": rng_state(device_of(self.model)),
        }
        save_checkpoint(self.run.folder / "last.pt", state)

    def _restore(self) -> None:
        path, hash_ = self.run.folder / "last.pt", self.run.dataset.vocabulary_hash
        state = load_weights(self.model, path, vocabulary_hash=hash_)
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.loader.load_state_dict(state["loader"])
        self.progress = Progress(**state["progress"])
        set_rng_state(state["rng"], device_of(self.model))
        self.run.rewind(self.progress.step)
