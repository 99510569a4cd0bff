"""Options of `python -m utils.datapreprocessing`, and of a table of plays. Nothing here imports an engine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

from utils.core.errors import UserError
from utils.data.schema import OLDER_PROTOCOLS

SourceName = Literal[
    "spotify",
    "spotify-account",
    "listenbrainz",
    "lastfm",
    "yambda",
    "apple-music",
    "recbole",
    "session-rec",
]
"""Services and tools whose files `sources/` reads, a module each."""


@dataclass
class PlaysColumns:
    """Columns of a table of plays."""

    track: str = "track_id"
    """The id of the track."""
    session: str = ""
    """The session. Without it, sessions are made from `user` and `time`."""
    user: str = ""
    """Who listens. Without it (and without `session`) all plays are one listener's; beside `session`, it is kept."""
    time: str = ""
    """When the play started: a timestamp, ISO text (UTC, or with an offset), or seconds, ms, µs or ns since 1970."""
    position: str = ""
    """Place in the session; without it, plays are ordered by `time`."""
    skip: str = ""
    """Whether the play was skipped: true/false, 1/0, or MSSD's flags skip_1, skip_2, skip_3, not_skipped and none (of
    them); anything else is unknown."""
    gap: float = 1800.0
    """Seconds without a play that end a session, if there is no `session`."""
    name: str = ""
    """The display name of the track."""
    artist: str = ""
    """The name of the artist."""
    album: str = ""
    """The name of the album."""
    seconds: str = ""
    """Seconds played."""
    reason_start: str = ""
    """Why the play started, in MSSD's words (trackdone, fwdbtn, ...); others are unknown."""
    reason_end: str = ""
    """Why the play ended, in MSSD's words; others are unknown."""
    shuffle: str = ""
    """Whether tracks were shuffled: true/false or 1/0."""
    context: str = ""
    """What the track was played from, in MSSD's words (radio, charts, ...)."""
    premium: str = ""
    """Whether the listener pays: true/false or 1/0."""
    hour: str = ""
    """The listener's hour of the day, 0 to 23; without it, the hour of `time` (UTC)."""
    split: str = ""
    """An official split that is kept: train, valid or test."""


@dataclass
class SourceOptions:
    """What a source may be told; an option that the chosen source has no use for is an error."""

    drop_incognito: bool = False
    """spotify: drop plays of private sessions."""
    skip_below: float = 0.5
    """yambda: share of a track below which a play of it counts as skipped."""
    time_zone: str = "UTC"
    """lastfm: the zone of the times of the export."""


@dataclass
class Config:
    """Raw logs to a dataset folder."""

    out: Path
    """Dataset folder to write."""
    raw: Path | None = None
    """Folder with MSSD's files, plain or .gz: training_set_0/log_0_20180715_000000000000.csv, track_features/tf_*."""
    plays: Path | None = None
    """Instead of --raw: a table of plays (CSV or Parquet), or a folder of them."""
    plays_columns: PlaysColumns = field(default_factory=PlaysColumns)
    """Which column of --plays is what."""
    features: Path | None = None
    """plays: a table of track features, CSV or Parquet: an id, and columns of numbers or one of lists."""
    features_track: str = "track_id"
    """The column of --features that holds the id of the track."""
    source: SourceName | None = None
    """Whose files --plays are, instead of a table of plays; also written --source NAME PATH."""
    source_options: SourceOptions = field(default_factory=SourceOptions)
    protocol: Literal["temporal", "original", "session", "seed"] = "temporal"
    """How MSSD's sessions are chosen and split; see above (seed is the old name of original). Tables of plays are split
    by time."""
    min_count: int | None = None
    """Tracks with fewer training plays are rare; 5, or 150 for original. 0 takes in all of track_features."""
    valid_days: int | None = None
    """temporal: validation days, just before the test days; if not given a tenth of all, at least one."""
    test_days: int | None = None
    """temporal: test days, the last ones; if not given a tenth of all, at least one."""
    valid_fraction: float = 0.1
    """original, session, plays: share of the sessions for validation (original: of the training sessions); plays: 0 for
    none."""
    test_fraction: float = 0.1
    """session, plays: share of the sessions for testing; plays: 0 for none."""
    split_by: Literal["time", "listener"] | None = None
    """plays: the last sessions of all, or of each listener, validate and test; if not given, as suits the source: time
    for a table."""
    split_column: str = ""
    """The same as --plays_columns.split."""
    min_session_length: int = 2
    """plays: shorter sessions are dropped."""
    max_session_length: int | None = None
    """plays: longer sessions are cut into pieces of this many plays."""
    keep_repeats: bool = False
    """plays: keep plays that equal another one in listener (or session), time, position and track."""
    drop_rows_without_track: bool = False
    """plays: drop rows without a track (podcasts); otherwise they are an error."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What processes MSSD's files, or sorts plays: DuckDB here, or Spark (docs/preprocessing.md). The dataset is the
    same."""
    spark_remote: str | None = None
    """A Spark Connect server, sc://host:15002; without it, what spark-submit offers, or Spark on this machine."""
    memory_limit: str = "2GB"
    """Memory of DuckDB (with Spark: on the driver, for plays); beyond it, it uses temporary files beside --out."""
    workers: int = 0
    """How many of MSSD's logs to process at a time, each on one core and in memory; 0: one per core, at most four."""
    overwrite: bool = False
    """Replace an existing --out."""

    def __post_init__(self) -> None:
        if self.protocol in OLDER_PROTOCOLS:
            current = OLDER_PROTOCOLS[self.protocol]
            print(f"--protocol {self.protocol} is called --protocol {current} now", file=sys.stderr)
            self.protocol = current
        if self.split_column:
            if self.plays_columns.split not in ("", self.split_column):
                raise UserError("--split_column and --plays_columns.split are the same option; give one of them")
            self.plays_columns = replace(self.plays_columns, split=self.split_column)
            self.split_column = ""


def command_line(config: Any) -> str:
    """The command that makes this dataset again, with every option that is not at its default."""

    def options(value: Any, default: Any, prefix: str) -> Iterator[str]:
        for item in fields(value):
            here, there = getattr(value, item.name), getattr(default, item.name)
            if is_dataclass(here):
                yield from options(here, there, f"{prefix}{item.name}.")
            elif here != there:
                yield from (f"--{prefix}{item.name}", str(here))

    return shlex.join(["python", "-m", "utils.datapreprocessing", *options(config, Config(out=Path()), "")])


def spell_out_source(args: Sequence[str]) -> list[str]:
    """Command-line arguments with `--source NAME PATH` as `--source NAME --plays PATH`.

    Raises:
        UserError: an unknown name, or several paths.
    """
    found = list(args)
    for i, word in enumerate(found):
        if word != "--source" and not word.startswith("--source="):
            continue
        first = i + 1 if "=" in word else i + 2
        name = word.partition("=")[2] if "=" in word else "".join(found[i + 1 : i + 2])
        if not name or name.startswith("-"):
            return found  # the parser says that a name is missing
        if name not in get_args(SourceName):
            raise UserError(f"--source {name}: there is no such source; there are {', '.join(get_args(SourceName))}")
        paths = list(takewhile(lambda value: not value.startswith("-"), found[first:]))
        named = [*paths, *(value for value in found if value == "--plays" or value.startswith("--plays="))]
        if len(named) > 1:
            raise UserError(
                f"--source takes a name and one path, not {len(named)} ({', '.join(named)}); to read several files, "
                "put them into a folder and name it"
            )
        return [*found[:first], *(["--plays"] if paths else []), *found[first:]]
    return found


def check_source(columns: PlaysColumns, source: str | None, options: SourceOptions, plays: object) -> None:
    """
    Raises:
        UserError: a source without a path, or options that would be ignored.
    """
    if source is None:
        for item in fields(options):
            if getattr(options, item.name) != item.default:
                raise UserError(f"--source_options.{item.name} is for --source; a table of plays has no such option")
        return
    if plays is None:
        raise UserError(f"--source {source} needs the path of its files: --source {source} PATH")
    for item in fields(columns):
        if item.name != "gap" and getattr(columns, item.name) != item.default:
            raise UserError(
                f"--plays_columns.{item.name} has no meaning beside --source {source}, which knows its columns; leave "
                "it out"
            )
