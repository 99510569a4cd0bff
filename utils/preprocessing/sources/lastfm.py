"""Last.fm: scrobbles as common exporters write them, and the research set lastfm-1K. No skips, no seconds played.

| exporter | form |
|---|---|
| benjaminbenben.com/lastfm-to-csv (github.com/benfoxall/lastfm-to-csv, `js/lastfm-export.js`) | commas, no header: artist, album, title, `31 May 2024, 10:20` in UTC. It removes quotes and commas from fields, of the date too; a version writes the comma of the date, which makes five fields |
| lastfmstats.com | semicolons, header `Artist;Album;AlbumId;Track;Date#account` after a byte order mark, ms since 1970 |
| lastfm.ghan.nl/export (formerly mainstream.ghan.nl) | commas, header `uts,utc_time,artist,artist_mbid,album,album_mbid,track,track_mbid`, seconds since 1970 |
| lastexport.py of libre.fm | tabs, no header: seconds, title, artist, album, three MBIDs |
| others with a header | columns for artist, title and time, perhaps album and user |
| lastfm-1K (ocelma.net/MusicRecommendationDataset/lastfm-1K.html) | tabs, no header, no quoting: user, ISO time, artist MBID, artist, track MBID, title |

MBIDs are missing in a fifth to a third of the rows, so they are not the id of a track; nor is the title alone, which
merges songs. The id is artist and title in small letters, with single spaces: players write one song in several ways,
while two songs of an artist that differ in nothing else are hardly known. Accents and words such as "(Remastered)" stay.

Exports begin with the newest play, and clocks of a minute give many plays one time. Plays of one time keep the order of
the file, so a file that goes back in time is turned round.
"""  # noqa: E501

from __future__ import annotations

import itertools
import re
import zoneinfo
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.datatypes as dt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing import play_times
from utils.preprocessing.csv_files import walk
from utils.preprocessing.engine import connect
from utils.preprocessing.play_files import reading, twins
from utils.preprocessing.sources.plays import (
    ROWS_A_GROUP,
    SCHEMA,
    SourceOptions,
    SourcePlays,
    check_options,
    columns_of,
    no_plays,
    source_of,
)
from utils.preprocessing.sources.text_tables import Layout, first_lines, open_rows, split

MEMORY = "1GB"
"""Of the engine; files stream through it."""
COLUMNS = ("user", "time", "track", "name", "artist", "album")
SUFFIXES = (".csv", ".tsv", ".txt")
PROFILES = "userid-profile.tsv"
"""Lies beside the plays of lastfm-1K, and holds none."""
ONE_K = "userid-timestamp-artid-artname-traid-traname.tsv"
WRITTEN = re.compile(r"\d{1,2} [A-Z][a-z]{2,} \d{4},? \d{1,2}:\d{2}")
OFFSET = r"\d:\d\d.*(?:[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)\s*$"
ISO = re.compile(r"\d{4}-\d\d-\d\dT")
NAMES = {
    "artist": ("artist", "artist_name", "artist name", "artistname"),
    "title": ("track", "title", "name", "track_name", "track name", "trackname", "song"),
    "album": ("album", "album_name", "album name", "albumname"),
    "time": ("uts", "timestamp", "unixtime", "date", "time", "datetime", "utc_time", "played_at", "scrobbled_at"),
    "user": ("user", "username", "user_id", "userid"),
}
"""Column of ours -> names in headers, the best first."""
BAD_TIME = 1
REASONS = {
    2: "no time: it was playing when the file was made",
    3: "no artist or no title",
    4: "a time before 2002, when Last.fm began: a player without a clock",
    5: "a time after May 2010, when lastfm-1K was published: a wrong clock",
}
"""Code of a row that is dropped -> why."""
BEGINNING, PUBLISHED = 1_009_843_200, 1_275_350_400
"""2002-01-01 and 2010-06-01, in seconds since 1970."""


class Export(NamedTuple):
    """One file of scrobbles."""

    path: Path
    layout: Layout
    listener: str
    """Whose plays they are, where rows do not say it."""
    is_1k: bool


@ibis.udf.scalar.builtin
def make_timestamp(us: dt.int64) -> dt.Timestamp():  # type: ignore[valid-type]
    """DuckDB's: the time of so many microseconds since 1970."""
    raise NotImplementedError


@ibis.udf.scalar.builtin
def timezone(zone: str, moment: dt.Timestamp()) -> dt.Timestamp("UTC"):  # type: ignore[valid-type]
    """DuckDB's: the instant of a time that a clock in this zone shows."""
    raise NotImplementedError


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """Plays of one file, or of all text files in a folder.

    Where the rows do not tell the listener, one file is one listener, called `listener`. In a folder, each file and
    each folder right below it is a listener with that name.

    Raises:
        UserError: no such file, none of the forms above, a time that is none.
    """
    check_options(options, "lastfm", ["time_zone"])
    if options.time_zone not in zoneinfo.available_timezones() - {"localtime", "Factory"}:
        raise UserError(f"--source_options.time_zone {options.time_zone!r}: no such zone; write it as Europe/Berlin")
    files_of = listeners(path, find_files(path))
    exports = [recognise(file, listener) for file, listener in files_of.items()]
    dropped = dict.fromkeys(REASONS.values(), 0)
    files: list[Path] = []
    sources: list[dict[str, Any]] = []
    turned: list[str] = []
    n_local = 0
    engine = connect(memory_limit=MEMORY, folder=work)
    for i, export in enumerate(exports):
        part, target = work / f"part_{i}.parquet", work / f"plays_{i}.parquet"
        found = convert(engine.connection, export, part, options.time_zone, work)
        n_local += found.local
        for code, n in found.faults.items():
            dropped[REASONS[code]] += n
        if found.goes_back:
            turn_round(part, target)
            turned.append(export.path.name)
        else:
            part.rename(target)
        part.unlink(missing_ok=True)
        files.append(target)
        sources.append(source_of(path, export.path, found.rows))
    engine.connection.disconnect()
    if options.time_zone != "UTC" and not n_local:
        raise UserError(f"--source_options.time_zone means nothing: the times in {path} are instants; leave it out")
    reasons = [(reason, n) for reason, n in dropped.items() if n]
    if not any(pq.read_metadata(file).num_rows for file in files):
        raise no_plays(path, reasons)
    notes = ["Last.fm knows neither skips nor seconds played"]
    if turned:
        notes.append(f"read from the last line to the first, since the newest play is the first: {', '.join(turned)}")
    return SourcePlays(files, columns_of(COLUMNS), sources, reasons, notes, per_listener=True)


def find_files(path: Path) -> list[Path]:
    """`path` itself, or the text files anywhere in it.

    Raises:
        UserError: nothing there, a link to nothing, the same file twice.
    """
    if not path.exists():
        raise UserError(f"{path} {'is a link to nothing' if path.is_symlink() else 'does not exist'}")
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in sorted(walk(path))
        if file.name.lower().removesuffix(".gz").endswith(SUFFIXES)
        and file.name.lower().removesuffix(".gz") not in (PROFILES, "readme.txt")
    ]
    if not found:
        raise UserError(f"{path} holds no {', '.join(SUFFIXES)} files; give the file that the exporter wrote")
    with reading(path):
        for file, other in twins(found):
            raise UserError(f"{file} and {other} hold the same plays; remove one of them")
    return found


def listeners(path: Path, files: Sequence[Path]) -> dict[Path, str]:
    """File -> its listener."""
    if len(files) == 1:
        return {files[0]: "listener"}
    parts = {file: file.relative_to(path).parts for file in files}
    names = {file: each[0] if len(each) > 1 else each[0].split(".")[0] for file, each in parts.items()}
    return names if len(set(names.values())) > 1 else dict.fromkeys(files, "listener")


def recognise(file: Path, listener: str) -> Export:
    """The form of a file, by its first lines.

    Raises:
        UserError: none of those that are known.
    """
    lines = first_lines(file)
    tabs = [line.split("\t") for line in lines]
    columns: Sequence[str] | None
    if len(tabs[0]) == 6 and ISO.match(tabs[0][1]):
        columns = ("user", "time", "artist_mbid", "artist", "track_mbid", "title")
        layout = Layout(columns, "\t", header=False, quoted=False)
        return Export(file, layout, listener, is_1k=file.name.removesuffix(".gz") == ONE_K)
    if len(tabs[0]) == 7 and (tabs[0][0].isdigit() or not tabs[0][0]):
        columns = ("time", "title", "artist", "album", "track_mbid", "artist_mbid", "album_mbid")
        return Export(file, Layout(columns, "\t", header=False, quoted=False), listener, is_1k=False)
    for delimiter in ";,\t":
        header = split(lines[0], delimiter)
        if (columns := name_columns(header)) is not None:
            return Export(file, Layout(columns, delimiter, header=True), listener, is_1k=False)
    rows = [split(line, ",") for line in lines]
    for n, columns in ((4, ("artist", "album", "title", "time")), (5, ("artist", "album", "title", "day", "clock"))):
        if len(rows[0]) == n and any(WRITTEN.fullmatch(", ".join(map(str.strip, row[3:]))) for row in rows):
            return Export(file, Layout(columns, ",", header=False), listener, is_1k=False)
    raise UserError(
        f"{file} is of no form that is known: its first line is {lines[0][:100]!r}. Known are artist, album, title, "
        "31 May 2024, 10:20 without a header; a header with columns for artist, track and date; six columns of "
        "lastfm-1K and seven of lastexport.py, separated by tabs"
    )


def name_columns(header: Sequence[str]) -> list[str] | None:
    """Our names of the columns with these names, "unused_3" for others; None if artist, title or time is not there."""
    plain = [re.sub(r"^date#.*", "date", name.strip().lower()) for name in header]
    places: dict[int, str] = {}
    for ours, theirs in NAMES.items():
        for name in theirs:
            if name in plain and plain.index(name) not in places:
                places[plain.index(name)] = ours
                break
    if not {"artist", "title", "time"} <= set(places.values()):
        return None
    if "time" in plain and "date" in plain and places.get(plain.index("date")) == "time":
        places[plain.index("date")], places[plain.index("time")] = "day", "clock"
    return [places.get(i, f"unused_{i}") for i in range(len(header))]


class Converted(NamedTuple):
    """What was found in a file."""

    rows: int
    faults: dict[int, int]
    """Code of `REASONS` -> rows that were dropped."""
    local: int
    """Rows whose time has no offset."""
    goes_back: bool
    """Whether most plays are older than the one above them."""


def convert(connection: Any, export: Export, target: Path, zone: str, work: Path) -> Converted:
    """Write the plays of a file in its order.

    Raises:
        UserError: damaged, or a time that is none.
    """
    fields = pa.schema([SCHEMA.field(name) for name in COLUMNS])
    rows = local = back = forth = 0
    faults: Counter[int] = Counter()
    last = np.zeros(0, np.int64)
    with (
        open_rows(connection, export.path, export.layout, work) as table,
        pq.ParquetWriter(target, fields) as writer,
        tqdm(desc=export.path.name, unit=" rows", unit_scale=True, leave=False) as bar,
    ):
        for batch in plays_of(table, export, zone).to_pyarrow_batches(chunk_size=ROWS_A_GROUP):
            codes = faults_of(batch, export)
            if (bad := codes == BAD_TIME).any():
                raise bad_time(export, rows + int(bad.argmax()))
            faults.update(codes[codes != 0].tolist())
            rows += len(batch)
            bar.update(len(batch))
            batch = batch.filter(pa.array(codes == 0))
            times = batch["us"].to_numpy()
            steps = np.diff(np.concatenate([last, times]))
            back, forth, last = back + int((steps < 0).sum()), forth + int((steps > 0).sum()), times[-1:]
            local += pc.sum(batch["local"]).as_py() or 0
            columns = {name: batch[name] for name in COLUMNS if name in batch.schema.names}
            columns["time"] = batch["us"].cast(fields.field("time").type)
            columns["track"] = track_ids(batch["artist"], batch["name"])
            columns.setdefault("user", pa.array([export.listener] * len(batch), pa.string()))
            writer.write_table(pa.table([columns[name] for name in COLUMNS], schema=fields))
    return Converted(rows, dict(faults), local, back > forth)


def bad_time(export: Export, row: int) -> UserError:
    """What to say of the time in the `row`-th row (from 0)."""
    line, fields = next(itertools.islice(export.layout.records(export.path), row, None))
    columns = list(export.layout.columns)
    value = " ".join(fields[columns.index(name)] for name in ("day", "clock", "time") if name in columns)
    return UserError(
        f"{export.path}, line {line}: the time is {value!r}, not one that is read ({play_times.FORMS}); correct or "
        "remove the line"
    )


def turn_round(file: Path, target: Path) -> None:
    """Write the rows of a Parquet file from the last to the first, a row group at a time."""
    source = pq.ParquetFile(file)
    with pq.ParquetWriter(target, source.schema_arrow) as writer:
        for i in reversed(range(source.num_row_groups)):
            group = source.read_row_group(i)
            writer.write_table(group.take(pa.array(np.arange(len(group))[::-1])))


def plays_of(table: ibis.Table, export: Export, zone: str) -> ibis.Table:
    """`us` int64 (microseconds since 1970, null where there is none or one that cannot be read), `given` (whether there
    is a time), `local` (whether it has no offset), `name`, `artist`, `album`, and `user` where the file has it.

    No expression is used twice: the engine would compute it twice.
    """
    columns = export.layout.columns
    text = table.day + ibis.literal(" ") + table.clock if "day" in columns else table.time
    us, unit = play_times.read_times(text.strip())
    local: ibis.Value = ibis.literal(False)
    if zone != "UTC":
        # A number is an instant, and so is a time with an offset; any other is what a clock showed.
        local = (us.notnull() & (unit == play_times.NO_NUMBER) & ~text.re_search(OFFSET)).fill_null(False)
        us = ibis.ifelse(local, play_times.epoch_us(timezone(zone, make_timestamp(us))), us)
    more: dict[str, Any] = {"user": table.user} if "user" in columns else {}
    return table.select(
        us=us,
        given=(text.strip() != "").fill_null(False),
        local=local,
        name=tidy(table.title),
        artist=tidy(table.artist),
        album=tidy(table.album) if "album" in columns else ibis.null("string"),
        **more,
    )


def tidy(name: ibis.Value) -> ibis.Value:
    """A name with single spaces and none around it; null if it is empty."""
    plain = ibis.ifelse(name.contains("  "), name.re_replace(" +", " "), name)  # regular expressions are slow
    return plain.strip().nullif("")


def faults_of(batch: pa.RecordBatch, export: Export) -> np.ndarray:
    """0, BAD_TIME or a code of `REASONS` for each row."""
    us = batch["us"].fill_null(-1).to_numpy()
    nameless = pc.or_(batch["artist"].is_null(), batch["name"].is_null()).to_numpy(zero_copy_only=False)
    given = batch["given"].to_numpy(zero_copy_only=False)
    unread = batch["us"].is_null().to_numpy(zero_copy_only=False)
    late = (us >= PUBLISHED * play_times.SECOND) & export.is_1k
    wrong = [~given, unread, nameless, us < BEGINNING * play_times.SECOND, late]
    return np.select(wrong, [2, BAD_TIME, 3, 4, 5], 0)


def track_ids(artist: pa.Array, title: pa.Array) -> pa.Array:
    """`artist_and_title` of both in small letters."""
    escaped = pc.replace_substring(pc.utf8_lower(artist), "|", "||")
    return pc.binary_join_element_wise(escaped, pc.utf8_lower(title), " | ")
