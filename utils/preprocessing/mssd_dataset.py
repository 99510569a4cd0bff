"""From MSSD's files to a dataset folder: parse, count, split, write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.preprocessing import mssd, mssd_spark, split_rules
from utils.preprocessing.dataset_writer import (
    Chunk,
    CodedLogs,
    Funnel,
    SplitWriter,
    any_in_session,
    build_vocabulary,
    write_dataset,
    write_tracks,
)
from utils.preprocessing.engine import Engine, arrow_view, in_threads, read_parquet
from utils.preprocessing.options import Config, command_line
from utils.preprocessing.parsed_logs import Part, find_part, make_part
from utils.preprocessing.split_rules import SplitRules

SESSIONS_A_SLICE = 2_000_000
"""`check_unique` compares about so many sessions at a time."""


def read_parts(logs: Sequence[mssd.LogFile], folder: Path, *, workers: int) -> list[Part]:
    """The part of each log, in order: from `folder` where it is still good, and a new one where it is not."""
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
            bar.total = round((bar.n + part.rows) * total / done)  # estimates the rows to come by the bytes to come
            bar.update(part.rows)
    return [part for part in parts.values() if part is not None]


def check_unique(engine: Engine, parts: Sequence[Part]) -> None:
    """Look for a session id in two logs, in slices of the ids, which bound the memory.

    Raises:
        UserError: there is one.
    """
    sessions = read_parquet(engine.connection, [part.sessions_file for part in parts], table_name="sessions")
    total = sum(pq.read_metadata(part.sessions_file).num_rows for part in parts)
    n_slices = 1 << min((total // SESSIONS_A_SLICE).bit_length(), 6)  # 64 at most: each is another pass
    for i in range(n_slices):
        # The engine's own hash may choose the slices, as the result does not depend on them.
        some = sessions.filter((sessions.session_id.hash() & (n_slices - 1)) == i)
        repeated = some.group_by("session_id").agg(n=some.count())
        repeated = repeated.filter(repeated.n > 1).select("session_id").limit(1)
        for session_id in engine.connection.to_pyarrow(repeated)["session_id"]:
            raise mssd.in_two_files(
                session_id.as_py(),
                [part.log.path for part in parts if pc.is_in(session_id, part.sessions()["session_id"]).as_py()],
            )


def count_plays(rules: SplitRules, part: Part) -> pa.RecordBatch:
    """`track_id` and `plays` int64: the plays of a part that count for the vocabulary."""
    sessions = part.sessions()
    ids, plays, complete = (sessions[name].combine_chunks() for name in ("session_id", "plays", "complete"))
    lengths, whole = plays.to_numpy(), complete.to_numpy(zero_copy_only=False)
    counted = split_rules.counted_sessions(rules, part.log, ids, lengths, whole)
    track_ids = part.track_ids()
    n_plays = np.bincount(part.tracks()[np.repeat(counted, lengths)], minlength=len(track_ids))
    return pa.record_batch({"track_id": track_ids, "plays": n_plays}).filter(pa.array(n_plays > 0))


def count_tracks(
    engine: Engine,
    rules: SplitRules,
    parts: Sequence[Part],
    *,
    workers: int,
    catalogue: pa.ChunkedArray | None = None,
) -> pa.Table:
    """The vocabulary of all parts (see `build_vocabulary`); their counts stream through the engine one by one."""
    counts = in_threads(partial(count_plays, rules), parts, workers=workers)
    bar = tqdm(counts, desc="counting", unit=" files", total=len(parts), leave=False)
    columns = pa.schema([("track_id", pa.string()), ("plays", pa.int64())])
    with arrow_view(engine.connection, "counts", pa.RecordBatchReader.from_batches(columns, bar)) as table:
        return build_vocabulary(table, min_count=rules.min_count, catalogue=catalogue)


def part_chunk(vocabulary: pa.Table, part: Part) -> tuple[Chunk, np.ndarray]:
    """All sessions of a part, with ids of the vocabulary for its tracks, and which are complete, bool (M,)."""
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
    rules: SplitRules,
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
        UserError: something is wrong with a log, or a session is in two logs.
    """
    parts = read_parts(logs, parsed, workers=workers)
    check_unique(engine, parts)
    tracks = count_tracks(engine, rules, parts, workers=workers, catalogue=catalogue)
    chunks = in_threads(partial(part_chunk, tracks), parts, workers=workers)
    return CodedLogs(tracks, [part.rows for part in parts], chunks)


def write_log(
    rules: SplitRules,
    log: mssd.LogFile,
    chunk: Chunk,
    complete: np.ndarray,
    writers: Sequence[SplitWriter],
    funnel: Funnel,
) -> None:
    """Send the sessions of a log to their splits, and count in the funnel what was read, dropped and kept.

    Args:
        complete: which sessions have all their rows, bool (M,).
    """

    def count(reason: str, which: np.ndarray) -> None:
        funnel.add(reason, rows=chunk.lengths[which].sum(), sessions=which.sum())

    fits = split_rules.right_length(rules, chunk.lengths)
    kept = complete & fits
    shortest, longest = rules.lengths
    lengths = f"{shortest} to {longest}" if shortest < longest else str(longest)
    count("read", np.ones(len(kept), bool))
    count("dropped: rows or positions missing", ~complete)
    count(f"dropped: not {lengths} plays", complete & ~fits)
    if rules.known_tracks_only:
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
    split = rules.assign(log, kept_chunk.session_id)
    for i, writer in enumerate(writers):
        writer.add(kept_chunk.take(split == i))


def choose_rules(config: Config, logs: Sequence[mssd.LogFile]) -> SplitRules:
    if config.protocol == "original":
        return split_rules.original(valid_fraction=config.valid_fraction, min_count=config.min_count)
    if config.protocol == "session":
        return split_rules.by_session(
            valid_fraction=config.valid_fraction, test_fraction=config.test_fraction, min_count=config.min_count
        )
    return split_rules.temporal(
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
        parsed: folder for the parts of logs (with DuckDB).
    """
    assert config.raw is not None
    logs = mssd.find_logs(config.raw)
    if config.protocol == "original":
        logs = split_rules.original_logs(logs)
    rules = choose_rules(config, logs)
    feature_files = mssd.feature_files(config.raw, mini=logs[0].day == "")
    catalogue = read_catalogue(config.raw, feature_files) if rules.min_count == 0 else None
    options: dict[str, Any] = {
        "workers": config.workers or min(os.cpu_count() or 1, 4),
        "catalogue": None if catalogue is None else catalogue["track_id"],
    }
    if config.engine == "spark":
        coded = mssd_spark.code_logs(engine, rules, logs, work, **options)
    else:
        coded = code_logs(engine, rules, logs, parsed, **options)

    funnel = Funnel()
    writers = [SplitWriter(folder / split) for split in schema.SPLITS]
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(total=sum(coded.rows), desc="writing", unit=" rows", unit_scale=True) as bar,
    ):
        features = pool.submit(mssd.read_features, feature_files, coded.tracks["track_id"], catalogue)  # meanwhile
        for log, (chunk, complete) in zip(logs, coded.chunks, strict=True):
            write_log(rules, log, chunk, complete, writers, funnel)
            bar.update(len(chunk.tracks))
    splits = {split: writer.close() for split, writer in zip(schema.SPLITS, writers, strict=True)}

    raw, notes = features.result()
    if rules.min_count == 0:
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
        min_count=rules.min_count,
        features=write_tracks(folder, coded.tracks, raw),
        has_skips=True,
        has_log=True,
        notes=notes,
        engine=engine.name,
        command=command_line(config),
    )
