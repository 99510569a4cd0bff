"""`--features`: numbers of tracks from a second table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plays_door import COLUMNS, csv_of

from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.datapreprocessing import main
from utils.preprocessing.options import Config

LINES = [
    f"u,2026-02-{day:02d} 10:0{i},{track}\n" for day in range(1, 10) for i, track in enumerate("abcd"[: 5 - day % 2])
]
"""Nine sessions: a, b, c, d each; the vocabulary is a, b, c, d in this order."""


def made(tmp_path: Path, table: Any, *, suffix: str = ".parquet", lines: list[str] = LINES, **options: Any) -> dict:
    """`dataset.json` of `LINES` with a table of features."""
    file = tmp_path / f"features{suffix}"
    if isinstance(table, pa.Table):
        pq.write_table(table, file)
    elif suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False)
    plays = csv_of(tmp_path / "plays.csv", lines)
    options = {"min_count": 1, "features": file, "overwrite": True} | options
    return main(Config(tmp_path / "d", plays=plays, plays_columns=COLUMNS, **options))


def failing(tmp_path: Path, table: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        made(tmp_path, table, **options)
    assert not (tmp_path / "d").exists()
    return str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_columns_of_numbers_are_standardised(tmp_path: Path, suffix: str) -> None:
    """d has no row, b two of them; x has mean 2 and deviation 1 over a and b (c is empty); `mode` is a number here."""
    table = pd.DataFrame(
        {
            "title": ["B", "A", "again", "C", "Z"],
            "x": [3, 1, 100, None, 7],
            "track_id": ["b", "a", "b", "c", "z"],
            "mode": [0.0, 3.0, 50.0, 3.0, 9.0],
            "date": ["2020-01-01", "7", "", "1", "2"],
        }
    )
    info = made(tmp_path, table, suffix=suffix)
    assert info["features"] == {"names": ["x", "mode"], "mean": [2, 2], "std": [1, pytest.approx(np.sqrt(2))]}
    assert info["notes"][:4] == [
        f"track features: 2 numbers a track, of features{suffix}",
        f"columns of features{suffix} without numbers, which are left out: title, date",
        "1 repeated rows of track features dropped (the first of a track counts)",
        "1 tracks of the vocabulary have no row of features: they get the mean of the others",
    ]
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.track_names[5:].tolist() == ["a", "b", "c", "d"]
    half = 1 / np.sqrt(2)
    expected = [[0, 0]] * 5 + [[-1, half], [1, -2 * half], [0, half], [0, 0]]
    np.testing.assert_allclose(dataset.features.numpy(), expected, atol=1e-6)
    tracks = pq.read_table(tmp_path / "d" / "tracks.parquet")
    assert tracks["x"].to_pylist() == [1, 3, None, None]
    assert tracks["mode"].to_pylist() == [3, 0, 3, None]
    assert f"--features {tmp_path}/features{suffix}" in info["command"]


@pytest.mark.parametrize("dtype", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.int16())])
def test_one_column_of_lists(tmp_path: Path, dtype: pa.DataType) -> None:
    vectors = pa.array([[1, 9], [3, 5], None, [5, 7], [8, 8]], dtype)
    table = pa.table({"item": [4, 1, 2, 3, 9], "vector": vectors, "flag": [True, False, None, True, True]})
    lines = [line.translate(str.maketrans("abcd", "1234")) for line in LINES]
    info = made(tmp_path, table, lines=lines, features_track="item")
    assert info["features"]["names"] == ["vector_0", "vector_1", "flag"]
    assert info["features"]["mean"] == [3, 7, pytest.approx(2 / 3)]
    features = Dataset.open(tmp_path / "d").features.numpy()[5:]  # tracks 1, 2, 3, 4
    np.testing.assert_allclose(features[:, 0], np.array([0, 0, 2, -2]) / np.std([3, 5, 1]), atol=1e-6)
    np.testing.assert_allclose(features[:, 1], np.array([-2, 0, 0, 2]) / np.std([5, 7, 9]), atol=1e-6)
    assert "--features_track item" in info["command"]


def test_numbers_that_are_none_count_as_missing(tmp_path: Path) -> None:
    table = pd.DataFrame({"track_id": list("abcd"), "x": [1.0, np.inf, np.nan, 3.0], "same": [2.0] * 4})
    made(tmp_path, table)
    features = Dataset.open(tmp_path / "d").features.numpy()[5:]
    np.testing.assert_allclose(features, [[-1, 0], [0, 0], [0, 0], [1, 0]], atol=1e-6)


def test_many_rows_are_the_same_in_pieces(tmp_path: Path) -> None:
    """Most rows are of tracks that nobody plays; a row of each that is played stands far apart."""
    rng = np.random.default_rng(0)
    n = 200_000
    vectors = rng.standard_normal((n, 3)).astype(np.float32)
    ids = np.array([f"t{i}" for i in range(n)], object)
    ids[[70_000, 10, 199_999, 120_000, 150_000]] = ["a", "b", "c", "d", "a"]
    table = pa.table({"track_id": pa.array(ids), "v": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 3)})
    made(tmp_path, table)
    raw = pq.read_table(tmp_path / "d" / "tracks.parquet")
    found = np.stack([raw[f"v_{i}"].to_numpy() for i in range(3)], axis=1)
    np.testing.assert_array_equal(found, vectors[[70_000, 10, 199_999, 120_000]])


def test_the_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    table = pd.DataFrame({"track_id": list("abcd"), "x": [1, 2, 3, 4]}, index=[7, 3, 1, 0])
    assert made(tmp_path, table)["features"]["names"] == ["x"]
    table.to_csv(tmp_path / "with_index.csv")
    assert made(tmp_path, table, features=tmp_path / "with_index.csv")["features"]["names"] == ["x"]


def test_tables_of_features_that_are_none(tmp_path: Path) -> None:
    some = pd.DataFrame({"track_id": list("abcd"), "x": [1, 2, 3, 4]})
    text = some.assign(x="high")
    where = "/features.parquet"
    assert failing(tmp_path, text) == f"{where} has no column of numbers beside 'track_id'; it has track_id, x"
    assert "no column of numbers" in failing(tmp_path, text, suffix=".csv")
    assert failing(tmp_path, some, features_track="id") == (
        f"{where} has no columns 'id' (--features_track); it has track_id, x"
    )
    assert failing(tmp_path, some, features_track="x").startswith(f"{where} has no column of numbers beside 'x'")
    ragged = some.assign(v=[None, [1.0, 2.0], [1.0], [3.0, 4.0]])
    assert failing(tmp_path, ragged) == (f"{where}, row 3: v has 1 numbers where row 2 has 2; give every track as many")
    assert "the lists of column v hold no numbers" in failing(tmp_path, some.assign(v=[np.zeros(0)] * 4))
    assert "has 2 columns of lists (v, w); keep one" in failing(tmp_path, some.assign(v=[[1.0]] * 4, w=[[1.0]] * 4))
    assert failing(tmp_path, some.assign(v=[[1.0, 2.0]] * 4, v_1=0)) == (
        f"{where}: the numbers of a column of lists would be called 'v_1', as another column is; rename that one"
    )
    assert f"{where}: a column of features may not be called 'index'" in failing(tmp_path, some.assign(index=1))
    assert failing(tmp_path, some.assign(track_id=["w", "x", "y", "z"])) == (
        f"{where} has none of the tracks that are played (such as 'a'); --features_track names the column of their "
        "ids, now 'track_id'"
    )
    assert failing(tmp_path, some.assign(track_id=["a", "b", None, "d"])) == (
        f"{where}, row 3: track_id is None, no track; correct or remove the row"
    )
    twice = pa.table([["a"], [1], [2]], names=["track_id", "x", "x"])
    assert "has several columns 'x'" in failing(tmp_path, twice)
    assert failing(tmp_path, some, features=tmp_path / "none.csv") == (
        "--features /none.csv: expected a .csv, .csv.gz or .parquet file"
    )
    with pytest.raises(UserError, match="--features_track is for --features"):
        made(tmp_path, some, features=None, features_track="id")
