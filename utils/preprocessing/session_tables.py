"""The sessions of a table of plays: their names, their order, and whether one has plays that it must not have.

The texts stay on disk. In memory there are a few bytes a session.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import schema
from utils.preprocessing.engine import parquet_batches
from utils.preprocessing.options import PlaysColumns
from utils.preprocessing.play_sessions import LIMITS, Found

SESSIONS_AT_ONCE = 1 << 16


class Sessions(NamedTuple):
    """M sessions that are kept (or pieces of some that were cut), in order of their start."""

    file: Path
    """What `name_sessions` returns, as Parquet; with those that are not kept."""
    shortest: int
    """Sessions with fewer plays are not kept."""
    lengths: np.ndarray
    """Plays of each, int32 (M,)"""
    places: np.ndarray
    """Place of each in the order in which sessions were found, int32 (M,)"""
    begins: np.ndarray
    """Whether it is no further piece of the session before; bool (M,)"""
    listener: np.ndarray | None
    """Number of the listener, int32 (M,); None where none is known"""
    split: np.ndarray | None
    """Place in `schema.SPLITS`, uint8 (M,), where there are official splits"""

    def rows(self, slices: Sequence[slice]) -> Iterator[pa.Table]:
        """`session_id`, `day` (YYYYMMDD, UTC; "" without times) and `user` (null where none is known) of sessions.

        Args:
            slices: which ones, one slice after the other from the first session on.
        """
        batches = kept_batches(self.file, self.shortest, ["name", "start", "user", "plays"])
        held = next(batches)
        for some in slices:
            n = some.stop - some.start
            while len(held) < n:
                held = pa.concat_tables([held, next(batches)])
            rows, held = held.slice(0, n), held.slice(n)
            if pa.types.is_integer(rows["start"].type):
                day = pc.strftime(pc.cast(rows["start"], pa.timestamp("us")), format="%Y%m%d")
            else:
                day = pa.chunked_array([pa.repeat("", n)])
            columns = {"session_id": rows["name"], "day": day, "user": rows["user"]}
            yield pa.table({name: column.combine_chunks() for name, column in columns.items()})


class PiecesWriter:
    """Writes what `find_sessions` says of sessions to a Parquet file, and counts them.

    Args:
        target: the file: the columns of `Found.pieces`, and `at`: the place of each, from 0.
        shortest: sessions with fewer plays are not kept.
    """

    def __init__(self, target: Path, shortest: int) -> None:
        self._target = target
        self._writer: pq.ParquetWriter | None = None
        self._lengths: list[np.ndarray] = []
        self._shortest = shortest
        self.sessions = self.rows = 0
        self.kept_sessions = self.kept_rows = self.kept_shared = self.kept_sharing = 0
        self.repeats = 0

    def add(self, found: Found) -> None:
        self.repeats += found.repeats
        plays, shared = found.pieces["plays"], found.pieces["shared"]
        kept = plays >= self._shortest
        table = pa.table({**found.pieces, "at": np.arange(self.sessions, self.sessions + len(plays))})
        self._writer = self._writer or pq.ParquetWriter(self._target, table.schema)
        self._writer.write_table(table)
        self._lengths.append(plays.astype(np.int32))
        self.sessions += len(plays)
        self.rows += int(plays.sum())
        self.kept_sessions += int(kept.sum())
        self.kept_rows += int(plays[kept].sum())
        self.kept_shared += int(shared[kept].sum())
        self.kept_sharing += int((shared[kept] > 0).sum())

    def close(self) -> np.ndarray:
        """Finish the file; returns the plays of each session, int32."""
        if self._writer is not None:
            self._writer.close()
        return np.concatenate(self._lengths)


def name_sessions(
    connection: Any, pieces: ibis.Table, ids: dict[str, ibis.Table], columns: PlaysColumns, *, are_cut: bool
) -> ibis.Table:
    """Sessions, and the pieces that some were cut into, in order of their start; pieces of one session stay together.

    Args:
        pieces: what `PiecesWriter` wrote.
        ids: the tables of `OrderedPlays.ids`.
        are_cut: whether sessions were cut.

    Returns:
        `name` of each, `whole` (name of the session that it was cut from), `piece`, `plays`, `at`, `listener` (number)
        and `user` (text; both null where none is known), `start` (microseconds since 1970; without times the name as a
        number, if it is one), and `LIMITS` with their greatest values.
    """
    owners = ids["owner"].select(owner_code="code", owner_text="text")
    found = pieces.inner_join(owners, [("owner", "owner_code")])
    whole = found.owner_text if columns.session else found.owner_text + "_" + found.session.cast("string")
    # Without times, sessions are in the order of their ids: as numbers where they are numbers, else as text.
    start = found.start if columns.time else whole.try_cast("float64")
    found = found.mutate(whole=whole, start=start)
    first = found.start.min().over(ibis.window(group_by=["owner", "session"])) if are_cut else found.start
    listener, user = ibis.null("int32"), ibis.null("string")
    if columns.user and columns.session:
        users = ids["user"].select(user_code="code", user_text="text")
        found = found.inner_join(users, [("least_user", "user_code")])
        listener, user = found.user_code, found.user_text
    elif columns.user:
        listener, user = found.owner, found.owner_text
    found = found.mutate(name=names_of_pieces(connection, found) if are_cut else found.whole)
    limits = [name for name in pieces.columns if name.startswith(("least_", "greatest_"))]
    found = found.select(
        "name", "whole", "piece", "plays", "at", "start", *limits, listener=listener, user=user, first=first
    )
    return found.order_by(["first", "whole", "piece"]).drop("first")


def names_of_pieces(connection: Any, pieces: ibis.Table) -> ibis.Value:
    """Names of sessions and the pieces that they were cut into: 7, 7/2, 7/3.

    If another session has such a name, there are more strokes: 7//2.
    """
    sessions = pieces.filter(pieces.piece == 0).select(session="whole")
    stroke = "/"
    while True:
        number = (pieces.piece + 1).cast("string")
        names = ibis.ifelse(pieces.piece == 0, pieces.whole, pieces.whole + stroke + number)
        further = pieces.mutate(name=names).filter(pieces.piece > 0)
        if connection.to_pyarrow(further.semi_join(sessions, [("name", "session")]).count()).as_py() == 0:
            return names
        stroke += "/"


def check_sessions(file: Path, users: Path | None, path: Path) -> None:
    """
    Args:
        file: what `name_sessions` returns, as Parquet.
        users: texts of listeners, where they are checked.
        path: what was named as the input.

    Raises:
        UserError: plays of two listeners, or of two official splits, are in one session.
    """
    cures = {
        "user": ("listener", "give every listener's sessions ids of their own"),
        "split": (
            "split",
            "a session belongs to one split: correct the column, or give sessions that end with their split",
        ),
    }
    columns = pq.read_schema(file).names
    there = [name for name in LIMITS if f"least_{name}" in columns]
    limits = [f"{which}_{name}" for name in there for which in ("least", "greatest")]
    first = dict.fromkeys(there, 0)  # the least value in the first piece of a session, which comes before the others
    for batch in parquet_batches(file, ["whole", "piece", *limits], rows=SESSIONS_AT_ONCE) if there else ():
        begins = np.maximum.accumulate(np.where(batch["piece"].to_numpy() == 0, np.arange(len(batch)), -1))
        for name in there:
            least, greatest = (batch[f"{which}_{name}"].to_numpy() for which in ("least", "greatest"))
            firsts = np.where(begins < 0, first[name], least[begins])
            first[name] = firsts[-1]
            differs = np.flatnonzero((least != greatest) | (least != firsts))
            if len(differs):
                place = differs[0]
                codes = {int(values[place]) for values in (firsts, least, greatest)}
                texts = schema.SPLITS if name == "split" else pq.read_table(users)["text"]
                words = sorted(str(texts[code]) for code in codes)
                what, cure = cures[name]
                raise UserError(
                    f"{path}: session {batch['whole'][int(place)]} has plays of more than one {what} "
                    f"({' and '.join(words)}; --plays_columns.{name}); {cure}"
                )


def kept_batches(file: Path, shortest: int, columns: list[str]) -> Iterator[pa.Table]:
    """Columns (`plays` among them) of the sessions that are kept, some at a time."""
    for batch in parquet_batches(file, columns, rows=SESSIONS_AT_ONCE):
        yield pa.table(batch).filter(pc.greater_equal(batch["plays"], shortest))


def read_sessions(file: Path, shortest: int, n: int) -> Sessions:
    """
    Args:
        file: what `name_sessions` returns, as Parquet.
        shortest: sessions with fewer plays are not kept.
        n: how many are kept.
    """
    there = pq.read_schema(file).names
    types = {"plays": np.int32, "at": np.int32, "piece": bool, "listener": np.int32, "least_split": np.uint8}
    types = {name: kind for name, kind in types.items() if name in there}
    arrays = {name: np.empty(n, kind) for name, kind in types.items()}
    done = unknown = 0
    for batch in kept_batches(file, shortest, list(types)):
        unknown += batch["listener"].null_count
        for name, values in arrays.items():
            values[done : done + len(batch)] = pc.fill_null(batch[name], 0).to_numpy()
        done += len(batch)
    listener = None if unknown else arrays["listener"]
    split = arrays.get("least_split")
    return Sessions(file, shortest, arrays["plays"], arrays["at"], ~arrays["piece"], listener, split)
