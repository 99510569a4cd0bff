"""The scripts of the skip task with the listener's past, from end to end on tiny listening."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from listening import random_listening, write_listening
from script_checks import FILES, given_to_fit, lines, refused, result, train

import evaluate
import train_baselines
import train_bert_finetune_skip
import train_lstm_skip
import train_transformer_skip
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.options import DataConfig, PastConfig
from utils.data.past import with_past
from utils.data.vocab import UNK
from utils.training.options import RunConfig

TRAIN = ("--train.epochs", "2", "--train.batch_size", "8", "--train.lr", "0.01", "--train.device", "cpu")
LSTM = ("--model.d_model", "8", "--model.d_hidden", "6", "--model.causal", "false")
TRANSFORMER = (
    *("--model.d_model", "8", "--model.n_heads", "2", "--model.n_layers", "1", "--model.d_ff", "8"),
    *("--model.causal", "false"),
)
BERT = (
    *("--bert.d_model", "8", "--bert.n_heads", "2", "--bert.n_layers", "1", "--bert.d_ff", "8"),
    *("--pretrained", "random"),
)
SCRIPTS = {
    "lstm": (train_lstm_skip, LSTM),
    "transformer": (train_transformer_skip, TRANSFORMER),
    "bert": (train_bert_finetune_skip, BERT),
}
ALL = ("--past.protocol", "running", "--past.relations", "true", "--past.details", "true")
each_script = pytest.mark.parametrize("name", SCRIPTS)


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions of three listeners."""
    return write_listening(tmp_path_factory.mktemp("data") / "listening", random_listening(0, n_sessions=80))


def options(name: str, data: Path, tmp_path: Path, *more: str) -> list[str]:
    """Arguments of a tiny run."""
    return ["--data.folder", str(data), "--run.folder", str(tmp_path), *TRAIN, *SCRIPTS[name][1], *more]


def without_ids(name: str) -> list[str]:
    return ["--use_ids" if name == "bert" else "--model.use_ids", "false"]


@each_script
def test_a_run_with_a_past_is_resumed_and_scored_again(name: str, listening: Path, tmp_path: Path) -> None:
    script, more = SCRIPTS[name][0], [*ALL, *without_ids(name), "--monitor", "log_loss"]
    (whole,) = train(script, options(name, listening, tmp_path / "whole", *more))
    assert {path.name for path in whole.iterdir()} > FILES
    content = result(whole)
    losses = [line["log_loss"] for line in lines(whole) if line["split"] == "valid"]
    assert content["best_value"] == min(losses)
    assert content["scores"]["valid"]["metrics"]["log_loss"]["mean"] == pytest.approx(min(losses))
    (part,) = train(script, options(name, listening, tmp_path / "part", *more, "--train.epochs", "1"))
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "2"]
    assert train(script, arguments) == [part]
    assert lines(part) == lines(whole)
    again = evaluate.main(evaluate.Config(run=str(part), split="valid", device="cpu"))
    assert again["metrics"] == content["scores"]["valid"]["metrics"]


@each_script
def test_options_of_the_past_reach_the_model(name: str, listening: Path, tmp_path: Path, monkeypatch) -> None:
    for more, asked in (
        ((), PastConfig()),
        (("--past.protocol", "frozen"), PastConfig("frozen")),
        (("--past.relations", "true"), PastConfig(relations=True)),
        (ALL, PastConfig("running", relations=True, details=True)),
    ):
        model = given_to_fit(SCRIPTS[name][0], options(name, listening, tmp_path, *more), monkeypatch).model
        dataset = with_past(Dataset.open(listening), asked)
        found = (0, 0) if model.past is None else (model.past.n_past, model.past.n_details)
        assert found == (dataset.n_past, dataset.n_details)
        assert (model.past is None) == (asked == PastConfig())
    model = given_to_fit(SCRIPTS[name][0], options(name, listening, tmp_path, *without_ids(name)), monkeypatch).model
    tracks = {"lstm": "tracks", "transformer": "decoder.tracks", "bert": "bert.tracks"}[name]
    assert len(model.get_submodule(tracks).table.weight) == UNK + 1


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_refusals(name: str, listening: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = SCRIPTS[name][0]
    arguments = options(name, listening, tmp_path, "--model.causal", "true", "--past.relations", "true")
    said = refused(script.main, script.Config, arguments, capsys)
    assert "add --model.causal false, or leave out --past.relations" in said
    arguments = options(name, listening, tmp_path, "--model.use_ids", "false", "--table.min_plays", "2")
    assert "leave out the options of --table" in refused(script.main, script.Config, arguments, capsys)
    arguments = options(name, listening, tmp_path, "--monitor", "mrr@20")
    assert "monitor is mrr@20, which is no metric of this task" in refused(
        script.main, script.Config, arguments, capsys
    )


def test_a_pretrained_bert_needs_ids(listening: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = train_bert_finetune_skip
    arguments = options("bert", listening, tmp_path, "--use_ids", "false", "--pretrained", "runs/bert_pretrain/RUN")
    assert "add --pretrained random" in refused(script.main, script.Config, arguments, capsys)


def test_causal_models_may_know_statistics(listening: Path, tmp_path: Path) -> None:
    more = ["--model.causal", "true", "--past.protocol", "running", "--past.details", "true"]
    (folder,) = train(train_lstm_skip, options("lstm", listening, tmp_path, *more))
    assert result(folder)["best_value"] is not None


def test_a_past_is_made_anew_where_the_dataset_has_moved(listening: Path, tmp_path: Path) -> None:
    (folder,) = train(train_lstm_skip, options("lstm", listening, tmp_path, *ALL))
    moved = tmp_path / "moved"
    shutil.copytree(listening, moved, ignore=shutil.ignore_patterns("past"))
    again = evaluate.main(evaluate.Config(run=str(folder), data=str(moved), split="valid", device="cpu"))
    assert again["metrics"] == result(folder)["scores"]["valid"]["metrics"]


def test_baselines_with_a_past(listening: Path, tmp_path: Path) -> None:
    """Only those that learn from it change."""
    data, found = DataConfig(str(listening)), {}
    for name, past, use_ids in (
        ("without", PastConfig(), True),
        ("with", PastConfig("running", relations=True, details=True), True),
        ("no ids", PastConfig("running", relations=True, details=True), False),
    ):
        config = train_baselines.Config(
            data, RunConfig(folder=str(tmp_path / name)), "skip", past=past, use_ids=use_ids
        )
        results = train_baselines.main(config)
        found[name] = {each["label"]: each["scores"]["test"]["metrics"]["log_loss"]["mean"] for each in results}
    learned = ["Logistic on the history", "Boosted trees"]
    for one, other in (("without", "with"), ("with", "no ids")):
        assert [label for label in found[one] if found[one][label] != found[other][label]] == learned
    assert np.isfinite([value for scores in found.values() for value in scores.values()]).all()


@pytest.mark.parametrize("changed", [{"past": PastConfig("running")}, {"use_ids": False}])
def test_the_seq_baselines_know_no_past(changed: dict, listening: Path, tmp_path: Path) -> None:
    data, run = DataConfig(str(listening)), RunConfig(folder=str(tmp_path))
    with pytest.raises(UserError, match="past and use_ids have no meaning for the seq baselines"):
        train_baselines.main(train_baselines.Config(data, run, "seq", **changed))
