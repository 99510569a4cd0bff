"""Paired comparisons, by hand."""

import json
import math
from functools import partial

import numpy as np
import pytest
from run_folders import in_one_line, keep_predictions, tables_of, write_ladder, write_run

import report
from utils.reporting.comparisons import seed_error
from utils.reporting.text import format_table


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


@pytest.fixture
def ladder(add_run):
    write_ladder(add_run)


def test_paired_comparison_is_session_by_session(add_run, tmp_path):
    scores = np.linspace(0.1, 0.8, 50)
    keep_predictions(add_run("Repeat last", 0.5, experiment="repeat_last_action", kind="baseline"), scores)
    keep_predictions(add_run("Weak", 0.55), scores + 0.05)
    keep_predictions(add_run("Best", 0.6), scores + 0.1)
    (table,) = tables_of(tmp_path)
    pairs = [(c.better, c.worse) for c in table.comparisons]
    assert pairs == [("Best", "Weak"), ("Best", "Repeat last")]
    # The same difference in every session leaves nothing to chance, although the scores themselves spread widely.
    assert table.comparisons[0].difference == pytest.approx((0.05, 0.05, 0.05))
    assert table.comparisons[1].difference == pytest.approx((0.1, 0.1, 0.1))
    said = "Best is better than Repeat last by 0.100 [0.100, 0.100] MAA (50 sessions, paired; one seed)."
    assert said in in_one_line(format_table(table))


def test_all_seeds_are_compared(add_run, tmp_path):
    """The same difference in every session: what chance there is, is that of the seeds."""
    scores = np.linspace(0.1, 0.8, 50)
    for seed, more in [(1, 0.1), (2, 0.2), (3, 0.06)]:
        keep_predictions(add_run("Best", 0.6, seed=seed, stamp=f"2026010{seed}-000000"), scores + more)
        keep_predictions(add_run("Weak", 0.55, seed=seed, stamp=f"2026010{seed}-000000"), scores)
    (table,) = tables_of(tmp_path)
    (comparison,) = table.comparisons
    half = 4.302653 * np.std([0.1, 0.2, 0.06], ddof=1) / math.sqrt(3)  # Student's t with two degrees of freedom
    assert comparison.difference == pytest.approx((0.12, 0.12 - half, 0.12 + half))
    said = "Best and Weak cannot be told apart: 0.120 [-0.059, 0.299] MAA (50 sessions, paired; 3 seeds)."
    assert said in in_one_line(format_table(table))
    for seed in (4, 5, 6, 7):
        keep_predictions(add_run("Best", 0.6, seed=seed, stamp=f"2026010{seed}-000000"), scores + 0.12)
    assert "Best is better than Weak by 0.120" in format_table(tables_of(tmp_path)[0])


def test_a_comparison_tells_of_the_whole_of_training(add_run, tmp_path):
    """The mean of all validations, of each seed: the runner-up at the end was better on the way."""
    scores = np.linspace(0.1, 0.8, 50)
    curves = {"Best": [[0.1, 0.6], [0.2, 0.7]], "Weak": [[0.4, 0.5], [0.4, 0.7]]}
    for (label, seeds), more in zip(curves.items(), (0.1, 0.0), strict=True):
        for seed, values in enumerate(seeds, start=1):
            run = add_run(label, 0.5 + more, seed=seed, stamp=f"2026010{seed}-000000")
            keep_predictions(run, scores + more)
            lines = [{"step": step, "split": "valid", "maa": value} for step, value in enumerate(values)]
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (table,) = tables_of(tmp_path)
    assert table.comparisons[0].curves == (pytest.approx(0.4), pytest.approx(0.5))
    said = "2 seeds). Mean of all validations in training: 0.400 and 0.500."
    assert said in in_one_line(format_table(table))
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "valid", "maa": 0.4}\n')  # the last of Weak: no curve
    assert "validations" not in format_table(tables_of(tmp_path)[0])


def test_error_of_seeds():
    assert seed_error({1: 0.5}, {1: 0.4}) == seed_error({2: 0.5}, {1: 0.4}) == 0
    assert seed_error({1: 0.5, 2: 0.7}, {1: 0.4, 2: 0.6}) == pytest.approx(0), "they rise and fall together"
    alone = 12.706205 * math.sqrt(0.02 / 2)  # variance 0.02, one degree of freedom
    assert seed_error({1: 0.5, 2: 0.7}, {1: 0.4}) == pytest.approx(alone)
    assert seed_error({1: 0.5, 2: 0.7}, {1: 0.4, 3: 0.6}) == pytest.approx(alone * math.sqrt(2))


def test_a_comparison_is_a_ratio_of_sums_in_the_metric_of_the_table(add_run, tmp_path):
    """Sessions with more prefixes count more, and the table of all prefixes goes by MRR@20."""
    for label, right in [("Best", [1.0, 3.0]), ("Weak", [0.5, 0.0])]:
        folder = add_run(label, 0.6)
        path = folder / "result.json"
        result = json.loads(path.read_text())
        metric = {"mean": sum(right) / 4, "low": None, "high": None}
        result |= {"task": "seq", "scores": {"test": result["scores"]["test"]}}
        result["scores"]["test_prefixes"] = {"n_sessions": 2, "metrics": {"mrr@20": metric}}
        path.write_text(json.dumps(result))
        sums = np.array([[right[0], 1], [right[1], 3]])
        session = np.array([4, 8, 8, 8])
        np.savez(folder / "predictions_test_prefixes.npz", **{"sums_mrr@20": sums, "session": session})
    (comparison,) = tables_of(tmp_path)[1].comparisons
    assert comparison.metric == "mrr@20"
    assert comparison.difference.mean == pytest.approx(3.5 / 4)
    assert "MRR@20 (2 sessions, paired; one seed)" in in_one_line(format_table(tables_of(tmp_path)[1]))


def test_any_two_rows_can_be_compared(ladder, add_run, tmp_path, capsys):
    for label, more in [("A", 0.0), ("B", 0.03), ("C", 0.05)]:
        keep_predictions(add_run(label, 0.7 + more), np.linspace(0.1, 0.8, 50) + more)
    report.main(report.Config(tmp_path, compare=[("B", "A"), ("A", "nobody"), ("B", "C"), ("B", "A")], html=False))
    out = in_one_line(capsys.readouterr().out)
    assert out.count("B is better than A by 0.030") == 1
    assert out.count("C is better than B by 0.020") == 1, "the two best are compared anyway"
    assert "note: no table has predictions of both 'A' and 'nobody': not compared" in out


def test_a_difference_that_may_be_chance_is_called_so(add_run, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.2, 200)
    keep_predictions(add_run("Majority", 0.5, kind="baseline"), np.full(200, 0.5))
    keep_predictions(add_run("Model", 0.49), 0.5 + noise - noise.mean() - 0.01)
    (table,) = tables_of(tmp_path)
    (comparison,) = table.comparisons
    assert (comparison.better, comparison.worse) == ("Majority", "Model")
    assert comparison.difference.mean == pytest.approx(0.01)
    assert comparison.difference.low < 0 < comparison.difference.high
    assert "Majority and Model cannot be told apart" in format_table(table)


def test_comparison_takes_the_sessions_that_both_have(add_run, tmp_path):
    keep_predictions(add_run("Majority", 0.5, kind="baseline"), [0.0, 0.4, 0.5], session=np.array([5, 7, 9, 9]))
    keep_predictions(add_run("Model", 0.6), [0.9, np.nan, 0.7], session=np.array([9, 5, 3]))  # of sessions 3, 5, 9
    (table,) = tables_of(tmp_path)
    (comparison,) = table.comparisons
    assert comparison.n_sessions == 1  # 9 alone: 5 has no score, 3 and 7 are in one run only
    assert comparison.difference.mean == pytest.approx(0.7 - 0.5)
