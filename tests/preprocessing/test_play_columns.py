"""What a table of plays says beside sessions and tracks: log columns, seconds, names, listeners, new tracks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plays_door import COLUMNS, LINES, csv_of, error, funnel, make, read_sessions

from utils.data import schema, vocab
from utils.data.dataset import Dataset, SessionArrays
from utils.datapreprocessing import main
from utils.preprocessing.dataset_writer import LOG_INDEX
from utils.preprocessing.options import Config, PlaysColumns
from utils.preprocessing.outside_plays import plays_as_split

SECOND = 1_000_000
FULL = PlaysColumns(
    **{name: name for name in ("user", "time", "track", "name", "artist", "album", "skip", "seconds")},
    **{name: name for name in ("reason_start", "reason_end", "shuffle", "context", "premium", "hour")},
)


def days(n: int, *, a_day: int = 2, user: str = "u", **columns: Any) -> pd.DataFrame:
    """`n` sessions of one listener, a day each from 2026-02-01 10:00 on, a play a minute; tracks are a, b, a, b."""
    at = pd.date_range("2026-02-01 10:00", periods=n, freq="D").repeat(a_day) + pd.to_timedelta(
        np.tile(np.arange(a_day), n), unit="min"
    )
    frame = pd.DataFrame(
        {"user": user, "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "track": list("ab") * (n * a_day // 2)}
    )
    return frame.assign(**columns)


def write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def train_log(out: Path, name: str) -> list[int]:
    return np.load(out / "train" / "log.npy")[:, LOG_INDEX[name]].tolist()


def only(*names: str) -> PlaysColumns:
    """Columns of `days` and some others, each under its own name."""
    return PlaysColumns(user="user", time="time", track="track", **{name: name for name in names})


# ----------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_words_are_those_of_mssd(tmp_path: Path, suffix: str) -> None:
    """Sixteen sessions of two plays: the first twelve train, or so; every word has its place in `schema`."""
    words = {
        "reason_start": ["trackdone", "fwdbtn", "uriopen", "spaceship", None, "APPLOAD"],
        "reason_end": ["trackdone", "uriopen", "endplay", "", "appload", "trackerror"],
        "context": ["editorial_playlist", "charts", "radio", "car", None, "catalog"],
        "shuffle": ["true", "false", "1", "0", "perhaps", "True"],
        "premium": ["0", "1", None, "false", "TRUE", "1.0"],
    }
    frame = days(16)
    for name, values in words.items():
        frame[name] = values + [values[0]] * (len(frame) - len(values))
    info, _ = make(write(frame, tmp_path / f"p{suffix}"), only(*words))
    out = tmp_path / "made" / "data"
    assert info["has_log"]
    assert train_log(out, "hist_user_behavior_reason_start")[:7] == [1, 2, 12, 0, 0, 5, 1]
    assert train_log(out, "hist_user_behavior_reason_end")[:7] == [1, 11, 4, 0, 8, 0, 1]
    assert train_log(out, "context_type")[:7] == [1, 6, 3, 0, 0, 5, 1]
    assert train_log(out, "hist_user_behavior_is_shuffle")[:7] == [2, 1, 2, 1, 0, 2, 2]
    assert train_log(out, "premium")[:7] == [1, 2, 0, 1, 2, 2, 1]
    assert train_log(out, "hour_of_day") == [11] * 24
    unknown = {r["reason"]: (r["rows"], r["sessions"]) for r in info["funnel"]}["kept, of which an unknown category"]
    assert unknown == (4, 2)  # from the third to the sixth play, in the second and third session
    sessions = pd.read_parquet(out / "train" / "sessions.parquet")
    assert sessions["premium"].tolist()[:3] == [1, 0, 2]
    assert sessions["context_type"].tolist()[:3] == [1, 3, 0]
    assert sessions["shuffle"].tolist()[:3] == [2, 2, 0]
    others = set(schema.LOG_COLUMNS) - {"hour_of_day", "premium", "context_type"}
    others -= {f"hist_user_behavior_{name}" for name in ("reason_start", "reason_end", "is_shuffle")}
    assert not any(any(train_log(out, name)) for name in others)


def test_every_word_of_mssd_has_its_code(tmp_path: Path) -> None:
    for option, column, words in (
        ("reason_start", "hist_user_behavior_reason_start", schema.REASONS_START),
        ("reason_end", "hist_user_behavior_reason_end", schema.REASONS_END),
        ("context", "context_type", schema.CONTEXT_TYPES),
    ):
        frame = days(10).assign(**{option: [*words, *words, *words, *words][:20]})
        info, _ = make(write(frame, tmp_path / "p.csv"), only(option))
        expected = [*range(1, len(words) + 1)] * 4
        assert train_log(tmp_path / "made" / "data", column) == expected[:16]
        assert funnel(info)["kept, of which an unknown category"] == 0


def test_words_of_skips(tmp_path: Path) -> None:
    words = ["skip_1", "skip_2", "skip_3", "not_skipped", "none", "true", "false", "?", None, "Skip_1"]
    frame = days(8).assign(skip=words + ["none"] * 6)
    for suffix in (".csv", ".parquet"):
        info, _ = make(write(frame, tmp_path / f"p{suffix}"), only("skip"))
        found = np.load(tmp_path / "made" / "data" / "train" / "skips.npy").tolist()
        assert found == [4, 3, 2, 1, 0, 3, 1, 255, 255, 4, 0, 0]
        assert info["has_skips"]
    info, _ = make(write(frame.assign(skip="none"), tmp_path / "n.csv"), only("skip"))
    assert info["has_skips"]  # no flag is known, too
    info, _ = make(write(frame.assign(skip="?"), tmp_path / "u.csv"), only("skip"))
    assert not info["has_skips"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_hours_and_seconds(tmp_path: Path, suffix: str) -> None:
    frame = days(8).assign(hour=[0, 23, 7, None] * 4, seconds=[0, 3.5, None, 12345] * 4)
    info, _ = make(write(frame, tmp_path / f"p{suffix}"), only("hour", "seconds"))
    out = tmp_path / "made" / "data"
    assert train_log(out, "hour_of_day") == [1, 24, 8, 0] * 3
    seconds = np.load(out / "train" / "seconds.npy")
    assert seconds.dtype == np.float32
    np.testing.assert_array_equal(seconds, np.float32([0, 3.5, np.nan, 12345] * 3))
    assert "kept, of which an unknown category" not in funnel(info)  # hours are numbers


@pytest.mark.parametrize(("words", "n_notes"), [(("yes", "no"), 1), ((" true", "no"), 1), (("true", "no"), 0)])
def test_words_that_tell_no_skip_are_noted(tmp_path: Path, words: tuple[str, str], n_notes: int) -> None:
    lines = [f"{line[:-1]},{words[i % 2]}\n" for i, line in enumerate(LINES)]
    path = csv_of(tmp_path / "p.csv", lines, "user,ts,track,skip\n")
    info, _ = make(path, PlaysColumns(user="user", time="ts", track="track", skip="skip"))
    assert info["has_skips"] is (n_notes == 0)
    said = "no value of column skip (--plays_columns.skip) says whether a play was skipped; known are skip_1, true, "
    assert sum(note.startswith(said) for note in info["notes"]) == n_notes


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_hour_that_is_nan_is_unknown(tmp_path: Path, suffix: str) -> None:
    hours = [7.0, math.nan] * 8
    if suffix == ".csv":
        lines = [f"{line[:-1]},{hour}\n" for line, hour in zip(LINES, hours, strict=True)]
        path = csv_of(tmp_path / "p.csv", lines, "user,ts,track,hour\n")
        assert ",nan" in path.read_text()
    else:
        path = tmp_path / "p.parquet"
        times = [line.split(",")[1] for line in LINES]
        table = pa.table({"user": ["u1"] * 16, "ts": times, "track": list("ab" * 8), "hour": hours})
        assert table["hour"].null_count == 0
        pq.write_table(table, path)
    columns = PlaysColumns(user="user", time="ts", track="track", hour="hour")
    make(path, columns)
    assert train_log(tmp_path / "made" / "data", "hour_of_day") == [8, 0] * 6


@pytest.mark.parametrize("hour", ["inf", "-inf", "1e300", "24", "7.5", "-1"])
def test_an_hour_that_is_none_is_an_error(tmp_path: Path, hour: str) -> None:
    lines = [f"{line[:-1]},{hour if i == 3 else 7}\n" for i, line in enumerate(LINES)]
    path = csv_of(tmp_path / "p.csv", lines, "user,ts,track,hour\n")
    columns = PlaysColumns(user="user", time="ts", track="track", hour="hour")
    assert error(path, columns).startswith(f"{path}, line 5: hour is {hour!r}, not an hour from 0 to 23; ")


def test_the_hour_is_that_of_the_time_in_utc(tmp_path: Path) -> None:
    lines = [f"u,{year}-01-01T{hour:02d}:59:59.999999{zone},a\n" for year, hour, zone in [
        (1900, 0, "Z"), (1900, 23, "Z"), (1969, 23, "Z"), (1970, 0, "Z"), (2026, 1, "+05:30"), (2099, 23, "Z"),
    ]]  # fmt: skip
    columns = PlaysColumns(user="user", time="ts", track="track")
    info, _ = make(csv_of(tmp_path / "p.csv", lines), columns, min_session_length=1, valid_fraction=0, test_fraction=0)
    out = tmp_path / "made" / "data"
    assert train_log(out, "hour_of_day") == [1, 24, 24, 1, 21, 24]
    assert info["has_log"]
    times = np.load(out / "train" / "times.npy")
    assert times.dtype == np.int64
    assert times.tolist() == [
        int((pd.Timestamp(line.split(",")[1]) - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(1, "us"))
        for line in lines
    ]


def test_without_times_nothing_is_known_of_hours(tmp_path: Path) -> None:
    lines = [f"{i},{at},a\n" for i in range(9) for at in (1, 2)]
    columns = PlaysColumns(session="s", position="at", track="track")
    info, _ = make(csv_of(tmp_path / "p.csv", lines, "s,at,track\n"), columns)
    train = SessionArrays.open(tmp_path / "made" / "data" / "train")
    assert not info["has_log"]
    assert "no log column is known" in info["notes"]
    assert (train.times, train.seconds) == (None, None)
    assert train.full_ids is not None
    assert train.full_ids.tolist() == train.tracks.tolist()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("seconds", "abc", "not a number of seconds from 0 on"),
        ("seconds", "-1", "not a number of seconds from 0 on"),
        ("seconds", "inf", "not a number of seconds from 0 on"),
        ("seconds", "1e39", "not a number of seconds from 0 on"),
        ("hour", "25", "not an hour from 0 to 23"),
        ("hour", "-1", "not an hour from 0 to 23"),
        ("hour", "7.5", "not an hour from 0 to 23"),
        ("hour", "noon", "not an hour from 0 to 23"),
        ("split", "foo", "not one of train, valid, test"),
        ("split", "", "not one of train, valid, test"),
    ],
)
def test_values_at_fault(tmp_path: Path, suffix: str, option: str, value: str, fault: str) -> None:
    values = {"seconds": "1", "hour": "", "split": "train"}
    frame = days(8).assign(**{option: [values[option]] * 16})
    frame.loc[[4, 6], option] = value
    place = "line 6" if suffix == ".csv" else "row 5"
    path = write(frame, tmp_path / f"p{suffix}")
    assert error(path, only(option)) == (
        f"{path}, {place}: {option} is {value!r}, {fault}; correct or remove the rows (2 of them)"
    )


@pytest.mark.parametrize(("option", "value"), [("seconds", -2.0), ("seconds", float("inf")), ("hour", 24)])
def test_numbers_at_fault_in_parquet(tmp_path: Path, option: str, value: float) -> None:
    frame = days(8).assign(**{option: [1.0] * 3 + [value] + [float("nan")] * 12})
    path = write(frame, tmp_path / "p.parquet")
    assert f"{path}, row 4: {option} is {float(value)!r}, not a" in error(path, only(option))


# ------------------------------------------------------------------------------------------------- names and new tracks


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_track_has_the_names_that_stand_most_often(tmp_path: Path, suffix: str) -> None:
    frame = days(8).assign(name=["A", "B"] * 8, artist="x", album=None)
    frame.loc[[0, 2], "name"] = "A (live)"
    frame.loc[[1, 3, 5, 13], "name"] = ["C", "C", "C", None]  # B and C three times each: the first in the alphabet
    frame.loc[[14, 15], ["track", "name", "artist"]] = [["nan", "nan", None], ["zz", None, "y"]]
    frame.loc[15, "name"] = None
    frame["track"] = frame["track"].replace("nan", "n")
    make(write(frame, tmp_path / f"p{suffix}"), only("name", "artist"))
    out = tmp_path / "made" / "data"
    tracks = pq.read_table(out / "tracks.parquet")
    assert tracks.column_names == ["index", "track_id", "train_plays", "name", "artist"]
    assert tracks.select(["track_id", "name", "artist"]).to_pylist() == [
        {"track_id": "a", "name": "A", "artist": "x"},
        {"track_id": "b", "name": "B", "artist": "x"},
    ]
    assert pq.read_table(out / "new_tracks.parquet").to_pylist() == [
        {"track_id": "n", "name": "nan", "artist": None},
        {"track_id": "zz", "name": None, "artist": "y"},
    ]


def test_new_tracks_have_ids_of_their_own(tmp_path: Path) -> None:
    """`c` is played in training, but once; `d` and `e` later."""
    frame = days(8)
    frame.loc[[3, 13, 15, 14], "track"] = ["c", "e", "c", "d"]
    out = tmp_path / "d"
    main(Config(out, plays=write(frame, tmp_path / "p.csv"), plays_columns=only(), min_count=2))
    assert pq.read_table(out / "new_tracks.parquet").to_pydict() == {"track_id": ["c", "d", "e"]}
    dataset = Dataset.open(out)
    assert dataset.n_ids == vocab.N_SPECIAL + 2
    assert dataset.train.tracks[:4].tolist() == [5, 6, 5, vocab.UNK]
    assert dataset.train.full_ids[:4].tolist() == [5, 6, 5, 7]
    assert dataset.valid.full_ids.tolist() == [5, 9]
    assert dataset.test.full_ids.tolist() == [8, 7]
    assert dataset.test.full_ids.dtype == np.int32
    assert dataset.test.tracks.tolist() == [vocab.UNK, vocab.UNK]


def test_a_table_without_new_tracks(tmp_path: Path) -> None:
    make(csv_of(tmp_path / "p.csv"))
    assert pq.read_table(tmp_path / "made" / "data" / "new_tracks.parquet").to_pydict() == {"track_id": []}


# ----------------------------------------------------------------------------------------------------------- listeners


def test_the_listener_of_each_session(tmp_path: Path) -> None:
    frame = pd.concat([days(8, user="ann"), days(8, user="bob")])
    make(write(frame, tmp_path / "p.csv"), only())
    out = tmp_path / "made" / "data"
    assert pd.read_parquet(out / "train" / "sessions.parquet")["user"].tolist() == ["ann", "bob"] * 6
    users = SessionArrays.open(out / "test").users
    assert users is not None
    assert users.to_pylist() == ["ann", "bob"]
    frame["s"] = frame["user"] + frame["time"].str[:10]
    by_session = PlaysColumns(session="s", time="time", user="user", track="track")
    make(write(frame, tmp_path / "p.csv"), by_session)
    assert pd.read_parquet(out / "valid" / "sessions.parquet")["user"].tolist() == ["ann", "bob"]
    make(write(frame, tmp_path / "p.csv"), PlaysColumns(session="s", time="time", track="track"))
    assert SessionArrays.open(out / "train").users is None
    frame.iloc[1, 0] = "bob"
    message = error(write(frame, tmp_path / "p.csv"), by_session)
    assert message == (
        f"{tmp_path}/p.csv: session ann2026-02-01 has plays of more than one listener (ann and bob; "
        "--plays_columns.user); give every listener's sessions ids of their own"
    )
    frame.iloc[1, 0] = ""
    assert f"{tmp_path}/p.csv, line 3: user is '', no user" in error(write(frame, tmp_path / "p.csv"), by_session)


# ------------------------------------------------------------------------------------------------------ evaluate.py


def test_outside_plays_have_the_ids_of_the_dataset(tmp_path: Path) -> None:
    """New tracks that the dataset has seen keep their ids; others have the next ones, in order of their names."""
    frame = days(8).assign(artist="x", seconds=3.0)
    frame.loc[[13, 15], "track"] = ["q", "m"]
    out = tmp_path / "d"
    main(Config(out, plays=write(frame, tmp_path / "p.csv"), plays_columns=only("artist", "seconds"), min_count=1))
    assert pq.read_table(out / "new_tracks.parquet")["track_id"].to_pylist() == ["m", "q"]
    outside = days(2, a_day=4, user="eve").assign(artist="y", seconds=[9.0] * 7 + [None], skip="true")
    outside["track"] = ["b", "q", "n", "a", "zz", "l", "m", "b"]
    arrays = plays_as_split(
        write(outside, tmp_path / "o.parquet"), only("artist", "seconds", "skip"), Dataset.open(out), tmp_path / "x"
    )
    assert arrays.tracks.tolist() == [6, 3, 3, 5, 3, 3, 3, 6]
    assert arrays.full_ids is not None
    assert arrays.full_ids.tolist() == [6, 8, 10, 5, 11, 9, 7, 6]
    assert pq.read_table(tmp_path / "x" / "new_tracks.parquet").to_pylist() == [
        {"track_id": name, "artist": "y"} for name in ("l", "n", "zz")
    ]
    assert arrays.times is not None
    assert np.diff(arrays.times).tolist()[:3] == [60 * SECOND] * 3
    assert arrays.seconds is not None
    np.testing.assert_array_equal(arrays.seconds, [9] * 7 + [np.nan])
    assert arrays.users is not None
    assert arrays.users.to_pylist() == ["eve", "eve"]
    assert set(arrays.log[:, LOG_INDEX["hour_of_day"]].tolist()) == {11}
    assert set(arrays.skips.tolist()) == {schema.SKIP_2}


def test_outside_sessions_are_cut_as_those_of_the_dataset(tmp_path: Path) -> None:
    frame, outside = days(8, a_day=6), days(1, a_day=6, user="eve")
    for longest, lengths in ((4, [4, 2]), (None, [6])):
        out = tmp_path / f"d{longest}"
        plays, columns = write(frame, tmp_path / "p.csv"), only()
        main(Config(out, plays=plays, plays_columns=columns, min_count=1, max_session_length=longest))
        dataset = Dataset.open(out)
        arrays = plays_as_split(write(outside, tmp_path / "o.csv"), columns, dataset, tmp_path / f"x{longest}")
        assert arrays.lengths.tolist() == lengths


def test_outside_plays_for_a_dataset_that_tells_no_new_tracks_apart(tmp_path: Path) -> None:
    make(csv_of(tmp_path / "p.csv"))
    out = tmp_path / "made" / "data"
    (out / "new_tracks.parquet").unlink()
    arrays = plays_as_split(csv_of(tmp_path / "o.csv", [*LINES[:3], "u1,2026-02-02T10:01:00Z,x\n"]), COLUMNS,
                            Dataset.open(out), tmp_path / "x")  # fmt: skip
    assert arrays.full_ids is not None
    assert arrays.full_ids.tolist() == [5, 6, 5, 7]


def test_what_outside_plays_say_is_what_a_dataset_says(tmp_path: Path) -> None:
    """All columns at once: the dataset of a table, and the same table beside that dataset."""
    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame(
        {
            "user": rng.choice(["ann", "bob", "cyd"], n),
            "time": 1_767_225_600 + rng.choice(300_000, n, replace=False),
            "track": rng.integers(0, 40, n),
            "skip": rng.choice(["skip_1", "skip_2", "skip_3", "not_skipped", "none", ""], n),
            "seconds": rng.choice([1.5, 200.0, np.nan], n),
            "reason_start": rng.choice(schema.REASONS_START, n),
            "reason_end": rng.choice([*schema.REASONS_END, "what"], n),
            "shuffle": rng.choice(["true", "false", ""], n),
            "context": rng.choice(schema.CONTEXT_TYPES, n),
            "premium": rng.choice(["1", "0"], n),
            "hour": rng.integers(0, 24, n),
        }
    )
    frame = frame.assign(**{name: name + (frame["track"] % 7).astype(str) for name in ("name", "artist", "album")})
    out = tmp_path / "d"
    path = write(frame, tmp_path / "p.csv")
    main(Config(out, plays=path, plays_columns=FULL, min_count=8))
    dataset = Dataset.open(out)
    outside = plays_as_split(write(frame, tmp_path / "p.parquet"), FULL, dataset, tmp_path / "x")
    assert pq.read_table(tmp_path / "x" / "new_tracks.parquet").num_rows == 0
    assert 0.1 < (outside.tracks == vocab.UNK).mean() < 0.9
    for name in ("tracks", "skips", "log", "full_ids", "times", "seconds"):
        whole = np.concatenate([getattr(dataset.split(split), name) for split in schema.SPLITS])
        np.testing.assert_array_equal(whole, getattr(outside, name), err_msg=name)
    tables = [pq.read_table(out / split / "sessions.parquet") for split in schema.SPLITS]
    mine = pq.read_table(tmp_path / "x" / "sessions.parquet")
    assert pa.concat_tables(tables).drop_columns(["file"]).equals(mine.drop_columns(["file"]))
    assert sum(len(found) for found in read_sessions(out).values()) == outside.n_sessions
