"""Preprocessing beside a plain parse of the same columns and a straightforward pandas version.

    python -m benchmarks.preprocessing
    python -m benchmarks.preprocessing --quick true
    python -m benchmarks.preprocessing --sessions 20000 --rounds 1

Three million simulated rows in ten files. Then twelve million, too many for pandas: fixed costs, such as the features,
count less. Then peak memory with 10 and with 60 files of the same size.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.options import fill_in
from benchmarks.rounds import Contender, Step, gate, measure, rows_of
from benchmarks.rows import Row, publish
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.data import schema, vocab

FEW, MANY = 10, 60
ARRAYS = ("tracks", "skips", "log", "offsets")
GATE_SESSIONS = 2000


@dataclass
class Config:
    """Sizes of the measurement."""

    sessions: int = 0
    """Simulated sessions in ten files, 16.6 plays each; 0: 181,000, or a tenth of them if quick."""
    tracks: int = 103_000
    """Tracks of the simulated catalogue."""
    rounds: int = 0
    """Rounds that are timed; 0: five, or two if quick."""
    large_sessions: int = 0
    """Sessions in ten files that pandas is spared; 0: 724,000 (2 GB), or if quick no such measurement."""
    memory_sessions: int = 0
    """Sessions in each of the sixty files of the memory measurement; 0: 18,100 (3 GB in all), or if quick no such
    measurement."""
    quick: bool = False
    """A tenth of the sessions, two rounds, without the larger files and the memory measurement."""
    work: Path | None = None
    """Folder for the simulated files, kept and used again; a temporary one if not given."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if sizes are the defaults."""

    def __post_init__(self) -> None:
        fill_in(
            self, sessions=(181_000, 18_100), rounds=(5, 2), large_sessions=(724_000, 0), memory_sessions=(18_100, 0)
        )
        check_at_least(self, "benchmark", sessions=1, tracks=1, rounds=1, large_sessions=0, memory_sessions=0)


# ---------------------------------------------------------------------------------------------------- contenders

Job = Callable[[Path, Path], None]
"""Makes something of a raw folder in an empty place."""


def parse(raw: Path, out: Path) -> None:
    """PyArrow reads the columns that preprocessing uses, and nothing else happens."""
    import pyarrow.csv

    from utils.preprocessing import mssd

    options = pyarrow.csv.ConvertOptions(include_columns=mssd.COLUMNS)
    for log in mssd.find_logs(raw):
        pyarrow.csv.read_csv(log.path, convert_options=options)


def preprocess(raw: Path, out: Path) -> None:
    """`utils.datapreprocessing`, temporal protocol."""
    from utils.datapreprocessing import main
    from utils.preprocessing.options import Config

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


def setup(job: Job, raw: Path, out: Path, rows: int) -> Step:
    """The job after its imports; units are rows of the logs."""
    import ibis.backends.duckdb  # noqa: F401  all jobs have the same modules in memory
    import pandas  # noqa: F401
    import pyarrow.csv  # noqa: F401

    import utils.datapreprocessing  # noqa: F401

    def step() -> float:
        shutil.rmtree(out, ignore_errors=True)
        job(raw, out)
        return rows

    return step


# --------------------------------------------------------------------------------------------------------- gates


def check(work: Path, tracks: int) -> None:
    """Both versions write the same arrays from a small simulation.

    Raises:
        UserError: they do not.
    """
    raw = simulate(work, sessions=GATE_SESSIONS, tracks=tracks, days=FEW)
    folders = work / "gate_ours", work / "gate_pandas"
    for job, out in zip((preprocess, pandas_preprocess), folders, strict=True):
        shutil.rmtree(out, ignore_errors=True)
        with redirect_stdout(io.StringIO()):
            job(raw, out)
    for split in schema.SPLITS:
        for name in ARRAYS:
            ours, theirs = (np.load(folder / split / f"{name}.npy") for folder in folders)
            gate(np.array_equal(ours, theirs), f"{split}/{name}.npy of preprocessing and of pandas")


# --------------------------------------------------------------------------------------------------- measurement


def simulate(work: Path, *, sessions: int, tracks: int, days: int, splits: int = 1) -> Path:
    """Raw logs, `splits` for each of `days` days, in a folder of `work` named after the sizes; kept if it is there."""
    folder = work / f"raw_{sessions}_sessions_{tracks}_tracks_{days}_days_{splits}_splits"
    if not folder.exists():
        from utils.simulator.__main__ import Config as SimulatorConfig
        from utils.simulator.__main__ import main as simulator

        config = SimulatorConfig(
            out=str(folder), sessions=sessions, test_sessions=days, tracks=tracks, days=days, splits=splits
        )
        with redirect_stdout(io.StringIO()):
            simulator(config)
    return folder


def measure_speed(config: Config, work: Path, jobs: Mapping[str, Job], *, sessions: int) -> list[Row]:
    """Rows of logs in a second for each job, all with the same logs; the first job is the reference."""
    from utils.preprocessing import mssd

    raw = simulate(work, sessions=sessions, tracks=config.tracks, days=FEW)
    n_rows = sum(sum(1 for _ in log.path.open("rb")) - 1 for log in mssd.find_logs(raw))
    contenders = [
        Contender(
            f"preprocess/{name}", setup, {"job": job, "raw": raw, "out": work / f"out_{job.__name__}", "rows": n_rows}
        )
        for name, job in jobs.items()
    ]
    measured = measure(contenders, rounds=config.rounds, title=f"preprocessing, {sessions:,} sessions")
    return rows_of(measured, "rows/s", quick=config.quick)


def measure_memory(config: Config, work: Path) -> list[Row]:
    """Peak memory with all files of a simulation, and with its first ten."""
    many = simulate(work, sessions=config.memory_sessions * MANY, tracks=config.tracks, days=MANY)
    few = work / "memory_few"
    shutil.rmtree(few, ignore_errors=True)
    (few / "training_set_0").mkdir(parents=True)
    (few / "track_features").symlink_to((many / "track_features").resolve())
    for path in sorted((many / "training_set_0").iterdir())[:FEW]:
        (few / "training_set_0" / path.name).symlink_to(path.resolve())
    contenders = [
        Contender(
            f"preprocess/memory/{n}-files", setup, {"job": preprocess, "raw": raw, "out": work / f"out_{n}", "rows": 1}
        )
        for n, raw in ((FEW, few), (MANY, many))
    ]
    measured = measure(contenders, rounds=1, title="preprocessing, memory")
    peaks = {name: found.peak_mib for name, found in measured.items()}
    first = peaks[contenders[0].name]
    return [
        Row(name, peak, "MiB", ratio=peak / first, peak_mib=peak, idle_mib=measured[name].idle_mib, quick=config.quick)
        for name, peak in peaks.items()
    ]


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gate, then rounds."""
    work = config.work or folder
    work.mkdir(parents=True, exist_ok=True)
    check(work, config.tracks)
    jobs = {"reference": pandas_preprocess, "ours": preprocess, "parse": parse}
    rows = measure_speed(config, work, jobs, sessions=config.sessions)
    if config.large_sessions:
        jobs = {"large/parse": parse, "large/ours": preprocess}
        rows += measure_speed(config, work, jobs, sessions=config.large_sessions)
    return rows + measure_memory(config, work) if config.memory_sessions else rows


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
