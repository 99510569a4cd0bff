"""`evaluate.py --plays` of runs with a past: sessions from outside know what the same sessions in the dataset know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from listening import START, random_listening, write_listening
from script_checks import result, train

import evaluate
import train_lstm_skip
from utils.core.files import read_json, write_json
from utils.data.dataset import Dataset
from utils.preprocessing.options import PlaysColumns

COLUMNS = PlaysColumns(
    track="track",
    session="session",
    user="user",
    time="at",
    position="place",
    skip="skip",
    seconds="seconds",
    artist="artist",
    album="album",
)
OPTIONS = (
    *("--model.d_model", "8", "--model.d_hidden", "6", "--model.causal", "false", "--model.use_ids", "false"),
    *("--train.epochs", "1", "--train.batch_size", "8", "--train.lr", "0.01", "--train.device", "cpu"),
    *("--past.relations", "true", "--past.details", "true"),
)


def listening() -> pd.DataFrame:
    """Sessions of two plays or more; the test begins a day after all else has ended."""
    plays = random_listening(0, n_sessions=80)
    plays = plays[plays.groupby("session")["track"].transform("size") > 1].reset_index(drop=True)
    plays.loc[plays["split"] == "test", "time"] += 86_400
    return plays


def without_test(folder: Path, plays: pd.DataFrame) -> Path:
    """The dataset of all plays before the test."""
    write_listening(folder, plays[plays["split"] != "test"])
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"empty_splits": ["test"]})
    return folder


def table(plays: pd.DataFrame, path: Path) -> str:
    """Write plays as a table, in no order."""
    at = plays["time"].astype("int64") + START
    skip = plays["label"].map({1: "skip_2", 0: "not_skipped", -1: ""})
    plays = plays.assign(at=at, skip=skip, place=plays.groupby("session").cumcount())
    plays.sample(frac=1, random_state=0).to_csv(path, index=False)
    return str(path)


def same_scores(found: dict, run: Path) -> None:
    own = result(run)["scores"]["test"]
    assert found["n_sessions"] == own["n_sessions"]
    for name, value in own["metrics"].items():
        assert found["metrics"][name]["mean"] == pytest.approx(value["mean"], abs=1e-6), name


@pytest.mark.parametrize("protocol", ["running", "frozen"])
def test_sessions_from_outside_score_as_in_the_dataset(protocol: str, tmp_path: Path) -> None:
    plays = listening()
    data = write_listening(tmp_path / "data", plays)
    arguments = ["--data.folder", str(data), "--run.folder", str(tmp_path / "runs"), "--past.protocol", protocol]
    (run,) = train(train_lstm_skip, [*arguments, *OPTIONS])
    tests = table(plays[plays["split"] == "test"], tmp_path / "test.csv")
    same_scores(evaluate.main(evaluate.Config(str(run), plays=tests, plays_columns=COLUMNS, device="cpu")), run)

    # To a dataset without them, they are newer; all that was played before is its own.
    older = without_test(tmp_path / "older", plays)
    assert Dataset.open(older).test.n_sessions == 0
    everything = table(plays, tmp_path / "all.csv")
    config = evaluate.Config(
        str(run), plays=everything, plays_columns=COLUMNS, newer=True, data=str(older), device="cpu"
    )
    found = evaluate.main(config)
    same_scores(found, run)

    # It is their past that counts: with the outcomes before them turned round, other figures come out.
    turned = plays.assign(label=np.where(plays["label"] >= 0, 1 - plays["label"], -1))
    config.data = str(without_test(tmp_path / "other", turned))
    assert evaluate.main(config)["metrics"]["log_loss"]["mean"] != found["metrics"]["log_loss"]["mean"]
