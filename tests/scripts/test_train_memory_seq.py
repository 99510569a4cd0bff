"""train_memory_seq.py from end to end on tiny data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import N_IDS, make_dataset
from script_checks import FILES, lines, refused, result, train

import evaluate
import train_gru_seq
import train_lstm_seq
import train_memory_seq
import train_transformer_seq
from model.candidates import FEATURES
from model.memory import Memory
from model.network_source import NETWORK_FEATURES, PROPOSED, NetworkSource, describe
from utils.core.cli import parse_config
from utils.core.files import read_json, write_json
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, PAD
from utils.training.checkpoint import load_checkpoint
from utils.training.memory_cases import memory_of

TINY = ["--train.epochs", "2", "--train.batch_size", "64", "--train.device", "cpu", "--model.d_hidden", "8"]
NETWORK = [
    *("--model.d_model", "8", "--train.epochs", "1", "--train.batch_size", "16", "--train.device", "cpu"),
    *("--train.lr", "0.01"),
]
GRU = [*NETWORK, "--model.d_hidden", "8"]
TRANSFORMER = [*NETWORK, "--model.n_heads", "2", "--model.n_layers", "1", "--model.d_ff", "8"]
SPLITS = ("train", "valid", "test")


def options(dataset: Path, folder: Path, *more: str) -> list[str]:
    return ["--data.folder", str(dataset), "--run.folder", str(folder / "runs"), *TINY, *more]


def network(script: Any, dataset: Path, folder: Path, *more: str) -> Path:
    """A finished run of a network."""
    sizes = TRANSFORMER if script is train_transformer_seq else GRU
    arguments = ["--data.folder", str(dataset), "--run.folder", str(folder / "networks"), *sizes, *more]
    return train(script, arguments)[-1]


def with_plays(folder: Path, draw: Any, *, n_sessions: int = 64) -> Path:
    """A dataset whose sessions are what `draw(generator, plays)` says of each."""
    make_dataset(folder, n_sessions=n_sessions)
    generator = np.random.default_rng(0)
    for split in SPLITS:
        offsets = np.load(folder / split / "offsets.npy")
        plays = [draw(generator, n) for n in np.diff(offsets)]
        np.save(folder / split / "tracks.npy", np.concatenate(plays).astype(np.int32))
    return folder


def mean(run: Path, metric: str, part: str = "test_prefixes") -> float:
    return result(run)["scores"][part]["metrics"][metric]["mean"]


def score_again(run: Path, *more: str) -> dict[str, Any]:
    return evaluate.main(parse_config(evaluate.Config, ["--run", str(run), "--device", "cpu", *more]))


@pytest.fixture(scope="module")
def memory(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("memory")
    more = ("--run.seed", "5", "--data.every_prefix", "true", "--model.n_members", "2")
    return train(train_memory_seq, options(dataset_folder, folder, *more))[0]


@pytest.fixture(scope="module")
def gru(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows nine tenths of the sessions."""
    return network(train_gru_seq, dataset_folder, tmp_path_factory.mktemp("gru"), "--data.train_share", "0.9")


@pytest.fixture(scope="module")
def helped(dataset_folder: Path, gru: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a network."""
    arguments = options(dataset_folder, tmp_path_factory.mktemp("helped"), "--network", str(gru))
    return train(train_memory_seq, arguments)[0]


def test_a_run_leaves_exactly_this(memory: Path) -> None:
    names = {path.name for path in memory.iterdir()}
    assert names >= FILES
    assert {name.split(".")[0] for name in names - FILES} == {"events", "predictions_test_prefixes", "memory"}
    assert {path.name for path in (memory / "memory").iterdir()} == {f"{name}.npy" for name in Memory._fields}
    content = result(memory)
    assert [content[key] for key in ("experiment", "label", "task", "kind", "seed")] == [
        *("memory_seq", "Memory and network", "seq", "model", 5)
    ]
    assert list(content["scores"]) == [f"{split}{part}" for part in ("", "_prefixes") for split in SPLITS]
    assert [(line["epoch"], line["split"]) for line in lines(memory)] == [
        *((1, "train"), (1, "valid"), (2, "train"), (2, "valid"))
    ]
    weights = load_checkpoint(memory / "best.pt")["model"]
    assert {name.split(".")[1] for name in weights if name.startswith("members")} == {"0", "1"}
    assert content["n_parameters"] == sum(w.numel() for name, w in weights.items() if name.startswith("members"))


def test_sizes_arrive(dataset_folder: Path) -> None:
    sizes = ["--model.n_members", "3", "--model.d_hidden", "12", "--model.dropout", "0.3", "--network", "RUN"]
    config = parse_config(train_memory_seq.Config, ["--data.folder", str(dataset_folder), *sizes])
    scorer = train_memory_seq.build(config, Dataset.open(dataset_folder))
    assert len(scorer.members) == 3
    assert scorer.members[0].of_candidate.weight.shape == (12, len(FEATURES) + len(NETWORK_FEATURES))
    assert scorer.members[0].rest[1].p == 0.3
    config = parse_config(train_memory_seq.Config, ["--data.folder", str(dataset_folder)])
    assert train_memory_seq.build(config, Dataset.open(dataset_folder)).n_features == len(FEATURES)


def test_the_memory_of_test_knows_validation_and_no_other_does(memory: Path, dataset_folder: Path, tmp_path) -> None:
    dataset = Dataset.open(dataset_folder)
    kept = Memory.open(memory / "memory")
    for built, array in zip(memory_of([dataset.train, dataset.valid], dataset.n_ids), kept, strict=True):
        np.testing.assert_array_equal(built, array)
    (less,) = train(train_memory_seq, options(dataset_folder, tmp_path, "--cases.remember_valid", "false"))
    assert Memory.open(less / "memory").n_sessions == dataset.train.n_sessions
    # The label of validation must not be in the memory: other validation sessions change no candidate of their own.
    config = parse_config(train_memory_seq.Config, ["--config", str(memory / "config.yml")])
    scorer = train_memory_seq.build(config, dataset)
    device = torch.device("cpu")
    n = dataset.train.n_sessions
    of_valid = train_memory_seq.remembered(config, scorer, memory, dataset, device, n_sessions=n)
    assert of_valid.finder.memory.n_sessions == n
    assert train_memory_seq.remembered(config, scorer, memory, dataset, device).finder.memory.n_sessions == n + 16


def test_resume_is_the_same_as_in_one_go(dataset_folder: Path, tmp_path: Path) -> None:
    constant = ["--train.schedule", "constant"]
    whole, again = (
        train(train_memory_seq, options(dataset_folder, tmp_path / name, *constant, "--train.epochs", "3"))[0]
        for name in ("whole", "again")
    )
    (part,) = train(train_memory_seq, options(dataset_folder, tmp_path / "part", *constant, "--train.epochs", "1"))
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "3"]
    assert train(train_memory_seq, arguments) == [part]
    for other in (again, part):
        assert lines(other) == lines(whole)
        assert result(other)["scores"] == result(whole)["scores"]
        one, two = (load_checkpoint(run / "best.pt")["model"] for run in (whole, other))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_finds_the_lists_that_sessions_repeat(tmp_path: Path) -> None:
    """Ten lists of four tracks; a session plays one of them again and again, from any place on."""
    lists = np.random.default_rng(1).permutation(np.arange(N_SPECIAL, N_IDS)).reshape(10, 4)

    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        return lists[generator.integers(10)][(generator.integers(4) + np.arange(n)) % 4]

    folder = with_plays(tmp_path / "lists", draw)
    (run,) = train(train_memory_seq, options(folder, tmp_path, "--data.every_prefix", "true", "--train.epochs", "8"))
    assert mean(run, "hr@1") > 0.9  # the most popular track: about 1 in 40
    assert mean(run, "perplexity") < 4
    assert mean(run, "maa", "test") > 0.7


def test_noise_scores_at_chance(tmp_path: Path) -> None:
    """Random plays of 40 tracks: what the memory found by accident must not be trusted."""
    folder = with_plays(tmp_path / "noise", lambda g, n: g.integers(N_SPECIAL, N_IDS, n), n_sessions=240)
    arguments = options(folder, tmp_path, "--data.every_prefix", "true", "--cases.share", "0.3")
    (run,) = train(train_memory_seq, arguments)
    assert mean(run, "hr@10") == pytest.approx(10 / 40, abs=0.05)
    assert mean(run, "hr@1") == pytest.approx(1 / 40, abs=0.02)
    assert 40 <= mean(run, "perplexity") < 46


def test_a_run_can_be_scored_again_from_anywhere(memory: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert score_again(memory) == result(memory)["scores"]["test"]
    monkeypatch.chdir(tmp_path)
    moved = shutil.copytree(memory, tmp_path / "moved")
    assert score_again(moved, "--split", "valid") == result(memory)["scores"]["valid"]
    assert score_again(moved) == result(memory)["scores"]["test"]
    assert "Memory and network on test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.dropout", "1.5"], "error: model: dropout is 1.5"),
        (["--model.n_members", "0"], "model.n_members is 0; it must be at least 1"),
        (["--model.d_hidden", "1"], "model.d_hidden is 1; it must be at least 2"),
        (["--monitor", "mma"], "monitor is mma, which is no metric of this task"),
        (["--cases.share", "0.5", "--cases.folds", "2"], "cases.share is 0.5 and cases.folds 2"),
        (["--cases.share", "0.001"], "has 64 training sessions, too few for cases.folds 1 of cases.share 0.001"),
        (["--data.train_share", "0"], "data.train_share is 0.0; it must be above 0 and at most 1"),
        (["--network", "nowhere"], "network is 'nowhere', which is no folder of a finished run; train a model first"),
    ],
)
def test_bad_input(more: list[str], message: str, dataset_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = options(dataset_folder, tmp_path, *more)
    assert message in refused(train_memory_seq.main, train_memory_seq.Config, arguments, capsys)


# --- With a network


def test_a_network_is_kept_and_scores_again_where_its_dataset_has_gone(
    helped: Path, gru: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    assert {path.name for path in (helped / "network").iterdir()} == {"config.yml", "best.pt", "result.json"}
    assert (helped / "network" / "best.pt").read_bytes() == (gru / "best.pt").read_bytes()
    assert load_checkpoint(helped / "best.pt")["model"]["mean"].shape[0] == len(FEATURES) + len(NETWORK_FEATURES) + 9
    assert score_again(helped) == result(helped)["scores"]["test"]
    moved = shutil.copytree(helped, tmp_path / "moved")
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    for path in (moved / "config.yml", moved / "network" / "config.yml"):
        path.write_text(path.read_text().replace(str(dataset_folder), str(tmp_path / "gone")))
    assert score_again(moved, "--data", str(data)) == result(helped)["scores"]["test"]


def test_a_network_changes_what_is_predicted(helped: Path, dataset_folder: Path, tmp_path: Path) -> None:
    (alone,) = train(train_memory_seq, options(dataset_folder, tmp_path))
    one, two = (result(run)["scores"]["test"]["metrics"]["perplexity"]["mean"] for run in (alone, helped))
    assert one != two


def test_a_network_may_read_less_than_the_memory(dataset_folder: Path, tmp_path: Path) -> None:
    """A Transformer has as many positions as the histories it was trained on."""
    arguments = ("--data.train_share", "0.9", "--data.history_size", "4")
    run = network(train_transformer_seq, dataset_folder, tmp_path, *arguments)
    (helped,) = train(train_memory_seq, options(dataset_folder, tmp_path, "--network", str(run)))
    assert result(helped)["config"]["data"]["history_size"] == 20


def test_a_network_that_knows_the_cases_is_refused(dataset_folder: Path, tmp_path: Path, capsys) -> None:
    def said(run: Path, *more: str) -> str:
        arguments = options(dataset_folder, tmp_path, "--network", str(run), *more)
        return refused(train_memory_seq.main, train_memory_seq.Config, arguments, capsys)

    everything = network(train_gru_seq, dataset_folder, tmp_path)
    assert "learn, so that it would be trusted too much; train it with --data.train_share 0.9" in said(everything)
    most = network(train_gru_seq, dataset_folder, tmp_path, "--data.train_share", "0.9")
    assert "train it with --data.train_share 0.8" in said(most, "--cases.folds", "2")
    (most / "result.json").rename(most / "no_result.json")
    assert f"network is '{most}', which is no folder of a finished run" in said(most)
    assert not (tmp_path / "runs").exists()


def test_other_networks_are_refused(gru: Path, dataset_folder: Path, tmp_path: Path, capsys) -> None:
    def said(dataset: Path, run: Path) -> str:
        arguments = options(dataset, tmp_path, "--network", str(run))
        return refused(train_memory_seq.main, train_memory_seq.Config, arguments, capsys)

    other = make_dataset(tmp_path / "other")
    info = read_json(other / "dataset.json")
    tracks = [f"x_{i}" for i in range(40)]
    write_json(other / "dataset.json", rename_tracks(other, info, tracks))
    assert f"{gru} was trained on another vocabulary than that of {other}" in said(other, gru)
    for option, value in (("skip_encoding", "embedding"), ("use_log", "true")):
        more = ("--data.train_share", "0.9", f"--model.{option}", value)
        reads = network(train_lstm_seq, dataset_folder, tmp_path, *more)
        assert f"{reads} reads skips or log columns; a memory gives it tracks only" in said(dataset_folder, reads)
    baseline = shutil.copytree(gru, tmp_path / "baseline")
    content = read_json(baseline / "result.json")
    del content["config"]["decoding"]
    write_json(baseline / "result.json", content)
    assert "which does not continue track by track" in said(dataset_folder, baseline)
    assert not (tmp_path / "runs").exists()


def rename_tracks(folder: Path, info: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """`dataset.json` of the same sessions of tracks with other names."""
    import pandas as pd

    from utils.data.vocab import vocabulary_hash

    tracks = pd.read_parquet(folder / "tracks.parquet").assign(track_id=names)
    tracks.to_parquet(folder / "tracks.parquet", index=False)
    return info | {"vocabulary": info["vocabulary"] | {"hash": vocabulary_hash(names)}}


def test_a_network_proposes_its_best_tracks(gru: Path, dataset_folder: Path) -> None:
    """Log P of every track, and what is said of a candidate: log P, its distance to the best, one over its rank."""
    source = train_memory_seq.source_of(gru, Dataset.open(dataset_folder), torch.device("cpu"))
    assert isinstance(source, NetworkSource)
    history = np.array([[PAD, PAD, 7, 8], [9, 10, 11, 12]])
    proposed, log_p = source(history)
    assert proposed.shape == (2, min(PROPOSED, N_IDS - N_SPECIAL))
    assert proposed.min() >= N_SPECIAL
    torch.testing.assert_close(log_p[:, N_SPECIAL:].exp().sum(1), torch.ones(2))
    np.testing.assert_array_equal(proposed[:, 0], log_p.argmax(1))
    ids, rows = np.array([7, 20, 7], np.int32), np.array([0, 0, 1])
    said = describe(ids, rows, proposed[:, :3], log_p)
    for (own, below, rank), track, row in zip(said, ids, rows, strict=True):
        assert own == log_p[row, track]
        assert below == pytest.approx(float(log_p[row, track] - log_p[row].max()), abs=1e-6)
        place = np.flatnonzero(proposed[row, :3] == track)
        assert rank == pytest.approx(1 / (1 + place[0]) if len(place) else 0)
    best = describe(proposed[:, :3].ravel(), np.repeat([0, 1], 3), proposed[:, :3], log_p)
    np.testing.assert_allclose(best[:, 2], [1, 1 / 2, 1 / 3] * 2, rtol=1e-6)
