"""What would another way of choosing tracks be worth? Estimated from logs of random choices, and checked by simulation.

A uniform shuffle chooses the next track at random, with a known probability (propensity). So logged sessions tell what
any policy that chooses among the same candidates is worth, without ever playing it. A policy's value is the probability
that the track it chooses is listened to (not skipped). Two estimators of it, from N logged choices (x, a, r, p):

    SNIPS   sum_i w_i r_i / sum_i w_i,   w_i = pi(a_i | x_i) / p_i        (Swaminathan and Joachims 2015)
    DR      mean_i  sum_a pi(a | x_i) q(x_i, a) + w_i (r_i - q(x_i, a_i))     (Dudik, Langford, Li 2011)

where q is a model of the reward. Intervals are bootstraps over the choices. In simulated sessions the true value is
known too: the simulator's probability of listening, given the hidden listener, of what the policy chooses.

The choice is the first track of the second half: the context is a history as all models see it. Of the tracks that the
shuffle had not shown yet, k are the candidates: the logged one and k - 1 others drawn uniformly, so that given the
candidates each of them was equally probable, p = 1 / k. Only this one step is evaluated: over ten steps the weights
multiply to k^10, and no log is long enough. Letters: N choices, k candidates; otherwise see `utils/data/batch.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.special import expit

from model.baselines_skip import HistoryLogistic, SkipInputs, TrackRate
from model.decoding import select
from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import is_skip
from utils.data.vocab import UNK
from utils.evaluation import metrics
from utils.evaluation.predict import progress
from utils.simulator.behaviour import TASTE_ROWS, Behaviour, Situation, observed_logit
from utils.simulator.lists import Lists
from utils.simulator.log_files import Job, day_index, job_chunks
from utils.simulator.oracle_logs import dataset_ids
from utils.simulator.sessions import JUMP, START, SWITCH, SimulatedSessions
from utils.simulator.world import World, build_world

N_REWARD_SESSIONS = 20_000
"""Most training sessions, evenly spaced, to fit the model of the reward on."""


class Estimate(NamedTuple):
    """A policy's value with its 95 % interval."""

    value: float
    low: float
    high: float
    effective: float
    """Effective number of choices, (sum w)^2 / sum w^2."""


def snips(reward: NDArray, propensity: NDArray, probability: NDArray) -> Estimate:
    """The self-normalised inverse propensity estimate.

    Args:
        reward: float (N,), of the logged choices.
        propensity: float (N,), the probability with which each was made.
        probability: float (N,), the probability with which the policy would have made it.
    """
    weight = probability / propensity
    return _estimate(weight * reward, weight, weight)


def doubly_robust(reward: NDArray, propensity: NDArray, logged: NDArray, policy: NDArray, model: NDArray) -> Estimate:
    """The doubly robust estimate: unbiased if the propensities are right, exact if the model is.

    Args:
        reward, propensity: float (N,), as for `snips`.
        logged: int (N,), which candidate was chosen.
        policy: float (N, k), the policy's probability of each candidate.
        model: float (N, k), the expected reward of each candidate according to a model that has not seen these rewards.
    """
    rows = np.arange(len(reward))
    weight = policy[rows, logged] / propensity
    values = (policy * model).sum(axis=1) + weight * (reward - model[rows, logged])
    return _estimate(values, np.ones_like(values), weight)


def _estimate(numerator: NDArray, denominator: NDArray, weight: NDArray) -> Estimate:
    mean, low, high = metrics.bootstrap_intervals(numerator[:, None], denominator[:, None])
    effective = weight.sum() ** 2 / max((weight**2).sum(), 1e-12)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), float(effective))


def greedy_policy(scores: NDArray) -> NDArray[np.float64]:
    """Scores (N, k) -> probabilities (N, k): all on the best candidate, shared equally by ties."""
    best = scores == scores.max(axis=1, keepdims=True)
    return best / best.sum(axis=1, keepdims=True)


class Choices(NamedTuple):
    """N random choices of the first track of a second half."""

    rows: NDArray[np.int64]
    """(N,): examples of the loader, in order."""
    candidates: NDArray[np.int64]
    """(N, k): track ids of the dataset."""
    logged: NDArray[np.int64]
    """(N,): which candidate was played."""
    reward: NDArray[np.float64]
    """(N,): 1 listened to, 0 skipped."""
    truth: NDArray[np.float64]
    """(N, k): the simulator's probability that each candidate would have been listened to."""

    @property
    def propensity(self) -> NDArray[np.float64]:
        """(N,): 1 / k."""
        return np.full(len(self.rows), 1 / self.candidates.shape[1])


def evaluate_policy(choices: Choices, policy: NDArray, model: NDArray) -> dict[str, Any]:
    """Both estimates of a policy (N, k) and its true value; `model` (N, k) as for `doubly_robust`."""
    rows = np.arange(len(choices.rows))
    common = (choices.reward, choices.propensity)
    return {
        "snips": snips(*common, policy[rows, choices.logged])._asdict(),
        "dr": doubly_robust(*common, choices.logged, policy, model)._asdict(),
        "truth": float((policy * choices.truth).sum(axis=1).mean()),
    }


def simulated_choices(raw: Path, dataset: Dataset, loader: SessionLoader, *, k: int, seed: int = 0) -> Choices:
    """The choices of uniform shuffles at the cut of a loader's sessions.

    The dataset does not hold the lists that were shuffled. A simulation is a function of its seed, so the sessions of
    the loader's days are simulated once more, and compared with the dataset's.

    Args:
        raw: folder that `python -m utils.simulator` wrote, from which the dataset was made.
        dataset, loader: whose sessions; the loader is ordered and cuts at half.
        k: candidates of a choice; where the shuffle had fewer left, the session is left out.
        seed: of the draw of candidates.

    Raises:
        UserError: the files are missing or are not those of this dataset, or no session has such a choice.
    """
    info = read_json(raw / "hidden_truth" / "world.json")
    world, behaviour = build_world(seed=info["seed"], n_tracks=info["n_tracks"]), Behaviour()
    ids = dataset_ids(world, dataset)
    frame = loader.arrays.sessions.iloc[loader.session]
    place = pd.Series(np.arange(len(frame)), index=frame["session_id"].astype(str))
    rng = np.random.default_rng(seed)
    n_missing = len(place)
    parts: list[tuple[NDArray, ...]] = []
    for day in sorted(frame["day"].unique()):
        lists = world.lists(day_index(day))
        for job in jobs_of(raw, day):
            for sessions, table in job_chunks(world, behaviour, job, seed=world.seed):
                names = table["session_id"].filter(table["session_position"].to_numpy() == 1).to_pylist()
                row = place.reindex(names).fillna(-1).to_numpy().astype(np.int64)
                inside = np.flatnonzero(row >= 0)
                n_missing -= len(inside)
                mine = _part(sessions, inside)
                _check_same(loader, row[inside], ids, mine, raw)
                drawn = draw_candidates(mine, lists, ids != UNK, k=k, rng=rng)
                shuffled = _part(mine, drawn.session)
                cut = shuffled.length // 2
                listened = (~is_skip(shuffled.level[np.arange(len(cut)), cut])).astype(np.float64)
                truth = listen_probability(world, behaviour, shuffled, drawn.candidates)
                parts.append((row[inside][drawn.session], ids[drawn.candidates], drawn.logged, listened, truth))
    if n_missing:
        raise UserError(f"{n_missing} sessions of the dataset are not simulated by {raw}; is it this dataset's?")
    if not sum(len(part[0]) for part in parts):
        raise UserError(f"no session of {loader.arrays.folder} has a shuffled choice among {k} tracks at its cut")
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = columns[0].argsort()
    return Choices(*(column[order] for column in columns))


def jobs_of(raw: Path, day: str) -> list[Job]:
    """The training files of a day."""
    files = sorted(raw.glob(f"hidden_truth/training_set_*/listeners_{day}.parquet"))
    if not files:
        raise UserError(f"{raw} has no hidden_truth/training_set_*/listeners_{day}.parquet; is it this dataset's?")
    return [
        Job(day_index(day), int(path.parent.name.removeprefix("training_set_")), pq.read_metadata(path).num_rows)
        for path in files
    ]


def _part(sessions: SimulatedSessions, rows: NDArray) -> SimulatedSessions:
    return SimulatedSessions(*(values[rows] for values in sessions))


def _check_same(loader: SessionLoader, rows: NDArray, ids: NDArray, sessions: SimulatedSessions, raw: Path) -> None:
    """The first track and the length of each session tell whether it was simulated as it stands in the dataset."""
    arrays, session = loader.arrays, loader.session[rows]
    same = arrays.lengths[session] == sessions.length
    same &= arrays.tracks[arrays.offsets[session]] == ids[sessions.tracks[:, 0]]
    if not same.all():
        raise UserError(f"{raw} does not simulate the sessions of {arrays.folder} as they are; simulate it anew")


class Drawn(NamedTuple):
    """Candidates of M sessions, in the world's numbering."""

    session: NDArray[np.int64]
    """(M,): which sessions."""
    candidates: NDArray[np.int64]
    """(M, k)"""
    logged: NDArray[np.int64]
    """(M,): which candidate was played."""


def draw_candidates(
    sessions: SimulatedSessions, lists: Lists, known: NDArray, *, k: int, rng: np.random.Generator
) -> Drawn:
    """Candidates for the first track of the second half, of sessions in which a uniform shuffle chose it.

    Args:
        sessions: S simulated ones.
        lists: of their day.
        known: bool (tracks of the world,), which tracks may be candidates.
        k: how many candidates; their order tells nothing.
        rng: draws them.
    """
    cut = sessions.length // 2
    chosen = np.flatnonzero(~np.isnan(sessions.propensity[np.arange(len(cut)), cut]))
    found, candidates, places = [], [], []
    for session in chosen.tolist():
        t = cut[session]
        fresh = np.isin(sessions.transition[session, : t + 1], (START, JUMP, SWITCH)).nonzero()[0][-1]
        listed = sessions.lists[session, t]
        left = np.setdiff1d(
            lists.tracks[lists.offsets[listed] : lists.offsets[listed + 1]], sessions.tracks[session, fresh:t]
        )
        logged = sessions.tracks[session, t]
        others = left[known[left] & (left != logged)]
        if known[logged] and len(others) >= k - 1:
            place = int(rng.integers(k))
            found.append(session)
            candidates.append(np.insert(rng.choice(others, k - 1, replace=False), place, logged))
            places.append(place)
    shape = (len(found), k)
    return Drawn(
        np.array(found, dtype=np.int64), np.array(candidates, dtype=np.int64).reshape(shape), np.array(places, np.int64)
    )


def listen_probability(
    world: World, behaviour: Behaviour, sessions: SimulatedSessions, candidates: NDArray
) -> NDArray[np.float64]:
    """The simulator's probability that each candidate (S, k), played first in the second half, is listened to: (S, k).

    The hidden listener is known, and so is whether the play before was skipped. What is chosen here changes neither:
    the listener's taste depends on the first tracks only.
    """
    rows, cut = np.arange(len(candidates)), sessions.length // 2
    if len(cut) and cut.min() < TASTE_ROWS:
        raise ValueError(f"the first {TASTE_ROWS} tracks tell the listener's taste and cannot be chosen")
    hour = (sessions.start_second // 3600).astype(np.int64)
    situation = Situation(sessions.premium, hour, sessions.context[:, 0])
    likes = behaviour.match_effect * world.listener_taste[sessions.listener_taste]  # (S, N_TASTE)
    profile = behaviour.profile(cut, sessions.length)[rows, sessions.listener_type]
    before = 2.0 * is_skip(sessions.level[rows, cut - 1]) - 1
    listener = behaviour.propensities()[0][sessions.listener_propensity] + profile + behaviour.persistence * before
    result = np.empty(candidates.shape)
    for i in range(candidates.shape[1]):
        tracks = sessions.tracks.copy()
        tracks[rows, cut] = candidates[:, i]
        logit = observed_logit(world, behaviour, tracks, situation)[rows, cut] + listener
        result[:, i] = expit(-(logit - (world.taste[candidates[:, i]] * likes).sum(axis=1)))
    return result


@torch.inference_mode()
def policy_scores(
    model: Any, task: Literal["skip", "seq"], loader: SessionLoader, choices: Choices, device: torch.device
) -> NDArray[np.float64]:
    """How much a model wants each candidate to be the next track: (N, k).

    A skip model most wants the candidate that it thinks least likely to be skipped, a seq model the one most likely to
    come next. A model sees the history and, if it is a skip model, one candidate at a time; it sees no other track of
    the second half.
    """
    model.eval()
    scores = np.zeros(choices.candidates.shape)
    place = np.full(loader.n_examples, -1)
    place[choices.rows] = np.arange(len(choices.rows))
    for batch in progress(loader):
        mine = place[batch.rows.numpy()]
        inside = torch.from_numpy(mine >= 0)
        if not inside.any():
            continue
        mine = mine[mine >= 0]
        history = select(batch.history.to(device), inside.to(device))
        candidates = torch.from_numpy(choices.candidates[mine]).to(device)
        if task == "skip":
            of_each = [-model(history, tracks[:, None])[:, 0] for tracks in candidates.unbind(1)]
            scores[mine] = torch.stack(of_each, dim=1).double().cpu().numpy()
        else:
            states = model(history, model.previous_tracks(history, candidates[:, :1]))[:, 0]  # (B, D)
            weight, bias = model.head.at(candidates)
            scores[mine] = (torch.einsum("bd,bkd->bk", states, weight) + bias).double().cpu().numpy()
    return scores


def reward_model(dataset: Dataset, data: DataConfig, loader: SessionLoader, choices: Choices) -> NDArray[np.float64]:
    """The expected reward of each candidate, (N, k), by a logistic regression on the history that is fitted on the
    training split (`HistoryLogistic`, the baseline of the skip task)."""
    train = SessionLoader(
        dataset.train,
        batch_size=4096,
        history_size=data.history_size,
        target_size=data.target_size,
        max_sessions=N_REWARD_SESSIONS,
    )
    rate = TrackRate.fit(dataset.train.tracks, dataset.train.skips, n_ids=dataset.n_ids)
    model = HistoryLogistic.fit(SkipInputs.of(train), train.targets().skips, track_rate=rate)
    inputs = SkipInputs.of(loader).part(choices.rows)
    expected = np.empty(choices.candidates.shape)
    for i, tracks in enumerate(choices.candidates.T):
        targets = inputs.target_tracks.copy()
        targets[:, 0] = tracks  # of the other targets, the first one's prediction depends on their number only
        expected[:, i] = 1 - model.predict(inputs._replace(target_tracks=targets))[0][:, 0]
    return expected
