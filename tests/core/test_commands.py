"""Every command says what it does at once: `--help` waits for none of the libraries that only running takes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *sorted(path.stem for path in ROOT.glob("*.py")),
    *("utils.datapreprocessing", "utils.track_vectors", "utils.track_vectors.word2vec"),
    *("utils.simulator", "utils.simulator.oracle", "utils.simulator.calibration"),
]
HELP = """
import runpy, sys
name = sys.argv[1]
sys.argv = [name, "--help"]
try:
    runpy.run_module(name, run_name="__main__")
except SystemExit as stopped:
    assert stopped.code == 0
    slow = [library for library in ("torch", "sklearn") if library in sys.modules]
    print("imported:", *slow)
"""


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_no_library_that_is_slow(name):
    done = python("-c", HELP, name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("utils.synthetic", "utils.simulator"),
        ("utils.oracle", "utils.simulator.oracle"),
        ("utils.calibration", "utils.simulator.calibration"),
        ("utils.word2vec", "utils.track_vectors.word2vec"),
    ],
)
def test_a_command_that_has_moved_still_runs_and_says_so(old, new):
    done = python("-m", old, "--help")
    assert done.returncode == 0
    assert done.stderr == f"{old} has moved: python -m {new}\n"
    theirs = python("-m", new, "--help").stdout
    assert done.stdout.partition("\n\n")[2] == theirs.partition("\n\n")[2], "the same options"
