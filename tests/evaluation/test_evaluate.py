"""`evaluate.py`: the same scores as the run's own, from its dataset or from a table of plays."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import evaluate
import train_transformer_seq
import train_transformer_skip
from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.preprocessing.options import PlaysColumns, SourceOptions
from utils.preprocessing.sources.plays import SourcePlays
from utils.training.model_configs import SeqTransformerConfig, SkipTransformerConfig
from utils.training.options import RunConfig, TrainConfig

TRAIN = TrainConfig(epochs=1, batch_size=32, lr=3e-3, device="cpu")
COLUMNS = PlaysColumns(session="session", position="n", track="track", skip="skipped")


@pytest.fixture(scope="module")
def skip_run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished skip run that reads of the log what a table of plays has too: skipped or not."""
    model = SkipTransformerConfig(d_model=16, d_ff=16, n_layers=1, skip_encoding="token", use_log=False)
    run = RunConfig(folder=str(tmp_path_factory.mktemp("runs")))
    config = train_transformer_skip.Config(DataConfig(str(dataset_folder)), model, train=TRAIN, run=run)
    train_transformer_skip.main(config)
    return next(Path(run.folder).glob("*/*"))


def plays_of_test(dataset_folder: Path, path: Path) -> Dataset:
    """Write the test split as a table of plays; levels of skips become true or false."""
    dataset = Dataset.open(dataset_folder)
    test = dataset.test
    frame = pd.DataFrame(
        {
            "session": np.repeat(np.arange(test.n_sessions), test.lengths),
            "n": np.concatenate([np.arange(n) for n in test.lengths]),
            "track": dataset.track_names[test.tracks],
            "skipped": test.skips >= 3,
        }
    )
    frame.sample(frac=1, random_state=0).to_csv(path, index=False)
    return dataset


def assert_scores_of_run(summary: dict, run: Path, split: str) -> None:
    """Every metric of `summary` is what the run itself found on `split`."""
    own = read_json(run / "result.json")["scores"][split]["metrics"]
    assert summary["metrics"].keys() == own.keys()
    for name, value in own.items():
        assert summary["metrics"][name]["mean"] == pytest.approx(value["mean"], abs=1e-6), name


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_split_scores_as_in_the_run(skip_run, split):
    summary = evaluate.main(evaluate.Config(str(skip_run), split=split, device="cpu"))
    assert_scores_of_run(summary, skip_run, split)


def test_plays_score_as_the_same_sessions_in_the_dataset(skip_run, dataset_folder, tmp_path, capsys):
    plays = tmp_path / "plays.csv"
    plays_of_test(dataset_folder, plays)
    config = evaluate.Config(str(skip_run), plays=str(plays), plays_columns=COLUMNS, device="cpu")
    summary = evaluate.main(config)
    assert_scores_of_run(summary, skip_run, "test")
    assert "0.00% of the plays are of tracks that" in capsys.readouterr().out


def test_a_source_scores_as_the_same_sessions_in_the_dataset(skip_run, dataset_folder, tmp_path, monkeypatch):
    plays_of_test(dataset_folder, tmp_path / "plays.csv")

    def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
        assert options == SourceOptions(time_zone="CET")
        pd.read_csv(path).astype({"session": str}).to_parquet(work / "plays.parquet")
        return SourcePlays([work / "plays.parquet"], COLUMNS, [], [], ["said by the source"])

    module = ModuleType("source")
    module.read = read
    monkeypatch.setitem(sys.modules, "utils.preprocessing.sources.apple_music", module)
    config = evaluate.Config(str(skip_run), plays=str(tmp_path / "plays.csv"), source="apple-music", device="cpu")
    config.source_options.time_zone = "CET"
    assert_scores_of_run(evaluate.main(config), skip_run, "test")


def test_seq_plays_score_exactly_as_the_dataset_and_unknown_tracks_are_reported(dataset_folder, tmp_path, capsys):
    run = RunConfig(folder=str(tmp_path / "runs"))
    model = SeqTransformerConfig(d_model=16, d_ff=16, n_layers=1)
    train_transformer_seq.main(
        train_transformer_seq.Config(DataConfig(str(dataset_folder)), model, TRAIN, run=run, monitor="mrr@20")
    )
    folder = next(Path(run.folder).glob("*/*"))
    plays = tmp_path / "plays.csv"
    plays_of_test(dataset_folder, plays)
    config = evaluate.Config(str(folder), plays=str(plays), plays_columns=COLUMNS, device="cpu")
    summary = evaluate.main(config)
    assert_scores_of_run(summary, folder, "test")

    frame = pd.read_csv(plays)
    frame.loc[: len(frame) // 2, "track"] = "never heard"
    frame.to_csv(plays, index=False)
    capsys.readouterr()
    evaluate.main(config)
    share = (len(frame) // 2 + 1) / len(frame)
    assert f"{share:.2%} of the plays" in capsys.readouterr().out


def test_sessions_are_continued_as_in_the_run_or_as_asked(skip_run, dataset_folder, tmp_path):
    allowed = tmp_path / "allowed.txt"
    allowed.write_text("t_3\nt_5\n", encoding="utf-8")
    run = RunConfig(folder=str(tmp_path / "runs"))
    model = SeqTransformerConfig(d_model=16, d_ff=16, n_layers=1)
    decoding = DecodingConfig(allow_list=str(allowed), no_repeat=1)
    train_transformer_seq.main(
        train_transformer_seq.Config(DataConfig(str(dataset_folder)), model, TRAIN, run=run, decoding=decoding)
    )
    folder, table = next(Path(run.folder).glob("*/*")), tmp_path / "p.csv"
    config = evaluate.Config(str(folder), predictions=str(table), device="cpu")
    summary = evaluate.main(config)
    assert_scores_of_run(summary, folder, "test")
    assert set(pd.read_csv(table)["predicted_track_id"]) == {"t_3", "t_5"}

    config.decoding = DecodingConfig("beam", beam_width=3, no_repeat=20)
    other = evaluate.main(config)
    continued = pd.read_csv(table).groupby("session_id")["predicted_track_id"]
    assert (continued.nunique() == continued.size()).all(), "no repeats"
    assert other["metrics"]["perplexity"] == summary["metrics"]["perplexity"]
    with pytest.raises(UserError, match="continues no sessions, so there is nothing to decode; leave out --decoding"):
        evaluate.main(evaluate.Config(str(skip_run), decoding=DecodingConfig(), device="cpu"))


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_predictions_are_one_row_a_target(skip_run, dataset_folder, tmp_path, name):
    path = tmp_path / name
    summary = evaluate.main(evaluate.Config(str(skip_run), predictions=str(path), device="cpu"))
    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    test = Dataset.open(dataset_folder).test
    assert len(table) == (test.lengths - test.lengths // 2).sum()
    first = table[table["session_id"] == test.sessions["session_id"][0]]
    half, length = int(test.lengths[0]) // 2, int(test.lengths[0])
    assert first["position"].tolist() == list(range(half + 1, length + 1))
    names = Dataset.open(dataset_folder).track_names
    assert first["track_id"].tolist() == names[test.tracks[half:length]].tolist()
    assert (table["skip_predicted"] == (table["skip_probability"] >= 0.5)).all()
    right = (table["skip_predicted"] == table["skipped"].astype(bool)).mean()
    assert right == pytest.approx(summary["metrics"]["accuracy"]["mean"], abs=1e-6)


def test_bad_input_is_named(skip_run, dataset_folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        evaluate.main(evaluate.Config(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"must end in \.csv or \.parquet"):
        evaluate.main(evaluate.Config("no run, and nothing is scored", predictions=str(tmp_path / "p.xlsx")))
    plays_of_test(dataset_folder, tmp_path / "plays.csv")
    wrong = PlaysColumns(session="session", position="n", track="song")
    with pytest.raises(UserError, match=r"no column 'song'"):
        evaluate.main(
            evaluate.Config(str(skip_run), plays=str(tmp_path / "plays.csv"), plays_columns=wrong, device="cpu")
        )
