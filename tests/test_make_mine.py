"""`make mine`: which commands it runs on which history, and what it refuses. A stand-in for Python writes them down."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/bash
printf '%s\\n' "$*" >> commands.txt
while [ $# -gt 0 ]; do
  if [ "$1" = --out ]; then mkdir -p "$2"; echo '{"has_skips": SKIPS}' > "$2/dataset.json"; fi
  if [ "$1" = --html ]; then mkdir -p "$(dirname "$2")"; touch "$2"; fi
  shift
done
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def project(tmp_path):
    """A folder with the Makefile and an installed stand-in; a history with an awkward name."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    write_python(tmp_path)
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / "my 'own' data.zip").write_text("first")
    return tmp_path


def write_python(project, *, skips="true"):
    path = project / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.replace("SKIPS", skips))
    path.chmod(0o755)


def make(project, *arguments):
    """Exit code, errors, and the commands that were run."""
    (project / "commands.txt").unlink(missing_ok=True)
    environment = os.environ | {"NAME": "a computer", "SOURCE": "of something else"}  # which some systems set
    for name in ("HISTORY", "MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # the tests may themselves run under make
        environment.pop(name, None)
    done = subprocess.run(
        ["make", "mine", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    path = project / "commands.txt"
    return done.returncode, done.stderr, path.read_text().splitlines() if path.exists() else []


def test_a_history_goes_all_the_way(project):
    code, errors, commands = make(project, "HISTORY=my 'own' data.zip", "TIME_ZONE=Europe/Paris")
    assert (code, errors) == (0, "")
    first = "-m utils.datapreprocessing --source spotify my 'own' data.zip --out data/mine --max_session_length 20"
    assert commands[0] == first
    to = "--data.folder data/mine --run.folder runs/mine"
    assert [command for command in commands if to in command] == commands[1:-2]
    assert [command.split()[0] for command in commands[1:-2]] == [
        "train_baselines.py",
        "train_baselines.py",
        "train_lstm_skip.py",
        "train_transformer_skip.py",
        "train_baselines.py",
        "train_gru_seq.py",
    ]
    assert "personal.yml" not in commands[1], "the session only"
    configs = ("baselines", "lstm_skip", "transformer_skip")
    for command, script in zip(commands[2:5], configs, strict=True):
        assert command == f"train_{script}.py --config configs/{script}/personal.yml {to}"
    assert commands[-2] == "report.py --runs runs/mine"
    assert commands[-1].startswith("-m utils.reporting.listening --data data/mine --html runs/mine/listening.html")
    assert commands[-1].endswith("--time_zone Europe/Paris")


def test_the_same_history_is_read_once_and_another_is_refused(project):
    make(project, "HISTORY=my 'own' data.zip")
    (project / "moved.zip").write_text("first")
    code, _, commands = make(project, "HISTORY=moved.zip")
    assert code == 0
    assert commands[0].startswith("train_baselines.py"), "the same bytes elsewhere are the same history"
    (project / "newer.zip").write_text("second")
    code, errors, commands = make(project, "HISTORY=newer.zip")
    assert (code, commands) == (2, [])
    assert "error: data/mine was made from another history" in errors
    assert "NAME=newer" in errors
    code, _, commands = make(project, "HISTORY=newer.zip", "NAME=newer", "SOURCE=lastfm")
    assert code == 0
    assert commands[0].startswith("-m utils.datapreprocessing --source lastfm newer.zip --out data/newer ")


def test_a_folder_is_known_by_all_its_files(project):
    folder = project / "export"
    folder.mkdir()
    (folder / "a.json").write_text("a")
    make(project, "HISTORY=export")
    assert make(project, "HISTORY=export")[0] == 0
    (folder / "b.json").write_text("b")
    assert make(project, "HISTORY=export")[0] == 2


def test_a_history_without_skips_gets_next_tracks_only(project):
    write_python(project, skips="false")
    code, _, commands = make(project, "HISTORY=my 'own' data.zip")
    assert code == 0
    assert [command.split()[0] for command in commands[1:-2]] == ["train_baselines.py", "train_gru_seq.py"]
    assert "--task seq" in commands[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: which history? make mine HISTORY=my_spotify_data.zip"),
        (["HISTORY=nowhere.zip"], "error: there is no nowhere.zip; give the path of the export"),
    ],
)
def test_without_a_history_one_line_says_so(project, arguments, said):
    code, errors, commands = make(project, *arguments)
    assert (code, commands) == (2, [])
    assert errors.startswith(said)
    assert len([line for line in errors.splitlines() if not line.startswith("make:")]) == 1


def test_a_step_that_fails_ends_it(project):
    path = project / ".venv" / "bin" / "python"
    path.write_text(path.read_text() + "exit 2\n")
    code, _, commands = make(project, "HISTORY=my 'own' data.zip")
    assert (code, len(commands)) == (2, 1)
