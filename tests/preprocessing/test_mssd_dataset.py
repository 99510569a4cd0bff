"""Input of many kinds: spelling, incomplete sessions, unknown values; features, and the whole catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import mssd_files
import numpy as np
import pandas as pd
import pytest
from dataset_checks import SPLITS, funnel_of, log_path, read_split, write_days

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.datapreprocessing import main
from utils.preprocessing.options import Config


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of splits 0 and 9, 12 sessions each, 50 tracks; read only."""
    return mssd_files.write_mssd(tmp_path_factory.mktemp("raw"), n_days=5, splits=(0, 9), n_sessions=12)


@pytest.fixture(scope="module")
def temporal(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "temporal"
    main(Config(raw=raw, out=out))
    return out


def test_gzip_spelling_and_column_order_make_no_difference(raw: Path, temporal: Path, tmp_path: Path) -> None:
    for split in (0, 9):
        for day in range(5):
            frame = mssd_files.mssd_frame(split=split, day=day, n_sessions=12)
            frame = frame.sample(frac=1, random_state=day)[list(reversed(frame.columns))]
            flags = frame.select_dtypes(bool).columns
            spelling = [{True: "true", False: "false"}, {True: "1", False: "0"}, {True: "True", False: "False"}][
                day % 3
            ]
            frame[flags] = frame[flags].astype(object).replace(spelling)
            frame["surprise"] = "a column more"
            folder = ["training_set", f"training_set{split}", f"training_set_{split}"][day % 3]
            mssd_files.write_log(tmp_path / folder / (log_path(raw, split=split, day=day).name + ".gz"), frame)
    mssd_files.write_features(tmp_path, mssd_files.features_frame(50), files=3)
    main(Config(raw=tmp_path, out=tmp_path / "d"))
    for split in SPLITS:
        expected, found = read_split(temporal / split), read_split(tmp_path / "d" / split)
        found["file"] = found["file"].str.removesuffix(".gz")
        pd.testing.assert_frame_equal(found, expected)
    assert (np.load(tmp_path / "d" / "track_features.npy") == np.load(temporal / "track_features.npy")).all()


def test_incomplete_sessions_are_dropped_and_counted(tmp_path: Path) -> None:
    frame = mssd_files.mssd_frame(n_sessions=12)
    sessions = frame["session_id"].unique()
    lengths = frame.groupby("session_id").size()
    cut = frame.index[frame["session_id"] == sessions[0]][-1]  # the last play is missing
    hole = frame.index[frame["session_id"] == sessions[1]][3]  # so is one in the middle
    frame.loc[frame["session_id"] == sessions[2], "session_length"] += 1  # a wrong claim
    short = frame["session_id"] == sessions[3]  # nine plays, and it says so
    frame.loc[short, "session_length"] = 9
    frame = frame.drop(index=[cut, hole, *frame.index[short & (frame["session_position"] > 9)]])
    funnel = funnel_of(main(Config(raw=write_days(tmp_path, frame), out=tmp_path / "d", min_count=1)))
    incomplete = lengths[sessions[:3]].sum() - 2
    assert funnel["dropped: rows or positions missing"] == (incomplete, 3)
    assert funnel["dropped: not 10 to 20 plays"] == (9, 1)
    assert funnel["kept"] == (funnel["read"][0] - incomplete - 9, 32)
    kept = pd.read_parquet(tmp_path / "d" / "train" / "sessions.parquet")["session_id"]
    assert set(sessions) - set(kept) == set(sessions[:4])


def test_a_gap_in_the_positions_is_incomplete_though_the_count_is_right(tmp_path: Path) -> None:
    frame = mssd_files.mssd_frame(n_sessions=12)
    session = frame["session_id"] == frame.loc[frame["session_length"] < 20, "session_id"].iloc[0]
    last = frame.index[session][-1]
    frame.loc[last, "session_position"] += 1
    funnel = funnel_of(main(Config(raw=write_days(tmp_path, frame), out=tmp_path / "d")))
    assert funnel["dropped: rows or positions missing"] == (session.sum(), 1)


def test_unknown_values_get_code_0_and_are_counted(tmp_path: Path) -> None:
    frame = mssd_files.mssd_frame(n_sessions=12).astype({"skip_2": object, "premium": object})
    frame.loc[0, "context_type"] = "hologram"
    frame.loc[1, "hist_user_behavior_reason_end"] = ""
    frame.loc[2, ["skip_2", "premium"]] = ""
    frame.loc[3, "hour_of_day"] = 24
    frame.loc[4, "hist_user_behavior_n_seekfwd"] = 5000
    info = main(Config(raw=write_days(tmp_path, frame), out=tmp_path / "d"))
    assert funnel_of(info)["kept, of which an unknown category"] == (2, 1)
    plays = read_split(tmp_path / "d" / "train")
    assert plays.loc[0, "log_context_type"] == plays.loc[0, "context_type"] == 0
    assert plays.loc[1, "log_hist_user_behavior_reason_end"] == 0
    assert plays.loc[2, ["skip", "log_premium"]].tolist() == [schema.SKIP_UNKNOWN, 0]
    assert plays.loc[3, "log_hour_of_day"] == 0
    assert plays.loc[4, "log_hist_user_behavior_n_seekfwd"] == schema.MAX_SEEKS + 1


def test_features_are_those_of_the_track(temporal: Path) -> None:
    tracks = pd.read_parquet(temporal / "tracks.parquet").set_index("track_id")
    source = mssd_files.features_frame(50).set_index("track_id").loc[tracks.index]
    np.testing.assert_allclose(tracks["duration"], source["duration"], rtol=1e-6)
    assert tracks["mode"].tolist() == source["mode"].tolist()
    info = json.loads((temporal / "dataset.json").read_text())["features"]
    column = np.load(temporal / "track_features.npy")[5:, info["names"].index("acoustic_vector_7")]
    values = source["acoustic_vector_7"]
    np.testing.assert_allclose(column, (values - values.mean()) / values.std(ddof=0), rtol=1e-4, atol=1e-5)
    matrix = np.load(temporal / "track_features.npy")
    assert (matrix[:5] == 0).all()
    assert len(np.unique(matrix[5:], axis=0)) == len(tracks)


def test_missing_and_repeated_feature_rows_are_counted(tmp_path: Path) -> None:
    mssd_files.write_mssd(tmp_path, n_days=3, n_sessions=12)
    frame = mssd_files.features_frame(50)
    repeated = frame.iloc[[0, 1]].assign(duration=999.0)
    mssd_files.write_features(tmp_path, pd.concat([frame.drop(index=2), repeated]))
    info = main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert info["notes"] == [
        "2 repeated rows of track features dropped (the first of a track counts)",
        "1 tracks of the vocabulary have no row of features: they get the mean of the others",
    ]
    tracks = pd.read_parquet(tmp_path / "d" / "tracks.parquet").set_index("track_id")
    names = mssd_files.track_names(50)
    assert tracks.loc[names[0], "duration"] != 999
    assert np.isnan(tracks.loc[names[2], "duration"])
    assert (np.load(tmp_path / "d" / "track_features.npy")[tracks.loc[names[2], "index"]] == 0).all()


def test_without_features_there_are_none_and_it_is_said(tmp_path: Path) -> None:
    for day in range(3):
        mssd_files.write_log(log_path(tmp_path, day=day), mssd_files.mssd_frame(day=day, n_sessions=12))
    info = main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert info["features"] == {"names": [], "mean": [], "std": []}
    assert info["notes"] == ["no track_features/*.csv: tracks have no audio features"]
    assert np.load(tmp_path / "d" / "track_features.npy").shape == (info["vocabulary"]["n_ids"], 0)


# ------------------------------------------------------------------------------------------------ the whole catalogue


@pytest.mark.parametrize("protocol", ["temporal", "original", "session"])
def test_the_whole_catalogue_is_the_vocabulary(tmp_path: Path, protocol: str) -> None:
    """Of tracks 0 to 299 some are played, 200 to 399 have features, track 350 twice."""
    raw = mssd_files.write_mssd(tmp_path / "raw", n_days=4, splits=(0, 9), n_sessions=12, n_tracks=300)
    frame = mssd_files.features_frame(400)
    repeated = frame.iloc[[350]].assign(duration=999.0)
    mssd_files.write_features(raw, pd.concat([frame.iloc[:199:-1], repeated]), files=3)
    info = main(Config(raw=raw, out=tmp_path / "all", protocol=protocol, min_count=0))
    main(Config(raw=raw, out=tmp_path / "played", protocol=protocol, min_count=1))
    tracks, played = (pd.read_parquet(tmp_path / name / "tracks.parquet") for name in ("all", "played"))

    n = len(played)
    assert 100 < n < 300
    same = ["index", "track_id", "train_plays"]
    pd.testing.assert_frame_equal(tracks[same][:n], played[same])
    catalogue = mssd_files.track_names(400)[200:]
    assert tracks["track_id"][n:].tolist() == sorted(set(catalogue) - set(played["track_id"]))
    assert (tracks["train_plays"][n:] == 0).all()
    assert tracks["index"].tolist() == list(range(5, 5 + len(tracks)))
    assert info["vocabulary"]["tracks"] == len(tracks)
    assert info["vocabulary"]["min_count"] == 0
    without = (~tracks["track_id"].isin(catalogue)).sum()
    assert info["notes"] == [
        "1 repeated rows of track features dropped (the first of a track counts)",
        f"{without} tracks of the vocabulary have no row of features: they get the mean of the others",
        f"{len(tracks) - n} tracks of the vocabulary have no training plays",
    ]
    source = frame[200:].set_index("track_id")["duration"].reindex(tracks["track_id"])
    np.testing.assert_allclose(tracks["duration"], source, rtol=1e-6)
    features = np.load(tmp_path / "all" / "track_features.npy")
    standardised = (source - source.mean()) / source.std(ddof=0)
    np.testing.assert_allclose(features[5:, 0], standardised.fillna(0), rtol=1e-4, atol=1e-5)

    ids = dict(zip(tracks["track_id"], tracks["index"], strict=True))
    logs = {path.name: pd.read_csv(path) for path in raw.rglob("log_*.csv")}
    n_new = 0
    for split in SPLITS:
        found = read_split(tmp_path / "all" / split)
        for file, plays in found.groupby("file", sort=False):
            source = logs[file][logs[file]["session_id"].isin(plays["session_id"])]
            source = source.sort_values(["session_id", "session_position"])
            assert plays["track"].tolist() == [ids.get(track, vocab.UNK) for track in source["track_id_clean"]]
        n_new += (found["track"] >= 5 + n).sum()
        assert protocol != "original" or (found["track"] != vocab.UNK).all()
    assert n_new > 0, "validation and test know tracks that nobody played in training"


def test_the_whole_catalogue_needs_one(tmp_path: Path) -> None:
    for day in range(3):
        mssd_files.write_log(log_path(tmp_path, day=day), mssd_files.mssd_frame(day=day, n_sessions=12))
    with pytest.raises(UserError, match=r"track_features/\*.csv, and .* has none; use --min_count 1"):
        main(Config(raw=tmp_path, out=tmp_path / "d", min_count=0))
    with pytest.raises(UserError, match=r"which a table of plays does not have; use --min_count 1"):
        main(Config(plays=tmp_path, out=tmp_path / "d", min_count=0))
    assert not (tmp_path / "d").exists()
