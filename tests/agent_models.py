"""Small agents, transitions and learners."""

import torch
from conftest import N_IDS, random_batch
from model_checks import FEATURES
from sized_models import ActorCritic
from torch.nn.functional import normalize

from model.ddpg import critic_loss
from utils.agents.learner import Learner
from utils.agents.options import DDPGConfig
from utils.agents.replay import Transition
from utils.data.vocab import N_SPECIAL, PAD

SIZES = {"d_model": 6, "d_hidden": 10}


def agent_of(seed=0, **options):
    torch.manual_seed(seed)
    return ActorCritic(N_IDS, FEATURES, **(SIZES | options))


def transition_of(n=12, seed=0):
    history, after = (random_batch(n=n, seed=seed + i).history for i in (0, 1))
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(N_SPECIAL, N_IDS, (n, 5), generator=generator)
    candidates[:, 3] = PAD
    item = torch.randint(N_SPECIAL, N_IDS, (n,), generator=generator)
    proto = normalize(torch.randn(n, SIZES["d_model"], generator=generator), dim=1)
    reward = torch.randint(-1, 2, (n,), generator=generator).float()
    return Transition(history, item, proto, reward, after, candidates, torch.arange(n) % 2 == 0)


def loss_of(agent, target, transition, weights, *, item=True, gamma=0.9):
    return critic_loss(
        agent,
        target,
        history=transition.history,
        action=transition.item if item else transition.proto,
        reward=transition.reward,
        next_history=transition.next_history,
        next_candidates=transition.next_candidates if item else None,
        done=transition.done,
        weights=weights,
        gamma=gamma,
    )


def learner_of(**options):
    return Learner(agent_of(), DDPGConfig(**options))
