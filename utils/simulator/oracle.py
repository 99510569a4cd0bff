"""The best that can be done on a simulated dataset: exact Bayes predictions by someone who knows the generator.

    python -m utils.simulator.oracle --raw data/raw/demo --data.folder data/demo

The oracle sees what a model may see: all columns of the first half and the track ids of the second half (`skip`) or
the first half alone (`seq`). It also knows the world and the calibrated constants, but nothing hidden of a session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from tqdm import tqdm

from utils.core.cli import cli
from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import CONTEXT_TYPES, MAX_LENGTH, MIN_LENGTH, SKIP_2, half
from utils.data.vocab import PAD, UNK
from utils.evaluation.predictions import Predict, SeqPredictions, SkipPredictions
from utils.evaluation.scoring import score, scoring_loaders
from utils.simulator.behaviour import Behaviour, Situation, level_probabilities, observed_logit, taste_prior
from utils.simulator.log_files import day_index
from utils.simulator.sessions import BACK, JUMP, NEXT, START, SWITCH
from utils.simulator.track_oracle import ContinuationOracle, FirstHalf
from utils.simulator.world import World, build_world
from utils.training.options import RunConfig
from utils.training.run import Run

MAX_TARGETS = MAX_LENGTH - half(MAX_LENGTH)


class SkipPosterior(NamedTuple):
    """Beliefs about the second halves of S sessions of one length, T targets."""

    probability: NDArray[np.float64]  # (S, T) P(y_i | first half)
    pairwise: NDArray[np.float64]  # (S, T, T) P(y_i and y_j | first half)


def skip_posterior(
    world: World,
    behaviour: Behaviour,
    *,
    length: int,
    tracks: NDArray,
    situation: Situation,
    level: NDArray,
    broken: NDArray,
) -> SkipPosterior:
    """Filter the listener from the first half, then predict the skips of the second half.

    Args:
        length: of all S sessions.
        tracks: (S, length) all tracks.
        situation: of the first play.
        level: (S, length // 2) skip levels of the first half.
        broken: (S, length // 2) whether what followed each play was a back, a restart, a jump or a switch (its end
            reason is backbtn or endplay).
    """
    n_sessions, history = len(tracks), half(length)
    values, probabilities = behaviour.propensities()
    taste = taste_prior(world, behaviour, tracks)
    n_types, n_values, n_tastes = 4, len(values), taste.shape[1]
    n_states = n_types * n_values * n_tastes

    observed = observed_logit(world, behaviour, tracks, situation)
    match = -behaviour.match_effect * world.taste[tracks].astype(np.float64) @ world.listener_taste.T  # (S, L, tastes)
    profile = behaviour.profile(np.arange(length), np.array(length))  # (L, types)

    def logit(position: int) -> NDArray[np.float64]:
        """(S, states) without the effect of the previous skip."""
        listener = profile[position][:, None, None] + values[:, None]  # (types, values, 1)
        total = observed[:, position, None, None, None] + match[:, position, None, None, :] + listener
        return total.reshape(n_sessions, n_states)

    listener = np.asarray(behaviour.type_shares)[:, None] * probabilities
    log_weight = (np.log(listener)[:, :, None] + np.log(taste)[:, None, None, :]).reshape(n_sessions, n_states)
    log_level = np.log(level_probabilities(behaviour).clip(1e-300))
    previous: NDArray = np.zeros(n_sessions)
    for position in range(history):
        skipped = (level[:, position] >= SKIP_2).astype(np.int64)
        sign = 2.0 * skipped - 1
        score = logit(position) + behaviour.persistence * previous[:, None]
        log_weight -= np.logaddexp(0.0, -sign[:, None] * score)
        by_type = log_level[:, skipped, broken[:, position].astype(np.int64), level[:, position]].T  # (S, types)
        log_weight += np.repeat(by_type, n_values * n_tastes, axis=1)
        previous = sign
    weight: NDArray = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)

    n_targets = length - history
    pairwise = np.zeros((n_sessions, n_targets, n_targets))
    marginal: NDArray | None = None
    given: list[NDArray] = []  # given[j]: P(y_i | y_j, state)
    joint: list[NDArray] = []  # joint[j]: weight x P(y_j | state)
    for i in range(n_targets):
        score = logit(history + i)
        if marginal is None:
            marginal = expit(score + behaviour.persistence * previous[:, None])
        else:
            after_skip = expit(score + behaviour.persistence)
            after_play = expit(score - behaviour.persistence)
            rise = after_skip - after_play
            marginal = after_play + rise * marginal
            given = [after_play + rise * chance for chance in given[:-1]] + [after_skip]
        for j, (weighted, chance) in enumerate(zip(joint, given, strict=True)):
            pairwise[:, i, j] = pairwise[:, j, i] = np.einsum("sz,sz->s", weighted, chance)
        joint.append(weight * marginal)
        pairwise[:, i, i] = joint[-1].sum(axis=1)
        given.append(np.ones_like(marginal))
    return SkipPosterior(np.einsum("sii->si", pairwise).copy(), pairwise)


def expected_accuracy(posterior: SkipPosterior, decisions: NDArray) -> NDArray[np.float64]:
    """(S, K) expected average accuracy (AA) of each of the `decisions` (K, T), booleans, for each session.

    With s_i = 1 or -1 the decision and z_i the truth, step i is right when L_i = (1 + s_i z_i) / 2 is 1, and
    AA = 1/T sum_i 1/i (L_i + sum_{j<i} L_i L_j) is linear in (s_i, s_i s_j): one matrix product for all decisions.
    """
    n_targets = posterior.probability.shape[1]
    mean = 2 * posterior.probability - 1  # E z_i
    product_mean = (
        4 * posterior.pairwise - 2 * posterior.probability[:, :, None] - 2 * posterior.probability[:, None] + 1
    )
    step = 1.0 / (np.arange(n_targets) + 1)  # 1 / i
    later = np.concatenate([np.cumsum(step[::-1])[::-1][1:], [0.0]])  # sum of 1 / n over n > i
    pairs = list(combinations(range(n_targets), 2))  # (j, i) with j < i
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    constant = (step / 2 + step * np.arange(n_targets) / 4).sum()
    linear = mean * (step / 2 + step * np.arange(n_targets) / 4 + later / 4)
    quadratic = product_mean[:, first, second] * step[second] / 4
    signs = 2.0 * np.asarray(decisions) - 1
    features = np.concatenate([signs, signs[:, first] * signs[:, second]], axis=1)
    return (constant + np.concatenate([linear, quadratic], axis=1) @ features.T) / n_targets


def best_decisions(posterior: SkipPosterior) -> NDArray[np.bool_]:
    """(S, T) the decisions with the highest expected average accuracy, found among all 2^T."""
    n_targets = posterior.probability.shape[1]
    candidates = np.array(list(product([False, True], repeat=n_targets)))
    return candidates[expected_accuracy(posterior, candidates).argmax(axis=1)]


class Logs(NamedTuple):
    """The raw rows of N sessions of 10 to 20 plays, padded. Of the second half only the tracks are filled."""

    length: NDArray[np.int64]  # (N,)
    tracks: NDArray[np.int64]  # (N, 20) in the world's numbering
    level: NDArray[np.int64]  # (N, 20)
    steps: NDArray[np.int64]  # (N, 20) START, NEXT, BACK (or restart), JUMP or SWITCH
    after: NDArray[np.int64]  # (N, 20) NEXT, BACK or JUMP (or switch)
    context: NDArray[np.int64]  # (N, 20)
    shuffle: NDArray[np.bool_]  # (N, 20)
    situation: Situation  # (N,)
    day: NDArray[np.int64]  # (N,)


LOG_QUERY = """
    SELECT row, session_position - 1 AS position, session_length AS length, track_id_clean AS track,
        CASE WHEN half THEN CASE WHEN skip_1 THEN 4 WHEN skip_2 THEN 3 WHEN skip_3 THEN 2 WHEN not_skipped THEN 1
            ELSE 0 END END AS level,
        CASE WHEN half THEN CASE WHEN session_position = 1 THEN {start} WHEN context_switch = 1 THEN {switch}
            WHEN hist_user_behavior_reason_start = 'backbtn' THEN {back}
            WHEN hist_user_behavior_reason_start IN ('clickrow', 'clickside', 'popup', 'uriopen') THEN {jump}
            ELSE {next} END END AS step,
        CASE WHEN half THEN CASE hist_user_behavior_reason_end WHEN 'backbtn' THEN {back} WHEN 'endplay' THEN {jump}
            ELSE {next} END END AS after,
        CASE WHEN half THEN context_type END AS context,
        CASE WHEN half THEN hist_user_behavior_is_shuffle END AS shuffle,
        CASE WHEN half THEN premium END AS premium,
        CASE WHEN half THEN hour_of_day END AS hour
    FROM (SELECT *, session_position <= session_length // 2 AS half FROM read_csv({files}, header = true))
    JOIN wanted USING (session_id)
""".format  # the second half leaves the query without its log


def read_logs(raw: Path, world: World, sessions: pd.DataFrame) -> Logs:
    """Read the rows of the given sessions (columns session_id and day) from the raw files of their days.

    Raises:
        UserError: a day has no file, or sessions are not in the files.
    """
    days = sorted(sessions["day"].unique())
    files = [str(path) for day in days for path in sorted(raw.glob(f"training_set_*/log_*_{day}_*.csv*"))]
    if not files:
        raise UserError(
            f"{raw} has no training_set_*/log_*_{days[0]}_*.csv; give the folder that the dataset was made of"
        )
    wanted = pd.DataFrame({"session_id": sessions["session_id"].to_numpy(), "row": np.arange(len(sessions))})
    query = LOG_QUERY(start=START, switch=SWITCH, back=BACK, jump=JUMP, next=NEXT, files=files)
    with duckdb.connect() as connection:
        connection.register("wanted", wanted)
        rows = connection.execute(query).df()
    missing = np.setdiff1d(wanted["row"], rows["row"])
    if len(missing):
        first = wanted["session_id"][missing[0]]
        raise UserError(f"{len(missing)} sessions of the dataset are not in {raw} (the first is {first})")

    cells = rows["row"].to_numpy(), rows["position"].to_numpy().astype(np.int64)

    def table(values: Any, dtype: type = np.int64) -> NDArray:
        padded: NDArray = np.zeros((len(sessions), MAX_LENGTH), dtype=dtype)
        padded[cells] = values
        return padded

    order = np.argsort(world.track_ids)
    names = rows["track"].to_numpy().astype("S38")
    place = np.minimum(np.searchsorted(world.track_ids[order], names), world.n_tracks - 1)
    strangers = world.track_ids[order[place]] != names
    if strangers.any():
        raise UserError(f"track {names[strangers][0].decode()} is not of this world; is {raw} simulated, and whole?")
    context = table(pd.Categorical(rows["context"], categories=CONTEXT_TYPES).codes.clip(0))
    premium = table(rows["premium"].fillna(False), bool)
    hour = table(rows["hour"].fillna(0))
    return Logs(
        length=table(rows["length"])[:, 0],
        tracks=table(order[place]),
        level=table(rows["level"].fillna(0)),
        steps=table(rows["step"].fillna(0)),
        after=table(rows["after"].fillna(0)),
        context=context,
        shuffle=table(rows["shuffle"].fillna(False), bool),
        situation=Situation(premium[:, 0], hour[:, 0], context[:, 0]),
        day=np.array([day_index(day) for day in sessions["day"]]),
    )


CHUNK = 512
"""Sessions that are filtered at once: 512 x 720 states x 30 arrays are some 90 MB."""


def predict_skips(world: World, behaviour: Behaviour, logs: Logs) -> SkipPredictions:
    """Exact probabilities and the decisions that are optimal for mean average accuracy, (N, 10)."""
    probability = np.zeros((len(logs.length), MAX_TARGETS), np.float32)
    decision = np.zeros((len(logs.length), MAX_TARGETS), bool)
    with tqdm(total=len(logs.length), desc="skip oracle", unit="session", leave=False, delay=2) as bar:
        for length in range(MIN_LENGTH, MAX_LENGTH + 1):
            alike = np.flatnonzero(logs.length == length)
            for rows in (alike[start : start + CHUNK] for start in range(0, len(alike), CHUNK)):
                posterior = skip_posterior(
                    world,
                    behaviour,
                    length=length,
                    tracks=logs.tracks[rows, :length],
                    situation=Situation(*(values[rows] for values in logs.situation)),
                    level=logs.level[rows, : half(length)],
                    broken=logs.after[rows, : half(length)] != NEXT,
                )
                n_targets = length - half(length)
                probability[rows, :n_targets] = posterior.probability
                decision[rows, :n_targets] = best_decisions(posterior)
                bar.update(len(rows))
    return SkipPredictions(probability, decision)


def predict_tracks(world: World, logs: Logs, ids: NDArray[np.int64]) -> SeqPredictions:
    """The most probable track of every step, (N, 10), and the rank of the first true one.

    Args:
        ids: (N tracks of the world,) their ids in the dataset; tracks that are UNK there are not predicted.
    """
    tracks = np.full((len(logs.length), MAX_TARGETS), PAD, np.int32)
    rank = np.full(len(logs.length), np.inf, np.float32)
    with tqdm(total=len(logs.length), desc="seq oracle", unit="session", leave=False, delay=2) as bar:
        for day in np.unique(logs.day):
            oracle = ContinuationOracle(world, world.lists(int(day)), ids != UNK)
            for row in np.flatnonzero(logs.day == day).tolist():
                cut, length = half(int(logs.length[row])), int(logs.length[row])
                guess = oracle.predict(first_half(logs, row), int(logs.tracks[row, cut]))
                tracks[row, : length - cut] = ids[guess.tracks[: length - cut]]
                rank[row] = guess.rank
                bar.update()
    return SeqPredictions(tracks, None, rank)


def first_half(logs: Logs, row: int) -> FirstHalf:
    """What the log tells of the first half of session `row`."""
    cut = half(int(logs.length[row]))
    tracks, steps, context, shuffle = (
        values[row, :cut] for values in (logs.tracks, logs.steps, logs.context, logs.shuffle)
    )
    return FirstHalf(tracks, steps, context, shuffle, int(logs.after[row, cut - 1]))


LABELS = {
    "skip": "Oracle (the simulator's optimum)",
    # Not strictly the optimum of mean average accuracy, which rewards runs: up to 0.0012 more of it is possible.
    "seq": "Oracle (best track at each position)",
}


@dataclass
class Config:
    """Experiment."""

    raw: str = "data/raw/demo"
    """Folder of `python -m utils.simulator` that the dataset was made of."""
    data: DataConfig = field(default_factory=lambda: DataConfig(scored=["valid", "test"]))
    run: RunConfig = field(default_factory=RunConfig)
    task: Literal["skip", "seq", "both"] = "both"
    """Which oracle."""

    def __post_init__(self) -> None:
        if (self.data.history_size, self.data.target_size) != (MAX_LENGTH // 2, MAX_TARGETS) or self.data.every_prefix:
            raise UserError("the oracle sees whole halves: leave data.history_size, target_size and every_prefix alone")


def main(config: Config) -> list[dict[str, Any]]:
    """Score the oracle; returns the contents of the result.json files."""
    raw = Path(config.raw)
    truth = read_json(raw / "hidden_truth" / "world.json")
    world = build_world(seed=truth["seed"], n_tracks=truth["n_tracks"])
    dataset = Dataset.open(config.data.folder, needs_skips=True)
    logs: dict[Path, Logs] = {}

    def logs_of(loader: SessionLoader) -> Logs:
        folder = loader.arrays.folder
        if folder not in logs:
            logs[folder] = read_logs(raw, world, loader.arrays.sessions.iloc[loader.session])
        return logs[folder]

    ids = dataset_ids(world, dataset)
    predictors: dict[str, Predict] = {
        "skip": lambda loader: predict_skips(world, Behaviour(), logs_of(loader)),
        "seq": lambda loader: predict_tracks(world, logs_of(loader), ids),
    }
    results = []
    for task, predict in predictors.items():
        if config.task in (task, "both"):
            run = Run(f"oracle_{task}", config, dataset)
            scores = score(predict, dataset, scoring_loaders(dataset, config.data), folder=run.folder)
            results.append(run.finish(task=task, kind="oracle", label=LABELS[task], scores=scores))
    return results


def dataset_ids(world: World, dataset: Dataset) -> NDArray[np.int64]:
    """(N,) id in the dataset of each track of the world, UNK where it has none."""
    table = pd.read_parquet(dataset.folder / "tracks.parquet", columns=["index", "track_id"])
    known = pd.Series(table["index"].to_numpy(), index=table["track_id"].astype(str))
    known = known[known.index.str.startswith("t_")]
    return known.reindex(world.track_ids.astype(str)).fillna(UNK).to_numpy().astype(np.int64)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
