"""Scores from predictions: by hand, by session, by slice, and through whole models (leaks by perturbation)."""

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import N_IDS, make_dataset
from numpy.testing import assert_allclose, assert_array_equal
from sized_models import SeqTransformer, SkipTransformer

from utils.core.errors import UserError
from utils.data import dataset as dataset_module
from utils.data import schema
from utils.data.dataloaders import SessionLoader, Targets
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation.predict import judge, predict_seq, predict_skip, seq_predictor, skip_predictor
from utils.evaluation.predictions import MaskedPredictions, SeqPredictions, SkipPredictions
from utils.evaluation.scores import (
    MASKED_METRICS,
    SEQ_METRICS,
    direction,
    evaluate_masked,
    evaluate_seq,
    evaluate_skip,
    save_predictions,
)
from utils.evaluation.scoring import score, scoring_loader, validate
from utils.evaluation.slices import session_slices
from utils.evaluation.tables import predictions_table, write_table

CPU = torch.device("cpu")


def mean(scores, name):
    return scores.means()[name]


# --- Skip, by hand


SKIP_TARGETS = Targets(
    tracks=np.full((3, 5), 7, np.int32),
    skips=np.array([[1, 0, 0, 1, 0], [1, 0, 0, 1, 0], [1, -1, -1, -1, -1]], np.int8),
    session=np.arange(3),
)
PROBABILITY = np.array([[0.9, 0.2, 0.8, 0.5, 0.1], [0.4, 0.1, 0.6, 0.7, 0.3], [0.6, 0.6, 0.6, 0.6, 0.6]])


def test_skip_scores_by_hand():
    scores = evaluate_skip(SkipPredictions.of(PROBABILITY), SKIP_TARGETS)
    assert_allclose(scores.average_accuracy, [0.71, 0.32, 1.0])  # 0.5 counts as skipped
    assert mean(scores, "maa") == pytest.approx((0.71 + 0.32 + 1) / 3)
    assert mean(scores, "first_accuracy") == pytest.approx(2 / 3)
    assert mean(scores, "accuracy") == pytest.approx(8 / 11)  # of targets, not of sessions
    right = [0.9, 0.8, 0.2, 0.5, 0.9, 0.4, 0.9, 0.4, 0.7, 0.7, 0.6]  # probability of the truth
    assert mean(scores, "log_loss") == pytest.approx(-np.log(right).mean(), rel=1e-6)
    skipped, listened = [0.9, 0.5, 0.4, 0.7, 0.6], [0.2, 0.8, 0.1, 0.1, 0.6, 0.3]
    wins = [(a > b) + 0.5 * (a == b) for a in skipped for b in listened]
    assert mean(scores, "auc") == pytest.approx(np.mean(wins))
    summary = scores.summary()
    assert_allclose(summary["by_position"]["accuracy"], [2 / 3, 1, 0, 1, 1])
    assert summary["histogram"] == pytest.approx([0, 1 / 3, 0, 1 / 3, 1 / 3, 0])
    assert summary["n_sessions"] == 3


def test_decisions_may_differ_from_the_threshold():
    decision = SKIP_TARGETS.skips == 1
    scores = evaluate_skip(SkipPredictions(PROBABILITY.astype(np.float32), decision), SKIP_TARGETS)
    assert mean(scores, "maa") == 1
    assert mean(scores, "log_loss") > 0.3


def test_what_is_not_defined_is_none_and_json():
    targets = SKIP_TARGETS._replace(skips=np.where(SKIP_TARGETS.skips == 0, -1, SKIP_TARGETS.skips))
    scores = evaluate_skip(SkipPredictions.of(PROBABILITY), targets)
    assert mean(scores, "auc") is None  # one class only
    assert json.loads(json.dumps(scores.means(), allow_nan=False))["maa"] == pytest.approx((1 + 0.25 + 1) / 3)
    summary = json.loads(json.dumps(scores.summary(), allow_nan=False))
    assert summary["metrics"]["auc"] == {"mean": None, "low": None, "high": None}
    assert summary["by_position"]["accuracy"] == [pytest.approx(2 / 3), None, None, 1, None]
    nothing = evaluate_skip(SkipPredictions.of(PROBABILITY), targets._replace(skips=np.full((3, 5), -1)))
    assert set(nothing.means().values()) == {None}
    json.dumps(nothing.summary(), allow_nan=False)


def test_predictions_that_are_no_probabilities_are_refused():
    for value in (np.nan, -0.1, 1.1):
        probability = PROBABILITY.copy()
        probability[1, 2] = value
        with pytest.raises(ValueError, match="from 0 to 1"):
            evaluate_skip(SkipPredictions.of(probability), SKIP_TARGETS)
    with pytest.raises(ValueError, match=r"\(3, 4\), the targets \(3, 5\)"):
        evaluate_skip(SkipPredictions.of(PROBABILITY[:, :4]), SKIP_TARGETS)
    with pytest.raises(ValueError, match=r"\(2, 5\), the targets \(3, 5\)"):
        evaluate_skip(SkipPredictions.of(PROBABILITY[:2]), SKIP_TARGETS)


# --- Seq, by hand


SEQ_TARGETS = Targets(
    tracks=np.array([[7, 8, 9, 10], [7, 7, PAD, PAD], [UNK, 8, 9, PAD]], np.int32),
    skips=np.full((3, 4), -1, np.int8),
    session=np.arange(3),
)


def test_seq_scores_by_hand():
    log_probability = np.log(np.array([[0.5, 0.25, 0.5, 0.25], [0.5, 0.5, 1, 1], [1, 0.125, 0.5, 1]], np.float32))
    predictions = SeqPredictions(
        tracks=np.array([[7, 9, 9, 8], [8, 7, 7, 7], [UNK, 8, 9, 9]], np.int32),
        log_probability=log_probability,
        rank=np.array([0, 9.5, np.inf], np.float32),
    )
    scores = evaluate_seq(predictions, SEQ_TARGETS, n_ids=N_SPECIAL + 10)
    means = scores.means()
    # Right: 1 0 1 0 | 0 1 | 0 1 1, since an unknown track cannot be right.
    assert_allclose(scores.average_accuracy, [(1 + 2 / 3) / 4, (1 / 2) / 2, (1 / 2 + 2 / 3) / 3])
    assert means["maa"] == pytest.approx(scores.average_accuracy.mean())
    assert means["first_accuracy"] == pytest.approx(1 / 3)
    assert means["accuracy"] == pytest.approx(5 / 9)
    assert means["overlap"] == pytest.approx((3 / 4 + 1 / 2 + 2 / 3) / 3)
    assert means["repetition"] == pytest.approx((1 / 4 + 0 + 0) / 3)
    assert means["coverage"] == pytest.approx(3 / 10)
    # Two raised to the mean number of bits of the eight known targets.
    assert means["perplexity"] == pytest.approx(2 ** ((1 + 2 + 1 + 2 + 1 + 1 + 3 + 1) / 8), rel=1e-6)
    assert means["hr@1"] == pytest.approx(1 / 3)
    assert means["hr@10"] == means["hr@20"] == pytest.approx(2 / 3)
    assert means["ndcg@10"] == means["ndcg@20"] == pytest.approx((1 + 1 / math.log2(11.5)) / 3)
    assert means["mrr@20"] == pytest.approx((1 + 1 / 10.5) / 3)
    assert scores.histogram.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0, 0])


def test_an_unknown_track_is_not_covered():
    """The catalogue is the tracks: a special id among the predictions does not count."""
    predictions = SeqPredictions(np.array([[UNK, 7, 7, 7]] * 3, np.int32), None, None)
    assert mean(evaluate_seq(predictions, SEQ_TARGETS, n_ids=N_SPECIAL + 10), "coverage") == pytest.approx(1 / 10)


def test_seq_without_probabilities():
    scores = evaluate_seq(SeqPredictions(SEQ_TARGETS.tracks, None, None), SEQ_TARGETS, n_ids=20)
    assert set(scores.means()) == {"maa", "first_accuracy", "accuracy", "overlap", "repetition", "coverage"}


def test_seq_refuses_nan():
    log_probability = np.zeros((3, 4), np.float32)
    log_probability[1, 0] = np.nan
    with pytest.raises(ValueError, match="must be numbers"):
        evaluate_seq(SeqPredictions(SEQ_TARGETS.tracks, log_probability, None), SEQ_TARGETS, n_ids=20)
    log_probability[1] = [0, 0, np.nan, 0]  # padding
    evaluate_seq(SeqPredictions(SEQ_TARGETS.tracks, log_probability, None), SEQ_TARGETS, n_ids=20)


def test_several_examples_of_a_session_are_one_unit():
    targets = Targets(np.array([[7], [8], [9]], np.int32), np.full((3, 1), -1, np.int8), np.array([4, 4, 6]))
    predictions = SeqPredictions(np.array([[7], [9], [8]], np.int32), None, np.array([0, 5, 30], np.float32))
    scores = evaluate_seq(predictions, targets, n_ids=20)
    assert scores.n_sessions == 2
    assert_array_equal(scores.average_accuracy, [0.5, 0])
    assert mean(scores, "maa") == pytest.approx(1 / 3)  # every prefix has the same weight
    assert mean(scores, "mrr@20") == pytest.approx((1 + 1 / 6) / 3)
    assert scores.summary()["metrics"]["maa"]["low"] == 0


def test_intervals_hold_the_mean(dataset_folder):
    loader = SessionLoader(Dataset.open(dataset_folder).train, batch_size=64)
    targets = loader.targets()
    probability = np.random.default_rng(0).random(targets.skips.shape)
    scores = evaluate_skip(SkipPredictions.of(probability), targets)
    for name, value in scores.summary()["metrics"].items():
        assert value["mean"] == pytest.approx(scores.means()[name])
        if name != "auc":
            assert value["low"] < value["mean"] < value["high"]


@pytest.mark.parametrize("rows", [1, 7, 2**16])
def test_scores_do_not_depend_on_the_rows_at_once(rows, monkeypatch):
    rng = np.random.default_rng(0)
    n = 50
    known = np.arange(5) < rng.integers(0, 6, (n, 1))
    tracks = np.where(known, rng.integers(N_SPECIAL, 12, (n, 5)), PAD).astype(np.int32)
    skips = np.where(known, rng.integers(0, 2, (n, 5)), -1).astype(np.int8)
    targets = Targets(tracks, skips, np.arange(n) // 2)
    skip = SkipPredictions.of(rng.random((n, 5), np.float32))
    seq = SeqPredictions(rng.integers(N_SPECIAL, 12, (n, 5), np.int32), None, None)
    whole = evaluate_skip(skip, targets).summary(), evaluate_seq(seq, targets, n_ids=12).summary()
    monkeypatch.setattr("utils.evaluation.scores.ROWS_AT_ONCE", rows)
    assert (evaluate_skip(skip, targets).summary(), evaluate_seq(seq, targets, n_ids=12).summary()) == whole


def test_direction():
    assert [direction(name, SEQ_METRICS) for name in ("maa", "mrr@20", "perplexity")] == ["max", "max", "min"]
    with pytest.raises(UserError, match="monitor is maa, which is no metric of this task; choose one of mrr@20,"):
        direction("maa", MASKED_METRICS)


def test_what_can_be_monitored_is_what_is_measured():
    zeros = np.zeros(SEQ_TARGETS.tracks.shape, np.float32)
    seq = SeqPredictions(SEQ_TARGETS.tracks, zeros, zeros[:, 0])
    assert set(evaluate_seq(seq, SEQ_TARGETS, n_ids=20).means()) == set(SEQ_METRICS)
    masked = MaskedPredictions(SEQ_TARGETS.tracks, zeros, zeros)
    assert set(evaluate_masked(masked, SEQ_TARGETS).means()) == set(MASKED_METRICS)


# --- Slices


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


def test_saved_predictions(tmp_path):
    predictions = SkipPredictions.of(PROBABILITY)
    scores = evaluate_skip(predictions, SKIP_TARGETS)
    save_predictions(tmp_path / "p.npz", predictions, scores, SKIP_TARGETS)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as saved:
        sums = {f"sums_{name}" for name in ("maa", "first_accuracy", "accuracy", "log_loss")}
        assert set(saved) == {"probability", "decision", "session", *sums}
        assert_array_equal(saved["decision"], predictions.decision)
        assert_allclose(saved["sums_maa"], [[0.71, 1], [0.32, 1], [1, 1]], rtol=1e-6)
        assert_allclose(saved["sums_accuracy"][:2], [[4, 5], [3, 5]])
    seq = SeqPredictions(SEQ_TARGETS.tracks, None, None)
    save_predictions(tmp_path / "q.npz", seq, evaluate_seq(seq, SEQ_TARGETS, n_ids=20), SEQ_TARGETS)
    with np.load(tmp_path / "q.npz", allow_pickle=False) as saved:
        assert {"tracks", "session", "sums_maa", "sums_overlap"} < set(saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.npz", "q.npz"]


# --- From models to predictions


def lookup(n_tracks):
    """A model whose states are its scores of the tracks; it thinks highly of special ids, which do not count."""
    weight = torch.cat([torch.full((N_SPECIAL, n_tracks), 100.0), torch.eye(n_tracks)])
    return SimpleNamespace(head=SimpleNamespace(weight=weight, bias=torch.zeros(len(weight))))


def test_judge_by_hand():
    states = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]).expand(1, 6, 5)
    log_p, rank = judge(lookup(5), states, torch.tensor([[5, 6, 7, 9, UNK, PAD]]))
    total = math.log(sum(math.exp(x) for x in (3, 1, 2, 2, 0)))
    assert_allclose(log_p, [[3 - total, 1 - total, 2 - total, 0 - total, 0, 0]], rtol=1e-6)
    assert rank.tolist() == [[0, 3, 1.5, 4, math.inf, math.inf]]  # 7 and 8 tie: half of the ties are above
    _, rank = judge(lookup(100), torch.zeros(1, 1, 100), torch.tensor([[60]]))
    assert rank.item() == 99 / 2


def test_judge_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states, targets = torch.randn(7, 3, 20, generator=generator), torch.randint(0, 25, (7, 3), generator=generator)
    whole = judge(lookup(20), states, targets)
    monkeypatch.setattr("utils.evaluation.predict.LOGIT_ROWS", 5)
    monkeypatch.setattr("utils.evaluation.predict._ROWS_IN_CACHE", 2)
    for chunked, expected in zip(judge(lookup(20), states, targets), whole, strict=True):
        torch.testing.assert_close(chunked, expected)


def skip_model(**options):
    torch.manual_seed(0)
    features = torch.randn(N_IDS, 3)
    return SkipTransformer(N_IDS, features, d_model=16, n_heads=2, n_layers=1, d_ff=16, **options)


def seq_model(**options):
    torch.manual_seed(0)
    features = torch.randn(N_IDS, 3)
    return SeqTransformer(N_IDS, features, d_model=16, n_heads=2, n_layers=1, d_ff=16, **options)


@pytest.fixture
def perturbed(tmp_path):
    """A dataset and its twin, of which the second halves of the test sessions have other skips and logs."""
    folder, twin = make_dataset(tmp_path / "data"), make_dataset(tmp_path / "twin")
    rng = np.random.default_rng(5)
    offsets = np.load(twin / "test" / "offsets.npy")
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    second = position >= np.repeat(lengths // 2, lengths)
    skips, log = np.load(twin / "test" / "skips.npy"), np.load(twin / "test" / "log.npy")
    skips[second] = rng.choice([0, 1, 2, 3, 4, 255], second.sum())
    log[second] = rng.integers(0, list(schema.LOG_COLUMNS.values()), (second.sum(), log.shape[1]))
    np.save(twin / "test" / "skips.npy", skips)
    np.save(twin / "test" / "log.npy", log)
    return Dataset.open(folder), Dataset.open(twin), second


@pytest.mark.parametrize("is_causal", [True, False])
def test_no_leak_of_second_halves_in_skip(perturbed, is_causal):
    dataset, twin, _ = perturbed
    model = skip_model(causal=is_causal)
    ours, theirs = (predict_skip(model, CPU, scoring_loader(d, DataConfig(), "test")) for d in (dataset, twin))
    assert_array_equal(ours.probability, theirs.probability)
    targets = [scoring_loader(d, DataConfig(), "test").targets().skips for d in (dataset, twin)]
    assert (targets[0] != targets[1]).mean() > 0.2, "the perturbation must reach the answers"


@pytest.mark.parametrize("start", ["last", "bos"])
def test_no_leak_of_second_halves_in_seq(perturbed, start):
    dataset, twin, second = perturbed
    model = seq_model(use_log=True, skip_encoding="embedding", start=start)
    ours, theirs = (predict_seq(model, CPU, scoring_loader(d, DataConfig(), "test")) for d in (dataset, twin))
    for mine, other in zip(ours, theirs, strict=True):
        assert_array_equal(mine, other)
    # Free-running: no track of the second half matters for the continuation, whatever it is.
    tracks = np.load(twin.folder / "test" / "tracks.npy")
    tracks[second] = np.random.default_rng(1).integers(N_SPECIAL, N_IDS, second.sum())
    np.save(twin.folder / "test" / "tracks.npy", tracks)
    changed = predict_seq(model, CPU, scoring_loader(Dataset.open(twin.folder), DataConfig(), "test"))
    assert_array_equal(ours.tracks, changed.tracks)
    assert (ours.log_probability != changed.log_probability).any(), "teacher-forced: there the targets count"


def test_history_reaches_the_predictions(perturbed):
    dataset, twin, second = perturbed
    skips = np.load(twin.folder / "test" / "skips.npy")
    skips[~second] = np.where(skips[~second] == schema.SKIP_1, schema.SKIP_PLAYED, schema.SKIP_1)
    np.save(twin.folder / "test" / "skips.npy", skips)
    model = skip_model(use_log=False)
    loaders = [scoring_loader(d, DataConfig(), "test") for d in (dataset, Dataset.open(twin.folder))]
    ours, theirs = (predict_skip(model, CPU, loader).probability for loader in loaders)
    assert (np.abs(ours - theirs).max(1) > 1e-4).all()


def test_predictions_do_not_depend_on_batch_size_or_pass(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    loaders = [SessionLoader(dataset.train, batch_size=size) for size in (3, 64)]
    skip, seq = skip_model(), seq_model()
    first, other = (predict_skip(skip, CPU, loader).probability for loader in loaders)
    again = predict_skip(skip, CPU, loaders[0]).probability
    assert_array_equal(first, again)
    assert_allclose(first, other, atol=1e-6)
    assert first.std() > 0.01
    one, two = (predict_seq(seq, CPU, loader) for loader in loaders)
    repeated = predict_seq(seq, CPU, loaders[0])
    assert_array_equal(one.tracks, repeated.tracks)
    assert_array_equal(one.tracks, two.tracks)
    assert_allclose(one.log_probability, two.log_probability, atol=1e-5)
    assert_array_equal(one.rank, two.rank)


def test_predict_seq_by_hand(dataset_folder):
    """Log-probabilities and ranks against the plain softmax over all scores."""
    dataset = Dataset.open(dataset_folder)
    loader = SessionLoader(dataset.test, batch_size=5)
    model = seq_model().eval()
    predictions = predict_seq(model, CPU, loader)
    (batch,) = SessionLoader(dataset.test, batch_size=100)
    targets = batch.target_tracks
    with torch.no_grad():
        logits = model.logits(model(batch.history, model.previous_tracks(batch.history, targets)))
    expected = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0].masked_fill(targets == PAD, 0)
    assert_allclose(predictions.log_probability, expected, atol=1e-5)
    order = logits[:, 0].argsort(descending=True)
    assert_array_equal(predictions.rank, (order == targets[:, :1]).nonzero()[:, 1])
    scores = evaluate_seq(predictions, loader.targets(), n_ids=N_IDS)
    known = targets != PAD
    assert mean(scores, "perplexity") == pytest.approx(math.exp(-expected[known].mean()), rel=1e-5)
    assert ((predictions.tracks >= N_SPECIAL) & (predictions.tracks < N_IDS)).all()


def test_score_covers_the_splits(tmp_path, dataset_folder):
    dataset = Dataset.open(dataset_folder)
    scores = score(skip_predictor(skip_model(), CPU), dataset, DataConfig(), folder=tmp_path)
    assert list(scores) == ["train", "valid", "test"]
    assert [split["n_sessions"] for split in scores.values()] == [16, 16, 16]  # of train as many as of test
    assert [path.name for path in tmp_path.iterdir()] == ["predictions_test.npz"]
    assert set(scores["test"]["slices"]) == {"length", "context_type", "shuffle", "premium", "history", "continuation"}
    assert set(scores["train"]["slices"]["continuation"]) == {"seen in training"}
    counted = {group: value["n"] for group, value in scores["test"]["by_plays"].items()}
    assert counted == {"5 to 49": sum(-(-length // 2) for length in dataset.test.lengths)}


def test_score_with_every_prefix(tmp_path, dataset_folder):
    dataset = Dataset.open(dataset_folder)
    data = DataConfig(every_prefix=True, scored=["test"])
    scores = score(seq_predictor(seq_model(), CPU), dataset, data, folder=tmp_path)
    assert list(scores) == ["test", "test_prefixes"]
    for name in scores:
        with np.load(tmp_path / f"predictions_{name}.npz") as arrays:
            right, asked = arrays["sums_hr@20"].T
            assert right.sum() / asked.sum() == pytest.approx(scores[name]["metrics"]["hr@20"]["mean"])
            assert len(right) == len(np.unique(arrays["session"])) == 16
    assert scores["test_prefixes"]["n_sessions"] == 16
    assert len(scores["test_prefixes"]["histogram"]) == 2
    metrics = scores["test_prefixes"]["metrics"]
    assert metrics["maa"] == metrics["accuracy"] == metrics["hr@1"], "one target: the best is right or not"


def test_validation(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    predict = skip_predictor(skip_model(), CPU)
    loader = scoring_loader(dataset, DataConfig(), "valid")
    assert validate(predict, dataset, DataConfig()) == evaluate_skip(predict(loader), loader.targets()).means()
    sizes = []

    def counting(loader):
        sizes.append(loader.n_examples)
        return predict(loader)

    validate(counting, dataset, DataConfig(valid_sessions=5))
    validate(counting, dataset, DataConfig(valid_sessions=500))
    assert sizes == [5, 16]
    prefixes = validate(seq_predictor(seq_model(), CPU), dataset, DataConfig(every_prefix=True))
    assert prefixes["maa"] == prefixes["hr@1"]


def test_table_of_skip_predictions(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32)
    skips = np.load(folder / "test" / "skips.npy")
    skips[-1] = schema.SKIP_UNKNOWN
    np.save(folder / "test" / "skips.npy", skips)
    dataset = Dataset.open(folder)
    loader = SessionLoader(dataset.test, batch_size=8)
    predictions = predict_skip(skip_model(), CPU, loader)
    table = predictions_table(predictions, loader, dataset)
    lengths = dataset.test.lengths
    second = np.concatenate(
        [np.arange(n // 2, n) + start for n, start in zip(lengths, dataset.test.offsets, strict=False)]
    )
    assert len(table) == len(second)
    assert table["track_id"].tolist() == [f"t_{track - N_SPECIAL}" for track in dataset.test.tracks[second]]
    assert table["session_id"].tolist() == np.repeat([f"test_{i}" for i in range(8)], lengths - lengths // 2).tolist()
    assert table["position"].tolist() == [p for n in lengths for p in range(n // 2 + 1, n + 1)]
    assert table["skipped"].iloc[:-1].tolist() == (skips[second][:-1] == schema.SKIP_1).tolist()
    assert table["skipped"].isna().tolist() == [False] * (len(second) - 1) + [True]
    known = loader.targets().tracks != PAD
    assert_array_equal(table["skip_probability"], predictions.probability[known])
    assert (table["skip_predicted"] == (table["skip_probability"] >= 0.5)).all()
    for name in ("p.csv", "p.parquet"):
        write_table(tmp_path / name, table)
    read = pd.read_csv(tmp_path / "p.csv")
    assert_allclose(read["skip_probability"], table["skip_probability"], rtol=1e-6)
    assert pd.read_parquet(tmp_path / "p.parquet")["position"].tolist() == table["position"].tolist()
    with pytest.raises(UserError, match=r"p.xlsx must end in .csv or .parquet"):
        write_table(tmp_path / "p.xlsx", table)


def test_table_of_seq_predictions(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    loader = SessionLoader(dataset.test, batch_size=8)
    predictions = predict_seq(seq_model(), CPU, loader)
    table = predictions_table(predictions, loader, dataset)
    known = loader.targets().tracks != PAD
    assert table["predicted_track_id"].tolist() == [f"t_{track - N_SPECIAL}" for track in predictions.tracks[known]]
    assert list(table) == ["session_id", "position", "track_id", "predicted_track_id"]
