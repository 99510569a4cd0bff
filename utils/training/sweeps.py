"""Read a sweep, a YAML file that lists experiments (see sweep.py), and run its experiments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.training.pretrained import RANDOM
from utils.training.run import saved_options

KEYS = {"script", "config", "seeds", "folder", "common", "first", "runs", "compare"}
MANY_RUNS = {"baselines"}
"""Scripts that make several runs, in folders of other names: a sweep could not tell that they are finished."""


class PlannedRun(NamedTuple):
    """A run of a sweep, made already or not."""

    script: str
    """Name of the script without `train_`."""
    args: tuple[str, ...]


class Sweep(NamedTuple):
    """What the file of a sweep asks for."""

    folder: Path
    """Folder of the runs."""
    waves: tuple[list[PlannedRun], list[PlannedRun]]
    """The runs of `first`, and the others."""
    compare: list[tuple[str, str]]
    """Pairs of labels, for the report."""


def read_sweep(path: Path, *, folder: Path | None, only: str | None, scripts: Path) -> Sweep:
    """Read the runs of a sweep.

    Args:
        path: the file.
        folder: of the runs, instead of the one that the file names.
        only: keep runs whose label contains this.
        scripts: the folder of the scripts.

    Raises:
        UserError: the file cannot be read or has unknown keys; a run has no script, no valid number of seeds, or an
            option that the sweep sets itself; no label contains `only`; or `compare` does not list pairs of labels.
    """
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(spec, dict) or set(spec) - KEYS:
        raise UserError(f"{path} must be a mapping of runs, and some of {', '.join(sorted(KEYS))}")
    parts = {part: _mapping(path, part, spec.get(part)) for part in ("common", "first", "runs")}
    top = {"script": None, "config": None, "seeds": 1} | {key: spec[key] for key in spec.keys() & {"script", "config"}}
    shared = {"first": top, "runs": top | {key: spec[key] for key in spec.keys() & {"seeds"}} | parts["common"]}
    folder = folder or Path(spec.get("folder") or Path("runs") / path.stem)
    first, others = (
        [
            planned
            for label, options in parts[part].items()
            for planned in _seeds_of(path, str(label), shared[part] | _mapping(path, label, options), folder, scripts)
            if only is None or only in str(label)
        ]
        for part in ("first", "runs")
    )
    if not first and not others:
        raise UserError(f"{path} has no run" + ("" if only is None else f" whose label contains {only!r}"))
    pairs = spec.get("compare") or []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(label, str) for label in pair):
            raise UserError(f"{path}: compare must list pairs of labels, not {pair!r}")
    return Sweep(folder, (first, others), [tuple(pair) for pair in pairs])


def _mapping(path: Path, name: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise UserError(f"{path}: {name} must be a mapping of options, not {value!r}")
    return value or {}


def _seeds_of(path: Path, label: str, options: dict[str, Any], folder: Path, scripts: Path) -> list[PlannedRun]:
    """The runs of one experiment, one for each seed."""
    script, config, seeds = (options[key] for key in ("script", "config", "seeds"))
    if not (scripts / f"train_{script}.py").exists() or script in MANY_RUNS:
        raise UserError(f"{path}: there is no train_{script}.py for {label!r} that can be resumed; name a `script`")
    if type(seeds) is not int or seeds < 1:  # true is an int for isinstance
        raise UserError(f"{path}: seeds of {label!r} is {seeds!r}; it must be how many seeds to run, from 1")
    args = ["--config", str(config)] if config else []
    for key in [key for key in options if key not in KEYS]:
        if str(key).startswith("run.") and key != "run.name":
            raise UserError(f"{path}: {label!r} gives {key}, which the sweep sets itself; leave it out")
        args += [f"--{key}", options[key] if isinstance(options[key], str) else json.dumps(options[key])]
    if seeds > 1 and "{seed}" not in options.get("run.name", "{seed}"):
        raise UserError(f"{path}: {label!r} has {seeds} seeds, but run.name names one folder; put {{seed}} into it")
    runs = []
    for seed in range(1, seeds + 1):
        own = [arg.replace("{seed}", str(seed)).replace("{folder}", str(folder)) for arg in args]
        own += ["--run.label", label, "--run.seed", str(seed), "--run.folder", str(folder)]
        runs.append(PlannedRun(script, tuple(own)))
    return runs


def run(command: list[str], *, scripts: Path, folder: Path, jobs: int) -> bool:
    """Run a script in a process of its own; returns whether it succeeded.

    If it is one of several `jobs`, it has its share of the threads, and its output goes to a log file in `folder`.
    """
    call = [sys.executable, str(scripts / command[0]), *command[1:]]  # in the caller's folder: paths are relative to it
    if jobs == 1:
        return subprocess.run(call).returncode == 0
    label, seed = (command[command.index(f"--run.{name}") + 1] for name in ("label", "seed"))
    script = command[0].removeprefix("train_").removesuffix(".py")
    path = folder / f"{script}, {label.replace('/', '_')}, seed {seed}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    with path.open("ab") as log:
        code = subprocess.run(call, env=environment, stdout=log, stderr=log).returncode
    print(f"{'FAILED' if code else 'done':11}{path}", flush=True)
    return code == 0


def saved_runs(folder: Path, defaults: Any) -> dict[Path, dict[str, Any]]:
    """The runs in a script's folder that are finished or can be resumed, with all their options, flat.

    An unfinished run that trains nothing, such as a blend, leaves nothing to resume.

    Args:
        folder: of the script's runs.
        defaults: the script's Config, for options that are newer than a run.
    """
    return {
        path.parent: saved_options(path, asdict(defaults))
        for path in sorted(folder.glob("*/config.yml"))
        if any((path.parent / name).exists() for name in ("last.pt", "result.json"))
    }


def missing_inputs(planned: PlannedRun, options: dict[str, Any], made: set[Path]) -> list[str]:
    """What a run needs and does not find: a sentence for each.

    Args:
        planned: the run.
        options: all of its options, flat.
        made: folders of runs that are made in the same call: what a run needs from there may still come.
    """
    missing = []

    def awaited(name: str, file: str) -> Path | None:
        """The path that an option names, if it is needed now and not there."""
        path = Path(options.get(name) or ".")
        known = not options.get(name) or str(path) == RANDOM or made & set(path.parents) or (path / file).exists()
        return None if known else path

    if data := options.get("data.folder"):
        missing += _dataset_problem(data, needs_skips="skip" in planned.script.split("_"))
    for name in ("table.vectors", "agent.vectors"):
        if path := awaited(name, ""):
            missing.append(f"{path} does not exist ({name}); make it with python -m utils.track_vectors.word2vec")
    for name in ("pretrained", "warm_start", "neural"):
        if path := awaited(name, "result.json"):
            missing.append(f"{path} is no folder of a finished run ({name}); train it first")
    return missing


@cache
def _dataset_problem(folder: str, *, needs_skips: bool) -> list[str]:
    """Why a folder is no dataset for a run; nothing if it is one."""
    try:
        Dataset.open(folder, needs_skips=needs_skips)
    except UserError as error:
        return [str(error)]
    return []


def state_of(options: dict[str, Any], saved: dict[Path, dict[str, Any]]) -> tuple[str, list[str]]:
    """Whether a run with these options is "finished", "unfinished" or "new" among the saved ones, and the arguments
    that resume an unfinished one."""
    folder = next((folder for folder, of_it in saved.items() if of_it == options), None)
    if folder is None:
        return "new", []
    if (folder / "result.json").exists():
        return "finished", []
    return "unfinished", ["--run.resume", str(folder)]
