"""MSSD's files to a dataset folder: what is kept, where it goes, how it is coded."""

from __future__ import annotations

import json
from pathlib import Path

import mssd_files
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dataset_checks import SPLITS, funnel_of, log_path, read_split

from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.datapreprocessing import main
from utils.preprocessing import mssd, split_rules
from utils.preprocessing.options import Config, command_line


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


# --------------------------------------------------------------------------------------- original and session protocols


def test_the_original_protocol_was_called_seed(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--raw", str(raw), "--out", str(tmp_path / "d"), "--min_count", "5", "--valid_fraction", "0.3"]
    named = parse_config(Config, [*arguments, "--protocol", "original"])
    assert capsys.readouterr().err == ""
    config = parse_config(Config, [*arguments, "--protocol", "seed"])
    assert capsys.readouterr().err == "--protocol seed is called --protocol original now\n"
    assert config == named
    info = main(config)
    assert info["protocol"] == "original"
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["protocol"] == "original"


def test_original_protocol_keeps_full_sessions_of_known_tracks(raw: Path, tmp_path: Path) -> None:
    info = main(Config(raw=raw, out=tmp_path / "original", protocol="original", min_count=5, valid_fraction=0.3))
    split_0 = pd.concat([mssd_files.mssd_frame(split=0, day=day, n_sessions=12) for day in range(5)])
    plays = split_0["track_id_clean"].value_counts()
    known = set(plays[plays >= 5].index)
    tracks = pd.read_parquet(tmp_path / "original" / "tracks.parquet")
    assert set(tracks["track_id"]) == known
    assert tracks["train_plays"].tolist() == plays[tracks["track_id"]].tolist()

    def kept(frame: pd.DataFrame) -> set[str]:
        full = frame[frame["session_length"] == 20]
        good = full.groupby("session_id")["track_id_clean"].agg(lambda ids: set(ids) <= known)
        return set(good.index[good])

    split_9 = pd.concat([mssd_files.mssd_frame(split=9, day=day, n_sessions=12) for day in range(5)])
    ids = {s: set(pd.read_parquet(tmp_path / "original" / s / "sessions.parquet")["session_id"]) for s in SPLITS}
    assert ids["test"] == kept(split_9)
    assert ids["train"] | ids["valid"] == kept(split_0)
    assert not ids["train"] & ids["valid"]
    share = split_rules.session_share(pa.array(sorted(ids["valid"])))
    assert len(share) > 0
    assert (share < 0.3).all()
    for split in SPLITS:
        assert (np.load(tmp_path / "original" / split / "tracks.npy") >= vocab.N_SPECIAL).all()
        assert (np.diff(np.load(tmp_path / "original" / split / "offsets.npy")) == 20).all()
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
            "--test_days is for temporal; it means nothing to original",
        ),
        (Config(out=out, plays=raw, protocol="original"), "is for MSSD's files"),
        (Config(out=out, plays=raw, max_session_length=1), "is below --min_session_length"),
        (
            Config(out=out, plays=raw, workers=3),
            "--workers is for temporal, original, session; it means nothing to plays",
        ),
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


def test_the_engine_works_within_a_small_memory_limit(raw: Path, temporal: Path, tmp_path: Path) -> None:
    main(Config(raw=raw, out=tmp_path / "d", memory_limit="100MB"))
    for split in SPLITS:
        pd.testing.assert_frame_equal(read_split(tmp_path / "d" / split), read_split(temporal / split))
