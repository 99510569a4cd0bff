"""Run a table of experiments, one process each, and compare them. What is finished is not run again.

    python sweep.py --sweep sweeps/losses_nowplaying.yml
    python sweep.py --sweep sweeps/losses_nowplaying.yml --only gBCE
    python sweep.py --sweep sweeps/losses_nowplaying.yml --dry_run true

A sweep is a YAML file: `runs` maps a label to what differs, `common` is what all share, both in dotted options of the
script; `script` (transformer_seq for train_transformer_seq.py), `config` and `seeds` stand at the top or in a run. An
interrupted sweep goes on where it stopped, in the middle of a run too.
"""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from report import Config as ReportConfig
from report import main as report
from utils.cli import UserError, cli, parse_config

ROOT = Path(__file__).parent
KEYS = {"script", "config", "seeds", "common", "runs"}


@dataclass
class Config:
    """Which experiments."""

    sweep: Path
    """YAML file that lists them."""
    folder: Path | None = None
    """Folder of the runs; runs/<name of the sweep> if not given."""
    only: str | None = None
    """Run only those whose label contains this."""
    dry_run: bool = False
    """Only say what would be run."""


def main(config: Config) -> None:
    """Run what is missing, then report."""
    folder = config.folder or Path("runs") / config.sweep.stem
    plan = [(script, args, *progress(script, args, folder)) for script, args in runs_of(config.sweep, config.only)]
    failed = []
    for script, args, state, found in plan:
        resume = ["--run.resume", str(found)] if state == "unfinished" else []
        command = [f"train_{script}.py", *args, "--run.folder", str(folder), *resume]
        print(f"{state:11}python {shlex.join(command)}", flush=True)
        if state != "finished" and not config.dry_run and not run(command):
            failed.append(f"  python {shlex.join(command)}")
    if failed:
        raise UserError("\n".join(["these runs failed:", *failed]))
    if not config.dry_run:
        report(ReportConfig(runs=folder))


def run(command: list[str]) -> bool:
    """Run a script in a process of its own; whether it succeeded."""
    return subprocess.run([sys.executable, *command], cwd=ROOT).returncode == 0


def runs_of(sweep: Path, only: str | None) -> Iterator[tuple[str, list[str]]]:
    """Script and arguments of each run of a sweep."""
    try:
        spec = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{sweep} cannot be read: {error}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("runs"), dict) or set(spec) - KEYS:
        raise UserError(f"{sweep} must be a mapping of runs, and some of {', '.join(sorted(KEYS))}")
    for label, options in spec["runs"].items():
        values = {"script": None, "config": None, "seeds": 1, **spec, **spec.get("common", {}), **(options or {})}
        script, config, seeds = (values[key] for key in ("script", "config", "seeds"))
        if not (ROOT / f"train_{script}.py").exists():
            raise UserError(f"{sweep}: there is no train_{script}.py for {label!r}; name a `script`")
        args = ["--config", str(config)] if config else []
        for key in [key for key in values if key not in KEYS]:
            args += [f"--{key}", values[key] if isinstance(values[key], str) else json.dumps(values[key])]
        for seed in range(1, seeds + 1) if only is None or only in label else []:
            yield script, [*args, "--run.label", label, "--run.seed", str(seed)]


def progress(script: str, args: list[str], folder: Path) -> tuple[str, Path | None]:
    """ "finished", "unfinished" or "new", and the run's folder, by the options that a run was started with."""
    script_config = importlib.import_module(f"train_{script}").Config
    wanted = asdict(parse_config(script_config, [*args, "--run.folder", str(folder)]))
    for path in sorted((folder / script).glob("*/config.yml")):
        if yaml.safe_load(path.read_text(encoding="utf-8")) == wanted and (path.parent / "last.pt").exists():
            return "finished" if (path.parent / "result.json").exists() else "unfinished", path.parent
    return "new", None


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
