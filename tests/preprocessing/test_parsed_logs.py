"""An interrupted run goes on with what is parsed already, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mssd_files
import pytest
from dataset_checks import assert_same_dataset, log_path
from mssd_files import damage_line, replace_field

from utils.core.errors import UserError
from utils.data import schema
from utils.datapreprocessing import main
from utils.preprocessing import mssd
from utils.preprocessing import parsed_logs as parts
from utils.preprocessing.options import Config


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of splits 0 and 9, 12 sessions each, 50 tracks; read only."""
    return mssd_files.write_mssd(tmp_path_factory.mktemp("raw"), n_days=5, splits=(0, 9), n_sessions=12)


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
