"""Files of plays: which there are, how the engine reads one, and which line of it an error message names."""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.preprocessing.csv_files import open_text, walk
from utils.preprocessing.engine import parquet_batches, read_parquet, read_text_table

BLOCK = 1 << 20
"""Bytes of a CSV file that are looked at together."""


def kind(path: Path) -> str:
    """The word csv or parquet, or nothing for another kind of file."""
    name = path.name.lower()
    return "parquet" if name.endswith(".parquet") else "csv" if name.endswith((".csv", ".csv.gz")) else ""


def plays_files(path: Path) -> list[Path]:
    """`path` itself, or the CSV and Parquet files anywhere in it, in order of their names.

    Raises:
        UserError: nothing there, files of both kinds or of another kind, a link to nothing, the same file twice.
    """
    if not path.exists():
        raise UserError(f"--plays {path} {'is a link to nothing' if path.is_symlink() else 'does not exist'}")
    files = sorted(file for file in walk(path) if kind(file)) if path.is_dir() else [path]
    if not files or not all(kind(file) for file in files):
        raise UserError(f"--plays {path}: expected .csv, .csv.gz or .parquet files")
    if len({kind(file) for file in files}) > 1:
        raise UserError(f"--plays {path} holds both CSV and Parquet files; keep one kind")
    with reading(path):
        for file, other in twins(files):
            raise UserError(f"{file} and {other} hold the same plays; remove one of them")
    return files


def twins(files: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Files with the plays of one before: `x.csv` beside `x.csv.gz`, or the same bytes, if there are plays in them."""
    unpacked: dict[str, Path] = {}
    for file in files:
        first = unpacked.setdefault(str(file).lower().removesuffix(".gz"), file)
        if first.suffix.lower() != file.suffix.lower():
            yield first, file
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    for same_size in by_size.values():
        seen: dict[bytes, Path] = {}
        for file in same_size if len(same_size) > 1 else []:
            with file.open("rb") as data:
                first = seen.setdefault(hashlib.file_digest(data, "blake2b").digest(), file)
            if first is not file and has_plays(file):
                yield first, file


def has_plays(file: Path) -> bool:
    if kind(file) == "parquet":
        return pq.read_metadata(file).num_rows > 0
    return next((True for _ in itertools.islice(records(file), 1, None)), False)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is read into a `UserError` that names it."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is cut off or damaged ({error}); unpack or download it again") from None
    except (OSError, duckdb.Error, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from None


class Source(NamedTuple):
    """One file as the engine sees it."""

    table: ibis.Table
    """Its columns under names of the engine's; every column of a CSV file is text."""
    names: list[str]
    """What the file calls them: names may be empty, occur twice, or differ by case only."""


@contextmanager
def open_source(connection: Any, file: Path, work: Path) -> Iterator[Source]:
    """One file, until the block ends. Temporary files go to `work`.

    Raises:
        UserError: it cannot be read; in the block, too, where the engine comes upon the damage.
    """
    if kind(file) == "parquet":
        with reading(file):
            names = pq.read_schema(file).names
            yield Source(read_parquet(connection, file), names)
        return
    with plain(file, work) as path:
        n_before, header = read_header(file)
        columns = [f"column{i}" for i in range(len(header))]
        try:
            yield Source(read_text_table(connection, path, columns, skip=n_before + 1), header)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise explain(file, len(header), error) from None


@contextmanager
def plain(file: Path, work: Path) -> Iterator[Path]:
    """A CSV file with line ends of one kind, not packed: `file` itself, or a copy in `work` until the block ends.

    The engine takes a gzip file that is cut off for a whole one, and loses its way where line ends change.

    Raises:
        UserError: a gzip file that is cut off or damaged.
    """
    unpacked, mended = work / "unpacked.csv", work / "mended.csv"
    path = file
    try:
        with reading(file):
            if file.suffix.lower() == ".gz":
                with gzip.open(file, "rb") as packed, unpacked.open("wb") as copy:
                    shutil.copyfileobj(packed, copy, BLOCK)
                path = unpacked
            if has_mixed_line_ends(path):
                with path.open("rb") as data, mended.open("wb") as copy:
                    for block in whole_line_ends(data):
                        copy.write(block.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
                path = mended
        yield path
    finally:
        unpacked.unlink(missing_ok=True)
        mended.unlink(missing_ok=True)


def whole_line_ends(data: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file in blocks; no block ends between the letters of `\\r\\n`."""
    while block := data.read(BLOCK):
        while block.endswith(b"\r") and (letter := data.read(1)):
            block += letter
        yield block


def has_mixed_line_ends(path: Path) -> bool:
    both = feeds = returns = 0
    with path.open("rb") as data:
        for block in whole_line_ends(data):
            n_returns = block.count(b"\r")
            n_both = block.count(b"\r\n") if n_returns else 0
            both, feeds, returns = both + n_both, feeds + block.count(b"\n") - n_both, returns + n_returns - n_both
            if (both > 0) + (feeds > 0) + (returns > 0) > 1:
                return True
    return False


def records(file: Path, *, with_spaces: bool = False) -> Iterator[tuple[int, int, list[str]]]:
    """Place (from 0), last line and fields of each record of a CSV file that is not blank, slowly.

    Args:
        with_spaces: below the header, records of nothing but spaces, which are not blank for the engine, too.
    """
    with open_text(file) as text:
        reader = csv.reader(text, strict=True)
        below = False
        for i, row in enumerate(reader):
            if any(field.strip() for field in row) or (with_spaces and below and row):
                below = True
                yield i, reader.line_num, row


def read_header(file: Path) -> tuple[int, list[str]]:
    """The number of blank records above the header of a CSV file, and the names of its columns.

    Raises:
        UserError: it has no header, or cannot be read.
    """
    try:
        with reading(file):
            for i, _, row in records(file):
                return i, row
    except UserError as error:
        raise not_utf8(file) or error from None
    raise UserError(f"{file} is empty; unpack or download it again")


def not_utf8(file: Path) -> UserError | None:
    """The first line of a CSV file that is not UTF-8, as an error; None if there is none, or it cannot be read."""
    n_good = 0
    try:
        with gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb") as data:
            for line in data:
                line.decode("utf-8")
                n_good += 1
    except UnicodeDecodeError:
        return UserError(f"{file}, line {n_good + 1}: this is not UTF-8; save the file as CSV in UTF-8")
    except (OSError, EOFError, zlib.error):
        return None
    return None


def explain(file: Path, n_columns: int, error: Exception) -> UserError:
    """Read a CSV file that the engine could not read again, slowly, for its first line at fault.

    Args:
        error: what the engine said; it is passed on where nothing is found.
    """
    line = 0
    try:
        for _, line, row in records(file, with_spaces=True):
            if len(row) != n_columns:
                return UserError(
                    f"{file}, line {line}: {len(row)} fields where the header has {n_columns}; put quotes around a "
                    "field that holds a comma, and give every line as many fields as the header"
                )
    except UnicodeDecodeError:
        return not_utf8(file) or UserError(f"{file} is not UTF-8; save it as CSV in UTF-8")
    except csv.Error as damage:
        return UserError(
            f"{file}, below line {line}: {damage}; write a quote within a quoted field twice, and close every quote"
        )
    return UserError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}")


def written(value: pa.Scalar) -> str:
    """A value of a Parquet file as an error message shows it."""
    try:
        return repr(value.as_py())
    except (OverflowError, ValueError):  # a time that Python cannot hold
        return f"{value.cast(pa.int64()).as_py()} ({value.type})"


def find_value(file: Path, names: list[str], column: str, row: int) -> str:
    """Where the `row`-th play (from 0) of a file is, and what one of its columns holds: "FILE, line 7: ts is 'x'"."""
    place = names.index(column)
    if kind(file) == "parquet":
        n_before = 0
        for batch in parquet_batches(file, None if names.count(column) > 1 else [column]):
            if row < n_before + len(batch):
                value = batch.column(place if names.count(column) > 1 else 0)[row - n_before]
                return f"{file}, row {row + 1}: {column} is {written(value)}"
            n_before += len(batch)
        return f"{file}, row {row + 1}: {column}"
    with open_text(file) as text:
        reader = csv.reader(text)
        plays = (fields for fields in reader if fields and (len(fields) > 1 or len(names) == 1))
        header_and_plays = itertools.dropwhile(lambda fields: fields != names, plays)
        fields = next(itertools.islice(header_and_plays, row + 1, None), [])
        return f"{file}, line {reader.line_num}: {column} is {fields[place] if fields else ''!r}"
