"""A table of track features (`--features`): one row a track, an id and numbers, CSV or Parquet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils.core.errors import UserError
from utils.preprocessing.engine import read_parquet, write_parquet
from utils.preprocessing.play_files import Source, find_value, kind, open_source
from utils.preprocessing.play_logs import numbers
from utils.preprocessing.play_rows import NAMES, identifier

TAKEN = ("index", "track_id", "train_plays", *NAMES)
"""Columns that tracks.parquet has."""
INDEX = "__index_level_"
"""How pandas begins the name of a column that is the index of a table."""


def read_features(
    connection: Any, file: Path, column: str, known: ibis.Table, work: Path, made_of: Path | None = None
) -> tuple[pa.Table, list[str]]:
    """Features of the vocabulary's tracks, row for row in order of their ids, null where there are none, and notes.

    All columns of numbers count, and one column of lists, which all have one length: its numbers become columns. Of
    several rows of a track, the first counts. Only the rows of the vocabulary are in memory.

    Args:
        column: that of the track ids.
        known: `track_id` and `index` of the vocabulary.
        made_of: the file of a source that `file` was made of, which messages name instead.

    Raises:
        UserError: no such file or column, no numbers, lists of several lengths, an empty id, none of the tracks.
    """
    if not kind(file) or not file.is_file():
        raise UserError(f"--features {file}: expected a .csv, .csv.gz or .parquet file")
    with open_source(connection, file, work) as source:
        names = source.names
        if names.count(column) != 1:
            there = ", ".join(names)
            raise UserError(
                f"{file} has {names.count(column) or 'no'} columns {column!r} (--features_track); it has {there}"
            )
        named = made_of or file
        used, unused = columns_of_numbers(connection, file, source, column, named)
        values = {f"f{i}": table_column for i, table_column in enumerate(used.values())}
        coded = source.table.select(
            track_id=identifier(source.table[source.table.columns[names.index(column)]]), **values
        )
        write_parquet(connection, coded, work / "features.parquet")
    coded = read_parquet(connection, work / "features.parquet", file_row_number=True)
    widths = check_rows(connection, file, coded, names, [column, *used], named)

    rows = coded.group_by("track_id").agg(file_row_number=coded.file_row_number.min(), n=coded.count())
    rows = rows.inner_join(known.select("track_id", "index"), "track_id").drop("track_id")
    write_parquet(connection, rows, work / "feature_rows.parquet")
    rows = read_parquet(connection, work / "feature_rows.parquet")
    found = connection.to_pyarrow(rows.aggregate(tracks=rows.count(), rows=rows.n.sum())).to_pylist()[0]
    n_tracks = connection.to_pyarrow(known.count()).as_py()
    if not found["tracks"]:
        ours = connection.to_pyarrow(known.order_by("index").limit(1).track_id)[0]
        cure = f"--features_track names the column of their ids, now {column!r}"
        if made_of is not None:
            cure = "it belongs to another dataset; give this one's, or move it away"
        raise UserError(f"{named} has none of the tracks that are played (such as {str(ours)!r}); {cure}")
    matrix = np.full((sum(widths), n_tracks), np.nan, np.float32)
    first = int(connection.to_pyarrow(known["index"].min()).as_py())
    wanted = coded.inner_join(rows, "file_row_number").select("index", *values)
    for batch in connection.to_pyarrow_batches(wanted, chunk_size=1 << 16):
        place, row = batch["index"].to_numpy() - first, 0
        for name, width in zip(values, widths, strict=True):
            fill(matrix[row : row + width], place, batch[name])
            row += width
    labels: list[str] = []
    for (name, value), width in zip(used.items(), widths, strict=True):
        labels += [f"{name}_{i}" for i in range(width)] if value.type().is_array() else [name]
    if repeated_names := [name for name, n in Counter(labels).items() if n > 1]:
        raise UserError(
            f"{named}: the numbers of a column of lists would be called {repeated_names[0]!r}, as another column is; "
            "rename that one"
        )
    raw = pa.table([pa.array(values_of, from_pandas=True) for values_of in matrix], names=labels)
    notes = [f"track features: {len(labels)} numbers a track, of {named.name}"]
    if unused:
        notes.append(f"columns of {named.name} without numbers, which are left out: {', '.join(unused)}")
    if repeated := found["rows"] - found["tracks"]:
        notes.append(f"{repeated} repeated rows of track features dropped (the first of a track counts)")
    if missing := n_tracks - found["tracks"]:
        notes.append(f"{missing} tracks of the vocabulary have no row of features: they get the mean of the others")
    return raw, notes


def columns_of_numbers(
    connection: Any, file: Path, source: Source, column: str, called: Path
) -> tuple[dict[str, ibis.Value], list[str]]:
    """Name -> float32, or a list of them, for the columns that hold numbers; and the names of the others.

    A column of a CSV file holds numbers if each of its fields does that is not empty or NaN.

    Raises:
        UserError: no column of numbers, several of lists, or one whose name is taken.
    """
    named = dict(zip(source.table.columns, source.names, strict=True))
    named = {place: name for place, name in named.items() if name != column and name and not name.startswith(INDEX)}
    text = {place: source.table[place] for place in named if source.table[place].type().is_string()}
    counts: dict[str, ibis.Value] = {}
    if kind(file) == "csv":
        for place, value in text.items():
            number, missing = numbers(value)
            counts |= {f"{place} good": number.notnull().sum(), f"{place} bad": (number.isnull() & ~missing).sum()}
    found = connection.to_pyarrow(source.table.aggregate(**counts)).to_pylist()[0] if counts else {}
    used: dict[str, ibis.Value] = {}
    lists: list[str] = []
    for place, name in named.items():
        value = source.table[place]
        if value.type().is_numeric() or value.type().is_boolean():
            used[name] = value.try_cast("float64").try_cast("float32")
        elif value.type().is_array() and value.type().value_type.is_numeric():
            used[name] = value.cast("array<float32>")
            lists.append(name)
        elif place in text and found.get(f"{place} good") and not found[f"{place} bad"]:
            used[name] = numbers(value)[0].try_cast("float32")
        else:
            continue
        if list(named.values()).count(name) > 1:
            raise UserError(f"{called} has several columns {name!r}; rename all but one")
        if name in TAKEN:
            raise UserError(f"{called}: a column of features may not be called {name!r}; rename or remove it")
    if not used:
        raise UserError(f"{called} has no column of numbers beside {column!r}; it has {', '.join(source.names)}")
    if len(lists) > 1:
        raise UserError(f"{called} has {len(lists)} columns of lists ({', '.join(lists)}); keep one of them")
    return used, [name for name in named.values() if name not in used]


def check_rows(
    connection: Any, file: Path, coded: ibis.Table, names: list[str], columns: list[str], called: Path
) -> list[int]:
    """How many numbers each column of features holds in a row.

    Args:
        coded: `track_id` and a column for each of `columns` but the first, which is that of the ids; `file_row_number`.

    Raises:
        UserError: an empty id, lists of several lengths or without numbers.
    """
    empty = connection.to_pyarrow(coded.filter(coded.track_id.isnull()).file_row_number.min()).as_py()
    if empty is not None:
        raise UserError(f"{find_value(file, names, columns[0], empty)}, no track; correct or remove the row")
    widths = []
    for place, name in zip(coded.columns[1:-1], columns[1:], strict=True):
        value = coded[place]
        if not value.type().is_array():
            widths.append(1)
            continue
        lengths = coded.filter(value.notnull()).group_by(width=value.length())
        lengths = lengths.agg(row=coded.file_row_number.min()).order_by("row").limit(2)
        some = connection.to_pyarrow(lengths).to_pylist()
        if not some or not some[0]["width"]:
            raise UserError(f"{called}: the lists of column {name} hold no numbers")
        if len(some) > 1:
            (first, other) = some
            raise UserError(
                f"{called}, row {other['row'] + 1}: {name} has {other['width']} numbers where row {first['row'] + 1} "
                f"has {first['width']}; give every track as many"
            )
        widths.append(int(some[0]["width"]))
    return widths


def fill(matrix: np.ndarray, place: np.ndarray, values: pa.Array) -> None:
    """Write `values` (N,), numbers or lists of numbers, to columns of a matrix: float32 (width, V) at `place` (N,)."""
    if pa.types.is_list(values.type):
        there = pc.is_valid(values).to_numpy(zero_copy_only=False)
        rows = pc.list_flatten(values).to_numpy(zero_copy_only=False).reshape(-1, len(matrix))
        matrix[:, place[there]] = rows.T
    else:
        matrix[0, place] = values.to_numpy(zero_copy_only=False)
