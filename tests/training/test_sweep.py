"""Sweeps: what is finished stays, what was interrupted goes on, mistakes are found before anything is run."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import make_dataset

import sweep
import train_transformer_seq
from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.training.seeds import each_seed
from utils.training.sweeps import read_sweep

TINY = {
    **{"model.d_model": 8, "model.n_layers": 1, "model.d_ff": 8, "model.dropout": 0.0},
    **{"train.epochs": 1, "train.device": "cpu", "train.precision": "float32"},
}


@pytest.fixture
def ran(monkeypatch):
    """Arguments of the runs that a sweep starts; they run in this process."""
    calls = []

    def run(command, **_):
        calls.append(command[1:])
        each_seed(train_transformer_seq.main)(parse_config(train_transformer_seq.Config, command[1:]))
        return True

    monkeypatch.setattr("utils.training.sweeps.run", run)
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


def test_what_is_missing_is_said_once_before_any_run(tmp_path, dataset_folder, monkeypatch):
    """Nine runs of one dataset: one sentence. What another run of the call makes is not missing."""
    started = []
    monkeypatch.setattr("utils.training.sweeps.run", lambda command, **_: started.append(command) or True)
    there, runs = str(dataset_folder), tmp_path / "runs"
    gone = {f"run {i}": {"data.folder": str(tmp_path / "none")} for i in range(3)}
    others = {
        "vectors": {"data.folder": there, "script": "transformer_skip", "table.vectors": str(tmp_path / "v.st")},
        "start": {"data.folder": there, "script": "bert_finetune_seq", "pretrained": str(tmp_path / "run")},
        "later": {"data.folder": there, "script": "bert_finetune_seq", "pretrained": "{folder}/bert_pretrain/first"},
        "control": {"data.folder": there, "script": "bert_finetune_seq", "pretrained": "random"},
    }
    path = write(tmp_path / "s.yml", script="transformer_seq", seeds=3, runs=gone | others)
    with pytest.raises(UserError) as caught:
        sweep.main(sweep.Config(path, folder=runs))
    assert str(caught.value).splitlines() == [
        "no run was started:",
        f"{tmp_path}/none is no dataset folder (no dataset.json); make one: see data/README.md",
        "  needed by run 0, run 1, run 2",
        f"{tmp_path}/run is no folder of a finished run (pretrained); train it first",
        "  needed by start",
        f"{tmp_path}/v.st does not exist (table.vectors); make it with python -m utils.track_vectors.word2vec",
        "  needed by vectors",
    ]
    assert started == []
    sweep.main(sweep.Config(path, folder=runs, only="later"))
    assert len(started) == 3
    sweep.main(sweep.Config(path, folder=runs, dry_run=True))


def test_a_dataset_without_skips_is_found_before_any_run(tmp_path):
    data = make_dataset(tmp_path / "data", n_sessions=8, has_skips=False)
    path = write(tmp_path / "s.yml", script="transformer_skip", runs={"a": {"data.folder": str(data)}})
    with pytest.raises(UserError, match=r"no run was started:\n.*has no skips.*\n  needed by a"):
        sweep.main(sweep.Config(path, folder=tmp_path / "runs"))


def test_a_failed_run_does_not_stop_the_others(tmp_path, dataset_folder, monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        return len(started) % 2 == 0

    monkeypatch.setattr("utils.training.sweeps.run", run)
    runs = {"one": None, "the other": None}
    path = write(tmp_path / "s.yml", script="transformer_seq", common={"data.folder": str(dataset_folder)}, runs=runs)
    with pytest.raises(UserError, match=r"these runs failed:\n  python train_transformer_seq.py .*--run.label one"):
        sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    assert len(started) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"script": "transformer_seq"}, "has no run"),
        ({"script": "transformer_seq", "common": None, "runs": {}}, "has no run"),
        ({"script": "transformer_seq", "runs": {"a": {}}, "run": {}}, "must be a mapping"),
        ({"script": "transformer_seq", "runs": {"a": 5}}, "a must be a mapping of options, not 5"),
        ({"script": "transformer_seq", "runs": [1]}, r"runs must be a mapping of options, not \[1\]"),
        ({"script": "nothing", "runs": {"a": {}}}, "there is no train_nothing.py for 'a'"),
        ({"script": "baselines", "runs": {"a": {}}}, "there is no train_baselines.py for 'a' that can be resumed"),
        ({"runs": {"a": {}}}, "there is no train_None.py for 'a'"),
        (
            {"script": "transformer_seq", "seeds": "two", "runs": {"a": {}}},
            "seeds of 'a' is 'two'; it must be how many",
        ),
        ({"script": "transformer_seq", "runs": {"a": {"seeds": 0}}}, "seeds of 'a' is 0"),
        ({"script": "transformer_seq", "seeds": True, "runs": {"a": {}}}, "seeds of 'a' is True"),
        (
            {"script": "transformer_seq", "runs": {512: {"run.seed": 3}}},
            "'512' gives run.seed, which the sweep sets itself",
        ),
        (
            {"script": "transformer_seq", "common": {"run.seeds": 2}, "runs": {"a": {}}},
            "'a' gives run.seeds, which the sweep",
        ),
        (
            {"script": "transformer_seq", "runs": {"a": {"seeds": 2, "run.name": "base"}}},
            "'a' has 2 seeds, but run.name names one folder; put {seed} into it",
        ),
        (
            {"script": "transformer_seq", "runs": {"a": {}}, "compare": [["a", "b", "c"]]},
            r"compare must list pairs of labels, not \['a', 'b', 'c'\]",
        ),
        ({"script": "transformer_seq", "runs": {"a": {}}, "compare": "a"}, "compare must list pairs .*, not 'a'"),
    ],
)
def test_sweeps_that_make_no_sense(tmp_path, ran, spec, message):
    with pytest.raises(UserError, match=message):
        sweep.main(sweep.Config(write(tmp_path / "s.yml", **spec)))
    assert ran == []
    path = write(tmp_path / "s.yml", script="transformer_seq", runs={"a": {}})
    with pytest.raises(UserError, match="has no run whose label contains 'zzz'"):
        sweep.main(sweep.Config(path, only="zzz"))
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
    folder, (first, others), _ = read_sweep(path, folder=None, only=None, scripts=sweep.ROOT)
    assert folder.parts[0] == "runs"
    assert len(others) > 1
    made = {}
    for planned in first:
        options = sweep.options_of(planned)
        made[str(folder / planned.script / options["run.name"])] = options
    for planned in others:
        options = sweep.options_of(planned)
        for needed, parts in {"pretrained": ("bert.",), "warm_start": ("model.",)}.items():
            if options.get(needed) not in (None, "", "random"):
                base = made[options[needed]]
                same = {name: value for name, value in base.items() if name.startswith(parts)}
                assert same.items() <= options.items(), f"{planned}: {needed}"
                assert base["data.folder"] == options["data.folder"]
                assert base["run.seed"] == options["run.seed"]
                length = options["data.history_size"] + options["data.target_size"]
                assert base["data.history_size"] + base["data.target_size"] == length


def test_what_is_first_is_finished_before_the_others_start(tmp_path, dataset_folder, ran):
    first = {"Base": TINY | {"script": "transformer_seq", "data.folder": str(dataset_folder), "run.name": "base"}}
    runs = {"A": {"train.batch_size": 16, "seeds": 2}}
    common = TINY | {"data.folder": str(dataset_folder)}
    path = write(tmp_path / "s.yml", script="transformer_seq", seeds=3, common=common, first=first, runs=runs)
    sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    values = [dict(zip(args[::2], args[1::2], strict=True)) for args in ran]
    assert [(each["--run.label"], each["--run.seed"]) for each in values] == [("Base", "1"), ("A", "1"), ("A", "2")]
    assert "--train.batch_size" not in values[0]
    assert (tmp_path / "runs" / "transformer_seq" / "base" / "result.json").exists()
    sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    assert len(ran) == 3


def test_places_in_options_are_filled_in(tmp_path):
    first = {"Base": {"seeds": 2, "run.name": "base-{seed}"}}
    runs = {"A": {"warm_start": "{folder}/transformer_seq/base-{seed}", "seeds": 2}}
    path = write(tmp_path / "s.yml", script="transformer_seq", folder="runs/here", first=first, runs=runs)
    for folder in (None, Path("there")):
        (one, two), (third, fourth) = read_sweep(path, folder=folder, only=None, scripts=sweep.ROOT).waves
        where = folder or Path("runs/here")
        for planned, seed in [(one, 1), (two, 2)]:
            assert planned.args[planned.args.index("--run.name") + 1] == f"base-{seed}"
            assert planned.args[planned.args.index("--run.folder") + 1] == str(where)
        for planned, seed in [(third, 1), (fourth, 2)]:
            assert planned.args[planned.args.index("--warm_start") + 1] == f"{where}/transformer_seq/base-{seed}"


def test_rows_of_a_sweep_are_compared(tmp_path, dataset_folder, ran, capsys):
    runs = {"A": {"train.lr": 1e-3}, "B": {"train.lr": 1e-2}, "C": {"train.lr": 1e-4}}
    pairs = [["A", "B"], ["A", "C"], ["B", "C"]]
    common = TINY | {"data.folder": str(dataset_folder)}
    path = write(tmp_path / "s.yml", script="transformer_seq", common=common, runs=runs, compare=pairs)
    sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    assert capsys.readouterr().out.count(" paired; one seed)") == 3, "the two best would be compared anyway"


def test_a_failure_at_first_stops_the_sweep(tmp_path, dataset_folder, monkeypatch):
    started = []
    monkeypatch.setattr("utils.training.sweeps.run", lambda command, **_: bool(started.append(command)))
    runs = {"one": {"data.folder": str(dataset_folder)}}
    path = write(tmp_path / "s.yml", script="transformer_seq", first=runs, runs=runs)
    with pytest.raises(UserError, match="these runs failed"):
        sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    assert len(started) == 1


def test_several_jobs_at_a_time(tmp_path, dataset_folder, capsys, monkeypatch):
    """In processes of their own, in the folder of the caller; one of them fails."""
    monkeypatch.chdir(tmp_path)
    good = TINY | {"data.folder": str(dataset_folder)}
    runs = {"good/1": good, "bad": good | {"model.n_heads": 3}}
    path = write(tmp_path / "s.yml", script="transformer_seq", runs=runs)
    with pytest.raises(UserError, match=r"these runs failed:\n.*--run.label bad"):
        sweep.main(sweep.Config(path, folder=Path("runs"), jobs=2))
    assert "error: model: " in (tmp_path / "runs" / "transformer_seq, bad, seed 1.log").read_text()
    assert "epoch 1" not in capsys.readouterr().err
    assert [json.loads(path.read_text())["label"] for path in (tmp_path / "runs").rglob("result.json")] == ["good/1"]


def test_a_run_from_before_an_option_existed_is_finished(tmp_path, dataset_folder, ran):
    common = TINY | {"data.folder": str(dataset_folder)}
    path = write(tmp_path / "s.yml", script="transformer_seq", common=common, runs={"A": {}})
    sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    (saved,) = (tmp_path / "runs").rglob("config.yml")
    values = yaml.safe_load(saved.read_text())
    del values["train"]["clock"]
    saved.write_text(yaml.safe_dump(values))
    sweep.main(sweep.Config(path, folder=tmp_path / "runs"))
    assert len(ran) == 1


def test_two_sweeps_share_what_is_first(tmp_path, dataset_folder, ran):
    folder, here = str(tmp_path / "here"), {"data.folder": str(dataset_folder)}
    first = {"Base": TINY | here | {"script": "transformer_seq"}}
    paths = [
        write(
            tmp_path / f"{label}.yml", script="transformer_seq", folder=folder, first=first, runs={label: TINY | here}
        )
        for label in "AB"
    ]
    sweep.main(sweep.Config(paths))
    assert [args[args.index("--run.label") + 1] for args in ran] == ["Base", "A", "B"]
    assert all(args[args.index("--run.folder") + 1] == folder for args in ran)


def test_the_command_line_takes_one_sweep_or_several(tmp_path):
    assert parse_config(sweep.Config, ["--sweep", "a.yml"]).sweep == Path("a.yml")
    assert parse_config(sweep.Config, ["--sweep", "[a.yml, b.yml]"]).sweep == [Path("a.yml"), Path("b.yml")]
