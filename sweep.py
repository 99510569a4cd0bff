"""Run a table of experiments, one process each, and compare them. Finished runs are not made again.

    python sweep.py --sweep sweeps/losses_simulated.yml
    python sweep.py --sweep sweeps/losses_simulated.yml --only gBCE --dry_run true
    python sweep.py --sweep '[sweeps/bert_simulated_seq.yml, sweeps/bert_simulated_skip.yml]' --jobs 2

A sweep is a YAML file with these keys:

    runs      label of each run -> the options that differ, dotted as on the command line
    common    options that all of `runs` share
    script    transformer_seq for train_transformer_seq.py; at the top or in a run, as are `config` and `seeds`
    config    file of options
    seeds     number of seeds
    first     runs that the others need, such as pre-training; `common` and the `seeds` at the top do not apply to them
    folder    folder of the runs; runs/<name of the sweep> if not given
    compare   pairs of rows for the report

In options, {folder} stands for the folder of the runs and {seed} for the run's seed. An interrupted sweep goes on where
it stopped, even in the middle of a run.
"""

from __future__ import annotations

import importlib
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from utils.core.checks import check_at_least
from utils.core.cli import TYPE_CHECKING, cli, parse_config
from utils.core.errors import UserError

if TYPE_CHECKING:
    from utils.training.sweeps import PlannedRun, Sweep

ROOT = Path(__file__).parent


@dataclass
class Config:
    """Which experiments."""

    sweep: Path | list[Path]
    """YAML file of the sweep, or a list of files to run one after the other."""
    folder: Path | None = None
    """Folder of the runs, instead of the sweep's."""
    only: str | None = None
    """Run only experiments whose label contains this."""
    jobs: int = 1
    """Runs at a time. Several share the processor's cores, and each writes to its own log file in the folder."""
    dry_run: bool = False
    """Only print what would be run."""

    def __post_init__(self) -> None:
        check_at_least(self, "", jobs=1)


def main(config: Config) -> None:
    """Run what is missing, then make the report."""
    from report import Config as ReportConfig
    from report import main as report
    from utils.training.sweeps import read_sweep

    paths = config.sweep if isinstance(config.sweep, list) else [config.sweep]
    sweeps = [read_sweep(path, folder=config.folder, only=config.only, scripts=ROOT) for path in paths]
    for planned in chain(*(wave for each in sweeps for wave in each.waves)):  # finds mistakes before any run starts
        options_of(planned)
    if not config.dry_run:
        check_inputs(sweeps)
    failed: list[str] = []
    for each in sweeps:
        for wave in each.waves:
            if failures := run_wave(wave, each.folder, config):
                failed += failures
                break  # the next wave may need what failed
    for folder, of_folder in groupby(sorted(sweeps, key=attrgetter("folder")), attrgetter("folder")):
        if not config.dry_run and any(folder.glob("*/*/result.json")):
            report(ReportConfig(runs=folder, compare=[pair for each in of_folder for pair in each.compare]))
    if failed:
        raise UserError("\n  python ".join(["these runs failed:", *failed]))


def check_inputs(sweeps: list[Sweep]) -> None:
    """Check that the runs to make find what they need, so that no run starts in vain.

    Raises:
        UserError: names each thing that is missing, once, and the runs that need it.
    """
    from utils.training.sweeps import missing_inputs, saved_runs, state_of

    needed: dict[str, list[str]] = {}
    made = {each.folder for each in sweeps}
    for each in sweeps:
        for planned in chain(*each.waves):
            options, script = options_of(planned), planned.script
            if state_of(options, saved_runs(each.folder / script, config_of(script)()))[0] != "finished":
                for problem in missing_inputs(planned, options, made):
                    needed.setdefault(problem, []).append(options["run.label"])
    if needed:
        lines = [f"{problem}\n  needed by {', '.join(dict.fromkeys(labels))}" for problem, labels in needed.items()]
        raise UserError("no run was started:\n" + "\n".join(lines))


@cache
def options_of(planned: PlannedRun) -> dict[str, Any]:
    """All options of a planned run, flat."""
    from utils.training.run import flat

    return flat(asdict(parse_config(config_of(planned.script), planned.args)))


def config_of(script: str) -> Any:
    """The Config of a script."""
    return importlib.import_module(f"train_{script}").Config


def run_wave(wave: list[PlannedRun], folder: Path, config: Config) -> list[str]:
    """Run those of a wave that are missing; the runs of a wave do not need each other. Returns the failed commands."""
    from utils.training.sweeps import run, saved_runs, state_of

    saved = {script: saved_runs(folder / script, config_of(script)()) for script in {each.script for each in wave}}
    missing = []
    for planned in wave:
        state, more = state_of(options_of(planned), saved[planned.script])
        command = [f"train_{planned.script}.py", *planned.args, *more]
        print(f"{state:11}python {shlex.join(command)}", flush=True)
        if state != "finished" and not config.dry_run:
            missing.append(command)
    with ThreadPoolExecutor(config.jobs) as pool:
        succeeded = list(pool.map(partial(run, scripts=ROOT, folder=folder, jobs=config.jobs), missing))
    return [shlex.join(command) for command, good in zip(missing, succeeded, strict=True) if not good]


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
