"""The simulator's files: exactly MSSD's, the same bytes for the same seed."""

import csv
import gzip
import hashlib
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from utils.core.errors import UserError
from utils.data import schema
from utils.simulator import __main__ as simulator
from utils.simulator import log_files
from utils.simulator.__main__ import Config
from utils.simulator.world import build_world

SMALL = {"sessions": 400, "test_sessions": 60, "tracks": 1000, "days": 2, "splits": 2, "processes": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw") / "small"
    simulator.main(Config(out=str(out), **SMALL))
    return out


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_folder_holds_exactly_mssds_files(folder):
    days = ("20180715", "20180716")
    expected = {
        "data_mini/training_set/log_mini.csv",
        "data_mini/track_features/tf_mini.csv",
        "track_features/tf_000000000000.csv",
        "track_features/tf_000000000001.csv",
        "hidden_truth/world.json",
    }
    for day in days:
        expected |= {f"training_set_{s}/log_{s}_{day}_000000000000.csv" for s in (0, 1)}
        expected |= {f"test_set/log_{part}_{day}_000000000000.csv" for part in ("prehistory", "input")}
        expected |= {f"hidden_truth/test_set/second_half_{day}.parquet"}
        for name in ("training_set_0", "training_set_1", "test_set"):
            expected |= {f"hidden_truth/{name}/{kind}_{day}.parquet" for kind in ("listeners", "propensities")}
    assert set(digests(folder)) == expected


def test_training_log_has_mssds_columns_and_order(folder):
    path = folder / "training_set_1" / "log_1_20180716_000000000000.csv"
    with open(path) as file:
        assert tuple(next(csv.reader(file))) == schema.SESSION_COLUMNS
    frame = pd.read_csv(path)
    assert frame["session_id"].nunique() == 100
    assert (
        frame["session_id"]
        .str.fullmatch(r"1_[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
        .all()
    )
    assert frame["session_id"].is_monotonic_increasing
    assert frame["session_position"].equals(frame.groupby("session_id").cumcount() + 1)
    assert (frame.groupby("session_id")["session_length"].transform("size") == frame["session_length"]).all()
    assert frame["session_length"].between(10, 20).all()
    assert set(frame["context_type"]) <= set(schema.CONTEXT_TYPES)
    assert set(frame["hist_user_behavior_reason_start"]) <= set(schema.REASONS_START)
    assert set(frame["hist_user_behavior_reason_end"]) <= set(schema.REASONS_END)
    raw = path.read_text()
    assert '"' not in raw
    assert ",true," in raw
    assert "True" not in raw


def test_session_ids_are_unique_over_all_files(folder):
    ids = []
    for path in [*folder.glob("training_set_*/log_*"), *folder.glob("test_set/log_prehistory_*")]:
        ids += pd.read_csv(path)["session_id"].unique().tolist()
    assert len(ids) == len(set(ids)) == 460


def test_test_set_is_cut_at_half_and_its_truth_is_apart(folder):
    past = pd.read_csv(folder / "test_set" / "log_prehistory_20180715_000000000000.csv")
    future = pd.read_csv(folder / "test_set" / "log_input_20180715_000000000000.csv")
    truth = pq.read_table(folder / "hidden_truth" / "test_set" / "second_half_20180715.parquet").to_pandas()
    assert tuple(past.columns) == tuple(truth.columns) == schema.SESSION_COLUMNS
    assert tuple(future.columns) == schema.INPUT_COLUMNS
    assert (past["session_position"] <= past["session_length"] // 2).all()
    assert (future["session_position"] > future["session_length"] // 2).all()
    sizes = past.groupby("session_id").size() + future.groupby("session_id").size()
    assert (sizes == past.groupby("session_id")["session_length"].first()).all()
    pd.testing.assert_frame_equal(truth[list(schema.INPUT_COLUMNS)], future, check_dtype=False)


def test_track_features_cover_all_tracks_and_are_sorted(folder):
    parts = [pd.read_csv(path) for path in sorted((folder / "track_features").iterdir())]
    table = pd.concat(parts, ignore_index=True)
    assert tuple(table.columns) == schema.FEATURE_COLUMNS
    assert table["track_id"].is_monotonic_increasing
    assert table["track_id"].nunique() == len(table) == 1000
    assert not table.isna().any().any()
    assert (table.drop(columns=["track_id", "mode"]).std() > 0).all()
    assert set(table["mode"]) == {"major", "minor"}
    played = pd.read_csv(folder / "training_set_0" / "log_0_20180715_000000000000.csv")["track_id_clean"]
    assert played.isin(table["track_id"]).all()


def test_mini_set_is_the_head_of_the_first_log_spelt_differently(folder):
    mini_path = folder / "data_mini" / "training_set" / "log_mini.csv"
    text = mini_path.read_text()
    assert ",True," in text
    assert "true" not in text
    first = pd.read_csv(folder / "training_set_0" / "log_0_20180715_000000000000.csv")
    mini = pd.read_csv(mini_path)
    pd.testing.assert_frame_equal(mini, first.head(len(mini)))
    features = pd.read_csv(folder / "data_mini" / "track_features" / "tf_mini.csv")
    assert set(features["track_id"]) == set(mini["track_id_clean"])


def test_mini_set_stops_at_a_session_border(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "MINI_SESSIONS", 7)
    out = tmp_path / "raw"
    simulator.main(Config(out=str(out), **SMALL))
    mini = pd.read_csv(out / "data_mini" / "training_set" / "log_mini.csv")
    assert mini["session_id"].nunique() == 7
    assert (mini.groupby("session_id").size() == mini.groupby("session_id")["session_length"].first()).all()


def test_same_bytes_whatever_the_processes_and_other_bytes_for_another_seed(folder, tmp_path):
    simulator.main(Config(out=str(tmp_path / "two"), **SMALL | {"processes": 2}))
    assert digests(tmp_path / "two") == digests(folder)
    simulator.main(Config(out=str(tmp_path / "seed"), **SMALL | {"seed": 1}))
    other = digests(tmp_path / "seed")
    assert all(other[name] != digest for name, digest in digests(folder).items())


def test_gzip_holds_the_same_rows(folder, tmp_path):
    simulator.main(Config(out=str(tmp_path / "gz"), gzip=True, **SMALL))
    for name in ("training_set_0/log_0_20180715_000000000000.csv", "test_set/log_input_20180716_000000000000.csv"):
        packed = (tmp_path / "gz" / f"{name}.gz").read_bytes()
        assert gzip.decompress(packed) == (folder / name).read_bytes()
        assert packed[4:8] == b"\0\0\0\0"  # no time: the same bytes at any hour
    mini = "data_mini/training_set/log_mini.csv"
    assert (tmp_path / "gz" / mini).read_bytes() == (folder / mini).read_bytes()


def test_chunks_do_not_show(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "CHUNK_SESSIONS", 33)
    simulator.main(Config(out=str(tmp_path / "chunks"), **SMALL))
    frame = pd.read_csv(tmp_path / "chunks" / "training_set_0" / "log_0_20180715_000000000000.csv")
    assert frame["session_id"].nunique() == 100
    assert frame["session_id"].is_monotonic_increasing


def test_hidden_truth_lets_the_world_be_rebuilt(folder):
    truth = json.loads((folder / "hidden_truth" / "world.json").read_text())
    again = build_world(seed=truth["seed"], n_tracks=truth["n_tracks"])
    ids = pd.read_csv(folder / "track_features" / "tf_000000000000.csv")["track_id"]
    assert ids.isin(again.track_ids.astype(str)).all()
    listeners = pq.read_table(folder / "hidden_truth" / "training_set_0" / "listeners_20180715.parquet").to_pandas()
    log = pd.read_csv(folder / "training_set_0" / "log_0_20180715_000000000000.csv")
    assert listeners["session_id"].tolist() == log["session_id"].unique().tolist()
    assert truth["rows"] == sum(len(pd.read_csv(path)) for path in folder.glob("*_set*/log_*"))


def test_sessions_are_spread_evenly():
    config = Config(sessions=1001, test_sessions=5, days=3, splits=2)
    jobs = list(simulator.jobs_of(config))
    training = [job.n_sessions for job in jobs if job.split < log_files.TEST]
    assert sum(training) == 1001
    assert set(training) == {166, 167}
    assert sum(job.n_sessions for job in jobs if job.split == log_files.TEST) == 5


def test_bad_sizes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="--tracks 999"):
        build_world(seed=0, n_tracks=999)
    with pytest.raises(UserError, match="--splits 11"):
        Config(splits=11)
    with pytest.raises(UserError, match="exists already"):
        simulator.main(Config(out=str(tmp_path), **SMALL))
