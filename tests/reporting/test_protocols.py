"""Rows that know different things of the past never share a table."""

import json
from functools import partial

import numpy as np
import pytest
from run_folders import in_one_line, keep_predictions, split_scores, tables_of, write_run

import report
from utils.reporting.leaderboard import run_records
from utils.reporting.page import write_report
from utils.reporting.runs import load_runs
from utils.reporting.text import describe_choices, format_table

RUNNING = "statistics of the past: running to the session's start"


def knowing(protocol, seed=1):
    """The config of a run under a protocol of the past."""
    return {"width": 8, "past": {"protocol": protocol, "relations": True}, "run": {"seed": seed}}


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


@pytest.fixture
def protocols(add_run):
    """Rows without the past, frozen and running, written in no particular order; two share experiment and label."""
    add_run("LSTM", 0.70, experiment="lstm_skip", config=knowing("running"), stamp="20260101-000003")
    add_run("LSTM", 0.55, experiment="lstm_skip", stamp="20260101-000001")
    add_run("Trees", 0.65, kind="baseline", config=knowing("running"))
    add_run("Frozen", 0.60, config=knowing("frozen"))
    add_run("Repeat", 0.50, experiment="repeat_last_action", kind="baseline")
    add_run("Majority", 0.40, experiment="position_majority", kind="baseline", config=knowing("none"))
    add_run("Rate", 0.45, experiment="skip_rate_of_the_track", kind="baseline", config=knowing("running"))
    add_run("Oracle", 0.90, kind="oracle")


def test_each_protocol_has_its_table(protocols, tmp_path):
    none, frozen, running = tables_of(tmp_path)
    assert [table.past for table in (none, frozen, running)] == ["none", "frozen", "running"]
    assert [row.label for row in none.rows] == ["Majority", "Rate", "Repeat", "LSTM", "Oracle"]
    own = [[row.label for row in table.rows if not row.is_reference] for table in (none, frozen, running)]
    assert own[1:] == [["Frozen"], ["Trees", "LSTM"]]
    assert own[0] == ["Majority", "Rate", "Repeat", "LSTM", "Oracle"]
    assert none.name == "tiny, temporal protocol, no statistics of the past"
    assert frozen.name == "tiny, temporal protocol, statistics of the past: frozen at the end of training"
    assert running.name == f"tiny, temporal protocol, {RUNNING}"
    assert running.rows[-2].metrics["maa"].mean == 0.70, "the same label under another protocol is another row"


def test_the_floor_and_the_ceiling_stand_in_every_table_as_references(protocols, tmp_path):
    _, _, running = tables_of(tmp_path)
    assert [(row.label, row.is_reference) for row in running.rows] == [
        ("Majority", True),
        ("Repeat", True),
        ("Trees", False),
        ("LSTM", False),
        ("Oracle", True),
    ]
    # From repeat-last, .5, to the oracle, .9: the same scale as in the table without the past.
    assert [row.gap_closed for row in running.rows] == pytest.approx([-0.25, 0.0, 0.375, 0.5, 1.0])
    text = format_table(running)
    assert in_one_line(text).count("(for reference: knows no past)") == 3
    assert "Repeat (for reference: knows no past)" in in_one_line(text)
    rules = [line for line in text.splitlines() if set(line) == {"─"}]
    assert len(rules) == 4, "below the header, and between references, baselines, models and the oracle"


def test_an_older_dataset_keeps_its_heading(add_run, tmp_path):
    add_run("A", 0.5)
    assert tables_of(tmp_path)[0].name == "tiny, temporal protocol"


def test_a_lone_protocol_is_named_too(add_run, tmp_path):
    add_run("A", 0.5, config=knowing("running"))
    (table,) = tables_of(tmp_path)
    assert table.name.endswith(RUNNING)
    assert [row.is_reference for row in table.rows] == [False]


def test_records_and_page_name_the_protocol(protocols, tmp_path):
    runs, notes = load_runs(tmp_path)
    tables = tables_of(tmp_path)
    records = run_records(runs, tables)
    assert {(record["label"], record["past"]) for record in records} == {
        *((label, "none") for label in ("LSTM", "Repeat", "Majority", "Rate", "Oracle")),
        *((label, "running") for label in ("LSTM", "Trees")),
        ("Frozen", "frozen"),
    }
    assert all(record["shown"] for record in records)
    write_report(tmp_path / "report.html", runs, tables, notes)
    html = (tmp_path / "report.html").read_text()
    assert "statistics of the past: running to the session&#39;s start" in html
    assert html.count("<small>for reference: knows no past</small>") == 6  # three rows in each of two tables
    anchors = [part.split('"')[0] for part in html.split('<section id="')[1:]]
    assert len(set(anchors)) == 3


def test_the_best_is_compared_with_the_floor_of_the_other_table(add_run, tmp_path):
    scores = np.linspace(0.1, 0.8, 50)
    keep_predictions(add_run("Repeat", 0.5, experiment="repeat_last_action", kind="baseline"), scores)
    keep_predictions(add_run("Majority", 0.45, experiment="position_majority", kind="baseline"), scores - 0.05)
    keep_predictions(add_run("LSTM", 0.6, config=knowing("running")), scores + 0.1)
    _, running = tables_of(tmp_path)
    assert [(c.better, c.worse) for c in running.comparisons] == [("LSTM", "Repeat")]
    assert running.comparisons[0].difference == pytest.approx((0.1, 0.1, 0.1))


def test_the_original_knew_no_past(add_run, tmp_path):
    add_run("A", 0.5, experiment="ddpg_skip")
    add_run("B", 0.5, experiment="ddpg_skip", stamp="20260101-000002", config=knowing("running"))
    none, running = tables_of(tmp_path)
    assert (none.has_original_figures, running.has_original_figures) == (True, False)


def test_an_unknown_protocol_is_left_out_with_a_note(add_run, tmp_path):
    add_run("A", 0.5)
    add_run("B", 0.5, config=knowing("sideways"))
    runs, (note,) = load_runs(tmp_path)
    assert [run.result["label"] for run in runs] == ["A"]
    assert "config.past.protocol is 'sideways', not one of none, frozen, running" in note


def test_validation_chooses_across_protocols(add_run, tmp_path, capsys):
    def scores(valid, test):
        return {split: split_scores(value, n_sessions=200) for split, value in (("valid", valid), ("test", test))}

    add_run("Repeat", 0, experiment="repeat_last_action", kind="baseline", scores=scores(0.6, 0.7))
    add_run("LSTM", 0, config=knowing("running"), scores=scores(0.8, 0.6))
    add_run("Trees", 0, kind="baseline", config=knowing("running"), scores=scores(0.7, 0.65))
    (sentence,) = describe_choices(tables_of(tmp_path))
    assert sentence == (
        f"Which tracks will be skipped? Of all rows of tiny, validation chooses LSTM ({RUNNING}): "
        "MAA 0.800 on validation, 0.600 [0.590, 0.610] on test."
    )
    report.main(report.Config(runs=tmp_path))
    assert in_one_line(sentence) in in_one_line(capsys.readouterr().out)
    assert "validation chooses LSTM" in (tmp_path / "report.html").read_text()
    assert {record["past"] for record in json.loads((tmp_path / "leaderboard.json").read_text())} == {"none", "running"}
