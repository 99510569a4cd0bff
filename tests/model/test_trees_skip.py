"""Boosted trees and the logistic regression: every input counts, and no label leaks into what they learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_checks import random_sessions

from model import baselines_skip as skip
from model.trees_skip import N_FOLDS, PATIENCE, UNWATCHED, HistoryTrees, _features, _parts
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.vocab import N_SPECIAL, PAD, UNK

S, T, P, K = 4, 3, 2, 2
N_IDS = N_SPECIAL + 30
PLAYED, SKIPPED = 1 + schema.SKIP_PLAYED, 1 + schema.SKIP_2


def examples(n: int, seed: int) -> skip.SkipInputs:
    """Inputs of which each number is drawn by itself."""
    rng = np.random.default_rng(seed)
    sizes = list(schema.LOG_COLUMNS.values())
    return skip.SkipInputs(
        rng.integers(N_SPECIAL, N_IDS, (n, S)),
        rng.choice([PLAYED, SKIPPED], (n, S)),
        rng.integers(N_SPECIAL, N_IDS, (n, T)),
        np.stack([rng.integers(1, size, (n, S)) for size in sizes], axis=2).astype(np.uint8),
        rng.standard_normal((n, S + T, P)).astype(np.float16),
        rng.standard_normal((n, S, K)).astype(np.float16),
    )


def counted(inputs: skip.SkipInputs, labels: np.ndarray, n_ids: int = N_IDS) -> skip.TrackRate:
    """The rates of tracks in all plays of some examples."""
    codes = np.where(labels == 1, schema.SKIP_2, np.where(labels == 0, schema.SKIP_PLAYED, schema.SKIP_UNKNOWN))
    tracks = np.concatenate([inputs.history_tracks, inputs.target_tracks], axis=1)
    return skip.TrackRate.fit(tracks.ravel(), np.concatenate([inputs.history_skips - 1, codes], 1).ravel(), n_ids=n_ids)


def column(name: str) -> int:
    return list(schema.LOG_COLUMNS).index(name)


RULES = {
    "last skip": lambda x: (x.history_skips[:, -1:] == SKIPPED) * np.ones(T, int),
    "first skip": lambda x: (x.history_skips[:, :1] == SKIPPED) * np.ones(T, int),
    "position": lambda x: np.broadcast_to(np.arange(T) == 1, x.target_tracks.shape),
    "track": lambda x: x.target_tracks % 3 == 0,
    "own past": lambda x: x.past[:, S:, 1] > 0,
    "past of the play before": lambda x: x.past[:, S - 1 : -1, 0] > 0,
    "past of the play after": lambda x: np.concatenate([x.past[:, S + 1 :, 1] > 0, np.zeros((len(x.past), 1))], 1),
    "past of the history": lambda x: (x.past[:, :S, 0].mean(1) > 0)[:, None] * np.ones(T, int),
    "detail of the last play": lambda x: (x.details[:, -1:, 1] > 0) * np.ones(T, int),
    "details of the history": lambda x: (x.details[:, :, 0].mean(1) > 0)[:, None] * np.ones(T, int),
}
ONLY_TREES = {
    "hour of the last play": lambda x: (x.log[:, -1:, column("hour_of_day")] > 12) * np.ones(T, int),
    "end of the last play but two": lambda x: (
        (x.log[:, -3, column("hist_user_behavior_reason_end")] > 5)[:, None] * np.ones(T, int)
    ),
    "pauses of the history": lambda x: (
        ((x.log[:, :, column("short_pause_before_play")] == 1).sum(1) > 1)[:, None] * np.ones(T, int)
    ),
    "past of all targets": lambda x: (x.past[:, S:, 0].mean(1) > 0)[:, None] * np.ones(T, int),
    "how far skips follow the past": lambda x: (
        (np.where(x.history_skips == SKIPPED, x.past[:, :S, 0], -x.past[:, :S, 0]).mean(1) > 0)[:, None]
        * np.ones(T, int)
    ),
}


@pytest.mark.parametrize(
    ("learner", "name"), [*(("trees", name) for name in RULES | ONLY_TREES), *(("logistic", name) for name in RULES)]
)
def test_every_input_counts(learner: str, name: str) -> None:
    """A rule about one input is found among all the others."""
    rule = (RULES | ONLY_TREES)[name]
    train, valid, test = (examples(n, seed) for seed, n in enumerate((2000, 300, 400)))
    labels = rule(train).astype(int)
    rate = counted(train, labels)
    if learner == "trees":
        model, _ = HistoryTrees.fit((train, labels), (valid, rule(valid).astype(int)), track_rate=rate, max_trees=60)
    else:
        model = skip.HistoryLogistic.fit(train, labels, track_rate=rate)
    _, decision = model.predict(test)
    assert (decision == rule(test)).mean() > 0.9, name


def test_features_of_an_example_do_not_know_its_labels() -> None:
    """Each track is rare, and counted; a part of the examples knows the labels of the others only."""
    inputs = examples(60, 0)
    inputs = inputs._replace(target_tracks=np.random.default_rng(1).integers(N_SPECIAL, N_SPECIAL + 90, (60, T)))
    labels = np.random.default_rng(2).integers(0, 2, (60, T))
    n_ids = N_SPECIAL + 90
    before = list(_parts(inputs, labels, counted(inputs, labels, n_ids), seed=3))
    assert len(before) == N_FOLDS
    assert sum(len(answers) for _, answers, _ in before) == 60
    order = np.concatenate([np.flatnonzero((inputs.history_tracks == one).all(1))[:1] for one in before[0][0][0]])
    row = int(order[0])
    other = labels.copy()
    other[row] = 1 - other[row]
    after = list(_parts(inputs, other, counted(inputs, other, n_ids), seed=3))
    one, two = (_features(part[0], part[2]) for part in (before[0], after[0]))
    assert not np.array_equal(before[0][1], after[0][1]), "the labels differ"
    np.testing.assert_array_equal(one, two)
    elsewhere = [
        np.array_equal(_features(a[0], a[2]), _features(b[0], b[2]), equal_nan=True)
        for a, b in zip(before[1:], after[1:], strict=True)
    ]
    assert not all(elsewhere), "the other parts learn from it"


def test_rates_without_a_part_by_hand() -> None:
    a, b, c = N_SPECIAL, N_SPECIAL + 1, N_SPECIAL + 2
    rate = skip.TrackRate(np.array([0.0] * N_SPECIAL + [4, 3, 2]), np.array([0.0] * N_SPECIAL + [6, 5, 4]))
    part = skip.SkipInputs(
        np.array([[PAD, a], [a, b]]), np.array([[0, SKIPPED], [PLAYED, 0]]), np.array([[b, c], [c, PAD]])
    )
    rest = rate.without(part, np.array([[1, -1], [0, -1]]))
    np.testing.assert_array_equal(rest.skips[N_SPECIAL:], [3, 2, 2])
    np.testing.assert_array_equal(rest.plays[N_SPECIAL:], [4, 4, 3])


def test_tracks_that_are_played_once_tell_nothing() -> None:
    """Where skips are drawn, trees must not do better on what they learned from than by chance."""
    n, rng = 3000, np.random.default_rng(0)
    inputs, valid = examples(n, 0), examples(500, 1)
    inputs = inputs._replace(target_tracks=N_SPECIAL + np.arange(n * T).reshape(n, T), past=None, details=None)
    inputs = inputs._replace(history_tracks=np.full((n, S), UNK))
    valid = valid._replace(target_tracks=np.full((500, T), UNK), past=None, details=None)
    labels, watched = (rng.integers(0, 2, (size, T)) for size in (n, 500))
    model, _ = HistoryTrees.fit(
        (inputs, labels), (valid, watched), track_rate=counted(inputs, labels, N_SPECIAL + n * T)
    )
    probability, _ = model.predict(inputs)
    assert abs(probability[labels == 1].mean() - probability[labels == 0].mean()) < 0.02


def test_without_ids_only_the_past_tells_tracks_apart() -> None:
    """But whether a track was played in the history before is no matter of its id."""
    train, valid = examples(2000, 0), examples(400, 1)
    other = valid._replace(target_tracks=valid.target_tracks + 1000, history_tracks=valid.history_tracks + 1000)
    labels = RULES["track"](train).astype(int)
    watched = RULES["track"](valid).astype(int)
    rate = counted(train, labels)
    for known in (rate, None):
        trees, _ = HistoryTrees.fit((train, labels), (valid, watched), track_rate=known, max_trees=60)
        logistic = skip.HistoryLogistic.fit(train, labels, track_rate=known)
        for model in (trees, logistic):
            if known is None:
                np.testing.assert_array_equal(model.predict(valid)[0], model.predict(other)[0])
            assert ((model.predict(valid)[1] == watched).mean() > 0.9) == (known is not None)


def test_the_number_of_trees_is_that_of_the_least_log_loss() -> None:
    train, valid = examples(500, 0), examples(300, 1)
    rng = np.random.default_rng(0)
    noisy = [np.where(rng.random((len(x.past), T)) < 0.2, 1, x.past[:, S:, 0] > 0).astype(int) for x in (train, valid)]
    model, trials = HistoryTrees.fit((train, noisy[0]), (valid, noisy[1]), track_rate=None, max_trees=150)
    n_trees = model.classifier.n_iter_
    assert n_trees < 150, "early"
    assert list(trials)[-1] == f"{n_trees} trees"
    assert set(trials) == {f"{n} trees" for n in [*range(0, n_trees, PATIENCE), n_trees]}
    probability = model.predict(valid)[0].clip(1e-7, 1 - 1e-7)
    loss = -np.where(noisy[1] == 1, np.log(probability), np.log(1 - probability)).mean()
    assert trials[f"{n_trees} trees"] == pytest.approx(loss, rel=1e-5)
    again, _ = HistoryTrees.fit((train, noisy[0]), (valid, noisy[1]), track_rate=None, max_trees=150)
    np.testing.assert_array_equal(again.predict(valid)[0], model.predict(valid)[0])
    other, _ = HistoryTrees.fit((train, noisy[0]), (valid, noisy[1]), track_rate=None, seed=1, max_trees=150)
    assert not np.array_equal(other.predict(valid)[0], model.predict(valid)[0])


@pytest.mark.parametrize("valid", ["no sessions", "no labels"])
def test_without_validation_there_are_as_many_trees_as_say(valid: str) -> None:
    train, labels = examples(200, 0), RULES["own past"](examples(200, 0)).astype(int)
    watched = None if valid == "no sessions" else (train, np.full_like(labels, -1))
    model, trials = HistoryTrees.fit((train, labels), watched, track_rate=None, max_trees=150)
    assert (model.classifier.n_iter_, trials) == (UNWATCHED, {})


def test_padding_and_batches_do_not_matter(tmp_path: Path) -> None:
    dataset = random_sessions(tmp_path / "data")
    rng = np.random.default_rng(0)

    def numbered(arrays: object) -> object:
        n = len(arrays.tracks)
        past = rng.standard_normal((n, P)).astype(np.float16)
        return replace(arrays, past=past, details=rng.standard_normal((n, K)).astype(np.float16))

    train, test = numbered(dataset.train), numbered(dataset.test)
    loader = SessionLoader(train, batch_size=64)
    inputs, labels = skip.SkipInputs.of(loader), loader.targets().skips
    assert (inputs.past.shape, inputs.details.shape) == ((64, 20, P), (64, 10, K))
    rate = skip.TrackRate.fit(train.tracks, train.skips, n_ids=dataset.n_ids)
    trees, _ = HistoryTrees.fit((inputs, labels), (inputs, labels), track_rate=rate, max_trees=30)
    for model in (trees, skip.HistoryLogistic.fit(inputs, labels, track_rate=rate)):
        one, other = (skip.predict(model, SessionLoader(test, batch_size=size)) for size in (3, 16))
        np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
        whole = model.predict(skip.SkipInputs.of(SessionLoader(test, batch_size=16)))
        np.testing.assert_array_equal(other[1], whole[1])
        assert one[0].shape == (16, 10)
