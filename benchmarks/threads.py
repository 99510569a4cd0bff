"""How the waiting of threads costs a training step on a machine that is quiet, and on one whose cores are taken.

    python -m benchmarks.threads
    python -m benchmarks.threads --busy 5 --rounds 5
    python -m benchmarks.threads --settings '[commands, always spin]'

PyTorch's threads (GNU OpenMP) wait for each other by spinning: on a quiet machine that is fastest, and where another
program has one of the cores, a thread spins through its time slices while the one that it waits for does not run.
`GOMP_SPINCOUNT` says how long they spin before they sleep. Each setting is measured in a process of its own, with and
without `--busy` other processes that compute all the time, in interleaved rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.options import settings
from benchmarks.rows import Row, heading, save_rows, table
from utils.core.checks import check_at_least
from utils.core.cli import cli

SETTINGS: dict[str, dict[str, str]] = {
    "commands": {},  # what utils.core.threads chooses
    "always spin": {"OMP_WAIT_POLICY": "active"},
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "spin 20000": {"GOMP_SPINCOUNT": "20000"},
    "spin 5000": {"GOMP_SPINCOUNT": "5000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "never spin": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Environment of the measured process; the first one that an inherited environment does not change is ours."""
BUSY_WORK = "x = 0\nwhile True: x += 1"


@dataclass
class Config:
    """What to measure."""

    settings: list[str] = field(default_factory=lambda: list(SETTINGS))
    """Some of the settings, see SETTINGS."""
    busy: int = 5
    """Other processes that compute all the time."""
    rounds: int = 5
    """Rounds that are timed."""
    seconds: float = 3.0
    """Training of each setting in each round."""
    out: Path | None = None
    """File for the rows; benchmarks/latest_threads.json if not given."""
    step: bool = False
    """Only measure here, in this process, and print the median seconds of a step; used for each setting."""

    def __post_init__(self) -> None:
        check_at_least(self, "", busy=1, rounds=1)


def median_step(seconds: float) -> float:
    """Median seconds of a training step of the demo's skip Transformer."""
    import torch

    from benchmarks.workload import Sizes, full_sessions, loader, skip_transformer
    from utils.core.memory import reuse_memory
    from utils.training.loop import update
    from utils.training.losses import skip_loss
    from utils.training.optimizers import make_optimizers

    reuse_memory()
    sizes = Sizes(tracks=5000, d_model=64, n_heads=4, n_layers=2, d_ff=128, dropout=0.0, batch_size=512)
    with tempfile.TemporaryDirectory() as folder:
        (batch,) = loader(full_sessions(Path(folder) / "train", sizes.batch_size, sizes), sizes)
    torch.manual_seed(0)
    model = skip_transformer(sizes, sparse=True)
    step = partial(update, model, skip_loss, batch, make_optimizers(model, lr=1e-3), clip=0.0, precision="float32")
    for _ in range(3):
        step()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        start = time.monotonic()
        step()
        times.append(time.monotonic() - start)
    return median(times)


@contextmanager
def others(n: int) -> Iterator[None]:
    """`n` processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY_WORK]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(setting: str, config: Config) -> float:
    """Median seconds of a step in a process with this setting."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    command = [sys.executable, "-m", "benchmarks.threads", "--step", "true", "--seconds", str(config.seconds)]
    done = subprocess.run(command, env=inherited | SETTINGS[setting], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(config: Config) -> list[Row]:
    """Measure all settings and print their rows; ratios are to the fastest on the quiet machine, round by round."""
    if config.step:
        print(json.dumps(median_step(config.seconds)))
        return []
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(config.rounds):
        for load, n in (("quiet", 0), (f"beside {config.busy}", config.busy)):
            with others(n):
                for setting in config.settings:
                    found.setdefault((setting, load), []).append(measure(setting, config))
    best = [min(found[setting, "quiet"][i] for setting in config.settings) for i in range(config.rounds)]
    rows = [
        Row(
            f"threads/{load}/{setting}",
            round(1000 * median(seconds), 2),
            "ms a step",
            ratio=median(mine / fastest for mine, fastest in zip(seconds, best, strict=True)),
            settings=settings(config),
        )
        for (setting, load), seconds in sorted(found.items(), key=lambda item: item[0][1] != "quiet")
    ]
    print(heading(), table(rows), sep="\n\n")
    save_rows(rows, config.out or Path(__file__).parent / "latest_threads.json")
    return rows


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
