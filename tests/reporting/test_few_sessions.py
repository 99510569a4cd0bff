"""What a small test split can tell, and what validation chooses."""

from functools import partial

import numpy as np
import pytest
from run_folders import in_one_line, keep_predictions, split_scores, tables_of, write_run

from utils.reporting.text import format_table


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


def scores(valid, test, n_sessions=400):
    return {
        "valid": split_scores(valid, n_sessions=n_sessions),
        "test": split_scores(test, n_sessions=n_sessions),
    }


def test_a_small_split_says_what_it_can_tell(add_run, tmp_path):
    """Differences to the best of 0 or 2d in equal parts have mean d and deviation d: an interval of +-1.96 d / 20."""
    best = np.full(400, 0.6)
    wiggle = np.tile([0.0, 1.0], 200)
    keep_predictions(add_run("Best", 0, scores=scores(0.5, 0.6)), best)
    for label, size, shift in [("Near", 0.4, -0.19), ("Far", 0.2, 0.0), ("Other", 0.2, 0.05)]:
        run = add_run(label, 0, scores=scores(0.55, 0.6 - size / 2 - shift), kind="baseline")
        keep_predictions(run, best - size * wiggle - shift)
    (table,) = tables_of(tmp_path)
    assert table.few.best == "Best"
    assert table.few.detectable == pytest.approx(1.96 * 0.1 / 20, rel=0.1)  # the median of .0196, .0098, .0098
    assert table.few.not_told_apart == ("Near",)  # .01 +- .0196
    text = in_one_line(format_table(table))
    assert "among 400, a difference of less than about 0.010 MAA between two rows may be chance" in text
    assert "Not told apart from Best, the highest on these sessions: Near." in text


def test_validation_chooses_among_baselines_and_models(add_run, tmp_path):
    add_run("Repeat", 0, experiment="repeat_last_action", kind="baseline", scores=scores(0.85, 0.8))
    add_run("Model", 0, scores=scores(0.7, 0.82))
    add_run("Oracle", 0, kind="oracle", scores=scores(0.95, 0.95))
    (table,) = tables_of(tmp_path)
    choice = table.few.choice
    assert (choice.row.label, choice.valid) == ("Repeat", 0.85)
    assert choice.test == pytest.approx((0.8, 0.79, 0.81))
    said = "Chosen on validation: Repeat (MAA 0.850 there); its MAA on test is 0.800 [0.790, 0.810]."
    assert said in in_one_line(format_table(table))
    assert "may be chance" not in format_table(table), "no predictions are kept"


def test_the_choice_is_over_seeds_and_the_simpler_kind_wins_a_tie(add_run, tmp_path):
    add_run("Model", 0, seed=1, stamp="20260101-000001", scores=scores(0.9, 0.5))
    add_run("Model", 0, seed=2, stamp="20260101-000002", scores=scores(0.7, 0.5))
    add_run("Baseline", 0, kind="baseline", scores=scores(0.8, 0.5))
    assert tables_of(tmp_path)[0].few.choice.row.label == "Baseline"


def test_a_row_that_did_not_score_validation_is_not_chosen(add_run, tmp_path):
    add_run("A", 0, scores={"test": split_scores(0.9, n_sessions=10)})
    assert tables_of(tmp_path)[0].few.choice is None
    add_run("B", 0, scores=scores(0.2, 0.3, n_sessions=10))
    assert tables_of(tmp_path)[0].few.choice.row.label == "B"


def test_a_large_split_needs_no_such_words(add_run, tmp_path):
    add_run("A", 0, scores=scores(0.5, 0.6, n_sessions=1000))
    (table,) = tables_of(tmp_path)
    assert table.few is None
    assert "validation" not in format_table(table)


def test_nothing_is_chosen_where_validation_is_what_is_shown(add_run, tmp_path):
    add_run("A", 0, scores={"valid": split_scores(0.5, n_sessions=20)})
    (table,) = tables_of(tmp_path)
    assert (table.split, table.few.choice) == ("valid", None)
