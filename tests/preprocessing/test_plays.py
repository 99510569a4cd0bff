"""Any table of plays to a dataset folder, and to the ids of a dataset that exists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from plays_door import read_sessions

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.datapreprocessing import main
from utils.preprocessing import split_rules
from utils.preprocessing.options import Config, PlaysColumns
from utils.preprocessing.outside_plays import read_plays

A, B, C, D = "abcd"
SESSIONS = PlaysColumns(track="song", session="s", position="at")


def write_plays(path: Path, sessions: list[list[str]], **columns: list) -> Path:
    """Sessions of songs as a table `s`, `at`, `song`, its rows in disorder; `columns` go with the plays in order."""
    rows = [(s, at, song) for s, songs in enumerate(sessions) for at, song in enumerate(songs, start=1)]
    frame = pd.DataFrame(rows, columns=["s", "at", "song"]).assign(**columns).sample(frac=1, random_state=0)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def prepare(path: Path, columns: PlaysColumns, **options) -> tuple[dict, Path]:
    out = path.parent / "data"
    return main(Config(out=out, plays=path, plays_columns=columns, overwrite=True, **options)), out


TEN = [[A, B], [B, A, C], [A, A], [C, B, A], [D, A], [A, B], [B, C], [A, B, C, A], [C, C], [A, D, B]]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_sessions_by_column_in_numeric_order(tmp_path: Path, suffix: str) -> None:
    sessions = [*TEN, [B, B]]  # session 10 comes after 9, not after 1
    info, out = prepare(write_plays(tmp_path / f"plays{suffix}", sessions), SESSIONS, min_count=2)
    # Training plays: a 8, b 6, c 4, d 1; so d is unknown everywhere.
    assert read_sessions(out) == {
        "train": {str(i): [("?" if song == D else song) for song in songs] for i, songs in enumerate(sessions[:9])},
        "valid": {"9": [A, "?", B]},
        "test": {"10": [B, B]},
    }
    tracks = pd.read_parquet(out / "tracks.parquet")
    assert tracks["track_id"].tolist() == [A, B, C]
    assert tracks["train_plays"].tolist() == [9, 6, 6]
    assert info["protocol"] == "plays"
    assert (info["has_skips"], info["has_log"]) == (False, False)
    assert info["features"]["names"] == []
    assert info["sources"][0]["rows"] == sum(len(songs) for songs in sessions)
    assert set(np.load(out / "train" / "skips.npy").tolist()) == {schema.SKIP_UNKNOWN}
    assert np.load(out / "train" / "log.npy").shape == (info["splits"]["train"]["events"], 12)
    assert not np.load(out / "train" / "log.npy").any()
    assert {row["reason"]: row["rows"] for row in info["funnel"]} == {
        "read": 27,
        "dropped: fewer than 2 plays": 0,
        "kept": 27,
        "kept, of which a track outside the vocabulary": 2,
    }


def test_sessions_by_user_and_gap(tmp_path: Path) -> None:
    hour = 3600
    plays = [("u", 0, A), ("v", 10, B), ("u", 600, B), ("u", 600 + 1801, C), ("u", 600 + 1801 + 1800, A)]
    plays += [("v", 20, C), ("v", 5 * hour, A), ("v", 5 * hour + 1, A), ("u", 9 * hour, D), ("u", 10 * hour, A)]
    plays += [("u", 10 * hour + 5, B)]
    frame = pd.DataFrame(plays, columns=["user", "when", "song"]).sample(frac=1, random_state=1)
    columns = PlaysColumns(track="song", user="user", time="when")
    frame.to_csv(tmp_path / "seconds.csv", index=False)
    info, out = prepare(tmp_path / "seconds.csv", columns, min_count=1)
    expected = {
        "train": {
            "u_1": [A, B],
            "v_1": [B, C],
            "u_2": [C, A],
        },  # by start; 1,800 seconds of silence do not end a session
        "valid": {"v_2": [A, A]},
        "test": {"u_4": [A, B]},  # u_3 is a single play
    }
    assert read_sessions(out) == expected
    assert {r["reason"]: (r["rows"], r["sessions"]) for r in info["funnel"]}["dropped: fewer than 2 plays"] == (1, 1)
    assert info["splits"]["train"]["days"] == ["19700101", "19700101"]

    frame["when"] = pd.to_datetime(frame["when"], unit="s", origin="2026-01-31 20:00")
    for name in ("text.csv", "time.parquet"):
        write = frame.to_csv if name.endswith("csv") else frame.to_parquet
        write(tmp_path / name, index=False)
        info, out = prepare(tmp_path / name, columns, min_count=1)
        assert read_sessions(out) == expected
        assert [info["splits"][split]["days"][0] for split in ("train", "valid", "test")] == [
            "20260131",
            "20260201",
            "20260201",
        ]


def test_one_listener_needs_no_user_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"t": [0, 1, 5000, 5001, 9000, 9001], "song": list("ababab")})
    frame.to_csv(tmp_path / "plays.csv", index=False)
    _, out = prepare(tmp_path / "plays.csv", PlaysColumns(track="song", time="t", gap=600), min_count=1)
    assert read_sessions(out)["test"] == {"session_3": [A, B]}


def test_skips_in_many_spellings(tmp_path: Path) -> None:
    skips = ["True", "false", "1", "0", "", "maybe"] + ["TRUE"] * 19
    path = write_plays(tmp_path / "plays.csv", TEN, skipped=skips)
    info, out = prepare(path, PlaysColumns(track="song", session="s", position="at", skip="skipped"))
    assert info["has_skips"]
    yes, no, unknown = schema.SKIP_2, schema.SKIP_PLAYED, schema.SKIP_UNKNOWN
    assert np.load(out / "train" / "skips.npy")[:7].tolist() == [yes, no, yes, no, unknown, unknown, yes]


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_typed_skips(tmp_path: Path, dtype: type) -> None:
    path = write_plays(tmp_path / "plays.parquet", TEN, skipped=np.arange(25) % 2 == 0)
    frame = pd.read_parquet(path)
    frame.astype({"skipped": dtype}).to_parquet(path)
    _, out = prepare(path, PlaysColumns(track="song", session="s", position="at", skip="skipped"), min_count=1)
    assert np.load(out / "train" / "skips.npy")[:4].tolist() == [schema.SKIP_2, schema.SKIP_PLAYED] * 2


def test_long_sessions_are_cut_and_their_pieces_stay_together(tmp_path: Path) -> None:
    sessions = [[A, B]] * 6 + [[A, B, C, D, A, B, C]] + [[B, A]] * 2
    info, out = prepare(write_plays(tmp_path / "p.csv", sessions), SESSIONS, min_count=1, max_session_length=3)
    found = read_sessions(out)
    # Eleven pieces, one of them too short; the split would fall between 6 and 6/2.
    assert {split: list(found[split]) for split in found} == {
        "train": ["0", "1", "2", "3", "4", "5", "6", "6/2"],
        "valid": ["7"],
        "test": ["8"],
    }
    assert found["train"]["6"] == [A, B, C]
    assert found["train"]["6/2"] == [D, A, B]
    assert {r["reason"]: (r["rows"], r["sessions"]) for r in info["funnel"]}["dropped: fewer than 2 plays"] == (1, 1)
    plays = pd.read_parquet(out / "tracks.parquet").set_index("track_id")["train_plays"]
    assert plays.to_dict() == {A: 8, B: 8, C: 1, D: 1}


def test_split_sessions_keeps_pieces_together() -> None:
    def split(names: str, *fractions: float) -> str:
        continues = np.array([name == before for name, before in zip(names, " " + names, strict=False)])
        valid, test = fractions
        found = split_rules.split_in_order(
            np.zeros(len(names), np.int64), continues, valid_fraction=valid, test_fraction=test
        )
        return "".join("-vt"[part] for part in found)

    assert split("abcdefghij", 0.1, 0.2) == "-------vtt"
    assert split("abccccghij", 0.4, 0.3) == "------" + "vttt"
    assert split("ab", 0.1, 0.1) == "--"  # too few
    assert split("abccccc", 0.3, 0.3) == "-------"
    assert split("ab", 0, 0.1) == "-t"
    assert split("ab", 0.1, 0) == "-v"


def test_split_within_each_listener() -> None:
    """Listener 0 has ten sessions, 1 three, the last of which is in two pieces, 2 two."""
    group = np.array([0, 1, 0, 0, 1, 0, 2, 0, 0, 0, 1, 1, 0, 2, 0, 0])
    continues = np.zeros(16, bool)
    continues[11] = True
    found = split_rules.split_in_order(group, continues, valid_fraction=0.1, test_fraction=0.2)
    t, v, x = split_rules.TRAIN, split_rules.VALID, split_rules.TEST
    assert found[group == 0].tolist() == [t] * 7 + [v, x, x]
    assert found[group == 1].tolist() == [t, t, t, t]  # its last two pieces are one session: nothing is left for test
    assert found[group == 2].tolist() == [t, t]
    assert found.dtype == np.uint8


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "plays").mkdir()
    whole = pd.read_csv(write_plays(tmp_path / "all.csv", TEN))
    whole[whole["s"] < 4].to_csv(tmp_path / "plays" / "1.csv", index=False)
    whole[whole["s"] >= 4][["song", "at", "s"]].to_csv(tmp_path / "plays" / "2.csv", index=False)
    _, out = prepare(tmp_path / "all.csv", SESSIONS)
    expected = read_sessions(out)
    info, out = prepare(tmp_path / "plays", SESSIONS)
    assert read_sessions(out) == expected
    assert [source["file"] for source in info["sources"]] == ["1.csv", "2.csv"]
    whole.to_parquet(tmp_path / "plays" / "3.parquet")
    with pytest.raises(UserError, match="both CSV and Parquet"):
        prepare(tmp_path / "plays", SESSIONS)


def test_read_plays_with_the_ids_of_another_dataset(tmp_path: Path) -> None:
    path = write_plays(tmp_path / "plays.csv", [[B, "new", A], [A], [C, B]])
    tracks = pa.table({"track_id": [A, B, C], "index": pa.array([5, 6, 7], pa.int32())})
    chunk, notes = read_plays(path, SESSIONS, tracks)
    assert chunk.session_id.to_pylist() == ["0", "2"]
    assert chunk.lengths.tolist() == [3, 2]
    assert chunk.tracks.tolist() == [6, vocab.UNK, 5, 7, 6]
    assert chunk.tracks.dtype == np.int32
    assert chunk.log.shape == (5, len(schema.LOG_COLUMNS))
    assert notes == ["dropped: fewer than 2 plays: 1 plays"]
    chunk, _ = read_plays(path, SESSIONS, tracks, shortest=1)
    assert chunk.lengths.tolist() == [3, 1, 2]


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (PlaysColumns(track="song"), "--plays_columns.session, or --plays_columns.time"),
        (PlaysColumns(track="song", session="s"), "--plays_columns.position or --plays_columns.time"),
        (PlaysColumns(track="song", time="at", position="at"), "it needs --plays_columns.session"),
        (
            PlaysColumns(session="s", position="at"),
            r"no column 'track_id' \(--plays_columns.track\); it has s, at, song",
        ),
        (PlaysColumns(track="song", session="s", position="song"), r"plays.csv, line 2: song is '[abcd]'"),
        (PlaysColumns(track="song", session="s", time="song"), r"plays.csv, line 2: song is '[abcd]'"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: PlaysColumns, message: str) -> None:
    path = write_plays(tmp_path / "plays.csv", TEN)
    with pytest.raises(UserError, match=message):
        prepare(path, columns)
    assert not (tmp_path / "data").exists()


def test_damaged_tables(tmp_path: Path) -> None:
    path = write_plays(tmp_path / "plays.csv", TEN)
    whole = path.read_text().splitlines()

    def error(lines: list[str], name: str = "plays.csv") -> str:
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError) as caught:
            prepare(tmp_path / name, SESSIONS)
        return str(caught.value)

    assert f"{path}, line 5: song is ''" in error([*whole[:4], "3,9,", *whole[4:]])
    assert f"{path}, line 5: at is 'x'" in error([*whole[:4], "3,x,a", *whole[4:]])
    assert "session 9 has 2 plays at position 3; remove all but one" in error([*whole, "9,3,a"])
    ragged = error([*whole[:6], "9", *whole[6:]])
    assert str(path) in ragged
    assert "line 7: 1 fields where the header has 3" in ragged
    assert "has no plays" in error(whole[:1])
    assert "no session of 2 plays" in error([whole[0], "1,1,a", "2,1,b"])
    assert "no track has 5 plays" in error([whole[0], *(f"{i},{j},{i}{j}" for i in range(9) for j in (1, 2))])
    (tmp_path / "broken.parquet").write_text("PAR1 no")
    with pytest.raises(UserError, match=r"broken.parquet cannot be read"):
        prepare(tmp_path / "broken.parquet", SESSIONS)
    with pytest.raises(UserError, match=r"expected \.csv, \.csv\.gz or \.parquet"):
        prepare(write_plays(tmp_path / "plays.txt", TEN), SESSIONS)
    with pytest.raises(UserError, match="does not exist"):
        prepare(tmp_path / "nowhere.csv", SESSIONS)


def test_an_unreadable_time_in_parquet_is_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"when": ["2026-01-01 10:00", "yesterday"] * 5, "song": list("ab") * 5})
    frame.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(
        UserError, match=r"p.parquet, row 2: when is 'yesterday', not a time.*; correct or remove .* \(5 of them\)"
    ):
        prepare(tmp_path / "p.parquet", PlaysColumns(track="song", time="when"))


def test_the_command_names_the_columns(tmp_path: Path) -> None:
    info, out = prepare(write_plays(tmp_path / "plays.csv", TEN), SESSIONS)
    assert info["command"].endswith(
        "--plays_columns.track song --plays_columns.session s --plays_columns.position at --overwrite True"
    )
    assert json.loads((out / "dataset.json").read_text()) == info
