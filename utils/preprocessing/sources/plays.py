"""What a source hands over: Parquet files of plays in one form, and an account of every row that it read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.preprocessing import play_times
from utils.preprocessing.options import PlaysColumns, SourceOptions

__all__ = [
    "SCHEMA",
    "SourceOptions",
    "SourcePlays",
    "artist_and_title",
    "check_options",
    "columns_of",
    "is_time",
    "no_plays",
    "plays_of_listeners",
    "source_of",
    "write_plays",
]

SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("session", pa.string()),
        ("position", pa.float64()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("track", pa.string()),
        ("name", pa.string()),
        ("artist", pa.string()),
        ("album", pa.string()),
        ("skip", pa.string()),
        ("seconds", pa.float32()),
        ("reason_start", pa.string()),
        ("reason_end", pa.string()),
        ("shuffle", pa.string()),
        ("context", pa.string()),
        ("premium", pa.string()),
        ("split", pa.string()),
    ]
)
"""Columns of plays, each as the option `--plays_columns.X` of its name says; `time` is the start of the play."""
ROWS_A_GROUP = 1 << 16
"""Plays that are in memory at a time."""


class SourcePlays(NamedTuple):
    """What `read(path, work, options)` of a source returns."""

    files: list[Path]
    """Parquet files with the same columns of `SCHEMA`, in the order in which their plays are to be read."""
    columns: PlaysColumns
    """Which columns there are: each that is given has its own name."""
    sources: list[dict[str, Any]]
    """file (relative to the input), bytes and rows of what was read, for dataset.json."""
    dropped: list[tuple[str, int]]
    """Reason and number of rows that are no plays of tracks; every row that was read is in `files` or here, once."""
    notes: list[str]
    """For dataset.json."""
    features: Path | None = None
    """A Parquet table of track_id and numeric columns, or one column of lists."""
    features_file: Path | None = None
    """The file of the input that `features` is made of: what messages call it."""
    per_listener: bool = False
    """Split by time within each listener, if nothing else is said."""


def write_plays(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write plays to one Parquet file, a group at a time.

    Args:
        target: the file to write.
        columns: names of `SCHEMA`, in the order of the values of each row.
        rows: one play each; `time` in microseconds since 1970.

    Returns:
        The number of plays.
    """
    chosen = pa.schema([SCHEMA.field(name) for name in columns])
    rows, n = iter(rows), 0
    with pq.ParquetWriter(target, chosen) as writer:
        while group := list(itertools.islice(rows, ROWS_A_GROUP)):
            arrays = [as_array(values, field) for values, field in zip(zip(*group, strict=True), chosen, strict=True)]
            writer.write_table(pa.table(arrays, schema=chosen))
            n += len(group)
    return n


def as_array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Values of a column. Halves of a letter, which JSON may hold (`"\\ud83d"`), become question marks."""
    try:
        return pa.array(values, field.type)
    except UnicodeEncodeError:
        whole = [value if value is None else value.encode("utf-8", "replace").decode() for value in values]
        return pa.array(whole, field.type)


def is_time(us: float) -> bool:
    """Whether so many microseconds since 1970 are a time that a play can have (`play_times`)."""
    return play_times.EARLIEST * play_times.SECOND <= us < play_times.LATEST * play_times.SECOND


def columns_of(names: Sequence[str]) -> PlaysColumns:
    """The options for files with these columns of `SCHEMA`."""
    options: dict[str, Any] = {name: name for name in names}
    return PlaysColumns(**options)


def source_of(path: Path, file: Path, rows: int) -> dict[str, Any]:
    """What `dataset.json` says of a file of the input `path`."""
    name = file.name if file == path or not path.is_dir() else str(file.relative_to(path))
    return {"file": name, "bytes": file.stat().st_size, "rows": rows}


def check_options(options: SourceOptions, source: str, used: Sequence[str] = ()) -> None:
    """
    Raises:
        UserError: an option is given that this source has no use for.
    """
    for field in fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise UserError(f"--source_options.{field.name} has no meaning for --source {source}; leave it out")


def no_plays(path: Path, dropped: Sequence[tuple[str, int]]) -> UserError:
    """What to say of an export in which nothing is left."""
    if not sum(n for _, n in dropped):
        return UserError(f"{path} has no plays: the export is empty; ask for another one")
    reasons = ", ".join(f"{n} {reason}" for reason, n in dropped if n)
    return UserError(f"{path} has no plays of tracks: {reasons}")


def plays_of_listeners(
    path: Path,
    files: list[Path],
    columns: Sequence[str],
    *,
    sources: list[dict[str, Any]],
    reasons: Sequence[str],
    dropped: Counter[str],
    notes: list[str],
) -> SourcePlays:
    """What a source of the exports at `path` hands over: `dropped` rows by their reasons, in the order of `reasons`.

    Raises:
        UserError: no plays are left.
    """
    funnel = [(reason, dropped[reason]) for reason in reasons]
    if not files:
        raise no_plays(path, funnel)
    return SourcePlays(files, columns_of(columns), sources, funnel, notes, per_listener=True)


def artist_and_title(artist: str, title: str) -> str:
    """The id of a track that has none: its artist and its title, which no other pair of them shares."""
    return f"{artist.replace('|', '||')} | {title}"
