"""Training scripts from end to end on tiny data: what they leave behind, resume, repeat and refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_dataset
from script_checks import (
    FILES,
    TINY,
    check_continuation_arrives,
    check_loss_arrives,
    check_weighting_arrives,
    lines,
    refused,
    result,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_transformer_seq
import train_transformer_skip
from utils.core.cli import parse_config
from utils.evaluation.options import DecodingConfig
from utils.training.seeds import each_seed

ROOT = Path(__file__).parents[2]
SCRIPTS = {"skip": train_transformer_skip, "seq": train_transformer_seq}


def options(dataset_folder, tmp_path, *more):
    return ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TINY, *more]


@pytest.mark.parametrize("task", SCRIPTS)
def test_a_run_leaves_exactly_this(task, dataset_folder, tmp_path):
    script = SCRIPTS[task]
    (folder,) = train(script, options(dataset_folder, tmp_path, "--run.label", "Tiny", "--run.seed", "5"))
    names = {path.name for path in folder.iterdir()}
    (events,) = names - FILES
    assert events.startswith("events.out.tfevents")
    assert names > FILES
    assert [(line["step"], line["epoch"], line["split"]) for line in lines(folder)] == [
        *((4, 1, "train"), (4, 1, "valid"), (8, 2, "train"), (8, 2, "valid"))
    ]
    assert all(line["loss"] > 0 for line in lines(folder) if line["split"] == "train")
    content = result(folder)
    assert list(content["scores"]) == ["train", "valid", "test"]
    assert {key: content[key] for key in ("experiment", "label", "task", "kind", "seed", "device")} == {
        "experiment": f"transformer_{task}",
        "label": "Tiny",
        "task": task,
        "kind": "model",
        "seed": 5,
        "device": "cpu",
    }
    best = torch.load(folder / "best.pt", weights_only=True)
    weights = {name: value for name, value in best["model"].items() if "features" not in name}
    storages = {value.untyped_storage().data_ptr(): value.numel() for value in weights.values()}
    assert content["n_parameters"] == sum(storages.values())  # encoder and decoder share the tracks
    assert content["n_trained_parameters"] == content["n_parameters"]
    valid = {line["step"]: line for line in lines(folder) if line["split"] == "valid"}
    assert content["best_value"] == max(line["maa"] for line in valid.values())
    assert content["best_value"] == valid[content["best_step"]]["maa"]
    # The scores are those of the best weights, not of the last.
    measured = content["scores"]["valid"]["metrics"]
    for name in ("maa", "first_accuracy", "accuracy"):
        assert measured[name]["mean"] == pytest.approx(valid[content["best_step"]][name])
    scalars = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    assert {"loss/train", "maa/valid"} <= set(scalars)


@pytest.mark.parametrize("task", SCRIPTS)
def test_its_config_repeats_a_run(task, dataset_folder, tmp_path):
    script = SCRIPTS[task]
    (first,) = train(script, options(dataset_folder, tmp_path, "--run.seed", "3"))
    arguments = ["--config", str(first / "config.yml")]
    assert parse_config(script.Config, arguments) == parse_config(
        script.Config, options(dataset_folder, tmp_path, "--run.seed", "3")
    )
    first, second = train(script, arguments)
    assert lines(first) == lines(second)
    assert result(first)["scores"] == result(second)["scores"]
    other = train(script, [*arguments, "--run.seed", "4"])[-1]
    assert lines(other) != lines(first)


@pytest.mark.parametrize("task", SCRIPTS)
def test_resume_adds_exactly_the_missing_steps(task, dataset_folder, tmp_path):
    script = SCRIPTS[task]
    (whole,) = train(script, options(dataset_folder, tmp_path / "whole", "--train.epochs", "3"))
    (part,) = train(script, options(dataset_folder, tmp_path / "part", "--train.epochs", "1"))
    assert [line["step"] for line in lines(part)] == [4, 4]
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "3"]
    assert train(script, arguments) == [part]
    assert [line["step"] for line in lines(part)] == [4, 4, 8, 8, 12, 12]
    assert lines(part) == lines(whole)
    assert result(part)["scores"] == result(whole)["scores"]


def test_seeds_make_folders(dataset_folder, tmp_path):
    folders = train(train_transformer_skip, options(dataset_folder, tmp_path, "--run.seeds", "2", "--run.seed", "8"))
    assert [result(folder)["seed"] for folder in folders] == [8, 9]
    assert lines(folders[0]) != lines(folders[1])
    alone = train(train_transformer_skip, options(dataset_folder, tmp_path, "--run.seed", "9"))[-1]
    assert lines(alone) == lines(folders[1]), "a seed's run does not depend on the runs before it"


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("skip", ["--weighting", "maa", "--model.causal", "false", "--model.skip_encoding", "token"]),
        ("skip", ["--data.train_cut", "random", "--data.history_size", "6", "--data.target_size", "4"]),
        ("seq", ["--loss.n_negatives", "9", "--model.tie_weights", "true", "--model.start", "bos"]),
        ("seq", ["--data.train_cut", "every", "--data.every_prefix", "true", "--monitor", "mrr@20"]),
        ("seq", ["--loss.name", "gbce", "--decoding.method", "beam", "--decoding.no_repeat", "3"]),
        ("seq", ["--monitor", "perplexity", "--train.precision", "bfloat16", "--model.use_log", "true"]),
    ],
)
def test_variants(task, more, dataset_folder, tmp_path):
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, *more))
    content = result(folder)
    assert ("test_prefixes" in content["scores"]) == ("--data.every_prefix" in more)
    size = 4 if "--data.target_size" in more else 10
    assert len(content["scores"]["test"]["by_position"]["accuracy"]) == size
    if "perplexity" in more:
        values = [line["perplexity"] for line in lines(folder) if line["split"] == "valid"]
        assert content["best_value"] == min(values) < max(values)


def test_the_weighting_arrives(dataset_folder, tmp_path, monkeypatch):
    check_weighting_arrives(train_transformer_skip, options(dataset_folder, tmp_path), monkeypatch)


def test_loss_and_decoding_arrive(dataset_folder, tmp_path, monkeypatch):
    arguments = options(dataset_folder, tmp_path)
    check_loss_arrives(train_transformer_seq, arguments, monkeypatch)
    decodings = (DecodingConfig(), DecodingConfig(method="beam", beam_width=3, no_repeat=1))
    check_continuation_arrives(train_transformer_seq, arguments, monkeypatch, tmp_path, "decoding", decodings)


@pytest.mark.parametrize("task", SCRIPTS)
def test_settings_can_be_chosen_without_a_look_at_test(task, dataset_folder, tmp_path, capsys):
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, "--data.scored", "[valid]"))
    assert list(result(folder)["scores"]) == ["valid"]
    assert not (folder / "predictions_test.npz").exists()
    assert ": valid maa " in capsys.readouterr().out


def test_training_beats_chance(dataset_folder, tmp_path):
    """The tiny sessions have a rule: odd tracks are skipped, and the next track is the next id."""
    more = ["--train.epochs", "12", "--model.d_model", "32", "--model.d_ff", "32", "--model.dropout", "0"]
    (skip,) = train(train_transformer_skip, options(dataset_folder, tmp_path, *more))
    assert result(skip)["scores"]["test"]["metrics"]["accuracy"]["mean"] > 0.75
    (seq,) = train(train_transformer_seq, options(dataset_folder, tmp_path, *more))
    assert result(seq)["scores"]["test"]["metrics"]["hr@10"]["mean"] > 0.6  # by chance 0.25


def test_seq_works_without_skips(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False, min_length=2)
    (run,) = train(train_transformer_seq, options(folder, tmp_path))
    assert set(result(run)["scores"]["test"]["slices"]) == {"length", "continuation", "shuffle", "premium"}


@pytest.mark.parametrize("task", SCRIPTS)
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--model.width", "8"], "width"),
        (["--train.epochs", "many"], "train.epochs"),
        (["--train.lr", "0"], "train.lr is 0"),
        (["--model.n_heads", "3"], "error: model: d_model 8 is no multiple of n_heads 3"),
        (["--model.dropout", "1.5"], "error: model: dropout"),
        (["--data.history_size", "0"], "data.history_size is 0"),
        (["--data.folder", "nowhere"], "error: nowhere is no dataset folder (no dataset.json); make one"),
        (["--data.min_length", "21"], "has no session of at least 21 plays"),
        (["--train.device", "toaster"], "error: device 'toaster' cannot be used here"),
        (["--run.resume", "nowhere"], "error: nowhere has no last.pt to resume from"),
        (["--config", "missing.yml"], "missing.yml"),
    ],
)
def test_bad_input(task, more, named, dataset_folder, tmp_path, capsys):
    script = SCRIPTS[task]
    assert named in refused(each_seed(script.main), script.Config, options(dataset_folder, tmp_path, *more), capsys)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_skip_wants_skips(tmp_path, capsys):
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False)
    arguments = options(folder, tmp_path)
    said = refused(train_transformer_skip.main, train_transformer_skip.Config, arguments, capsys)
    assert "only the seq task can be run on it" in said


def test_an_unknown_monitor_names_the_metrics(dataset_folder, tmp_path, capsys):
    arguments = options(dataset_folder, tmp_path, "--monitor", "mma")
    error = refused(train_transformer_seq.main, train_transformer_seq.Config, arguments, capsys)
    assert "monitor is mma, which is no metric of this task; choose one of maa, first_accuracy" in error
    assert not (tmp_path / "runs").exists()


def test_from_the_shell(tmp_path):
    command = [sys.executable, "train_transformer_skip.py", "--data.folder", str(tmp_path / "nothing")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path / 'nothing'} is no dataset folder (no dataset.json); make one: see data/README.md\n"
    )
