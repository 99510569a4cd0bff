"""MSSD's files to a dataset folder: what is kept, where it goes, how it is coded, and what damage is reported."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mssd_files
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mssd_files import replace_field

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.datapreprocessing import main
from utils.preprocessing import mssd, mssd_dataset, split_rules
from utils.preprocessing import parsed_logs as parts
from utils.preprocessing.dataset_writer import NpyWriter, standardise
from utils.preprocessing.options import Config, command_line

SPLITS = ("train", "valid", "test")


def log_path(folder: Path, *, split: int = 0, day: int = 0) -> Path:
    return folder / f"training_set_{split}" / schema.log_file(split, mssd_files.days(day + 1)[-1])


def read_split(folder: Path) -> pd.DataFrame:
    """A split of a dataset as one row a play."""
    sessions = pd.read_parquet(folder / "sessions.parquet")
    offsets = np.load(folder / "offsets.npy")
    frame = sessions.loc[np.repeat(np.arange(len(sessions)), np.diff(offsets))].reset_index(drop=True)
    frame["track"] = np.load(folder / "tracks.npy")
    frame["skip"] = np.load(folder / "skips.npy")
    log = np.load(folder / "log.npy")
    return frame.assign(**{f"log_{name}": log[:, i] for i, name in enumerate(schema.LOG_COLUMNS)})


def expected_plays(frames: dict[str, pd.DataFrame], index: dict[str, int]) -> pd.DataFrame:
    """The same from the raw frames (file name to log), play by play, in plain Python."""
    rows = []
    for name, frame in frames.items():
        for row in frame.sort_values(["session_id", "session_position"]).to_dict("records"):
            skip = schema.SKIP_NO_FLAG
            if row["not_skipped"]:
                skip = schema.SKIP_PLAYED
            for flag, level in (("skip_3", schema.SKIP_3_ONLY), ("skip_2", schema.SKIP_2), ("skip_1", schema.SKIP_1)):
                skip = level if row[flag] else skip
            play = {"session_id": row["session_id"], "file": name, "skip": skip}
            play["track"] = index.get(row["track_id_clean"], vocab.UNK)
            for column in schema.LOG_COLUMNS:
                value = row[column]
                if column in mssd.CATEGORIES:
                    values = mssd.CATEGORIES[column]
                    play[f"log_{column}"] = values.index(value) + 1 if value in values else 0
                elif column in mssd.SEEKS:
                    play[f"log_{column}"] = min(value, 10) + 1
                else:
                    play[f"log_{column}"] = int(value) + 1
            rows.append(play)
    return pd.DataFrame(rows)


def funnel_of(info: dict) -> dict[str, tuple[int, int]]:
    return {row["reason"]: (row["rows"], row["sessions"]) for row in info["funnel"]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of splits 0 and 9, 12 sessions each, 50 tracks; read only."""
    return mssd_files.write_mssd(tmp_path_factory.mktemp("raw"), n_days=5, splits=(0, 9), n_sessions=12)


@pytest.fixture(scope="module")
def temporal(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "temporal"
    main(Config(raw=raw, out=out))
    return out


# -------------------------------------------------------------------------------------------------- temporal protocol


def test_temporal_holds_every_play_of_the_raw_files(raw: Path, temporal: Path) -> None:
    tracks = pd.read_parquet(temporal / "tracks.parquet")
    index = dict(zip(tracks["track_id"], tracks["index"], strict=True))
    for split, days in {"train": (0, 1, 2), "valid": (3,), "test": (4,)}.items():
        frames = {
            log_path(raw, split=s, day=day).name: mssd_files.mssd_frame(split=s, day=day, n_sessions=12)
            for day in days
            for s in (0, 9)
        }
        expected = expected_plays(frames, index)
        found = read_split(temporal / split)
        assert found["day"].unique().tolist() == [mssd_files.days(5)[day] for day in days]
        pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)
        first = found.groupby("session_id", sort=False).first()
        assert (first["premium"] == first["log_premium"]).all()
        assert (first["context_type"] == first["log_context_type"]).all()
        assert (first["shuffle"] == first["log_hist_user_behavior_is_shuffle"]).all()


def test_vocabulary_counts_training_days_and_is_in_order_of_plays(raw: Path, temporal: Path) -> None:
    training = [mssd_files.mssd_frame(split=s, day=day, n_sessions=12) for s in (0, 9) for day in range(3)]
    plays = pd.concat(training)["track_id_clean"].value_counts()
    expected = sorted(((-n, track) for track, n in plays.items() if n >= 5))
    tracks = pd.read_parquet(temporal / "tracks.parquet")
    assert tracks["track_id"].tolist() == [track for _, track in expected]
    assert tracks["train_plays"].tolist() == [-n for n, _ in expected]
    assert tracks["index"].tolist() == list(range(5, 5 + len(expected)))
    in_arrays = np.bincount(np.load(temporal / "train" / "tracks.npy"), minlength=5 + len(expected))
    assert in_arrays[5:].tolist() == tracks["train_plays"].tolist()
    assert 0 < in_arrays[vocab.UNK] == sum(n for n in plays if n < 5)
    info = json.loads((temporal / "dataset.json").read_text())
    assert info["vocabulary"]["hash"] == vocab.vocabulary_hash(tracks["track_id"])
    assert info["vocabulary"]["n_ids"] == 5 + len(expected)


def test_dataset_json_accounts_for_every_row(raw: Path, temporal: Path) -> None:
    info = json.loads((temporal / "dataset.json").read_text())
    rows = sum(len(mssd_files.mssd_frame(split=s, day=d, n_sessions=12)) for s in (0, 9) for d in range(5))
    funnel = funnel_of(info)
    assert funnel["read"] == funnel["kept"] == (rows, 120)
    assert sum(split["events"] for split in info["splits"].values()) == rows
    assert [info["splits"][split]["sessions"] for split in SPLITS] == [72, 24, 24]
    assert info["splits"]["train"]["days"] == ["20180715", "20180717"]
    assert info["splits"]["test"]["days"] == ["20180719", "20180719"]
    assert len(info["sources"]) == 10
    assert info["sources"][0]["file"] == "training_set_0/log_0_20180715_000000000000.csv"
    assert sum(source["rows"] for source in info["sources"]) == rows
    assert info["log_columns"] == schema.LOG_COLUMNS
    assert (info["protocol"], info["name"], info["has_skips"], info["has_log"]) == ("temporal", "temporal", True, True)
    assert not list(temporal.glob("**/work*"))


def test_arrays_have_the_types_of_the_contract(temporal: Path) -> None:
    for split in SPLITS:
        types = {
            name: np.load(temporal / split / f"{name}.npy").dtype.str for name in ("tracks", "offsets", "skips", "log")
        }
        assert types == {"tracks": "<i4", "offsets": "<i8", "skips": "|u1", "log": "|u1"}
    matrix = np.load(temporal / "track_features.npy")
    assert matrix.dtype == np.float32
    assert matrix.shape == (pd.read_parquet(temporal / "tracks.parquet")["index"].max() + 1, 45)


def test_the_number_of_days_can_be_chosen(raw: Path, tmp_path: Path) -> None:
    info = main(Config(raw=raw, out=tmp_path / "d", valid_days=2, test_days=2))
    assert [info["splits"][split]["days"] for split in SPLITS] == [
        ["20180715", "20180715"],
        ["20180716", "20180717"],
        ["20180718", "20180719"],
    ]
    with pytest.raises(UserError, match="leave none to train on"):
        main(Config(raw=raw, out=tmp_path / "e", valid_days=3, test_days=2))


def test_the_command_line_gives_the_same_dataset_again(raw: Path) -> None:
    config = Config(raw=raw, out=Path("data/x"), min_count=3, valid_days=2)
    assert (
        command_line(config)
        == f"python -m utils.datapreprocessing --out data/x --raw {raw} --min_count 3 --valid_days 2"
    )


# ---------------------------------------------------------------------------------------- original and session protocols


def test_original_protocol_keeps_full_sessions_of_known_tracks(raw: Path, tmp_path: Path) -> None:
    info = main(Config(raw=raw, out=tmp_path / "seed", protocol="original", min_count=5, valid_fraction=0.3))
    split_0 = pd.concat([mssd_files.mssd_frame(split=0, day=day, n_sessions=12) for day in range(5)])
    plays = split_0["track_id_clean"].value_counts()
    known = set(plays[plays >= 5].index)
    tracks = pd.read_parquet(tmp_path / "seed" / "tracks.parquet")
    assert set(tracks["track_id"]) == known
    assert tracks["train_plays"].tolist() == plays[tracks["track_id"]].tolist()

    def kept(frame: pd.DataFrame) -> set[str]:
        full = frame[frame["session_length"] == 20]
        good = full.groupby("session_id")["track_id_clean"].agg(lambda ids: set(ids) <= known)
        return set(good.index[good])

    split_9 = pd.concat([mssd_files.mssd_frame(split=9, day=day, n_sessions=12) for day in range(5)])
    ids = {s: set(pd.read_parquet(tmp_path / "seed" / s / "sessions.parquet")["session_id"]) for s in SPLITS}
    assert ids["test"] == kept(split_9)
    assert ids["train"] | ids["valid"] == kept(split_0)
    assert not ids["train"] & ids["valid"]
    share = split_rules.session_share(pa.array(sorted(ids["valid"])))
    assert len(share) > 0
    assert (share < 0.3).all()
    for split in SPLITS:
        assert (np.load(tmp_path / "seed" / split / "tracks.npy") >= vocab.N_SPECIAL).all()
        assert (np.diff(np.load(tmp_path / "seed" / split / "offsets.npy")) == 20).all()
    dropped = sum(row["sessions"] for row in info["funnel"] if row["reason"].startswith("dropped"))
    assert dropped + sum(len(found) for found in ids.values()) == 120
    assert funnel_of(info)["dropped: a track outside the vocabulary"][1] > 0


def test_original_protocol_reads_two_splits_of_sixty_days() -> None:
    logs = [mssd.LogFile(Path(f"{s}{d}"), s, d) for d in mssd_files.days(66) for s in range(10)]
    chosen = split_rules.original_logs(logs)
    assert len(chosen) == 120
    assert {log.split for log in chosen} == {0, 9}
    assert max(log.day for log in chosen) == mssd_files.days(60)[-1]
    with pytest.raises(UserError, match=r"split 9 \(log_9_\*.csv\); there are none"):
        split_rules.original_logs([log for log in logs if log.split < 9])


def test_session_share_is_a_fixed_number() -> None:
    # First 8 bytes of BLAKE2b over 2^64: a change here would move sessions between the splits of published datasets.
    assert split_rules.session_share(pa.array(["0_a", "38_b"])).tolist() == pytest.approx(
        [0.3234179, 0.5373657], abs=1e-7
    )


def test_mini_set_is_one_day_split_by_session(tmp_path: Path) -> None:
    frame = mssd_files.mssd_frame(day=38, n_sessions=60)
    mssd_files.write_log(tmp_path / "data_mini" / "training_set" / "log_mini.csv", frame)
    features = mssd_files.features_frame(50).rename(columns=str)
    (tmp_path / "data_mini" / "track_features").mkdir()
    features.to_csv(tmp_path / "data_mini" / "track_features" / "tf_mini.csv", index=False)
    info = main(Config(raw=tmp_path / "data_mini", out=tmp_path / "d", protocol="session"))
    assert info["splits"]["train"]["days"] == ["20180822", "20180822"]
    assert sum(info["splits"][split]["sessions"] for split in SPLITS) == 60
    assert len(info["features"]["names"]) == 45
    ids = pd.read_parquet(tmp_path / "d" / "test" / "sessions.parquet")["session_id"]
    share = split_rules.session_share(pa.array(ids))
    assert ((share >= 0.1) & (share < 0.2)).all()
    with pytest.raises(UserError, match="--protocol session"):
        main(Config(raw=tmp_path / "data_mini", out=tmp_path / "e"))


# ---------------------------------------------------------------------------------------------------- input variety


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


def write_days(folder: Path, frame: pd.DataFrame) -> Path:
    """`frame` as the first of three days; the others are whole."""
    mssd_files.write_mssd(folder, n_days=3, n_sessions=12)
    mssd_files.write_log(log_path(folder), frame)
    return folder


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


# --------------------------------------------------------------------------------------------------------- features


def test_standardise_by_hand() -> None:
    raw = pd.DataFrame({"duration": [1.0, 3.0, np.inf], "tempo": [7.0, 7.0, np.nan], "key": [0.0, 11.0, np.nan]})
    raw["mode"], raw["time_signature"] = ["major", "minor", None], [4.0, 3.0, 4.0]
    features = standardise(pa.Table.from_pandas(raw))
    keys, signatures = [f"key_{i}" for i in range(12)], [f"time_signature_{i}" for i in range(6)]
    assert features.names == ["duration", "tempo", *keys, "mode", *signatures]
    assert (features.matrix[:5] == 0).all()
    rows = pd.DataFrame(features.matrix[5:], columns=features.names)
    assert rows["duration"].tolist() == [-1, 1, 0]  # mean 2, std 1; what is no number is the mean
    assert rows["tempo"].tolist() == [0, 0, 0]
    assert rows["mode"].tolist() == [1, 0, 0]
    assert rows["key_0"].tolist() == [1, 0, 0]
    assert rows["key_11"].tolist() == [0, 1, 0]
    assert rows["time_signature_4"].tolist() == [1, 0, 1]
    assert rows.filter(like="key_").sum(axis=1).tolist() == [1, 1, 0]
    assert features.mean == [2, 7, *[0] * 19]
    assert features.std == [1] * 21


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


# ----------------------------------------------------------------------------------------------------------- damage


def damage_line(path: Path, line: int, change) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


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
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError) as error:
        main(Config(raw=tmp_path, out=tmp_path / "d"))
    assert str(path) in str(error.value)
    assert "unpack or download it again" in str(error.value)
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


def test_options_that_contradict_each_other(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    for config, message in [
        (Config(out=out), "either --raw .* or --plays"),
        (Config(out=out, raw=raw, plays=raw), "either --raw .* or --plays"),
        (Config(out=out, raw=raw, min_count=-1), "--min_count -1: must be 0 or more"),
        (Config(out=out, raw=raw, protocol="session", valid_fraction=0.5, test_fraction=0.5), "leave nothing to train"),
        (Config(out=out, raw=raw, protocol="session", test_fraction=0.0), "--test_fraction 0.0"),
        (
            Config(out=out, raw=raw, test_fraction=0.2),
            "--test_fraction is for session, plays; it means nothing to temporal",
        ),
        (
            Config(out=out, raw=raw, protocol="original", test_days=2),
            "--test_days is for temporal; it means nothing to seed",
        ),
        (Config(out=out, plays=raw, protocol="original"), "is for MSSD's files"),
        (Config(out=out, plays=raw, max_session_length=1), "is below --min_session_length"),
        (Config(out=out, plays=raw, workers=3), "--workers is for temporal, seed, session; it means nothing to plays"),
        (Config(out=Path("/"), raw=raw), "--out / is no place for a dataset"),
        (Config(out=out, raw=raw, min_count=10**6), "no track has 1000000 plays"),
        (Config(out=out, raw=raw, memory_limit="much"), "memory_limit 'much'"),
        (Config(out=out, raw=raw, workers=-1), "--workers -1"),
        (Config(out=raw, raw=raw), "exists already"),
        (Config(out=next(raw.rglob("*.csv")) / "d", raw=raw), "may you not write there"),
    ]:
        with pytest.raises(UserError, match=message):
            main(config)
    assert not out.exists()


@pytest.mark.parametrize(("bytes_a_file", "left"), [(1000, []), (9000, ["d.parts"])])
def test_a_full_disk_is_an_error_and_leaves_whole_parts_only(
    raw: Path, tmp_path: Path, bytes_a_file: int, left: list[str]
) -> None:
    code = (
        "import resource, sys; from utils.datapreprocessing import *;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file}, {bytes_a_file}));"
        "sys.argv[1:] = ['--raw', sys.argv[1], '--out', sys.argv[2]]; cli(main, Config, description='')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(raw), str(tmp_path / "d")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is the disk full" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == left
    assert ("10 parsed files are kept" in done.stderr) == bool(left)


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.fixture
def read_logs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the logs that are parsed, as they are."""
    names = []
    read = mssd.read_log

    def recording(path: Path) -> mssd.Log:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(mssd, "read_log", recording)
    return names


def assert_same_dataset(found: Path, expected: Path) -> None:
    """Byte for byte, but for the name and the command."""
    names = {str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file()}
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == names
    for name in names - {"dataset.json"}:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    infos = [json.loads((folder / "dataset.json").read_text()) for folder in (found, expected)]
    own = {"name", "command"}
    assert infos[0].keys() == infos[1].keys()
    for key in infos[0].keys() - own:
        assert infos[0][key] == infos[1][key], key


def test_a_failed_run_goes_on_with_what_is_parsed(tmp_path: Path, read_logs: list[str], capsys) -> None:
    raw = mssd_files.write_mssd(tmp_path / "raw", n_days=5, n_sessions=12)
    main(Config(raw=raw, out=tmp_path / "whole"))
    good = log_path(raw, day=3).read_bytes()
    damage_line(log_path(raw, day=3), 40, replace_field("skip_1", "maybe"))
    out = tmp_path / "d"
    with pytest.raises(UserError, match="line 40"):
        main(Config(raw=raw, out=out, workers=1))
    assert not out.exists()
    assert "3 parsed files are kept in" in capsys.readouterr().err
    log_path(raw, day=3).write_bytes(good)
    read_logs.clear()
    main(Config(raw=raw, out=out, workers=1))
    assert read_logs == [log_path(raw, day=day).name for day in (3, 4)]
    assert f"3 of 5 files are parsed already: taken from {tmp_path / 'd.parts'}" in capsys.readouterr().out
    assert not (tmp_path / "d.parts").exists()
    assert not list(tmp_path.glob(".d*"))
    assert_same_dataset(out, tmp_path / "whole")


def test_parts_serve_every_protocol_and_option(raw: Path, tmp_path: Path, read_logs: list[str]) -> None:
    for options in (
        {"protocol": "original", "min_count": 5},
        {"protocol": "session"},
        {"valid_days": 2, "min_count": 3},
    ):
        out = tmp_path / "d"
        with pytest.raises(UserError, match="no track has 1000000 plays"):
            main(Config(raw=raw, out=out, min_count=10**6))
        read_logs.clear()
        main(Config(raw=raw, out=out, **options))
        assert read_logs == []
        main(Config(raw=raw, out=tmp_path / "whole", overwrite=True, **options))
        assert len(read_logs) == 10
        assert_same_dataset(out, tmp_path / "whole")
        shutil.rmtree(out)


def touch(log: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(log, ns=(0, 0))


def rewrite(log: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other content of the same size and time."""
    state = log.stat()
    damage_line(log, 3, lambda line: line.replace("True", "true"))
    os.utime(log, ns=(state.st_atime_ns, state.st_mtime_ns))


def change_code(log: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the other parts, too, were of another version; but only this one is."""
    found = json.loads((part / "part.json").read_text())
    found["log"]["code"] = "another"
    (part / "part.json").write_text(json.dumps(found))


def cut_off(log: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power failure."""
    (part / "log.npy").write_bytes(b"")


def garble(log: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (part / "part.json").write_text("[]")


def exchange(log: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of another day."""
    shutil.rmtree(part)
    shutil.copytree(part.with_name(part.name.replace("0716", "0717")), part)


@pytest.mark.parametrize("change", [touch, rewrite, change_code, cut_off, garble, exchange])
def test_a_part_of_something_else_is_made_again(raw: Path, tmp_path: Path, read_logs, monkeypatch, change) -> None:
    mine = tmp_path / "raw"
    shutil.copytree(raw, mine)
    main(Config(raw=mine, out=tmp_path / "whole"))
    with pytest.raises(UserError, match="no track has"):
        main(Config(raw=mine, out=tmp_path / "d", min_count=10**6))
    log = log_path(mine, day=1)
    change(log, tmp_path / "d.parts" / log.stem, monkeypatch)
    read_logs.clear()
    main(Config(raw=mine, out=tmp_path / "d"))
    assert read_logs == [log.name]
    assert_same_dataset(tmp_path / "d", tmp_path / "whole")


def test_the_code_of_a_part_is_every_file_that_decides_over_it() -> None:
    before = parts.code_version()
    parts.code_version.cache_clear()
    assert parts.code_version() == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mssd, "__file__", schema.__file__)
        parts.code_version.cache_clear()
        assert parts.code_version() != before
    parts.code_version.cache_clear()


def test_a_folder_of_others_is_not_taken_for_parts(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "d.parts").mkdir()
    (tmp_path / "d.parts" / "novel.txt").write_text("Chapter 1")
    with pytest.raises(UserError, match=r"novel.txt is no part of a dataset; move it away"):
        main(Config(raw=raw, out=tmp_path / "d"))
    assert (tmp_path / "d.parts" / "novel.txt").read_text() == "Chapter 1"


def test_two_runs_do_not_share_parts(raw: Path, tmp_path: Path) -> None:
    with (
        parts.parts_folder(tmp_path / "d"),
        pytest.raises(UserError, match="another process is making"),
    ):
        main(Config(raw=raw, out=tmp_path / "d"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_no_dataset_and_goes_on(
    tmp_path: Path, number: signal.Signals, read_logs: list[str]
) -> None:
    raw = mssd_files.write_mssd(tmp_path / "raw", n_days=3, n_sessions=12)
    main(Config(raw=raw, out=tmp_path / "whole"))
    code = (
        "import signal, sys, time; from utils.preprocessing import mssd; from utils.datapreprocessing import *;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # in the background of a shell it is ignored
        "read = mssd.read_log; mssd.read_log = lambda path: time.sleep(2 * ('20180717' in path.name)) or read(path);"
        "sys.argv[1:] = ['--raw', sys.argv[1], '--out', sys.argv[2], '--workers', '1'];"
        "cli(main, Config, description='')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(raw), str(tmp_path / "d")], stderr=subprocess.PIPE, text=True
    )
    second = tmp_path / "d.parts" / log_path(raw, day=1).stem / "part.json"
    deadline = time.monotonic() + 60
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert second.exists()
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert not (tmp_path / "d").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "files are kept in" in words
        assert "the same command goes on from there" in words
        assert not list(tmp_path.glob(".d*"))
    else:
        assert process.returncode == -signal.SIGTERM  # killed on the spot, in the middle of things
    read_logs.clear()
    main(Config(raw=raw, out=tmp_path / "d"))
    assert set(read_logs) <= {log_path(raw, day=2).name}
    assert not (tmp_path / "d.parts").exists()
    assert_same_dataset(tmp_path / "d", tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------ arrays


def test_npy_writer_equals_numpy(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.uint8).reshape(10, 3)
    writer = NpyWriter(tmp_path / "a.npy", np.uint8, width=3)
    writer.append(values[:4])
    writer.append(values[4:4])
    writer.append(values[4:])
    writer.close()
    assert (np.load(tmp_path / "a.npy") == values).all()
    assert (np.load(tmp_path / "a.npy", mmap_mode="r")[9] == [27, 28, 29]).all()
    empty = NpyWriter(tmp_path / "b.npy", np.int64)
    empty.close()
    assert np.load(tmp_path / "b.npy").shape == (0,)


def test_the_engine_works_within_a_small_memory_limit(raw: Path, temporal: Path, tmp_path: Path) -> None:
    main(Config(raw=raw, out=tmp_path / "d", memory_limit="100MB"))
    for split in SPLITS:
        pd.testing.assert_frame_equal(read_split(tmp_path / "d" / split), read_split(temporal / split))
