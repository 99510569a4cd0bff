"""Run a table of experiments, one process each, and compare them. What is finished is not run again.

    python sweep.py --sweep sweeps/losses_nowplaying.yml
    python sweep.py --sweep sweeps/losses_nowplaying.yml --only gBCE
    python sweep.py --sweep sweeps/losses_nowplaying.yml --dry_run true
    python sweep.py --sweep '[sweeps/bert_simulated_seq.yml, sweeps/bert_simulated_skip.yml]' --jobs 2

A sweep is a YAML file: `runs` maps a label to what differs, in dotted options of the script, `common` is what these
runs share; `script` (transformer_seq for train_transformer_seq.py), `config` and `seeds` stand at the top or in a run.
`first` holds runs that the others need, such as pre-training: they are finished before the others start, and share
nothing. Runs are written to `folder`, or to runs/<name of the sweep>. An interrupted sweep goes on where it stopped, in
the middle of a run too.
"""

from __future__ import annotations

import importlib
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from report import Config as ReportConfig
from report import main as report
from utils.cli import UserError, check_at_least, cli, parse_config
from utils.run import flat, saved_options
from utils.sweeps import read_sweep, run

ROOT = Path(__file__).parent


@dataclass
class Config:
    """Which experiments."""

    sweep: Path | list[Path]
    """YAML file that lists them, or several, one after the other."""
    folder: Path | None = None
    """Folder of the runs, instead of the one that the sweep names."""
    only: str | None = None
    """Run only those whose label contains this."""
    jobs: int = 1
    """Runs at a time; they share the processor's cores, and write to log files in the folder if there are several."""
    dry_run: bool = False
    """Only say what would be run."""

    def __post_init__(self) -> None:
        check_at_least(self, "sweep", jobs=1)


def main(config: Config) -> None:
    """Run what is missing, then report."""
    paths = config.sweep if isinstance(config.sweep, list) else [config.sweep]
    sweeps = [read_sweep(path, only=config.only, scripts=ROOT) for path in paths]
    if config.folder is not None:
        sweeps = [sweep._replace(folder=config.folder) for sweep in sweeps]
    for folder, waves in sweeps:  # mistakes in any of them are found before anything is run
        for each in chain(*waves):
            planned(*each, folder)
    failed = []
    for folder, (first, others) in sweeps:
        failures = run_wave([planned(*each, folder) for each in first], folder, config)
        if not failures:  # else the others would miss what they need
            failures = run_wave([planned(*each, folder) for each in others], folder, config)
        failed += failures
    for folder in sorted({folder for folder, _ in sweeps}):
        if not config.dry_run and any(folder.glob("*/*/result.json")):
            report(ReportConfig(runs=folder))
    if failed:
        raise UserError("\n  python ".join(["these runs failed:", *failed]))


def run_wave(plan: list[tuple[str, list[str]]], folder: Path, config: Config) -> list[str]:
    """Run what is missing of runs that do not need each other; returns the commands that failed."""
    for state, command in plan:
        print(f"{state:11}python {shlex.join(command)}", flush=True)
    missing = [command for state, command in plan if state != "finished" and not config.dry_run]
    with ThreadPoolExecutor(config.jobs) as pool:
        succeeded = list(pool.map(partial(run, scripts=ROOT, folder=folder, jobs=config.jobs), missing))
    return [shlex.join(command) for command, good in zip(missing, succeeded, strict=True) if not good]


def planned(script: str, args: list[str], folder: Path) -> tuple[str, list[str]]:
    """A run's state and its command, by the options that runs of its script in `folder` were started with."""
    script_config = importlib.import_module(f"train_{script}").Config
    wanted = asdict(parse_config(script_config, [*args, "--run.folder", str(folder)]))
    command = [f"train_{script}.py", *args, "--run.folder", str(folder)]
    for path in sorted((folder / script).glob("*/config.yml")):
        resumable = (path.parent / "last.pt").exists()
        if resumable and saved_options(path, asdict(script_config())) == flat(wanted):
            if (path.parent / "result.json").exists():
                return "finished", command
            return "unfinished", [*command, "--run.resume", str(path.parent)]
    return "new", command


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
