"""An actor and a critic that choose tracks: list-wise DDPG (Lillicrap et al. 2016; Zhao et al. 2017, arXiv:1801.00209).

A shared encoder turns the session so far into the state. The action is a vector in the space of the items, and the
agent executes the candidate with the largest dot product. Two small models make an agent answer both tasks: one scores
the given target tracks, the other ranks the whole catalogue.

Zhao et al. recommend a list of tracks in each step. A logged session plays one track after another. So here, as in the
original, a step's list is one track, and the tracks of all steps make up the session. Deviations from the original,
numbered:
    1  no table of users: a user is a session and never comes back, so the state is encoded from the session's history
    2  transitions are (s, a, r, s', done), and what comes after the end is worth nothing (the original stores the
       reward as done)
    3  target networks follow by theta' <- tau theta + (1 - tau) theta' (the original creates them and never moves them)
    4  items and actions lie on the unit sphere: the largest dot product is the nearest item, and the actor cannot raise
       its value by growing (`normalise` turns this off)
    5  the critic judges the executed item, not the actor's own action (`critic_on` of the scripts turns this off). It
       also reads the product of action and projected state, which a layer on concatenated vectors hardly finds
    6  the encoder and the items learn from the critic's loss alone (the original adds the actor's, which moves the
       state towards what the critic values)
    7  Adam instead of Ranger
    8  noise masks dimensions of the dot product, as in the paper (the original masks scores, and a score of zero beats
       all negative ones)
    9  the skip decision is calibrated on training sessions (the original: listened if the score is positive)
Shapes: see the legend in `utils/data/batch.py`; C candidates, Z width of a state.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from model.embeddings import HistoryEmbedding, TrackEmbedding, TrackHead, plays_first
from model.names import SkipEncoding
from utils.data import schema
from utils.data.batch import History, is_skipped
from utils.data.vocab import PAD

STATE_UNKNOWN, STATE_LISTENED, STATE_SKIPPED = 0, 1 + schema.SKIP_PLAYED, 1 + schema.SKIP_1
"""Skip states of a play of which at most the label is known."""


def played(history: History, tracks: Tensor, skips: Tensor, where: Tensor) -> History:
    """Histories with one more play at the end and the first position dropped; the new play's log is unknown.

    Args:
        history: (B, S).
        tracks, skips: int64 (B,), the play and its skip state.
        where: bool (B,), the sessions that get the play; the others stay as they are.
    """
    new = History(tracks[:, None], skips[:, None], torch.zeros_like(history.log[:, :1]))
    longer = [torch.cat([old[:, 1:], last], dim=1) for old, last in zip(history, new, strict=True)]
    rows = [where.view(-1, *[1] * (old.dim() - 1)) for old in history]
    return History(
        *(torch.where(row, *pair) for row, pair in zip(rows, zip(longer, history, strict=True), strict=True))
    )


class StateEncoder(nn.Module):
    """The session so far as a vector.

    Args:
        tracks: track embedding, shared with the items.
        d_model: D.
        d_hidden: Z of the GRU.
        kind: "gru" reads the plays with their skip states. "recent" is the original's wide and deep state,
            (u, u * m, m): m is the sum of the last `memory` items that were not skipped, and u, in place of the user's
            vector, is the mean of all plays.
        memory: see `kind`.
        history_size: S.
        skip_encoding, use_log: what the GRU sees of each play, see `HistoryEmbedding`.
    """

    def __init__(
        self,
        tracks: TrackEmbedding,
        d_model: int,
        *,
        d_hidden: int,
        kind: Literal["gru", "recent"],
        memory: int,
        history_size: int,
        skip_encoding: SkipEncoding,
        use_log: bool,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.tracks = tracks
        self.size = d_hidden if kind == "gru" else 3 * d_model
        self.embed = self.gru = None
        if kind == "gru":
            sizes = {"history_size": history_size, "skip_encoding": skip_encoding, "use_log": use_log}
            self.embed = HistoryEmbedding(tracks, d_model, **sizes)  # type: ignore[arg-type]
            self.gru = nn.GRU(d_model, d_hidden, batch_first=True)

    def forward(self, history: History) -> Tensor:
        """Histories (B, S) -> states (B, Z)."""
        if self.embed is None or self.gru is None:
            return self._recent(history)
        x = self.embed(history)  # (B, S, D)
        n_plays = (history.tracks != PAD).sum(1)  # (B,)
        x, _ = self.gru(plays_first(x, x.shape[1] - n_plays))
        last = (n_plays - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
        return x.gather(1, last)[:, 0]

    def _recent(self, history: History) -> Tensor:
        x, real = self.tracks(history.tracks), history.tracks != PAD
        u = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        liked = real & ~is_skipped(history.skips)
        later = liked.flip(1).cumsum(1).flip(1)  # how many liked ones from here on
        m = (x * (liked & (later <= self.memory))[..., None]).sum(1)
        return torch.cat([u, u * m, m], dim=1)


class Actor(nn.Module):
    """mu(s): states (B, Z) -> actions (B, D), on the unit sphere if `normalise`."""

    def __init__(self, d_state: int, d_model: int, d_hidden: int, *, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.layers = nn.Sequential(nn.Linear(d_state, d_hidden), nn.ReLU(), nn.Linear(d_hidden, d_model))

    def forward(self, state: Tensor) -> Tensor:
        action = self.layers(state)
        return normalize(action, dim=-1) if self.normalise else action


class Critic(nn.Module):
    """Q(s, a): states (..., Z) and actions (..., D) -> expected discounted rewards (...)."""

    def __init__(self, d_state: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_state, d_model)
        self.layers = nn.Sequential(nn.Linear(d_state + 2 * d_model, d_hidden), nn.ReLU(), nn.Linear(d_hidden, 1))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([state, action, self.project(state) * action], dim=-1)
        return self.layers(x)[..., 0]


class ActorCritic(nn.Module):
    """The agent: encoder and items, actor, critic.

    Args:
        n_ids: V.
        features: float (V, F); if F is above 0, an item's vector includes a linear map of them.
        d_model: D, width of items and actions.
        d_hidden: width of the GRU and of the hidden layers.
        state, memory, history_size, skip_encoding, use_log: see `StateEncoder`.
        normalise: put items and actions on the unit sphere.
        sparse: gradients of the track table hold only the rows of a batch, see `TrackEmbedding`.
    """

    def __init__(
        self,
        n_ids: int,
        features: Tensor,
        *,
        d_model: int,
        d_hidden: int,
        state: Literal["gru", "recent"],
        memory: int,
        history_size: int,
        skip_encoding: SkipEncoding,
        use_log: bool,
        normalise: bool,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        tracks = TrackEmbedding(n_ids, d_model, features, sparse=sparse)
        self.encoder = StateEncoder(
            tracks,
            d_model,
            d_hidden=d_hidden,
            kind=state,
            memory=memory,
            history_size=history_size,
            skip_encoding=skip_encoding,
            use_log=use_log,
        )
        self.actor = Actor(self.encoder.size, d_model, d_hidden, normalise=normalise)
        self.critic = Critic(self.encoder.size, d_model, d_hidden)

    def items(self, tracks: Tensor) -> Tensor:
        """Ids (...) -> their vectors (..., D), zero for PAD."""
        vectors = self.encoder.tracks(tracks)
        return normalize(vectors, dim=-1) if self.normalise else vectors

    def forward(self, history: History) -> Tensor:
        """Histories (B, S) -> the actions mu(s), (B, D)."""
        return self.actor(self.encoder(history))

    def choose(self, action: Tensor, candidates: Tensor, mask: Tensor | None = None) -> Tensor:
        """The candidate with the largest dot product.

        Args:
            action: (B, D).
            candidates: int64 (B, C), PAD where there is none.
            mask: bool (B, D), the dimensions that count; all of them if not given.

        Returns:
            Places int64 (B,) among the candidates; ties go to the first, and 0 stands where there is no candidate.
        """
        masked = action if mask is None else action * mask
        scores = torch.einsum("bd,bcd->bc", masked, self.items(candidates))
        return scores.masked_fill(candidates == PAD, -torch.inf).argmax(1)

    def value(self, state: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) of states (B, Z) and actions (B, D) or (B, C, D): (B,) or (B, C)."""
        if action.dim() > state.dim():
            state = state[:, None].expand(-1, action.shape[1], -1)
        return self.critic(state, action)


class Losses(NamedTuple):
    """The critic's loss of a batch, and the error of each transition."""

    loss: Tensor
    """(): mean of weights times squared errors."""
    errors: Tensor
    """(B,): the temporal-difference errors, detached."""


def bellman_target(reward: Tensor, done: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - done) Q'(s', a'), (B,) (Lillicrap et al. 2016, algorithm 1)."""
    return reward + gamma * torch.where(done, 0.0, next_value)


def critic_loss(
    agent: ActorCritic,
    target: ActorCritic,
    *,
    history: History,
    action: Tensor,
    reward: Tensor,
    next_history: History,
    next_candidates: Tensor | None,
    done: Tensor,
    weights: Tensor,
    gamma: float,
) -> Losses:
    """The critic's loss, mean of w (y - Q(s, a))^2.

    Args:
        agent: its critic, encoder and items learn.
        target: Q' and mu'; gets no gradient.
        history, reward, next_history, done, weights: of B transitions.
        action: int64 (B,), the executed tracks; or float (B, D), the actor's own actions.
        next_candidates: int64 (B, C): a' is the nearest of them to mu'(s'); without them a' is mu'(s') itself.
        gamma: the discount.
    """
    with torch.no_grad():
        next_state = target.encoder(next_history)
        next_action = target.actor(next_state)
        if next_candidates is not None:
            place = target.choose(next_action, next_candidates)
            next_action = target.items(next_candidates.gather(1, place[:, None])[:, 0])
        y = bellman_target(reward, done, target.value(next_state, next_action), gamma)
    vectors = action if action.is_floating_point() else agent.items(action)
    errors = y - agent.value(agent.encoder(history), vectors)
    return Losses((weights * errors**2).mean(), errors.detach())


def actor_loss(agent: ActorCritic, history: History) -> Tensor:
    """-mean Q(s, mu(s)), (): the deterministic policy gradient; it does not move the state (deviation 6)."""
    with torch.no_grad():
        state = agent.encoder(history)
    return -agent.value(state, agent.actor(state)).mean()


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """theta' <- tau theta + (1 - tau) theta', for all parameters."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


class DDPGForSkips(nn.Module):
    """Which of the given target tracks will be skipped, according to an agent?

    A track's score is its dot product with the action (`score` "actor"), or the value of executing it ("critic"). The
    skip probability is a logistic function of the score, with one slope and an intercept for each position. These are
    estimated on training sessions (`utils.agents.calibration.calibrate_skips`), not learned with the agent.

    The agent is not told which targets are skipped. Its state is that after the history. With `advance`, it instead
    walks along the targets and adds each to the session, skipped or not as it has decided itself.

    Args:
        agent: scores tracks.
        target_size: T.
        score, advance: see above.
    """

    slope: Tensor
    intercept: Tensor

    def __init__(
        self,
        agent: ActorCritic,
        *,
        target_size: int,
        score: Literal["actor", "critic"],
        advance: bool,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.score = score
        self.advance = advance
        self.register_buffer("slope", torch.tensor(1.0))
        self.register_buffer("intercept", torch.zeros(target_size))

    def scores(self, history: History, tracks: Tensor) -> Tensor:
        """Scores (B, C) of tracks int64 (B, C) after histories (B, S)."""
        state, vectors = self.agent.encoder(history), self.agent.items(tracks)
        if self.score == "critic":
            return self.agent.value(state, vectors)
        return torch.einsum("bd,bcd->bc", self.agent.actor(state), vectors)

    def target_scores(self, history: History, target_tracks: Tensor) -> Tensor:
        """Scores (B, T) of target tracks (B, T), each when its turn comes."""
        if not self.advance:
            return self.scores(history, target_tracks)
        steps = []
        for t, tracks in enumerate(target_tracks.unbind(1)):
            steps.append(self.scores(history, tracks[:, None])[:, 0])
            skips = torch.where(self._logits(steps[-1], t) >= 0, STATE_SKIPPED, STATE_LISTENED)
            history = played(history, tracks, skips, tracks != PAD)
        return torch.stack(steps, dim=1)

    def forward(self, history: History, target_tracks: Tensor) -> Tensor:
        """History and target tracks (B, T) -> logits (B, T) of a skip."""
        scores = self.target_scores(history, target_tracks)
        return self._logits(scores, slice(scores.shape[1]))

    def _logits(self, scores: Tensor, step: int | slice) -> Tensor:
        return self.intercept[step] - self.slope * scores


class ContinuationState(NamedTuple):
    """What the agent keeps between two steps; all tensors have the rows first."""

    history: History
    begun: Tensor
    """bool (B,): whether the first step is over. Its track, the start token, is in the history already."""


class DDPGForContinuation(nn.Module):
    """Which tracks come next, according to an agent? Those with the largest dot products with its action.

    `head` holds the vectors of all items; each switch to evaluation brings them up to date. States are actions times
    `scale`, which turns dot products into probabilities. It is estimated on training sessions
    (`utils.agents.calibration.calibrate_ranks`) and changes no rank.

    Args:
        agent: scores tracks.
    """

    scale: Tensor

    def __init__(self, agent: ActorCritic) -> None:
        super().__init__()
        self.agent = agent
        table = agent.encoder.tracks.table
        self.head = TrackHead(table.num_embeddings, table.embedding_dim).requires_grad_(False)
        self.register_buffer("scale", torch.tensor(1.0))

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or to evaluation mode with the items' current vectors."""
        if not mode:
            with torch.no_grad():
                ids = torch.arange(len(self.head.weight), device=self.head.weight.device)
                self.head.weight.copy_(self.agent.items(ids))
        return super().train(mode)

    def forward(self, history: History, previous: Tensor) -> Tensor:
        """History and previous tracks (B, T), the first of which is the history's last -> states (B, T, D)."""
        state, states = self.begin(history), []
        for tracks in previous.unbind(1):
            action, state = self.step(state, tracks)
            states.append(action)
        return torch.stack(states, dim=1)

    def begin(self, history: History) -> ContinuationState:
        """The state before the first step."""
        return ContinuationState(history, torch.zeros_like(history.tracks[:, 0], dtype=torch.bool))

    def step(self, state: ContinuationState, tracks: Tensor) -> tuple[Tensor, ContinuationState]:
        """The next tracks (B,), the start token first -> states (B, D), and the state after them."""
        heard = state.begun & (tracks != PAD)
        history = played(state.history, tracks, torch.full_like(tracks, STATE_UNKNOWN), heard)
        return self.agent(history) * self.scale, ContinuationState(history, torch.ones_like(state.begun))

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores of all ids (..., V), minus infinity at the special ones."""
        return self.head(states)

    def start(self, history: History) -> Tensor:
        """The token (B, 1) before the first prediction: the history's last track."""
        return history.tracks[:, -1:]

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Targets (B, T) shifted right, after the start token."""
        return torch.cat([self.start(history), targets[:, :-1]], dim=1)
