"""The project's own rules: its files agree with one another, and the code keeps its shape."""

import ast
import importlib
import importlib.metadata
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
ROOMS = re.findall(r"^(\w+) {2,}", (ROOT / "utils" / "__init__.py").read_text(), re.MULTILINE)
"""Rooms of `utils` from the ground up, as its docstring lists them."""
MOVED = {"synthetic", "oracle", "calibration", "word2vec"}
"""Commands that still answer to their old names in this version."""
MOST_LINES = 450
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


def needed(names):
    """Canonical names of packages and of all that they need here, as they say themselves."""
    found, waiting = (
        set(),
        [(canonicalize_name(requirement.name), frozenset(requirement.extras)) for requirement in names],
    )
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found}


def test_every_pin_is_of_something_that_is_needed():
    unneeded = set(constraints()) - needed(requirements())
    assert unneeded == set()


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
    lines = [line for line in source.splitlines() if not re.match(r"\s*(from|import) ", line)]
    assert len(lines) <= 120, "a script shows its experiment on one screen, imports aside"
    docstring = ast.get_docstring(ast.parse(source)) or ""
    commands = re.findall(rf"^ *(?:python|torchrun)\b.*\b{re.escape(path.name)}", docstring, re.MULTILINE)
    assert len(commands) >= 3, f"{path.name}: its docstring shows {len(commands)} commands, three are asked for"
    last = source.rstrip().splitlines()[-1]
    alone = path.name == "train_memory_seq.py"  # its cases are computed once, by one process
    shares_work = (
        "utils.training.loop import fit" in source and not alone
    ) or "import train_seq_bert_augmented" in source
    assert last.startswith("    cli(")
    more = ", processes=True" if shares_work else ", shorthand=spell_out_source" if path.name == "evaluate.py" else ""
    assert last.endswith(f"Config, description=__doc__{more})")


def python_files(*folders):
    """All modules of some folders."""
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert files
    return files


def imports(path):
    """Dotted names of the modules that a file imports, anywhere in it; names are taken for modules, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path):
    """Dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path, modules):
    """Those of the `modules` that a file imports."""
    return {name for name in imports(path) if name in modules}


def upward_imports(rooms, imported):
    """(module, what it imports) for every import from a room to one above it.

    Args:
        rooms: from the ground up.
        imported: module -> modules; all of utils.<room>.<module>, or utils.<command>, which may import every room.
    """

    def floor(module):
        parts = module.split(".")
        return rooms.index(parts[1]) if len(parts) > 2 else len(rooms)

    return [(module, name) for module, names in imported.items() for name in names if floor(name) > floor(module)]


def circle(imported):
    """Modules that import each other in a circle, in order; none if there is no circle."""
    state, trail = {}, []

    def visit(module):
        state[module] = "open"
        trail.append(module)
        for name in sorted(imported.get(module, ())):
            if state.get(name) == "open":
                return trail[trail.index(name) :]
            if name not in state and (found := visit(name)):
                return found
        trail.pop()
        state[module] = "done"
        return []

    return next((found for module in sorted(imported) if module not in state and (found := visit(module))), [])


def test_rooms_import_downwards_and_without_circles():
    files = {module_name(path): path for path in python_files("utils") if path.name != "__init__.py"}
    imported = {module: imported_modules(path, files) - {module} for module, path in files.items()}
    assert sum(map(len, imported.values())) > 100, "the imports were not found"
    assert upward_imports(ROOMS, imported) == []
    assert circle(imported) == []


def test_an_upward_import_and_a_circle_are_found():
    rooms = ["core", "data"]
    assert upward_imports(rooms, {"utils.core.a": {"utils.data.b"}, "utils.command": {"utils.data.b"}}) == [
        ("utils.core.a", "utils.data.b")
    ]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_module_of_utils_has_a_room():
    folders = {path.name for path in (ROOT / "utils").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
    assert {path.stem for path in (ROOT / "utils").glob("*.py")} == {"__init__", "datapreprocessing", *MOVED}
    for path in (ROOT / "utils").glob("*/**/__init__.py"):
        tree = ast.parse(path.read_text())
        assert len(tree.body) == 1, f"{path} does more than say what lives there"
        assert 3 <= len(ast.get_docstring(tree).splitlines()) <= 6


def test_every_package_is_installed():
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "utils").rglob("__init__.py")}
    assert {"utils", "utils.preprocessing.sources"} <= packages
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages | {"model"}


def test_models_know_ids_names_and_batches_only():
    allowed = {"utils", "utils.core", "utils.core.compiled"}
    allowed |= {"utils.data", "utils.data.vocab", "utils.data.schema", "utils.data.batch"}
    for path in python_files("model"):
        beyond = {name for name in imports(path) if name.split(".")[0] == "utils"}
        beyond = {name for name in beyond if ".".join(name.split(".")[:3]) not in allowed}
        assert not beyond, f"{path} imports {beyond}"


def test_nothing_imports_a_script():
    scripts = {path.stem for path in SCRIPTS}
    for path in python_files("model", "utils"):
        assert not scripts & {name.split(".")[0] for name in imports(path)}, f"{path} imports a script"


def test_no_module_is_long():
    files = [*SCRIPTS, *python_files("model", "utils", "benchmarks")]
    long = {str(path): n for path in files if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def defaults(function):
    """Names of the parameters of a function that have a default."""
    positional = function.args.args[len(function.args.args) - len(function.args.defaults) :]
    keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {argument.arg for argument in positional} | {argument.arg for argument, value in keyword if value}


def options(tree):
    """Fields with a default of the dataclasses of a module whose name ends in Config."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
    fields = [field for each in classes for field in each.body if isinstance(field, ast.AnnAssign) and field.value]
    return {field.target.id for field in fields}


def test_no_default_is_declared_twice():
    """A Config says what a model's size is if nobody says otherwise; the model's constructor does not say it again."""
    trees = [ast.parse(path.read_text()) for path in [*SCRIPTS, *python_files("utils")]]
    configured = set().union(*(options(tree) for tree in trees))
    assert {"d_model", "history_size", "skip_encoding", "drop_net"} <= configured
    twice = []
    for path in python_files("model"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                twice += [f"{path.name}: {name}" for name in sorted(defaults(function) & configured)]
    assert twice == []


def labels_in_conditions(tree):
    """Lines whose code compares, searches or tests a display label."""
    found = []

    def is_label(node):
        attribute = isinstance(node, ast.Attribute) and node.attr in ("label", "labels")
        key = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == "label"
        return attribute or key

    for node in ast.walk(tree):
        conditions = [node] if isinstance(node, ast.Compare) else []
        conditions += [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            searches = {"search", "match", "fullmatch", "findall", "startswith", "endswith", "find", "index", "count"}
            conditions += [node] if node.func.attr in searches else []
        found += [node.lineno for part in conditions if any(is_label(inner) for inner in ast.walk(part))]
    return found


def test_nothing_depends_on_a_display_label():
    found = {path: labels_in_conditions(ast.parse(path.read_text())) for path in [*SCRIPTS, *python_files("utils")]}
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


def test_a_label_in_a_condition_is_found():
    source = (
        'if "repeat" in row.label.lower():\n    pass\nx = a if result["label"] == b else c\nre.search(p, row.label)'
    )
    assert labels_in_conditions(ast.parse(source)) != []
    assert labels_in_conditions(ast.parse("print(row.label)\nrows[row.label] = row")) == []


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


def test_continuous_integration_lints_and_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"
    assert script.read_text().splitlines()[-1] == "make lint test"
