"""`--engine spark`: the dataset of DuckDB, byte for byte, from a Spark Connect server that needs no Java (Sail)."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mssd_files
import numpy as np
import pandas as pd
import pytest
from mssd_files import replace_field
from pysail.spark import SparkConnectServer

from utils.core.errors import UserError
from utils.data import schema
from utils.datapreprocessing import main
from utils.preprocessing import mssd, mssd_spark
from utils.preprocessing.options import Config, PlaysColumns


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    """The address of a server in this process."""
    server = SparkConnectServer(ip="127.0.0.1", port=0)
    server.start(background=True)
    yield f"sc://127.0.0.1:{server.listening_address[1]}"
    server.stop()


def log_path(folder: Path, *, split: int = 0, day: int = 0) -> Path:
    return folder / f"training_set_{split}" / schema.log_file(split, mssd_files.days(day + 1)[-1])


def odd_frame() -> pd.DataFrame:
    """A log with everything that is dropped, unknown or unsorted."""
    frame = mssd_files.mssd_frame(n_sessions=14).astype(object)
    sessions = frame["session_id"].unique()
    frame.loc[frame["session_id"] == sessions[2], "session_length"] -= 1  # a wrong claim
    frame.loc[frame.index[frame["session_id"] == sessions[3]][4], "session_length"] -= 1  # one row disagrees
    frame = frame.drop(index=frame.index[frame["session_id"] == sessions[0]][-1])  # the last play is missing
    frame = frame.drop(index=frame.index[frame["session_id"] == sessions[1]][3])  # so is one in the middle
    frame = frame.reset_index(drop=True)
    kept = frame.index[frame["session_id"] == sessions[5]]
    frame.loc[kept[0], "context_type"] = "hologram"
    frame.loc[kept[1], "hist_user_behavior_reason_end"] = ""
    frame.loc[kept[2], ["skip_2", "premium", "hour_of_day"]] = ""
    frame.loc[kept[3], "hour_of_day"] = 24
    frame.loc[kept[4], "hist_user_behavior_n_seekfwd"] = 5000
    frame.loc[kept[5], "skip_1"] = "1"
    return frame.sample(frac=1, random_state=0)[list(reversed(frame.columns))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of splits 0 and 9: one log is odd, one gzipped."""
    folder = mssd_files.write_mssd(tmp_path_factory.mktemp("raw"), n_days=3, splits=(0, 9), n_sessions=12)
    mssd_files.write_log(log_path(folder), odd_frame())
    plain = log_path(folder, split=9, day=1)
    with gzip.open(f"{plain}.gz", "wb") as file:
        file.write(plain.read_bytes())
    plain.unlink()
    return folder


def assert_same_dataset(found: Path, expected: Path) -> None:
    """Byte for byte; of `dataset.json` all but what names the run."""
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()) == names
    for name in names:
        if name.endswith(".npy"):
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
        elif name.endswith(".parquet"):
            pd.testing.assert_frame_equal(pd.read_parquet(found / name), pd.read_parquet(expected / name))
    infos = [json.loads((folder / "dataset.json").read_text()) for folder in (found, expected)]
    for info in infos:
        del info["name"], info["engine"], info["command"]
    assert infos[0] == infos[1]


@pytest.mark.parametrize(
    "options",
    [
        {"min_count": 2},
        {"protocol": "original", "min_count": 3, "valid_fraction": 0.3},
        {"protocol": "session"},
        {"min_count": 0},
    ],
    ids=["temporal", "original", "session", "catalogue"],
)
def test_spark_and_duckdb_write_the_same_bytes(raw: Path, tmp_path: Path, remote: str, options: dict) -> None:
    here = main(Config(raw=raw, out=tmp_path / "duckdb", **options))
    there = main(Config(raw=raw, out=tmp_path / "spark", engine="spark", spark_remote=remote, **options))
    assert_same_dataset(tmp_path / "spark", tmp_path / "duckdb")
    assert "on spark" in there["engine"]
    unplayed = pd.read_parquet(tmp_path / "spark" / "tracks.parquet")["train_plays"] == 0
    assert unplayed.any() == (options.get("min_count") == 0)
    assert "--engine spark" in there["command"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["duckdb", "spark"]  # no parts, no work folder
    dropped = {row["reason"]: row["sessions"] for row in here["funnel"]}
    assert dropped["dropped: rows or positions missing"] == 4
    has_unknown = (np.load(tmp_path / "spark" / "train" / "skips.npy") == schema.SKIP_UNKNOWN).any()
    assert has_unknown or "original" in str(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace(",", "", 1), "line 40: 20 fields where the header has 21"),
        (lambda line: line.strip() + ",1\n", "line 40: 22 fields where the header has 21"),
        (
            replace_field("session_position", "two"),
            "line 40: session_position is 'two', not a whole number from 0 to 255",
        ),
        (replace_field("session_length", "300"), "line 40: session_length is '300', not a whole number"),
        (replace_field("hour_of_day", "9.5"), "line 40: hour_of_day is '9.5', not a whole number"),
        (
            replace_field("hist_user_behavior_n_seekback", "9" * 30),
            "line 40: hist_user_behavior_n_seekback is '999",
        ),
        (
            replace_field("skip_1", "maybe"),
            "line 40: skip_1 is 'maybe', not one of True, False, true, false, 1, 0",
        ),
        (replace_field("track_id_clean", ""), "line 40: track_id_clean is empty"),
        (replace_field("session_position", "21"), "line 40: session_position is 21, not 1 to 20"),
        (replace_field("session_position", "0"), "line 40: session_position is 0, not 1 to 20"),
        (lambda line: line + line, "line 41: session 1_00000000"),
    ],
)
def test_a_damaged_line_is_named_as_here(tmp_path: Path, remote: str, change, message: str) -> None:
    mssd_files.write_mssd(tmp_path / "raw", n_days=3, n_sessions=12)
    path = log_path(tmp_path / "raw", day=1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:39], change(lines[39]), *lines[40:]]))
    with pytest.raises(UserError) as error:
        main(Config(raw=tmp_path / "raw", out=tmp_path / "d", engine="spark", spark_remote=remote))
    assert f"{path}, {message}" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_error_of_spark_is_explained_by_the_log_that_it_names(tmp_path: Path) -> None:
    raw = mssd_files.write_mssd(tmp_path / "raw", n_days=2, n_sessions=12)
    for day in range(2):  # both are damaged, the second is named
        lines = log_path(raw, day=day).read_text().splitlines(keepends=True)
        log_path(raw, day=day).write_text("".join([*lines[:9], "1,2\n", *lines[10:]]))
    logs = mssd.find_logs(raw)
    java_error = type("Py4JJavaError", (Exception,), {"__module__": "py4j.protocol"})  # of Spark without a server
    with pytest.raises(UserError, match=r"log_0_20180716.*, line 10: 2 fields"), mssd_spark.explained(logs):
        raise java_error(f"[FAILED_READ_FILE.NO_HINT] while reading file file://{logs[1].path}.\n\tat java.lang")
    with pytest.raises(UserError, match=r"log_0_20180715.*, line 10: 2 fields"), mssd_spark.explained(logs):
        raise java_error("Csv error: incorrect number of fields")
    whole = mssd.LogFile(mssd_files.write_log(tmp_path / "log.csv", mssd_files.mssd_frame()), 0, "20180715")
    with pytest.raises(UserError, match=r"^Spark: no memory$"), mssd_spark.explained([whole]):
        raise java_error("no memory\n\tat java.lang")
    with pytest.raises(KeyError), mssd_spark.explained(logs):
        raise KeyError("of our own")


def test_a_log_without_rows_is_named_as_here(tmp_path: Path, remote: str) -> None:
    mssd_files.write_mssd(tmp_path / "raw", n_days=3, n_sessions=12)
    path = log_path(tmp_path / "raw", day=1)
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="has no rows below its header"):
        main(Config(raw=tmp_path / "raw", out=tmp_path / "d", engine="spark", spark_remote=remote))


def test_a_session_in_two_files_is_named(raw: Path, tmp_path: Path, remote: str) -> None:
    mine = tmp_path / "raw"
    shutil.copytree(raw, mine)
    first, second = (mssd_files.mssd_frame(split=9, day=day, n_sessions=12) for day in (0, 2))
    session = first["session_id"].iloc[0]
    mssd_files.write_log(log_path(mine, split=9, day=2), pd.concat([second, first[first["session_id"] == session]]))
    with pytest.raises(UserError) as error:
        main(Config(raw=mine, out=tmp_path / "d", engine="spark", spark_remote=remote))
    paths = [log_path(mine, split=9, day=day) for day in (0, 2)]
    assert f"session {session} is in {paths[0]} and in {paths[1]}" in str(error.value)


def test_options_and_servers_that_do_not_fit(raw: Path, tmp_path: Path, remote: str) -> None:
    out = tmp_path / "d"
    for config, message in [
        (Config(out=out, raw=raw, engine="spark"), "this pyspark is a client: name a server with --spark_remote"),
        (Config(out=out, raw=raw, engine="spark", spark_remote="sc://127.0.0.1:1"), "no Spark Connect server answers"),
        (Config(out=out, raw=raw, engine="spark", spark_remote="127.0.0.1:1"), "an address is written as sc://"),
        (Config(out=out, raw=raw, spark_remote=remote), "--spark_remote is for --engine spark"),
        (Config(out=out, raw=raw, engine="spark", memory_limit="1GB"), "--memory_limit is for --engine duckdb"),
        (Config(out=out, plays=raw, engine="spark"), "this pyspark is a client"),
        (Config(out=out, raw=raw, engine="spark", spark_remote=remote, min_count=10**6), "no track has 1000000 plays"),
    ]:
        with pytest.raises(UserError, match=message):
            main(config)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_spark_left_unsorted_is_sorted(tmp_path: Path) -> None:
    plays = {"session_id": ["b", "a", "b", "a", "a"], "position": [1, 3, 2, 1, 2], "index": [14, 13, 15, 11, 12]}
    codes = {name: [24, 23, 25, 21, 22] for name in schema.LOG_COLUMNS}
    frame = pd.DataFrame({**plays, "skip": [3, 2, 255, 0, 1], **codes})
    sessions = {"session_id": ["b", "a"], "plays": [2, 3], "positions": [2, 3], "last": [2, 3], "shortest": [2, 3]}
    for name, table in (("plays", frame), ("sessions", pd.DataFrame({**sessions, "longest": [2, 4]}))):
        (tmp_path / name / "log=0").mkdir(parents=True)
        table.to_parquet(tmp_path / name / "log=0" / "part.parquet")
    logs = [mssd.LogFile(tmp_path / "log.csv", 0, "20180715")]
    chunk, complete = mssd_spark.log_chunk(tmp_path / "plays", tmp_path / "sessions", logs, 0)
    assert chunk.session_id.to_pylist() == ["a", "b"]
    assert chunk.lengths.tolist() == [3, 2]
    assert complete.tolist() == [False, True]
    assert chunk.tracks.tolist() == [11, 12, 13, 14, 15]
    assert chunk.skips.tolist() == [0, 1, 2, 3, 255]
    assert chunk.log.tolist() == [[n] * len(schema.LOG_COLUMNS) for n in (21, 22, 23, 24, 25)]


def test_the_plan_codes_as_this_machine_does(tmp_path: Path) -> None:
    """The expressions, on DuckDB, beside `mssd.read_log`."""
    import ibis

    path = mssd_files.write_log(tmp_path / schema.log_file(0, "20180715"), odd_frame())
    rows = ibis.memtable(pd.read_csv(path, dtype=str).assign(log=0))
    found = mssd_spark.code_plays(rows).order_by("session_id", "position").to_pandas()
    here = mssd.read_log(path)
    assert not found["fault"].any()
    assert found["skip"].tolist() == here.skips.tolist()
    assert found[list(schema.LOG_COLUMNS)].to_numpy().tolist() == here.log.tolist()
    assert found["track_id"].tolist() == here.track_ids.take(here.tracks).to_pylist()


# ------------------------------------------------------------------------------------------------------ tables of plays

EVERYTHING = {
    "name": "title",
    "artist": "by",
    "seconds": "sec",
    "reason_end": "why",
    "shuffle": "shuffle",
    "skip": "skip",
}
"""Columns of `plays_frame` beside those that make sessions."""


def plays_frame(*, seed: int = 0) -> pd.DataFrame:
    """Plays of twelve listeners in no order: many at one time, some there again, ids that sort as text or not at all.

    Sessions `s` and places `at` are given, too: the places of a session are -3.5, -0.0 (which is 0), 0.5, 1.5 ...
    """
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(12):
        for session in range(8):
            start = 1_700_000_000 + 86_400 * session + int(generator.integers(0, 5)) * 600
            for place in range(int(generator.integers(1, 9))):
                rows.append(
                    {
                        "user": ["a", "a_1", "A", "é", "z z", "10", "9", "_", "a_", "\U0001f3b5", "Z", "\uffee"][user],
                        "s": f"{user * 8 + session:d}",
                        "at": [-3.5, -0.0][place] if place < 2 else place - 1.5,
                        "ts": start + int(generator.integers(0, 3)) * 5,
                        "track": f"t{generator.integers(0, 30)}",
                        "sec": round(float(generator.random()) * 300, 3) if place % 3 else None,
                        "why": ["trackdone", "fwdbtn", "?"][place % 3],
                        "shuffle": place % 2,
                        "skip": ["skip_1", "not_skipped", "x"][place % 3],
                    }
                )
    frame = pd.DataFrame(rows)
    frame["title"], frame["by"] = frame["track"].str.upper(), "artist " + frame["track"].str[-1]
    frame["part"] = [{6: "valid", 7: "test"}.get(int(s) % 8, "train") for s in frame["s"]]
    return pd.concat([frame, frame.iloc[::9]]).sample(frac=1, random_state=seed, ignore_index=True)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"user": "user", "time": "ts"}, {}),
        ({"user": "user", "time": "ts", **EVERYTHING}, {"max_session_length": 3, "split_by": "listener"}),
        ({"user": "user", "time": "ts"}, {"keep_repeats": True, "min_session_length": 3, "min_count": 4}),
        ({"time": "ts"}, {"valid_fraction": 0.0}),
        ({"session": "s", "position": "at", "time": "ts", **EVERYTHING}, {"max_session_length": 4}),
        ({"session": "s", "time": "ts", "user": "user", "split": "part"}, {}),
    ],
    ids=["gaps", "everything", "repeats", "one listener", "positions", "official splits"],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_plays_make_the_same_bytes(
    tmp_path: Path, remote: str, columns: dict[str, str], options: dict, suffix: str
) -> None:
    frame, folder = plays_frame(), tmp_path / "plays"
    if "position" in columns:
        frame = frame.drop_duplicates(["s", "at"])  # no two plays at one place but those that are the same
        frame = pd.concat([frame, frame.iloc[::9]], ignore_index=True)
    folder.mkdir()
    for i, part in enumerate((frame[:7], frame[7:100], frame[100:])):
        path = folder / f"{i}{suffix}"
        part.to_csv(path, index=False) if suffix == ".csv" else part.to_parquet(path)
    made: dict = {"plays": folder, "plays_columns": PlaysColumns(track="track", **columns), "min_count": 2, **options}
    here = main(Config(out=tmp_path / "duckdb", **made))
    there = main(Config(out=tmp_path / "spark", engine="spark", spark_remote=remote, memory_limit="1GB", **made))
    assert_same_dataset(tmp_path / "spark", tmp_path / "duckdb")
    assert "on spark" in there["engine"]
    rows = {row["reason"]: row["rows"] for row in here["funnel"]}
    assert rows["read"] == len(frame)
    assert rows.get("dropped: the same play again", 0) > 0 or "keep_repeats" in options
    assert sorted(path.name for path in tmp_path.iterdir()) == ["duckdb", "plays", "spark"]  # no work folder


def test_a_play_at_fault_is_named_on_spark_too(tmp_path: Path, remote: str) -> None:
    path = tmp_path / "plays.csv"
    for lines, message in [
        (["a,1,x", "a,2,"], "line 3: t is '', no track"),
        (["a,1,x", "b,3,y", "a,1,y"], "line 4: at is '1': session a has 2 plays at position 1"),
        (["a,1,x"], "has no session of 2 plays or more"),
    ]:
        path.write_text("\n".join(["s,at,t", *lines]) + "\n")
        columns = PlaysColumns(track="t", session="s", position="at")
        with pytest.raises(UserError) as error:
            main(Config(out=tmp_path / "d", plays=path, plays_columns=columns, engine="spark", spark_remote=remote))
        assert message in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["plays.csv"]
