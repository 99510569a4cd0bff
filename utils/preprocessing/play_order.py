"""All plays in one order: ids become numbers, then one sort. This is what outgrows memory, and what Spark can do.

    coded files -> owners, tracks, users    each id once, numbered in the order of the texts
    coded files -> ordered plays            numbers only: by owner, place and row

`play_sessions` reads the ordered plays from the first to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import numpy as np

from utils.preprocessing.engine import parquet_batches, read_parquet, write_parquet

Columns = dict[str, np.ndarray]
"""Columns of plays, each (N,)."""
IDS = {"owner": "owner", "track_id": "track", "user": "user"}
"""Columns of ids in the coded plays, and what they are called as numbers."""
TYPES: dict[str, type] = {
    "owner": np.int32,
    "row": np.int64,
    "track": np.int32,
    "user": np.int32,
    "split": np.uint8,
    "skip": np.uint8,
    "log": np.int64,
    "time": np.int64,
    "seconds": np.float32,
}
"""Of the columns of ordered plays; `place` is int64 or float64."""
ORDER = ("owner", "place", "row")
ROWS_AT_ONCE = 1 << 18
"""Plays that are in memory together, about."""


class OrderedPlays(NamedTuple):
    """What an engine leaves in the work folder."""

    files: list[Path]
    """Parquet, the columns of `with_numbers`, in ascending order of `ORDER` over all files"""
    ids: dict[str, Path]
    """Parquet for each of `IDS` that there is: `code` int32 and `text`, in order of both"""


Order = Callable[[ibis.Table, Path], OrderedPlays]
"""(`CodedPlays.table`, folder for files) -> its plays in order; each engine has its own."""


def numbered(plays: ibis.Table, column: str) -> ibis.Table:
    """`text` of a column of ids, each once, and its `code`: its place among them, from 0."""
    texts = plays.select(text=plays[column]).distinct()
    code = ibis.row_number().over(ibis.window(order_by=texts.text)).cast("int32")
    return texts.select("text", code=code).order_by("code")


def with_numbers(plays: ibis.Table, ids: dict[str, ibis.Table]) -> ibis.Table:
    """Plays with numbers for ids: `place` and those of `TYPES` that there are.

    Args:
        ids: for each of `IDS` that there is, what `numbered` returns.
    """
    others = [name for name in ("place", *TYPES) if name in plays.columns and name not in IDS]
    for column, codes in ids.items():
        names = {f"{column}_text": "text", f"{column}_code": "code"}
        plays = plays.inner_join(codes.select(**names), [(column, f"{column}_text")])
    return plays.select(*others, **{name: plays[f"{column}_code"] for column, name in IDS.items() if column in ids})


def order_plays(connection: Any, plays: ibis.Table, work: Path) -> OrderedPlays:
    """Number and sort the plays with DuckDB."""
    ids = {column: work / f"{column}.parquet" for column in IDS if column in plays.columns}
    for column, target in ids.items():
        write_parquet(connection, numbered(plays, column), target)
    codes = {column: read_parquet(connection, target) for column, target in ids.items()}
    write_parquet(connection, with_numbers(plays, codes).order_by(ORDER), work / "ordered.parquet")
    return OrderedPlays([work / "ordered.parquet"], ids)


def in_order(files: Sequence[Path]) -> Iterator[Columns]:
    """The ordered plays, some at a time. A file that has been read is removed.

    Raises:
        RuntimeError: they are in another order, which is a fault of the engine.
    """
    last: Columns = {}
    for file in files:
        for batch in parquet_batches(file, rows=ROWS_AT_ONCE):
            if len(batch) == 0:
                continue
            plays = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
            plays = {name: values.astype(TYPES.get(name, values.dtype), copy=False) for name, values in plays.items()}
            if not ascending(joined([last, plays]) if last else plays):
                raise RuntimeError(f"{file}: the engine has not sorted the plays")
            last = {name: plays[name][-1:] for name in ORDER}
            yield plays
        file.unlink()


def joined(parts: Sequence[Columns]) -> Columns:
    """Plays one after the other, with the columns of the first part."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ascending(plays: Columns) -> bool:
    """Whether plays are in the order of `ORDER`, none equal."""
    after = np.zeros(len(plays["row"]) - 1, bool)
    for name in reversed(ORDER):
        values = plays[name]
        after = (values[1:] > values[:-1]) | ((values[1:] == values[:-1]) & after)
    return bool(after.all())
