"""Any table of plays: one row a play, columns mapped by options. CSV or Parquet, one file or a folder of them.

session or (user and) time gap -> which plays belong together      position or time -> their order

    play_files, play_times, play_rows   what is in the files, row by row, as text
    play_order                          numbers for texts, and all plays in order
    play_sessions, session_tables       which plays are a session, and the order of the sessions
    play_store                          the plays in the order of their sessions
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import vocab
from utils.preprocessing import play_tracks
from utils.preprocessing.dataset_writer import Chunk, Funnel
from utils.preprocessing.engine import read_parquet, write_parquet
from utils.preprocessing.options import PlaysColumns
from utils.preprocessing.play_logs import unpack_log
from utils.preprocessing.play_order import Order, in_order, order_plays
from utils.preprocessing.play_rows import CodedPlays, check_rows, code_plays, where_is
from utils.preprocessing.play_sessions import Cut, Found, find_sessions
from utils.preprocessing.play_store import Buckets, BucketWriter, StoredPlays
from utils.preprocessing.play_times import SECOND
from utils.preprocessing.session_tables import PiecesWriter, Sessions, check_sessions, name_sessions, read_sessions
from utils.preprocessing.sources.plays import SourcePlays

STORED = ("track", "skip", "log", "time", "seconds")
"""Columns of a play that go into the dataset, where there are any."""


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
    """Plays in sessions, on disk. P sessions were found, M of them are kept."""

    sessions: Sessions
    stored: StoredPlays
    """Plays of all sessions that were found."""
    lengths: np.ndarray
    """Plays of each session that was found, in the order of `stored`; int32 (P,)"""
    tracks: Path
    """`code` int32 and `text` of each track; see `play_order.OrderedPlays`"""
    names: Path | None
    """Names of tracks; see `play_tracks.find_names`"""
    rows: list[int]
    """Of each file."""
    funnel: Funnel
    notes: list[str]
    """What is to be said about times."""


def arrange(
    connection: Any, path: Path, source: SourcePlays, work: Path, rules: Rules, order: Order | None = None
) -> Arranged:
    """Read plays, check them, make sessions of them. Temporary files go to `work`.

    Args:
        path: what was named as the input, for messages.
        order: what numbers and sorts the plays; without it, `connection` does.

    Raises:
        UserError: see `code_plays` and `check_rows`; two plays at one position; a session of two listeners or in two
            official splits; no session is left.
    """
    columns = source.columns
    coded = code_plays(connection, source.files, columns, work)
    is_export = bool(source.sources)
    coded = coded._replace(origin=path if is_export else None)
    n_without = 0
    if rules.drop_without_track:
        n_without = connection.to_pyarrow(coded.table.track_id.isnull().sum()).as_py() or 0
        coded = coded._replace(table=coded.table.filter(coded.table.track_id.notnull()))
    cure = ", or drop them with --drop_rows_without_track true" if rules.are_options and not is_export else ""
    notes = check_rows(connection, coded, path, columns, cure_of_track=cure)
    names = play_tracks.find_names(connection, coded, work)
    # A listener beside a session is looked at for each play; without sessions, the owner is the listener.
    # A time that is the place need not be sorted twice.
    is_place = bool(columns.time and not columns.position)
    unused = {"user": not columns.session, "time": is_place or not columns.time}
    plays = coded.table.drop(*(name for name in coded.table.columns if unused.get(name)))
    ordered = order_plays(connection, plays, work) if order is None else order(plays, work)
    shutil.rmtree(work / "coded")

    there = [*plays.columns, "track", *(["time"] if is_place else [])]
    stored = StoredPlays(work / "plays", [name for name in STORED if name in there])
    pieces = PiecesWriter(work / "pieces.parquet", rules.shortest)
    silence = None if columns.session else min(round(columns.gap * SECOND), 1 << 62)
    cut = Cut(silence, rules.longest, repeats=bool(columns.time) and not rules.keep_repeats)
    batches = in_order(ordered.files)
    if is_place:
        batches = (plays_of | {"time": plays_of["place"]} for plays_of in batches)
    for found in find_sessions(batches, cut):
        if columns.position and found.shares.any():
            raise same_position(coded, found, ordered.ids["owner"], columns.position)
        stored.append(found.plays)
        pieces.add(found)
    lengths = pieces.close()
    funnel = count_rows(pieces, source, coded, columns, rules, n_without)
    if not pieces.kept_sessions:
        advice = "; lower --min_session_length" if rules.are_options and rules.shortest > 1 else ""
        raise UserError(f"{path} has no session of {rules.shortest} plays or more{advice}")
    ids = {name: read_parquet(connection, file) for name, file in ordered.ids.items()}
    found_sessions = read_parquet(connection, work / "pieces.parquet")
    named = name_sessions(connection, found_sessions, ids, columns, are_cut=rules.longest is not None)
    write_parquet(connection, named, work / "sessions.parquet")
    check_sessions(work / "sessions.parquet", ordered.ids.get("user"), path)
    sessions = read_sessions(work / "sessions.parquet", rules.shortest, pieces.kept_sessions)
    return Arranged(sessions, stored, lengths, ordered.ids["track_id"], names, coded.rows, funnel, notes)


def count_rows(
    pieces: PiecesWriter, source: SourcePlays, coded: CodedPlays, columns: PlaysColumns, rules: Rules, n_without: int
) -> Funnel:
    """
    Args:
        n_without: rows without a track.
    """
    funnel = Funnel()
    n_rows = sum(coded.rows) + sum(rows for _, rows in source.dropped)
    funnel.add("read", rows=n_rows, sessions=pieces.sessions)
    for reason, rows in source.dropped:
        funnel.add(f"dropped: {reason}", rows=rows, sessions=0)
    if rules.drop_without_track:
        funnel.add("dropped: no track", rows=n_without, sessions=0)
    if columns.time and not rules.keep_repeats:
        funnel.add("dropped: the same play again", rows=pieces.repeats, sessions=0)
    dropped = {"rows": pieces.rows - pieces.kept_rows, "sessions": pieces.sessions - pieces.kept_sessions}
    funnel.add(f"dropped: fewer than {rules.shortest} plays", **dropped)
    funnel.add("kept", rows=pieces.kept_rows, sessions=pieces.kept_sessions)
    if not columns.position:
        reason = "kept, of which at the time of a neighbour"
        funnel.add(reason, rows=pieces.kept_shared, sessions=pieces.kept_sharing)
    return funnel


def same_position(coded: CodedPlays, found: Found, owners: Path, column: str) -> UserError:
    """The first session and position that several plays have, as an error."""
    plays = found.plays
    first = int(np.flatnonzero(found.shares)[0])
    same = (plays["owner"] == plays["owner"][first]) & (plays["place"] == plays["place"][first])
    session = pq.read_table(owners)["text"][int(plays["owner"][first])]
    where = where_is(coded, int(plays["row"][same].max()), column)
    position = f"{plays['place'][first]:g}"
    return UserError(f"{where}: session {session} has {same.sum()} plays at position {position}; remove all but one")


def deal(arranged: Arranged, training: np.ndarray, work: Path) -> tuple[Buckets, play_tracks.Counts]:
    """Put the plays in order of their sessions, without those of sessions that are not kept, and count their tracks.

    Args:
        training: which sessions train, bool (M,).
    """
    sessions, lengths = arranged.sessions, arranged.lengths
    numbers = np.full(len(lengths), -1, np.int32)
    numbers[sessions.places] = np.arange(len(sessions.places), dtype=np.int32)
    counts = play_tracks.Counts(pq.read_metadata(arranged.tracks).num_rows)
    writer = BucketWriter(work / "buckets", arranged.stored.dtype, sessions.lengths)
    for some, plays in arranged.stored.blocks(lengths):
        is_kept = numbers[some] >= 0
        plays = plays[np.repeat(is_kept, lengths[some])]
        number = numbers[some][is_kept]
        counts.add(plays["track"], np.repeat(training[number], sessions.lengths[number]))
        writer.add(number, plays)
    return writer.buckets, counts


def chunks(buckets: Buckets, sessions: Sessions, ids: np.ndarray, file: str, *, n_ids: int) -> Iterator[Chunk]:
    """All plays, in order of their sessions.

    Args:
        ids: of each track, by its code; int32.
        n_ids: ids from here on are of tracks outside the vocabulary.
    """
    for (some, plays), rows in zip(buckets.read(), sessions.rows(buckets.slices), strict=True):
        full_ids = ids[plays["track"]]
        there = plays.dtype.names or ()
        yield Chunk(
            tracks=np.where(full_ids < n_ids, full_ids, np.int32(vocab.UNK)),
            skips=plays["skip"],
            log=unpack_log(plays["log"]),
            lengths=sessions.lengths[some].astype(np.int64),
            session_id=rows["session_id"].combine_chunks(),
            day=rows["day"].combine_chunks(),
            file=file,
            user=rows["user"].combine_chunks(),
            full_ids=full_ids,
            times=plays["time"] if "time" in there else None,
            seconds=plays["seconds"] if "seconds" in there else None,
        )


def optional_arrays(columns: PlaysColumns) -> list[str]:
    """Those of `dataset_writer.OPTIONAL_ARRAYS` that the chunks of such a table have."""
    there = {"full_ids": True, "times": bool(columns.time), "seconds": bool(columns.seconds)}
    return [name for name, is_there in there.items() if is_there]
