"""From public data to a dataset: what Last.fm, Yambda, RecBole's and session-rec's files become in its arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_datasets_of_sources import prepared, whole
from test_yambda import write as write_listens

from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data import schema
from utils.data.dataset import Dataset
from utils.datapreprocessing import main
from utils.preprocessing.options import Config

HOUR = 3600


def tracks_of(dataset: Dataset, split: str) -> list[str]:
    return np.asarray(dataset.track_names)[dataset.split(split).tracks].tolist()


def test_yambda(tmp_path: Path) -> None:
    """Three plays in ten sessions: two at one time, in the order of the file, and one that is skipped at once."""
    rows = [
        (10, 2 * HOUR * n + time, item, organic, ratio, length)
        for n in range(10)
        for time, item, organic, ratio, length in ((0, 9, 1, 100, 200), (0, 7, 0, 3, 200), (5, 8, 0, 49, 100))
    ]
    write_listens(tmp_path / "yambda" / "flat" / "50m" / "listens.parquet", rows)
    vectors = pa.table({"item_id": [7, 8, 9], "embed": [[1.0, 2.0], [2.0, 2.0], [3.0, 5.0]]})
    pq.write_table(vectors, tmp_path / "yambda" / "embeddings.parquet")
    pq.write_table(pa.table({"artist_id": [5], "item_id": [9]}), tmp_path / "yambda" / "artist_item_mapping.parquet")
    dataset, info, out = prepared(tmp_path, "yambda", tmp_path / "yambda")
    names = np.asarray(dataset.track_names)
    assert names[whole(dataset, "tracks")].tolist() == ["9", "7", "8"] * 10
    assert whole(dataset, "skips").tolist() == [schema.SKIP_PLAYED, schema.SKIP_1, schema.SKIP_2] * 10
    np.testing.assert_array_equal(whole(dataset, "seconds")[:3], np.float32([200, 6, 49]))
    assert whole(dataset, "times")[:4].tolist() == [0, 0, 5_000_000, 2 * HOUR * 1_000_000]
    contexts = whole(dataset, "log")[:3, list(schema.LOG_COLUMNS).index("context_type")]
    words = ("catalog", "personalized_playlist", "personalized_playlist")
    assert contexts.tolist() == [1 + schema.CONTEXT_TYPES.index(word) for word in words]
    assert info["features"]["mean"] == [2.0, 3.0]
    assert {row["track_id"]: row["artist"] for row in pq.read_table(out / "tracks.parquet").to_pylist()}["9"] == "5"


def test_lastfm(tmp_path: Path) -> None:
    """The newest play is the first line, and a clock shows minutes only: plays of a minute come out as they were."""
    lines = [f"Air,,Song {title},{day:02} May 2024 10:{minute}\n" for day in range(1, 13) for title, minute in
             (("C", 20), ("A", 20), ("B", 21))]  # fmt: skip
    path = tmp_path / "me.csv"
    path.write_text("".join(lines[::-1]))
    dataset, info, _ = prepared(tmp_path, "lastfm", path)
    names = np.asarray(dataset.track_names)
    assert names[whole(dataset, "tracks")].tolist() == ["air | song c", "air | song a", "air | song b"] * 12
    assert not info["has_skips"]
    assert len(dataset.split("test").offsets) > 1


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("item_id:token\tindex:float\na\t1\n", ": a column of features may not be called 'index'; rename or remove it"),
        (
            "item_id:token\ttempo:float\nA\t1\n",
            " has none of the tracks that are played (such as 'a'); it belongs to another dataset; give this one's, or "
            "move it away",
        ),
        ("item_id:token\tvector:float_seq\na\tnan\n", ": the lists of column vector hold no numbers"),
    ],
)
def test_faults_and_notes_of_features_name_the_file_that_was_given(tmp_path: Path, item: str, said: str) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    (folder / "m.inter").write_text(head + "".join(f"u\ta\t{10_000 * n}\nu\ta\t{10_000 * n + 9}\n" for n in range(12)))
    (folder / "m.item").write_text(item)
    config = Config(out=tmp_path / "out", plays=folder, source="recbole", min_count=1)
    with pytest.raises(UserError) as caught:
        main(config)
    assert str(caught.value) == f"{folder}/m.item{said}"
    (folder / "m.item").write_text("item_id:token\ttempo:float\na\t1\n")
    main(config)
    assert "track features: 1 numbers a track, of m.item" in read_json(tmp_path / "out" / "dataset.json")["notes"]


def splits_of(tmp_path: Path, source: Any, path: Path) -> dict[str, list[str]]:
    out = tmp_path / "dataset"
    main(Config(out=out, plays=path, source=source, min_count=1, min_session_length=1, overwrite=True))
    dataset = Dataset.open(out)
    return {split: tracks_of(dataset, split) for split in schema.SPLITS}


def test_splits_of_recbole(tmp_path: Path) -> None:
    """A user is in all three files; test is before train in time, and stays test."""
    folder = tmp_path / "music"
    folder.mkdir()
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    (folder / "m.train.inter").write_text(head + "u\ta\t100\nu\tb\t90\nv\ta\t5\n")
    (folder / "m.valid.inter").write_text(head + "u\tb\t110\n")
    (folder / "m.test.inter").write_text(head + "u\ta\t1\nu\ta\t2\n")
    assert splits_of(tmp_path, "recbole", folder) == {"train": ["a", "b", "a"], "valid": ["b"], "test": ["a", "a"]}


def test_splits_of_session_rec(tmp_path: Path) -> None:
    """Without a part for it, validation is the last tenth of training, a session here."""
    folder = tmp_path / "music"
    folder.mkdir()
    head = "SessionId\tTime\tItemId\n"
    (folder / "m_train_full.txt").write_text(head + "2\t100\tx\n1\t90\ty\n1\t90\tx\n")
    (folder / "m_test.txt").write_text(head + "3\t110\ty\n")
    assert splits_of(tmp_path, "session-rec", folder) == {"train": ["y", "x"], "valid": ["x"], "test": ["y"]}
