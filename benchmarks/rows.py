"""Rows of measurements: a readable table, and `benchmarks/latest.json` for machines.

    python -m benchmarks.rows                  print the latest measurements
    python -m benchmarks.rows --quick true
    python -m benchmarks.rows --file benchmarks/latest_growth.json

Quick measurements go to `benchmarks/latest_quick.json`: they never replace the figures of a full run. Those of other
sizes than the defaults go to neither.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.options import Options, has_usual_sizes, settings
from utils.core.cli import cli
from utils.core.files import read_json, write_json

LATEST = Path(__file__).parent / "latest.json"
LATEST_QUICK = Path(__file__).parent / "latest_quick.json"


@dataclass
class Config:
    """What to print."""

    quick: bool = False
    """The latest quick measurements."""
    file: Path | None = None
    """Other measurements: those of growth or of a GPU, or what --out saved."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    """What was measured, unique: train/seq-transformer/sampled-2048."""
    value: float
    """Median over the rounds."""
    unit: str
    ratio: float | None = None
    """To the reference of the same run: the median of the ratios within each round, above 1 if this is larger."""
    peak_mib: float | None = None
    """Peak resident memory of its process, files that it mapped included."""
    best: float | None = None
    """Value of the best round."""
    idle_mib: float | None = None
    """Memory of its process before its own imports and its setup."""
    targets_per_second: float | None = None
    """Training: tracks or labels learnt from; the number to compare families of models by."""
    ceiling_share: float | None = None
    """Floating-point operations of matrix products per second, divided by the most that one large product of the same
    number type got in the same run."""
    quick: bool = False
    """Measured with `--quick true`: fewer rounds and smaller."""
    settings: dict[str, Any] | None = None
    """How much was measured: the options of its part, see `benchmarks.options.settings`."""


def save_rows(rows: Sequence[Row], path: Path, *, keep_others: bool = True) -> None:
    """Replace the rows of the same names in `path`, add what is new.

    Each says where it was measured. Rows of other names stay, unless `keep_others` is false.
    """
    saved = {row["name"]: row for row in (read_json(path) if keep_others and path.exists() else [])}
    saved.update((row.name, {**asdict(row), **machine()}) for row in rows)
    write_json(path, list(saved.values()))


def latest(*, quick: bool) -> Path:
    """Where rows of the default sizes are saved."""
    return LATEST_QUICK if quick else LATEST


C = TypeVar("C", bound=Options)


def publish(config: C, measure_all: Callable[[C, Path], list[Row]]) -> list[Row]:
    """Measure in a temporary folder, print the table and save the rows.

    They go to `config.out`; without it to `latest`, but there only if their sizes are the defaults.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = [replace(row, settings=settings(config)) for row in measure_all(config, Path(folder))]
    print(heading(), table(rows), sep="\n\n")
    if config.out or has_usual_sizes(config):
        save_rows(rows, config.out or latest(quick=config.quick))
    else:
        print(f"\nNot saved in {latest(quick=config.quick).name}: sizes are not the defaults (--out FILE saves rows)")
    return rows


@cache
def machine() -> dict[str, str | int | None]:
    """Where and with what this process measures."""
    import torch

    from utils.training.machine import git_commit

    return {
        "date": date.today().isoformat(),
        "commit": git_commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tunables": os.environ.get("GLIBC_TUNABLES"),
        "spin_count": os.environ.get("GOMP_SPINCOUNT"),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def heading(where: dict[str, str | int | None] | None = None) -> str:
    """The machine for people: this one, or another that `machine` described."""
    m = where or machine()
    tunables = f", {m['tunables']}" if m["tunables"] else ""
    spin = f", GOMP_SPINCOUNT {m['spin_count']}" if m["spin_count"] else ""
    policy = f", OMP_WAIT_POLICY {m['wait_policy']}" if m.get("wait_policy") else ""
    return (
        f"{m['cores']} cores {m['processor']}, {m['threads']} threads, torch {m['torch']}{tunables}{spin}{policy}; "
        f"{m['date']}, commit {m['commit']}"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as text, aligned, grouped by the first part of their names; without columns that none of them fills."""
    lines: list[tuple[str, ...]] = []
    for group, members in groupby(rows, key=lambda row: row.name.partition("/")[0]):
        lines += [("",) * len(COLUMNS), (group, *COLUMNS[1:])]
        lines += [_cells(row) for row in members]
    filled = [i for i in range(len(COLUMNS)) if any(_cells(row)[i] for row in rows)]
    widths = {i: max(len(line[i]) for line in lines) for i in filled}
    aligned = [[f"{line[i]:{_align(i)}{widths[i]}}" for i in filled] for line in lines[1:]]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


COLUMNS = ("", "value", "best", "unit", "ratio", "targets/s", "of ceiling", "peak MiB")


def _align(column: int) -> str:
    """Names and units begin at the left, numbers end at the right."""
    return "<" if COLUMNS[column] in ("", "unit") else ">"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"  {row.name.partition('/')[2]}",
        _number(row.value),
        _number(row.best),
        row.unit,
        "" if row.ratio is None else f"{_number(row.ratio)} x",
        _number(row.targets_per_second),
        "" if row.ceiling_share is None else f"{row.ceiling_share:.0%}",
        "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
    )


def _number(value: float | None) -> str:
    """Three significant digits at least, all digits before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(config: Config) -> None:
    """Print the rows that are saved, under each machine, date and commit on which some of them were measured."""
    names = [field.name for field in fields(Row)]
    for where, found in groupby(
        read_json(config.file or latest(quick=config.quick)), key=lambda row: {key: row.get(key) for key in machine()}
    ):
        print(heading(where), table([Row(**{name: row.get(name) for name in names}) for row in found]), sep="\n\n")


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
