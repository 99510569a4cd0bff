"""Rows of a table of plays under one form, whatever the source, and what is wrong with them."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data import schema
from utils.preprocessing import play_logs, play_times
from utils.preprocessing.engine import read_parquet, write_parquet
from utils.preprocessing.options import PlaysColumns
from utils.preprocessing.play_files import find_value, open_source

NAMES = ("name", "artist", "album")
"""Options of the names that a track has for people."""
NO_ID = r"^[\s\x0b]*(?:nan|NaN)?[\s\x0b]*$"
"""What stands for an id that is missing. A pattern is twice as fast as stripping spaces from every id."""
ROWS_A_FILE = 1 << 40
"""More than any file has: `row` is the place of the file times this, and the place in the file."""


class CodedPlays(NamedTuple):
    """All rows of all files."""

    table: ibis.Table
    """`owner` str (session or listener), `track_id` str, `skip` uint8 (`schema.SKIP_*`), `time` int64 (microseconds
    since 1970; null without a time), `unit` uint8 (see `play_times.read_times`), `place` (their order in a session or
    of a listener: int64, or float64 of positions), `log` int64 (see `play_logs.log_code`), `fault` uint8 (see
    `play_logs.fault_of`), `row` int64 (their order in the files).

    Where the option is given: `user` str, `seconds` float32 (null where unknown), `split` uint8 (a place in
    `schema.SPLITS`), and `NAMES` str (null where unknown)."""
    files: list[Path]
    names: list[list[str]]
    """Columns of each file."""
    rows: list[int]
    """Of each file."""
    origin: Path | None = None
    """What was named as the input, if a source made `files` of it: messages name it instead of them."""


def check_options(columns: PlaysColumns) -> None:
    """
    Raises:
        UserError: columns that make no sessions, or that would be ignored.
    """
    if not columns.session and not columns.time:
        raise UserError("give --plays_columns.session, or --plays_columns.time to make sessions by time gaps")
    if columns.session and columns.gap != PlaysColumns.gap:
        raise UserError("--plays_columns.gap has no meaning beside --plays_columns.session; leave one of them out")
    if not columns.session and columns.position:
        raise UserError("--plays_columns.position is the place in a session: it needs --plays_columns.session")
    if not columns.position and not columns.time:
        raise UserError("give --plays_columns.position or --plays_columns.time: the order of the plays in a session")
    if not (math.isfinite(columns.gap) and columns.gap > 0):
        raise UserError(f"--plays_columns.gap {columns.gap}: must be a number of seconds above 0")


def used_columns(columns: PlaysColumns) -> dict[str, str]:
    """Option -> column of the source, for those that are given."""
    names = {item.name: getattr(columns, item.name) for item in fields(columns) if item.name != "gap"}
    return {name: column for name, column in names.items() if column}


def code_plays(connection: Any, files: list[Path], columns: PlaysColumns, work: Path) -> CodedPlays:
    """Read every file once and leave its plays in `work`, under one form.

    Raises:
        UserError: a file that cannot be read, or a column that is not there or of no use.
    """
    check_options(columns)
    folder = work / "coded"
    folder.mkdir()
    coded: list[Path] = []
    names: list[list[str]] = []
    floats: dict[str, bool] = {}
    for i, file in enumerate(tqdm(files, desc="reading", unit=" files", leave=False)):
        with open_source(connection, file, work) as source:
            table = select_columns(source.table, source.names, used_columns(columns), file)
            check_types(table, columns, file, floats)
            target = folder / f"{i:06}.parquet"
            write_parquet(connection, code_file(table).mutate(file=ibis.literal(i, "int64")), target)
        coded.append(target)
        names.append(source.names)
    found = read_parquet(connection, coded, file_row_number=True)
    found = found.mutate(row=found.file * ROWS_A_FILE + found.file_row_number).drop("file", "file_row_number")
    return CodedPlays(found, files, names, [pq.read_metadata(part).num_rows for part in coded])


def select_columns(table: ibis.Table, names: list[str], used: dict[str, str], file: Path) -> ibis.Table:
    """The columns that options name, under the names of the options.

    Raises:
        UserError: a column is not there, or there twice.
    """
    for option, column in used.items():
        if column not in names:
            there = ", ".join(name or "(one without a name)" for name in names)
            cure = "; separate columns with commas" if len(names) == 1 and set(names[0]) & {";", "\t"} else ""
            raise UserError(f"{file} has no column {column!r} (--plays_columns.{option}); it has {there}{cure}")
        if names.count(column) > 1:
            raise UserError(
                f"{file} has {names.count(column)} columns {column!r} (--plays_columns.{option}); rename all but one"
            )
    return table.select(**{option: table[table.columns[names.index(column)]] for option, column in used.items()})


def check_types(table: ibis.Table, columns: PlaysColumns, file: Path, floats: dict[str, bool]) -> None:
    """
    Args:
        table: what `select_columns` returns.
        floats: whether a column of ids has been one of floats in the files before; this one's are added.

    Raises:
        UserError: a column cannot hold what it should, or the same id would be 7 in one file and 7.0 in another.
    """
    for option in table.columns:
        column, kind = getattr(columns, option), table[option].type()
        if kind.is_nested() or (option == "time" and not play_times.readable(kind)):
            raise UserError(
                f"{file}: column {column} (--plays_columns.{option}) is of type {kind}; give one of text or numbers"
                + (", of timestamps or of dates" if option == "time" else "")
            )
        if option not in ("track", "session", "user") or kind.is_null():
            continue
        if floats.setdefault(option, kind.is_floating()) != kind.is_floating():
            raise UserError(
                f"{file}: column {column} is of type {kind}, but in a file before it "
                f"{'was one of' if floats[option] else 'was none of'} floats, so 7 and 7.0 would be two ids; "
                "write whole numbers or text in all files"
            )


def code_file(table: ibis.Table) -> ibis.Table:
    """The columns of `CodedPlays.table` but `row`, of what `select_columns` returns."""
    if "time" in table.columns:
        time, unit = play_times.read_times(table.time)
    else:
        time, unit = ibis.null("int64"), ibis.literal(play_times.NO_NUMBER, "uint8")
    place = time
    if "position" in table.columns:
        place = play_times.finite(table.position.cast("string").try_cast("float64"))
    owner: ibis.Value = ibis.literal("session")
    for option in ("session", "user"):
        if option in table.columns:
            owner = identifier(table[option])
            break
    optional: dict[str, ibis.Value] = {name: text_of(table[name]) for name in NAMES if name in table.columns}
    if "user" in table.columns:
        optional["user"] = identifier(table.user)
    if "seconds" in table.columns:
        optional["seconds"] = play_logs.seconds_of(table.seconds)[0]
    if "split" in table.columns:
        optional["split"] = play_logs.split_of(table.split)
    return table.select(
        owner=owner,
        track_id=identifier(table.track),
        skip=play_logs.skip_code(table.skip) if "skip" in table.columns else ibis.literal(schema.SKIP_UNKNOWN, "uint8"),
        time=time,
        unit=unit,
        place=place,
        log=play_logs.log_code(table, time),
        fault=play_logs.fault_of(table),
        **optional,
    )


def identifier(column: ibis.Value) -> ibis.Value:
    """An id as text; null where it is empty or NaN."""
    text = column.cast("string")
    if column.type().is_integer():
        return text
    return ibis.ifelse(text.re_search(NO_ID), ibis.null("string"), text)


def text_of(column: ibis.Value) -> ibis.Value:
    """A name as text; null where it is empty. A track may be called NaN, but not in a column of numbers."""
    if column.type().is_floating():
        return identifier(column)
    text = column.cast("string")
    return ibis.ifelse(text.strip() == "", ibis.null("string"), text)


def check_rows(
    connection: Any, coded: CodedPlays, path: Path, columns: PlaysColumns, *, cure_of_track: str = ""
) -> list[str]:
    """What is to be said about times.

    Args:
        cure_of_track: what else can be done where a track is missing.

    Raises:
        UserError: no plays; a play without track, session or user, with a time or position that is none, or with
            another value at fault (`play_logs.FAULTS`).
    """
    plays = coded.table
    required = {
        "track_id": (columns.track, "no track", cure_of_track),
        "place": (
            (columns.position, "not a number", "")
            if columns.position
            else (columns.time, f"not a time that is read ({play_times.FORMS})", "")
        ),
        "time": (columns.time, f"not a time that is read ({play_times.FORMS})", ""),
        "owner": (columns.session or columns.user, f"no {'session' if columns.session else 'user'}", ""),
        "user": (columns.user, "no user", ""),
    }
    wrong = {name: plays[name].isnull() for name, rule in required.items() if rule[0]}
    for code, (option, fault) in enumerate(play_logs.FAULTS.items(), start=1):
        if getattr(columns, option):
            required[option], wrong[option] = (getattr(columns, option), fault, ""), plays.fault == code
    counts = {f"wrong {name}": which.sum() for name, which in wrong.items()}
    counts |= {unit.name: (plays.unit == i).sum() for i, unit in enumerate(play_times.UNITS)}
    counts["dates"] = play_times.looks_like_dates(plays.time, plays.unit).sum()
    found = connection.to_pyarrow(plays.aggregate(rows=plays.count(), **counts)).to_pylist()[0]
    if found["rows"] == 0:
        raise UserError(f"{path} has no plays")
    for name, which in wrong.items():
        if n := found[f"wrong {name}"]:
            column, fault, cure = required[name]
            where = where_is(coded, connection.to_pyarrow(plays.filter(which).row.min()).as_py(), column)
            raise UserError(f"{where}, {fault}; correct or remove the rows ({n} of them){cure}")
    if found["dates"] == found["rows"]:
        where = where_is(coded, connection.to_pyarrow(plays.row.min()).as_py(), columns.time)
        raise UserError(f"{where}, like all others a date rather than seconds since 1970; write it as 2026-02-01")
    return play_times.unit_notes(found)


def where_is(coded: CodedPlays, row: int, column: str) -> str:
    """File, line or row, column and value of one of the rows."""
    file, place = divmod(row, ROWS_A_FILE)
    found = find_value(coded.files[file], coded.names[file], column, place)
    return (
        found if coded.origin is None else f"{coded.origin}, of its plays{found.removeprefix(str(coded.files[file]))}"
    )
