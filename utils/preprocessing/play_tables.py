"""Any table of plays: one row a play, columns mapped by options. CSV or Parquet, one file or a folder of them.

session or (user and) time gap -> which plays belong together      position or time -> their order

`play_files` says which files there are, `play_times` what a time is, `play_rows` what a row is; here they become
sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.preprocessing.dataset_writer import Chunk, Funnel
from utils.preprocessing.engine import read_parquet, write_parquet
from utils.preprocessing.options import PlaysColumns
from utils.preprocessing.play_logs import unpack_log
from utils.preprocessing.play_rows import NAMES, CodedPlays, check_rows, code_plays, where_is
from utils.preprocessing.play_times import SECOND
from utils.preprocessing.sources.plays import SourcePlays


class Rules(NamedTuple):
    """Which plays and sessions are kept."""

    shortest: int = 2
    """Sessions with fewer plays are dropped."""
    longest: int | None = None
    """Sessions with more are cut into pieces of so many plays; None: never."""
    keep_repeats: bool = False
    """Keep plays that equal another one in listener (or session), time, position and track."""
    drop_without_track: bool = False
    """Drop rows without a track, which are an error otherwise."""
    are_options: bool = True
    """Whether the command has options for these: then messages may advise them."""


class Arranged(NamedTuple):
    """Plays in sessions. M sessions."""

    sessions: pa.Table
    """(M,), in order of their start: `session_id` str, `whole` str and `piece` int64 (the session that it was cut from,
    and where), `plays` int64, `day` str (YYYYMMDD, UTC; "" without times), `user` str (null where none is known), and
    `split` uint8 where there are official splits"""
    plays: ibis.Table
    """`session_id` (`whole` of `sessions`), `piece`, `place`, `row`, `track_id`, `skip`, `time`, `log`, and `seconds`
    where known: plays of all sessions, those that were dropped too, in any order"""
    coded: CodedPlays
    funnel: Funnel
    notes: list[str]
    """What is to be said about times."""


def arrange(connection: Any, path: Path, source: SourcePlays, work: Path, rules: Rules) -> Arranged:
    """Read plays, check them, make sessions of them. Temporary files go to `work`.

    Args:
        path: what was named as the input, for messages.

    Raises:
        UserError: see `code_plays` and `check_rows`; two plays at one position; a session of two listeners or in two
            official splits; no session is left.
    """
    columns = source.columns
    coded = code_plays(connection, source.files, columns, work)
    n_rows, n_without = sum(coded.rows), 0
    if rules.drop_without_track:
        n_without = connection.to_pyarrow(coded.table.track_id.isnull().sum()).as_py() or 0
        coded = coded._replace(table=coded.table.filter(coded.table.track_id.notnull()))
    cure = ", or drop them with --drop_rows_without_track true" if rules.are_options else ""
    notes = check_rows(connection, coded, path, columns, cure_of_track=cure)
    plays, n_repeats = without_repeats(connection, coded, columns, work, rules)
    found = find_pieces(connection, plays, has_times=bool(columns.time))
    check_sessions(found, path)

    funnel = Funnel()
    length = found["plays"].to_numpy()
    kept = length >= rules.shortest
    funnel.add("read", rows=n_rows + sum(rows for _, rows in source.dropped), sessions=len(length))
    for reason, rows in source.dropped:
        funnel.add(f"dropped: {reason}", rows=rows, sessions=0)
    if rules.drop_without_track:
        funnel.add("dropped: no track", rows=n_without, sessions=0)
    if columns.time and not rules.keep_repeats:
        funnel.add("dropped: the same play again", rows=n_repeats, sessions=0)
    funnel.add(f"dropped: fewer than {rules.shortest} plays", rows=length[~kept].sum(), sessions=(~kept).sum())
    funnel.add("kept", rows=length[kept].sum(), sessions=kept.sum())
    if not columns.position:
        shared = found["shared"].to_numpy()[kept]
        reason = "kept, of which at the time of a neighbour"
        funnel.add(reason, rows=shared.sum(), sessions=(shared > 0).sum())
    if not kept.any():
        advice = "; lower --min_session_length" if rules.are_options and rules.shortest > 1 else ""
        raise UserError(f"{path} has no session of {rules.shortest} plays or more{advice}")
    sessions = describe_sessions(found, has_times=bool(columns.time)).filter(pa.array(kept))
    return Arranged(sessions, plays, coded, funnel, notes)


def find_pieces(connection: Any, plays: ibis.Table, *, has_times: bool) -> pa.Table:
    """One row for each session, or piece of one, in order of their start: those of one session follow each other.

    Returns:
        `session_id`, `piece`, `plays`, `start` (microseconds since 1970, or nothing), `shared` (plays that share their
        place with a neighbour), `name`; the least and the greatest `user` and `split` of its plays, as `user`,
        `other_user`, `split`, `other_split`, where there are such columns.
    """
    # Without times, sessions are in the order of their ids: as numbers where they are numbers, else as text.
    start = plays.time if has_times else plays.session_id.try_cast("float64")
    limits: dict[str, ibis.Value] = {}
    for name in ("user", "split"):
        if name in plays.columns:
            limits |= {name: plays[name].min(), f"other_{name}": plays[name].max()}
    pieces = plays.group_by(["session_id", "piece"]).agg(
        plays=plays.count(), start=start.min(), shared=plays.shares.sum().cast("int64"), **limits
    )
    pieces = pieces.mutate(first=pieces.start.min().over(ibis.window(group_by="session_id")))
    found = connection.to_pyarrow(pieces.order_by(["first", "session_id", "piece"]))
    return found.append_column("name", names_of_pieces(found))


def check_sessions(found: pa.Table, path: Path) -> None:
    """
    Args:
        found: what `find_pieces` returns.

    Raises:
        UserError: plays of two listeners, or of two official splits, are in one session.
    """
    first = first_pieces(found["piece"].to_numpy())
    for name, what in (("user", "listener"), ("split", "split")):
        if name not in found.column_names:
            continue
        least, greatest = found[name], found[f"other_{name}"]
        differs = pc.or_(pc.not_equal(least, greatest), pc.not_equal(least, least.take(pa.array(first))))
        place = pc.index(differs, True).as_py()
        if place >= 0:
            values = [least[int(first[place])], least[place], greatest[place]]
            words = sorted({schema.SPLITS[value.as_py()] if name == "split" else value.as_py() for value in values})
            cure = (
                "give every listener's sessions ids of their own"
                if name == "user"
                else "a session belongs to one split: correct the column, or give sessions that end with their split"
            )
            raise UserError(
                f"{path}: session {found['session_id'][place]} has plays of more than one {what} "
                f"({' and '.join(words)}; --plays_columns.{name}); {cure}"
            )


def first_pieces(piece: np.ndarray) -> np.ndarray:
    """Where each session begins in pieces of sessions, by the number of each piece in its own: int64 (M,)."""
    return np.maximum.accumulate(np.where(piece == 0, np.arange(len(piece)), 0))


def in_sessions(plays: ibis.Table, columns: PlaysColumns, longest: int | None) -> ibis.Table:
    """Give plays a `session_id`, a `piece` and whether their place is that of a neighbour, too (`shares`).

    Sessions are those of the source, or a listener's plays up to a silence of more than `columns.gap` seconds. `piece`
    is 0, then 1 after `longest` plays, and so on. Plays at one place stay in the order of the files.
    """
    order: dict[str, Any] = {"group_by": "owner", "order_by": ["place", "row"]}
    window = ibis.window(**order)
    before, after = plays.place.lag().over(window), plays.place.lead().over(window)
    shares = ((before == plays.place) | (after == plays.place)).fill_null(False)
    if columns.session:
        plays = plays.mutate(shares=shares, session_id=plays.owner)
    else:
        silence = min(round(columns.gap * SECOND), 1 << 62)
        starts = ibis.cases((before.isnull() | (plays.place - before > silence), 1), else_=0)
        plays = plays.mutate(shares=shares, starts=starts)
        number = plays.starts.sum().over(ibis.cumulative_window(**order))
        plays = plays.mutate(session_id=plays.owner + "_" + number.cast("string")).drop("starts")
    plays = plays.drop(*(name for name in ("owner", "unit", "fault", *NAMES) if name in plays.columns))
    if longest is None:
        return plays.mutate(piece=ibis.literal(0, "int64"))
    place = ibis.row_number().over(ibis.window(group_by="session_id", order_by=["place", "row"]))
    return plays.mutate(piece=(place // longest).cast("int64"))


def without_repeats(
    connection: Any, coded: CodedPlays, columns: PlaysColumns, work: Path, rules: Rules
) -> tuple[ibis.Table, int]:
    """The plays of `in_sessions`, and how many were dropped since they equal one before in all that tells plays apart.

    Raises:
        UserError: different plays have one position.
    """
    target = work / "plays.parquet"
    write_parquet(connection, in_sessions(coded.table, columns, rules.longest), target)
    plays = read_parquet(connection, target)
    n_repeats = 0
    if columns.time and not rules.keep_repeats:
        some = plays.filter(plays.shares)
        same = ibis.window(group_by=["session_id", "place", "time", "track_id"], order_by="row")
        again = some.mutate(n_before=ibis.row_number().over(same))
        again = again.filter(again.n_before > 0).select("row")
        repeats = work / "repeats.parquet"
        write_parquet(connection, again, repeats)
        n_repeats = pq.read_metadata(repeats).num_rows
    if n_repeats:
        others = coded.table.anti_join(read_parquet(connection, repeats), "row")
        target = work / "different_plays.parquet"
        write_parquet(connection, in_sessions(others, columns, rules.longest), target)
        (work / "plays.parquet").unlink()
        plays = read_parquet(connection, target)
    if columns.position:
        check_positions(connection, plays, coded, columns.position)
    return plays, n_repeats


def check_positions(connection: Any, plays: ibis.Table, coded: CodedPlays, column: str) -> None:
    """
    Raises:
        UserError: a session has several plays at one position.
    """
    taken = plays.filter(plays.shares)
    taken = taken.group_by(["session_id", "place"]).agg(n=taken.count(), row=taken.row.max())
    taken = connection.to_pyarrow(taken.order_by(["session_id", "place"]).limit(1)).to_pylist()
    if taken:
        session, place, n = (taken[0][name] for name in ("session_id", "place", "n"))
        where = where_is(coded, taken[0]["row"], column)
        raise UserError(f"{where}: session {session} has {n} plays at position {place:g}; remove all but one")


def names_of_pieces(pieces: pa.Table) -> pa.Array:
    """Names (M,) of sessions and the pieces that they were cut into: 7, 7/2, 7/3.

    If another session has such a name, there are more strokes: 7//2.
    """
    number = pc.cast(pc.add(pieces["piece"], 1), pa.string())
    stroke = "/"
    while True:
        suffix = pc.if_else(pc.equal(pieces["piece"], 0), "", pc.binary_join_element_wise(stroke, number, ""))
        names = pc.binary_join_element_wise(pieces["session_id"], suffix, "")
        if pc.count_distinct(names).as_py() == len(names):
            return names
        stroke += "/"


def describe_sessions(found: pa.Table, *, has_times: bool) -> pa.Table:
    """`Arranged.sessions` of what `find_pieces` returns."""
    if has_times:
        day = pc.strftime(pc.cast(found["start"], pa.timestamp("us")), format="%Y%m%d")
    else:
        day = pa.repeat("", len(found))
    columns = {
        "session_id": found["name"],
        "whole": found["session_id"],
        "piece": found["piece"],
        "plays": found["plays"],
        "day": day,
        "user": found["user"] if "user" in found.column_names else pa.nulls(len(found), pa.string()),
    }
    if "split" in found.column_names:
        columns["split"] = found["split"]
    return pa.table(columns)


def number_sessions(connection: Any, arranged: Arranged, split: np.ndarray, work: Path) -> ibis.Table:
    """The plays of the sessions that are kept, in any order, with `number` (place of the session) and its `split`.

    Args:
        split: place in `schema.SPLITS` of each session, uint8 (M,).
    """
    sessions = arranged.sessions
    numbers = pa.table(
        {
            "session_id": sessions["whole"],
            "piece": sessions["piece"],
            "number": np.arange(len(sessions)),
            "split": split,
        }
    )
    pq.write_table(numbers, work / "numbers.parquet")
    plays = arranged.plays.drop(*(name for name in ("user", "split") if name in arranged.plays.columns))
    return plays.inner_join(read_parquet(connection, work / "numbers.parquet"), ["session_id", "piece"])


def indexed_batches(connection: Any, events: ibis.Table, ids: ibis.Table) -> Iterator[pa.RecordBatch]:
    """`id`, `skip`, `log`, `time` and, where known, `seconds` of all plays, by session, place and row.

    Args:
        events: what `number_sessions` returns.
        ids: `track_id` and `id` int32 of every track.
    """
    columns = ["id", "skip", "log", "time", *(["seconds"] if "seconds" in events.columns else [])]
    found = events.inner_join(ids, "track_id").select("number", "place", "row", *columns)
    ordered = found.order_by(["number", "place", "row"]).select(columns)
    yield from connection.to_pyarrow_batches(ordered, chunk_size=1 << 20)


def chunks(
    batches: Iterator[pa.RecordBatch], sessions: pa.Table, file: str, *, n_ids: int, has_times: bool
) -> Iterator[Chunk]:
    """Whole sessions from batches that end anywhere.

    Args:
        batches: what `indexed_batches` returns.
        n_ids: ids from here on are of tracks outside the vocabulary.
    """
    lengths = sessions["plays"].to_numpy()
    ends = np.cumsum(lengths)
    left: dict[str, np.ndarray] = {}
    first, read = 0, 0  # the next session, the events read so far
    for batch in batches:
        found = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
        if left:
            found = {name: np.concatenate([left[name], values]) for name, values in found.items()}
        read += len(batch)
        last = int(np.searchsorted(ends, read, side="right"))
        n = int(lengths[first:last].sum())
        left = {name: values[n:] for name, values in found.items()}
        rows = sessions.slice(first, last - first)
        full_ids = found["id"][:n]
        yield Chunk(
            tracks=np.where(full_ids < n_ids, full_ids, np.int32(vocab.UNK)),
            skips=found["skip"][:n],
            log=unpack_log(found["log"][:n]),
            lengths=lengths[first:last],
            session_id=rows["session_id"].combine_chunks(),
            day=rows["day"].combine_chunks(),
            file=file,
            user=rows["user"].combine_chunks(),
            full_ids=full_ids,
            times=found["time"][:n] if has_times else None,
            seconds=found["seconds"][:n] if "seconds" in found else None,
        )
        first = last


def optional_arrays(columns: PlaysColumns) -> list[str]:
    """Those of `dataset_writer.OPTIONAL_ARRAYS` that the chunks of such a table have."""
    there = {"full_ids": True, "times": bool(columns.time), "seconds": bool(columns.seconds)}
    return [name for name, is_there in there.items() if is_there]
