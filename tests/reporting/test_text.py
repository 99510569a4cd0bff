"""Leaderboards in a terminal."""

from functools import partial

import numpy as np
import pytest
from run_folders import in_one_line, keep_predictions, split_scores, tables_of, write_ladder, write_run

from utils.reporting.text import WIDTH, format_count, format_memory, format_metric, format_seconds, format_table


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


@pytest.fixture
def ladder(add_run):
    write_ladder(add_run)


def test_terminal_table_is_aligned_and_says_what_the_original_reported(ladder, tmp_path):
    lines = format_table(tables_of(tmp_path)[0]).splitlines()
    assert lines[0] == "Which tracks will be skipped?  tiny, temporal protocol, test sessions"
    assert lines[1].split() == ["MAA", "gap", "closed", "weights", "time"]
    table = lines[1:10]  # header, three rules, five rows
    assert len({len(line) for line in table}) == 1
    assert [line.split("  ")[0] for line in table if line[0] not in " ─"] == [
        "Majority",
        "Repeat last",
        "Bad model",
        "Good <b>model</b>",
        "Oracle",
    ]
    assert [i for i, line in enumerate(table) if set(line) == {"─"}] == [1, 4, 7], "between baselines, models, oracle"
    assert table[6].split()[-9:] == ["0.600", "[0.590,", "0.610]", "50", "%", "1.23", "M", "12", "s"]
    assert lines[10] == ""
    assert in_one_line("\n".join(lines[11:])) == (
        'The original reported 0.430 for its "DDPG", not comparable: the highest point of its test curve, one action '
        "for all users (beside Bad model). "
        'The original reported 0.571 for its "standard transformer", not comparable: its training and test sessions '
        "are of the same day, its best checkpoint was chosen on the test set (beside Good <b>model</b>)."
    )


def test_only_the_metric_that_orders_the_rows_has_its_interval(add_run, tmp_path):
    add_run("A", 0.5, task="seq", scores={"test": split_scores(0.5, **{"hr@20": 0.25, "mrr@20": 0.125})})
    header, _, row = format_table(tables_of(tmp_path)[0]).splitlines()[1:]
    assert header.split() == ["MAA", "HR@20", "MRR@20", "weights", "time"]
    assert row.split() == ["A", "0.500", "[0.490,", "0.510]", "0.250", "0.125", "1.23", "M", "12", "s"]


def test_a_table_has_a_hundred_columns_at_most(ladder, add_run, tmp_path):
    long = "A very long label of a model, with many options in it: " + ", ".join(f"option {i}" for i in range(20))
    scores = np.linspace(0.1, 0.8, 50)
    for seed in (1, 2, 3):
        run = add_run(long, 0.65, experiment="lstm_skip", seed=seed, stamp=f"2026010{seed}-000000")
        keep_predictions(run, scores)
    keep_predictions(add_run("Best", 0.66, scores={"test": split_scores(0.66, first_accuracy=0.7)}), scores + 0.1)
    text = format_table(tables_of(tmp_path)[0])
    assert max(map(len, text.splitlines())) == WIDTH == 100
    labels = in_one_line(" ".join(line[:30] for line in text.splitlines()))
    assert "option 19" in labels, "nothing of the label is cut off"
    assert "0.650 [0.640, 0.660]" in text
    assert f"Best is better than {long} by 0.100" in in_one_line(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(None), "-"),
        (format_count(999), "999"),
        (format_count(12_345), "12 k"),
        (format_count(999_600), "1 M"),
        (format_count(1_234_567), "1.23 M"),
        (format_seconds(0.123), "0.1 s"),
        (format_seconds(9.96), "10 s"),
        (format_seconds(150), "2 min"),
        (format_seconds(7200), "2.0 h"),
        (format_memory(512), "512 MiB"),
        (format_memory(1536), "1.5 GiB"),
        (format_metric(None), "-"),
    ],
)
def test_formats(text, expected):
    assert text == expected


def test_metric_without_value_is_a_dash(add_run, tmp_path):
    add_run("A", 0.5, scores={"test": split_scores(0.5, first_accuracy=None, accuracy=0.5)})
    add_run("B", 0.4, scores={"test": split_scores(0.4, first_accuracy=0.3)})
    (table,) = tables_of(tmp_path)
    assert "first_accuracy" not in table.rows[1].metrics
    assert "  -  " in format_table(table)
