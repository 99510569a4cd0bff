"""What is said of damaged files: which file, which line, and the cure."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import mssd_files
import numpy as np
import pandas as pd
import pytest
from dataset_checks import assert_same_dataset, log_path, write_days
from mssd_files import damage_line, replace_field

from utils.core.errors import UserError
from utils.data import schema
from utils.datapreprocessing import main
from utils.preprocessing import mssd_dataset
from utils.preprocessing.options import Config


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of splits 0 and 9, 12 sessions each, 50 tracks; read only."""
    return mssd_files.write_mssd(tmp_path_factory.mktemp("raw"), n_days=5, splits=(0, 9), n_sessions=12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace(",", "", 1), "line 40: 20 fields where the header has 21"),
        (lambda line: line.strip() + ",1\n", "line 40: 22 fields where the header has 21"),
        (
            replace_field("session_position", "two"),
            "line 40: session_position is 'two', not a whole number from 0 to 255",
        ),
        (replace_field("session_length", "-1"), "line 40: session_length is '-1', not a whole number"),
        (replace_field("hour_of_day", "9.5"), "line 40: hour_of_day is '9.5', not a whole number"),
        (
            replace_field("skip_1", "maybe"),
            "line 40: skip_1 is 'maybe', not one of True, False, true, false, 1, 0",
        ),
        (replace_field("track_id_clean", ""), "line 40: track_id_clean is empty"),
        (replace_field("session_position", "21"), "line 40: session_position is 21, not 1 to 20"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change, message: str) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    path = log_path(tmp_path, day=1)
    damage_line(path, 40, change)
    with pytest.raises(UserError) as error:
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert f"{path}, {message}" in str(error.value)
    assert not (tmp_path / "d").exists()
    assert not list(tmp_path.glob(".d*"))


def test_a_position_that_occurs_twice_is_named(tmp_path: Path) -> None:
    frame = mssd_files.mssd_frame(n_sessions=12)
    twice = pd.concat([frame, frame.iloc[[30]]])
    with pytest.raises(UserError) as error:
        main(Config(raw=write_days(tmp_path, twice), out=tmp_path / "d"))
    row = frame.iloc[30]
    where = f"{log_path(tmp_path)}, line {len(frame) + 2}: session {row['session_id']} has position"
    assert f"{where} {row['session_position']} twice" in str(error.value)


@pytest.mark.parametrize("slice_", [1, 10**6])
def test_a_session_in_two_files_is_named(slice_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mssd_dataset, "SESSIONS_A_SLICE", slice_)
    first, second = mssd_files.mssd_frame(n_sessions=12), mssd_files.mssd_frame(day=1, n_sessions=12)
    session = first["session_id"].iloc[0]
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    both = pd.concat([second, first[first["session_id"] == session]])
    mssd_files.write_log(log_path(tmp_path, day=1), both)
    with pytest.raises(UserError) as error:
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    expected = f"session {session} is in {log_path(tmp_path)} and in {log_path(tmp_path, day=1)}"
    assert expected in str(error.value)


def test_a_log_that_is_there_twice_is_named_before_anything_is_read(tmp_path: Path) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    name = log_path(tmp_path).name
    mssd_files.write_log(tmp_path / "old" / f"{name}.gz", mssd_files.mssd_frame(n_sessions=12))
    with pytest.raises(UserError, match="are the same log; remove one of them"):
        main(Config(raw=tmp_path, out=tmp_path / "d"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    frame = mssd_files.mssd_frame(n_sessions=12).drop(columns="hour_of_day")
    with pytest.raises(UserError, match="line 1: column 'hour_of_day' is missing; the header has session_id, "):
        main(Config(raw=write_days(tmp_path, frame), out=tmp_path / "d"))


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=200, gzipped=True)
    path = Path(f"{log_path(tmp_path, day=2)}.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    with pytest.raises(UserError) as error:
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert str(path) in str(error.value)
    assert "unpack or download it again" in str(error.value)
    flipped = bytearray(whole)
    flipped[4000] ^= 0x55
    path.write_bytes(flipped)
    with pytest.raises(UserError) as error:
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert str(path) in str(error.value)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    path.write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match="cannot be read"):
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    with gzip.open(path, "wt") as file:
        file.write(",".join(schema.SESSION_COLUMNS) + "\n")
    with pytest.raises(UserError, match="has no rows below its header"):
        main(Config(raw=tmp_path, out=tmp_path / "d"))


def test_a_feature_that_is_no_number_is_named(tmp_path: Path) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    path = tmp_path / "track_features" / "tf_000000000001.csv"
    damage_line(path, 7, lambda line: line.replace(",", ",loud", 1))
    with pytest.raises(UserError, match=r"tf_000000000001.csv, line 7: duration is 'loud.*', not a number"):
        main(Config(raw=tmp_path, out=tmp_path / "d"))


@pytest.mark.parametrize("min_count", [0, 5])
def test_a_row_of_features_without_a_track_is_named(tmp_path: Path, min_count: int) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    path = tmp_path / "track_features" / "tf_000000000001.csv"
    damage_line(path, 7, lambda line: line[line.index(",") :])
    with pytest.raises(UserError, match=r"tf_000000000001.csv, line 7: track_id is empty"):
        main(Config(raw=tmp_path, out=tmp_path / "d", min_count=min_count))


def test_feature_files_without_rows_or_without_the_right_ones(tmp_path: Path) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    frame = mssd_files.features_frame(50)
    mssd_files.write_features(tmp_path, frame.head(0))
    with pytest.raises(UserError, match="track_features has no rows of features"):
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    mssd_files.write_features(tmp_path, frame.assign(track_id="t_other_" + frame["track_id"]))
    info = main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert f"{info['vocabulary']['tracks']} tracks of the vocabulary have no row of features" in info["notes"][0]
    assert not np.load(tmp_path / "d" / "track_features.npy").any()


def test_folders_without_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no training log"):
        main(Config(raw=tmp_path / "empty", out=tmp_path / "d"))
    with pytest.raises(UserError, match="is not a folder"):
        main(Config(raw=tmp_path / "nowhere", out=tmp_path / "d"))


def test_folders_may_be_links_and_hold_other_files(raw: Path, tmp_path: Path) -> None:
    linked = tmp_path / "raw"
    shutil.copytree(raw / "track_features", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.txt").write_text("downloaded by hand")
    linked.mkdir()
    (linked / "track_features").symlink_to(tmp_path / "elsewhere")
    for folder in raw.glob("training_set_*"):
        (linked / folder.name).symlink_to(folder.resolve())
    main(Config(raw=raw, out=tmp_path / "plain"))
    main(Config(raw=linked, out=tmp_path / "linked"))
    assert_same_dataset(tmp_path / "linked", tmp_path / "plain")
