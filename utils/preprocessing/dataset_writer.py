"""Writes the dataset folder, as `docs/data.md` describes it, for every kind of source.

The code of a source (MSSD's logs, a table of plays) counts plays with `build_vocabulary`, turns them into chunks of
whole sessions and hands these to a `SplitWriter` for each split; `write_tracks` and `write_dataset` add the rest. A few
chunks and the vocabulary are in memory, whatever the number of files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.datatypes as dt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.core.files import write_json
from utils.data import schema, vocab
from utils.data.schema import SCHEMA_VERSION

SESSIONS_SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("day", pa.string()),
        ("file", pa.string()),
        ("premium", pa.uint8()),
        ("context_type", pa.uint8()),
        ("shuffle", pa.uint8()),
        ("user", pa.string()),
    ]
)
OPTIONAL_ARRAYS = {"full_ids": np.int32, "times": np.int64, "seconds": np.float32}
"""What a chunk may know of each play beside what every chunk does, and its type."""
LOG_INDEX = {name: i for i, name in enumerate(schema.LOG_COLUMNS)}


class Funnel:
    """Where every row and session went: read, dropped by reason, kept."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    def add(self, reason: str, *, rows: int, sessions: int) -> None:
        count = self._counts.setdefault(reason, [0, 0])
        count[0] += int(rows)
        count[1] += int(sessions)

    def rows(self) -> list[dict[str, Any]]:
        """For `dataset.json`, in the order of the first `add` of each reason."""
        return [{"reason": reason, "rows": rows, "sessions": n} for reason, (rows, n) in self._counts.items()]


def build_vocabulary(plays: ibis.Table, *, min_count: int, catalogue: pa.ChunkedArray | None = None) -> pa.Table:
    """Tracks with at least `min_count` plays, most played first, ties by track id.

    Args:
        plays: `track_id`, `plays`; a track may have several rows (one for each file), which are added up.
        catalogue: tracks that belong to the vocabulary, played or not; string, in any order, repeats allowed.

    Returns:
        `track_id`, `train_plays` int64, `index` int32: the id in the arrays, from `vocab.N_SPECIAL` on.

    Raises:
        UserError: no track has so many plays.
    """
    # dt.int64, not its name: the first type name that Ibis parses costs a fifth of a second.
    counts = plays.group_by("track_id").agg(train_plays=plays.plays.sum().cast(dt.int64))
    known = counts.filter(counts.train_plays >= min_count).order_by([ibis.desc("train_plays"), "track_id"]).to_pyarrow()
    if catalogue is not None:
        known = with_unplayed(known, catalogue)
    return as_vocabulary(known, min_count=min_count)


def as_vocabulary(known: pa.Table, *, min_count: int) -> pa.Table:
    """`track_id`, `train_plays` and `index` of the tracks in `known`, which has the first two, in order of their ids.

    Raises:
        UserError: there are none.
    """
    if known.num_rows == 0:
        raise UserError(f"no track has {min_count} plays or more in the training part; lower --min_count or add data")
    index = np.arange(vocab.N_SPECIAL, vocab.N_SPECIAL + known.num_rows, dtype=np.int32)
    return pa.table({"track_id": known["track_id"], "train_plays": known["train_plays"], "index": pa.array(index)})


def with_unplayed(played: pa.Table, catalogue: pa.ChunkedArray) -> pa.Table:
    """`track_id` and `train_plays` of the tracks played, then of a catalogue's others, by track id, with 0 plays."""
    track_ids = played["track_id"].cast(pa.string())
    others = pc.unique(catalogue.filter(pc.invert(pc.is_in(catalogue, value_set=track_ids))))
    others = others.take(pc.sort_indices(others))
    no_plays = pa.array(np.zeros(len(others), np.int64))
    unplayed = pa.table({"track_id": others, "train_plays": no_plays})
    return pa.concat_tables([pa.table({"track_id": track_ids, "train_plays": played["train_plays"]}), unplayed])


class NpyWriter:
    """Appends to a one- or two-dimensional `.npy` file whose length is known only at the end."""

    def __init__(self, path: Path, dtype: type, *, width: int | None = None) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self._width = () if width is None else (width,)
        self._length = 0
        self._file.write(self._header())

    def _header(self) -> bytes:
        # NumPy pads a header so that the first axis can grow in place: every length gives a header of the same size.
        header = io.BytesIO()
        description = np.lib.format.dtype_to_descr(self._dtype)
        fields = {"descr": description, "fortran_order": False, "shape": (self._length, *self._width)}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())
        self._file.close()


class Chunk(NamedTuple):
    """Whole sessions, one after the other, each in order of position. N events, M sessions."""

    tracks: np.ndarray
    """int32 (N,): ids of the vocabulary, `vocab.UNK` for a track outside it."""
    skips: np.ndarray
    """uint8 (N,): `schema.SKIP_*`"""
    log: np.ndarray
    """uint8 (N, L): codes of `schema.LOG_COLUMNS`"""
    lengths: np.ndarray
    """int64 (M,): plays of each session"""
    session_id: pa.Array
    day: pa.Array
    """string (M,), YYYYMMDD"""
    file: str
    user: pa.Array | None = None
    """string (M,): the listener; None where none is known"""
    full_ids: np.ndarray | None = None
    """int32 (N,): as `tracks`, but a track outside the vocabulary has an id of its own; None if not told apart"""
    times: np.ndarray | None = None
    """int64 (N,): start of the play, in microseconds since 1970; None where unknown"""
    seconds: np.ndarray | None = None
    """float32 (N,): seconds played, NaN where unknown; None where the source does not say"""

    def take(self, sessions: np.ndarray) -> Chunk:
        """The sessions whose flag in `sessions`, bool (M,), is set."""
        if sessions.all():
            return self
        events = np.repeat(sessions, self.lengths)
        keep = pa.array(sessions)
        there = {name: getattr(self, name) for name in ("tracks", "skips", "log", *OPTIONAL_ARRAYS)}
        return self._replace(
            **{name: values[events] for name, values in there.items() if values is not None},
            lengths=self.lengths[sessions],
            session_id=self.session_id.filter(keep),
            day=self.day.filter(keep),
            user=None if self.user is None else self.user.filter(keep),
        )


class CodedLogs(NamedTuple):
    """MSSD's logs once all are read, and before anything is written."""

    tracks: pa.Table
    """What `build_vocabulary` returns."""
    rows: list[int]
    """How many rows each log has."""
    chunks: Iterator[tuple[Chunk, np.ndarray]]
    """All sessions of each log, in order, and which of them have all their rows, bool (M,)."""


class SplitWriter:
    """Writes one split, chunk by chunk: `tracks`, `skips`, `log`, `offsets` (`.npy`) and `sessions.parquet`.

    Args:
        folder: the split's, which is made.
        optional: those of `OPTIONAL_ARRAYS` that all chunks have.
    """

    def __init__(self, folder: Path, optional: Sequence[str] = ()) -> None:
        folder.mkdir()
        self._optional = {name: NpyWriter(folder / f"{name}.npy", OPTIONAL_ARRAYS[name]) for name in optional}
        self._tracks = NpyWriter(folder / "tracks.npy", np.int32)
        self._skips = NpyWriter(folder / "skips.npy", np.uint8)
        self._log = NpyWriter(folder / "log.npy", np.uint8, width=len(schema.LOG_COLUMNS))
        self._offsets = NpyWriter(folder / "offsets.npy", np.int64)
        self._offsets.append(np.zeros(1, np.int64))
        self._sessions = pq.ParquetWriter(
            folder / "sessions.parquet", SESSIONS_SCHEMA, compression="snappy", use_dictionary=["day", "file", "user"]
        )
        self.events = 0
        self.sessions = 0
        self.first_day = self.last_day = ""

    def add(self, chunk: Chunk) -> None:
        if len(chunk.lengths) == 0:
            return
        ends = np.cumsum(chunk.lengths)
        first = chunk.log[ends - chunk.lengths]
        self._tracks.append(chunk.tracks)
        self._skips.append(chunk.skips)
        self._log.append(chunk.log)
        for name, writer in self._optional.items():
            writer.append(getattr(chunk, name))
        self._offsets.append(self.events + ends)
        columns = {
            "session_id": chunk.session_id,
            "day": chunk.day,
            "file": pa.repeat(chunk.file, len(ends)),
            "premium": first[:, LOG_INDEX["premium"]],
            "context_type": first[:, LOG_INDEX["context_type"]],
            "shuffle": first[:, LOG_INDEX["hist_user_behavior_is_shuffle"]],
            "user": pa.nulls(len(ends), pa.string()) if chunk.user is None else chunk.user,
        }
        self._sessions.write_table(pa.table(columns, schema=SESSIONS_SCHEMA))
        days = pc.min_max(chunk.day)
        self.first_day = min(self.first_day or days["min"].as_py(), days["min"].as_py())
        self.last_day = max(self.last_day, days["max"].as_py())
        self.events += int(ends[-1])
        self.sessions += len(ends)

    def close(self) -> dict[str, Any]:
        """Finish the files; returns the split's entry for `dataset.json`."""
        arrays = (self._tracks, self._skips, self._log, self._offsets, *self._optional.values())
        for writer in (*arrays, self._sessions):
            writer.close()
        return {"days": [self.first_day, self.last_day], "sessions": self.sessions, "events": self.events}


class Features(NamedTuple):
    matrix: np.ndarray
    """float32 (n_ids, F): rows of the special ids are zero"""
    names: list[str]
    mean: list[float]
    std: list[float]


def standardise(raw: pa.Table, *, categories: bool = True) -> Features:
    """Turn raw audio features of the vocabulary's tracks, in order of their ids, into a matrix of comparable columns.

    Numbers become z-scores over the tracks (each track once, however often it is played). `mode` is 1 for major, 0 for
    minor. `key` and `time_signature` get one column per value, for they are names. A missing or infinite value becomes
    the mean; a missing `key` or `time_signature` sets no column. A column that is the same for every track becomes 0.

    Args:
        raw: one row a track, the columns of `schema.FEATURE_COLUMNS` without `track_id`; null where missing.
        categories: whether `mode`, `key` and `time_signature` are MSSD's; otherwise all columns are numbers.
    """
    names: list[str] = []
    means: list[float] = []
    stds: list[float] = []
    special = schema.CATEGORICAL_FEATURES if categories else {}
    width = sum(len(special.get(name, (name,))) for name in raw.column_names)
    matrix = np.zeros((vocab.N_SPECIAL + len(raw), width), np.float32)

    def add(name: str, column: np.ndarray, mean: float = 0.0, std: float = 1.0) -> None:
        matrix[vocab.N_SPECIAL :, len(names)] = column
        names.append(name)
        means.append(mean)
        stds.append(std)

    for name in raw.column_names:
        values = raw[name].to_numpy()
        if name == "mode" and categories:
            add(name, values == "major")
        elif name in special:
            for category in special[name]:
                add(f"{name}_{category}", values == category)
        else:
            values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
            present = values[~np.isnan(values)]
            mean, std = (float(present.mean()), float(present.std())) if len(present) else (0.0, 0.0)
            if std <= 1e-9 * abs(mean):
                std = 1.0
            add(name, np.nan_to_num((values - mean) / std), mean, std)
    return Features(matrix, names, means, stds)


def write_tracks(folder: Path, tracks: pa.Table, raw: pa.Table, *, categories: bool = True) -> dict[str, Any]:
    """Write `tracks.parquet` and `track_features.npy`; returns the `features` entry of `dataset.json`.

    Args:
        tracks: what `build_vocabulary` returns, with names of the tracks where there are any.
        raw: the features of its tracks, row for row; no columns where there are none.
        categories: see `standardise`.
    """
    first = ["index", "track_id", "train_plays"]
    table = tracks.select([*first, *(name for name in tracks.column_names if name not in first)])
    for name in raw.column_names:
        table = table.append_column(name, raw[name])
    pq.write_table(table, folder / "tracks.parquet", use_dictionary=["mode"])  # floats hardly repeat
    features = standardise(raw, categories=categories)
    np.save(folder / "track_features.npy", features.matrix)
    return {"names": features.names, "mean": features.mean, "std": features.std}


def write_dataset(
    folder: Path,
    *,
    name: str,
    protocol: str,
    sources: Sequence[Mapping[str, Any]],
    funnel: Funnel,
    splits: Mapping[str, Mapping[str, Any]],
    empty_splits: Sequence[str] = (),
    max_session_length: int | None = None,
    tracks: pa.Table,
    min_count: int,
    features: Mapping[str, Any],
    has_skips: bool,
    has_log: bool,
    notes: Sequence[str],
    engine: str,
    command: str,
) -> dict[str, Any]:
    """Write `dataset.json` and return it.

    Args:
        empty_splits: splits that are to be empty.
        max_session_length: longer sessions were cut into pieces of so many plays; None: never.

    Raises:
        UserError: another split is empty.
    """
    for split, counts in splits.items():
        if counts["sessions"] == 0 and split not in empty_splits:
            dropped = "; ".join(f"{row['reason']}: {row['sessions']} sessions" for row in funnel.rows())
            raise UserError(f"no session is left for the {split} split ({dropped})")
    dataset = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "protocol": protocol,
        "sources": list(sources),
        "funnel": funnel.rows(),
        "splits": dict(splits),
        "empty_splits": list(empty_splits),
        "max_session_length": max_session_length,
        "vocabulary": {
            "tracks": tracks.num_rows,
            "n_ids": vocab.N_SPECIAL + tracks.num_rows,
            "min_count": min_count,
            "hash": vocab.vocabulary_hash(texts(tracks["track_id"])),
        },
        "features": dict(features),
        "log_columns": dict(schema.LOG_COLUMNS),
        "has_skips": has_skips,
        "has_log": has_log,
        "notes": list(notes),
        "engine": engine,
        "command": command,
    }
    write_json(folder / "dataset.json", dataset)
    return dataset


def texts(column: pa.ChunkedArray) -> Iterator[str]:
    """The texts of a column one by one: as Python's they take six times the memory that they take in Arrow."""
    for batch in pa.table({"text": column}).to_batches(max_chunksize=1 << 16):
        yield from batch["text"].to_pylist()


def summary(dataset: Mapping[str, Any]) -> str:
    """The dataset on one screen of text: funnel, splits, vocabulary, features.

    Reasons that no row and no session has are left out."""
    lines = [f"{'funnel':<48}{'rows':>14}{'sessions':>12}"]
    counted = [row for row in dataset["funnel"] if row["rows"] or row["sessions"]]
    lines += [f"  {row['reason']:<46}{row['rows']:>14,}{row['sessions']:>12,}" for row in counted]
    lines.append(f"{'split':<48}{'events':>14}{'sessions':>12}")
    for split, counts in dataset["splits"].items():
        first, last = counts["days"]
        days = f"{first} to {last}" if first else ""
        lines.append(f"  {split:<8}{days:<38}{counts['events']:>14,}{counts['sessions']:>12,}")
    words = dataset["vocabulary"]
    lines.append(f"vocabulary: {words['tracks']:,} tracks with {words['min_count']} training plays or more")
    lines.append(f"features: {len(dataset['features']['names'])} columns a track")
    lines += [f"note: {note}" for note in dataset["notes"]]
    return "\n".join(lines)


def any_in_session(events: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which sessions have a play whose flag is set: bool (N,) -> bool (M,)."""
    return np.logical_or.reduceat(events, np.cumsum(lengths) - lengths) if len(lengths) else np.zeros(0, bool)
