"""Apple Music's play activity: Apple Music Play Activity.csv, in a zip within the zip that Apple sends.

Every pause and every jump within a track ends a row and begins another, so rows are merged into plays. Columns are
found by their names, which have changed over the years. "Apple Id Number" is the account: it tells listeners apart
and, like places, addresses and devices, is not written.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources.exports import ExportFile, check_listeners, export_files, lines, listeners, progress
from utils.preprocessing.sources.plays import (
    SourcePlays,
    artist_and_title,
    check_options,
    plays_of_listeners,
    write_plays,
)

COLUMNS = ("user", "time", "track", "name", "artist", "album", "skip", "seconds", "reason_end", "shuffle", "premium")
FILE = "apple music play activity.csv"
NAMES = {
    "title": ("song name", "content name"),
    "artist": ("artist name", "container artist name"),
    "album": ("album name", "container album name"),
    "start": ("event start timestamp",),
    "end": ("event end timestamp", "event timestamp"),
    "ms": ("play duration milliseconds",),
    "from_ms": ("start position in milliseconds",),
    "reason": ("end reason type",),
    "event": ("event type",),
    "media": ("media type",),
    "item": ("item type",),
    "report": ("report type", "record type"),
    "shuffle": ("shuffle play",),
    "premium": ("apple music subscription",),
    "account": ("apple id number",),
}
"""What we read -> names of its column in lower case, the best first; a row's first value that is not empty counts."""
NEEDED = ("title", "start", "ms", "reason")

REASONS = {
    "NATURAL_END_OF_TRACK": ("trackdone", False),
    "TRACK_SKIPPED_FORWARDS": ("fwdbtn", True),
    "TRACK_SKIPPED_BACKWARDS": ("backbtn", True),
    "MANUALLY_SELECTED_PLAYBACK_OF_A_DIFF_ITEM": ("clickrow", True),
    "TRACK_BANNED": (None, True),
    "EXITED_APPLICATION": ("logout", None),
}
"""End reason -> MSSD's word, and whether it is a skip; of others, and where there is None, nobody knows."""
PAUSES = frozenset(
    (
        *("PLAYBACK_MANUALLY_PAUSED", "PLAYBACK_SUSPENDED", "PLAYBACK_PAUSED_DUE_TO_INACTIVITY", "PAUSED_ON_TIMEOUT"),
        *("PLAYBACK_STOPPED_DUE_TO_SESSION_TIMEOUT", "SCRUB_BEGIN", "SCRUB_END"),
    )
)
"""End reasons after which the same play may go on in the next row."""
SCRUBS = frozenset(("SCRUB_BEGIN", "SCRUB_END"))
FAILED = frozenset(("FAILED_TO_LOAD",))
LONGEST_PAUSE = 1800
"""Seconds of a pause after which another play begins."""
SHORT_SECONDS = 10.0
"""A skip before this is a very brief play (skip_1)."""
FIRST_YEAR = 2015
"""Apple Music began; earlier times are those of a clock that was not set."""

LAST_YEAR = 2098
"""No play is later, in any zone (`play_times`)."""

OTHER_EVENT = "rows that are no ends of plays (lyrics, aggregates)"
VIDEO, FAILURE = "videos", "tracks that failed to load"
NO_TRACK, NO_TIME = "rows without a title", "rows without a time"
REPEAT = "repeats of a row that was read before"
MERGED = "rows of pauses and jumps, merged into their play"
FUNNEL = (OTHER_EVENT, VIDEO, FAILURE, NO_TRACK, NO_TIME, REPEAT, MERGED)


class Row(NamedTuple):
    """A row, or a play that was merged from some."""

    account: str
    start: int
    """Microseconds since 1970, as is `end`."""
    end: int
    title: str
    artist: str
    album: str
    seconds: float | None
    from_ms: float | None
    """Where in the track it began."""
    reason: str
    shuffle: str
    premium: str


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """
    Args:
        path: the zip that Apple sent, a folder with its files, the CSV file, or a folder with several exports: each
            zip and folder in it is a listener.
        work: a folder for the files of plays, and for the zip within the zip.

    Raises:
        UserError: another export, or a file that cannot be read.
    """
    check_options(options, "apple-music")
    files = activity_files(path, export_files(path, work))
    names = listeners(path, files)
    dropped: Counter[str] = Counter()
    rows: dict[str, dict[Row, None]] = {}
    sources, has_artists = [], True
    with progress(files) as bar:
        for file in files:
            counted: Counter[str] = Counter()
            header, records = table(file, bar)
            has_artists &= "artist name" in header
            here, n = rows.setdefault(names[file.owner], {}), 0
            for row in rows_of(file, header, records, counted):
                n += 1
                if row in here:
                    dropped[REPEAT] += 1
                here[row] = None
            sources.append({"file": file.name, "bytes": file.size, "rows": n + counted.total()})
            dropped += counted
    check_listeners(path, rows)
    written = []
    for i, (name, theirs) in enumerate(rows.items()):
        target = work / f"apple_music_{i:06}.parquet"
        if write_plays(target, COLUMNS, plays(name, list(theirs), has_artists, dropped)):
            written.append(target)
    notes = []
    if not has_artists:
        notes.append("apple-music: the export names no artists, so a track's id is made of its album and its title")
    return plays_of_listeners(path, written, COLUMNS, sources=sources, reasons=FUNNEL, dropped=dropped, notes=notes)


def activity_files(path: Path, files: list[ExportFile]) -> list[ExportFile]:
    """
    Raises:
        UserError: no play activity among the files.
    """
    if path.is_file() and path.suffix.lower() == ".csv":
        return files
    found = sorted((file for file in files if file.file_name.lower() == FILE), key=lambda file: (file.owner, file.name))
    if not found:
        raise UserError(
            f"{path} holds no file 'Apple Music Play Activity.csv'; give the zip of Apple's 'Apple Media Services "
            "information', or that file"
        )
    return found


def table(file: ExportFile, bar: tqdm[Any] | None) -> tuple[dict[str, int], Iterator[tuple[int, list[str]]]]:
    """Place of each column by its name in lower case, and the line and fields of each record.

    Raises:
        UserError: this is no play activity; while the records are read: a record of another length, a damaged file.
    """

    def records() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((line for _, line in lines(file, bar)), strict=True)
        length = 0
        try:
            for record in reader:
                if not record:
                    continue
                length = length or len(record)
                if len(record) != length:
                    raise UserError(
                        f"{file.where}, line {reader.line_num}: {len(record)} fields where the header has {length}; "
                        "download the export again"
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise UserError(f"{file.where}, below line {reader.line_num}: {error}; download the export again") from None

    read_on = records()
    header = {name.strip().lower(): i for i, name in reversed(list(enumerate(next(read_on, (0, []))[1])))}
    if not header:
        raise UserError(f"{file.where} is empty; download the export again")
    for need in NEEDED:
        if not any(name in header for name in NAMES[need]):
            raise UserError(
                f"{file.where} has no column {NAMES[need][0]!r}: this is not 'Apple Music Play Activity.csv'; Apple's "
                "other files hold no single plays"
            )
    return header, read_on


def rows_of(
    file: ExportFile, header: dict[str, int], records: Iterable[tuple[int, list[str]]], counted: Counter[str]
) -> Iterator[Row]:
    """The rows that are (parts of) plays of songs; `counted` grows by those that are not, by reason."""
    places = {what: [header[name] for name in names if name in header] for what, names in NAMES.items()}
    for line, record in records:

        def value(what: str, record: list[str] = record) -> str:
            return next((found for i in places[what] if (found := record[i].strip())), "")

        seconds = duration(file, line, value("ms"))
        if reason := no_play(value("event"), value("media"), value("item"), value("report"), value("reason")):
            counted[reason] += 1
            continue
        title = value("title")
        start, end = moment(file, line, value("start")), moment(file, line, value("end"))
        length = round(1e6 * (seconds or 0.0))
        if start is None and end is not None:  # one in a hundred
            start = end - length
        if not title or start is None:
            counted[NO_TRACK if not title else NO_TIME] += 1
            continue
        yield Row(
            sys.intern(value("account")),
            start,
            max(start + length, start) if end is None else max(start, end),
            sys.intern(title),
            sys.intern(value("artist")),
            sys.intern(value("album")),
            seconds,
            number(value("from_ms")),
            sys.intern(value("reason").upper()),
            sys.intern(value("shuffle").upper()),
            sys.intern(value("premium").lower()),
        )


def no_play(event: str, media: str, item: str, report: str, reason: str) -> str:
    """Why a row is no play of a song; nothing if it is one. Older exports leave the event empty."""
    if event.upper() not in ("", "PLAY_END") or any("AGGREGATE" in text.upper() for text in (item, report)):
        return OTHER_EVENT
    if "VIDEO" in media.upper():
        return VIDEO
    return FAILURE if reason.upper() in FAILED else ""


def number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def duration(file: ExportFile, line: int, text: str) -> float | None:
    """Seconds; None if they are empty, or negative (a jump back)."""
    ms = number(text)
    if text and (ms is None or not abs(ms) < 1e12):
        raise UserError(f"{file.where}, line {line}: Play Duration Milliseconds is {text[:40]!r}, not a number")
    return None if ms is None or ms < 0 else ms / 1000


def moment(file: ExportFile, line: int, text: str) -> int | None:
    """Microseconds since 1970 (UTC); None if the time is empty, or older than the service."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{file.where}, line {line}: {text[:40]!r} is no time as 2024-02-01T10:00:00.123Z") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if time.year < FIRST_YEAR:
        return None
    if time.year > LAST_YEAR:
        raise UserError(f"{file.where}, line {line}: {text[:40]!r} is no time of the years {FIRST_YEAR} to {LAST_YEAR}")
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def goes_on(play: Row, row: Row) -> bool:
    """Whether a row is the next part of a play: after a pause or a jump, soon, and not from the start again."""
    same = (play.account, play.title, play.artist, play.album) == (row.account, row.title, row.artist, row.album)
    soon = row.start - play.end <= LONGEST_PAUSE * 1_000_000
    anew = row.from_ms == 0 and play.reason not in SCRUBS and play.seconds != 0
    return same and soon and play.reason in PAUSES and not anew


def merged(rows: list[Row], dropped: Counter[str]) -> Iterator[Row]:
    """Plays of rows in order of time: the start of the first part, the seconds of all, the reason of the last."""
    play = None
    for row in rows:
        if play is not None and goes_on(play, row):
            known = [seconds for seconds in (play.seconds, row.seconds) if seconds is not None]
            play = play._replace(end=max(play.end, row.end), seconds=sum(known) if known else None, reason=row.reason)
            dropped[MERGED] += 1
            continue
        if play is not None:
            yield play
        play = row
    if play is not None:
        yield play


def plays(listener: str, rows: list[Row], has_artists: bool, dropped: Counter[str]) -> Iterator[tuple[Any, ...]]:
    """The plays of an export, one value for each of `COLUMNS`; each account in it is a listener."""
    accounts = {account: i for i, account in enumerate(dict.fromkeys(row.account for row in rows if row.account))}
    first = next(iter(accounts), "")
    accounts = accounts or {"": 0}
    rows = [row if row.account else row._replace(account=first) for row in rows]
    rows.sort(key=lambda row: (accounts[row.account], row.start, row.end))
    for play in merged(rows, dropped):
        reason, skipped = REASONS.get(play.reason, (None, None))
        short = play.seconds is not None and play.seconds < SHORT_SECONDS
        yield (
            listener if len(accounts) == 1 else f"{listener} {accounts[play.account] + 1}",
            play.start,
            artist_and_title(play.artist if has_artists and play.artist else play.album, play.title),
            play.title,
            play.artist or None,
            play.album or None,
            None if skipped is None else "not_skipped" if not skipped else "skip_1" if short else "skip_2",
            play.seconds,
            reason,
            {"SHUFFLE_ON": "true", "SHUFFLE_OFF": "false"}.get(play.shuffle),
            play.premium if play.premium in ("true", "false") else None,
        )
