"""Any table of plays: one row a play, columns mapped by options. CSV or Parquet, one file or a folder of them.

session or (user and) time gap -> which plays belong together      position or time -> their order

`play_files` says which files there are, `play_times` what a time is, `play_rows` what a row is; here they become
sessions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.data.dataset import Dataset, SessionArrays
from utils.preprocessing.dataset_writer import Chunk, Funnel, SplitWriter
from utils.preprocessing.engine import connect, read_parquet, write_parquet
from utils.preprocessing.options import Config, PlaysColumns
from utils.preprocessing.play_rows import CodedPlays, check_rows, code_plays, where_is
from utils.preprocessing.play_times import SECOND


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
    """Plays in sessions. M sessions, N plays."""

    sessions: pa.Table
    """(M,), in order of their start: `number` int64 0..M-1, `session_id` str, `whole` str (the session that it was cut
    from), `plays` int64, `day` str (YYYYMMDD, UTC; "" without times)"""
    events: ibis.Table
    """`number`, `place`, `row`, `track_id`, `skip` (N,), in any order"""
    funnel: Funnel
    files: list[Path]
    rows: list[int]
    """Of each file."""
    notes: list[str]
    """What is to be said about times."""


def arrange(connection: Any, path: Path, columns: PlaysColumns, work: Path, rules: Rules) -> Arranged:
    """Read plays, check them, make sessions of them. Temporary files go to `work`.

    Raises:
        UserError: see `code_plays` and `check_rows`; two plays at one position; no session is left.
    """
    coded = code_plays(connection, path, columns, work)
    n_rows, n_without = sum(coded.rows), 0
    if rules.drop_without_track:
        n_without = connection.to_pyarrow(coded.table.track_id.isnull().sum()).as_py() or 0
        coded = coded._replace(table=coded.table.filter(coded.table.track_id.notnull()))
    cure = ", or drop them with --drop_rows_without_track true" if rules.are_options else ""
    notes = check_rows(connection, coded, path, columns, cure_of_track=cure)
    plays, n_repeats = without_repeats(connection, coded, columns, work, rules)

    # Without times, sessions are in the order of their ids: as numbers where they are numbers, else as text.
    start = plays.time if columns.time else plays.session_id.try_cast("float64")
    pieces = plays.group_by(["session_id", "piece"]).agg(
        plays=plays.count(), start=start.min(), shared=plays.shares.sum().cast("int64")
    )
    pieces = pieces.mutate(first=pieces.start.min().over(ibis.window(group_by="session_id")))
    found = connection.to_pyarrow(pieces.order_by(["first", "session_id", "piece"]))
    found = found.append_column("name", names_of_pieces(found))

    funnel = Funnel()
    length = found["plays"].to_numpy()
    kept = length >= rules.shortest
    funnel.add("read", rows=n_rows, sessions=len(length))
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
    found = found.filter(pa.array(kept))
    found = found.append_column("number", pa.array(np.arange(len(found))))
    pq.write_table(found.select(["session_id", "piece", "number"]), work / "numbers.parquet")
    numbers = read_parquet(connection, work / "numbers.parquet")
    events = plays.inner_join(numbers, ["session_id", "piece"]).select("number", "place", "row", "track_id", "skip")
    sessions = describe_sessions(found, has_times=bool(columns.time))
    return Arranged(sessions, events, funnel, coded.files, coded.rows, notes)


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
    plays = plays.drop("owner", "unit")
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
    """`Arranged.sessions` from `number`, `session_id`, `name`, `plays` and `start` (microseconds since 1970, or
    nothing)."""
    if has_times:
        day = pc.strftime(pc.cast(found["start"], pa.timestamp("us")), format="%Y%m%d")
    else:
        day = pa.repeat("", len(found))
    return pa.table(
        {
            "number": found["number"],
            "session_id": found["name"],
            "whole": found["session_id"],
            "plays": found["plays"],
            "day": day,
        }
    )


def indexed_batches(connection: Any, events: ibis.Table, tracks: ibis.Table) -> Iterator[pa.RecordBatch]:
    """`index` (id in `tracks`, `vocab.UNK` outside) and `skip` of all events, by session, place and row."""
    found = events.left_join(tracks, "track_id")
    found = found.select("number", "place", "row", "skip", index=ibis.coalesce(tracks.index, vocab.UNK).cast("int32"))
    ordered = found.order_by(["number", "place", "row"]).select("index", "skip")
    yield from connection.to_pyarrow_batches(ordered, chunk_size=1 << 20)


def chunks(batches: Iterator[pa.RecordBatch], sessions: pa.Table, file: str) -> Iterator[Chunk]:
    """Whole sessions from batches that end anywhere."""
    lengths = sessions["plays"].to_numpy()
    ends = np.cumsum(lengths)
    index, skip = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    first, read = 0, 0  # the next session, the events read so far
    for batch in batches:
        index = np.concatenate([index, batch["index"].to_numpy()])
        skip = np.concatenate([skip, batch["skip"].to_numpy()])
        read += len(batch)
        last = int(np.searchsorted(ends, read, side="right"))
        n = int(lengths[first:last].sum())
        rows = sessions.slice(first, last - first)
        yield Chunk(
            tracks=index[:n],
            skips=skip[:n],
            log=np.zeros((n, len(schema.LOG_COLUMNS)), np.uint8),
            lengths=lengths[first:last],
            session_id=rows["session_id"].combine_chunks(),
            day=rows["day"].combine_chunks(),
            file=file,
        )
        index, skip, first = index[n:], skip[n:], last


def read_plays(path: Path, columns: PlaysColumns, tracks: pa.Table, *, shortest: int = 2) -> tuple[Chunk, list[str]]:
    """All sessions of a table of plays, with the ids of an existing dataset: for scoring a trained model on them.

    Args:
        path: CSV or Parquet, or a folder of them.
        tracks: `track_id` and `index` of the dataset (its `tracks.parquet`).
        shortest: sessions with fewer plays are left out.

    Returns:
        The sessions in order of their start, with `vocab.UNK` for tracks that the dataset does not know, and what is
        to be said about them.

    Raises:
        UserError: see `arrange`.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        connection = connect(memory_limit=Config(out=work).memory_limit, folder=work).connection
        try:
            arranged = arrange(connection, path, columns, work, Rules(shortest=shortest, are_options=False))
            known = ibis.memtable(tracks.select(["track_id", "index"]))
            batches = indexed_batches(connection, arranged.events, known)
            chunk = concatenate(list(chunks(batches, arranged.sessions, path.name)))
        except (OSError, duckdb.Error) as error:
            raise UserError(f"{path}: {error} (working in {folder}: is the disk full?)") from None
        finally:
            connection.disconnect()
    dropped = [row for row in arranged.funnel.rows() if row["reason"].startswith("dropped") and row["rows"]]
    notes = [f"{row['reason']}: {row['rows']} plays" for row in dropped]
    return chunk, [*arranged.notes, *notes]


def plays_as_split(path: Path, columns: PlaysColumns, dataset: Dataset, folder: Path) -> SessionArrays:
    """Write the sessions of a table of plays as a split to `folder`, and print what was dropped or is unknown.

    Raises:
        UserError: see `read_plays`.
    """
    tracks = pq.read_table(dataset.folder / "tracks.parquet", columns=["track_id", "index"])
    chunk, notes = read_plays(path, columns, tracks)
    writer = SplitWriter(folder)
    writer.add(chunk)
    writer.close()
    for note in notes:
        print(note)
    unknown = float((chunk.tracks == vocab.UNK).mean())
    print(f"{unknown:.2%} of the plays are of tracks that {dataset.folder} does not know")
    return SessionArrays.open(folder)


def concatenate(parts: list[Chunk]) -> Chunk:
    return Chunk(
        tracks=np.concatenate([part.tracks for part in parts]),
        skips=np.concatenate([part.skips for part in parts]),
        log=np.concatenate([part.log for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        session_id=pa.concat_arrays([part.session_id for part in parts]),
        day=pa.concat_arrays([part.day for part in parts]),
        file=parts[0].file,
    )
