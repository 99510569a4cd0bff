"""The door of every command: what parses, what is refused, and how it is said."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from utils.core.checks import check_at_least
from utils.core.cli import cli, parse_config
from utils.core.errors import UserError, blame
from utils.core.files import atomic_file, atomic_folder, read_json, write_json


@dataclass
class Inner:
    """Inner options."""

    lr: float = 0.1
    """Speed of learning."""
    n: int = 3
    """Number of things."""
    kind: Literal["a", "b"] = "a"
    """Which kind."""

    def __post_init__(self):
        check_at_least(self, "inner", n=1)


@dataclass
class Config:
    """Options."""

    inner: Inner = field(default_factory=Inner)
    name: str | None = None
    """A name."""


def test_defaults_arguments_and_files(tmp_path):
    assert parse_config(Config, []) == Config()
    assert parse_config(Config, ["--inner.lr", "1e-3", "--name", "x"]) == Config(Inner(lr=0.001), "x")
    path = tmp_path / "c.yml"
    path.write_text("inner:\n  lr: 1e-4\n  kind: b\n")
    assert parse_config(Config, ["--config", str(path), "--inner.n", "5"]) == Config(Inner(0.0001, 5, "b"))
    other = tmp_path / "d.yml"
    other.write_text("inner: {n: 7}\n")
    assert parse_config(Config, ["--config", str(path), "--config", str(other)]).inner == Inner(0.0001, 7, "b")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--inner.learning_rate", "1"], "learning_rate"),
        (["--inner.n", "three"], "inner.n"),
        (["--inner.n", "2.5"], "inner.n"),
        (["--inner.kind", "c"], "inner.kind"),
        (["--config", "missing.yml"], "missing.yml"),
        (["--inner.n", "0"], "inner.n is 0; it must be at least 1"),
    ],
)
def test_bad_arguments_exit_with_2(arguments, named, capsys):
    with pytest.raises(SystemExit) as caught:
        cli(lambda config: pytest.fail("ran"), Config, description="", args=arguments)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("text", ["inner:\n  lrr: 1\n", "inner:\n  n: many\n", "nonsense: 1\n"])
def test_bad_files_exit_with_2(text, tmp_path, capsys):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        cli(lambda config: pytest.fail("ran"), Config, description="", args=["--config", str(tmp_path / "c.yml")])
    assert caught.value.code == 2
    assert {"l": "lrr", "n": "inner.n"}.get(text.split()[1][0], "nonsense") in capsys.readouterr().err


def test_user_errors_are_one_line(capsys):
    def main(config):
        raise UserError("x.csv, row 3: no track; add one")

    with pytest.raises(SystemExit) as caught:
        cli(main, Config, description="", args=[])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: x.csv, row 3: no track; add one\n"


def test_interrupt_exits_with_130(capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli(main, Config, description="", args=[])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli(lambda config: 1 / 0, Config, description="", args=[])


def test_success_returns():
    seen = []
    cli(seen.append, Config, description="", args=["--name", "y"])
    assert seen == [Config(name="y")]


def test_help_has_the_docstrings(capsys):
    with pytest.raises(SystemExit) as caught:
        cli(print, Config, description="What it does.", args=["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("What it does.", "Speed of learning.", "Which kind."))


def test_print_config_is_a_config(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(print, Config, description="", args=["--inner.n", "9", "--print_config"])
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["inner"]["n"] == 9
    (tmp_path / "c.yml").write_text(text)
    assert parse_config(Config, ["--config", str(tmp_path / "c.yml")]) == Config(Inner(n=9))


def test_blame():
    with pytest.raises(UserError, match="model: d_model 5 is odd"), blame("model"):
        raise ValueError("d_model 5 is odd")
    with pytest.raises(KeyError), blame("model"):
        raise KeyError("x")


# --- Files


def test_atomic_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(TypeError), atomic_file(path) as temporary:
        temporary.write_text("two") + "fails after the writing"
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_atomic_folder(tmp_path):
    path = tmp_path / "data"
    with pytest.raises(TypeError), atomic_folder(path, holds="a") as temporary:
        (temporary / "a").write_text("half") + "fails after the writing"
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(path, holds="a") as temporary:
        (temporary / "a").write_text("one")
    with pytest.raises(UserError, match="exists already"), atomic_folder(path, holds="a"):
        pytest.fail("entered")
    with atomic_folder(path, overwrite=True, holds="a") as temporary:
        (temporary / "a").write_text("two")
    assert (path / "a").read_text() == "two"
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(path, overwrite=True, holds="a"):
        raise RuntimeError("stop")
    assert (path / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    left, busy = (tmp_path / f".set.{process}.tmp" for process in (finished.pid, os.getppid()))
    for folder in (left, busy):
        folder.mkdir()
    with atomic_folder(tmp_path / "set", holds="a"):
        assert not left.exists()
        assert busy.exists(), "its process may still write there"


def test_atomic_folder_replaces_only_its_own_kind(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    with atomic_folder(tmp_path / "photos", overwrite=True, holds="a") as temporary:  # empty: nothing is lost
        (temporary / "photo").touch()
    with (
        pytest.raises(UserError, match="photos holds no a, so it is not replaced"),
        atomic_folder(tmp_path / "photos", overwrite=True, holds="a"),
    ):
        pytest.fail("entered")
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(UserError, match="holds no a"), atomic_folder(Path("."), overwrite=True, holds="a"):
        pytest.fail("entered")
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "photo"]


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ü": [1, None, 0.1]})
    assert read_json(path) == {"ü": [1, None, 0.1]}
    assert "ü" in path.read_text(encoding="utf-8")
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(UserError, match=r"a.json, line 2: not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "b.json")
