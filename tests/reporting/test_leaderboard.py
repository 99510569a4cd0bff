"""Leaderboards: their rows, seeds and order."""

import math
from functools import partial

import pytest
from run_folders import DATASET, split_scores, tables_of, write_ladder, write_run

from utils.reporting.leaderboard import build_tables, run_records
from utils.reporting.runs import load_runs
from utils.reporting.text import format_table


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


@pytest.fixture
def ladder(add_run):
    write_ladder(add_run)


def test_rows_go_from_the_floor_to_the_ceiling(ladder, tmp_path):
    (table,) = tables_of(tmp_path)
    assert [row.label for row in table.rows] == ["Majority", "Repeat last", "Bad model", "Good <b>model</b>", "Oracle"]
    assert [row.gap_closed for row in table.rows] == pytest.approx([-0.5, 0.0, -0.25, 0.5, 1.0])
    assert (table.split, table.metric) == ("test", "maa")


def test_repeat_last_is_known_by_its_experiment(add_run, tmp_path):
    add_run("Repeat last label", 0.6, kind="baseline")
    add_run("As before", 0.5, experiment="repeat_last_action", kind="baseline")
    add_run("Model", 0.65)
    add_run("Oracle", 0.7, kind="oracle")
    (table,) = tables_of(tmp_path)
    assert [row.label for row in table.rows if row.is_repeat_last] == ["As before"]
    assert table.repeat_last.label == "As before"
    assert [row.gap_closed for row in table.rows] == pytest.approx([0.0, 0.5, 0.75, 1.0])


def test_no_gap_without_oracle(add_run, tmp_path):
    add_run("Repeat last", 0.5, experiment="repeat_last_action", kind="baseline")
    add_run("Model", 0.6)
    (table,) = tables_of(tmp_path)
    assert [row.gap_closed for row in table.rows] == [None, None]
    assert "gap closed" not in format_table(table)


def test_seeds_of_one_configuration_share_a_row(add_run, tmp_path):
    add_run("Model", 0.1, stamp="20260101-000000", seed=1)  # superseded by the same seed
    add_run(
        "Model", 0.2, stamp="20260101-000001", seed=3, config={"width": 4, "run": {"seed": 3}}
    )  # another configuration
    add_run("Model", 0.5, stamp="20260101-000002", seed=2)
    add_run("Model", 0.6, stamp="20260101-000003", seed=1)
    runs, _ = load_runs(tmp_path)
    (table,) = build_tables(runs)
    (row,) = table.rows
    assert [run.result["seed"] for run in row.runs] == [1, 2]
    assert row.metrics["maa"] == pytest.approx((0.55, 0.54, 0.56))
    assert row.spread["maa"] == pytest.approx(0.1 / math.sqrt(2))
    assert "2 (sd 0.071)" in format_table(table)
    shown = {record["folder"][-6:]: record["shown"] for record in run_records(runs, [table])}
    assert shown == {"000000": False, "000001": False, "000002": True, "000003": True}


def test_tables_by_dataset_task_and_prefixes(add_run, tmp_path):
    prefixes = {"test": split_scores(0.1), "test_prefixes": split_scores(0.3, **{"mrr@20": 0.2, "hr@20": 0.4})}
    add_run("A", 0.1, task="seq", scores=prefixes, experiment="transformer_seq")
    add_run("B", 0.2, task="skip")
    add_run("C", 0.2, task="skip", dataset=DATASET | {"hash": "other"})
    tables = tables_of(tmp_path)
    assert [(t.task, t.split, t.metric) for t in tables] == [
        ("skip", "test", "maa"),
        ("seq", "test", "maa"),
        ("seq", "test_prefixes", "mrr@20"),
        ("skip", "test", "maa"),
    ]
    assert "The original reported 0.178" in format_table(tables[1])
    assert "after every prefix" in format_table(tables[2])
    assert "The original reported" not in format_table(tables[2])


def test_valid_is_shown_where_test_was_not_scored(add_run, tmp_path):
    add_run("A", 0.3, scores={"valid": split_scores(0.3)})
    (table,) = tables_of(tmp_path)
    assert table.split == "valid"
    assert "valid sessions" in format_table(table)


def test_seeds_that_started_from_runs_of_their_own_are_one_row(add_run, tmp_path):
    for seed, start in [(1, "long-1"), (2, "long-2"), (3, "short-3"), (4, "20260101-000004")]:
        config = {"pretrained": f"runs/bert/{start}", "run": {"seed": seed}}
        add_run("BERT", 0.5 + seed / 100, seed=seed, stamp=f"2026010{6 - seed}-000000", config=config)
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    assert [run.result["seed"] for run in row.runs] == [1, 2], "not of a shorter pre-training, nor of a stamp"
