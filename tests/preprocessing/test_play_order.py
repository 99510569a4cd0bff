"""Which order plays have, which of them are the same, and what does not depend on how a table is written."""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from plays_door import BY_SESSION, COLUMNS, csv_of, error, funnel, make, read_sessions

import train_baselines
from utils.data import schema
from utils.data.options import DataConfig
from utils.datapreprocessing import main
from utils.preprocessing.options import Config, PlaysColumns
from utils.training.options import RunConfig

SAME_TIME = "kept, of which at the time of a neighbour"
AGAIN = "dropped: the same play again"
BY_DAY = [
    f"u{user},2026-01-{day:02d},{track}\n" for day in range(1, 13) for user, tracks in (("1", "cab"), ("2", "bca"))
    for track in tracks
]  # fmt: skip
"""Twelve days of two listeners, each day's plays in one order."""


def write_files(folder: Path, lines: list[str], cuts: list[int], suffix: str, header: str = "user,ts,track\n") -> Path:
    """Lines in their order, in several files in order of their names."""
    folder.mkdir()
    for i, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(lines)], strict=True)):
        path = csv_of(folder / f"{i:02d}.csv", lines[start:end], header)
        if suffix == "parquet":
            pd.read_csv(path, dtype=str).to_parquet(path.with_suffix(".parquet"))
            path.unlink()
    return folder


# ------------------------------------------------------------------------------------------------------- equal times


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("cuts", [[], [1, 8, 40, 41]])
def test_plays_of_one_time_keep_the_order_of_the_files(tmp_path: Path, suffix: str, cuts: list[int]) -> None:
    info, sessions = make(write_files(tmp_path / "plays", BY_DAY, cuts, suffix))
    tracks = {"u1": list("cab"), "u2": list("bca")}
    found = {name: tracks for split in sessions.values() for name, tracks in split.items()}
    assert found == {f"{user}_{day}": tracks[user] for day in range(1, 13) for user in tracks}
    assert funnel(info)[SAME_TIME] == 72


def test_the_order_of_the_file_holds_for_many_rows(tmp_path: Path) -> None:
    """More than the engine looks at together, in a file and in a row group."""
    n = 400_000
    tracks = np.random.default_rng(0).integers(0, 50_000, n)
    frame = pd.DataFrame({"user": np.arange(n) // (n // 4), "ts": "2026-01-01", "track": tracks})
    frame["ts"] = np.array(["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"])[frame["user"]]
    for name in ("p.csv", "p.parquet"):
        path = tmp_path / name
        frame.to_csv(path, index=False) if name == "p.csv" else frame.to_parquet(path, row_group_size=50_000)
        main(Config(tmp_path / "d", plays=path, plays_columns=COLUMNS, min_count=1, overwrite=True, keep_repeats=True))
        names = pd.read_parquet(tmp_path / "d" / "tracks.parquet").set_index("index")["track_id"].astype(int)
        assert np.array_equal(names.loc[np.load(tmp_path / "d" / "train" / "tracks.npy")], tracks[: n // 2])


def test_plays_of_one_time_are_counted_for_each_listener(tmp_path: Path) -> None:
    """Two listeners who play at one time share none; of three plays, two share one."""
    lines = [f"u{user},2026-01-{day:02d} 10:0{i},t{i}\n" for day in range(1, 8) for i in range(3) for user in "12"]
    assert funnel(make(csv_of(tmp_path / "p.csv", lines))[0])[SAME_TIME] == 0
    lines[-2] = "u1,2026-01-07 10:01,t2\n"
    info, sessions = make(csv_of(tmp_path / "p.csv", lines))
    assert funnel(info)[SAME_TIME] == 2
    assert {row["reason"]: row["sessions"] for row in info["funnel"]}[SAME_TIME] == 1
    assert sessions["test"]["u2_7"] == ["t0", "t1", "t2"]


def test_positions_have_no_times_to_share(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "p.csv", [f"{i},{at},a\n" for i in range(9) for at in (1, 2)], "s,at,track\n")
    info, _ = make(path, BY_SESSION)
    assert list(funnel(info)) == [
        "read",
        "dropped: fewer than 2 plays",
        "kept",
        "kept, of which a track outside the vocabulary",
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_scores_at_chance(tmp_path: Path, seed: int) -> None:
    """Random plays of 200 tracks with the day for their time: no order in them, and nothing to learn."""
    generator = np.random.default_rng(seed)
    lines = [
        f"u{user},{day:%Y-%m-%d},t{track:03d}\n"
        for user in range(20)
        for day in pd.date_range("2022-01-01", periods=100, freq="2D")
        for track in generator.integers(0, 200, 10)
    ]
    main(Config(tmp_path / "d", plays=csv_of(tmp_path / "p.csv", lines), plays_columns=COLUMNS, min_count=1))
    config = train_baselines.Config(DataConfig(str(tmp_path / "d")), RunConfig(folder=str(tmp_path / "runs")))
    results = train_baselines.main(config)
    assert len(results) == 4
    for result in results:
        assert result["scores"]["test"]["metrics"]["hr@20"]["mean"] == pytest.approx(20 / 200, abs=0.035)


# ------------------------------------------------------------------------------------------------------------ repeats


def test_plays_that_are_there_again_are_dropped_once(tmp_path: Path) -> None:
    """Two exports that overlap; the same track twice at different times, or by two listeners, is two plays."""
    lines = [f"u{user},2026-01-{day:02d} 10:0{i},a\n" for day in range(1, 9) for i in range(3) for user in "12"]
    write_files(tmp_path / "once", lines, [], "csv")
    once = make(tmp_path / "once")
    assert funnel(once[0])[AGAIN] == 0
    overlapping = [*lines[:30], *lines[20:]]
    write_files(tmp_path / "plays", overlapping, [30], "csv")
    info, sessions = make(tmp_path / "plays")
    assert sessions == once[1]
    assert (funnel(info)["read"], funnel(info)[AGAIN], funnel(info)[SAME_TIME]) == (58, 10, 0)
    info, sessions = make(tmp_path / "plays", keep_repeats=True)
    assert (funnel(info)["kept"], funnel(info)[SAME_TIME], AGAIN in funnel(info)) == (58, 20, False)
    assert sum(map(len, sessions["train"].values())) > sum(map(len, once[1]["train"].values()))


def test_a_repeat_is_told_by_the_instant(tmp_path: Path) -> None:
    lines = [f"u,2026-01-{day:02d}T10:0{i}:00Z,a\n" for day in range(1, 9) for i in range(2)]
    info, _ = make(csv_of(tmp_path / "p.csv", [*lines, "u,2026-01-03T12:01:00+02:00,a\n", "u,1767434460000,a\n"]))
    assert funnel(info)[AGAIN] == 2


def test_of_repeats_the_first_is_kept(tmp_path: Path) -> None:
    lines = [f"u,2026-01-{day:02d},{track}\n" for day in range(1, 9) for track in "abacb"]
    info, sessions = make(csv_of(tmp_path / "p.csv", lines))
    assert sessions["test"] == {"u_8": ["a", "b", "c"]}
    assert funnel(info)[AGAIN] == 16


def test_repeats_in_sessions_with_times(tmp_path: Path) -> None:
    """Where positions say the order, two plays of one position are one; of two positions, two plays."""
    lines = [f"{s},{at},2026-01-01,a\n" for s in range(9) for at in range(3)]
    columns = PlaysColumns(session="s", position="at", time="ts", track="track")
    path = csv_of(tmp_path / "p.csv", [*lines, *lines[5:9]], "s,at,ts,track\n")
    info, sessions = make(path, columns)
    assert funnel(info)[AGAIN] == 4
    assert sessions["test"] == {"8": ["a", "a", "a"]}
    by_time = PlaysColumns(session="s", time="ts", track="track")
    info, _ = make(path, by_time, min_session_length=1, min_count=1)
    assert funnel(info)[AGAIN] == 31 - 9
    other = csv_of(tmp_path / "p.csv", [*lines, "8,2,2026-01-01,b\n"], "s,at,ts,track\n")
    assert f"{other}, line 29: at is '2': session 8 has 2 plays at position 2; remove all but one" in error(
        other, columns
    )
    assert "2 plays at position 0" in error(csv_of(other, [*lines, *lines[:1]], "s,at,ts,track\n"), BY_SESSION)


# --------------------------------------------------------------------------------------------------------- properties

PLAYS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40_000), st.integers(0, 5), st.integers(0, 999)),
    min_size=20,
    max_size=60,
    unique_by=lambda play: play[:2],  # no two plays of a listener share a time
)
SPELLINGS = [
    lambda seconds: seconds,
    lambda seconds: seconds * 1000,
    lambda seconds: seconds * 10**9,
    lambda seconds: pd.Timestamp(seconds, unit="s").isoformat(),
    lambda seconds: pd.Timestamp(seconds, unit="s", tz="Asia/Kathmandu").isoformat(),
    lambda seconds: f"{pd.Timestamp(seconds, unit='s'):%d %b %Y, %H:%M:%S}",
]
NAMES = ["a", "track=7", "b[1]", "c*", "ünï"]
SKIPS = {"skip_1": 4, "true": 3, "skip_3": 2, "0": 1, "none": 0, "?": 255}
"""Words of a skip and their codes."""
ALL_COLUMNS = PlaysColumns(
    user="user", time="ts", track="track", skip="skip", seconds="seconds", name="n", artist="a", reason_start="start",
    reason_end="end", context="context", shuffle="shuffle", premium="premium",
)  # fmt: skip
OFFICIAL = {0: "train", 1: "train", 2: "valid", 3: "test", 9: "train"}
"""Of each listener."""
SPLITS: list[tuple[PlaysColumns, dict[str, Any]]] = [
    (ALL_COLUMNS, {}),
    (ALL_COLUMNS, {"split_by": "listener", "valid_fraction": 0.2}),
    (ALL_COLUMNS, {"test_fraction": 0}),
    (replace(ALL_COLUMNS, split="part"), {}),
]


def with_columns(plays: list[tuple[int, Any, int, int]]) -> pd.DataFrame:
    """Plays with a value in every column, or none: the last number of a play chooses them."""
    frame = pd.DataFrame(plays, columns=["user", "ts", "track", "word"])
    chosen = {
        "skip": list(SKIPS),
        "start": [*schema.REASONS_START, "?"],
        "end": [*schema.REASONS_END, None],
        "context": [*schema.CONTEXT_TYPES, ""],
        "shuffle": ["true", "False", None],
        "premium": ["1", "0"],
    }
    for name, words in chosen.items():
        frame[name] = [words[word % len(words)] for word in frame["word"]]
    frame["seconds"] = [word / 4 if word % 5 else None for word in frame["word"]]
    frame["n"] = [f"name {track} {word % 2}" for track, word in zip(frame["track"], frame["word"], strict=True)]
    frame["a"] = [f"artist {word % 3}" if word % 4 else None for word in frame["word"]]
    frame["part"] = frame["user"].map(OFFICIAL)
    return frame


def arrays_of(where: Path, frame: pd.DataFrame, columns: PlaysColumns = COLUMNS, **how: Any) -> dict:
    """Every array and table of the dataset made of plays: `how` says into what files they go."""
    frame["user"] = "u" + frame["user"].astype(str)
    names, suffix = how.get("names", ["plays"]), how.get("suffix", "csv")
    source = where / how.get("folder", "plays")
    source.mkdir(parents=True)
    for name, part in zip(names, np.array_split(np.arange(len(frame)), len(names)), strict=True):
        path = source / f"{name}.{suffix}"
        some = frame.iloc[part]
        if suffix == "parquet":
            some.astype({"ts": str} if some["ts"].dtype == object else {}).to_parquet(path)
        elif suffix == "csv.gz":
            path.write_bytes(gzip.compress(some.to_csv(index=False).encode()))
        else:
            some.to_csv(path, index=False)
    out = where / "out" / how.get("folder", "data")
    options = {"plays": source, "plays_columns": columns, "min_count": 1, "min_session_length": 1}
    options |= how.get("options", {})
    info = main(Config(out, **options, max_session_length=how.get("longest")))
    funnel(info)
    made: dict[str, Any] = {"sessions": read_sessions(out), "funnel": info["funnel"], "splits": info["splits"]}
    for split in info["splits"]:
        made |= {f"{split}/{path.name}": np.load(path).tobytes() for path in (out / split).glob("*.npy")}
        table = pq.read_table(out / split / "sessions.parquet")
        made[f"{split}/sessions"] = table.drop_columns(["file"]).to_pydict()
    made |= {name: pq.read_table(out / f"{name}.parquet").to_pydict() for name in ("tracks", "new_tracks")}
    return made


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    plays=PLAYS,
    order=st.randoms(use_true_random=False),
    spelling=st.sampled_from(SPELLINGS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    folder=st.sampled_from(["plays", "ts=1", "user=x", "p[l]ays", "*"]),
    suffix=st.sampled_from(["csv", "csv.gz", "parquet"]),
    longest=st.sampled_from([None, 3]),
    split=st.sampled_from(SPLITS),
)
def test_a_dataset_depends_on_plays_alone(plays, order, spelling, names, folder, suffix, longest, split):
    """Not on the order of rows, the number, kind and names of files, or the spelling of times."""
    at = [(user, 1_767_225_600 + second, *more) for user, second, *more in plays]
    at += [(9, 1_768_000_000 + 10_000 * i, 5, i) for i in range(6)]  # sessions enough for three splits
    shuffled = order.sample(at, len(at))
    spelled = [(user, spelling(second), *more) for user, second, *more in shuffled]
    columns, options = split
    how = {"longest": longest, "options": options | {"min_count": 2}}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        expected = arrays_of(Path(one), with_columns(at), columns, **how)
        files = {"names": names, "folder": folder, "suffix": suffix}
        found = arrays_of(Path(other), with_columns(spelled), columns, **files, **how)
    assert found == expected
    assert {f"train/{name}.npy" for name in ("tracks", "log", "full_ids", "times", "seconds")} < found.keys()


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    plays=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 3)), min_size=10, max_size=80),
    longest=st.sampled_from([None, 2]),
    suffix=st.sampled_from(["csv", "parquet"]),
    n_files=st.integers(1, 3),
)
def test_every_row_is_in_the_funnel_once(plays, longest, suffix, n_files):
    """With many plays of one time: what is kept is what a dictionary keeps of them, in its order."""
    plays = plays + [(9, day, 0) for day in range(31)]  # sessions enough for three splits
    plays += [(8, 0, track) for track in range(4)]  # no track is new
    first = {play: i for i, play in reversed(list(enumerate(plays)))}
    tracks: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for i, (user, day, track) in enumerate(plays):
        if first[user, day, track] == i:
            tracks.setdefault((day, user), []).append((str(track), list(SKIPS.values())[i % len(SKIPS)]))
    n = longest or len(plays)
    expected = [found[i : i + n] for _, found in sorted(tracks.items()) for i in range(0, len(found), n)]
    spelled = with_columns([(user, f"2026-01-{day + 1:02d}", track, i) for i, (user, day, track) in enumerate(plays)])
    files = {"suffix": suffix, "names": list("abc")[:n_files]}
    with tempfile.TemporaryDirectory() as folder:
        made = arrays_of(Path(folder), spelled, ALL_COLUMNS, longest=longest, **files)
    rows = {row["reason"]: row["rows"] for row in made["funnel"]}
    assert (rows["read"], rows[AGAIN], rows["kept"]) == (len(plays), len(plays) - len(first), len(first))
    assert [names for split in made["sessions"].values() for names in split.values()] == [
        [track for track, _ in found] for found in expected
    ]
    skips = b"".join(made[f"{split}/skips.npy"] for split in made["sessions"])
    assert list(skips) == [skip for found in expected for _, skip in found]
