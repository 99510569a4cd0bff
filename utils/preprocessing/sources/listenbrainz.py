"""ListenBrainz's export: a zip with listens/YYYY/M.jsonl, one listen a line. It does not tell what was skipped."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources.exports import ExportFile, check_listeners, export_files, lines, listeners, progress
from utils.preprocessing.sources.plays import (
    SourcePlays,
    artist_and_title,
    check_options,
    is_time,
    plays_of_listeners,
    write_plays,
)

COLUMNS = ("user", "time", "track", "name", "artist", "album")
MONTH = re.compile(r"(.*/)?(\d{4})/(\d{1,2})\.jsonl", re.IGNORECASE)

NO_TIME = "listens without a time"
NO_TRACK = "listens without an artist or a title"
REPEAT = "repeats of a listen that was read before"
REASONS = (NO_TIME, NO_TRACK, REPEAT)


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """
    Args:
        path: the zip, a folder with its files, one .jsonl file, or a folder with several exports: each zip and folder
            in it is a listener.
        work: a folder for the files of plays.

    Raises:
        UserError: another export, or a file that cannot be read.
    """
    check_options(options, "listenbrainz")
    files = listen_files(path, export_files(path, work))
    names = listeners(path, files)
    dropped: Counter[str] = Counter()
    seen: dict[str, set[int]] = {}
    written, sources, n_plays, n_mapped = [], [], 0, 0
    with progress(files) as bar:
        for i, file in enumerate(files):
            counted: Counter[str] = Counter()
            rows = plays(file, names[file.owner], seen.setdefault(names[file.owner], set()), counted, bar)
            target = work / f"listenbrainz_{i:06}.parquet"
            if n := write_plays(target, COLUMNS, rows):
                written.append(target)
            n_plays, n_mapped = n_plays + n, n_mapped + counted.pop("mapped", 0)
            sources.append({"file": file.name, "bytes": file.size, "rows": n + counted.total()})
            dropped += counted
    check_listeners(path, seen)
    notes = [
        f"listenbrainz: {n_mapped} of {n_plays} listens have MusicBrainz's id of the recording; the ids of the others "
        "are ListenBrainz's own, one for each spelling of artist and title",
        "listenbrainz: the export does not tell which plays were skipped, nor how long they lasted",
    ]
    return plays_of_listeners(path, written, COLUMNS, sources=sources, reasons=REASONS, dropped=dropped, notes=notes)


def listen_files(path: Path, files: list[ExportFile]) -> list[ExportFile]:
    """The files with listens, in order of time.

    Raises:
        UserError: there are none.
    """
    if path.is_file() and path.suffix.lower() == ".jsonl":
        return files

    months = [(found, file) for file in files if (found := MONTH.fullmatch(file.name))]
    if not months:
        raise UserError(
            f"{path} holds no file listens/YYYY/M.jsonl; give the zip of ListenBrainz's export, or the folder that was "
            "in it"
        )
    # Where the folder `listens` itself was given, its years are no listeners.
    owned = [(file if found[1] else file._replace(owner=""), int(found[2]), int(found[3])) for found, file in months]
    return [file for file, _, _ in sorted(owned, key=lambda each: (each[0].owner, *each[1:], each[0].name))]


def plays(
    file: ExportFile, listener: str, seen: set[int], counted: Counter[str], bar: tqdm[Any] | None
) -> Iterator[tuple[Any, ...]]:
    """The plays of a file, one value for each of `COLUMNS`.

    Args:
        seen: hashes of this listener's listens so far; grows.
        counted: rows that are no plays, by reason, and listens that are "mapped" to MusicBrainz; grows.
    """
    for n, line in lines(file, bar):
        if not line.strip():
            continue
        listen = parsed(file, n, line)
        track = listen["track_metadata"]
        seconds = listened_at(file, n, listen)
        artist, title = text(file, n, track, "artist_name"), text(file, n, track, "track_name")
        if seconds is None or not artist or not title:
            counted[NO_TIME if seconds is None else NO_TRACK] += 1
            continue
        recording = recording_of(track)
        track_id = recording or own_id(track) or artist_and_title(artist, title)
        digest = hashlib.blake2b(f"{seconds} {track_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        listened = int.from_bytes(digest, "little")
        if listened in seen:
            counted[REPEAT] += 1
            continue
        seen.add(listened)
        counted["mapped"] += bool(recording)
        yield listener, round(seconds * 1e6), track_id, title, artist, text(file, n, track, "release_name") or None


def parsed(file: ExportFile, n: int, line: str) -> dict[str, Any]:
    """
    Raises:
        UserError: the line is no listen.
    """
    try:
        listen = json.loads(line)
    except (ValueError, RecursionError) as error:
        end = "" if line.endswith("\n") else "; the file may be cut off"
        raise UserError(f"{file.where}, line {n}: not valid JSON ({error}){end}; download the export again") from None
    if not isinstance(listen, dict) or not isinstance(listen.get("track_metadata"), dict):
        raise UserError(f"{file.where}, line {n} is no listen: it has no track_metadata")
    return listen


def listened_at(file: ExportFile, n: int, listen: dict[str, Any]) -> float | None:
    """When it started, in seconds since 1970; None if the listen does not say."""
    if "listened_at" not in listen:
        raise UserError(f"{file.where}, line {n} is no listen: it has no listened_at")
    value = listen["listened_at"]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_time(value * 1_000_000):
        raise UserError(f"{file.where}, line {n}: listened_at is {str(value)[:40]!r}, not seconds since 1970")
    return float(value)


def text(file: ExportFile, n: int, track: dict[str, Any], key: str) -> str:
    """A text about the track; empty if it is null or absent."""
    value = track.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{file.where}, line {n}: {key} is {str(value)[:40]!r}, not text")
    return value or ""


def recording_of(track: dict[str, Any]) -> str:
    """MusicBrainz's id of the recording, as ListenBrainz mapped it or the player sent it; empty if there is none."""
    mapping, info = track.get("mbid_mapping"), track.get("additional_info")
    for known in (mapping, info):
        if isinstance(known, dict) and isinstance(known.get("recording_mbid"), str):
            return known["recording_mbid"].strip()
    return ""


def own_id(track: dict[str, Any]) -> str:
    """ListenBrainz's own id of artist and title, which newer and older exports keep in two places."""
    info = track.get("additional_info")
    for place in (track, info):
        if isinstance(place, dict) and isinstance(place.get("recording_msid"), str):
            return place["recording_msid"]
    return ""
