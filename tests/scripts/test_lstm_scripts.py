"""The scripts of the recurrent encoder-decoders, from end to end on tiny data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import script_checks
import torch
from conftest import make_dataset
from safetensors.torch import load_file
from script_checks import (
    FILES,
    check_continuation_arrives,
    check_loss_arrives,
    check_weighting_arrives,
    given_to_fit,
    lines,
    result,
    train,
)

import evaluate
import train_lstm_seq
import train_lstm_skip
from model.lstm import LSTMForSkips
from utils.core.cli import parse_config
from utils.data import schema
from utils.data.batch import History
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL
from utils.evaluation.options import DecodingConfig
from utils.track_vectors.files import VECTORS, save_vectors
from utils.training.checkpoint import load_checkpoint
from utils.training.seeds import each_seed

SCRIPTS = {"skip": train_lstm_skip, "seq": train_lstm_seq}
TINY = [
    *("--model.d_model", "8", "--model.d_hidden", "6", "--train.device", "cpu"),
    *("--train.epochs", "2", "--train.batch_size", "16", "--train.lr", "0.01"),
]
each_task = pytest.mark.parametrize("task", SCRIPTS)


def options(dataset_folder: Path, tmp_path: Path, *more: str) -> list[str]:
    """Arguments of a tiny run."""
    return ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TINY, *more]


def table_of(folder: Path, file: str = "best.pt") -> torch.Tensor:
    return load_checkpoint(folder / file)["model"]["tracks.table.weight"]


@pytest.fixture(scope="module")
def vectors(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random vectors."""
    folder, dataset = tmp_path_factory.mktemp("vectors"), Dataset.open(dataset_folder)
    save_vectors(folder, torch.randn(dataset.n_ids, 8, generator=torch.manual_seed(5)), dataset)
    return folder / VECTORS


def rows(path: Path) -> torch.Tensor:
    """Vectors of the tracks, as they are in a file."""
    return load_file(path)["vectors"][N_SPECIAL:]


# --- Runs


@each_task
def test_a_run_leaves_exactly_this(task, dataset_folder, tmp_path):
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path))
    names = {path.name for path in folder.iterdir()}
    (events,) = names - FILES
    assert events.startswith("events.out.tfevents")
    assert names > FILES
    assert [(line["step"], line["split"]) for line in lines(folder)] == [
        *((4, "train"), (4, "valid"), (8, "train"), (8, "valid"))
    ]
    content = result(folder)
    assert (content["experiment"], content["task"], content["label"]) == (f"lstm_{task}", task, "LSTM")
    assert list(content["scores"]) == ["train", "valid", "test"]
    valid = {line["step"]: line for line in lines(folder) if line["split"] == "valid"}
    assert content["best_value"] == max(line["maa"] for line in valid.values())
    assert content["scores"]["valid"]["metrics"]["maa"]["mean"] == pytest.approx(content["best_value"])
    again = evaluate.main(evaluate.Config(run=str(folder), split="valid", device="cpu"))
    assert again["metrics"] == content["scores"]["valid"]["metrics"]


@each_task
def test_resume_adds_exactly_the_missing_steps(task, dataset_folder, tmp_path, vectors):
    """Without the file of vectors that the run started from: it is in the run's own weights."""
    gone = Path(shutil.copytree(vectors.parent, tmp_path / "gone"))
    more = ["--table.vectors", str(gone / VECTORS), "--model.dropout", "0.3", "--model.cell", "gru"]
    if task == "skip":
        more += ["--model.scheduled_sampling", "0.5"]
    (whole,) = train(SCRIPTS[task], options(dataset_folder, tmp_path / "whole", *more))
    (part,) = train(SCRIPTS[task], options(dataset_folder, tmp_path / "part", *more, "--train.epochs", "1"))
    shutil.rmtree(gone)
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "2"]
    assert train(SCRIPTS[task], arguments) == [part]
    assert lines(part) == lines(whole)
    assert result(part)["scores"] == result(whole)["scores"]
    again = evaluate.main(evaluate.Config(run=str(part), split="valid", device="cpu"))
    assert again["metrics"] == result(part)["scores"]["valid"]["metrics"]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("skip", ["--weighting", "maa", "--model.previous_label", "false", "--model.causal", "false"]),
        ("skip", ["--model.skip_encoding", "none", "--model.bidirectional", "true", "--data.history_size", "6"]),
        ("seq", ["--data.every_prefix", "true", "--model.start", "bos", "--monitor", "mrr@20"]),
        ("seq", ["--model.attention", "true", "--model.tie_weights", "true", "--train.precision", "bfloat16"]),
    ],
)
def test_variants(task, more, dataset_folder, tmp_path):
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, *more, "--train.epochs", "1"))
    content = result(folder)
    assert ("test_prefixes" in content["scores"]) == ("--data.every_prefix" in more)
    assert content["best_value"] is not None


@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [("skip", "accuracy", 0.75), ("seq", "hr@10", 0.6)],  # by chance 0.5 and 0.25
)
def test_training_beats_chance(task, metric, least, dataset_folder, tmp_path):
    """The tiny sessions have a rule: odd tracks are skipped, and the next track is the next id."""
    more = ["--train.epochs", "10", "--model.d_model", "24", "--model.d_hidden", "32", "--model.dropout", "0"]
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, *more, "--data.scored", "[test]"))
    assert result(folder)["scores"]["test"]["metrics"][metric]["mean"] > least


def test_seq_works_without_skips(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False, min_length=2)
    (run,) = train(train_lstm_seq, options(folder, tmp_path))
    assert set(result(run)["scores"]["test"]["slices"]) == {"length", "continuation", "shuffle", "premium"}


def test_labels_are_fed_in_training_only_with_previous_label(dataset_folder, tmp_path, monkeypatch):
    """What the loss gives to the model."""
    given = []
    forward = LSTMForSkips.forward

    def recorded(model, history, target_tracks, *, labels=None):
        given.append((model.training, labels is not None))
        return forward(model, history, target_tracks, labels=labels)

    monkeypatch.setattr(LSTMForSkips, "forward", recorded)
    for previous_label in (True, False):
        given.clear()
        more = ["--model.previous_label", str(previous_label).lower(), "--train.epochs", "1"]
        train(train_lstm_skip, options(dataset_folder, tmp_path, *more))
        assert set(given) == {(True, previous_label), (False, False)}


@each_task
def test_options_reach_the_model(task, dataset_folder, tmp_path, monkeypatch):
    more = ["--data.history_size", "6", "--model.attention", "true", "--model.cell", "gru", "--model.n_layers", "2"]
    model = given_to_fit(SCRIPTS[task], options(dataset_folder, tmp_path, *more), monkeypatch).model
    assert model.encoder.embed.from_end.shape == (6, 8)
    assert model.decoder.attention is not None
    assert (type(model.decoder.rnn.rnn), model.decoder.rnn.rnn.num_layers) == (torch.nn.GRU, 2)
    assert model.tracks.table.sparse
    if task == "seq":
        full = options(dataset_folder, tmp_path, "--loss.name", "full")
        assert not given_to_fit(train_lstm_seq, full, monkeypatch).model.tracks.table.sparse


def test_weighting_loss_and_decoding_arrive(dataset_folder, tmp_path, monkeypatch):
    arguments = options(dataset_folder, tmp_path)
    check_weighting_arrives(train_lstm_skip, [*arguments, "--model.previous_label", "false"], monkeypatch)
    check_loss_arrives(train_lstm_seq, arguments, monkeypatch)
    decodings = (DecodingConfig(), DecodingConfig(method="beam", beam_width=3, no_repeat=1))
    check_continuation_arrives(train_lstm_seq, arguments, monkeypatch, tmp_path, "decoding", decodings)


# --- Track tables


@each_task
def test_the_model_starts_from_the_vectors_and_looks_tracks_up_in_them(
    task, dataset_folder, tmp_path, vectors, monkeypatch
):
    arguments = options(dataset_folder, tmp_path, "--table.vectors", str(vectors))
    model = given_to_fit(SCRIPTS[task], arguments, monkeypatch).model
    expected = rows(vectors)
    seen = []
    model.tracks.table.register_forward_hook(lambda _, ids, found: seen.append((ids[0], found)))
    ids = torch.arange(N_SPECIAL, N_SPECIAL + 10)[None]
    log = torch.zeros(1, 10, len(schema.LOG_COLUMNS), dtype=torch.uint8)
    model.eval()(History(ids, torch.zeros_like(ids), log), ids + 10)
    assert len(seen) == 2, "once for the history, once for the decoder"
    for tracks, found in seen:
        assert torch.equal(found, expected[tracks - N_SPECIAL])


@each_task
@pytest.mark.parametrize("freeze", [False, True])
def test_a_frozen_table_stays_and_another_moves(task, freeze, dataset_folder, tmp_path, vectors):
    more = ["--table.vectors", str(vectors), "--table.freeze", str(freeze).lower(), "--train.epochs", "1"]
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, *more))
    assert torch.equal(table_of(folder, "last.pt")[N_SPECIAL:], rows(vectors)) == freeze
    content = result(folder)
    frozen = table_of(folder).numel() if freeze else 0
    assert content["n_trained_parameters"] == content["n_parameters"] - frozen


def test_random_codes_can_be_frozen(dataset_folder, tmp_path):
    (folder,) = train(train_lstm_skip, options(dataset_folder, tmp_path, "--table.freeze", "true", "--run.seed", "3"))
    config = parse_config(train_lstm_skip.Config, ["--config", str(folder / "config.yml")])
    torch.manual_seed(3)
    model = train_lstm_skip.build(config, Dataset.open(dataset_folder))
    assert torch.equal(table_of(folder, "last.pt"), model.tracks.table.weight)


# --- Refusals


def refused(task: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a script says before it exits with 2."""
    script = SCRIPTS[task]
    return script_checks.refused(each_seed(script.main), script.Config, arguments, capsys)


@each_task
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--model.width", "8"], "width"),
        (["--model.cell", "rnn"], "cell"),
        (["--model.dropout", "1.5"], "error: model: dropout"),
        (["--model.d_hidden", "0"], "model.d_hidden is 0; it must be at least 1"),
        (["--model.d_model", "0"], "model.d_model is 0; it must be at least 1"),
        (["--table.vectors", "nowhere"], "nowhere does not exist; python -m utils.track_vectors.word2vec writes one"),
        (["--data.folder", "nowhere"], "error: nowhere is no dataset folder"),
        (["--run.resume", "nowhere"], "error: nowhere has no last.pt to resume from"),
    ],
)
def test_bad_input(task, more, named, dataset_folder, tmp_path, capsys):
    assert named in refused(task, options(dataset_folder, tmp_path, *more), capsys)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@each_task
def test_vectors_have_to_fit(task, dataset_folder, tmp_path, vectors, capsys):
    given = ["--table.vectors", str(vectors)]
    said = refused(task, options(dataset_folder, tmp_path, *given, "--model.d_model", "12"), capsys)
    assert "has vectors of 8 dimensions, the model's tracks have 12; add --model.d_model 8" in said
    other = make_dataset(tmp_path / "data")
    info = other / "dataset.json"
    info.write_text(info.read_text().replace(Dataset.open(other).vocabulary_hash, "0123456789abcdef"))
    said = refused(task, options(other, tmp_path, *given), capsys)
    assert "has the vectors of another vocabulary (" in said
    assert "use the dataset that they were trained on" in said
    assert not (tmp_path / "runs").exists()


def test_skip_options_that_contradict(dataset_folder, tmp_path, capsys):
    more = ["--model.previous_label", "false", "--model.scheduled_sampling", "0.5"]
    said = refused("skip", options(dataset_folder, tmp_path, *more), capsys)
    assert "error: model: scheduled_sampling needs previous_label" in said
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False)
    assert "only the seq task can be run on it" in refused("skip", options(folder, tmp_path), capsys)
