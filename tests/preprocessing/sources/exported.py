"""Exports as the services write them, in small, for the tests of sources."""

import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq

from utils.preprocessing.options import SourceOptions


def zipped(path: Path, files: dict[str, str | bytes]) -> Path:
    """A zip of texts by their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def as_json(rows: list[dict]) -> str:
    """As Spotify writes a file."""
    return json.dumps(rows, indent=2, ensure_ascii=False)


def stream(ts="2024-02-01T10:03:00Z", ms=180_000, track="6rqhFgbbKwnb9MLmUQDhG6", **changes):
    """A row of Spotify's extended history."""
    row = {
        "ts": ts,
        "platform": "ios",
        "ms_played": ms,
        "conn_country": "XX",
        "ip_addr": "192.0.2.17",
        "master_metadata_track_name": "Song",
        "master_metadata_album_artist_name": "Band",
        "master_metadata_album_album_name": "Record",
        "spotify_track_uri": f"spotify:track:{track}",
        "episode_name": None,
        "episode_show_name": None,
        "spotify_episode_uri": None,
        "audiobook_title": None,
        "audiobook_uri": None,
        "audiobook_chapter_uri": None,
        "audiobook_chapter_title": None,
        "reason_start": "trackdone",
        "reason_end": "trackdone",
        "shuffle": False,
        "skipped": None,
        "offline": False,
        "offline_timestamp": 1706781600,
        "incognito_mode": False,
    }
    return row | changes


def read_plays(source, path: Path, work: Path, **options):
    """What a source makes of an export, and its plays as dicts, in order."""
    work.mkdir(exist_ok=True)
    found = source.read(path, work, SourceOptions(**options))
    plays = [row for file in found.files for row in pq.read_table(file).to_pylist()]
    assert sum(each["rows"] for each in found.sources) == len(plays) + sum(n for _, n in found.dropped)
    return found, plays
