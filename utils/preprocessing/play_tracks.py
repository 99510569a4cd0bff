"""The tracks of a table of plays: their ids, in the vocabulary and beyond it, and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.preprocessing.dataset_writer import as_vocabulary
from utils.preprocessing.engine import read_parquet, write_parquet
from utils.preprocessing.play_rows import NAMES, CodedPlays

NO_ID = -1
"""Of a track without plays in sessions that are kept."""


def find_names(connection: Any, coded: CodedPlays, work: Path) -> Path | None:
    """Write `track_id` and those of `NAMES` that the source has, for tracks with any; None if it has none.

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
    return work / "names.parquet"


def with_names(connection: Any, tracks: pa.Table, names: Path | None, work: Path) -> pa.Table:
    """`tracks` with their names where there are any."""
    if names is None:
        return tracks
    target = work / "tracks_to_name.parquet"
    pq.write_table(tracks.append_column("place", pa.array(np.arange(len(tracks)))), target)
    table, known = read_parquet(connection, target), read_parquet(connection, names)
    given = [name for name in known.columns if name != "track_id"]
    found = table.left_join(known, "track_id").select("place", *tracks.column_names, *given)
    return connection.to_pyarrow(found.order_by("place").drop("place"))


class Counts:
    """Plays of each track, by its code, N of them.

    Args:
        n: how many tracks there are.
    """

    def __init__(self, n: int) -> None:
        self.training = np.zeros(n, np.int64)
        """Plays in training, (N,)"""
        self.there = np.zeros(n, bool)
        """Whether it has plays in sessions that are kept, (N,)"""

    def add(self, tracks: np.ndarray, training: np.ndarray) -> None:
        """
        Args:
            tracks: codes of the tracks of some plays.
            training: whether a play is one of training, bool.
        """
        self.there[tracks] = True
        np.add.at(self.training, tracks[training], 1)

    def known(self, min_count: int) -> np.ndarray:
        """Codes of the tracks with so many plays in training; most played first, ties by track id."""
        known = np.flatnonzero(self.training >= min_count)
        return known[np.argsort(-self.training[known], kind="stable")]


def vocabulary(counts: Counts, tracks: Path, *, min_count: int) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """The vocabulary, as `build_vocabulary` returns it; `track_id` of all other tracks that are there, by track id; and
    the id of every track by its code, int32: those outside the vocabulary have the ids that follow.

    Args:
        tracks: see `play_tables.Arranged`.

    Raises:
        UserError: no track has so many plays.
    """
    known = counts.known(min_count)
    is_new = counts.there.copy()
    is_new[known] = False
    new = np.flatnonzero(is_new)
    texts = pq.read_table(tracks, columns=["text"])["text"]
    words = as_vocabulary(
        pa.table({"track_id": texts.take(pa.array(known)), "train_plays": counts.training[known]}), min_count=min_count
    )
    ids = np.full(len(is_new), NO_ID, np.int32)
    ids[known] = words["index"].to_numpy()
    ids[new] = ids[known].max() + 1 + np.arange(len(new))
    return words, pa.table({"track_id": texts.take(pa.array(new))}), ids


def ids_in_dataset(
    connection: Any, counts: Counts, tracks: Path, known: pa.Table, new: pa.Table, work: Path
) -> tuple[pa.Table, np.ndarray]:
    """`track_id` of the tracks that are there and that a dataset does not have, by track id, and the id of every track
    by its code, int32.

    Args:
        tracks: see `play_tables.Arranged`.
        known: `track_id` and `index` of the dataset's vocabulary.
        new: `track_id` of its tracks beyond, which have the ids that follow.
    """
    first = known["index"].to_numpy().max() + 1
    both = [known.select(["track_id"]), new.select(["track_id"])]
    theirs = pa.concat_tables(both, promote_options="permissive")  # texts may be of two types
    theirs = theirs.append_column(
        "id", pa.array(np.concatenate([known["index"].to_numpy(), first + np.arange(len(new), dtype=np.int32)]))
    )
    pq.write_table(theirs, work / "dataset_ids.parquet")
    ours = read_parquet(connection, tracks)
    found = ours.left_join(read_parquet(connection, work / "dataset_ids.parquet"), [("text", "track_id")])
    found = connection.to_pyarrow(found.order_by("code").select("id"))
    ids = found["id"].fill_null(NO_ID).to_numpy().astype(np.int32)
    further = np.flatnonzero(counts.there & (ids == NO_ID))
    ids[further] = first + len(new) + np.arange(len(further))
    texts = pq.read_table(tracks, columns=["text"])["text"]
    return pa.table({"track_id": texts.take(pa.array(further))}), ids
