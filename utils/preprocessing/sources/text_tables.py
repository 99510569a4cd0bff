"""Text files of plays, whatever their delimiter: what a first line says, and their rows as text, a batch at a time."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing import play_times
from utils.preprocessing.csv_files import open_text
from utils.preprocessing.engine import read_text_table
from utils.preprocessing.play_files import not_utf8, plain, reading
from utils.preprocessing.sources.plays import ROWS_A_GROUP, SCHEMA

NO_TEXT = {"{": "JSON", "[": "JSON", "PK": "a zip file", "PAR1": "Parquet"}
"""How other files begin, and what they are."""
LINES_TO_LOOK_AT = 100
MISSING = ("", "nan", "NaN")
"""What stands for an id that is missing."""
LONGEST_LINE = 1 << 20
"""Letters of a line that are looked at."""


class Layout(NamedTuple):
    """How a text file is written."""

    columns: Sequence[str]
    """Of each row, in order; they differ."""
    delimiter: str
    header: bool
    """Whether the first row names the columns."""
    quoted: bool = True
    """Whether a quote at the start of a field holds it together; otherwise a quote is a letter."""

    def records(self, file: Path) -> Iterator[tuple[int, list[str]]]:
        """Last line and fields of each row below the header, slowly."""
        with open_text(file) as text:
            if self.quoted:
                reader = csv.reader(text, delimiter=self.delimiter, strict=True)
            else:
                reader = csv.reader(text, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
            rows = ((reader.line_num, row) for row in reader if row)
            yield from itertools.islice(rows, int(self.header), None)

    def line(self, file: Path, row: int) -> str:
        """ "FILE, line 7" of the `row`-th row (from 0)."""
        line, _ = next(itertools.islice(self.records(file), row, None), (0, []))
        return f"{file}, line {line}"


def first_lines(file: Path) -> list[str]:
    """Some lines from the start of a text file that are not blank, without their ends.

    Raises:
        UserError: there is none, or this is no text.
    """
    try:
        with reading(file), open_text(file) as text:
            lines = iter(lambda: text.readline(LONGEST_LINE), "")
            found = [line.rstrip("\r\n") for line in itertools.islice(lines, LINES_TO_LOOK_AT) if line.strip()]
    except UserError as error:
        raise not_utf8(file) or error from None
    if not found:
        raise UserError(f"{file} is empty; unpack or download it again")
    for start, kind in NO_TEXT.items():
        if found[0].lstrip().startswith(start):
            raise UserError(f"{file} is {kind}; give a text file with one play a line")
    return found


def split(line: str, delimiter: str) -> list[str]:
    """Fields of a line, quotes removed."""
    return next(csv.reader([line], delimiter=delimiter), [])


@contextmanager
def open_rows(connection: Any, file: Path, layout: Layout, work: Path) -> Iterator[ibis.Table]:
    """The rows of a text file as a table of text, in their order, until the block ends; an empty field is null.

    Raises:
        UserError: damaged; in the block, too.
    """
    quote = '"' if layout.quoted else ""
    with plain(file, work) as path:
        try:
            yield read_text_table(
                connection, path, layout.columns, skip=int(layout.header), delimiter=layout.delimiter, quote=quote
            )
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise explain(file, layout, error) from None


def explain(file: Path, layout: Layout, error: Exception) -> UserError:
    """Read a file again, slowly, for its first line at fault; pass the error on where nothing is found."""
    line = 0
    try:
        for line, row in layout.records(file):
            if len(row) != len(layout.columns):
                return UserError(
                    f"{file}, line {line}: {len(row)} fields, not {len(layout.columns)} ({', '.join(layout.columns)}); "
                    "correct the line, or export or download the file again"
                )
    except UnicodeDecodeError:
        return not_utf8(file) or UserError(f"{file} is not UTF-8; save it in UTF-8")
    except csv.Error as damage:
        return UserError(f"{file}, below line {line}: {damage}; correct it, or export or download the file again")
    return UserError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}")


Extend = Callable[[dict[str, pa.Array]], dict[str, pa.Array]]
"""Adds columns of `SCHEMA` to those of a batch."""


def copy_plays(
    connection: Any,
    file: Path,
    layout: Layout,
    target: Path,
    work: Path,
    *,
    names: Sequence[str],
    extend: Extend = lambda columns: columns,
) -> int:
    """Write the rows of a text file as plays, in their order.

    Args:
        layout: columns called track, time, session and user are taken, others are not.
        names: columns of `SCHEMA` to write. `position` is the place in the file, from 0.
        extend: makes those that the file lacks.

    Returns:
        The number of rows.

    Raises:
        UserError: damaged, a time that is none, or a row without track, session or user.
    """
    fields = pa.schema([SCHEMA.field(name) for name in names])
    taken = [name for name in ("track", "session", "user") if name in layout.columns]
    n_before = 0
    with (
        open_rows(connection, file, layout, work) as table,
        pq.ParquetWriter(target, fields) as writer,
        tqdm(desc=file.name, unit=" rows", unit_scale=True, leave=False) as bar,
    ):
        chosen: dict[str, ibis.Value] = {}
        for name in taken:
            text = table[name].strip()
            chosen[name] = ibis.ifelse(text.isin(MISSING), ibis.null("string"), text)
        if "time" in layout.columns:
            chosen["time"] = play_times.read_times(table.time)[0]
        for batch in table.select(**chosen).to_pyarrow_batches(chunk_size=ROWS_A_GROUP):
            for name in chosen:
                if batch[name].null_count:
                    missing = np.flatnonzero(batch[name].is_null().to_numpy(zero_copy_only=False))
                    raise no_value(file, layout, name, n_before + int(missing[0]))
            columns = {name: batch[name] for name in taken}
            if "time" in chosen:
                columns["time"] = batch["time"].cast(SCHEMA.field("time").type)
            columns["position"] = pa.array(np.arange(n_before, n_before + len(batch), dtype=np.float64))
            columns = extend(columns)
            writer.write_table(pa.table([columns[name].cast(fields.field(name).type) for name in names], schema=fields))
            n_before += len(batch)
            bar.update(len(batch))
    return n_before


def no_value(file: Path, layout: Layout, name: str, row: int) -> UserError:
    """What to say of a value that is missing, or of a time that is none, in the `row`-th row (from 0)."""
    line, fields = next(itertools.islice(layout.records(file), row, None))
    if name != "time":
        return UserError(f"{file}, line {line}: no {name}; correct or remove the line")
    value = fields[list(layout.columns).index("time")]
    return UserError(
        f"{file}, line {line}: the time is {value!r}, not one that is read ({play_times.FORMS}); correct or remove "
        "the line"
    )


def column_names(header: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Our names of the columns of a header, "unused_3" for others.

    Args:
        known: our name -> names in headers in small letters, the best first; each of ours is given once.
    """
    small = [name.strip().lower() for name in header]
    places: dict[int, str] = {}
    for ours, theirs in known.items():
        found = [small.index(name) for name in theirs if name in small and small.index(name) not in places]
        if found:
            places[found[0]] = ours
    return [places.get(i, f"unused_{i}") for i in range(len(header))]
