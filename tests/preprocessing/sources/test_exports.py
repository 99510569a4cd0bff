"""Zips, folders and files of exports: what is found, what is refused, and that only a little is in memory."""

import json
import struct
import tracemalloc
import zipfile

import pytest
from exported import zipped

from utils.core.errors import UserError
from utils.preprocessing.sources import exports
from utils.preprocessing.sources.exports import JsonText, check_sizes, export_files, json_rows, lines


def rows_of(path, tmp_path):
    (file,) = export_files(path, tmp_path)
    return [row for _, row in json_rows(file)]


@pytest.mark.parametrize("name", ["../x.json", "a/../../x.json", "/etc/x.json", "C:/x.json", "a\\..\\x.json"])
def test_a_name_that_leads_out_of_the_zip_is_an_error(tmp_path, name):
    path = zipped(tmp_path / "my.zip", {name: "[]"})
    with pytest.raises(UserError, match="a name that leads out of the zip"):
        export_files(path, tmp_path)


def test_an_encrypted_zip_is_an_error(tmp_path):
    path = zipped(tmp_path / "my.zip", {"x.json": "[]"})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is encrypted; unpack it with its password"):
        export_files(path, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "flipped"])
def test_a_damaged_zip_is_an_error(tmp_path, damage):
    rows = [{"n": i, "text": f"{i * 7919 % 10007}"} for i in range(2000)]
    path = zipped(tmp_path / "my.zip", {"x.json": json.dumps(rows)})
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 255
    path.write_bytes({"cut": bytes(data[:-100]), "text": b"no zip", "flipped": bytes(data)}[damage])
    with pytest.raises(UserError, match=r"my\.zip.*(cut off|damaged|not valid JSON)"):
        rows_of(path, tmp_path)


def test_a_zip_that_unpacks_to_far_more_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "SMALL", 100_000)
    path = zipped(tmp_path / "bomb.zip", {"x.json": " " * 1_000_000})
    (file,) = export_files(path, tmp_path)
    with pytest.raises(UserError, match="would unpack to 1,000,000 bytes"):
        check_sizes([file])
    plain = zipped(tmp_path / "plain.zip", {"x.json": json.dumps(list(range(20_000)))})
    check_sizes(export_files(plain, tmp_path))
    monkeypatch.setattr(exports, "MAX_BYTES", 1_000)
    with pytest.raises(UserError, match="bytes of plays are more than the 1,000"):
        check_sizes(export_files(plain, tmp_path))


def test_a_size_that_the_zip_gives_too_small_is_an_error(tmp_path):
    path = zipped(tmp_path / "my.zip", {"x.json": json.dumps([{"n": 1}, {"n": 2}])})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 9)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"my\.zip"):
        rows_of(path, tmp_path)


def test_zips_within_zips_are_opened_and_hidden_files_are_not(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"Deep/x.json": '[{"n": 1}]', "__MACOSX/x.json": "no", ".DS_Store": "no"})
    path = zipped(tmp_path / "outer.zip", {"Some/inner.zip": inner.read_bytes(), "a.json": "[]"})
    work = tmp_path / "work"
    work.mkdir()
    found = export_files(path, work)
    assert [file.name for file in found] == ["outer.zip/Some/inner.zip/Deep/x.json", "outer.zip/a.json"]
    assert [row for _, row in json_rows(found[0])] == [{"n": 1}]
    for _ in range(4):
        path = zipped(tmp_path / "outer2.zip", {"inner.zip": path.read_bytes()})
    with pytest.raises(UserError, match="zips within zips"):
        export_files(path, work)


def test_links_are_followed_and_dead_ones_are_errors(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "x.json").write_text("[]")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked").symlink_to(real)
    assert [(file.name, file.owner) for file in export_files(folder, tmp_path)] == [("linked/x.json", "linked")]
    (folder / "dead").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="dead is a link to nothing"):
        export_files(folder, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        export_files(tmp_path / "nowhere", tmp_path)
    (folder / "dead").unlink()
    (folder / "linked" / "back").symlink_to(folder)
    with pytest.raises(UserError, match="links to a folder that it is in"):
        export_files(folder, tmp_path)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_json_is_the_same_however_it_arrives(tmp_path, monkeypatch, block):
    monkeypatch.setattr(exports, "BLOCK", block)
    rows = [{"a": '“ü🎵”\n\\"]', "b": None, "c": [1, {"d": 2.5}]}, {}, {"e": True}]
    text = "\ufeff \n" + json.dumps(rows, indent=1, ensure_ascii=False) + "\n\n"
    path = tmp_path / "x.json"
    path.write_bytes(text.encode())
    assert rows_of(path, tmp_path) == rows
    path.write_text("[ ]")
    assert rows_of(path, tmp_path) == []


def test_a_wrong_line_is_named_far_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "BLOCK", 50)
    path = tmp_path / "x.json"
    path.write_text("[\n" + '{"n": 1},\n' * 400 + '{"n": oops},\n' + '{"n": 1},\n' * 400 + '{"n": 1}\n]')
    monkeypatch.setattr(exports, "MAX_ROW", 100)
    with pytest.raises(UserError, match="line 402: not valid JSON"):
        rows_of(path, tmp_path)


def test_an_entry_without_end_is_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "BLOCK", 1000)
    monkeypatch.setattr(exports, "MAX_ROW", 5000)
    asked = []

    def read(size):
        asked.append(size)
        return b'{"a": "' + b"x" * (size - 7) if len(asked) == 1 else b"x" * size

    with pytest.raises(UserError, match="not valid JSON"):
        JsonText("x.json", read).value()
    assert len(asked) <= 7


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_values_that_python_refuses_are_errors(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text("[" + text + "]")
    with pytest.raises(UserError, match=r"not valid JSON|is no play"):
        rows_of(path, tmp_path)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "BLOCK", 1 << 16)
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"n": i, "text": "x" * 100} for i in range(60_000)]))  # 8 MB
    (file,) = export_files(path, tmp_path)
    tracemalloc.start()
    assert sum(1 for _ in json_rows(file)) == 60_000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_line_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "MAX_ROW", 100)
    path = tmp_path / "x.jsonl"
    path.write_text("{}\n" + "x" * 101)
    (file,) = export_files(path, tmp_path)
    with pytest.raises(UserError, match="line 2 has more than 100 bytes"):
        list(lines(file))


def test_an_unknown_kind_of_zip_is_an_error(tmp_path):
    path = tmp_path / "my.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.json", "[]")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(mark) + offset] = 98
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"my\.zip"):
        rows_of(path, tmp_path)
