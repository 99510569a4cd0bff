"""Which run folders are read, in which order, and what is said of the others."""

import json
from functools import partial
from pathlib import Path

import pytest
from run_folders import DATASET, tables_of, write_run

import report
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.reporting.runs import load_runs, stamp_order


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


def test_what_cannot_be_read_is_named(add_run, tmp_path):
    good = add_run("Good", 0.5)
    (tmp_path / "a" / "unfinished").mkdir(parents=True)
    broken, lacking, odd = (add_run(name, 0.5) / "result.json" for name in ("broken", "lacking", "odd"))
    broken.write_text('{"label":\n 1,,}')
    lacking.write_text(json.dumps({"label": "x", "dataset": {"name": "y"}}))
    odd.write_text(json.dumps(json.loads((good / "result.json").read_text()) | {"kind": "prophet"}))
    runs, notes = load_runs(tmp_path)
    assert [run.result["label"] for run in runs] == ["Good"]
    text = "\n".join(notes)
    assert len(notes) == 4
    assert "unfinished is not finished" in text
    assert f"{broken}, line 2: not valid JSON" in text
    assert f"{lacking} lacks experiment, task, kind, seed, scores, dataset.hash, dataset.protocol" in text
    assert f"{odd} kind is 'prophet', not one of baseline, model, oracle" in text


def test_no_runs_is_an_error_with_a_cure(tmp_path, capsys):
    with pytest.raises(UserError, match="make demo"):
        load_runs(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli(report.main, report.Config, description="", args=["--runs", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "none is not a folder" in capsys.readouterr().err


def test_finished_runs_one_folder_deeper_are_told_of(tmp_path):
    """The folder of a sweep beside experiments: `--runs` must name it to show them."""
    runs, sweep = tmp_path / "runs", tmp_path / "runs" / "sweep"
    write_run(runs, "Good", 0.5)
    write_run(sweep, "Deeper", 0.6)
    write_run(sweep, "Other", 0.7)
    found, notes = load_runs(runs)
    assert [run.result["label"] for run in found] == ["Good"]
    said = "holds finished runs one folder deeper: show them with --runs"
    assert notes == [f"{sweep} {said} {sweep}; left out"], "said once for all of its experiments"
    assert {run.result["label"] for run in load_runs(sweep)[0]} == {"Deeper", "Other"}
    with pytest.raises(UserError, match=rf"no finished run in {tmp_path} \(.*{runs} {said} {runs}; left out"):
        load_runs(tmp_path)


def test_stamps_sort_by_time():
    names = ["20260102-000000", "20260101-000000-10", "20260101-000000-2", "20260101-000000"]
    assert sorted(map(Path, names), key=stamp_order) == [Path(name) for name in reversed(names)]


def test_the_seed_protocol_of_an_older_result_is_called_the_originals(add_run, tmp_path, capsys):
    add_run("Older", 0.5, dataset=DATASET | {"protocol": "seed"})
    add_run("Newer", 0.6, dataset=DATASET | {"protocol": "original"})
    (table,) = tables_of(tmp_path)
    assert [row.label for row in table.rows] == ["Older", "Newer"], "one table has both"
    assert table.name == "tiny, original protocol"
    report.main(report.Config(runs=tmp_path))
    assert "tiny, original protocol" in capsys.readouterr().out
    assert {record["protocol"] for record in json.loads((tmp_path / "leaderboard.json").read_text())} == {"original"}
