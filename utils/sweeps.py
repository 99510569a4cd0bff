"""A sweep, a YAML file that lists experiments (see sweep.py): reading it, and running its experiments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from utils.cli import UserError

KEYS = {"script", "config", "seeds", "common", "first", "runs"}

PlannedRun = tuple[str, list[str]]
"""Script and arguments."""


def runs_of(sweep: Path, only: str | None, *, scripts: Path) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """The runs of a sweep, those of `first` and the others.

    Args:
        sweep: the file.
        only: keep runs whose label contains this.
        scripts: the folder of the scripts.

    Raises:
        UserError: the file cannot be read or has other keys, or a run names no script.
    """
    try:
        spec = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{sweep} cannot be read: {error}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("runs"), dict) or set(spec) - KEYS:
        raise UserError(f"{sweep} must be a mapping of runs, and some of {', '.join(sorted(KEYS))}")
    top = {"script": None, "config": None, "seeds": 1} | {key: spec[key] for key in spec.keys() & {"script", "config"}}
    waves = ((spec.get("first") or {}, top), (spec["runs"], top | spec | (spec.get("common") or {})))
    first, others = (
        [
            planned
            for label, options in runs.items()
            for planned in _seeds_of(label, shared | (options or {}), sweep, scripts)
            if only is None or only in label
        ]
        for runs, shared in waves
    )
    return first, others


def _seeds_of(label: str, options: dict[str, Any], sweep: Path, scripts: Path) -> list[PlannedRun]:
    """Script and arguments for each seed of one experiment."""
    script, config, seeds = (options[key] for key in ("script", "config", "seeds"))
    if not (scripts / f"train_{script}.py").exists():
        raise UserError(f"{sweep}: there is no train_{script}.py for {label!r}; name a `script`")
    args = ["--config", str(config)] if config else []
    for key in [key for key in options if key not in KEYS]:
        args += [f"--{key}", options[key] if isinstance(options[key], str) else json.dumps(options[key])]
    return [(script, [*args, "--run.label", label, "--run.seed", str(seed)]) for seed in range(1, seeds + 1)]


def run(command: list[str], *, scripts: Path, folder: Path, jobs: int) -> bool:
    """Run a script in a process of its own; whether it succeeded.

    If it is one of several `jobs`, it has its share of the threads, and a log file in `folder` for its output.
    """
    if jobs == 1:
        return subprocess.run([sys.executable, *command], cwd=scripts).returncode == 0
    label, seed = (command[command.index(f"--run.{name}") + 1] for name in ("label", "seed"))
    path = folder / f"{label.replace('/', '_')}, seed {seed}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    with path.open("ab") as log:
        code = subprocess.run(
            [sys.executable, *command], cwd=scripts, env=environment, stdout=log, stderr=log
        ).returncode
    print(f"{'FAILED' if code else 'done':11}{path}", flush=True)
    return code == 0
