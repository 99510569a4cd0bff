"""MSSD's raw files: finds them; parses, codes, checks and sorts a log.

PyArrow parses a log once, and integers come out: session and track ids as codes of the file's own dictionaries (those
of sessions in ascending order, so that sorting codes sorts ids), and everything else as one byte a column. All of it
happens in one thread, so that several logs can be read side by side.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from utils.core.errors import UserError
from utils.data import schema
from utils.preprocessing.csv_files import Check, check_columns, explain, find_line, hidden

LOG_NAME = re.compile(r"log_(\d)_(\d{8})_\d+\.csv(\.gz)?")
FIRST_DAY = pd.Timestamp("2018-07-15")
"""Day 0 of MSSD: a session id starts with the number of its day."""
TRUE, FALSE = ["True", "true", "TRUE", "1"], ["False", "false", "FALSE", "0"]
IDS = ("session_id", "track_id_clean")
CATEGORIES = {
    "context_type": schema.CONTEXT_TYPES,
    "hist_user_behavior_reason_start": schema.REASONS_START,
    "hist_user_behavior_reason_end": schema.REASONS_END,
}
SEEKS = ("hist_user_behavior_n_seekfwd", "hist_user_behavior_n_seekback")
NUMBERS = {
    "session_position": pa.uint8(),
    "session_length": pa.uint8(),
    **dict.fromkeys(SEEKS, pa.uint32()),
    "hour_of_day": pa.uint8(),
}
FLAGS = tuple(
    column for column in schema.SESSION_COLUMNS if column not in {*IDS, *CATEGORIES, *NUMBERS, "date"}
)  # `date` is garbage in places: the day is that of the file
COLUMNS = tuple(column for column in schema.SESSION_COLUMNS if column != "date")
REQUIRED = ("session_id", "session_position", "session_length", "track_id_clean")
COLUMN_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys((*IDS, *CATEGORIES), pa.dictionary(pa.int32(), pa.string())),
    **NUMBERS,
    **dict.fromkeys(FLAGS, pa.bool_()),
}


class LogFile(NamedTuple):
    path: Path
    split: int
    """0..9; -1 in the mini set"""
    day: str
    """YYYYMMDD; "" in the mini set, whose sessions carry their day"""


class Log(NamedTuple):
    """A log, its plays sorted by session and position. N plays, M sessions, K tracks."""

    session_ids: pa.Array
    """string (M,), ascending"""
    lengths: np.ndarray
    """int64 (M,): plays of each session"""
    complete: np.ndarray
    """bool (M,): whether each position from 1 to `session_length` is there"""
    track_ids: pa.Array
    """string (K,)"""
    tracks: np.ndarray
    """int32 (N,): places in `track_ids`"""
    skips: np.ndarray
    """uint8 (N,): `schema.SKIP_*`"""
    log: np.ndarray
    """uint8 (N, L): codes of `schema.LOG_COLUMNS`"""


def find_files(raw: Path) -> list[Path]:
    """All CSV files anywhere under `raw`, plain or packed, in order; linked folders too, hidden ones not."""
    found: list[Path] = []
    for folder, folders, names in os.walk(raw, followlinks=True):
        folders[:] = [name for name in folders if not hidden(name)]  # `os.walk` goes on into these
        found += [Path(folder) / name for name in names if ".csv" in name and not hidden(name)]
    return sorted(found)


def find_logs(raw: Path) -> list[LogFile]:
    """All training logs anywhere under `raw`, in order of day and split; the mini set's only if there are no others.

    Raises:
        UserError: no such folder, no log in it, or the same log twice (a session would be in both).
    """
    if not raw.is_dir():
        raise UserError(f"--raw {raw} is not a folder")
    logs: dict[tuple[str, int], LogFile] = {}
    files = find_files(raw)
    for path in files:
        match = LOG_NAME.fullmatch(path.name)
        if match and path.is_file():
            log = LogFile(path, int(match[1]), match[2])
            twin = logs.setdefault((log.day, log.split), log)
            if twin is not log:
                raise UserError(f"{twin.path} and {path} are the same log; remove one of them")
    if not logs:
        mini = [path for path in files if path.name in {"log_mini.csv", "log_mini.csv.gz"}]
        if len(mini) > 1:
            raise UserError(f"{mini[0]} and {mini[1]} are the same log; remove one of them")
        if mini:
            return [LogFile(mini[0], -1, "")]
    if not logs:
        raise UserError(
            f"{raw} holds no training log (training_set_0/log_0_20180715_000000000000.csv, plain or .gz); "
            "data/README.md says where data comes from"
        )
    return [logs[key] for key in sorted(logs)]


def feature_files(raw: Path, *, mini: bool) -> list[Path]:
    """The CSV files of every folder `track_features` under `raw`; `tf_mini` goes with the mini set only."""
    files = [path for path in find_files(raw) if path.parent.name == "track_features"]
    return [path for path in files if path.name.startswith("tf_mini") == mini]


def session_days(session_ids: pa.Array, path: Path) -> pa.Array:
    """Days (YYYYMMDD) from the number before the first `_` of each session id: 38_... is 2018-08-22.

    Raises:
        UserError: an id has no such number.
    """
    numbers = pc.struct_field(pc.extract_regex(session_ids, r"^(?P<day>\d{1,3})_"), "day")
    if numbers.null_count:
        odd = session_ids.filter(numbers.is_null())[0]
        raise UserError(
            f"{path}: session {odd} does not start with the number of its day (38_...), so its day is unknown"
        )
    offsets = np.asarray(numbers.cast(pa.int32()))
    names = np.array([(FIRST_DAY + pd.Timedelta(days=d)).strftime("%Y%m%d") for d in range(offsets.max(initial=0) + 1)])
    return pa.array(names[offsets], pa.string())


def days_of(log: LogFile, session_ids: pa.Array) -> pa.Array:
    """The day of each session of a log: that of the file, or if it has none, that of the session id.

    Raises:
        UserError: see `session_days`.
    """
    return pa.repeat(log.day, len(session_ids)) if log.day else session_days(session_ids, log.path)


def read_log(path: Path) -> Log:
    """Parse, code, check and sort a log.

    Raises:
        UserError: names file, line and column of what cannot be read.
    """
    table = parse(path)
    check_positions(path, table)
    session, session_ids = encode_ascending(table["session_id"])
    tracks, track_ids = encode(table["track_id_clean"])
    position, claimed = (table[name].to_numpy() for name in ("session_position", "session_length"))
    skips, log = code_skips(table), code_log(table)
    order = order_of(session, position)
    if order is not None:
        session, position, claimed = session[order], position[order], claimed[order]
        tracks, skips, log = tracks[order], skips[order], log[order]
    check_unique_positions(path, session, position, session_ids)
    lengths, complete = summarise_sessions(session, position, claimed)
    return Log(session_ids, lengths, complete, track_ids, tracks, skips, log)


def parse(path: Path) -> pa.Table:
    """`COLUMNS` of a log, plain or gzipped, its columns in any order.

    Raises:
        UserError: names file, line and column of what cannot be read.
    """
    check_columns(path, COLUMNS)
    blocks = pa.csv.ReadOptions(block_size=1 << 20, use_threads=False)  # blocks that fit the cache
    options = pa.csv.ConvertOptions(
        include_columns=COLUMNS,
        column_types=COLUMN_TYPES,
        null_values=[""],
        strings_can_be_null=True,
        true_values=TRUE,
        false_values=FALSE,
    )
    try:
        table = pa.csv.read_csv(path, blocks, convert_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise explain(path, error, LOG_CHECKS, required=REQUIRED) from None
    if any(table[column].null_count for column in REQUIRED):
        raise explain(path, "an id or a position is empty", LOG_CHECKS, required=REQUIRED)
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows below its header; unpack or download it again")
    return table


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes int32 (N,) of a column with a dictionary in each chunk, -1 where empty, and the values they stand for."""
    chunks = column.unify_dictionaries().chunks
    codes = [chunk.indices.fill_null(-1) if chunk.null_count else chunk.indices for chunk in chunks]
    return np.concatenate([code.to_numpy() for code in codes]), chunks[-1].dictionary


def encode_ascending(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """`encode`, with the values in ascending order."""
    codes, values = encode(column)
    order = pc.sort_indices(values).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[codes], values.take(pa.array(order))


def order_of(session: np.ndarray, position: np.ndarray) -> np.ndarray | None:
    """The order that sorts plays by session and position, int64 (N,); None if they are sorted, as MSSD's own are."""
    place = session.astype(np.int64) * 256 + position
    return None if (place[1:] >= place[:-1]).all() else np.argsort(place)


def whole_number(highest: int) -> Check:
    def check(value: str) -> str | None:
        if value.isascii() and value.isdigit() and int(value) <= highest:
            return None
        return f"not a whole number from 0 to {highest}"

    return check


def flag(value: str) -> str | None:
    return None if value in {*TRUE, *FALSE} else "not one of True, False, true, false, 1, 0"


def number(value: str) -> str | None:
    try:
        float(value)
    except ValueError:
        return "not a number"
    return None


LOG_CHECKS: dict[str, Check] = {
    **{column: whole_number(2**dtype.bit_width - 1) for column, dtype in NUMBERS.items()},
    **dict.fromkeys(FLAGS, flag),
}
FEATURE_CHECKS: dict[str, Check] = {
    column: number for column in schema.FEATURE_COLUMNS if column not in {"track_id", "mode"}
}


def code_column(table: pa.Table, name: str) -> np.ndarray:
    """Codes of one of `schema.LOG_COLUMNS`, uint8 (N,); 0 is unknown."""
    column = table[name]
    if name in CATEGORIES:
        codes, values = encode(column)
        places = {value: i for i, value in enumerate(CATEGORIES[name], start=1)}
        return np.array([*(places.get(value, 0) for value in values.to_pylist()), 0], np.uint8)[codes]  # -1: the last
    if name in SEEKS:
        column = pc.min_element_wise(column, pa.scalar(schema.MAX_SEEKS, column.type), skip_nulls=False)
    elif name == "hour_of_day":
        column = pc.if_else(pc.less(column, 24), column, None)
    return pc.fill_null(pc.add(pc.cast(column, pa.uint8()), pa.scalar(1, pa.uint8())), 0).to_numpy()


def code_log(table: pa.Table) -> np.ndarray:
    """Codes of `schema.LOG_COLUMNS`, uint8 (N, L); 0 is unknown."""
    log = np.empty((len(table), len(schema.LOG_COLUMNS)), np.uint8)
    for i, name in enumerate(schema.LOG_COLUMNS):
        log[:, i] = code_column(table, name)
    return log


def code_skips(table: pa.Table) -> np.ndarray:
    """`schema.SKIP_*`, uint8 (N,). The flags are cumulative: the strictest that is set counts. A play whose skip_2 is
    empty is unknown."""
    codes = np.full(len(table), schema.SKIP_NO_FLAG, np.uint8)
    for name, level in schema.SKIP_FLAGS.items():
        flag = pc.fill_null(table[name], False).to_numpy()
        np.maximum(codes, flag * np.uint8(level), out=codes)  # the levels ascend
    if table["skip_2"].null_count:
        codes[table["skip_2"].is_null().to_numpy()] = schema.SKIP_UNKNOWN
    return codes


def check_positions(path: Path, table: pa.Table) -> None:
    """
    Raises:
        UserError: a position outside 1..20.
    """
    limits = pc.min_max(table["session_position"])
    for position in (limits["min"].as_py(), limits["max"].as_py()):
        if not 1 <= position <= schema.MAX_LENGTH:
            at = find_line(path, {"session_position": str(position)})
            raise UserError(f"{path}, line {at}: session_position is {position}, not 1 to {schema.MAX_LENGTH}")


def check_unique_positions(path: Path, session: np.ndarray, position: np.ndarray, session_ids: pa.Array) -> None:
    """
    Args:
        session: places in `session_ids` (N,), ascending, and within a session `position` (N,).

    Raises:
        UserError: a position occurs twice in a session (a file that was concatenated or unpacked over another).
    """
    twice = np.flatnonzero((session[1:] == session[:-1]) & (position[1:] == position[:-1]))
    if len(twice):
        name, number = session_ids[session[twice[0]]].as_py(), position[twice[0]]
        at = find_line(path, {"session_id": name, "session_position": str(number)}, occurrence=2)
        raise UserError(
            f"{path}, line {at}: session {name} has position {number} twice; was the file written twice? "
            "Unpack it again, or remove one of the lines"
        )


def in_two_files(session_id: str, paths: Sequence[Path]) -> UserError:
    """The error for a session that is in several logs, which would put it in two splits."""
    where = " and in ".join(map(str, paths))
    return UserError(f"session {session_id} is in {where}; a session belongs to one file: remove one")


def summarise_sessions(session: np.ndarray, position: np.ndarray, claimed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plays of each session, int64 (M,), and whether it is complete, bool (M,): positions 1, 2, ... up to the
    `session_length` that every row claims.

    Args:
        session: (N,), ascending, and within a session `position` (N,).
        claimed: `session_length` (N,).
    """
    first = np.flatnonzero(np.diff(session, prepend=-1))
    lengths = np.diff(first, append=len(session))
    in_place = position == np.arange(len(session)) - np.repeat(first - 1, lengths)
    return lengths, np.logical_and.reduceat(in_place & (claimed == np.repeat(lengths, lengths)), first)


def unknown_category(log: np.ndarray) -> np.ndarray:
    """Plays with a context type or reason outside `schema` (or none): uint8 (N, L) -> bool (N,)."""
    columns = [i for i, name in enumerate(schema.LOG_COLUMNS) if name in CATEGORIES]
    return (log[:, columns] == 0).any(axis=1)


def read_catalogue(files: Sequence[Path], track_ids: pa.ChunkedArray | None = None) -> pa.Table:
    """The rows of all `files`, in order: `schema.FEATURE_COLUMNS`.

    Args:
        files: at least one.
        track_ids: read only the rows of these tracks; all if not given.

    Raises:
        UserError: a file lacks a column, has an empty id or a value that is no number, or there are no rows.
    """
    types = {name: pa.float32() for name in schema.FEATURE_COLUMNS} | {"track_id": pa.string(), "mode": pa.string()}
    options = pa.csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=True)
    blocks = pa.csv.ReadOptions(block_size=4 << 20)  # each block hashes all of `track_ids`: not too small
    found: list[pa.RecordBatch] = []
    for path in files:
        check_columns(path, schema.FEATURE_COLUMNS)
        try:
            with pa.csv.open_csv(path, blocks, convert_options=options) as reader:
                for batch in reader:
                    ids = batch["track_id"]
                    if ids.null_count:
                        raise explain(path, "an id is empty", FEATURE_CHECKS, required=["track_id"])
                    found.append(batch if track_ids is None else batch.filter(pc.is_in(ids, value_set=track_ids)))
            pa.default_memory_pool().release_unused()
        except (pa.ArrowInvalid, OSError) as error:
            raise explain(path, error, FEATURE_CHECKS, required=["track_id"]) from None
    if not found:
        raise UserError(f"{files[0].parent} has no rows of features; unpack it again, or remove it to go without")
    return pa.Table.from_batches(found)


def read_features(
    files: Sequence[Path], track_ids: pa.ChunkedArray, catalogue: pa.Table | None = None
) -> tuple[pa.Table, list[str]]:
    """Raw audio features of `track_ids`, row for row, and notes on them for `dataset.json`.

    If a track has several rows, the first counts; a track without a row gets nulls.

    Args:
        files: the files of features, if there are any.
        track_ids: of the vocabulary.
        catalogue: what `read_catalogue` returned for all files, if it was called; the vocabulary has all its tracks.

    Raises:
        UserError: see `read_catalogue`.
    """
    if not files:
        no_columns = pa.table({"track_id": track_ids}).select([])
        return no_columns, ["no track_features/*.csv: tracks have no audio features"]
    if catalogue is None:
        catalogue = read_catalogue(files, track_ids)
    places = pc.index_in(track_ids, value_set=catalogue["track_id"])
    notes = []
    missing = places.null_count
    repeated = len(catalogue) - (len(track_ids) - missing)
    if repeated:
        notes.append(f"{repeated} repeated rows of track features dropped (the first of a track counts)")
    if missing:
        notes.append(f"{missing} tracks of the vocabulary have no row of features: they get the mean of the others")
    return catalogue.drop_columns("track_id").take(places), notes
