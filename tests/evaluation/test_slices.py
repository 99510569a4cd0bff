"""Scores of parts of a split: by kind of session, and by training plays of the target."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.data import dataset as dataset_module
from utils.data import schema
from utils.data.dataloaders import SessionLoader, Targets
from utils.data.dataset import SessionArrays
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation.predictions import SeqPredictions, SkipPredictions
from utils.evaluation.scores import evaluate_seq, evaluate_skip
from utils.evaluation.slices import session_slices


def slice_arrays(folder: Path, skips, tracks):
    folder.mkdir()
    n, length = tracks.shape
    np.save(folder / "tracks.npy", tracks.astype(np.int32).ravel())
    np.save(folder / "offsets.npy", np.arange(0, n * length + 1, length))
    np.save(folder / "skips.npy", skips.astype(np.uint8).ravel())
    np.save(folder / "log.npy", np.zeros((n * length, len(schema.LOG_COLUMNS)), np.uint8))
    return SessionArrays.open(folder)


def with_sessions(arrays, **columns):
    n = arrays.n_sessions
    frame = {"session_id": [f"s{i}" for i in range(n)], "context_type": [0] * n, "shuffle": [0] * n, "premium": [0] * n}
    pd.DataFrame(frame | columns).to_parquet(arrays.folder / "sessions.parquet")
    return arrays


def test_slices(tmp_path):
    s, p = schema.SKIP_1, schema.SKIP_3_ONLY
    skips = np.array([[p, p, p, p] + [s] * 4, [p, p, s, s] + [s] * 4, [s, p, p, p] + [p] * 4, [s, s, s, p] + [p] * 4])
    tracks = np.arange(10, 42).reshape(4, 8)
    arrays = with_sessions(
        slice_arrays(tmp_path / "a", skips, tracks),
        context_type=[1, 2, 6, 0],
        shuffle=[1, 2, 2, 0],
        premium=[2, 2, 1, 1],
    )
    trained = tracks.copy()
    trained[1] += 1000
    trained[2, 4:], trained[3, :4] = (
        trained[3, :4].copy(),
        trained[2, 4:].copy(),
    )  # 29, 34 | 30, 38: cut across sessions
    train = slice_arrays(tmp_path / "b", skips, trained)
    loader = SessionLoader(arrays, batch_size=2)
    slices = session_slices(loader, train)
    assert {name: labels.tolist() for name, labels in slices.items()} == {
        "length": ["08"] * 4,
        "context_type": ["editorial_playlist", "user_collection", "charts", "unknown"],
        "shuffle": ["no", "yes", "yes", "unknown"],
        "premium": ["yes", "yes", "no", "no"],
        "history": ["listener", "listen, then skip", "skip, then listen", "skipper"],
        "continuation": ["seen in training", "unseen", "unseen", "unseen"],
    }
    targets = loader.targets()
    probability = np.where(targets.skips == 1, 0.9, 0.1)
    probability[1] = 1 - probability[1]
    scores = evaluate_skip(SkipPredictions.of(probability), targets, slices=slices)
    table = scores.summary()["slices"]
    assert table["shuffle"] == {"no": {"n": 1, "maa": 1}, "yes": {"n": 2, "maa": 0.5}, "unknown": {"n": 1, "maa": 1}}
    assert table["length"] == {"08": {"n": 4, "maa": 0.75}}


def test_accuracy_by_training_plays():
    """Twenty times three sessions of five targets; padding and targets without a label do not count."""
    first = N_SPECIAL
    plays = np.array([0] * N_SPECIAL + [600, 500, 499, 50, 49, 5, 4, 1, 0, 0])
    tracks = np.array([[0, 2, 3, 4, 5], [6, 7, 8, 9, 8], [1, 0, 0, 0, 0]], np.int32) + first
    tracks[1, 4], tracks[2, 2:] = UNK, PAD
    skips = np.array([[1, 1, 1, 1, -1], [1, 1, 1, 1, 1], [1, 1, -1, -1, -1]], np.int8)
    right = np.array([[1, 0, 1, 1, 1], [0, 1, 1, 0, 1], [0, 1, 0, 0, 0]], bool)
    tracks, skips, right = (np.tile(array, (20, 1)) for array in (tracks, skips, right))
    targets = Targets(tracks, skips, session=np.arange(60))

    predictions = SkipPredictions(right.astype(np.float32), right)
    summary = evaluate_skip(predictions, targets, train_plays=plays).summary()
    assert {name: (value["n"], value["mean"]) for name, value in summary["by_plays"].items()} == {
        "unknown": (20, 1),
        "0": (40, 0.5),
        "1 to 4": (40, 0.5),
        "5 to 49": (20, 1),  # the other one has no label
        "50 to 499": (40, 0.5),
        "500 or more": (60, pytest.approx(2 / 3)),
    }
    assert (summary["by_plays"]["0"]["low"], summary["by_plays"]["0"]["high"]) == (0.5, 0.5), (
        "in each session that has any"
    )
    assert 0.5 < summary["by_plays"]["500 or more"]["low"] < 2 / 3 < summary["by_plays"]["500 or more"]["high"] < 1
    without = evaluate_skip(predictions, targets).summary()
    assert without["by_plays"] == {}
    assert without["metrics"] == summary["metrics"]

    guesses = SeqPredictions(np.where(right, tracks, first).astype(np.int32), None, None)
    summary = evaluate_seq(guesses, targets, n_ids=len(plays), train_plays=plays).summary()
    assert {name: (value["n"], value["mean"]) for name, value in summary["by_plays"].items()} == {
        "unknown": (20, 0),  # nobody can name it
        "0": (40, 0.5),
        "1 to 4": (40, 0.5),
        "5 to 49": (40, 1),
        "50 to 499": (40, 0.5),
        "500 or more": (60, pytest.approx(2 / 3)),
    }


def test_slices_that_the_source_does_not_know_are_left_out(tmp_path):
    skips = np.full((2, 4), schema.SKIP_UNKNOWN)
    arrays = with_sessions(slice_arrays(tmp_path / "a", skips, np.arange(10, 18).reshape(2, 4)))
    assert set(session_slices(SessionLoader(arrays, batch_size=2))) == {"length"}


def users_and_new_tracks(folder, users):
    """Sessions of four plays, a listener each; session i has i plays of new tracks."""
    tracks = np.arange(10, 10 + 4 * len(users)).reshape(-1, 4)
    for i, row in enumerate(tracks):
        row[: min(i, 4)] = UNK
    arrays = with_sessions(slice_arrays(folder, np.full(tracks.shape, schema.SKIP_UNKNOWN), tracks), user=users)
    np.save(folder / "full_ids.npy", np.arange(tracks.size, dtype=np.int32))
    return SessionArrays.open(arrays.folder)


def test_a_slice_for_each_listener(tmp_path):
    arrays = users_and_new_tracks(tmp_path / "a", ["zoe", "ann", "zoe", "bob", "ann"])
    slices = session_slices(SessionLoader(arrays, batch_size=2))
    assert slices["listener"].tolist() == ["zoe", "ann", "zoe", "bob", "ann"]
    assert slices["listener"].categories.tolist() == ["ann", "bob", "zoe"]
    assert slices["new_tracks"].tolist() == ["none", "some", "half or more", "half or more", "half or more"]


@pytest.mark.parametrize("users", [["ann"] * 3, [None] * 3, ["ann", None, "zoe"], [str(i) for i in range(21)]])
def test_no_slice_where_there_is_one_listener_or_too_many(tmp_path, users):
    arrays = users_and_new_tracks(tmp_path / "a", users)
    assert "listener" not in session_slices(SessionLoader(arrays, batch_size=2))


def test_twenty_listeners_have_slices(tmp_path):
    users = [f"u{i:02d}" for i in range(20)]
    arrays = users_and_new_tracks(tmp_path / "a", users[::-1])
    assert session_slices(SessionLoader(arrays, batch_size=2))["listener"].tolist() == users[::-1]


def test_shuffle_has_a_slice_without_contexts(tmp_path):
    skips = np.full((2, 4), schema.SKIP_UNKNOWN)
    arrays = with_sessions(slice_arrays(tmp_path / "a", skips, np.arange(10, 18).reshape(2, 4)), shuffle=[1, 2])
    slices = session_slices(SessionLoader(arrays, batch_size=2))
    assert set(slices) == {"length", "shuffle"}
    assert slices["shuffle"].tolist() == ["no", "yes"]


def test_pairs_across_sessions_are_not_seen(tmp_path):
    skips = np.full((2, 2), schema.SKIP_UNKNOWN)
    train = slice_arrays(tmp_path / "t", skips, np.array([[10, 11], [12, 13]]))
    arrays = with_sessions(slice_arrays(tmp_path / "a", skips, np.array([[11, 12], [10, 11]])))
    slices = session_slices(SessionLoader(arrays, batch_size=2), train)
    assert slices["continuation"].tolist() == ["unseen", "seen in training"]


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1000])
def test_pairs_in_pieces_are_those_of_a_loop(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "PLAYS_AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    tracks = rng.integers(5, 12, (9, 4))
    train = slice_arrays(tmp_path / "t", np.zeros((9, 4), int), tracks)
    pairs = {(int(a), int(b)) for session in tracks for a, b in pairwise(session)}
    first, second = np.divmod(np.arange(49), 7) + np.array([[5], [5]])
    expected = [(a, b) in pairs for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert 10 < sum(expected) < 40
    assert train.has_pairs(dataset_module.pair_keys(first, second)).tolist() == expected
