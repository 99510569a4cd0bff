"""Datasets without validation or test sessions: a model is trained on everything, and the last weights are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_dataset
from script_checks import TINY, lines, refused, result, train

import evaluate
import report
import train_baselines
import train_bert_pretrain
import train_ddpg_seq
import train_ddpg_skip
import train_gru_seq
import train_transformer_skip
from model.baselines_seq import ItemKNN
from utils.core.errors import UserError
from utils.core.files import read_json, write_json
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.blend import choose_weight
from utils.evaluation.scoring import scoring_loader
from utils.preprocessing.options import PlaysColumns
from utils.training.options import RunConfig

SMALL = ["--train.epochs", "2", "--train.lr", "0.01", "--train.device", "cpu"]
BATCH = ["--train.batch_size", "16"]
AGENT = ["--agent.d_model", "8", "--agent.d_hidden", "16", "--train.sessions", "32", "--train.batch_size", "32"]
SCRIPTS = {
    train_transformer_skip: TINY,
    train_gru_seq: ["--model.d_model", "8", "--model.d_hidden", "8", *BATCH, *SMALL],
    train_bert_pretrain: ["--bert.d_model", "8", "--bert.n_heads", "2", "--bert.n_layers", "1", *BATCH, *SMALL],
    train_ddpg_skip: [*AGENT, *SMALL],
    train_ddpg_seq: [*AGENT, *SMALL],
}


def dataset_without(folder: Path, *splits: str) -> Path:
    """A small dataset some of whose splits are empty."""
    make_dataset(folder)
    for split in splits:
        for name in ("tracks", "skips", "log"):
            np.save(folder / split / f"{name}.npy", np.load(folder / split / f"{name}.npy")[:0])
        np.save(folder / split / "offsets.npy", np.zeros(1, np.int64))
        sessions = pd.read_parquet(folder / split / "sessions.parquet")
        sessions[:0].to_parquet(folder / split / "sessions.parquet", index=False)
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"empty_splits": list(splits)})
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose 64 sessions all train."""
    return dataset_without(tmp_path_factory.mktemp("data") / "all", "valid", "test")


def options(folder: Path, runs: Path, *more: str) -> list[str]:
    return ["--data.folder", str(folder), "--run.folder", str(runs), *more]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_last_weights_are_kept_and_training_sessions_scored(script, everything, tmp_path, capsys):
    (folder,) = train(script, options(everything, tmp_path, *SCRIPTS[script]))
    content, logged = result(folder), lines(folder)
    assert set(content["scores"]) == {"train"}
    assert content["scores"]["train"]["n_sessions"] == 7, "a tenth of 64"
    assert content["dataset"]["sessions"] == {"train": 64, "valid": 0, "test": 0}
    assert [(line["epoch"], line["split"]) for line in logged] == [(1, "train"), (2, "train")]
    assert content["best_step"] == logged[-1]["step"]
    assert content["best_value"] is None
    best, last = (torch.load(folder / name, weights_only=True)["model"] for name in ("best.pt", "last.pt"))
    assert best.keys() == last.keys()
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert not (folder / "predictions_test.npz").exists()
    said = capsys.readouterr().out
    assert said.count("has no valid and no test sessions: scored on train only") == 1
    assert said.count("no validation\n") == 2


def test_a_run_on_everything_goes_on_as_if_uninterrupted(everything, tmp_path):
    (whole,) = train(train_transformer_skip, options(everything, tmp_path / "whole", *TINY))
    (half,) = train(train_transformer_skip, options(everything, tmp_path / "half", *TINY, "--train.epochs", "1"))
    train(train_transformer_skip, options(everything, tmp_path / "half", *TINY, "--run.resume", str(half)))
    one, two = (torch.load(folder / "best.pt", weights_only=True)["model"] for folder in (whole, half))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("empty", "scored", "validated"), [("test", {"train", "valid"}, True), ("valid", {"train", "test"}, False)]
)
def test_one_empty_split(empty, scored, validated, tmp_path):
    data = dataset_without(tmp_path / "data", empty)
    (folder,) = train(train_transformer_skip, options(data, tmp_path / "runs", *TINY))
    content = result(folder)
    assert set(content["scores"]) == scored
    assert content["scores"]["train"]["n_sessions"] == 16, "as many as the other split has"
    assert (content["best_value"] is not None) == validated
    assert (folder / "predictions_test.npz").exists() == ("test" in scored)


def test_early_stopping_needs_validation(everything, tmp_path, capsys):
    for script in (train_transformer_skip, train_ddpg_skip):
        arguments = options(everything, tmp_path, *SCRIPTS[script], "--train.patience", "2")
        said = refused(script.main, script.Config, arguments, capsys)
        assert said == (
            f"error: train.patience is for training that is validated, and {everything} has no validation sessions; "
            "add --train.patience 0\n"
        )
    assert not list(tmp_path.glob("*/*")), "nothing is left behind"


def test_something_must_be_scored(everything, tmp_path, capsys):
    arguments = options(everything, tmp_path, *TINY, "--data.scored", "[valid, test]")
    said = refused(train_transformer_skip.main, train_transformer_skip.Config, arguments, capsys)
    assert "data.scored is ['valid', 'test']" in said
    assert "score its training sessions: --data.scored '[train]'" in said


def test_sessions_from_outside_are_scored_all_the_same(everything, tmp_path):
    """The run of a dataset without any test scores the same sessions as a run that has them as its test split."""
    (folder,) = train(train_transformer_skip, options(everything, tmp_path / "runs", *TINY))
    whole = Dataset.open(make_dataset(tmp_path / "whole"))
    test = whole.test
    plays = pd.DataFrame(
        {
            "s": np.repeat(np.arange(test.n_sessions), test.lengths),
            "n": np.concatenate([np.arange(n) for n in test.lengths]),
            "track": whole.track_names[test.tracks],
            "skip": test.skips >= 3,
        }
    )
    plays.to_csv(tmp_path / "plays.csv", index=False)
    columns = PlaysColumns(session="s", position="n", track="track", skip="skip")
    summary = evaluate.main(evaluate.Config(str(folder), plays=str(tmp_path / "plays.csv"), plays_columns=columns))
    assert summary["n_sessions"] == 16
    assert 0 < summary["metrics"]["maa"]["mean"] < 1
    with pytest.raises(UserError, match="test has no sessions, as --test_fraction 0 asked for"):
        evaluate.main(evaluate.Config(str(folder)))


def test_baselines_keep_their_settings(everything, tmp_path):
    """Chosen on nothing: as fitted, and scored on training sessions."""
    config = train_baselines.Config(DataConfig(str(everything)), RunConfig(folder=str(tmp_path)))
    results = {content["experiment"]: content for content in train_baselines.main(config)}
    assert len(results) == 9
    assert all(set(content["scores"]) == {"train"} and content["trials"] == {} for content in results.values())
    dataset = Dataset.open(everything)
    baseline = next(each for each in train_baselines.seq_baselines(config, dataset) if each.id == "item_knn")
    model, trials = baseline.fit()
    assert isinstance(model, ItemKNN)
    assert (model.decay, model.repeat, trials) == (0.7, 0.1, {})


def test_a_blend_needs_validation_only_to_choose():
    with pytest.raises(UserError, match="no validation sessions to choose by; give one weight"):
        choose_weight(None, [0.1, 0.5], torch.device("cpu"), None)


def test_leaderboards_leave_such_runs_out_and_say_so(everything, tmp_path, capsys):
    runs = tmp_path / "runs"
    (folder,) = train(train_transformer_skip, options(everything, runs, *TINY))
    with pytest.raises(UserError, match="has scores of training sessions only; left out"):
        report.main(report.Config(runs, html=False))
    train(train_transformer_skip, options(make_dataset(tmp_path / "whole"), runs, *TINY, "--run.label", "Whole"))
    capsys.readouterr()
    report.main(report.Config(runs, html=False))
    said = capsys.readouterr().out
    assert said.count(f"note: {folder / 'result.json'} has scores of training sessions only; left out\n") == 1
    assert "Whole" in said
    assert "wrote" in said


def test_training_sessions_are_a_sample_as_large_as_the_other_splits(tmp_path):
    sizes = {}
    for empty in ((), ("test",), ("valid",), ("valid", "test")):
        dataset = Dataset.open(dataset_without(tmp_path / "_".join(("data", *empty)), *empty))
        sizes[empty] = scoring_loader(dataset, DataConfig(), "train").n_examples
    assert list(sizes.values()) == [16, 16, 16, 7]
