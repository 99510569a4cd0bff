"""CSV files, plain or gzipped: their header, and the line that an error message points at."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from utils.core.errors import UserError

Check = Callable[[str], str | None]
"""Says what is wrong with a field that is not empty ("not a number"); None if nothing is."""


def hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be read: `.ipynb_checkpoints`, `._plays.csv`, `_SUCCESS`."""
    return name.startswith((".", "_"))


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder and in the folders in it, linked ones too, but no hidden ones.

    Args:
        above: the folders that it is in.

    Raises:
        UserError: a folder that cannot be read, a link to nothing, or to a folder that it is in.
    """
    here = folder.resolve()
    if here in above:
        raise UserError(f"{folder} links to a folder that it is in; remove the link")
    try:
        entries = [entry for entry in folder.iterdir() if not hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        if not entry.exists():
            raise UserError(f"{entry} is a link to nothing; mend or remove it")
        if entry.is_dir():
            yield from walk(entry, (*above, here))
        else:
            yield entry


def open_text(path: Path) -> IO[str]:
    """Open a CSV file for the `csv` module, gzipped if the name ends in `.gz`."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def read_header(path: Path) -> list[str]:
    """
    Raises:
        UserError: the file is empty, or cannot be read.
    """
    try:
        with open_text(path) as file:
            header = next(csv.reader(file), [])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); unpack or download it again") from None
    if not header:
        raise UserError(f"{path} is empty; unpack or download it again")
    return header


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """
    Raises:
        UserError: the header of `path` lacks one of `columns`, or cannot be read.
    """
    header = read_header(path)
    for column in columns:
        if column not in header:
            raise UserError(f"{path}, line 1: column {column!r} is missing; the header has {', '.join(header)}")


def find_line(path: Path, values: Mapping[str, str], *, occurrence: int = 1) -> int:
    """Number of the line on which `values` (column to text) occur for the `occurrence`-th time; 0 if they never do.

    Whole numbers match whatever their leading zeros.
    """
    with open_text(path) as file:
        reader = csv.DictReader(file)
        for row in reader:
            occurrence -= all((row[column] or "").lstrip("0") == text.lstrip("0") for column, text in values.items())
            if occurrence == 0:
                return reader.line_num
    return 0


def explain(path: Path, error: object, checks: Mapping[str, Check], *, required: Sequence[str]) -> UserError:
    """Read a damaged file again, slowly, to find its first line at fault.

    Args:
        error: what the fast reader said; it is passed on if the slow one finds nothing.
        checks: of the fields, by column.
        required: columns that may not be empty.
    """
    try:
        for problem in problems(path, checks, required):
            return UserError(f"{path}, {problem}; correct the line, or unpack or download the file again")
    except (OSError, EOFError, zlib.error) as damage:
        return UserError(f"{path} is cut off or damaged ({damage}); unpack or download it again")
    except (csv.Error, UnicodeDecodeError) as damage:
        return UserError(f"{path} is damaged ({damage}); unpack or download it again")
    return UserError(f"{path}: {error}")


def problems(path: Path, checks: Mapping[str, Check], required: Sequence[str]) -> Iterator[str]:
    """Line, column, value and fault of everything that is wrong with a file, in order."""
    with open_text(path) as file:
        reader = csv.reader(file)
        header = next(reader)
        for row in reader:
            line = f"line {reader.line_num}"
            if row and len(row) != len(header):
                yield f"{line}: {len(row)} fields where the header has {len(header)}"
                continue
            for column, value in zip(header, row, strict=False):
                if value == "":
                    if column in required:
                        yield f"{line}: {column} is empty"
                elif column in checks and (fault := checks[column](value)):
                    yield f"{line}: {column} is {value!r}, {fault}"
