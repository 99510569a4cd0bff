"""The project's own rules: its files agree with one another, and the code keeps its shape."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from utils.core.cli import parse_config

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONG_SCRIPTS = {"train_ddpg_seq.py": 180, "train_ddpg_skip.py": 180}
"""Scripts with a visible loop of their own."""
MAX_BYTES = 1_000_000


def requirements():
    """All requirements of pyproject.toml, the optional ones too."""
    project = PYPROJECT["project"]
    lines = project["dependencies"] + [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in lines]


def constraints():
    """Pinned name -> version of constraints.txt."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    pins = constraints()
    for requirement in requirements():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version} of constraints.txt"


def test_conda_environment_is_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PYPROJECT["project"]["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert conda == [f"python{PYPROJECT['project']['requires-python']}", "pip"]
    project = PYPROJECT["project"]
    assert pip == ["--constraint constraints.txt", *project["dependencies"], *project["optional-dependencies"]["dev"]]


def test_no_file_of_configs_is_left_out():
    """All end in .yml, so the test below sees each, and stand in a folder named after their script."""
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    assert sorted(files) == CONFIGS
    assert {len(path.relative_to(ROOT / "configs").parts) for path in files} == {2}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_show_configs_that_exist(path):
    shown = re.findall(r"--config (configs/\S+)", ast.get_docstring(ast.parse(path.read_text())) or "")
    assert shown or not path.name.startswith("train_"), "a training script shows at least one"
    assert [name for name in shown if ROOT / name not in CONFIGS] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_parses_and_is_sparse(path):
    """configs/<name>/*.yml belongs to train_<name>.py, and repeats no default but the dataset that it is for."""
    script = importlib.import_module(f"train_{path.relative_to(ROOT / 'configs').parts[0]}")
    parse_config(script.Config, ["--config", str(path)])
    default, repeated = parse_config(script.Config, []), []
    for keys, value in leaves(yaml.safe_load(path.read_text())):
        standard = default
        for key in keys:
            standard = getattr(standard, key)
        if keys != ("data", "folder") and standard == value:
            repeated.append(".".join(keys))
    assert repeated == []


def leaves(tree, keys=()):
    """(keys, value) of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*keys, key))
        else:
            yield (*keys, key), value


def functions(path):
    """Name -> source of the body, as a tree without docstrings and positions, of every function of a file."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            found[node.name] = "\n".join(ast.dump(statement) for statement in body)
    return found


def test_no_function_stands_in_two_scripts():
    assert SCRIPTS
    where = {}
    for path in SCRIPTS:
        for name, body in functions(path).items():
            where.setdefault(body, []).append(f"{path.name}: {name}")
    assert [places for places in where.values() if len(places) > 1] == []


def test_a_copied_function_is_found(tmp_path):
    """The check above sees through names, docstrings, comments and layout."""
    (tmp_path / "a.py").write_text('def f(x):\n    """Doc."""\n    return x + 1  # why\n')
    (tmp_path / "b.py").write_text("def g(x):\n    return (x\n            + 1)\n")
    assert functions(tmp_path / "a.py")["f"] == functions(tmp_path / "b.py")["g"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_documented(path):
    source = path.read_text()
    assert len(source.splitlines()) <= LONG_SCRIPTS.get(path.name, 100)
    docstring = ast.get_docstring(ast.parse(source)) or ""
    commands = re.findall(rf"^ *(?:python|torchrun)\b.*\b{re.escape(path.name)}", docstring, re.MULTILINE)
    assert len(commands) >= 3, f"{path.name}: its docstring shows {len(commands)} commands, three are asked for"
    last = source.rstrip().splitlines()[-1]
    shares_work = "training import TrainConfig, fit" in source or "import train_seq_bert_augmented" in source
    assert last.startswith("    cli(")
    assert last.endswith("Config, description=__doc__" + (", processes=True)" if shares_work else ")"))


def imports(path):
    """Dotted names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def local(names, package):
    """Those of `names` that are in `package`, cut to package.module."""
    return {".".join(name.split(".")[:2]) for name in names if name.startswith(package + ".")}


def test_imports_run_one_way():
    scripts = {path.stem for path in SCRIPTS}
    files = sorted([*(ROOT / "model").rglob("*.py"), *(ROOT / "utils").rglob("*.py")])
    assert files
    for path in files:
        names = set(imports(path))
        assert not scripts & {name.split(".")[0] for name in names}, f"{path} imports a script"
        if path.is_relative_to(ROOT / "model"):
            beyond = local(names, "utils") - {"utils.vocab", "utils.schema", "utils.batch"}
            assert not beyond, f"{path} imports {beyond}"


def test_no_large_file_is_in_git():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git repository")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [str(path) for path in paths if path.is_file() and path.stat().st_size > MAX_BYTES]
    assert large == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_its_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "format", "bench", "bench-quick", "clean"):
        assert f"make {target} " in listed


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_tables_runs_every_simulated_sweep_after_those_it_needs():
    done = subprocess.run(["make", "--dry-run", "tables"], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = (line for line in done.stdout.splitlines() if " sweep.py " in line)
    arguments = shlex.split(command)
    paths = yaml.safe_load(arguments[arguments.index("--sweep") + 1])
    assert sorted(paths) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("sweeps/*_simulated*.yml"))
    assert paths.index("sweeps/recurrent_simulated_seq.yml") < paths.index("sweeps/blends_simulated.yml")


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"
    assert script.read_text().splitlines()[-1] == "make test"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_runs(path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
