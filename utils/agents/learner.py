"""An agent that learns: networks, target networks, optimizers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from model.ddpg import ActorCritic, actor_loss, critic_loss, soft_update
from utils.agents.options import AgentConfig, DDPGConfig, NoiseConfig
from utils.agents.replay import Transition
from utils.core.errors import blame
from utils.data.batch import device_of
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.training.optimizers import clip_gradients, make_optimizers


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


def noise_rate(config: NoiseConfig, episode: int) -> float:
    """The probability that a dimension does not count in episode `episode`, counted from 0."""
    factor = {"none": 0.0, "constant": 1.0, "decay": config.decay**episode}[config.schedule]
    return config.rate * factor


def noise_mask(action: Tensor, rate: float) -> Tensor:
    """Which dimensions of actions (B, D) count: bool (B, D), drawn from torch's generator."""
    return torch.rand(action.shape, device=action.device) >= rate


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
        self.critic_optimizers = make_optimizers(self.critic_part, lr=config.lr)
        self.actor_optimizers = make_optimizers(agent.actor, lr=config.actor_lr)

    @property
    def beta(self) -> float:
        """The exponent of the next update's importance weights; it rises linearly to 1."""
        return self.config.beta + (1 - self.config.beta) * min(1.0, self.updates / self.config.beta_updates)

    def update(self, transition: Transition, weights: Tensor) -> tuple[Tensor, float]:
        """Make one step with critic and actor; the target networks follow.

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
        # The actor's loss leaves gradients in the critic, too: they must go before the critic's next step.
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
        """Go on where another learner of the same sizes stood."""
        self.target.load_state_dict(state["target"])
        optimizers = self.critic_optimizers + self.actor_optimizers
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.updates = state["updates"]


def _to(tensors: Any, device: torch.device) -> Any:
    """A tensor, or tensors in named tuples of any depth, on `device`."""
    if isinstance(tensors, Tensor):
        return tensors.to(device)
    return type(tensors)(*(_to(part, device) for part in tensors))
