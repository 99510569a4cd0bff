"""Preprocessing beside a plain parse of the same columns and beside a straightforward pandas version.

    python -m benchmarks.preprocessing
    python -m benchmarks.preprocessing --sessions 20000 --repeats 1

Three million simulated rows in ten files. Every contender runs in a process of its own, in turn, `repeats` times; the
median counts. Then peak memory with 10 and with 60 files of the same size.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.rows import Row, save_rows, table
from utils import schema, vocab
from utils.cli import UserError, cli

FEW, MANY = 10, 60


@dataclass
class Config:
    """Sizes of the measurement."""

    sessions: int = 181_000
    """Simulated sessions in ten files; 16.6 plays each."""
    tracks: int = 103_000
    """Tracks of the simulated catalogue."""
    repeats: int = 3
    """Runs of each contender."""
    memory_sessions: int = 18_100
    """Sessions in each of the sixty files of the memory measurement (3 GB in all); 0 leaves it out."""
    quick: bool = False
    """A tenth of the sessions, once, without the memory measurement."""
    work: Path | None = None
    """Folder for the simulated files, kept and used again; a temporary one if not given."""


# ---------------------------------------------------------------------------------------------------- contenders


def parse(raw: Path, out: Path) -> None:
    """PyArrow reads the columns that preprocessing uses, and nothing else happens."""
    import pyarrow.csv

    from utils.importers import mssd

    options = pyarrow.csv.ConvertOptions(include_columns=mssd.COLUMNS)
    for log in mssd.find_logs(raw):
        pyarrow.csv.read_csv(log.path, convert_options=options)


def preprocess(raw: Path, out: Path) -> None:
    """`utils.datapreprocessing`, temporal protocol."""
    from utils.datapreprocessing import Config, main

    main(Config(raw=raw, out=out))


def pandas_preprocess(raw: Path, out: Path) -> None:
    """The same arrays as one would first write it: all files in memory, sorted, mapped, grouped."""
    import pandas as pd

    days = {path: path.name.split("_")[2] for path in sorted(raw.glob("training_set_*/log_*.csv"))}
    logs = pd.concat([pd.read_csv(path).assign(day=day) for path, day in days.items()], ignore_index=True)
    logs = logs.sort_values(["day", "session_id", "session_position"], kind="stable")
    plays = logs.groupby("session_id")["session_position"].transform("size")
    logs = logs[(plays == logs["session_length"]) & plays.between(schema.MIN_LENGTH, schema.MAX_LENGTH)]

    ordered = sorted(set(days.values()))
    tenth = max(1, round(len(ordered) / 10))
    splits = {"train": ordered[: -2 * tenth], "valid": ordered[-2 * tenth : -tenth], "test": ordered[-tenth:]}
    counts = logs.loc[logs["day"].isin(splits["train"]), "track_id_clean"].value_counts()
    known = counts[counts >= 5].reset_index().sort_values(["count", "track_id_clean"], ascending=[False, True])
    index = (
        known["track_id_clean"].reset_index(drop=True).reset_index().set_index("track_id_clean")["index"]
        + vocab.N_SPECIAL
    )
    logs["track"] = logs["track_id_clean"].map(index).fillna(vocab.UNK).astype("int32")
    flags = [logs["skip_1"], logs["skip_2"], logs["skip_3"], logs["not_skipped"]]
    logs["skip"] = np.select(flags, [4, 3, 2, 1], 0).astype("uint8")
    for name in schema.LOG_COLUMNS:
        if name == "hour_of_day" or "seek" in name:
            logs[name] = logs[name].clip(upper=schema.MAX_SEEKS if "seek" in name else 23) + 1
        elif name == "context_type":
            logs[name] = logs[name].map({value: i + 1 for i, value in enumerate(schema.CONTEXT_TYPES)}).fillna(0)
        elif name.endswith(("reason_start", "reason_end")):
            values = schema.REASONS_START if name.endswith("start") else schema.REASONS_END
            logs[name] = logs[name].map({value: i + 1 for i, value in enumerate(values)}).fillna(0)
        else:
            logs[name] = logs[name].astype("int64") + 1
    for split, split_days in splits.items():
        rows = logs[logs["day"].isin(split_days)]
        (out / split).mkdir(parents=True)
        np.save(out / split / "tracks.npy", rows["track"].to_numpy())
        np.save(out / split / "skips.npy", rows["skip"].to_numpy())
        np.save(out / split / "log.npy", rows[list(schema.LOG_COLUMNS)].to_numpy("uint8"))
        sessions = rows.groupby("session_id", sort=False).agg(day=("day", "first"), plays=("day", "size"))
        np.save(out / split / "offsets.npy", np.concatenate([[0], sessions["plays"].cumsum()]))
        sessions.to_parquet(out / split / "sessions.parquet")
    features = pd.concat([pd.read_csv(path) for path in sorted((raw / "track_features").glob("tf_*.csv"))])
    features = features.set_index("track_id").reindex(index.index)
    numbers = features.select_dtypes("number")
    np.save(out / "track_features.npy", ((numbers - numbers.mean()) / numbers.std()).to_numpy("float32"))


CONTENDERS = {
    "PyArrow parses the same columns": parse,
    "whole job": preprocess,
    "straightforward pandas": pandas_preprocess,
}
FIRST = next(iter(CONTENDERS))


# --------------------------------------------------------------------------------------------------- measurement


def measure(name: str, raw: Path, out: Path) -> dict[str, float]:
    """Run a contender in a process of its own: `seconds` after its imports, `peak_mib` of the process.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.preprocessing", "--contender", name, str(raw), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise UserError(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_contender(name: str, raw: Path, out: Path) -> None:
    import ibis.backends.duckdb  # noqa: F401  every contender pays its imports before the clock starts
    import pandas  # noqa: F401
    import pyarrow.csv  # noqa: F401

    import utils.datapreprocessing  # noqa: F401

    start = time.perf_counter()
    CONTENDERS[name](raw, out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def simulate(folder: Path, *, sessions: int, tracks: int, days: int) -> Path:
    if not folder.exists():
        from utils.synthetic import Config as SimulatorConfig
        from utils.synthetic import main as simulator

        simulator(SimulatorConfig(out=str(folder), sessions=sessions, test_sessions=days, tracks=tracks, days=days))
    return folder


def measure_speed(config: Config, work: Path) -> list[Row]:
    from utils.importers import mssd

    raw = simulate(work / "speed", sessions=config.sessions, tracks=config.tracks, days=FEW)
    rows = sum(sum(1 for _ in log.path.open("rb")) - 1 for log in mssd.find_logs(raw))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(config.repeats):
        for name in CONTENDERS:
            runs[name].append(measure(name, raw, work / "out"))
    result: list[Row] = []
    for name, measured in runs.items():
        # The ratio is within a round: what else the machine did then slowed all contenders.
        ratio = median(first["seconds"] / run["seconds"] for first, run in zip(runs[FIRST], measured, strict=True))
        result.append(
            {
                "name": f"preprocessing: {name}",
                "value": rows / median(run["seconds"] for run in measured),
                "unit": "rows/s",
                "ratio": ratio,
                "peak_mib": max(run["peak_mib"] for run in measured),
            }
        )
    return result


def measure_memory(config: Config, work: Path) -> list[Row]:
    """Peak memory with all files of a simulation, and with its first ten."""
    many = simulate(work / "memory", sessions=config.memory_sessions * MANY, tracks=config.tracks, days=MANY)
    few = work / "memory_few"
    shutil.rmtree(few, ignore_errors=True)
    (few / "training_set_0").mkdir(parents=True)
    (few / "track_features").symlink_to((many / "track_features").resolve())
    for path in sorted((many / "training_set_0").iterdir())[:FEW]:
        (few / "training_set_0" / path.name).symlink_to(path.resolve())
    runs = [[measure("whole job", raw, work / "out")["peak_mib"] for raw in (few, many)] for _ in range(config.repeats)]
    peaks = [median(peak) for peak in zip(*runs, strict=True)]
    return [
        {
            "name": f"preprocessing: peak memory, {n} files",
            "value": peak,
            "unit": "MiB",
            "ratio": ratio,
            "peak_mib": peak,
        }
        for n, peak, ratio in zip((FEW, MANY), peaks, (1.0, peaks[1] / peaks[0]), strict=True)
    ]


def main(config: Config) -> list[Row]:
    """Measure, print, and save to `benchmarks/latest.json`."""
    if config.quick:
        config = replace(config, sessions=config.sessions // 10, repeats=1, memory_sessions=0)
    with tempfile.TemporaryDirectory() as temporary:
        work = config.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = measure_speed(config, work)
        if config.memory_sessions:
            rows += measure_memory(config, work)
    print(table(rows))
    save_rows(rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        run_contender(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        cli(main, Config, description=__doc__)
