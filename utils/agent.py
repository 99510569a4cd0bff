"""What the DDPG scripts share: options, the learner, the training around their loops, and the evaluation of agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from model.ddpg import ActorCritic, DDPGForContinuation, DDPGForSkips, actor_loss, critic_loss, soft_update
from model.decoding import select
from model.embeddings import SkipEncoding
from utils import metrics
from utils.batch import SessionBatch, device_of
from utils.checkpoint import load_weights, save_checkpoint
from utils.cli import UserError, blame, check_at_least, check_used
from utils.dataloaders import DataConfig, Dataset, SessionLoader
from utils.replay import PrioritisedReplay, Transition
from utils.run import Run
from utils.scoring import judge, scoring_loader
from utils.training import (
    Progress,
    TrainConfig,
    clip_gradients,
    clock,
    keep_best,
    make_optimizers,
    monitored,
    rng_state,
    set_rng_state,
    training_details,
)
from utils.vocab import N_SPECIAL

N_CALIBRATION = 5000
"""Training sessions, evenly spaced, on which scores are turned into probabilities."""
SCALES = tuple(2 ** (i / 2) for i in range(-40, 19))
"""Factors of dot products that are compared: a millionth, for vectors of any length, to 512."""
N_SAMPLED = 99
"""Negatives of the sampled ranking that the seed reported."""


@dataclass
class AgentConfig:
    """Sizes and inputs of the agent."""

    d_model: int = 32
    """Width of the items' vectors and of the actions (the seed: 8)."""
    d_hidden: int = 64
    """Width of the GRU and of the hidden layers (the seed: 16)."""
    state: Literal["gru", "recent"] = "gru"
    """gru: reads the session so far. recent: the seed's wide and deep state, of the last items that were liked."""
    memory: int = 5
    """recent: how many items."""
    skip_encoding: SkipEncoding = "embedding"
    """gru: how the skips so far enter: none, token, embedding."""
    use_log: bool = True
    """gru: give it the log columns of the history."""
    use_features: bool = True
    """Add a linear map of the audio features to the items' vectors (the seed's items have none)."""
    normalise: bool = True
    """Keep items and actions on the unit sphere."""
    vectors: str = ""
    """File of track vectors (utils/track_vectors.py), d_model wide, from which the items start; empty for random."""

    def __post_init__(self) -> None:
        check_at_least(self, "agent", d_model=1, d_hidden=1, memory=1)
        check_used(self, "agent", "state", memory=("recent",), skip_encoding=("gru",), use_log=("gru",))


@dataclass
class NoiseConfig:
    """Exploration: dimensions of the dot product that do not count when a candidate is chosen."""

    schedule: Literal["none", "constant", "decay"] = "decay"
    """Whether and how the rate falls from episode to episode; an episode is one batch of sessions."""
    rate: float = 0.5
    """Probability that a dimension does not count, at first."""
    decay: float = 0.99
    """decay: factor of the rate after each episode."""

    def __post_init__(self) -> None:
        check_used(self, "noise", "schedule", rate=("constant", "decay"), decay=("decay",))
        for name in ("rate", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"noise.{name} is {getattr(self, name)}; it must be from 0 to 1")

    def rate_at(self, episode: int) -> float:
        """The rate in an episode, from 0."""
        factor = {"none": 0.0, "constant": 1.0, "decay": self.decay**episode}[self.schedule]
        return self.rate * factor

    def mask(self, action: Tensor, episode: int) -> Tensor:
        """Which dimensions of actions (B, D) count: bool (B, D), drawn from torch's generator."""
        return torch.rand(action.shape, device=action.device) >= self.rate_at(episode)


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
    """Updates after each step of an episode's sessions."""
    lr: float = 1e-3
    """Learning rate of Adam, for critic, encoder and items (the seed: 1e-4)."""
    actor_lr: float = 1e-3
    """Learning rate of Adam, for the actor."""
    clip: float = 0.0
    """Largest norm of a gradient; 0 for no clipping."""
    gamma: float = 0.9
    """Discount of later rewards."""
    tau: float = 0.005
    """Share of the networks in their target networks' next values."""
    critic_on: Literal["item", "proto"] = "item"
    """Which action the critic judges: the executed item, or the actor's own vector (the seed)."""
    capacity: int = 100_000
    """Transitions in the replay buffer (the seed: 10,000)."""
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


def build_agent(config: AgentConfig, dataset: Dataset, data: DataConfig) -> ActorCritic:
    """An untrained agent for `dataset`.

    Raises:
        UserError: sizes do not fit each other.
    """
    sizes = asdict(config)
    sizes.pop("vectors")
    features = dataset.features if sizes.pop("use_features") else dataset.features[:, :0]
    with blame("agent"):
        return ActorCritic(dataset.n_ids, features, history_size=data.history_size, sparse=True, **sizes)


class Learner:
    """The networks with their target networks and optimizers.

    Args:
        agent: theta; its copy theta' is made here.
        config: how to learn.
    """

    def __init__(self, agent: ActorCritic, config: DDPGConfig) -> None:
        self.agent = agent
        self.config = config
        self.updates = 0
        features = agent.encoder.tracks.features
        self.target = deepcopy(agent, memo={id(features): features}).requires_grad_(False)
        self.critic_part = nn.ModuleList([agent.encoder, agent.critic])
        self.critic_optimizers = make_optimizers(self.critic_part, TrainConfig(lr=config.lr))
        self.actor_optimizers = make_optimizers(agent.actor, TrainConfig(lr=config.actor_lr))

    @property
    def beta(self) -> float:
        """Of the next update: rises linearly to 1."""
        return self.config.beta + (1 - self.config.beta) * min(1.0, self.updates / self.config.beta_updates)

    def update(self, transition: Transition, weights: Tensor) -> tuple[Tensor, float]:
        """One step of critic and actor, and the target networks after them.

        Returns:
            The temporal-difference errors (B,), and the critic's loss.
        """
        device, on_item = device_of(self.agent), self.config.critic_on == "item"
        transition = _to(transition, device)
        loss, errors = critic_loss(
            self.agent,
            self.target,
            history=transition.history,
            action=transition.item if on_item else transition.proto,
            reward=transition.reward,
            next_history=transition.next_history,
            next_candidates=transition.next_candidates if on_item else None,
            done=transition.done,
            weights=weights.to(device),
            gamma=self.config.gamma,
        )
        self._descend(loss, self.critic_part, self.critic_optimizers)
        self._descend(actor_loss(self.agent, transition.history), self.agent.actor, self.actor_optimizers)
        soft_update(self.target, self.agent, self.config.tau)
        self.updates += 1
        return errors, float(loss.detach())

    def _descend(self, loss: Tensor, part: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        # The actor's loss leaves gradients in the critic, too: they go before anybody steps on them.
        self.agent.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip:
            clip_gradients(part, self.config.clip)
        for optimizer in optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Target networks, optimizers and the number of updates."""
        return {
            "target": self.target.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.critic_optimizers + self.actor_optimizers],
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as another learner of the same sizes would."""
        self.target.load_state_dict(state["target"])
        optimizers = self.critic_optimizers + self.actor_optimizers
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.updates = state["updates"]


class Training:
    """What stands around an agent's loop: episodes, validation, the best weights, resume.

    Interrupted and resumed equals uninterrupted, bit for bit on the CPU: `last.pt` holds the replay buffer as well.

    Args:
        model: what is validated and saved; holds the learner's agent.
        learner, replay: saved and resumed.
        loader: shuffled training sessions, an episode a batch.
        run: where to log and to save; if it is resumed, training goes on from its `last.pt`.
        evaluate_fn: {metric: value} on the validation split.
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
        """Steps are those of single sessions; the loss is the critic's."""
        self.reward = 0.0
        """Sum since the last validation."""
        self.n_rewards = 0
        if run.resumed:
            self._restore()

    @property
    def episode(self) -> int:
        """Episodes that are behind us."""
        return self.loader.epoch * len(self.loader) + max(self.loader.next_batch - 1, 0)

    def episodes(self) -> Iterator[SessionBatch]:
        """Training sessions, an episode at a time; validates between them, and ends with the best weights.

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
        """Take note of the rewards (B,) of a step in the sessions that are `active` (B,)."""
        n = int(active.sum())
        self.progress.step += n
        self.n_rewards += n
        self.reward += float(reward.sum())

    def learn(self, draw_loss: float) -> None:
        """Take note of a critic's loss."""
        self.progress.loss_sum += draw_loss
        self.progress.loss_count += 1

    def details(self) -> dict[str, Any]:
        """What `result.json` says of a trained agent beside its scores."""
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
        value = monitored(values, self.monitor)
        reward = self.reward / max(self.n_rewards, 1)
        run.log(progress.step, self.loader.epoch, "train", {"reward": reward, "critic_loss": loss})
        run.log(progress.step, self.loader.epoch, "valid", values)
        self.reward, self.n_rewards, progress.loss_sum, progress.loss_count = 0.0, 0, 0.0, 0
        best = " (best)" if keep_best(self.model, value, progress, run=run, direction=self.direction) else ""
        self._save()
        tqdm.write(f"step {progress.step:,}: reward {reward:.4f}, valid {self.monitor} {value:.4f}{best}")
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


def _to(tensors: Any, device: torch.device) -> Any:
    """A tensor, or tensors in named tuples of any depth, on `device`."""
    if isinstance(tensors, Tensor):
        return tensors.to(device)
    return type(tensors)(*(_to(part, device) for part in tensors))


def calibration_loader(dataset: Dataset, data: DataConfig, *, labels: bool = False) -> SessionLoader:
    """Training sessions on which scores are turned into probabilities, cut at half as where they are scored.

    Args:
        labels: whether they have to tell skips.

    Raises:
        UserError: of tracks that are skipped, or of tracks that are not, they have none.
    """
    loader = SessionLoader(
        dataset.train,
        batch_size=256,
        history_size=data.history_size,
        target_size=data.target_size,
        min_length=data.min_length,
        max_sessions=N_CALIBRATION,
    )
    if labels and not {0, 1} <= set(np.unique(loader.targets().skips).tolist()):
        raise UserError(f"{dataset.folder / 'train'} has no skipped tracks, or no others; there is nothing to learn")
    return loader


@torch.no_grad()
def calibrate_skips(model: DDPGForSkips, loader: SessionLoader) -> None:
    """Estimate how a score tells a skip, by logistic regression on a loader's sessions: one slope, an intercept for
    each position."""
    device = model.slope.device
    labels = loader.targets().skips
    known = labels >= 0
    position = np.eye(labels.shape[1])[known.nonzero()[1]]
    walks = model.advance
    for model.advance in [False, True] if walks else [False]:  # decisions along the way need a first estimate
        scores = np.zeros(labels.shape)
        for batch in loader:
            history, tracks = batch.inputs(device)
            scores[batch.rows.numpy()] = model.target_scores(history, tracks).cpu().numpy()
        flat = scores[known]
        spread = max(float(flat.std()), 1e-6)  # the regression's penalty knows no units
        columns = np.column_stack([-flat / spread, position])
        fit = LogisticRegression(C=100.0, fit_intercept=False, max_iter=300).fit(columns, labels[known])
        model.slope.fill_(fit.coef_[0, 0] / spread)
        model.intercept.copy_(torch.as_tensor(fit.coef_[0, 1:]))


@torch.no_grad()
def calibrate_ranks(model: DDPGForContinuation, loader: SessionLoader) -> None:
    """Choose the factor of the dot products under which the first targets of a loader are most probable.

    The log-probability is concave in the factor, so the better of two neighbours tells on which side the best one is.
    """
    device = model.scale.device
    model.eval()
    model.scale.fill_(1.0)
    known = []
    for batch in loader:
        history, targets = batch.inputs(device)
        known.append((model(history, model.start(history)), targets[:, :1]))  # (B, 1, D) and (B, 1)

    def log_probability(scale: float) -> float:
        return sum(float(judge(model, states * scale, targets)[0].sum()) for states, targets in known)

    low, high = 0, len(SCALES) - 1
    while low < high:
        middle = (low + high) // 2
        if log_probability(SCALES[middle]) < log_probability(SCALES[middle + 1]):
            low = middle + 1
        else:
            high = middle
    model.scale.fill_(SCALES[low])


@torch.no_grad()
def sampled_ranking(
    model: DDPGForContinuation, dataset: Dataset, data: DataConfig, split: str, *, seed: int = 0
) -> dict[str, Any]:
    """The first target of each session among 99 uniformly drawn other tracks, as the seed reported it.

    Warning: such numbers are not those of the full catalogue and need not even order models alike (Krichene and Rendle
    2020, "On sampled metrics for item recommendation"). Most random tracks are easy to tell from any session's own.

    Returns:
        `split`; `hr@1`, `hr@10`, `mrr` over sessions whose first target is a known track, ties counting half;
        `n_sessions`.
    """
    model.eval()
    device, generator = model.scale.device, torch.Generator().manual_seed(seed)
    ranks = []
    for batch in scoring_loader(dataset, data, split):
        history, targets = batch.inputs(device)
        inside = targets[:, 0] >= N_SPECIAL
        history, true = select(history, inside), targets[inside, :1]
        drawn = torch.randint(N_SPECIAL, dataset.n_ids, (len(true), N_SAMPLED), generator=generator).to(device)
        action = model.agent(history)
        scores = torch.einsum("bd,bcd->bc", action, model.agent.items(torch.cat([true, drawn], dim=1)))
        others, own = scores[:, 1:].masked_fill(drawn == true, -torch.inf), scores[:, :1]
        ranks.append((others > own).sum(1) + 0.5 * (others == own).sum(1))
    rank = torch.cat(ranks).cpu().numpy()
    hits = {f"hr@{k}": float(metrics.hit_rate(rank, k).mean()) for k in (1, 10)}
    return {"split": split, **hits, "mrr": float((1 / (rank + 1)).mean()), "n_sessions": len(rank)}
