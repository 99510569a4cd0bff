"""All plays of one listener, from every split of a dataset, in order of time, with the names of their tracks."""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import schema
from utils.data.dataset import Dataset, SessionArrays
from utils.data.schema import SPLITS
from utils.data.vocab import N_SPECIAL

NAMES = ("name", "artist", "album")
"""What is known of a track beside its id, where the source has names."""


class Plays(NamedTuple):
    """Plays of one listener, (n,) each, in order of time."""

    session: np.ndarray
    """int64: number of the play's session, from 0."""
    position: np.ndarray
    """int64: place in the session, from 0."""
    track: np.ndarray
    """int64: id as in `full_ids`; an id below `N_SPECIAL` stands for a track that is not told apart from others."""
    skipped: np.ndarray
    """bool"""
    known: np.ndarray
    """bool: whether it is known that the play was skipped or not."""
    time: np.ndarray | None
    """datetime64[us], local; None where the source has no times."""
    log: np.ndarray
    """uint8 (n, L): codes of `schema.LOG_COLUMNS`."""

    def log_codes(self, name: str) -> np.ndarray:
        """One column of the log: uint8 (n,)."""
        return self.log[:, list(schema.LOG_COLUMNS).index(name)]


def listeners(dataset: Dataset) -> dict[str | None, int]:
    """Number of plays of each listener, the largest first; one listener, None, where the dataset names none."""
    counts: dict[str | None, int] = {}
    for split in SPLITS:
        arrays = dataset.split(split)
        plays = pd.Series(arrays.lengths).groupby(_users(arrays), dropna=False).sum()
        for user, n in plays.items():
            name = user if isinstance(user, str) else None
            counts[name] = counts.get(name, 0) + int(n)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")))


def plays_of(dataset: Dataset, listener: str | None, time_zone: str) -> Plays:
    """The plays of a listener in all splits.

    Args:
        dataset: opened.
        listener: a key of `listeners`.
        time_zone: IANA name; times become local.

    Raises:
        UserError: there is no such time zone.
    """
    parts = [_gather(dataset.split(split), listener) for split in SPLITS]
    lengths, tracks, skips, log = (np.concatenate([part[i] for part in parts]) for i in range(4))
    times = None if any(part[4] is None for part in parts) else np.concatenate([part[4] for part in parts])
    first = np.cumsum(lengths) - lengths
    if times is not None:  # each split is in order of time, but new sessions of a listener may be in any of them
        order = np.argsort(times[first], kind="stable")
        place = _ranges(first[order], lengths[order])
        lengths, tracks, skips, log, times = lengths[order], tracks[place], skips[place], log[place], times[place]
        first = np.cumsum(lengths) - lengths
    session = np.repeat(np.arange(len(lengths)), lengths)
    return Plays(
        session=session,
        position=np.arange(len(tracks)) - first[session],
        track=tracks,
        skipped=schema.is_skip(skips),
        known=skips != schema.SKIP_UNKNOWN,
        time=None if times is None else local_times(times, time_zone),
        log=log,
    )


def local_times(times: np.ndarray, time_zone: str) -> np.ndarray:
    """Microseconds since 1970 UTC as the wall clock of a time zone shows them: datetime64[us] (n,).

    Raises:
        UserError: there is no such time zone.
    """
    try:
        zone = zoneinfo.ZoneInfo(time_zone)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise UserError(f"--time_zone {time_zone} is no time zone; give an IANA name, such as Europe/Paris") from None
    utc = pd.DatetimeIndex(times.astype("datetime64[us]")).tz_localize("UTC")
    return utc.tz_convert(zone).tz_localize(None).to_numpy().astype("datetime64[us]")


class TrackNames:
    """What tracks are called: by their id, as in `full_ids`."""

    def __init__(self, dataset: Dataset) -> None:
        first = pq.read_table(dataset.folder / "tracks.parquet").to_pandas()
        first = first.set_index("index").reindex(range(N_SPECIAL, dataset.n_ids))
        path = dataset.folder / "new_tracks.parquet"
        both = pd.concat([first, pq.read_table(path).to_pandas()]) if path.exists() else first
        columns = [name for name in NAMES if name in both]
        self._table = both[["track_id", *columns]].reset_index(drop=True)
        self.has_artists = "artist" in columns and bool(both["artist"].notna().any())

    def name(self, track: int) -> str:
        """The track's name, or its id where it has none."""
        row = self._table.iloc[track - N_SPECIAL]
        name = row.get("name")
        return str(row["track_id"]) if pd.isna(name) else str(name)

    def artist(self, track: int) -> str:
        """The artist's name, "" where it is unknown."""
        name = self._table.iloc[track - N_SPECIAL].get("artist")
        return "" if pd.isna(name) else str(name)

    def artists(self) -> tuple[np.ndarray, list[str]]:
        """The number of each id's artist, -1 where unknown, int64 (N_SPECIAL + tracks,); and the artists' names."""
        if not self.has_artists:
            return np.full(N_SPECIAL + len(self._table), -1), []
        codes, names = pd.factorize(self._table["artist"])
        return np.concatenate([np.full(N_SPECIAL, -1), codes]), [str(name) for name in names]


def _users(arrays: SessionArrays) -> np.ndarray:
    """object (n_sessions,): the listener of each session, None where there is none."""
    has_users = "user" in pq.read_schema(arrays.folder / "sessions.parquet").names
    if not has_users:
        return np.full(arrays.n_sessions, None, dtype=object)
    return np.asarray(arrays.columns_of_sessions("user")["user"], dtype=object)


def _gather(
    arrays: SessionArrays, listener: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Lengths of a listener's sessions, and tracks, skips, log and times of their plays."""
    users = _users(arrays)
    mine = np.flatnonzero(pd.isna(users) if listener is None else users == listener)
    lengths = arrays.lengths[mine]
    place = _ranges(arrays.offsets[mine], lengths)
    tracks = arrays.tracks if arrays.full_ids is None else arrays.full_ids
    times = None if arrays.times is None else arrays.times[place]
    return lengths, tracks[place].astype(np.int64), arrays.skips[place], arrays.log[place], times


def _ranges(first: Sequence[int] | np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The places first[i], first[i] + 1, ... of all i, `lengths[i]` of each: int64 (sum of lengths,)."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(np.asarray(first) - before, lengths) + np.arange(lengths.sum())
