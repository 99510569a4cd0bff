"""Which files are tables of plays, and how one is read: paths, copies, damage, types, and CSV as programs write it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plays_door import BY_SESSION, COLUMNS, DAYS, HEADER, LINES, SESSIONS, csv_of, error, funnel, make

from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.datapreprocessing import main
from utils.preprocessing import mssd, play_files
from utils.preprocessing.options import Config, PlaysColumns

FRAME = pd.DataFrame({"user": "u1", "ts": DAYS, "track": list("ab" * 8)})
OTHERS = [line.replace(",a", ",x").replace(",b", ",y") for line in LINES]
"""What stands in files that are not to be read."""


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["plays[1]", "plays*", "plays?", "[!p]lays1", "{a,b}", "**", "it's 100%", "~", "#x;y"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_path_is_a_path(tmp_path: Path, name: str, suffix: str) -> None:
    """Files that a pattern would find hold other plays; the folder, that of the dataset and its work, is named so."""
    folder = tmp_path / name
    folder.mkdir()
    for other in ("plays1", "plays", "playsx", "a", "b"):
        csv_of(folder / f"{other}.csv", OTHERS)
        pd.DataFrame({"user": "u1", "ts": DAYS, "track": "x"}).to_parquet(folder / f"{other}.parquet")
    path = folder / f"{name}{suffix}"
    FRAME.to_parquet(path) if suffix == ".parquet" else FRAME.to_csv(path, index=False)
    assert make(path)[1] == SESSIONS


@pytest.mark.parametrize("name", ["track=9", "session_id=9", "owner=z", "row=1", "number=0", "piece=4", "index=7"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_path_is_no_column(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / name / "ts=2020-01-01" / f"plays{suffix}"
    path.parent.mkdir(parents=True)
    FRAME.to_parquet(path) if suffix == ".parquet" else FRAME.to_csv(path, index=False)
    for plays in (path, tmp_path / name):
        assert make(plays, out=tmp_path / "made" / name / "data")[1] == SESSIONS


def test_a_name_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff.csv")
    path.write_text(HEADER + "".join(LINES))
    assert error(path) == f"{str(path)!a}: the name of this file is not UTF-8; rename it"


def test_too_little_memory_is_no_full_disk(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "plays.csv")
    with pytest.raises(UserError, match=r"^--memory_limit 1KB is too little \(.*\); raise it$"):
        main(Config(out=tmp_path / "d", plays=path, plays_columns=COLUMNS, memory_limit="1KB"))


def test_a_path_does_not_give_a_column_that_is_missing(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "track=9" / "plays.csv", [line[: line.rindex(",")] + "\n" for line in LINES], "user,ts\n")
    assert "has no column 'track' (--plays_columns.track); it has user, ts" in error(path)


# ------------------------------------------------------------------------------------------- which files there are


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    csv_of(folder / "plays.csv")
    for hidden in (".ipynb_checkpoints/plays-checkpoint.csv", "._plays.csv", ".x/y/z.csv", "_temporary/0/part.csv"):
        csv_of(folder / hidden, OTHERS)
    (folder / "._p.parquet").write_bytes(b"\0\5\26\7")
    (folder / "notes.txt").write_text("not a table")
    assert make(folder)[1] == SESSIONS
    assert make(csv_of(tmp_path / ".hidden.csv"))[1] == SESSIONS  # named, it is read


def test_hidden_files_of_mssd_are_passed_over(tmp_path: Path) -> None:
    kept = csv_of(tmp_path / "training_set_0" / "log_0_20180715_000000000000.csv")
    for hidden in ("training_set_0/._log_0_20180715_000000000000.csv", ".cache/log_0_20180715_000000000000.csv"):
        csv_of(tmp_path / hidden)
    csv_of(tmp_path / "track_features" / "._tf_000000000000.csv")
    assert mssd.find_files(tmp_path) == [kept]
    assert [log.path for log in mssd.find_logs(tmp_path)] == [kept]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_same_file_twice_is_an_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "plays" / "old").mkdir(parents=True)
    for name in ("a", "old/b"):
        path = tmp_path / "plays" / f"{name}.{suffix}"
        FRAME.to_parquet(path) if suffix == "parquet" else FRAME.to_csv(path, index=False)
    message = error(tmp_path / "plays")
    assert message == f"{tmp_path}/plays/a.{suffix} and {path} hold the same plays; remove one of them"


def test_a_file_beside_its_packed_self_is_an_error(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "plays" / "x.csv")
    packed = path.with_name("x.csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert error(tmp_path / "plays") == f"{path} and {packed} hold the same plays; remove one of them"


def test_two_files_without_plays_are_no_copies(tmp_path: Path) -> None:
    csv_of(tmp_path / "plays" / "1.csv")
    csv_of(tmp_path / "plays" / "2.csv", [])
    csv_of(tmp_path / "plays" / "3.csv", [])
    info, sessions = make(tmp_path / "plays")
    assert sessions == SESSIONS
    assert [source["rows"] for source in info["sources"]] == [16, 0, 0]


def test_linked_folders_are_followed_and_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    csv_of(tmp_path / "elsewhere" / "old.csv", LINES[:8])
    folder = tmp_path / "plays"
    csv_of(folder / "new.csv", LINES[8:])
    (folder / "old").symlink_to(tmp_path / "elsewhere")
    assert make(folder)[1] == SESSIONS
    (folder / "loop").symlink_to(folder)
    assert error(folder) == f"{folder}/loop links to a folder that it is in; remove the link"
    (folder / "loop").unlink()
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    assert error(folder) == f"{folder}/gone.csv is a link to nothing; mend or remove it"
    assert error(folder / "gone.csv") == f"--plays {folder}/gone.csv is a link to nothing"


# ------------------------------------------------------------------------------------------------------------ damage


def test_damaged_gzip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "plays.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(HEADER + "".join(LINES[:8]))
        file.flush()
        cut = len(path.read_bytes())
        file.write("".join(LINES[8:]))
    whole = path.read_bytes()
    for damaged in (whole[:cut], whole[:-9], whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]):
        path.write_bytes(damaged)
        assert error(path).startswith(f"{path} is cut off or damaged (")
    path.write_bytes(whole)
    assert make(path)[1] == SESSIONS


@pytest.mark.parametrize("byte", [12, 40, -200, -30])
def test_a_flipped_byte_of_a_gzip_file_is_an_error(tmp_path: Path, byte: int) -> None:
    """What it breaks (the code of the letters, or only the checksum) depends on the byte, the message does not."""
    path = tmp_path / "plays.csv.gz"
    lines = [f"u{i * 7919 % 101},{DAYS[i % 16]},{i * 31337 % 10007}\n" for i in range(2000)]
    damaged = bytearray(gzip.compress((HEADER + "".join(lines)).encode()))
    damaged[byte] ^= 0x55
    path.write_bytes(damaged)
    assert error(path).startswith(f"{path} is cut off or damaged (")


def test_a_line_of_spaces_is_named(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "plays.csv", [*LINES, "\n", "  \n"])
    assert error(path).startswith(f"{path}, line 19: 1 fields where the header has 3; ")


def test_gzip_in_several_members(tmp_path: Path) -> None:
    parts = [(HEADER + "".join(LINES[:8])).encode(), "".join(LINES[8:]).encode()]
    (tmp_path / "plays.CSV.GZ").write_bytes(b"".join(map(gzip.compress, parts)))
    assert make(tmp_path / "plays.CSV.GZ")[1] == SESSIONS


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_of(tmp_path / "plays.csv")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(play_files, "open_text", refuse)
    with pytest.raises(UserError, match=r"plays.csv cannot be read: .*Permission denied"):
        play_files.read_header(path)


# ------------------------------------------------------------------------------------------------------------- types


def test_parts_of_unequal_types_are_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    folder.mkdir()
    frame = FRAME.assign(track=[7, 8] * 8, skip=[True, None] * 8, ts=pd.to_datetime(DAYS))
    frame[:4].astype({"track": "int32", "skip": "boolean"}).to_parquet(folder / "1.parquet")
    frame[4:8].astype({"track": "int64"}).assign(skip=None).to_parquet(folder / "2.parquet")
    text = frame[8:].assign(track=frame["track"].astype(str), skip="true", ts=frame["ts"].astype(str))
    text.to_parquet(folder / "3.parquet")
    columns = PlaysColumns(user="user", time="ts", track="track", skip="skip")
    expected = {split: {name: ["7", "8"] for name in names} for split, names in SESSIONS.items()}
    assert make(folder, columns)[1] == expected
    frame[8:12].assign(track=[7.0, 8.0] * 2).to_parquet(folder / "4.parquet")
    assert (
        f"{folder}/4.parquet: column track is of type float64, but in a file before it was none of floats, so 7 and "
        "7.0 would be two ids" in error(folder, columns)
    )


@pytest.mark.parametrize("tracks", [["a", ""] * 8, ["a", "nan"] * 8, ["a", "NaN"] * 8, ["a", " "] * 8, ["a", None] * 8])
def test_empty_ids_are_an_error(tmp_path: Path, tracks: list) -> None:
    frame = FRAME.assign(track=tracks)
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_parquet(tmp_path / "p.parquet")
    cure = ", no track; correct or remove the rows (8 of them), or drop them with --drop_rows_without_track true"
    assert error(tmp_path / "p.csv") == f"{tmp_path}/p.csv, line 3: track is {tracks[1] or ''!r}{cure}"
    assert error(tmp_path / "p.parquet") == f"{tmp_path}/p.parquet, row 2: track is {tracks[1]!r}{cure}"
    swapped = PlaysColumns(user="track", time="ts", track="user")
    assert f"p.parquet, row 2: track is {tracks[1]!r}, no user; correct or remove the rows (8 of them)" in error(
        tmp_path / "p.parquet", swapped
    )


def test_nan_is_no_track(tmp_path: Path) -> None:
    table = pa.table({"user": ["u1"] * 16, "ts": DAYS, "track": pa.array([1.0, float("nan")] * 8)})
    pq.write_table(table, tmp_path / "p.parquet")
    assert f"{tmp_path}/p.parquet, row 2: track is nan, no track" in error(tmp_path / "p.parquet")


def test_rows_without_a_track_are_dropped_on_demand(tmp_path: Path) -> None:
    podcasts = [f"u1,2026-02-{day:02d}T10:00:30Z,\n" for day in (1, 2, 2, 9)]
    path = csv_of(tmp_path / "p.csv", [*podcasts, *LINES])
    info, sessions = make(path, drop_rows_without_track=True)
    assert sessions == SESSIONS
    assert funnel(info)["dropped: no track"] == 4
    assert "--drop_rows_without_track True" in info["command"]


def test_columns_that_differ_by_case_only(tmp_path: Path) -> None:
    frame = FRAME.assign(**{"Track": "x", "TS": "y", "USER": "z"})[["USER", "Track", "TS", "user", "ts", "track"]]
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_parquet(tmp_path / "p.parquet", index=False)
    assert make(tmp_path / "p.csv")[1] == make(tmp_path / "p.parquet")[1] == SESSIONS


# ------------------------------------------------------------------------------------------------- CSV of programs


WRITTEN = {
    "index of pandas": FRAME.to_csv(),
    "index of R": '"","user","ts","track"\n' + "".join(f'"{i}",{line}' for i, line in enumerate(LINES, start=1)),
    "trailing comma": "user,ts,track,\n" + "".join(line.replace("\n", ",\n") for line in LINES),
    "unused columns of one name": "user,x,ts,x,track\n"
    + "".join(f"u1,1,{time},2,{track}\n" for time, track in zip(DAYS, "ab" * 8, strict=True)),
    "CRLF": (HEADER + "".join(LINES)).replace("\n", "\r\n"),
    "CR": (HEADER + "".join(LINES)).replace("\n", "\r"),
    "mixed line ends": (HEADER + "".join(LINES[:5])).replace("\n", "\r\n") + "".join(LINES[5:]),
    "mixed the other way": HEADER + "".join(LINES[:5]) + "".join(LINES[5:]).replace("\n", "\r\n"),
    "a line end too much": (HEADER + "".join(LINES)).replace("\n", "\r\r\n"),
    "blank first line": "\n" + HEADER + "".join(LINES),
    "blank first lines": "\r\n,,\r\n" + (HEADER + "".join(LINES)).replace("\n", "\r\n"),
    "blank lines": (HEADER + "".join(LINES)).replace("T10:01:00Z,b\n", "T10:01:00Z,b\n\n"),
    "no last line end": (HEADER + "".join(LINES)).rstrip("\n"),
    "byte order mark": "\ufeff" + HEADER + "".join(LINES),
    "trailing comma below the header only": HEADER + "".join(line.replace("\n", ",\n") for line in LINES),
    "quotes": (HEADER + "".join(LINES)).replace("u1", '"u1"').replace("ts", '"ts"'),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_csv_as_programs_write_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "plays.csv"
    path.write_bytes(WRITTEN[name].encode())
    assert make(path)[1] == SESSIONS
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(WRITTEN[name].encode()))
    assert make(tmp_path / "packed.csv.gz")[1] == SESSIONS


@pytest.mark.parametrize("name", ["mixed line ends", "blank first lines", "a line end too much", "blank lines"])
def test_the_line_of_an_error_is_that_of_the_file(tmp_path: Path, name: str) -> None:
    text = WRITTEN[name].replace("2026-02-04T10:01:00Z", "tomorrow")
    path = tmp_path / "plays.csv"
    path.write_bytes(text.encode())
    before = text[: text.index("tomorrow")].replace("\r\n", "\n").replace("\r", "\n")
    assert f"{path}, line {before.count(chr(10)) + 1}: ts is 'tomorrow'" in error(path)


def test_line_ends_within_quotes_belong_to_the_value(tmp_path: Path) -> None:
    text = (HEADER + "".join(LINES)).replace("\n", "\r\n").replace(",a", ',"a\nz"')
    (tmp_path / "p.csv").write_bytes(text.encode())
    assert make(tmp_path / "p.csv")[1]["test"] == {"u1_8": ["a\nz", "b"]}


def test_blocks_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_files, "BLOCK", 7)
    for name in ("CRLF", "mixed line ends", "a line end too much"):
        (tmp_path / "p.csv").write_bytes(WRITTEN[name].encode())
        assert play_files.has_mixed_line_ends(tmp_path / "p.csv") == (name != "CRLF")
        assert make(tmp_path / "p.csv")[1] == SESSIONS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,ts,track\nu1,2026-02-01,a,x\n", "line 2: 4 fields where the header has 3; put quotes around a field"),
        ("user,ts,track\nu1,2026-02-01,a\nu1,b\n", "line 3: 2 fields where the header has 3"),
        ('user,ts,track\nu1,2026-02-01,"a\nu1,2026-02-01,b\n', "close every quote"),
        (
            'user,ts,track\nu1,2026-02-01,a\nu1,2026-02-01,"a" b\n',
            "below line 2: ',' expected after '\"'; write a quote",
        ),
        ("user;ts;track\nu1;2026-02-01;a\n", "it has user;ts;track; separate columns with commas"),
        (
            "user,ts,track,track\nu1,2026-02-01,a,b\n",
            "has 2 columns 'track' (--plays_columns.track); rename all but one",
        ),
        (
            "user,ts,\nu1,2026-02-01,a\n",
            "no column 'track' (--plays_columns.track); it has user, ts, (one without a name)",
        ),
        ("\n\n", "is empty"),
    ],
)
def test_csv_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    found = error(tmp_path / "p.csv")
    assert message in found
    assert str(tmp_path / "p.csv") in found
    assert "\n" not in found


@pytest.mark.parametrize("lines", [["user,ts,track\n", "u1,2026-02-01,\xe9\n"], ["user,ts,track,\xe9\n", "u1,1,a,b\n"]])
def test_text_that_is_not_utf8(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "p.csv").write_bytes("".join(lines).encode("latin-1"))
    line = 1 if "\xe9" in lines[0] else 2
    assert error(tmp_path / "p.csv") == (
        f"{tmp_path}/p.csv, line {line}: this is not UTF-8; save the file as CSV in UTF-8"
    )


@pytest.mark.parametrize("name", ["null", "~", "true", "5", "None"])
def test_a_column_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = csv_of(tmp_path / "p.csv", header=f"{name},ts,track\n")
    args = ["--out", "x", "--plays_columns.user", name, "--plays_columns.time", "ts", "--plays_columns.track", "track"]
    columns = parse_config(Config, args).plays_columns
    assert columns == PlaysColumns(user=name, time="ts", track="track")
    info, sessions = make(path, columns)
    assert sessions == SESSIONS
    assert f"--plays_columns.user {name}" in info["command"].replace("'", "")


# ------------------------------------------------------------------------------------------ pieces of long sessions


@pytest.mark.parametrize("taken", [["7/2"], ["7/2", "7//2"], ["7/2", "7//3"]])
def test_a_piece_takes_no_name_of_a_session(tmp_path: Path, taken: list[str]) -> None:
    sessions = {**{str(i): 5 for i in range(12)}, **dict.fromkeys(taken, 3)}
    lines = [f"{name},{at},t{at}\n" for name, n in sessions.items() for at in range(n)]
    path = csv_of(tmp_path / "p.csv", lines, "s,at,track\n")
    info, found = make(path, BY_SESSION, max_session_length=3)
    names = [name for split in found.values() for name in split]
    stroke = "/" * (len(taken) + 1) if "7//3" not in taken else "//"
    assert sorted(names) == sorted([*sessions, *(f"{i}{stroke}2" for i in range(12))])
    assert {name: tracks for split in found.values() for name, tracks in split.items()}["7/2"] == ["t0", "t1", "t2"]
    assert funnel(info)["kept"] == len(lines)


def test_keep_repeats_needs_times(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "p.csv", [f"{i},{at},a\n" for i in range(9) for at in (1, 2)], "s,at,track\n")
    with pytest.raises(UserError, match=r"--keep_repeats means nothing without --plays_columns.time"):
        make(path, BY_SESSION, keep_repeats=True)
    assert np.array_equal(os.listdir(tmp_path), ["p.csv"])
    assert COLUMNS.position == ""
