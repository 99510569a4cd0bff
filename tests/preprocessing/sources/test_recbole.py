"""RecBole's atomic files: fields by their names, splits, sessions, names and features of items, examples, errors."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from exported import read_plays

from utils.core.errors import UserError
from utils.preprocessing.sources import recbole
from utils.preprocessing.sources.plays import SourcePlays

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def plays(path: Path) -> tuple[SourcePlays, list[dict]]:
    """What the source hands over, and its rows."""
    return read_plays(recbole, path, path.parent / f"work_{len(list(path.parent.iterdir()))}")


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        plays(path)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_interactions(tmp_path: Path) -> None:
    path = write(tmp_path / "d" / "music.inter", INTER + 'u1\t"A\t5\t978300760\nu2\tB\t3\t978300760.5\nu1\tC\t1\t0\n')
    for place in (path, path.parent):
        found, rows = plays(place)
        assert [(row["user"], row["track"], row["time"].timestamp()) for row in rows] == [
            ("u1", '"A', 978300760),
            ("u2", "B", 978300760.5),
            ("u1", "C", 0),
        ]
        assert set(rows[0]) == {"user", "time", "track"}
        assert found.sources == [{"file": "music.inter", "bytes": path.stat().st_size, "rows": 3}]
        assert (found.features, found.notes, found.per_listener) == (None, [], False)


def test_splits_are_kept(tmp_path: Path) -> None:
    """All that a user has in a file is a session there, for a session may not be in two splits."""
    for word, lines in {
        "train": "u1\tA\t1\t10\nu1\tB\t1\t20\n",
        "valid": "u1\tC\t1\t30\n",
        "test": "u2\tA\t1\t5\n",
    }.items():
        write(tmp_path / "d" / f"music.{word}.inter", INTER + lines)
    found, rows = plays(tmp_path / "d")
    assert [(row["session"], row["user"], row["track"], row["split"]) for row in rows] == [
        ("u1/train", "u1", "A", "train"),
        ("u1/train", "u1", "B", "train"),
        ("u1/valid", "u1", "C", "valid"),
        ("u2/test", "u2", "A", "test"),
    ]
    assert found.columns.split == "split"
    assert found.notes == [
        "splits are those of the files: train music.train.inter, valid music.valid.inter, test music.test.inter"
    ]
    alone, rows = plays(tmp_path / "d" / "music.train.inter")
    assert (len(rows), alone.columns.split) == (2, "")
    write(tmp_path / "d" / "music.inter", INTER)
    assert "expected one NAME.inter, or NAME.train.inter" in message(tmp_path / "d")


def test_without_times_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.inter", "user_id:token\tartist_id:token\tweight:float\nu1\t7\t3\nu2\t8\t1\nu1\t9\t2\n")
    found, rows = plays(path)
    assert [(row["session"], row["position"], row["track"]) for row in rows] == [
        ("u1", 0.0, "7"),
        ("u2", 1.0, "8"),
        ("u1", 2.0, "9"),
    ]
    assert found.notes == ["there are no times: plays are in order of the file"]


def test_items_give_names_and_features(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write(folder / "m.inter", "session_id:token\ttrack_id:token\ttimestamp:float\n1\tb\t10\n1\ta\t20\n1\tzz\t30\n")
    write(
        folder / "m.item",
        "track_id:token\tname:token_seq\tartist:token_seq\ttempo:float\tenergy:float\tvector:float_seq\tgenre:token\n"
        'a\tSay "it"\tAir\t120\tnan\t1 2\trock\nb\tnan\tMax\t90.5\t0.25\t3 4\tpop\n',
    )
    found, rows = plays(folder)
    assert [(row["track"], row["name"], row["artist"]) for row in rows] == [
        ("b", None, "Max"),
        ("a", 'Say "it"', "Air"),
        ("zz", None, None),
    ]
    assert found.features is not None
    features = pq.read_table(found.features)
    assert features.column_names == ["track_id", "tempo", "energy"]
    assert features.to_pydict() == {"track_id": ["a", "b"], "tempo": [120.0, 90.5], "energy": [None, 0.25]}
    assert found.notes == ["fields of m.item that are not used: vector"]
    assert (found.columns.session, found.columns.time, found.columns.user) == ("session", "time", "")


def test_one_sequence_of_floats_is_a_list(tmp_path: Path) -> None:
    write(tmp_path / "d" / "m.inter", INTER + "u\ta\t1\t10\n")
    write(tmp_path / "d" / "m.item", "item_id:token\tvector:float_seq\na\t0.5 -2\n")
    found, _ = plays(tmp_path / "d")
    assert found.features is not None
    assert pq.read_table(found.features).to_pydict() == {"track_id": ["a"], "vector": [[0.5, -2.0]]}
    write(tmp_path / "d" / "m.item", "item_id:token\tvector:float_seq\na\t0.5 x\n")
    assert "m.item: field vector holds something that is no number" in message(tmp_path / "d")
    write(tmp_path / "d" / "m.item", "item_id:token\tvector:float_seq\n\t1\nnan\t1\nb\t\na\t0.5 2\nc\t1 2 3\n")
    said = f"{tmp_path}/d/m.item, line 6: vector has 3 numbers where the first has 2; give every track as many"
    assert message(tmp_path / "d") == said
    write(tmp_path / "d" / "m.item", "item_id:token\ttrack_id:float\na\t3\n")
    assert message(tmp_path / "d").endswith(
        "m.item: a field of numbers may not be called 'track_id'; rename or remove it"
    )


@pytest.mark.parametrize("descending", [True, False])
def test_of_examples_only_whole_sessions_are_taken(tmp_path: Path, descending: bool) -> None:
    """Sessions 1 2 3 4, 1 2 5 and 7 8, written as their starts of two plays or more."""
    starts = [["1\t2", "1 2\t3", "1 2 3\t4"], ["1\t2", "1 2\t5"], ["7\t8"]]
    lines = [line for session in starts for line in (session[::-1] if descending else session)]
    head = "session_id:token\titem_id_list:token_seq\titem_id:token\n"
    write(tmp_path / "d" / "n.train.inter", head + "".join(f"{i}\t{line}\n" for i, line in enumerate(lines)))
    write(tmp_path / "d" / "n.test.inter", head + "0\t4 4\t4\n")
    found, rows = plays(tmp_path / "d")
    sessions: dict[str, list[str]] = {}
    for row in rows:
        assert row["position"] == len(sessions.setdefault(row["session"], []))
        sessions[row["session"]].append(row["track"])
    assert list(sessions.values()) == [["1", "2", "3", "4"], ["1", "2", "5"], ["7", "8"], ["4", "4", "4"]]
    assert [session.split("/")[0] for session in sessions] == ["train"] * 3 + ["test"]
    assert found.dropped == [("an earlier start of a session that is there as a whole", 3)]
    assert found.sources[0]["rows"] == 9 + 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id,item_id\n1,2\n", "line 1: 'user_id,item_id' is no field:type with one of the types token"),
        ("user_id:token\titem_id:int\n", "'item_id:int' is no field:type"),
        ("user_id:token\trating:float\n", "no field item_id; it has user_id, rating"),
        ("item_id:token\ttimestamp:float\na\t1\n", "neither session_id nor user_id is among the fields"),
        ("user_id:token\tuser_id:token\titem_id:token\n", "a field is named twice"),
        ('{"a": 1}', "is JSON"),
        (INTER, "has no plays"),
        (INTER + "u\ta\t1\n", "line 2: 3 fields, not 4"),
        (INTER + "u\ta\t1\t10\nu\t\t1\t10\n", "line 3: no track; correct or remove the line"),
        (INTER + "u\ta\t1\tx\n", "line 2: the time is 'x', not one that is read"),
    ],
)
def test_errors(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "m.inter", text)
    assert said in message(path)


def test_errors_of_folders(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "x")
    (tmp_path / "d").mkdir()
    assert "holds no .inter file" in message(tmp_path / "d")
    write(tmp_path / "d" / "a.inter", INTER)
    write(tmp_path / "d" / "b.inter", INTER)
    assert "holds several datasets; give one of" in message(tmp_path / "d")
    write(tmp_path / "e" / "a.train.inter", INTER)
    write(tmp_path / "e" / "a.valid.inter", INTER)
    assert "lacks NAME.train.inter or NAME.test.inter" in message(tmp_path / "e")
    write(tmp_path / "e" / "a.test.inter", "item_id:token\tuser_id:token\n")
    assert "has other fields than" in message(tmp_path / "e")
