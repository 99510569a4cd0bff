"""What processes tables: an engine behind Ibis, and threads that stay a few items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.core.files import only

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(NamedTuple):
    """An Ibis backend and its name for `dataset.json`."""

    connection: Any
    name: str


def connect(*, memory_limit: str, folder: Path) -> Engine:
    """DuckDB through Ibis, spilling to `folder` when a sort or a count outgrows `memory_limit` ("2GB")."""
    import duckdb

    try:
        connection = ibis.duckdb.connect(memory_limit=memory_limit, temp_directory=str(folder))
    except duckdb.Error as error:
        raise UserError(f"memory_limit {memory_limit!r}: {error}; write it as 2GB or 500MB") from None
    connection.raw_sql("SET TimeZone = 'UTC'")  # whatever the machine's: a dataset is the same everywhere
    connection.raw_sql(f"SET VARIABLE memory_limit = '{memory_limit}'")  # for `give_back`
    connection.raw_sql("SET enable_progress_bar = false")
    connection.raw_sql("SET enable_external_file_cache = false")  # no file is read twice
    return Engine(connection, f"ibis {ibis.__version__} on duckdb {duckdb.__version__}")


def read_parquet(connection: Any, paths: Path | Sequence[Path], **options: Any) -> ibis.Table:
    """Parquet files as one table: these very files, and no column but theirs (`key=value` in a path makes none)."""
    names = [only(path) for path in ([paths] if isinstance(paths, Path) else paths)]
    return connection.read_parquet(names, hive_partitioning=False, **options)


def read_text_table(
    connection: Any, path: Path, columns: Sequence[str], *, skip: int, delimiter: str = ",", quote: str = '"'
) -> ibis.Table:
    """A text file that is not packed as a table of text, below its first `skip` lines.

    With the columns given, DuckDB does not guess: a guess would take a damaged file for one with another delimiter, and
    columns without a name, or of one name, would be lost.
    """
    return connection.read_csv(
        only(path),
        columns=dict.fromkeys(columns, "VARCHAR"),
        header=False,
        skip=skip,
        auto_detect=False,
        delim=delimiter,
        quote=quote,
        escape=quote,
        compression="none",
        hive_partitioning=False,
    )


def write_parquet(connection: Any, table: ibis.Table, path: Path) -> None:
    """Write a table, in its order, to a file whose path may hold any letter (Ibis' `to_parquet` trips over quotes)."""
    quoted = str(path.absolute()).replace("'", "''")
    connection.raw_sql(f"COPY ({connection.compile(table)}) TO '{quoted}' (FORMAT parquet)")
    give_back(connection)


def give_back(connection: Any) -> None:
    """Give the memory of a step that has ended back to the machine.

    DuckDB counts it as free, but its allocator keeps it, up to the memory limit, beside what the next step takes. To
    set the limit, even to what it is, empties the allocator.
    """
    connection.raw_sql("SET memory_limit = getvariable('memory_limit')")


def parquet_batches(
    file: Path, columns: Sequence[str] | None = None, *, rows: int = 1 << 18
) -> Iterator[pa.RecordBatch]:
    """Some rows of a Parquet file at a time. PyArrow itself would read the whole file ahead."""
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as source:
        yield from source.iter_batches(batch_size=rows, columns=None if columns is None else list(columns))


@contextmanager
def arrow_view(connection: Any, name: str, data: pa.Table | pa.RecordBatchReader) -> Iterator[ibis.Table]:
    """`data` as a table of the engine, without a copy, until the block ends. A reader can be read once.

    `ibis.memtable` would keep it until the process exits.
    """
    connection.con.register(name, data)
    try:
        yield connection.table(name)
    finally:
        connection.con.unregister(name)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """`map` in threads, up to `workers` items ahead of the caller, who gets the results in order."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(pending) == workers:
                    yield pending.popleft().result()
                pending.append(pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
