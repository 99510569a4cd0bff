"""Tables of session-rec and GRU4Rec: columns in any order, splits by the names of files, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported import read_plays

from utils.core.errors import UserError
from utils.preprocessing.sources import session_rec
from utils.preprocessing.sources.plays import SourcePlays

HEAD = "SessionId\tTime\tItemId\n"


def plays(path: Path) -> tuple[SourcePlays, list[dict]]:
    """What the source hands over, and its rows."""
    return read_plays(session_rec, path, path.parent / f"work_{len(list(path.parent.iterdir()))}")


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        plays(path)
    return str(caught.value)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "SessionId\tTime\tItemId\n1\t1396808691.5\t7\n1\t1396808691.5\t3\n2\t1396808692\t7\n",
        "ItemId,Category,SessionId,Time\n7,0,1,1396808691.5\n3,,1,1396808691.5\n7,0,2,1396808692\n",
        "session_id;item_id;created_at\n1;7;2014-04-06T18:24:51.5Z\n1;3;2014-04-06 18:24:51.5\n2;7;1396808692\n",
    ],
)
def test_columns_by_their_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "clicks.txt").write_text(text)
    found, rows = plays(tmp_path / "clicks.txt")
    assert [(row["session"], row["track"], row["time"].timestamp()) for row in rows] == [
        ("1", "7", 1396808691.5),
        ("1", "3", 1396808691.5),
        ("2", "7", 1396808692.0),
    ]
    assert (found.columns.session, found.columns.split, found.columns.user) == ("session", "", "")
    assert found.sources == [{"file": "clicks.txt", "bytes": len(text.encode()), "rows": 3}]


def test_without_times_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("SessionId,UserId,ItemId\nb,u,7\na,v,3\nb,u,1\n")
    found, rows = plays(tmp_path / "lists.csv")
    assert [(row["session"], row["user"], row["position"], row["track"]) for row in rows] == [
        ("b", "u", 0.0, "7"),
        ("a", "v", 1.0, "3"),
        ("b", "u", 2.0, "1"),
    ]
    assert found.columns.time == ""


PARTS = {
    "rsc15_train_full__txt": HEAD + "1\t10\t7\n2\t20\t8\n",
    "rsc15_train_tr__txt": HEAD + "1\t10\t7\n",
    "rsc15_train_valid__txt": HEAD + "2\t20\t8\n",
    "rsc15_test__txt": HEAD + "3\t30\t9\n",
}


def test_splits_are_kept(tmp_path: Path) -> None:
    """Of the parts for tuning, train_full is what the others are made of, so it is not read."""
    folder = write(tmp_path / "all", **PARTS)
    found, rows = plays(folder)
    assert [(row["track"], row["split"]) for row in rows] == [("7", "train"), ("8", "valid"), ("9", "test")]
    assert [source["file"] for source in found.sources] == [
        "rsc15_train_tr.txt",
        "rsc15_train_valid.txt",
        "rsc15_test.txt",
    ]
    (folder / "rsc15_train_tr.txt").unlink()
    found, rows = plays(folder)
    assert [(row["track"], row["split"]) for row in rows] == [("7", "train"), ("8", "train"), ("9", "test")]
    assert found.columns.split == "split"


def test_splits_with_users(tmp_path: Path) -> None:
    head = "user_id\tsession_id\titem_id\tcreated_at\n"
    parts = {"train": "1", "test": "4", "train_valid": "2", "test_valid": "3"}
    write(tmp_path / "x", **{f"e_{part}__csv": f"{head}u\t{i}\t{i}\t10\n" for part, i in parts.items()})
    _, rows = plays(tmp_path / "x")
    assert [(row["user"], row["track"], row["split"]) for row in rows] == [
        ("u", "2", "train"),
        ("u", "3", "valid"),
        ("u", "4", "test"),
    ]


def test_slices_and_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "all")
    for number in "01":
        (folder / f"np_train_full.{number}.txt").write_text(HEAD + f"1\t10\ta{number}\n")
        (folder / f"np_test.{number}.txt").write_text(HEAD + f"2\t20\tb{number}\n")
    write(folder, **PARTS)
    assert [row["track"] for row in plays(folder / "np.1")[1]] == ["a1", "b1"]
    assert [row["track"] for row in plays(folder / "rsc15")[1]] == ["7", "8", "9"]
    assert f"give one of {folder}/np.0, {folder}/np.1, {folder}/rsc15" in message(folder)
    assert f"give one of {folder}/np.0, {folder}/np.1" in message(folder / "np")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\t10\t7\n", "line 1: no column SessionId; it has 1, 10, 7"),
        ("SessionId\tTime\n", "no column ItemId; it has SessionId, Time"),
        ('[{"SessionId": 1}]', "is JSON"),
        (HEAD, "has no plays"),
        (HEAD + "1\t10\t7\n1\t10\n", "line 3: 2 fields, not 3"),
        (HEAD + "1\t10\t7\n\t10\t7\n", "line 3: no session; correct or remove the line"),
        (HEAD + "1\tnoon\t7\n", "line 2: the time is 'noon', not one that is read"),
    ],
)
def test_errors(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert said in message(tmp_path / "a.txt")


def test_errors_of_folders(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "x")
    folder = write(tmp_path / "d")
    assert "holds no tables such as NAME_train_full.txt" in message(folder)
    write(folder, only__csv=HEAD + "1\t10\t7\n")
    assert plays(folder)[1][0]["track"] == "7"
    parts = write(tmp_path / "e", a_train_tr__txt=HEAD, a_test__txt=HEAD)
    assert "has the parts test, train_tr, which are no splits" in message(parts)


@pytest.mark.parametrize("missing", ["nan", "NaN", " ", ""])
def test_an_id_that_is_missing_is_named_with_its_line(tmp_path: Path, missing: str) -> None:
    write(tmp_path, **{"x.txt": f"{HEAD}1\t1706781600\ta\n1\t1706781660\t{missing}\n"})
    assert message(tmp_path / "x.txt") == f"{tmp_path}/x.txt, line 3: no track; correct or remove the line"
