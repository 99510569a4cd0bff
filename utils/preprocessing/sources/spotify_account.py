"""Spotify's account data: StreamingHistory_music_*.json, or StreamingHistory*.json of older exports; the last year.

Rows have the end of a play to the minute (UTC), artist, title and milliseconds played; no id and no word on skips. A
minute does not order its plays, the file does: times here are an estimate that keeps the order of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources.exports import (
    ExportFile,
    check_listeners,
    export_files,
    json_rows,
    listeners,
    numbered_files,
    progress,
)
from utils.preprocessing.sources.plays import (
    SourcePlays,
    artist_and_title,
    check_options,
    is_time,
    plays_of_listeners,
    write_plays,
)

COLUMNS = ("user", "time", "track", "name", "artist", "seconds")
KEYS = ("endTime", "artistName", "trackName", "msPlayed")
MUSIC = re.compile(r"streaminghistory(_music_)?\d*\.json", re.IGNORECASE)
PODCASTS = re.compile(r"streaminghistory_(podcast|audiobook|video)_?\d*\.json", re.IGNORECASE)
EXTENDED = re.compile(r"(streaming_history_audio|endsong)_?.*\.json", re.IGNORECASE)
UNKNOWN = ("", "Unknown Artist", "Unknown Track")
"""What Spotify writes for tracks that it no longer knows."""

NO_TRACK = "rows without an artist or a title"
REPEAT = "repeats of a play that was read before"
REASONS = (NO_TRACK, REPEAT)


class Row(NamedTuple):
    """A play as the export has it."""

    end: int
    """Microseconds since 1970, to the minute."""
    artist: str
    title: str
    ms: int


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """
    Args:
        path: the zip, a folder with its files, one of its JSON files, or a folder with several exports: each zip and
            folder in it is a listener.
        work: a folder for the files of plays.

    Raises:
        UserError: another export, or a file that cannot be read.
    """
    check_options(options, "spotify-account")
    everything = export_files(path, work)
    files = history_files(path, everything)
    names = listeners(path, files)
    dropped: Counter[str] = Counter()
    rows: dict[str, list[Row]] = {}
    sources = []
    with progress(files) as bar:
        for file in files:
            here, n = rows.setdefault(names[file.owner], []), 0
            for row in rows_of(file, bar):
                n += 1
                if row.artist in UNKNOWN or row.title in UNKNOWN:
                    dropped[NO_TRACK] += 1
                else:
                    here.append(row)
            sources.append({"file": file.name, "bytes": file.size, "rows": n})
    check_listeners(path, rows)
    written, n_plays, n_shared = [], 0, 0
    for i, (name, theirs) in enumerate(rows.items()):
        kept = list(dict.fromkeys(theirs))
        dropped[REPEAT] += len(theirs) - len(kept)
        kept.sort(key=lambda row: row.end)  # stable: in a minute, as in the file
        n_shared += sum(row.end == after.end for row, after in pairwise(kept))
        target = work / f"spotify_account_{i:06}.parquet"
        if n := write_plays(target, COLUMNS, plays(name, kept)):
            written.append(target)
        n_plays += n
    notes = [
        f"spotify-account: {n_shared} of {n_plays} plays end in the minute of the one before; they are in the order of "
        "the file, and starts are right to a minute or so",
        "spotify-account: the export does not tell which plays were skipped",
    ]
    if n_podcasts := sum(bool(PODCASTS.fullmatch(file.file_name)) for file in everything):
        notes.append(f"spotify-account: {n_podcasts} files of podcasts, audiobooks or videos were passed over")
    return plays_of_listeners(path, written, COLUMNS, sources=sources, reasons=REASONS, dropped=dropped, notes=notes)


def history_files(path: Path, files: list[ExportFile]) -> list[ExportFile]:
    """The files with plays, in the order in which each listener's were written.

    Raises:
        UserError: there are none.
    """
    if found := numbered_files(path, files, ".json", MUSIC):
        return found
    if any(EXTENDED.fullmatch(file.file_name) for file in files):
        raise UserError(f"{path} is Spotify's extended streaming history: read it with --source spotify")
    raise UserError(
        f"{path} holds no file StreamingHistory_music_*.json or StreamingHistory*.json; give the zip that Spotify "
        "sent, or the folder that was in it"
    )


def rows_of(file: ExportFile, bar: tqdm[Any] | None) -> Iterator[Row]:
    """
    Raises:
        UserError: a row that is none of this export's.
    """
    for n, row in json_rows(file, bar):
        if missing := [key for key in KEYS if key not in row]:
            if "ts" in row and "ms_played" in row:
                raise UserError(f"{file.where} is of the extended streaming history; read it with --source spotify")
            raise UserError(
                f"{file.where}, entry {n} has no key {missing[0]}: this is no music of Spotify's account data"
            )
        artist, title, ms = row["artistName"] or "", row["trackName"] or "", row["msPlayed"]
        if not isinstance(artist, str) or not isinstance(title, str):
            raise UserError(f"{file.where}, entry {n}: artistName and trackName must be text")
        if type(ms) is not int or not 0 <= ms < 1 << 40:
            raise UserError(f"{file.where}, entry {n}: msPlayed is {str(ms)[:40]!r}, not a number of milliseconds")
        try:
            end = datetime.strptime(row["endTime"], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        except (ValueError, TypeError):
            raise UserError(
                f"{file.where}, entry {n}: endTime is {str(row['endTime'])[:40]!r}, not as 2024-02-01 10:00"
            ) from None
        us = round(end.timestamp()) * 1_000_000
        if not is_time(us):
            raise UserError(
                f"{file.where}, entry {n}: endTime is {row['endTime']!r}: plays are of the years 1900 to 2099"
            )
        yield Row(us, artist, title, ms)


def plays(listener: str, rows: list[Row]) -> Iterator[tuple[Any, ...]]:
    """The plays of a listener, one value for each of `COLUMNS`.

    A play started `ms` before its end, but not before the one above it in the file. The start is a microsecond after
    that one's at least, so that no later step can change the order of the file.
    """
    last = 0
    for row in rows:
        last = max(row.end - 1000 * row.ms, last + 1)
        yield listener, last, artist_and_title(row.artist, row.title), row.title, row.artist, row.ms / 1000
