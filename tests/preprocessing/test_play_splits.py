"""Which sessions of a table of plays train, validate and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plays_door import COLUMNS, HEADER, LINES, SESSIONS, csv_of, error, funnel, make

from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader, check_length
from utils.data.dataset import Dataset
from utils.datapreprocessing import main
from utils.preprocessing.options import Config, PlaysColumns

OFFICIAL = PlaysColumns(user="user", time="ts", track="track", split="part")
TOO_FEW = "kept, of which by listeners with too few sessions to be split"


def listeners(path: Path, sessions: dict[str, list[int]]) -> Path:
    """Two plays a session of each listener, on days of February."""
    return csv_of(
        path,
        [
            f"{user},2026-02-{day:02d} 10:0{minute},{'ab'[minute]}\n"
            for user, when in sessions.items()
            for day in when
            for minute in (0, 1)
        ],
    )


def official(path: Path, parts: str, **more: Any) -> Path:
    """`LINES` with a word of an official split for each session, by its first letter."""
    words = {"r": "train", "v": "valid", "e": "test", "R": "Train", "x": ""}
    frame = pd.DataFrame([line.strip().split(",") for line in LINES], columns=["user", "ts", "track"])
    frame["part"] = np.repeat([words[part] for part in parts], 2)
    frame = frame.assign(**more)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def names(sessions: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    """{split: the numbers of the only listener's sessions in it}."""
    return {split: " ".join(name.removeprefix("u1_") for name in found) for split, found in sessions.items()}


# --------------------------------------------------------------------------------------------------- within a listener


def test_split_by_listener_leaves_the_last_sessions_of_each(tmp_path: Path) -> None:
    """Ann has ten sessions, Bob three before all of hers, Cyd two: she trains only."""
    path = listeners(tmp_path / "p.csv", {"ann": [*range(10, 20)], "bob": [1, 2, 3], "cyd": [20, 21]})
    info, sessions = make(path, split_by="listener", test_fraction=0.2)
    assert {split: list(found) for split, found in sessions.items()} == {
        "train": ["bob_1", *(f"ann_{i}" for i in range(1, 8)), "cyd_1", "cyd_2"],
        "valid": ["bob_2", "ann_8"],
        "test": ["bob_3", "ann_9", "ann_10"],
    }
    assert {r["reason"]: (r["rows"], r["sessions"]) for r in info["funnel"]}[TOO_FEW] == (4, 2)
    assert "--split_by listener" in info["command"]
    by_time = make(path, test_fraction=0.2)[1]
    assert list(by_time["test"]) == ["ann_10", "cyd_1", "cyd_2"]
    assert make(path, split_by="time", test_fraction=0.2)[1] == by_time


def test_sessions_of_listeners_are_in_order_of_time(tmp_path: Path) -> None:
    path = listeners(tmp_path / "p.csv", {"ann": [1, 3, 5, 7], "bob": [2, 4, 6, 8]})
    _, sessions = make(path, split_by="listener")
    assert {split: list(found) for split, found in sessions.items()} == {
        "train": ["ann_1", "bob_1", "ann_2", "bob_2"],
        "valid": ["ann_3", "bob_3"],
        "test": ["ann_4", "bob_4"],
    }


def test_pieces_of_a_session_stay_together_within_a_listener(tmp_path: Path) -> None:
    lines = [f"ann,2026-02-{day:02d} 10:0{i},a\n" for day in range(1, 6) for i in range(6 if day == 3 else 2)]
    path = csv_of(tmp_path / "p.csv", lines)
    # Seven pieces: the last three would test, but the first of them is of session 3, like the two before it.
    for split_by in ("listener", "time"):
        _, sessions = make(path, split_by=split_by, max_session_length=2, valid_fraction=0, test_fraction=0.4)
        assert {split: list(found) for split, found in sessions.items()} == {
            "train": ["ann_1", "ann_2", "ann_3", "ann_3/2", "ann_3/3"],
            "valid": [],
            "test": ["ann_4", "ann_5"],
        }


def test_split_by_listener_needs_listeners(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "p.csv")
    columns = PlaysColumns(time="ts", track="track")
    with pytest.raises(UserError, match=r"--split_by listener needs --plays_columns.user"):
        make(path, columns, split_by="listener")
    with pytest.raises(UserError, match="no listener has sessions enough to train, valid, test; add plays"):
        make(listeners(tmp_path / "q.csv", {"ann": [1, 2], "bob": [3]}), split_by="listener")


# ------------------------------------------------------------------------------------------------------ empty splits


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({"test_fraction": 0}, {"train": "1 2 3 4 5 6 7", "valid": "8", "test": ""}),
        ({"valid_fraction": 0}, {"train": "1 2 3 4 5 6 7", "valid": "", "test": "8"}),
        ({"valid_fraction": 0, "test_fraction": 0.5}, {"train": "1 2 3 4", "valid": "", "test": "5 6 7 8"}),
        ({"valid_fraction": 0, "test_fraction": 0}, {"train": "1 2 3 4 5 6 7 8", "valid": "", "test": ""}),
    ],
)
def test_a_fraction_of_0_leaves_a_split_empty(tmp_path: Path, fractions: dict, expected: dict) -> None:
    info, sessions = make(csv_of(tmp_path / "p.csv"), **fractions)
    assert names(sessions) == expected
    assert info["empty_splits"] == [split for split in ("valid", "test") if f"{split}_fraction" in fractions
                                    and fractions[f"{split}_fraction"] == 0]  # fmt: skip
    empty = info["empty_splits"][0]
    assert info["splits"][empty] == {"days": ["", ""], "sessions": 0, "events": 0}
    arrays = Dataset.open(tmp_path / "made" / "data").split(empty)
    assert (arrays.n_sessions, len(arrays.tracks), arrays.log.shape) == (0, 0, (0, 12))
    for name in ("full_ids", "times"):
        assert len(getattr(arrays, name)) == 0
    message = f"{empty} has no sessions, as --{empty}_fraction 0 asked for"
    with pytest.raises(UserError, match=message):
        check_length(arrays, 2)
    with pytest.raises(UserError, match=message):
        SessionLoader(arrays, batch_size=2)


def test_a_split_that_is_empty_unasked_is_an_error(tmp_path: Path) -> None:
    make(csv_of(tmp_path / "p.csv"), test_fraction=0)
    out = tmp_path / "made" / "data"
    text = (out / "dataset.json").read_text()
    assert '"empty_splits": [\n    "test"\n  ]' in text
    (out / "dataset.json").write_text(text.replace('"empty_splits": [\n    "test"\n  ]', '"empty_splits": []'))
    with pytest.raises(UserError, match="test has no sessions; run the preprocessing on more data"):
        Dataset.open(out)
    with pytest.raises(UserError, match="2 sessions are too few for train, valid, test; add plays or change"):
        make(csv_of(tmp_path / "q.csv", LINES[:4]))
    assert names(make(csv_of(tmp_path / "q.csv", LINES[:4]), valid_fraction=0)[1])["test"] == "2"


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_fractions_out_of_range(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match="must be between 0 and 1, or 0"):
        make(csv_of(tmp_path / "p.csv"), test_fraction=value)


# --------------------------------------------------------------------------------------------------- official splits


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_official_splits_are_kept(tmp_path: Path, suffix: str) -> None:
    """Whatever the time, in order of it."""
    info, sessions = make(official(tmp_path / f"p{suffix}", "erRvrrve"), OFFICIAL)
    assert names(sessions) == {"train": "2 3 5 6", "valid": "4 7", "test": "1 8"}
    assert info["empty_splits"] == []
    assert "--plays_columns.split part" in info["command"]
    tracks = pd.read_parquet(tmp_path / "made" / "data" / "tracks.parquet")
    assert tracks["train_plays"].tolist() == [4, 4]
    assert funnel(info)["kept"] == 16


def test_a_split_that_is_not_official_is_cut_from_training(tmp_path: Path) -> None:
    path = official(tmp_path / "p.csv", "rrrerrre")
    assert names(make(path, OFFICIAL)[1]) == {"train": "1 2 3 5 6", "valid": "7", "test": "4 8"}
    assert names(make(path, OFFICIAL, valid_fraction=0.5)[1]) == {"train": "1 2 3", "valid": "5 6 7", "test": "4 8"}
    info, sessions = make(path, OFFICIAL, valid_fraction=0)
    assert names(sessions) == {"train": "1 2 3 5 6 7", "valid": "", "test": "4 8"}
    assert info["empty_splits"] == ["valid"]
    path = official(tmp_path / "v.csv", "rrrvrrrv")
    assert names(make(path, OFFICIAL)[1]) == {"train": "1 2 3 5 6", "valid": "4 8", "test": "7"}
    path = official(tmp_path / "l.csv", "rrrrrrre", user=[*["ann"] * 8, *["bob"] * 8])
    _, sessions = make(path, OFFICIAL, split_by="listener")
    assert {split: list(found) for split, found in sessions.items()} == {
        "train": ["ann_1", "ann_2", "ann_3", "bob_1", "bob_2"],
        "valid": ["ann_4", "bob_3"],
        "test": ["bob_4"],
    }


def test_official_splits_that_do_not_fit(tmp_path: Path) -> None:
    path = official(tmp_path / "p.csv", "rrrvrrre")

    def message(path: Path, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            make(path, OFFICIAL, **options)
        return str(caught.value)

    assert message(path, test_fraction=0.2) == (
        "--test_fraction means nothing where --plays_columns.split gives a test split"
    )
    assert message(path, valid_fraction=0) == (
        "--valid_fraction means nothing where --plays_columns.split gives a valid split"
    )
    assert "--split_by means nothing here" in message(path, split_by="time")
    assert "no session that is kept is in the official split train" in message(official(tmp_path / "q.csv", "vvvveeee"))
    frame = pd.read_csv(path)
    frame.loc[7, "part"] = "test"
    frame.to_csv(path, index=False)
    assert error(path, OFFICIAL) == (
        f"{path}: session u1_4 has plays of more than one split (test and valid; --plays_columns.split); a session "
        "belongs to one split: correct the column, or give sessions that end with their split"
    )


def test_pieces_of_a_session_are_in_one_official_split(tmp_path: Path) -> None:
    lines = [f"u,2026-02-{day:02d} 10:0{i},a,{'train' if i < 2 else 'test'}\n" for day in (1, 2, 3) for i in range(4)]
    path = csv_of(tmp_path / "p.csv", lines, HEADER.replace("\n", ",part\n"))
    with pytest.raises(UserError, match=r"session u_1 has plays of more than one split \(test and train"):
        make(path, OFFICIAL, max_session_length=2)


def test_split_column_is_another_name_of_the_option(tmp_path: Path) -> None:
    path = official(tmp_path / "p.csv", "erRvrrve")
    args = ["--out", str(tmp_path / "d"), "--plays", str(path), "--min_count", "1", "--split_column", "part"]
    args += ["--plays_columns.user", "user", "--plays_columns.time", "ts", "--plays_columns.track", "track"]
    config = parse_config(Config, args)
    assert config.plays_columns == OFFICIAL
    assert main(config)["splits"] == make(path, OFFICIAL)[0]["splits"]
    with pytest.raises(UserError, match="are the same option"):
        parse_config(Config, [*args, "--plays_columns.split", "other"])


@pytest.mark.parametrize("option", [{"split_by": "listener"}, {"split_column": "x"}, {"features": Path("f.csv")}])
def test_options_of_tables_are_none_of_mssd(tmp_path: Path, option: dict) -> None:
    with pytest.raises(UserError, match="is for plays; it means nothing to temporal"):
        main(Config(tmp_path / "d", raw=tmp_path, **option))


def test_defaults_are_those_of_before(tmp_path: Path) -> None:
    assert make(csv_of(tmp_path / "p.csv"), COLUMNS)[1] == SESSIONS
