"""The tracks of a table of plays: their ids, in the vocabulary and beyond it, and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.preprocessing.engine import read_parquet, write_parquet
from utils.preprocessing.play_rows import NAMES, CodedPlays
from utils.preprocessing.split_rules import TRAIN


def count_tracks(connection: Any, events: ibis.Table, work: Path) -> ibis.Table:
    """`track_id` and `plays` int64, in training, of every track.

    Args:
        events: what `play_tables.number_sessions` returns.
    """
    counts = events.group_by("track_id").agg(plays=(events.split == TRAIN).sum().cast("int64"))
    write_parquet(connection, counts, work / "tracks.parquet")
    return read_parquet(connection, work / "tracks.parquet")


def find_names(connection: Any, coded: CodedPlays, work: Path) -> ibis.Table | None:
    """`track_id` and those of `NAMES` that the source has, for tracks with any; None if it has none.

    A track that has several names gets those that stand together most often; of as many, the first in the alphabet.
    """
    plays = coded.table
    given = [name for name in NAMES if name in plays.columns]
    if not given:
        return None
    plays = plays.filter(ibis.or_(*(plays[name].notnull() for name in given)))
    counts = plays.group_by(["track_id", *given]).agg(n=plays.count())
    best = ibis.window(group_by="track_id", order_by=[ibis.desc(counts.n), *given])
    counts = counts.mutate(rank=ibis.row_number().over(best))
    write_parquet(connection, counts.filter(counts["rank"] == 0).select("track_id", *given), work / "names.parquet")
    return read_parquet(connection, work / "names.parquet")


def with_names(connection: Any, tracks: ibis.Table, names: ibis.Table | None, order: str) -> pa.Table:
    """`tracks` in order of one of its columns, with their names where there are any."""
    if names is not None:
        given = [name for name in names.columns if name != "track_id"]
        tracks = tracks.left_join(names, "track_id").select(*(tracks[name] for name in tracks.columns), *given)
    return connection.to_pyarrow(tracks.order_by(order))


def number_tracks(connection: Any, target: Path, known: pa.Table, new: pa.Table, first: int) -> ibis.Table:
    """`track_id` and `id` int32 of the tracks in `known` (its `index`), and of those in `new`, from `first` on.

    Args:
        target: where the table is written.
    """
    ids = pa.table(
        {
            "track_id": pa.concat_arrays(
                [chunk.cast(pa.string()) for table in (known, new) for chunk in table["track_id"].chunks]
            ),
            "id": np.concatenate([known["index"].to_numpy(), np.arange(first, first + len(new), dtype=np.int32)]),
        }
    )
    pq.write_table(ids, target)
    return read_parquet(connection, target)


def others(counts: ibis.Table, ids: ibis.Table) -> ibis.Table:
    """`track_id` of the tracks in `counts` that `ids` lacks."""
    return counts.anti_join(ids, "track_id").select("track_id")
