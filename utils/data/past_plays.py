"""What `utils/data/past.py` reads: plays of all splits, in the order in which they become the past of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import schema
from utils.data.dataset import Dataset, SessionArrays
from utils.data.vocab import N_SPECIAL

HOUR_COLUMN = list(schema.LOG_COLUMNS).index("hour_of_day")
PLAYS_AT_ONCE = 300_000
"""Plays whose numbers are in memory at a time; more if one listener has more."""
LONGEST_PLAY = 1e9
"""Seconds from which on a length is taken for a mistake."""
LOOKED_AT = 1_000_000
"""Plays among which a known hour is searched for."""


class Facts(NamedTuple):
    """What a dataset tells of its plays. Columns that need more have no meaning for it."""

    listeners: bool
    times: bool
    seconds: bool
    artist: bool
    album: bool
    hours: bool
    """Times, or hours in the log."""


def facts_of(dataset: Dataset) -> Facts:
    """What a dataset tells of its plays: in all splits, or in none; one without sessions tells nothing, either way."""
    splits = [dataset.split(name) for name in schema.SPLITS]
    times = all(arrays.times is not None for arrays in splits)
    return Facts(
        listeners=all(
            _has_values(arrays.folder / "sessions.parquet", "user") for arrays in splits if arrays.n_sessions
        ),
        times=times,
        seconds=all(arrays.seconds is not None for arrays in splits),
        artist=_has_values(dataset.folder / "tracks.parquet", "artist"),
        album=_has_values(dataset.folder / "tracks.parquet", "album"),
        hours=times or bool(dataset.train.log[:LOOKED_AT, HOUR_COLUMN].any()),
    )


def _has_values(path: Path, column: str) -> bool:
    """Whether a Parquet file has the column, and a value in it."""
    if column not in pq.read_schema(path).names:
        return False
    values = pq.read_table(path, columns=[column], read_dictionary=[column])[column]
    return bool(values.null_count < len(values))


class Catalogue(NamedTuple):
    """Tracks, artists and albums as entities: integers from 0, -1 where unknown."""

    entities: np.ndarray
    """int32 (tracks, 3): track, artist, album of each id of `full_ids`; special ids have none"""
    n_entities: int


def catalogue_of(dataset: Dataset, outside: SessionArrays | None = None) -> Catalogue:
    """The tracks of a dataset, its new tracks, and those that are new in sessions from outside."""
    tables = [_names(dataset.folder / "tracks.parquet", dataset.n_ids)]
    for folder in (dataset.folder, *([] if outside is None else [outside.folder])):
        if (folder / "new_tracks.parquet").exists():
            tables.append(_names(folder / "new_tracks.parquet"))
    names = pa.concat_tables(tables)
    entities = np.full((len(names), 3), -1, np.int32)
    entities[N_SPECIAL:, 0] = np.arange(N_SPECIAL, len(names))
    artist, n_artists = _codes(names["artist"])
    album, _ = _codes(names["album"])
    # Albums of one name by two artists are two albums.
    pairs, place = np.unique(np.where(album >= 0, album * (n_artists + 1) + artist + 1, -1), return_inverse=True)
    first = int(pairs[0] == -1)
    entities[:, 1] = np.where(artist >= 0, len(names) + artist, -1)
    entities[:, 2] = np.where(album >= 0, len(names) + n_artists + place - first, -1)
    return Catalogue(entities, len(names) + n_artists + len(pairs) - first)


def _names(path: Path, n_ids: int | None = None) -> pa.Table:
    """`artist` and `album` of each row of a table of tracks, or of each of `n_ids` ids that its `index` names."""
    there = pq.read_schema(path).names
    columns = [name for name in ("artist", "album") if name in there]
    table = pq.read_table(path, columns=columns + ([] if n_ids is None else ["index"]))
    length = len(table) if n_ids is None else n_ids
    rows = pa.array(np.arange(length))
    if n_ids is not None:
        place = np.full(n_ids, -1)
        place[table["index"].to_numpy()] = np.arange(len(table))
        rows = pa.array(place, mask=place < 0)
    columns_of = {name: table[name].cast(pa.string()).take(rows) for name in columns}
    nothing = pa.nulls(length, pa.string())
    return pa.table({name: columns_of.get(name, nothing) for name in ("artist", "album")})


def _codes(values: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """int64 codes of strings, -1 for null, and how many there are."""
    coded = values.combine_chunks().dictionary_encode()
    return pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64), len(coded.dictionary)


class Timeline(NamedTuple):
    """Sessions of several sources, in the order in which they are worked through. M sessions."""

    source: np.ndarray
    """int8 (M,): which of the sources"""
    first: np.ndarray
    """int64 (M,): first play of the session in its source"""
    length: np.ndarray
    """int32 (M,)"""
    group: np.ndarray
    """int32 (M,), ascending: the listener, or the day as a number of days"""
    start: np.ndarray
    """int64 (M,), ascending within a listener: microseconds, or rank without times"""

    def take(self, sessions: np.ndarray | slice) -> Timeline:
        """Some of its sessions."""
        return Timeline(*(array[sessions] for array in self))

    def parts(self, plays: int) -> Iterator[slice]:
        """Runs of whole groups with about so many plays."""
        ends = np.append(np.flatnonzero(np.diff(self.group)) + 1, len(self.group))
        yield from _runs(np.append(0, ends), np.append(0, np.cumsum(self.length, dtype=np.int64)[ends - 1]), plays)

    def pieces(self, plays: int) -> Iterator[slice]:
        """Runs of sessions with about so many plays."""
        yield from _runs(np.arange(len(self.length) + 1), np.append(0, np.cumsum(self.length, dtype=np.int64)), plays)


def _runs(places: np.ndarray, plays: np.ndarray, at_once: int) -> Iterator[slice]:
    """Slices between `places` that hold about `at_once` plays, at least one step; `plays` counts them up to each."""
    at = 0
    while at < len(places) - 1:
        following = max(at + 1, int(np.searchsorted(plays, plays[at] + at_once, side="right")) - 1)
        yield slice(int(places[at]), int(places[following]))
        at = following


def timeline_of(
    sources: Sequence[SessionArrays], groups: np.ndarray, starts: np.ndarray, without: np.ndarray | None = None
) -> Timeline:
    """All sessions of the sources, by group and start; equal ones in order of the sources, then of the sessions.

    Args:
        sources: such as the three splits.
        groups: int32, of each session of the first source, then of the second, ...
        starts: int64, of each likewise.
        without: bool, likewise: sessions that are left out.
    """
    source = np.repeat(np.arange(len(sources), dtype=np.int8), [arrays.n_sessions for arrays in sources])
    first = np.concatenate([arrays.offsets[:-1] for arrays in sources])
    length = np.concatenate([arrays.lengths.astype(np.int32) for arrays in sources])
    order = np.lexsort((starts, groups))
    if without is not None:
        order = order[~without[order]]
    return Timeline(source, first, length, groups, starts).take(order)


def listeners_of(sources: Sequence[SessionArrays]) -> np.ndarray:
    """A number for the listener of each session; a session without one is a listener of its own: int32."""
    columns = [_users(arrays) for arrays in sources]
    joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks]).unify_dictionaries()
    codes = [pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False) for chunk in joined.chunks]
    listeners = np.concatenate([np.zeros(0, np.int32), *codes]).astype(np.int32)
    alone = np.flatnonzero(listeners < 0)
    listeners[alone] = listeners.max(initial=-1) + 1 + np.arange(len(alone))
    return listeners


def _users(arrays: SessionArrays) -> pa.ChunkedArray:
    path = arrays.folder / "sessions.parquet"
    if "user" not in pq.read_schema(path).names:
        raise UserError(f"{path} has no column user, so the past of its listeners is unknown; name the column of users")
    column = pq.read_table(path, columns=["user"], read_dictionary=["user"])["user"]
    return column.cast(pa.dictionary(pa.int32(), pa.string()))


def copies_in(sources: Sequence[SessionArrays]) -> np.ndarray:
    """Which sessions have the session id of one of the last source, and are not of it: bool."""
    ids = [
        pq.read_table(arrays.folder / "sessions.parquet", columns=["session_id"])["session_id"] for arrays in sources
    ]
    last = ids[-1].cast(pa.string()).combine_chunks()
    found = [pc.is_in(each.cast(pa.string()), value_set=last).to_numpy() for each in ids[:-1]]
    return np.concatenate([*found, np.zeros(len(last), bool)])


def starts_of(sources: Sequence[SessionArrays], facts: Facts) -> np.ndarray:
    """Start of each session, microseconds; without times its rank: int64.

    Raises:
        UserError: a source has no times, but the dataset has.
    """
    if not facts.times:
        return np.arange(sum(arrays.n_sessions for arrays in sources))
    starts = []
    for arrays in sources:
        if arrays.times is None:
            raise UserError(f"{arrays.folder} has no times, but the dataset has; name the column of times")
        starts.append(arrays.times[arrays.offsets[:-1]])
    return np.concatenate(starts)


def days_of(sources: Sequence[SessionArrays]) -> np.ndarray:
    """The day of each session, as days since 1970; -1 where it is unknown: int32."""
    days = []
    for arrays in sources:
        codes = pq.read_table(arrays.folder / "sessions.parquet", columns=["day"], read_dictionary=["day"])["day"]
        for chunk in codes.chunks:
            texts = [text if text else "NaT" for text in chunk.dictionary.to_pylist()]
            dates = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" if d != "NaT" else d for d in texts], "datetime64[D]")
            known = np.where(np.isnat(dates), -1, dates.astype(np.int64)).astype(np.int32)
            days.append(known[chunk.indices.to_numpy()])
    return np.concatenate(days)


class Plays(NamedTuple):
    """All plays of some sessions, in their order. N plays, M sessions."""

    sessions: Timeline
    offsets: np.ndarray
    """int64 (M + 1,)"""
    entities: np.ndarray
    """int32 (N, 3)"""
    outcomes: np.ndarray
    """int8 (N,): 1 skipped, 0 not, -1 unknown"""
    times: np.ndarray
    """int64 (N,): start of the play; without times that of its session"""
    seconds: np.ndarray
    """float32 (N,): NaN where unknown"""
    hours: np.ndarray
    """float32 (N,): hour of the day, from the log, or of the time; NaN where unknown"""

    def take(self, sessions: slice) -> Plays:
        """Some of its sessions."""
        offsets = self.offsets[sessions.start : sessions.stop + 1]
        plays = [array[offsets[0] : offsets[-1]] for array in self[2:]]
        return Plays(self.sessions.take(sessions), offsets - offsets[0], *plays)


def gather(sources: Sequence[SessionArrays], sessions: Timeline, catalogue: Catalogue, facts: Facts) -> Plays:
    """Read the plays of some sessions."""
    offsets = np.append(0, np.cumsum(sessions.length, dtype=np.int64))
    which = np.repeat(sessions.source, sessions.length)
    rows = np.arange(offsets[-1]) + np.repeat(sessions.first - offsets[:-1], sessions.length)
    n = len(rows)
    ids, skips, hours = np.empty(n, np.int32), np.empty(n, np.uint8), np.empty(n, np.uint8)
    times, seconds = np.repeat(sessions.start, sessions.length), np.full(n, np.nan, np.float32)
    for number, arrays in enumerate(sources):
        mine = which == number
        own = rows[mine]
        if len(own) == 0:
            continue
        ids[mine] = (arrays.tracks if arrays.full_ids is None else arrays.full_ids)[own]
        skips[mine], hours[mine] = arrays.skips[own], arrays.log[own, HOUR_COLUMN]
        if facts.times and arrays.times is not None:
            times[mine] = arrays.times[own]
        if facts.seconds and arrays.seconds is not None:
            seconds[mine] = arrays.seconds[own]
    seconds[~((seconds >= 0) & (seconds < LONGEST_PLAY))] = np.nan
    if ids.max(initial=0) >= len(catalogue.entities):
        raise UserError("full_ids.npy has a track that new_tracks.parquet lacks; run the preprocessing again")
    outcomes = schema.is_skip(skips).astype(np.int8)
    outcomes[skips == schema.SKIP_UNKNOWN] = -1
    of_time = times // 3_600_000_000 % 24 if facts.times else np.full(n, np.nan)
    hour = np.where(hours > 0, hours - 1.0, of_time).astype(np.float32)
    return Plays(sessions, offsets, catalogue.entities[ids], outcomes, times, seconds, hour)
