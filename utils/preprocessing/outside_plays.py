"""A table of plays for a dataset that exists: its sessions with the ids of the dataset, to score a trained model on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.data import vocab
from utils.data.dataset import Dataset, SessionArrays
from utils.preprocessing import play_tables, play_tracks
from utils.preprocessing.dataset_writer import OPTIONAL_ARRAYS, Chunk, SplitWriter
from utils.preprocessing.engine import connect
from utils.preprocessing.options import Config, PlaysColumns, SourceOptions
from utils.preprocessing.plays_source import open_plays


class Outside(NamedTuple):
    """Sessions of a table of plays with the ids of a dataset."""

    chunks: Iterator[Chunk]
    new_tracks: pa.Table
    """Tracks that the dataset has never seen, in order of their ids, the first that are free: `track_id`, and `name`,
    `artist`, `album` where the table has them"""
    optional: list[str]
    """The optional arrays that the chunks have."""
    notes: list[str]
    """What is to be said about the plays."""


@contextmanager
def open_sessions(
    path: Path,
    columns: PlaysColumns,
    tracks: pa.Table,
    new_tracks: pa.Table | None = None,
    *,
    shortest: int = 2,
    longest: int | None = None,
    source: str | None = None,
    options: SourceOptions | None = None,
) -> Iterator[Outside]:
    """The sessions of a table of plays in order of their start, until the block ends.

    Args:
        path: CSV or Parquet, a folder of them, or files of the source.
        tracks: `track_id` and `index` of the dataset (its `tracks.parquet`).
        new_tracks: `track_id` of the tracks outside its vocabulary (`new_tracks.parquet`), if it tells them apart.
        shortest: sessions with fewer plays are left out.
        longest: sessions with more are cut into pieces of so many plays.
        source: whose files `path` is, instead of a table of plays; `options` are for it.

    Raises:
        UserError: see `play_tables.arrange`; in the block, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        connection = connect(memory_limit=Config(out=work).memory_limit, folder=work).connection
        try:
            plays = open_plays(path, columns, source, options or SourceOptions(), work)
            rules = play_tables.Rules(shortest=shortest, longest=longest, are_options=False)
            arranged = play_tables.arrange(connection, path, plays, work, rules)
            # Which plays are those of training does not matter, for the vocabulary is there.
            buckets, counts = play_tables.deal(arranged, np.zeros(len(arranged.sessions.lengths), bool), work)
            there = pa.table({"track_id": pa.array([], pa.string())}) if new_tracks is None else new_tracks
            further, ids = play_tracks.ids_in_dataset(connection, counts, arranged.tracks, tracks, there, work)
            further = play_tracks.with_names(connection, further, arranged.names, work)
            n_ids = vocab.N_SPECIAL + len(tracks)
            dropped = [row for row in arranged.funnel.rows() if row["reason"].startswith("dropped") and row["rows"]]
            yield Outside(
                play_tables.chunks(buckets, arranged.sessions, ids, path.name, n_ids=n_ids),
                further,
                play_tables.optional_arrays(plays.columns),
                [*plays.notes, *arranged.notes, *(f"{row['reason']}: {row['rows']} plays" for row in dropped)],
            )
        except (OSError, duckdb.Error) as error:
            raise UserError(f"{path}: {error} (working in {folder}: is the disk full?)") from None
        finally:
            connection.disconnect()


def read_plays(path: Path, columns: PlaysColumns, tracks: pa.Table, *, shortest: int = 2) -> tuple[Chunk, list[str]]:
    """All sessions of a table of plays in memory (`vocab.UNK` for tracks that the dataset does not know), and notes.

    For the arguments and errors see `open_sessions`.
    """
    with open_sessions(path, columns, tracks, shortest=shortest) as outside:
        return concatenate(list(outside.chunks)), outside.notes


def plays_as_split(
    path: Path,
    columns: PlaysColumns,
    dataset: Dataset,
    folder: Path,
    *,
    source: str | None = None,
    options: SourceOptions | None = None,
) -> SessionArrays:
    """Write the sessions of a table of plays as a split to `folder`, and print what was dropped or is unknown.

    Long sessions are cut as those of the dataset were.
    Tracks that are new to the dataset's `new_tracks.parquet`, too, have the ids that follow, in the order of
    `new_tracks.parquet` in `folder`.

    Raises:
        UserError: see `open_sessions`.
    """
    tracks = pq.read_table(dataset.folder / "tracks.parquet", columns=["track_id", "index"])
    new_file = dataset.folder / "new_tracks.parquet"
    new_tracks = pq.read_table(new_file, columns=["track_id"]) if new_file.exists() else None
    n_unknown = 0
    longest = dataset.info.get("max_session_length")
    with open_sessions(path, columns, tracks, new_tracks, longest=longest, source=source, options=options) as outside:
        writer = SplitWriter(folder, outside.optional)
        for chunk in outside.chunks:
            writer.add(chunk)
            n_unknown += int((chunk.tracks == vocab.UNK).sum())
        writer.close()
        pq.write_table(outside.new_tracks, folder / "new_tracks.parquet")
    for note in outside.notes:
        print(note)
    print(f"{n_unknown / writer.events:.2%} of the plays are of tracks that {dataset.folder} does not know")
    return SessionArrays.open(folder)


def concatenate(parts: list[Chunk]) -> Chunk:
    """Chunks as one."""

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        return (np.concatenate if isinstance(values[0], np.ndarray) else pa.concat_arrays)(values)

    names = ("tracks", "skips", "log", "lengths", "session_id", "day", "user", *OPTIONAL_ARRAYS)
    return Chunk(file=parts[0].file, **{name: joined(name) for name in names})
