"""Any table of plays: one row a play, columns mapped by options. CSV or Parquet, one file or a folder of them.

session or (user and) time gap -> which plays belong together      position or time -> their order
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.data.dataset import Dataset, SessionArrays
from utils.preprocessing.csv_files import open_text, read_header
from utils.preprocessing.dataset_writer import Chunk, Funnel, SplitWriter
from utils.preprocessing.options import PlaysColumns

SKIPPED, NOT_SKIPPED = ("true", "1", "1.0"), ("false", "0", "0.0")


def plays_files(path: Path) -> list[Path]:
    """`path` itself, or the CSV and Parquet files in it.

    Raises:
        UserError: nothing there, files of both kinds, or of another kind.
    """
    if not path.exists():
        raise UserError(f"--plays {path} does not exist")
    files = sorted(p for p in path.rglob("*") if p.is_file() and kind(p)) if path.is_dir() else [path]
    if not files or not all(kind(file) for file in files):
        raise UserError(f"--plays {path}: expected .csv, .csv.gz or .parquet files")
    if len({kind(file) for file in files}) > 1:
        raise UserError(f"--plays {path} holds both CSV and Parquet files; keep one kind")
    return files


def kind(path: Path) -> str:
    """The word csv or parquet, or an empty string for another kind of file."""
    name = path.name.lower()
    return "parquet" if name.endswith(".parquet") else "csv" if name.endswith((".csv", ".csv.gz")) else ""


def read_table(connection: Any, file: Path) -> ibis.Table:
    """One file as the engine sees it; every column of a CSV file is text."""
    if kind(file) == "parquet":
        return connection.read_parquet(str(file))
    # Given the columns, DuckDB does not guess: a guess would take a damaged file for one with another delimiter.
    columns = dict.fromkeys(read_header(file), "VARCHAR")
    return connection.read_csv(str(file), columns=columns, header=True, auto_detect=False, delim=",", quote='"')


def count_rows(connection: Any, file: Path) -> int:
    return int(connection.to_pyarrow(read_table(connection, file).count()).as_py())


def first_lines(error: Exception) -> str:
    """The first lines of what an engine says of a CSV file: they carry file, line number and reason."""
    return " ".join(line.strip() for line in str(error).splitlines()[:4])


def open_plays(connection: Any, path: Path, columns: PlaysColumns) -> ibis.Table:
    """The columns that `columns` names, under its names: track, session, user, time, position, skip.

    Raises:
        UserError: no such file, a column that is not there, or not enough of them to make sessions.
    """
    names = {name: getattr(columns, name) for name in ("track", "session", "user", "time", "position", "skip")}
    if columns.session is None and columns.time is None:
        raise UserError("give --plays_columns.session, or --plays_columns.time to make sessions by time gaps")
    for name, unused in (("user", columns.user is not None), ("gap", columns.gap != PlaysColumns.gap)):
        if columns.session is not None and unused:
            raise UserError(
                f"--plays_columns.{name} has no meaning beside --plays_columns.session; leave one of them out"
            )
    if columns.session is None and columns.position is not None:
        raise UserError("--plays_columns.position is the place in a session: it needs --plays_columns.session")
    if columns.position is None and columns.time is None:
        raise UserError("give --plays_columns.position or --plays_columns.time: the order of the plays in a session")
    tables = []
    for file in plays_files(path):
        with engine_errors(file):
            table = read_table(connection, file)
        for option, column in names.items():
            if column is not None and column not in table.columns:
                there = ", ".join(table.columns)
                raise UserError(f"{file} has no column {column!r} (--plays_columns.{option}); it has {there}")
        tables.append(table.select(**{name: table[column] for name, column in names.items() if column is not None}))
    return ibis.union(*tables) if len(tables) > 1 else tables[0]


@contextmanager
def engine_errors(path: Path) -> Iterator[None]:
    """Turn what DuckDB says of a file that it cannot read (it names the line) into a `UserError`."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise UserError(f"{path} cannot be read: {first_lines(error)}") from None


def seconds(time: ibis.Value) -> ibis.Value:
    """Seconds since 1970, float64, of a timestamp, a date, a number or text; null where it is none of them."""
    if time.type().is_timestamp() or time.type().is_date():
        return time.cast("timestamp").epoch_seconds().cast("float64")
    if time.type().is_string():
        return ibis.coalesce(time.try_cast("float64"), time.try_cast("timestamp").epoch_seconds().cast("float64"))
    return time.cast("float64")


def skip_code(skip: ibis.Value) -> ibis.Value:
    text = skip.cast("string").lower()
    return ibis.cases(
        (text.isin(SKIPPED), schema.SKIP_2),
        (text.isin(NOT_SKIPPED), schema.SKIP_PLAYED),
        else_=schema.SKIP_UNKNOWN,
    ).cast("uint8")


def code_plays(table: ibis.Table) -> ibis.Table:
    """Plays in one form, whatever the source: `track_id` str, `skip` uint8 (`schema.SKIP_*`), `time` float64 (null
    without a time), `place` float64 (their order), and `session_id` str or `user` str.

    Args:
        table: what `open_plays` returns.
    """
    time = seconds(table.time) if "time" in table.columns else ibis.null("float64")
    place = table.position.cast("string").try_cast("float64") if "position" in table.columns else time
    owner = {"session_id": table.session} if "session" in table.columns else {"user": ibis.literal("session")}
    if "user" in table.columns and "session" not in table.columns:
        owner = {"user": table.user}
    return table.select(
        **{name: column.cast("string") for name, column in owner.items()},
        track_id=table.track.cast("string"),
        skip=skip_code(table.skip) if "skip" in table.columns else ibis.literal(schema.SKIP_UNKNOWN, "uint8"),
        time=time,
        place=place,
    )


def cut_at_gaps(plays: ibis.Table, gap: float) -> ibis.Table:
    """Give the plays of each `user` a `session_id`: a new one after more than `gap` seconds without a play."""
    order = {"group_by": "user", "order_by": ["time", "track_id"]}
    before = plays.time.lag().over(ibis.window(**order))
    starts = plays.mutate(starts=ibis.cases((before.isnull() | (plays.time - before > gap), 1), else_=0))
    number = starts.starts.sum().over(ibis.cumulative_window(**order))
    return starts.mutate(session_id=starts.user + "_" + number.cast("string")).drop("user", "starts")


def cut_long(plays: ibis.Table, longest: int | None) -> ibis.Table:
    """Give the plays of each session a `piece`: 0, then 1 after `longest` plays, and so on."""
    if longest is None:
        return plays.mutate(piece=ibis.literal(0, "int64"))
    order = ibis.window(group_by="session_id", order_by=["place", "track_id"])
    return plays.mutate(piece=(ibis.row_number().over(order) // longest).cast("int64"))


def check_plays(connection: Any, plays: ibis.Table, path: Path, columns: PlaysColumns) -> None:
    """
    Raises:
        UserError: a play lacks its track, session or user, has no readable time or position, or shares its position.
    """
    options = {"track_id": columns.track, "place": columns.position or columns.time, "time": columns.time}
    options |= {"session_id": columns.session} if columns.session else {"user": columns.user}
    required = {name: column for name, column in options.items() if column is not None}
    missing = {name: plays[name].isnull().sum() for name in required}
    counts = connection.to_pyarrow(plays.aggregate(rows=plays.count(), **missing)).to_pylist()[0]
    if counts["rows"] == 0:
        raise UserError(f"{path} has no plays")
    for name, column in required.items():
        if counts[name]:
            where = find_unreadable(plays_files(path), column, number=name == "place", time=column == columns.time)
            raise UserError(f"{where}; correct or remove the rows ({counts[name]} of them)")
    if columns.position:
        taken = plays.group_by(["session_id", "place"]).agg(n=plays.count())
        taken = connection.to_pyarrow(taken.filter(taken.n > 1).order_by(["session_id", "place"]).limit(1)).to_pylist()
        if taken:
            session, place = taken[0]["session_id"], taken[0]["place"]
            raise UserError(
                f"{path}: session {session} has {taken[0]['n']} plays at position {place:g}; remove all but one"
            )


def find_unreadable(files: list[Path], column: str, *, number: bool, time: bool) -> str:
    """File, row and value of the first field in `column` that is empty or not what it should be."""

    def readable(value: Any) -> bool:
        if value is None or value == "":
            return False
        if isinstance(value, str) and (number or time):
            if not pd.isna(pd.to_numeric(value, errors="coerce")):
                return True
            return time and not pd.isna(pd.to_datetime(value, errors="coerce"))
        return True

    for file in files:
        if kind(file) == "csv":
            with open_text(file) as text:
                reader = csv.DictReader(text)
                for row in reader:
                    if not readable(row[column]):
                        return f"{file}, line {reader.line_num}: {column} is {row[column]!r}"
        else:
            for i, value in enumerate(pq.read_table(file, columns=[column])[column]):
                if not readable(value.as_py()):
                    return f"{file}, row {i + 1}: {column} is {value}"
    return f"{files[0].parent}: a {column} is missing or unreadable"


class Arranged(NamedTuple):
    """Plays in sessions. M sessions, N plays."""

    sessions: pa.Table
    """(M,), in order of their start: `number` int64 0..M-1, `session_id` str, `whole` str (the session that it was cut
    from), `plays` int64, `day` str (YYYYMMDD, UTC; "" without times)"""
    events: ibis.Table
    """`number`, `place`, `track_id`, `skip` (N,), in any order"""
    funnel: Funnel


def arrange(
    connection: Any, path: Path, columns: PlaysColumns, work: Path, *, shortest: int, longest: int | None
) -> Arranged:
    """Read plays, check them, and arrange them in sessions. Temporary files go to `work`.

    Args:
        shortest: sessions with fewer plays are dropped.
        longest: sessions with more plays are cut into pieces of this many; None: never.

    Raises:
        UserError: see `open_plays` and `check_plays`.
    """
    with engine_errors(path):
        coded = code_plays(open_plays(connection, path, columns))
        connection.to_parquet(coded, work / "coded.parquet")  # the source is parsed once
    coded = connection.read_parquet(str(work / "coded.parquet"))
    check_plays(connection, coded, path, columns)
    plays = cut_long(coded if columns.session else cut_at_gaps(coded, columns.gap), longest)
    connection.to_parquet(plays, work / "plays.parquet")
    plays = connection.read_parquet(str(work / "plays.parquet"))

    # Without times, sessions are in the order of their ids: as numbers where they are numbers, else as text.
    start = plays.time if columns.time else plays.session_id.try_cast("float64")
    pieces = plays.group_by(["session_id", "piece"]).agg(plays=plays.count(), start=start.min())
    pieces = pieces.mutate(first=pieces.start.min().over(ibis.window(group_by="session_id")))
    found = connection.to_pyarrow(pieces.order_by(["first", "session_id", "piece"]))

    funnel = Funnel()
    length = found["plays"].to_numpy()
    kept = length >= shortest
    funnel.add("read", rows=length.sum(), sessions=len(length))
    funnel.add(f"dropped: fewer than {shortest} plays", rows=length[~kept].sum(), sessions=(~kept).sum())
    funnel.add("kept", rows=length[kept].sum(), sessions=kept.sum())
    if not kept.any():
        raise UserError(f"{path} has no session of {shortest} plays or more; lower --min_session_length")
    found = found.filter(pa.array(kept))
    found = found.append_column("number", pa.array(np.arange(len(found))))
    pq.write_table(found.select(["session_id", "piece", "number"]), work / "numbers.parquet")
    numbers = connection.read_parquet(str(work / "numbers.parquet"))
    events = plays.inner_join(numbers, ["session_id", "piece"]).select("number", "place", "track_id", "skip")

    return Arranged(describe_sessions(found, has_times=columns.time is not None), events, funnel)


def describe_sessions(found: pa.Table, *, has_times: bool) -> pa.Table:
    """`Arranged.sessions` from `number`, `session_id`, `piece`, `plays` and `start` (seconds since 1970 or nothing)."""
    piece = pc.cast(pc.add(found["piece"], 1), pa.string())
    suffix = pc.if_else(pc.equal(found["piece"], 0), "", pc.binary_join_element_wise("/", piece, ""))
    if has_times:
        start = pc.cast(pc.cast(pc.floor(found["start"]), pa.int64()), pa.timestamp("s"))
        day = pc.strftime(start, format="%Y%m%d")
    else:
        day = pa.repeat("", len(found))
    return pa.table(
        {
            "number": found["number"],
            "session_id": pc.binary_join_element_wise(found["session_id"], suffix, ""),
            "whole": found["session_id"],
            "plays": found["plays"],
            "day": day,
        }
    )


def indexed_batches(connection: Any, events: ibis.Table, tracks: ibis.Table) -> Iterator[pa.RecordBatch]:
    """`index` (id in `tracks`, `vocab.UNK` for new tracks) and `skip` of all events, by session and place."""
    found = events.left_join(tracks, "track_id")
    found = found.select(
        "number", "place", "track_id", "skip", index=ibis.coalesce(tracks.index, vocab.UNK).cast("int32")
    )
    ordered = found.order_by(["number", "place", "track_id"]).select("index", "skip")
    yield from connection.to_pyarrow_batches(ordered, chunk_size=1 << 20)


def chunks(batches: Iterator[pa.RecordBatch], sessions: pa.Table, file: str) -> Iterator[Chunk]:
    """Whole sessions from batches that end anywhere."""
    lengths = sessions["plays"].to_numpy()
    ends = np.cumsum(lengths)
    index, skip = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    first, read = 0, 0  # the next session, the events read so far
    for batch in batches:
        index = np.concatenate([index, batch["index"].to_numpy()])
        skip = np.concatenate([skip, batch["skip"].to_numpy()])
        read += len(batch)
        last = int(np.searchsorted(ends, read, side="right"))
        n = int(lengths[first:last].sum())
        rows = sessions.slice(first, last - first)
        yield Chunk(
            tracks=index[:n],
            skips=skip[:n],
            log=np.zeros((n, len(schema.LOG_COLUMNS)), np.uint8),
            lengths=lengths[first:last],
            session_id=rows["session_id"].combine_chunks(),
            day=rows["day"].combine_chunks(),
            file=file,
        )
        index, skip, first = index[n:], skip[n:], last


def read_plays(
    path: Path, columns: PlaysColumns, tracks: pa.Table, *, shortest: int = 2, longest: int | None = None
) -> tuple[Chunk, float]:
    """All sessions of a table of plays, with the ids of an existing dataset: for scoring a trained model on them.

    Args:
        path: CSV or Parquet, or a folder of them.
        tracks: `track_id` and `index` of the dataset (its `tracks.parquet`).
        shortest, longest: as in `arrange`.

    Returns:
        The sessions in order of their start, and the share of their plays whose tracks are new to the dataset
        (`vocab.UNK`).

    Raises:
        UserError: see `arrange`.
    """
    with tempfile.TemporaryDirectory() as folder:
        connection = ibis.duckdb.connect()
        arranged = arrange(connection, path, columns, Path(folder), shortest=shortest, longest=longest)
        known = ibis.memtable(tracks.select(["track_id", "index"]))
        batches = indexed_batches(connection, arranged.events, known)
        chunk = concatenate(list(chunks(batches, arranged.sessions, path.name)))
        connection.disconnect()
    return chunk, float((chunk.tracks == vocab.UNK).mean())


def plays_as_split(path: Path, columns: PlaysColumns, dataset: Dataset, folder: Path) -> SessionArrays:
    """Write the sessions of a table of plays as a split to `folder`, and print the share of plays of new tracks.

    Raises:
        UserError: see `read_plays`.
    """
    tracks = pq.read_table(dataset.folder / "tracks.parquet", columns=["track_id", "index"])
    chunk, unknown = read_plays(path, columns, tracks)
    writer = SplitWriter(folder)
    writer.add(chunk)
    writer.close()
    print(f"{unknown:.2%} of the plays are of tracks that {dataset.folder} does not know")
    return SessionArrays.open(folder)


def concatenate(parts: list[Chunk]) -> Chunk:
    return Chunk(
        tracks=np.concatenate([part.tracks for part in parts]),
        skips=np.concatenate([part.skips for part in parts]),
        log=np.concatenate([part.log for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        session_id=pa.concat_arrays([part.session_id for part in parts]),
        day=pa.concat_arrays([part.day for part in parts]),
        file=parts[0].file,
    )
