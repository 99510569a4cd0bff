"""Sweeps: what is finished stays, what was interrupted goes on, mistakes are found before anything is run."""

import shutil
from pathlib import Path

import pytest
import yaml

import sweep
import train_transformer_seq
from utils.cli import UserError, parse_config
from utils.run import each_seed

TINY = {
    **{"model.d_model": 8, "model.n_layers": 1, "model.d_ff": 8, "model.dropout": 0.0},
    **{"train.epochs": 1, "train.device": "cpu", "train.precision": "float32"},
}


@pytest.fixture
def ran(monkeypatch):
    """Arguments of the runs that a sweep starts; they run in this process."""
    calls = []

    def run(command):
        calls.append(command[1:])
        each_seed(train_transformer_seq.main)(parse_config(train_transformer_seq.Config, command[1:]))
        return True

    monkeypatch.setattr(sweep, "run", run)
    return calls


def write(path: Path, **spec) -> Path:
    path.write_text(yaml.safe_dump(spec))
    return path


def test_a_sweep_runs_what_is_missing(tmp_path, dataset_folder, ran, capsys):
    common = TINY | {"data.folder": str(dataset_folder)}
    runs = {"Full": {"loss.name": "full"}, "Sampled": {"loss.n_negatives": 5, "seeds": 2}}
    path = write(tmp_path / "losses.yml", script="transformer_seq", common=common, runs=runs)
    config = sweep.Config(path, folder=tmp_path / "runs")
    sweep.main(sweep.Config(path, folder=tmp_path / "runs", dry_run=True))
    assert ran == []
    sweep.main(config)
    labels = [(args[args.index("--run.label") + 1], args[args.index("--run.seed") + 1]) for args in ran]
    assert labels == [("Full", "1"), ("Sampled", "1"), ("Sampled", "2")]
    assert "Sampled" in (tmp_path / "runs" / "leaderboard.json").read_text()

    sweep.main(config)
    assert len(ran) == 3, "all are finished"
    first = min((tmp_path / "runs" / "transformer_seq").iterdir())
    (first / "result.json").unlink()
    sweep.main(config)
    assert ran[3][-2:] == ["--run.resume", str(first)]
    assert (first / "result.json").exists()

    runs["Full"]["train.lr"] = 1e-3
    write(path, script="transformer_seq", common=common, runs=runs)
    sweep.main(sweep.Config(path, folder=tmp_path / "runs", only="Full"))
    assert len(ran) == 5
    assert ran[4][ran[4].index("--train.lr") + 1] == "0.001"
    shutil.rmtree(first)  # the run with the old learning rate
    capsys.readouterr()
    sweep.main(sweep.Config(path, folder=tmp_path / "runs", dry_run=True))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["finished"] * 3


def test_a_failed_run_does_not_stop_the_others(tmp_path, dataset_folder, monkeypatch):
    started = []

    def run(command):
        started.append(command)
        return len(started) % 2 == 0

    monkeypatch.setattr(sweep, "run", run)
    runs = {"one": None, "the other": None}
    path = write(tmp_path / "s.yml", script="transformer_seq", common={"data.folder": str(dataset_folder)}, runs=runs)
    with pytest.raises(UserError, match=r"these runs failed:\n  python train_transformer_seq.py .*--run.label one"):
        sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    assert len(started) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"script": "transformer_seq"}, "must be a mapping"),
        ({"script": "transformer_seq", "runs": {"a": {}}, "run": {}}, "must be a mapping"),
        ({"script": "nothing", "runs": {"a": {}}}, "there is no train_nothing.py for 'a'"),
        ({"runs": {"a": {}}}, "there is no train_None.py for 'a'; name a `script`"),
    ],
)
def test_sweeps_that_make_no_sense(tmp_path, ran, spec, message):
    with pytest.raises(UserError, match=message):
        sweep.main(sweep.Config(write(tmp_path / "s.yml", **spec)))
    assert ran == []
    with pytest.raises(UserError, match=r"none\.yml cannot be read"):
        sweep.main(sweep.Config(tmp_path / "none.yml"))


def test_unknown_options_stop_the_sweep_before_the_first_run(tmp_path, ran, capsys):
    path = write(tmp_path / "s.yml", script="transformer_seq", runs={"good": {}, "bad": {"model.width": 3}})
    with pytest.raises(SystemExit) as stopped:
        sweep.main(sweep.Config(path))
    assert stopped.value.code == 2
    assert "model.width" in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize("path", sorted((sweep.ROOT / "sweeps").glob("*.yml")), ids=lambda path: path.name)
def test_sweeps_of_the_project_parse(path):
    plan = list(sweep.runs_of(path, only=None))
    assert len(plan) > 1
    for script, args in plan:
        assert sweep.progress(script, args, Path("nowhere")) == ("new", None)
