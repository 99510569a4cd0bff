"""Scores from predictions: by hand, by session, with intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader, Targets
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation.metrics import HEADLINES, METRICS, direction
from utils.evaluation.predictions import MaskedPredictions, SeqPredictions, SkipPredictions
from utils.evaluation.scores import evaluate_masked, evaluate_seq, evaluate_skip, save_predictions
from utils.evaluation.tables import print_scores
from utils.training.run import headline


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


@pytest.mark.parametrize("n_labelled", [0, 1, 2])
def test_few_sessions_with_labels(n_labelled, recwarn):
    """Of 300 sessions two have labels, one of them right: a mean, an interval, and no complaint."""
    skips = np.full((300, 5), -1, np.int8)
    skips[[20, 211][:n_labelled], 0] = [1, 0][:n_labelled]
    targets = Targets(np.full((300, 5), 7, np.int32), skips, np.arange(300))
    scores = evaluate_skip(SkipPredictions.of(np.full((300, 5), 0.75)), targets, train_plays=np.arange(10))
    summary = json.loads(json.dumps(scores.summary(), allow_nan=False))
    line = headline({"task": "skip", "scores": {"test": summary}})
    if n_labelled == 2:
        assert summary["metrics"]["maa"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
        assert line == "test maa 0.5000 [0.0000, 1.0000], first_accuracy 0.5000 [0.0000, 1.0000]"
        assert summary["by_plays"]["5 to 49"] == {"n": 2, "mean": 0.5, "low": 0.0, "high": 1.0}
    elif n_labelled == 1:
        assert summary["metrics"]["maa"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    else:
        assert summary["metrics"]["maa"] == {"mean": None, "low": None, "high": None}
        assert line == "test "
    assert not list(recwarn)
    print_scores("few", summary)


def test_targets_outside_the_vocabulary_are_printed_as_new_tracks(capsys):
    by_plays = {"unknown": {"n": 1200, "mean": 0.25}, "1 to 4": {"n": 30, "mean": 0.5}}
    print_scores("test", {"metrics": {}, "by_plays": by_plays})
    assert capsys.readouterr().out.splitlines() == [
        "test",
        "  accuracy of 1,200 targets of new tracks: 0.2500",
        "  accuracy of 30 targets with 1 to 4 training plays: 0.5000",
    ]


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
        tied=np.array([1, 2, 1], np.float32),
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
    # The second session's track shares the places 9 and 10 with another one: half of it is among the first ten.
    assert means["hr@10"] == pytest.approx((1 + 1 / 2) / 3)
    assert means["hr@20"] == pytest.approx(2 / 3)
    assert means["ndcg@10"] == pytest.approx((1 + 1 / math.log2(11) / 2) / 3)
    assert means["ndcg@20"] == pytest.approx((1 + (1 / math.log2(11) + 1 / math.log2(12)) / 2) / 3)
    assert means["mrr@20"] == pytest.approx((1 + (1 / 10 + 1 / 11) / 2) / 3)
    assert scores.histogram.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0, 0])


def test_an_unknown_track_is_not_covered():
    """The catalogue is the tracks: a special id among the predictions does not count."""
    predictions = SeqPredictions(np.array([[UNK, 7, 7, 7]] * 3, np.int32), None, None)
    assert mean(evaluate_seq(predictions, SEQ_TARGETS, n_ids=N_SPECIAL + 10), "coverage") == pytest.approx(1 / 10)


def test_a_model_that_likes_all_tracks_alike():
    """40 tracks share all places: HR@k is k / 40, MRR@20 the sum of 1 / place over 20 places, / 40."""
    rank, tied = np.full((3, 4), 19.5, np.float32), np.full((3, 4), 40, np.float32)
    targets = SEQ_TARGETS._replace(tracks=np.where(SEQ_TARGETS.tracks == UNK, 7, SEQ_TARGETS.tracks))
    nothing = np.zeros((3, 4), np.float32)
    seq = evaluate_seq(SeqPredictions(targets.tracks, None, rank[:, 0], tied[:, 0]), targets, n_ids=N_SPECIAL + 40)
    masked = evaluate_masked(MaskedPredictions(targets.tracks, nothing, rank, tied), targets)
    for means in (seq.means(), masked.means()):
        assert [means[f"hr@{k}"] for k in (1, 10, 20)] == pytest.approx([1 / 40, 10 / 40, 20 / 40])
        assert means["mrr@20"] == pytest.approx(sum(1 / place for place in range(1, 21)) / 40)
    assert seq.means()["ndcg@20"] == pytest.approx(sum(1 / math.log2(place + 1) for place in range(1, 21)) / 40)


def test_seq_without_probabilities():
    scores = evaluate_seq(SeqPredictions(SEQ_TARGETS.tracks, None, None), SEQ_TARGETS, n_ids=20)
    measured = set(scores.means())
    assert measured >= {"maa", "first_accuracy", "accuracy", "overlap", "repetition", "coverage"}
    assert not measured & {"perplexity", "hr@1", "hr@10", "hr@20", "ndcg@10", "ndcg@20", "mrr@20"}


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
    monkeypatch.setattr("utils.evaluation.metrics.ROWS_AT_ONCE", rows)
    assert (evaluate_skip(skip, targets).summary(), evaluate_seq(seq, targets, n_ids=12).summary()) == whole


def test_direction():
    assert [direction(name, "seq") for name in ("maa", "mrr@20", "perplexity")] == ["max", "max", "min"]
    with pytest.raises(
        UserError, match="monitor is maa, which is no metric of this task; choose one of perplexity, hr@1,"
    ):
        direction("maa", "pretrain")


def test_what_can_be_monitored_is_what_is_measured():
    zeros = np.zeros(SEQ_TARGETS.tracks.shape, np.float32)
    skip = SkipPredictions.of(PROBABILITY)
    seq = SeqPredictions(SEQ_TARGETS.tracks, zeros, zeros[:, 0])
    masked = MaskedPredictions(SEQ_TARGETS.tracks, zeros, zeros)
    measured = {
        "skip": evaluate_skip(skip, SKIP_TARGETS).means(),
        "seq": evaluate_seq(seq, SEQ_TARGETS, n_ids=20).means(),
        "pretrain": evaluate_masked(masked, SEQ_TARGETS).means(),
    }
    assert {task: set(means) for task, means in measured.items()} == {
        "skip": {name for name, metric in METRICS.items() if metric.skip},
        "seq": {name for name, metric in METRICS.items() if metric.seq},
        "pretrain": {name for name, metric in METRICS.items() if metric.pretrain},
    }
    assert set(measured["skip"]) == {"maa", "first_accuracy", "accuracy", "log_loss", "auc"}
    assert set(measured["seq"]) == {
        *("maa", "first_accuracy", "accuracy", "overlap", "repetition", "coverage", "perplexity"),
        *("hr@1", "hr@10", "hr@20", "ndcg@10", "ndcg@20", "mrr@20"),
    }
    assert set(measured["pretrain"]) == {"mrr@20", "hr@1", "hr@10", "hr@20", "perplexity"}
    for task, headlines in HEADLINES.items():
        assert set(headlines) <= set(measured["seq" if task == "prefixes" else task])


def test_saved_predictions(tmp_path):
    predictions = SkipPredictions.of(PROBABILITY)
    scores = evaluate_skip(predictions, SKIP_TARGETS)
    save_predictions(tmp_path / "p.npz", predictions, scores, SKIP_TARGETS)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as saved:
        assert set(saved) == {"probability", "decision", "session", *(f"sums_{name}" for name in scores.numerators)}
        assert {"sums_maa", "sums_first_accuracy", "sums_accuracy", "sums_log_loss"} <= set(saved)
        assert_array_equal(saved["decision"], predictions.decision)
        assert_allclose(saved["sums_maa"], [[0.71, 1], [0.32, 1], [1, 1]], rtol=1e-6)
        assert_allclose(saved["sums_accuracy"][:2], [[4, 5], [3, 5]])
    seq = SeqPredictions(SEQ_TARGETS.tracks, None, None)
    save_predictions(tmp_path / "q.npz", seq, evaluate_seq(seq, SEQ_TARGETS, n_ids=20), SEQ_TARGETS)
    with np.load(tmp_path / "q.npz", allow_pickle=False) as saved:
        assert {"tracks", "session", "sums_maa", "sums_overlap"} < set(saved)
        assert not {"rank", "tied"} & set(saved)
    ranked = seq._replace(rank=np.array([0, 0.5, np.inf], np.float32), tied=np.array([1, 2, 1], np.float32))
    save_predictions(tmp_path / "q.npz", ranked, evaluate_seq(ranked, SEQ_TARGETS, n_ids=20), SEQ_TARGETS)
    with np.load(tmp_path / "q.npz", allow_pickle=False) as saved:
        assert saved["tied"].tolist() == [1, 2, 1]
        assert_allclose(saved["sums_mrr@20"], [[1, 1], [0.75, 1], [0, 1]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.npz", "q.npz"]
