"""Raw listening logs to a dataset folder (`docs/data.md`): MSSD's files, or any table of plays.

    python -m utils.datapreprocessing --raw data/raw/demo --out data/demo
    python -m utils.datapreprocessing --raw data/raw/mssd --out data/mssd_seed --protocol seed
    python -m utils.datapreprocessing --plays plays.parquet --plays_columns.session session_id \\
        --plays_columns.position position --out data/plays

Protocols for MSSD's files:
    temporal  split by day, train before valid before test; sessions of 10 to 20 plays; rare tracks become `unk`
    seed      the original experiment's 103K-track sample: split 0 trains, split 9 tests, the first 60 days, sessions
              of exactly 20 plays of tracks with 150 training plays or more; valid is cut from training by session
    session   split by a hash of the session id, whatever the day: for a single day, such as the mini set. Easier than
              `temporal`, since the sessions of a day share playlists
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from utils import protocols, schema, vocab
from utils.cli import UserError, cli
from utils.files import atomic_folder
from utils.importers import mssd, mssd_spark, plays
from utils.importers.parts import Part, find_part, make_part, parts_folder
from utils.importers.plays import PlaysColumns
from utils.preparing import (
    Chunk,
    CodedLogs,
    Engine,
    Funnel,
    SplitWriter,
    arrow_view,
    build_vocabulary,
    connect,
    in_threads,
    summary,
    write_dataset,
    write_tracks,
)

SESSIONS_A_SLICE = 2_000_000
"""`check_unique` compares about so many sessions at a time."""


@dataclass
class Config:
    """Raw logs to a dataset folder."""

    out: Path
    """Dataset folder to write."""
    raw: Path | None = None
    """Folder with MSSD's files, plain or .gz: training_set_0/log_0_20180715_000000000000.csv, track_features/tf_*."""
    plays: Path | None = None
    """Instead of --raw: a table of plays (CSV or Parquet), or a folder of them."""
    plays_columns: PlaysColumns = field(default_factory=PlaysColumns)
    """Which column of --plays is what."""
    protocol: Literal["temporal", "seed", "session"] = "temporal"
    """How MSSD's sessions are chosen and split; see above. Tables of plays are split by time."""
    min_count: int | None = None
    """Training plays below which a track is rare; 5, or 150 for the seed protocol. 0 takes in all of track_features."""
    valid_days: int | None = None
    """temporal: days before the test days; a tenth of all, at least one."""
    test_days: int | None = None
    """temporal: last days; a tenth of all, at least one."""
    valid_fraction: float = 0.1
    """seed, session, plays: share of the sessions for validation (seed: of the training sessions)."""
    test_fraction: float = 0.1
    """session, plays: share of the sessions for testing."""
    min_session_length: int = 2
    """plays: shorter sessions are dropped."""
    max_session_length: int | None = None
    """plays: longer sessions are cut into pieces of this many plays."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What works on MSSD's files: this machine, or Spark (docs/data.md). The dataset is the same."""
    spark_remote: str | None = None
    """A Spark Connect server, sc://host:15002; without it, what spark-submit offers, or Spark on this machine."""
    memory_limit: str = "2GB"
    """duckdb: memory of the engine; beyond it, counts go through temporary files beside --out."""
    workers: int = 0
    """MSSD's logs that are worked on at a time, each on one core and in memory; 0: as many as cores, at most four."""
    overwrite: bool = False
    """Replace an existing --out."""


# ------------------------------------------------------------------------------------------------------- reading


def read_parts(logs: Sequence[mssd.LogFile], folder: Path, *, workers: int) -> list[Part]:
    """The part of each log, in order: those in `folder` that are still good, and new ones of all other logs."""
    parts = {log: find_part(folder, log) for log in logs}
    missing = [log for log in logs if parts[log] is None]
    if len(missing) < len(logs):
        print(f"{len(logs) - len(missing)} of {len(logs)} files are parsed already: taken from {folder}")
    total = sum(log.path.stat().st_size for log in missing)
    done = 0
    with tqdm(desc="reading", unit=" rows", unit_scale=True, smoothing=0, disable=not missing) as bar:
        for part in in_threads(partial(make_part, folder), missing, workers=workers):
            parts[part.log] = part
            done += part.log.path.stat().st_size
            bar.total = round((bar.n + part.rows) * total / done)  # rows to come, by the bytes to come
            bar.update(part.rows)
    return [part for part in parts.values() if part is not None]


def check_unique(engine: Engine, parts: Sequence[Part]) -> None:
    """Look for a session id in two logs, in slices of the ids that bound the memory.

    Raises:
        UserError: there is one.
    """
    sessions = engine.connection.read_parquet([str(part.sessions_file) for part in parts], table_name="sessions")
    total = sum(pq.read_metadata(part.sessions_file).num_rows for part in parts)
    n_slices = 1 << min((total // SESSIONS_A_SLICE).bit_length(), 6)  # 64 at most: each is another pass
    for i in range(n_slices):
        # An engine's own hash may choose the slices: what is found does not depend on them.
        some = sessions.filter((sessions.session_id.hash() & (n_slices - 1)) == i)
        repeated = some.group_by("session_id").agg(n=some.count())
        repeated = repeated.filter(repeated.n > 1).select("session_id").limit(1)
        for session_id in engine.connection.to_pyarrow(repeated)["session_id"]:
            raise mssd.in_two_files(
                session_id.as_py(),
                [part.log.path for part in parts if pc.is_in(session_id, part.sessions()["session_id"]).as_py()],
            )


# --------------------------------------------------------------------------------------------------- MSSD's door


def count_plays(protocol: protocols.Protocol, part: Part) -> pa.RecordBatch:
    """`track_id` and `plays` int64: the plays of a part that count for the vocabulary."""
    sessions = part.sessions()
    ids, plays, complete = (sessions[name].combine_chunks() for name in ("session_id", "plays", "complete"))
    lengths, whole = plays.to_numpy(), complete.to_numpy(zero_copy_only=False)
    counted = protocols.counted_sessions(protocol, part.log, ids, lengths, whole)
    track_ids = part.track_ids()
    n_plays = np.bincount(part.tracks()[np.repeat(counted, lengths)], minlength=len(track_ids))
    return pa.record_batch({"track_id": track_ids, "plays": n_plays}).filter(pa.array(n_plays > 0))


def count_tracks(
    engine: Engine,
    protocol: protocols.Protocol,
    parts: Sequence[Part],
    *,
    workers: int,
    catalogue: pa.ChunkedArray | None = None,
) -> pa.Table:
    """The vocabulary of all parts (see `build_vocabulary`), whose counts stream through the engine one by one."""
    counts = in_threads(partial(count_plays, protocol), parts, workers=workers)
    bar = tqdm(counts, desc="counting", unit=" files", total=len(parts), leave=False)
    columns = pa.schema([("track_id", pa.string()), ("plays", pa.int64())])
    with arrow_view(engine.connection, "counts", pa.RecordBatchReader.from_batches(columns, bar)) as table:
        return build_vocabulary(table, min_count=protocol.min_count, catalogue=catalogue)


def part_chunk(vocabulary: pa.Table, part: Part) -> tuple[Chunk, np.ndarray]:
    """All sessions of a part, its tracks looked up in the vocabulary, and which are complete, bool (M,)."""
    sessions, track_ids = part.sessions(), part.track_ids()
    places = pc.fill_null(pc.index_in(vocabulary["track_id"], value_set=track_ids), -1).to_numpy()
    ids = np.full(len(track_ids), vocab.UNK, np.int32)
    ids[places[places >= 0]] = vocabulary["index"].to_numpy()[places >= 0]
    skips, log = part.codes()
    chunk = Chunk(
        tracks=ids[part.tracks()],
        skips=skips,
        log=log,
        lengths=sessions["plays"].to_numpy(),
        session_id=sessions["session_id"].combine_chunks(),
        day=sessions["day"].combine_chunks(),
        file=part.log.path.name,
    )
    return chunk, sessions["complete"].to_numpy()


def code_logs(
    engine: Engine,
    protocol: protocols.Protocol,
    logs: Sequence[mssd.LogFile],
    parsed: Path,
    *,
    workers: int,
    catalogue: pa.ChunkedArray | None = None,
) -> CodedLogs:
    """Parse and count the logs on this machine, with their parts in `parsed`.

    Args:
        catalogue: see `build_vocabulary`.

    Raises:
        UserError: something is wrong with a log, or a session is in two.
    """
    parts = read_parts(logs, parsed, workers=workers)
    check_unique(engine, parts)
    tracks = count_tracks(engine, protocol, parts, workers=workers, catalogue=catalogue)
    chunks = in_threads(partial(part_chunk, tracks), parts, workers=workers)
    return CodedLogs(tracks, [part.rows for part in parts], chunks)


def any_in_session(events: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which sessions have a play whose flag is set: bool (N,) -> bool (M,)."""
    return np.logical_or.reduceat(events, np.cumsum(lengths) - lengths) if len(lengths) else np.zeros(0, bool)


def write_log(
    protocol: protocols.Protocol,
    log: mssd.LogFile,
    chunk: Chunk,
    complete: np.ndarray,
    writers: Sequence[SplitWriter],
    funnel: Funnel,
) -> None:
    """Send the sessions of a log to their splits, and count those that go nowhere.

    Args:
        complete: which sessions have all their rows, bool (M,).
    """

    def count(reason: str, which: np.ndarray) -> None:
        funnel.add(reason, rows=chunk.lengths[which].sum(), sessions=which.sum())

    fits = protocols.right_length(protocol, chunk.lengths)
    kept = complete & fits
    shortest, longest = protocol.lengths
    lengths = f"{shortest} to {longest}" if shortest < longest else str(longest)
    count("read", np.ones(len(kept), bool))
    count("dropped: rows or positions missing", ~complete)
    count(f"dropped: not {lengths} plays", complete & ~fits)
    if protocol.known_tracks_only:
        unknown = any_in_session(chunk.tracks == vocab.UNK, chunk.lengths)
        count("dropped: a track outside the vocabulary", kept & unknown)
        kept &= ~unknown
    count("kept", kept)
    kept_chunk = chunk.take(kept)
    for reason, events in (
        ("kept, of which a track outside the vocabulary", kept_chunk.tracks == vocab.UNK),
        ("kept, of which an unknown category", mssd.unknown_category(kept_chunk.log)),
    ):
        funnel.add(reason, rows=events.sum(), sessions=any_in_session(events, kept_chunk.lengths).sum())
    split = protocol.assign(log, kept_chunk.session_id)
    for i, writer in enumerate(writers):
        writer.add(kept_chunk.take(split == i))


def choose_protocol(config: Config, logs: Sequence[mssd.LogFile]) -> protocols.Protocol:
    if config.protocol == "seed":
        return protocols.seed(valid_fraction=config.valid_fraction, min_count=config.min_count)
    if config.protocol == "session":
        return protocols.by_session(
            valid_fraction=config.valid_fraction, test_fraction=config.test_fraction, min_count=config.min_count
        )
    return protocols.temporal(
        logs, min_count=config.min_count, valid_days=config.valid_days, test_days=config.test_days
    )


def read_catalogue(raw: Path, files: Sequence[Path]) -> pa.Table:
    """All tracks of `track_features`, with their features.

    Raises:
        UserError: there are none; see also `mssd.read_catalogue`.
    """
    if not files:
        raise UserError(
            f"--min_count 0 takes in the tracks of track_features/*.csv, and {raw} has none; use --min_count 1"
        )
    return mssd.read_catalogue(files)


def prepare_mssd(config: Config, folder: Path, work: Path, engine: Engine, parsed: Path) -> dict[str, Any]:
    """Write the dataset of `config.raw` into `folder`; returns `dataset.json`.

    Args:
        work: folder for temporary files.
        parsed: folder for the parts of logs (DuckDB).
    """
    assert config.raw is not None
    logs = mssd.find_logs(config.raw)
    if config.protocol == "seed":
        logs = protocols.seed_logs(logs)
    protocol = choose_protocol(config, logs)
    feature_files = mssd.feature_files(config.raw, mini=logs[0].day == "")
    catalogue = read_catalogue(config.raw, feature_files) if protocol.min_count == 0 else None
    options: dict[str, Any] = {
        "workers": config.workers or min(os.cpu_count() or 1, 4),
        "catalogue": None if catalogue is None else catalogue["track_id"],
    }
    if config.engine == "spark":
        coded = mssd_spark.code_logs(engine, protocol, logs, work, **options)
    else:
        coded = code_logs(engine, protocol, logs, parsed, **options)

    funnel = Funnel()
    writers = [SplitWriter(folder / split) for split in schema.SPLITS]
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(total=sum(coded.rows), desc="writing", unit=" rows", unit_scale=True) as bar,
    ):
        features = pool.submit(mssd.read_features, feature_files, coded.tracks["track_id"], catalogue)  # meanwhile
        for log, (chunk, complete) in zip(logs, coded.chunks, strict=True):
            write_log(protocol, log, chunk, complete, writers, funnel)
            bar.update(len(chunk.tracks))
    splits = {split: writer.close() for split, writer in zip(schema.SPLITS, writers, strict=True)}

    raw, notes = features.result()
    if protocol.min_count == 0:
        unplayed = pc.sum(pc.equal(coded.tracks["train_plays"], 0)).as_py()
        notes.append(f"{unplayed} tracks of the vocabulary have no training plays")
    return write_dataset(
        folder,
        name=config.out.name,
        protocol=config.protocol,
        sources=[
            {"file": str(log.path.relative_to(config.raw)), "bytes": log.path.stat().st_size, "rows": rows}
            for log, rows in zip(logs, coded.rows, strict=True)
        ],
        funnel=funnel,
        splits=splits,
        tracks=coded.tracks,
        min_count=protocol.min_count,
        features=write_tracks(folder, coded.tracks, raw),
        has_skips=True,
        has_log=True,
        notes=notes,
        engine=engine.name,
        command=command_line(config),
    )


# -------------------------------------------------------------------------------------------- the door for plays


def prepare_plays(config: Config, folder: Path, work: Path, engine: Engine) -> dict[str, Any]:
    """Write the dataset of `config.plays` into `folder`, with temporary files in `work`; returns `dataset.json`."""
    assert config.plays is not None
    files = plays.plays_files(config.plays)
    arranged = plays.arrange(
        engine.connection,
        config.plays,
        config.plays_columns,
        work,
        shortest=config.min_session_length,
        longest=config.max_session_length,
    )
    valid, test = protocols.split_sessions(
        arranged.sessions["whole"].to_pylist(),
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
    )
    training = arranged.events.filter(arranged.events.number < valid)
    counts = training.group_by("track_id").agg(plays=training.count())
    min_count = protocols.DEFAULT_MIN_COUNT if config.min_count is None else config.min_count
    tracks = build_vocabulary(counts, min_count=min_count)
    pq.write_table(tracks, work / "vocabulary.parquet")
    known = engine.connection.read_parquet(str(work / "vocabulary.parquet"))

    writers = [SplitWriter(folder / split) for split in schema.SPLITS]
    batches = plays.indexed_batches(engine.connection, arranged.events, known)
    total = int(arranged.sessions["plays"].to_numpy().sum())
    done = 0
    n_unknown = sessions_unknown = 0
    has_skips = False
    with tqdm(total=total, desc="writing", unit=" rows", unit_scale=True) as bar:
        for chunk in plays.chunks(batches, arranged.sessions, config.plays.name):
            split = np.digitize(np.arange(done, done + len(chunk.lengths)), [valid, test])
            for i, writer in enumerate(writers):
                writer.add(chunk.take(split == i))
            unknown = chunk.tracks == vocab.UNK
            n_unknown += int(unknown.sum())
            sessions_unknown += int(any_in_session(unknown, chunk.lengths).sum())
            has_skips |= bool((chunk.skips != schema.SKIP_UNKNOWN).any())
            done += len(chunk.lengths)
            bar.update(len(chunk.tracks))
    arranged.funnel.add("kept, of which a track outside the vocabulary", rows=n_unknown, sessions=sessions_unknown)
    splits = {split: writer.close() for split, writer in zip(schema.SPLITS, writers, strict=True)}
    return write_dataset(
        folder,
        name=config.out.name,
        protocol="plays",
        sources=[
            {
                "file": file.name if file == config.plays else str(file.relative_to(config.plays)),
                "bytes": file.stat().st_size,
                "rows": plays.count_rows(engine.connection, file),
            }
            for file in files
        ],
        funnel=arranged.funnel,
        splits=splits,
        tracks=tracks,
        min_count=min_count,
        features=write_tracks(folder, tracks, tracks.select([])),
        has_skips=has_skips,
        has_log=False,
        notes=["a table of plays has no audio features and no log columns"],
        engine=engine.name,
        command=command_line(config),
    )


# ---------------------------------------------------------------------------------------------------------- main


def command_line(config: Any) -> str:
    """The command that gives this dataset again: every option that is not its default."""

    def options(value: Any, default: Any, prefix: str) -> Iterator[str]:
        for item in fields(value):
            here, there = getattr(value, item.name), getattr(default, item.name)
            if is_dataclass(here):
                yield from options(here, there, f"{prefix}{item.name}.")
            elif here != there:
                yield from (f"--{prefix}{item.name}", str(here))

    return shlex.join(["python", "-m", "utils.datapreprocessing", *options(config, Config(out=Path()), "")])


OPTIONS_OF = {
    "workers": ("temporal", "seed", "session"),
    "valid_days": ("temporal",),
    "test_days": ("temporal",),
    "valid_fraction": ("seed", "session", "plays"),
    "test_fraction": ("session", "plays"),
    "plays_columns": ("plays",),
    "min_session_length": ("plays",),
    "max_session_length": ("plays",),
}
"""The protocols that an option has a meaning for; `plays` is that of `--plays`."""


def check_config(config: Config) -> None:
    """
    Raises:
        UserError: no input or two, a number out of range, or an option that would be ignored.
    """
    if (config.raw is None) == (config.plays is None):
        raise UserError("give either --raw (a folder with MSSD's files) or --plays (a table of plays)")
    if config.plays is not None and config.protocol != "temporal":
        raise UserError(f"--protocol {config.protocol} is for MSSD's files; a table of plays is split by time")
    if config.plays is not None and config.engine == "spark":
        raise UserError("--engine spark is for MSSD's files (--raw); a table of plays is worked on by DuckDB")
    if config.engine == "duckdb" and config.spark_remote is not None:
        raise UserError("--spark_remote is for --engine spark")
    if config.engine == "spark" and config.memory_limit != Config(out=config.out).memory_limit:
        raise UserError("--memory_limit is for --engine duckdb; Spark's memory is configured where it is started")
    protocol = "plays" if config.plays is not None else config.protocol
    default = Config(out=config.out)
    for name, meant_for in OPTIONS_OF.items():
        if protocol not in meant_for and getattr(config, name) != getattr(default, name):
            raise UserError(f"--{name} is for {', '.join(meant_for)}; it means nothing to {protocol}")
    if config.plays is not None and config.min_count == 0:
        raise UserError(
            "--min_count 0 takes in the tracks of track_features that nobody played, which a table of plays does not "
            "have; use --min_count 1"
        )
    for name, least in {"min_count": 0, "min_session_length": 1, "max_session_length": 1}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be {least} or more")
    if config.max_session_length is not None and config.max_session_length < config.min_session_length:
        raise UserError("--max_session_length is below --min_session_length: nothing would be left")
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 1 or more, or 0 to choose it")
    for name in ("valid_fraction", "test_fraction"):
        if not 0 < getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be between 0 and 1")
    if protocol != "seed" and config.valid_fraction + config.test_fraction >= 1:
        raise UserError("--valid_fraction and --test_fraction leave nothing to train on; their sum must be below 1")


def main(config: Config) -> dict[str, Any]:
    """Write the dataset folder `config.out`; returns its `dataset.json`.

    Raises:
        UserError: bad input, or no space to write to. Nothing is at `config.out` then, and what was parsed of MSSD's
            files is kept for the next run (`utils.importers.parts`).
    """
    check_config(config)
    keeps_parts = config.plays is None and config.engine == "duckdb"
    parsed = parts_folder(config.out) if keeps_parts else nullcontext(Path())
    try:
        with parsed as parts, atomic_folder(config.out, overwrite=config.overwrite, holds="dataset.json") as folder:
            work = folder / "work"
            work.mkdir()
            if config.engine == "spark":
                engine = mssd_spark.connect(config.spark_remote)
            else:
                engine = connect(memory_limit=config.memory_limit, folder=work)
            if config.plays is None:
                dataset = prepare_mssd(config, folder, work, engine, parts)
            else:
                dataset = prepare_plays(config, folder, work, engine)
            engine.connection.disconnect()
            shutil.rmtree(work)
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise UserError(f"{error} (writing {config.out}: is the disk full, or may you not write there?)") from None
    print(summary(dataset))
    return dataset


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
