"""Yambda: the columns of its files become plays, levels of skips, contexts, features; what is dropped, and errors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exported import read_plays

from utils.core.errors import UserError
from utils.preprocessing.sources import yambda
from utils.preprocessing.sources.plays import SourcePlays

TYPES = {
    "uid": pa.uint32(),
    "timestamp": pa.uint32(),
    "item_id": pa.uint32(),
    "is_organic": pa.uint8(),
    "played_ratio_pct": pa.uint16(),
    "track_length_seconds": pa.uint32(),
}
"""Of listens.parquet."""
ROWS = [
    (10, 0, 7, 1, 100, 200),
    (10, 5, 7, 0, 9, 200),
    (10, 5, 9, 0, 10, 205),
    (10, 5, 7, 1, 49, 200),
    (10, 30, 8, 1, 50, 120),
    (10, 90, 8, 1, 89, 120),
    (20, 25_999_995, 7, 1, 90, 200),
    (20, 26_000_000, 9, 0, 159, 205),
    (20, 26_000_000, 9, 0, 0, 205),
    (20, 26_000_000, 7, 0, 4, 245),
    (20, 26_000_000, 7, 0, 4, 250),
]


def write(path: Path, rows: list[tuple] = ROWS, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: pa.array(values, TYPES[name]) for name, values in zip(TYPES, zip(*rows, strict=True), strict=True)}
    pq.write_table(pa.table(columns | more), path, row_group_size=4)
    return path


def plays(path: Path, **options: Any) -> tuple[SourcePlays, list[dict]]:
    """What the source hands over, and its rows."""
    return read_plays(yambda, path, path.parent / f"work_{len(list(path.parent.iterdir()))}", **options)


def message(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        plays(path, **options)
    return str(caught.value)


def test_listens(tmp_path: Path) -> None:
    """Seconds since the start; the order of the file, ties or not; seconds played are share times length."""
    path = write(tmp_path / "listens.parquet")
    found, rows = plays(path)
    start = datetime(1970, 1, 1, tzinfo=UTC)
    assert [(row["user"], row["track"], row["time"]) for row in rows] == [
        (user, track, start + timedelta(seconds=time)) for user, time, track, *_ in ROWS
    ]
    assert [row["skip"] for row in rows] == [
        "not_skipped", "skip_2", "skip_2", "skip_2", "skip_3", "skip_3", "not_skipped", "not_skipped", "skip_1",
        "skip_1", "skip_2",
    ]  # fmt: skip
    assert [round(row["seconds"], 4) for row in rows] == [200, 18, 20.5, 98, 60, 106.8, 180, 325.95, 0, 9.8, 10]
    mine, theirs = "catalog", "personalized_playlist"
    assert [row["context"] for row in rows] == [
        mine,
        theirs,
        theirs,
        mine,
        mine,
        mine,
        mine,
        theirs,
        theirs,
        theirs,
        theirs,
    ]
    assert found.sources == [{"file": "listens.parquet", "bytes": path.stat().st_size, "rows": 11}]
    assert (found.dropped, found.features, found.per_listener) == ([], None, False)
    assert set(rows[0]) == {"user", "time", "track", "skip", "seconds", "context"}
    assert found.columns.skip == "skip"
    assert found.columns.artist == ""


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        (0.1, "not_skipped skip_2 skip_3 skip_3 skip_3 skip_3 not_skipped not_skipped skip_1 skip_1 skip_2"),
        (1.0, "not_skipped skip_2 skip_2 skip_2 skip_2 skip_2 skip_2 not_skipped skip_1 skip_1 skip_2"),
    ],
)
def test_skip_below(tmp_path: Path, below: float, expected: str) -> None:
    found, rows = plays(write(tmp_path / "listens.parquet"), skip_below=below)
    assert [row["skip"] for row in rows] == expected.split()
    assert f"a play of less than {below:g} of the track counts as skipped" in found.notes


def test_only_listens_of_multi_event_are_plays(tmp_path: Path) -> None:
    rows = [(10, 0, 7, 1, 100, 200), (10, 5, 7, 1, None, None), (10, 5, 8, 0, None, 100), (20, 5, 8, 0, None, None)]
    kinds = pa.array(["listen", "like", "listen", "unlike"]).dictionary_encode()
    found, rows = plays(write(tmp_path / "multi_event.parquet", rows, event_type=kinds))
    assert [(row["track"], row["skip"], row["seconds"]) for row in rows] == [(7, "not_skipped", 200.0), (8, None, None)]
    assert sorted(found.dropped) == [
        ("an event that is no listen: like", 1),
        ("an event that is no listen: unlike", 1),
    ]
    only_likes = write(tmp_path / "likes.parquet", ROWS[:1], event_type=["like"])
    assert "has no plays of tracks: 1 an event that is no listen: like" in message(only_likes)


def test_folders(tmp_path: Path) -> None:
    """The file is found wherever the dataset has it; listens.parquet goes before multi_event.parquet."""
    write(tmp_path / "a" / "flat" / "50m" / "listens.parquet")
    write(tmp_path / "a" / "flat" / "50m" / "multi_event.parquet", ROWS[:1], event_type=["listen"])
    for folder in ("a", "a/flat/50m"):
        assert len(plays(tmp_path / folder)[1]) == 11
    assert plays(tmp_path / "a")[0].sources[0]["file"] == "flat/50m/listens.parquet"
    write(tmp_path / "a" / "flat" / "500m" / "listens.parquet")
    assert "holds several datasets; give one of" in message(tmp_path / "a")
    assert "flat/500m/listens.parquet" in message(tmp_path / "a")
    (tmp_path / "b").mkdir()
    assert "has neither listens.parquet nor multi_event.parquet" in message(tmp_path / "b")
    assert "does not exist" in message(tmp_path / "c")


def test_artists_and_albums_are_looked_up(tmp_path: Path) -> None:
    """Of several artists of a track, the first; a track that the mapping lacks has none."""
    folder = tmp_path / "yambda"
    write(folder / "flat" / "50m" / "listens.parquet")
    pairs = {"artist_id": [31, 32, 33], "item_id": [8, 7, 7]}
    pq.write_table(pa.table(pairs), folder / "artist_item_mapping.parquet")
    pq.write_table(pa.table({"album_id": [4], "item_id": [10]}), folder / "album_item_mapping.parquet")
    found, rows = plays(folder)
    assert [row["artist"] for row in rows] == [32, 32, None, 32, 31, 31, 32, None, None, 32, 32]
    assert [row["album"] for row in rows] == [None] * 11
    assert (found.columns.artist, found.columns.album, found.columns.name) == ("artist", "album", "")


def embeddings(path: Path, vectors: list[list[float] | None]) -> None:
    pq.write_table(
        pa.table({"item_id": pa.array([7, 6, 9, 8][: len(vectors)], pa.uint32()), "embed": vectors}), path
    )  # fmt: skip


def test_embeddings_of_played_tracks_are_features(tmp_path: Path) -> None:
    folder = tmp_path / "yambda"
    write(folder / "listens.parquet")
    embeddings(folder / "embeddings.parquet", [[1.0, 2.5], [0.0, 0.0], None, [3.0, 4.0]])
    found, _ = plays(folder)
    assert found.features is not None
    assert pq.read_table(found.features).to_pydict() == {"track_id": ["7", "8"], "embed": [[1.0, 2.5], [3.0, 4.0]]}
    assert "1 of 3 tracks have no embedding" in found.notes
    alone, _ = plays(folder / "listens.parquet")
    assert alone.features is None


def test_embeddings_of_another_width(tmp_path: Path) -> None:
    write(tmp_path / "y" / "listens.parquet")
    path = tmp_path / "y" / "embeddings.parquet"
    embeddings(path, [[1.0, 2.5], [0.0, 0.0], [1.0]])
    assert f"{path}, row 3: embed has 1 numbers where the first has 2" in message(tmp_path / "y")
    pq.write_table(pa.table({"item_id": [7], "embed": [1.0]}), path)
    assert f"{path}: column embed holds no lists" in message(tmp_path / "y")
    pq.write_table(pa.table({"item_id": [7], "vector": [[1.0]]}), path)
    assert f"{path} has no column 'embed'; it has item_id, vector" in message(tmp_path / "y")


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "listens.parquet"
    pq.write_table(pa.table({"uid": [1], "item_id": [1]}), path)
    assert message(path) == f"{path} has no column 'timestamp'; it has uid, item_id"
    path.write_text('[{"uid": 1}]')
    assert f"{path} cannot be read" in message(path)
    write(path, [*ROWS, (30, None, 7, 1, 100, 200)])
    assert message(path) == f"{path}, row 12: timestamp is missing; download the file again"
    lists = {name: pa.array([[values[0]]]) for name, values in zip(TYPES, zip(*ROWS, strict=True), strict=True)}
    pq.write_table(pa.table(lists | {"uid": [10]}), path)
    assert "column timestamp holds lists; give the file of flat/, not that of sequential/" in message(path)
    write(path)
    assert "a share above 0 and up to 1" in message(path, skip_below=50)
    assert "drop_incognito has no meaning for --source yambda" in message(path, drop_incognito=True)


@pytest.mark.parametrize("item", [-1, 1 << 40])
def test_a_number_that_is_no_id_is_an_error(tmp_path: Path, item: int) -> None:
    columns = dict(zip(TYPES, zip(*ROWS, strict=True), strict=True)) | {"item_id": [7, item] * 5 + [7]}
    pq.write_table(pa.table(columns), tmp_path / "listens.parquet")
    with pytest.raises(UserError, match=rf"listens\.parquet: item_id {item} is no id of the dataset"):
        read_plays(yambda, tmp_path, tmp_path / "work")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("uid", ["ten"] * 11, "column uid holds string, where whole numbers are expected"),
        ("item_id", [7.5] * 11, "column item_id holds double, where whole numbers are expected"),
        ("played_ratio_pct", ["9"] * 11, "column played_ratio_pct holds string, where numbers are expected"),
        ("played_ratio_pct", [100.0, None, -1.0] + [50.0] * 8, "row 3: played_ratio_pct is -1.0, below 0"),
        ("track_length_seconds", [200] * 9 + [-200, -5], "row 10: track_length_seconds is -200, below 0"),
        ("timestamp", [0] * 10 + [1 << 62], "cannot be read: overflow"),
    ],
)
def test_values_that_no_listen_has(tmp_path: Path, column: str, values: list, said: str) -> None:
    columns = dict(zip(TYPES, zip(*ROWS, strict=True), strict=True)) | {column: values}
    path = tmp_path / "listens.parquet"
    pq.write_table(pa.table(columns), path)
    assert said in message(path)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            {"artist_id": [31, 32], "item_id": ["8", "7"]},
            ": column item_id holds string, where whole numbers are expected",
        ),
        ({"artist_id": ["Air", "Max"], "item_id": [8, 7]}, ": column artist_id holds string, where whole numbers are"),
        (
            {"artist_id": [31, 32], "item_id": [8, -7]},
            ": item_id -7 is no id of the dataset, which are 0 to 4294967295",
        ),
        (
            {"artist_id": [31, 32], "item_id": [8, 1 << 60]},
            f": item_id {1 << 60} is no id of the dataset, which are 0 to",
        ),
        ({"artist_id": [-1, 32], "item_id": [8, 7]}, ": artist_id -1 is no id of the dataset, which are 0 to"),
        ({"artist_id": [31, None], "item_id": [8, 7]}, ", row 2: artist_id is missing; download the file again"),
    ],
)
def test_a_mapping_of_something_else(tmp_path: Path, pairs: dict[str, list], said: str) -> None:
    write(tmp_path / "y" / "listens.parquet")
    mapping = tmp_path / "y" / "artist_item_mapping.parquet"
    pq.write_table(pa.table(pairs), mapping)
    assert f"{mapping}{said}" in message(tmp_path / "y")
