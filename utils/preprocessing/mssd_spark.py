"""MSSD's logs on Spark: parsed, coded, checked, counted and sorted there, and handed back log by log.

One flat plan, without arrays and without Python on the executors. Every step leaves Parquet files in a folder that
driver and executors both see; the driver decides about sessions (`split_rules`) and holds at most a few logs:

    logs -> plays      coded as by `mssd`, in columns that `fault` marks as unreadable or not
    plays -> sessions  one folder a log: how many plays each session has, at which positions
    sessions -> counted   by the driver: those whose plays count for the vocabulary
    plays, counted -> vocabulary
    plays, vocabulary -> indexed  one folder a log, by session and position

`mssd.read_log` explains what is wrong with a log: the driver reads that log again.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.preprocessing import mssd
from utils.preprocessing.csv_files import check_columns, read_header
from utils.preprocessing.dataset_writer import Chunk, CodedLogs, build_vocabulary
from utils.preprocessing.engine import Engine, in_threads
from utils.preprocessing.split_rules import SplitRules, counted_sessions

CONNECT_PORT = 15002
"""Port of a Spark Connect server whose address names none."""
SPARK_MODULES = {"pyspark", "py4j", "grpc"}
"""Modules that define Spark's errors, which have no base class in common."""
PATIENCE = 10.0
"""Seconds to wait for a Spark Connect server."""


class LogSessions(NamedTuple):
    """The M sessions of a log, in ascending order of their ids."""

    session_ids: pa.Array
    """string (M,)"""
    lengths: np.ndarray
    """int64 (M,)"""
    complete: np.ndarray
    """bool (M,): whether each position from 1 to `session_length` is there"""


def connect(remote: str | None) -> Engine:
    """Spark through Ibis: a Spark Connect server, or without `remote` what `spark-submit` or the local machine offers.

    Raises:
        UserError: no pyspark, no server, or a client that needs one.
    """
    try:
        from pyspark.sql import SparkSession
        from pyspark.util import is_remote_only
    except ImportError:
        raise UserError(
            "--engine spark needs pyspark: pip install -c constraints.txt -e '.[spark]' for a Spark Connect server, or "
            "pip install 'pyspark>=4,<4.1' (with Java 17) for Spark on this machine"
        ) from None
    if remote:
        check_server(remote)
        session = SparkSession.builder.remote(remote).getOrCreate()
    elif is_remote_only():
        raise UserError(
            "this pyspark is a client: name a server with --spark_remote sc://host:15002, or "
            "pip install 'pyspark>=4,<4.1' (with Java 17) for Spark on this machine"
        )
    else:
        session = SparkSession.builder.appName("utils.datapreprocessing").getOrCreate()
    return Engine(ibis.pyspark.connect(session), f"ibis {ibis.__version__} on spark {session.version}")


def check_server(remote: str) -> None:
    """
    Raises:
        UserError: nothing listens at `remote` (pyspark itself would go on trying for minutes).
    """
    address = urlparse(remote)
    try:
        if address.scheme != "sc" or not address.hostname:
            raise OSError("an address is written as sc://host:15002")
        socket.create_connection((address.hostname, address.port or CONNECT_PORT), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise UserError(f"--spark_remote {remote}: no Spark Connect server answers there ({error})") from None


@contextmanager
def explained(logs: Sequence[mssd.LogFile]) -> Iterator[None]:
    """Turn what Spark says of a log into the error of `mssd.read_log`, which names file, line, column and value."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in SPARK_MODULES:
            raise
        message = str(error)
        # Spark names the file that it could not read. Sail does not: then every log is a suspect.
        for log in [log for log in logs if log.path.name in message] or logs:
            mssd.read_log(log.path)
        raise UserError(f"Spark: {message.strip().splitlines()[0]}") from None


def uri(path: Path) -> str:
    """A path in the form that Spark takes, whatever its default file system."""
    return path.resolve().as_uri()


def read_logs(session: Any, logs: Sequence[mssd.LogFile]) -> Any:
    """All rows of the logs, a DataFrame of text: `log` (place in `logs`) and `mssd.COLUMNS`."""
    from pyspark.sql.functions import lit

    def read(place: int) -> Any:
        path = logs[place].path
        check_columns(path, mssd.COLUMNS)
        columns = ", ".join(f"`{name}` string" for name in read_header(path))
        # No pruning of columns: with it, Spark does not see that a line has too many fields.
        reader = session.read.options(header="true", mode="FAILFAST", columnPruning="false")
        return reader.csv(uri(path), schema=columns).select(lit(place).alias("log"), *mssd.COLUMNS)

    def union(first: int, last: int) -> Any:
        middle = (first + last) // 2  # a tree, as parsers of plans cannot take a chain of hundreds
        return read(first) if last - first == 1 else union(first, middle).unionAll(union(middle, last))

    return union(0, len(logs))


def code_plays(rows: ibis.Table) -> ibis.Table:
    """Codes of every play, as `mssd` codes them.

    Args:
        rows: what `read_logs` returns, text.

    Returns:
        `log`, `session_id`, `track_id`; `position`, `claimed` (`session_length`), `skip` and `schema.LOG_COLUMNS`
        int16; `fault`: whether the row has a value that `mssd.read_log` refuses.
    """
    text = {name: rows[name].nullif("") for name in mssd.COLUMNS}
    numbers = {name: text[name].try_cast("int64") for name in mssd.NUMBERS}
    faults = [text[name].isnull() for name in mssd.REQUIRED]
    for name in mssd.FLAGS:
        faults.append(text[name].notnull() & ~text[name].isin([*mssd.TRUE, *mssd.FALSE]))
    for name, dtype in mssd.NUMBERS.items():
        highest = 2**dtype.bit_width - 1 if name != "session_position" else schema.MAX_LENGTH
        lowest = 0 if name != "session_position" else 1
        good = text[name].re_search("^[0-9]+$") & numbers[name].between(lowest, highest)
        faults.append(text[name].notnull() & ~ibis.coalesce(good, False))
    codes = {
        "position": numbers["session_position"],
        "claimed": numbers["session_length"],
        "skip": code_skip(text),
        **{name: code_column(name, text[name]) for name in schema.LOG_COLUMNS},
    }
    fault = faults[0]
    for another in faults[1:]:
        fault |= another
    # A number too large for its type belongs to a row at fault: no cast may stop the plan there.
    return rows.select(
        "log",
        "session_id",
        track_id=rows["track_id_clean"],
        fault=fault,
        **{name: code.try_cast("int16") for name, code in codes.items()},
    )


def code_column(name: str, text: ibis.Value) -> ibis.Value:
    """The code of one of `schema.LOG_COLUMNS`; see `mssd.code_column`."""
    if name in mssd.CATEGORIES:
        return ibis.cases(*((text == value, i) for i, value in enumerate(mssd.CATEGORIES[name], start=1)), else_=0)
    if name in mssd.FLAGS:
        return ibis.cases((text.isin(mssd.TRUE), 2), (text.isin(mssd.FALSE), 1), else_=0)
    number = text.try_cast("int64")
    if name in mssd.SEEKS:
        return ibis.cases((number > schema.MAX_SEEKS, schema.MAX_SEEKS + 1), else_=ibis.coalesce(number + 1, 0))
    return ibis.cases((number < 24, number + 1), else_=0)


def code_skip(text: dict[str, ibis.Value]) -> ibis.Value:
    """`schema.SKIP_*`; see `mssd.code_skips`."""
    strictest = reversed(schema.SKIP_FLAGS.items())
    return ibis.cases(
        (text["skip_2"].isnull(), schema.SKIP_UNKNOWN),
        *((text[name].isin(mssd.TRUE), level) for name, level in strictest),
        else_=schema.SKIP_NO_FLAG,
    )


def summarise_sessions(plays: ibis.Table) -> ibis.Table:
    """One row a session of a log: `plays`, how many `positions` and the `last` of them, `shortest` and `longest` claim
    of `session_length`."""
    return plays.group_by("log", "session_id").agg(
        plays=plays.count(),
        positions=plays.position.nunique(),
        last=plays.position.max(),
        shortest=plays.claimed.min(),
        longest=plays.claimed.max(),
    )


def index_tracks(plays: ibis.Table, vocabulary: ibis.Table) -> ibis.Table:
    """`log`, `session_id`, `position`, `index` (`vocab.UNK` for new tracks) and all codes of every play."""
    found = plays.left_join(vocabulary, "track_id")
    return found.select(
        "log",
        "session_id",
        "position",
        "skip",
        *schema.LOG_COLUMNS,
        index=ibis.coalesce(found["index"], vocab.UNK).cast("int32"),
    )


def write_by_log(connection: Any, table: ibis.Table, folder: Path, *, n_logs: int, order: Sequence[str]) -> None:
    """Execute a plan; its rows go to `folder`/log=0, log=1, ... (Parquet), each in `order`."""
    frame = connection._session.sql(ibis.to_sql(table, dialect="pyspark"))
    frame.repartition(n_logs, "log").sortWithinPartitions("log", *order).write.partitionBy("log").parquet(uri(folder))


def read_sessions(folder: Path, logs: Sequence[mssd.LogFile], place: int) -> LogSessions:
    """The sessions of a log.

    Raises:
        UserError: a position occurs twice in a session, or the log has no rows.
    """
    if not (folder / f"log={place}").exists():
        mssd.read_log(logs[place].path)  # which says so
    found = pq.read_table(folder / f"log={place}").sort_by("session_id")
    plays = found["plays"].to_numpy()
    if (found["positions"].to_numpy() < plays).any():
        mssd.read_log(logs[place].path)  # which names the line
        raise UserError(f"{logs[place].path}: a position occurs twice in a session")
    complete = np.logical_and.reduce([found[name].to_numpy() == plays for name in ("last", "shortest", "longest")])
    return LogSessions(found["session_id"].combine_chunks().cast(pa.string()), plays, complete)


def check_faults(plays: ibis.Table, logs: Sequence[mssd.LogFile]) -> None:
    """
    Raises:
        UserError: a row has a value that cannot be read.
    """
    for place in plays.filter(plays.fault).select("log").limit(1).to_pyarrow()["log"].to_pylist():
        mssd.read_log(logs[place].path)
        raise UserError(f"{logs[place].path} has a value that Spark cannot read; unpack or download it again")


def check_unique(sessions: ibis.Table, logs: Sequence[mssd.LogFile]) -> None:
    """
    Raises:
        UserError: a session is in two logs.
    """
    repeated = sessions.group_by("session_id").agg(
        first=sessions.log.min(), last=sessions.log.max(), n=sessions.count()
    )
    for row in repeated.filter(repeated.n > 1).limit(1).to_pyarrow().to_pylist():
        # `log` comes from the name of a folder here, and not every server reads it as a number.
        paths = [logs[int(row[name])].path for name in ("first", "last")]
        raise mssd.in_two_files(row["session_id"], paths)


def write_counted(rules: SplitRules, logs: Sequence[mssd.LogFile], sessions: Path, folder: Path) -> list[int]:
    """Write `log` and `session_id` of the sessions whose plays count for the vocabulary, a file for each log.

    Returns:
        how many rows each log has.
    """
    folder.mkdir()
    rows = []
    for place, log in enumerate(tqdm(logs, desc="sessions", unit=" files")):
        found = read_sessions(sessions, logs, place)
        rows.append(int(found.lengths.sum()))
        counted = counted_sessions(rules, log, found.session_ids, found.lengths, found.complete)
        ids = found.session_ids.filter(pa.array(counted))
        table = pa.table({"log": np.full(len(ids), place, np.int32), "session_id": ids})
        pq.write_table(table, folder / f"{place:05d}.parquet")
    return rows


def log_chunk(plays: Path, sessions: Path, logs: Sequence[mssd.LogFile], place: int) -> tuple[Chunk, np.ndarray]:
    """All sessions of a log, and which are complete, bool (M,)."""
    found = read_sessions(sessions, logs, place)
    table = pq.read_table(plays / f"log={place}")
    session, _ = mssd.encode_ascending(table["session_id"].dictionary_encode())
    order = mssd.order_of(session, table["position"].to_numpy())
    table = table if order is None else table.take(pa.array(order))
    log = logs[place]
    chunk = Chunk(
        tracks=table["index"].to_numpy(),
        skips=table["skip"].to_numpy().astype(np.uint8),
        log=np.stack([table[name].to_numpy().astype(np.uint8) for name in schema.LOG_COLUMNS], axis=1),
        lengths=found.lengths,
        session_id=found.session_ids,
        day=mssd.days_of(log, found.session_ids),
        file=log.path.name,
    )
    return chunk, found.complete


def code_logs(
    engine: Engine,
    rules: SplitRules,
    logs: Sequence[mssd.LogFile],
    work: Path,
    *,
    workers: int,
    catalogue: pa.ChunkedArray | None = None,
) -> CodedLogs:
    """Run the plan, with its files in `work`, which driver and executors both see.

    Args:
        catalogue: see `build_vocabulary`.

    Raises:
        UserError: see `mssd.read_log`; or a session is in two logs.
    """
    connection = engine.connection

    def table(name: str) -> ibis.Table:
        return connection.read_parquet(uri(work / name), table_name=name)

    with explained(logs), tqdm(total=4, desc="Spark", unit=" steps") as bar:
        read_logs(connection._session, logs).createOrReplaceTempView("logs")
        connection.to_parquet(code_plays(connection.table("logs")), uri(work / "plays"))
        plays = table("plays")
        check_faults(plays, logs)
        bar.update()
        summary = summarise_sessions(plays)
        write_by_log(connection, summary, work / "sessions", n_logs=len(logs), order=["session_id"])
        check_unique(table("sessions"), logs)
        bar.update()
        rows = write_counted(rules, logs, work / "sessions", work / "counted")
        counted = plays.semi_join(table("counted"), ["log", "session_id"])
        counts = counted.group_by("track_id").agg(plays=counted.count())
        tracks = build_vocabulary(counts, min_count=rules.min_count, catalogue=catalogue)
        bar.update()
        (work / "vocabulary").mkdir()
        pq.write_table(tracks, work / "vocabulary" / "tracks.parquet")
        indexed = index_tracks(plays, table("vocabulary"))
        write_by_log(connection, indexed, work / "indexed", n_logs=len(logs), order=["session_id", "position"])
        bar.update()
    shutil.rmtree(work / "plays")
    read = partial(log_chunk, work / "indexed", work / "sessions", logs)
    return CodedLogs(tracks, rows, in_threads(read, range(len(logs)), workers=workers))
