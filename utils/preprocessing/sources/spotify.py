"""Spotify's extended streaming history: Streaming_History_Audio_*.json, or endsong_*.json of older exports.

https://support.spotify.com/article/understanding-my-data says what the keys mean. We read those named below and no
others: address, user name, user agent, country and platform never leave the export.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from utils.preprocessing.sources.plays import SourcePlays, check_options, is_time, plays_of_listeners, write_plays

COLUMNS = (
    *("user", "time", "track", "name", "artist", "album"),
    *("skip", "seconds", "reason_start", "reason_end", "shuffle"),
)
KEYS = (
    *("ts", "ms_played", "spotify_track_uri", "master_metadata_track_name", "master_metadata_album_artist_name"),
    *("master_metadata_album_album_name", "reason_start", "reason_end", "shuffle"),
)
"""Keys that every row has; podcasts and audiobooks are told by further ones."""
AUDIO = re.compile(r"(streaming_history_audio|endsong)_?.*\.json", re.IGNORECASE)
VIDEO = re.compile(r"streaming_history_video_.*\.json", re.IGNORECASE)
ACCOUNT = re.compile(r"streaminghistory(_music_)?\d*\.json", re.IGNORECASE)

SKIPS = frozenset(("fwdbtn", "backbtn", "endplay", "clickrow", "popup"))
"""Reasons of an end that is a skip. `skipped` says the same in every row since late 2022; before, it is mostly null."""
SHUFFLE = {"True": "true", "False": "false"}
SHORT_MS = 10_000
"""A skip before this is a very brief play (skip_1)."""

PODCAST, AUDIOBOOK = "episodes of podcasts", "chapters of audiobooks"
NO_TRACK, PRIVATE = "rows without a track", "plays in private sessions"
REPEAT = "repeats of a play that was read before"
REASONS = (PODCAST, AUDIOBOOK, NO_TRACK, PRIVATE, REPEAT)


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """
    Args:
        path: the zip, a folder with its files, one of its JSON files, or a folder with several exports: each zip and
            folder in it is a listener.
        work: a folder for the files of plays.

    Raises:
        UserError: another export, or a file that cannot be read.
    """
    check_options(options, "spotify", ("drop_incognito",))
    everything = export_files(path, work)
    files = history_files(path, everything)
    names = listeners(path, files)
    dropped: Counter[str] = Counter()
    seen: dict[str, set[int]] = {}
    written, sources, n_plays, n_unknown = [], [], 0, 0
    with progress(files) as bar:
        for i, file in enumerate(files):
            counted: Counter[str] = Counter()
            known = seen.setdefault(names[file.owner], set())
            rows = plays(file, names[file.owner], known, options.drop_incognito, counted, bar)
            target = work / f"spotify_{i:06}.parquet"
            if n := write_plays(target, COLUMNS, rows):
                written.append(target)
            n_unknown += counted.pop("unknown skip", 0)
            n_plays += n
            dropped += counted
            sources.append({"file": file.name, "bytes": file.size, "rows": n + counted.total()})
    check_listeners(path, seen)
    notes = [f"spotify: {n_unknown} of {n_plays} plays end for a reason that does not tell whether they were skipped"]
    if n_videos := sum(bool(VIDEO.fullmatch(file.file_name)) for file in everything):
        notes.append(f"spotify: {n_videos} files of videos were passed over (podcasts, mostly)")
    return plays_of_listeners(path, written, COLUMNS, sources=sources, reasons=REASONS, dropped=dropped, notes=notes)


def history_files(path: Path, files: list[ExportFile]) -> list[ExportFile]:
    """The files with plays, in the order in which each listener's were written.

    Raises:
        UserError: there are none.
    """
    if found := numbered_files(path, files, ".json", AUDIO):
        return found
    if any(ACCOUNT.fullmatch(file.file_name) for file in files):
        raise UserError(
            f"{path} is Spotify's account data: read it with --source spotify-account, or ask Spotify for the "
            '"extended streaming history", which says more'
        )
    raise UserError(
        f"{path} holds no file Streaming_History_Audio_*.json or endsong_*.json; give the zip that Spotify sent, or "
        "the folder that was in it"
    )


def plays(
    file: ExportFile, listener: str, seen: set[int], drop_private: bool, counted: Counter[str], bar: tqdm[Any] | None
) -> Iterator[tuple[Any, ...]]:
    """The plays of a file, one value for each of `COLUMNS`.

    Args:
        seen: hashes of this listener's plays so far; grows.
        counted: rows that are no plays, by reason, and plays with an "unknown skip"; grows.
    """
    for n, row in json_rows(file, bar):
        check_keys(file, n, row, KEYS + ("incognito_mode",) * drop_private)
        end, ms = end_of(file, n, row["ts"]), milliseconds(file, n, row["ms_played"])
        uri = text(file, n, row, "spotify_track_uri")
        if reason := no_track(row, uri, drop_private):
            counted[reason] += 1
            continue
        if not is_time(end) or not is_time(end - 1000 * ms):
            raise UserError(
                f"{file.where}, entry {n}: ts is {row['ts']!r} and ms_played {ms}: plays are of the years 1900 to 2099"
            )
        play = fingerprint(end, uri, ms)
        if play in seen:
            counted[REPEAT] += 1
            continue
        seen.add(play)
        reason_end = text(file, n, row, "reason_end")
        skip = skip_of(reason_end, ms)
        counted["unknown skip"] += skip is None
        yield (
            listener,
            end - 1000 * ms,
            uri.removeprefix("spotify:track:"),
            text(file, n, row, "master_metadata_track_name") or None,
            text(file, n, row, "master_metadata_album_artist_name") or None,
            text(file, n, row, "master_metadata_album_album_name") or None,
            skip,
            ms / 1000,
            text(file, n, row, "reason_start") or None,
            reason_end or None,
            SHUFFLE.get(str(row["shuffle"])),
        )


def check_keys(file: ExportFile, n: int, row: dict[str, Any], keys: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: this is no row of an extended history.
    """
    if missing := [key for key in keys if key not in row]:
        if "endTime" in row and "msPlayed" in row:
            raise UserError(f"{file.where} is of Spotify's account data; read it with --source spotify-account")
        raise UserError(
            f"{file.where}, entry {n} has no key {missing[0]}: this is no extended streaming history of Spotify's"
        )


def text(file: ExportFile, n: int, row: dict[str, Any], key: str) -> str:
    """A text of a row; empty if it is null."""
    value = row[key]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{file.where}, entry {n}: {key} is {str(value)[:40]!r}, not text")
    return value or ""


def end_of(file: ExportFile, n: int, value: Any) -> int:
    """`ts` (UTC) in microseconds since 1970."""
    try:
        moment = datetime.fromisoformat(value.removesuffix(" UTC"))
    except (ValueError, AttributeError):
        raise UserError(f"{file.where}, entry {n}: ts is {str(value)[:40]!r}, not as 2024-02-01T10:00:00Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 1_000_000


def milliseconds(file: ExportFile, n: int, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise UserError(f"{file.where}, entry {n}: ms_played is {str(value)[:40]!r}, not a number of milliseconds")
    return value


def no_track(row: dict[str, Any], uri: str, drop_private: bool) -> str:
    """Why a row is no play of a track; nothing if it is one."""
    if row.get("audiobook_uri") or row.get("audiobook_chapter_uri"):
        return AUDIOBOOK
    if uri.startswith("spotify:episode:") or (not uri and (row.get("spotify_episode_uri") or row.get("episode_name"))):
        return PODCAST
    if not uri.removeprefix("spotify:track:").strip():
        return NO_TRACK
    return PRIVATE if drop_private and row["incognito_mode"] else ""


def fingerprint(end: int, uri: str, ms: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{end} {ms} {uri}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def skip_of(reason_end: str, ms: int) -> str | None:
    """The word for the `skip` column; None where the reason of the end does not tell."""
    if reason_end in SKIPS:
        return "skip_1" if ms < SHORT_MS else "skip_2"
    return "not_skipped" if reason_end == "trackdone" else None
