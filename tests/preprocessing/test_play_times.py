"""What a time is in a table of plays: the same instants make the same dataset, and anything else is an error."""

from __future__ import annotations

import datetime as dt
import os
import time
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import plays_door
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plays_door import COLUMNS, DAYS, LINES, SESSIONS, csv_of, error, funnel, make

from utils.preprocessing import play_times
from utils.preprocessing.engine import connect
from utils.preprocessing.options import PlaysColumns

INSTANTS = pd.to_datetime(DAYS)
SECONDS = (INSTANTS.tz_localize(None) - pd.Timestamp(0)) // pd.Timedelta(seconds=1)


def with_times(path: Path, times: list) -> Path:
    """The plays of `LINES`, with their times spelled otherwise."""
    frame = pd.DataFrame({"user": "u1", "ts": times, "track": list("ab" * 8)})
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def spelled(form: str, offset: dt.timedelta = dt.timedelta(0)) -> list[str]:
    return [(instant + offset).strftime(form) for instant in INSTANTS]


SPELLINGS = {
    "naive": spelled("%Y-%m-%d %H:%M:%S"),
    "minutes": spelled("%Y-%m-%d %H:%M"),
    "strokes": spelled("%Y/%m/%d %H:%M"),
    "zulu": spelled("%Y-%m-%dT%H:%MZ"),
    "lower case": spelled("%Y-%m-%dt%H:%M:%Sz"),
    "UTC": spelled("%Y-%m-%d %H:%M:%S.000 UTC"),
    "east": spelled("%Y-%m-%dT%H:%M:%S+05:45", dt.timedelta(hours=5, minutes=45)),
    "west": spelled("%Y-%m-%dT%H:%M-1130", -dt.timedelta(hours=11, minutes=30)),
    "space before the offset": spelled("%Y-%m-%d %H:%M:%S +02:00", dt.timedelta(hours=2)),
    "space and no seconds": spelled("%Y-%m-%d %H:%M +02", dt.timedelta(hours=2)),
    "comma": spelled("%Y-%m-%d %H:%M:%S,123"),
    "comma and offset": spelled("%Y-%m-%d %H:%M:%S,123456 -02:00", -dt.timedelta(hours=2)),
    "zone": spelled("%Y-%m-%d %H:%M:%S Europe/Berlin", dt.timedelta(hours=1)),
    "Last.fm": spelled("%d %b %Y %H:%M"),
    "Last.fm with comma": spelled("%d %b %Y, %H:%M"),
    "day of one digit": [text.lstrip("0") for text in spelled("%d %b %Y %H:%M:%S")],
    "whole month": spelled("%B %d, %Y %H:%M"),
    "outer spaces": spelled(" %Y-%m-%d %H:%M "),
    "mixed": [a if i % 2 else b for i, (a, b) in enumerate(zip(DAYS, spelled("%d %b %Y %H:%M"), strict=True))],
    "seconds": SECONDS.tolist(),
    "seconds with a fraction": (SECONDS + 0.25).tolist(),
    "milliseconds": (SECONDS * 1000).tolist(),
    "microseconds": (SECONDS * 10**6).tolist(),
    "nanoseconds": (SECONDS * 10**9).tolist(),
    "float milliseconds": (SECONDS * 1000.0).tolist(),
}


def instants(connection: Any, values: list | pa.Array) -> list[int | None]:
    """Microseconds since 1970 as the engine reads them."""
    time, _ = play_times.read_times(ibis.memtable(pa.table({"ts": values})).ts)
    return connection.to_pyarrow(time.name("time")).to_pylist()


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return connect(memory_limit="1GB", folder=tmp_path_factory.mktemp("engine")).connection


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_instant_in_any_spelling(connection: Any, name: str) -> None:
    part = {"seconds with a fraction": 250_000, "comma": 123_000, "comma and offset": 123_456}.get(name, 0)
    expected = [int(second) * 10**6 + part for second in SECONDS]
    assert instants(connection, SPELLINGS[name]) == expected
    assert instants(connection, [str(value) for value in SPELLINGS[name]]) == expected


@pytest.mark.parametrize("name", ["naive", "east", "mixed", "comma and offset", "milliseconds", "nanoseconds"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_any_spelling_makes_the_same_dataset(tmp_path: Path, name: str, suffix: str) -> None:
    info, sessions = make(with_times(tmp_path / f"p.{suffix}", SPELLINGS[name]))
    assert sessions == SESSIONS
    assert [split["days"] for split in info["splits"].values()] == [
        ["20260201", "20260206"],
        ["20260207", "20260207"],
        ["20260208", "20260208"],
    ]
    expected = [f"16 times are numbers so large that they were read as {name} since 1970"]
    assert info["notes"][1:] == (expected if name in ("milliseconds", "nanoseconds") else [])


@pytest.mark.parametrize(("unit", "zone"), [("s", None), ("ms", "UTC"), ("us", "America/New_York"), ("ns", "UTC")])
def test_typed_timestamps(tmp_path: Path, unit: str, zone: str | None) -> None:
    times = pa.array(INSTANTS.tz_localize(None)).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    table = pa.table({"user": ["u1"] * 16, "ts": times, "track": list("ab" * 8)})
    pq.write_table(table, tmp_path / "p.parquet")
    assert make(tmp_path / "p.parquet")[1] == SESSIONS


def test_a_date_is_its_first_moment(tmp_path: Path) -> None:
    table = pa.table({"user": ["u1"] * 16, "ts": INSTANTS.date, "track": list("ab" * 8)})
    pq.write_table(table, tmp_path / "p.parquet")
    assert make(tmp_path / "p.parquet")[1] == SESSIONS
    assert make(with_times(tmp_path / "p.csv", spelled("%Y-%m-%d")))[1] == SESSIONS


def test_the_night_on_which_a_clock_is_put_back(tmp_path: Path) -> None:
    """01:50 in summer time comes before 01:10 in winter time."""
    night = ["u1,2025-11-02T01:50:00-04:00,x\n", "u1,2025-11-02T01:10:00-05:00,y\n", "u1,2025-11-02T01:05:00-04:00,z\n"]
    _, sessions = make(csv_of(tmp_path / "p.csv", [*night, *LINES]))
    assert sessions["train"]["u1_2"] == ["x", "y"]  # z, 45 minutes before, is a session of one play
    assert "u1_1" not in sessions["train"]


def test_the_day_is_that_of_utc(tmp_path: Path) -> None:
    times = spelled("%Y-%m-%dT%H:%M:%S+11:00", dt.timedelta(hours=11))
    assert times[0].startswith("2026-02-01T21")
    late = [text.replace("T21:", "T01:") for text in times]  # 14:00 of the day before in UTC
    info, _ = make(with_times(tmp_path / "p.csv", late))
    assert info["splits"]["train"]["days"] == ["20260131", "20260205"]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_the_zone_of_the_machine_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        info, sessions = make(with_times(tmp_path / "p.csv", SPELLINGS["naive"]))
        assert sessions == SESSIONS
        assert info["splits"]["test"]["days"] == ["20260208", "20260208"]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") != zone


def test_fractions_of_a_second_count(tmp_path: Path) -> None:
    """Within one second, in the wrong order in the file; the last play of a day stays in it."""
    order = [2, 0, 1]
    lines = [f"u1,2026-01-03 23:59:59.{fraction},x{fraction}\n" for fraction in np.array(["7", "8000", "9"])[order]]
    info, sessions = make(csv_of(tmp_path / "p.csv", [*LINES, *lines]))
    assert sessions["train"]["u1_1"] == ["x7", "x8000", "x9"]
    assert info["splits"]["train"]["days"] == ["20260103", "20260206"]
    assert funnel(info)["kept, of which at the time of a neighbour"] == 0


def test_nanoseconds_keep_their_microseconds(tmp_path: Path) -> None:
    """A float64 cannot hold them: one of 1.77e18 has a step of 256."""
    times = [1_767_225_600_000_000_000 + 1000 * i for i in range(20)]
    frame = pd.DataFrame({"user": "u1", "ts": times, "track": [f"x{i:02d}" for i in range(20)]})
    for name in ("p.csv", "p.parquet"):
        path = tmp_path / name
        shuffled = frame.sample(frac=1, random_state=0)
        others = pd.DataFrame({"user": "u1", "ts": (SECONDS * 10**9).tolist(), "track": list("ab" * 8)})
        both = pd.concat([others, shuffled])
        both.to_csv(path, index=False) if name.endswith("csv") else both.to_parquet(path)
        info, sessions = make(path)
        assert sessions["train"]["u1_1"] == frame["track"].tolist()
        assert funnel(info)["kept, of which at the time of a neighbour"] == 0


BAD = [
    "yesterday",
    "01.02.2026",
    "01/02/2026 10:00",
    "2026-02-30",
    "2026-02-01 10:00 PM",
    "01 Mai 2026 10:00",
    "10:00",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "epoch",
    "infinity",
    "2026-02-01 (BC)",
    "26-02-01",
    "0001-01-01",
    "9999-12-31 00:00",
    "20260201100000",
    "202602011000",
    "99999999999999999999",
    "",
]


def test_no_other_text_is_a_time(connection: Any) -> None:
    assert [value for value, time in zip(BAD, instants(connection, BAD), strict=True) if time is not None] == []


@pytest.mark.parametrize("value", ["01.02.2026", "NaN", "20260201100000", ""])
def test_anything_else_is_an_error(tmp_path: Path, value: str) -> None:
    lines = [*LINES[:4], f"u1,{value},a\n", "u1,tomorrow,b\n", *LINES[4:]]
    path = csv_of(tmp_path / "plays.csv", lines)
    message = error(path)
    assert message.startswith(f"{path}, line 6: ts is {value!r}, not a time that is read (2026-02-01, ")
    assert message.endswith("; correct or remove the rows (2 of them)")
    with_times(tmp_path / "p.parquet", [*DAYS[:15], value])
    assert f"p.parquet, row 16: ts is {value!r}, not a time" in error(tmp_path / "p.parquet")
    (tmp_path / "folder").mkdir()
    csv_of(tmp_path / "folder" / "1.csv")
    csv_of(tmp_path / "folder" / "2.csv", lines)
    assert f"folder/2.csv, line 6: ts is {value!r}" in error(tmp_path / "folder")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 20260201100000.0])
def test_numbers_that_are_no_time(tmp_path: Path, value: float) -> None:
    times = pa.array([*SECONDS[:9].astype(float), value, *SECONDS[10:].astype(float)])
    pq.write_table(pa.table({"user": ["u1"] * 16, "ts": times, "track": list("ab" * 8)}), tmp_path / "p.parquet")
    assert f"p.parquet, row 10: ts is {value!r}, not a time" in error(tmp_path / "p.parquet")


def test_a_typed_time_that_python_cannot_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plays.parquet"
    times = pa.array([1_767_225_600_000_000, -(1 << 62)], pa.timestamp("us"))
    pq.write_table(pa.table({"user": ["u", "u"], "ts": times, "track": ["a", "b"]}), path)
    start = f"{path}, row 2: ts is -4611686018427387904 (timestamp[us]), not a time that is read ("
    assert error(path).startswith(start)


@pytest.mark.parametrize("times", [[20260201 + i for i in range(8)], [f"202602{i:02d}" for i in range(1, 9)]])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_dates_written_together_are_no_seconds(tmp_path: Path, times: list, suffix: str) -> None:
    message = error(with_times(tmp_path / f"p.{suffix}", [time for time in times for _ in "ab"]))
    value = str(times[0]) if suffix == "csv" else times[0]
    assert f"ts is {value!r}, like all others a date rather than seconds since 1970; write it as 2026-02-01" in message


def test_types_that_are_no_time(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": "u1", "ts": [True, False] * 8, "track": list("ab" * 8)})
    frame.to_parquet(tmp_path / "p.parquet")
    assert "p.parquet: column ts (--plays_columns.time) is of type boolean; give one of text or numbers" in error(
        tmp_path / "p.parquet"
    )
    frame.assign(ts=SECONDS, track=[["a"], ["b"]] * 8).to_parquet(tmp_path / "p.parquet")
    assert "column track (--plays_columns.track) is of type array<" in error(tmp_path / "p.parquet")


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e400", ""])
def test_positions_that_are_no_number(tmp_path: Path, value: str) -> None:
    lines = [f"{s},{at},a\n" for s in range(9) for at in (1, 2)]
    path = csv_of(tmp_path / "p.csv", [*lines, f"9,{value},a\n"], header="s,at,track\n")
    assert f"{path}, line 20: at is {value!r}, not a number; correct" in error(path, plays_door.BY_SESSION)
    frame = pd.DataFrame({"s": np.arange(20) // 2, "at": [1.0, 2.0] * 9 + [1.0, np.inf], "track": "a"})
    frame.to_parquet(tmp_path / "p.parquet")
    assert "row 20: at is inf, not a number" in error(tmp_path / "p.parquet", plays_door.BY_SESSION)


@pytest.mark.parametrize("gap", [0.0, -5.0, float("nan"), float("inf")])
def test_the_gap_is_a_number_above_zero(tmp_path: Path, gap: float) -> None:
    columns = PlaysColumns(user="user", time="ts", track="track", gap=gap)
    assert "must be a number of seconds above 0" in error(csv_of(tmp_path / "p.csv"), columns)


def test_a_gap_of_years_is_no_gap(tmp_path: Path) -> None:
    columns = PlaysColumns(user="user", time="ts", track="track", gap=1e300)
    plays = [line.replace("u1", f"u{i % 4}") for i, line in enumerate(LINES)]
    assert list(make(csv_of(tmp_path / "p.csv", plays), columns)[1]["train"]) == ["u0_1", "u1_1"]


def test_the_time_column_of_a_session_is_its_order(tmp_path: Path) -> None:
    lines = [f"s{i // 2},{time},{track}\n" for i, (time, track) in enumerate(zip(DAYS, "ab" * 8, strict=True))]
    columns = PlaysColumns(session="user", time="ts", track="track")
    assert COLUMNS.session == ""
    _, sessions = make(csv_of(tmp_path / "p.csv", reversed(lines)), columns)
    assert list(sessions["train"].items()) == [(f"s{i}", ["a", "b"]) for i in range(6)]
