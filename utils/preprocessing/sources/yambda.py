"""Yambda, the open listening logs of Yandex Music: `flat/{50m,500m,5b}/listens.parquet` or `multi_event.parquet`.

Its card (https://huggingface.co/datasets/yandex/yambda) and paper (arXiv 2505.22238, section 3.3) describe it:

    uid, item_id            uint32, not dense
    timestamp               uint32, seconds since the first event of the whole dataset, rounded to 5 s. The card says
                            "binned into 5s units", but the unit is the second: the last one is 26,000,000, which is
                            the 301 days of the paper. The authors do not tell when it began (discussion 15)
    is_organic              1 where the listener chose, 0 for the personal feed and personal playlists
    played_ratio_pct        share that was played, 0 to 159: above 100 where parts were played again
    track_length_seconds    rounded to 5 s
    event_type              of multi_event.parquet only: listen, like, unlike, dislike, undislike

Files are sorted by uid and timestamp, and about an eighth of the plays share their time with the one before, so the
order of the file is kept. `embeddings.parquet` (item_id, embed, normalized_embed) has 128 numbers for each of 7.7
million tracks, `artist_item_mapping.parquet` and `album_item_mapping.parquet` have pairs of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing.play_files import reading
from utils.preprocessing.sources.plays import (
    SCHEMA,
    SourceOptions,
    SourcePlays,
    check_options,
    columns_of,
    no_plays,
    source_of,
)

LISTENS, MULTI_EVENT, EMBEDDINGS = "listens.parquet", "multi_event.parquet", "embeddings.parquet"
SIZES = ("50m", "500m", "5b")
COLUMNS = ("uid", "timestamp", "item_id", "is_organic", "played_ratio_pct", "track_length_seconds")
MAPPINGS = {
    "artist": ("artist_item_mapping.parquet", "artist_id"),
    "album": ("album_item_mapping.parquet", "album_id"),
}
MAX_ID = (1 << 32) - 1
"""Ids are numbers of 32 bits."""
BATCH = 1 << 18
"""Plays that are in memory at a time."""
EMBEDDINGS_A_BATCH = 1 << 14
TO_THE_END = 0.9
"""A track of which at least this share was played counts as played to its end."""
BRIEFLY = 10
"""Seconds of a skipped play below which it is a `skip_1`, as in other sources."""
SKIPS = ("skip_1", "skip_2", "skip_3", "not_skipped")
CONTEXTS = ("personalized_playlist", "catalog")
"""What `is_organic` 0 and 1 are called in MSSD's words."""


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """Plays of one file of events, in its order; ids stay numbers.

    A play is skipped if less than `options.skip_below` of the track was played: `skip_1` below 10 s, else `skip_2`. It
    is `skip_3` below 90 %, and `not_skipped` from there on.

    Raises:
        UserError: no such file, several sizes, other columns, a value that is missing or out of range.
    """
    check_options(options, "yambda", ["skip_below"])
    if not 0 < options.skip_below <= 1:
        raise UserError(f"--source_options.skip_below {options.skip_below}: a share above 0 and up to 1, such as 0.5")
    file = find_events(path)
    source = open_parquet(file, COLUMNS)
    folder = path if path.is_dir() else None
    lookups = {name: read_mapping(folder / found, column) for name, (found, column) in MAPPINGS.items()
               if folder and (folder / found).exists()}  # fmt: skip
    names = ["user", "time", "track", *lookups, "skip", "seconds", "context"]
    dropped: dict[str, int] = {}
    played = Seen()
    target = work / "plays.parquet"
    with reading(file), writer_of(target, names) as writer:
        for batch in events(source, file, dropped):
            played.add(batch["item_id"].to_numpy())
            columns = plays_of(batch, options.skip_below, lookups)
            writer.write_table(pa.table([columns[name] for name in names], schema=writer.schema))
    if not pq.read_metadata(target).num_rows:
        raise no_plays(path, list(dropped.items()))
    features, features_file = None, None
    notes = [
        "times are seconds since an unpublished start, written as if that were 1970-01-01: days and hours of the day "
        "are shifted by an unknown amount",
        f"a play of less than {options.skip_below:g} of the track counts as skipped",
    ]
    if folder and (folder / EMBEDDINGS).exists():
        features, features_file = work / "features.parquet", folder / EMBEDDINGS
        notes.append(copy_embeddings(features_file, features, played.values()))
    sources = [source_of(path, file, source.metadata.num_rows)]
    return SourcePlays([target], columns_of(names), sources, list(dropped.items()), notes, features, features_file)


def find_events(path: Path) -> Path:
    """The file of events: `path` itself, or the one in it, in `SIZE` or in `flat/SIZE`; `listens` before `multi_event`.

    Raises:
        UserError: none, or several sizes.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_dir():
        return path
    places = [path, *(path / size for size in SIZES), *(path / "flat" / size for size in SIZES)]
    found = [[place / name for name in (LISTENS, MULTI_EVENT) if (place / name).exists()] for place in places]
    files = [some[0] for some in found if some]
    if not files:
        raise UserError(f"{path} has neither {LISTENS} nor {MULTI_EVENT}, nor has flat/{{{','.join(SIZES)}}} in it")
    if len(files) > 1:
        raise UserError(f"{path} holds several datasets; give one of {', '.join(map(str, files))}")
    return files[0]


def open_parquet(file: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """
    Raises:
        UserError: this is no Parquet, a column is missing, or one holds lists (the sequential form).
    """
    with reading(file):
        # Without pre-buffering, a row group of any size is read page by page.
        source = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    schema = source.schema_arrow
    if missing := [name for name in columns if name not in schema.names]:
        raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(schema.names)}")
    if nested := [name for name in columns if pa.types.is_nested(schema.field(name).type)]:
        raise UserError(f"{file}: column {nested[0]} holds lists; give the file of flat/, not that of sequential/")
    return source


def writer_of(target: Path, names: Sequence[str]) -> pq.ParquetWriter:
    """Of plays with these columns; ids are numbers, words are dictionaries, which Parquet stores as text."""
    types = {"user": pa.uint32(), "track": pa.uint32(), "artist": pa.uint32(), "album": pa.uint32()}
    types |= dict.fromkeys(("skip", "context"), pa.dictionary(pa.int8(), pa.string()))
    fields = [pa.field(name, types.get(name, SCHEMA.field(name).type)) for name in names]
    return pq.ParquetWriter(target, pa.schema(fields), store_schema=False)


def events(source: pq.ParquetFile, file: Path, dropped: dict[str, int]) -> Iterator[pa.RecordBatch]:
    """Listens in batches; rows of other kinds are counted in `dropped`."""
    has_kinds = "event_type" in source.schema_arrow.names
    columns = [*COLUMNS, "event_type"] if has_kinds else list(COLUMNS)
    check_numbers(source, file, COLUMNS)
    n_before = 0
    with tqdm(total=source.metadata.num_rows, desc="yambda", unit=" rows", unit_scale=True) as bar:
        for batch in source.iter_batches(BATCH, columns=columns):
            for name in ("uid", "timestamp", "item_id"):
                if batch[name].null_count:
                    row = n_before + pc.index(pc.is_null(batch[name]), True).as_py()
                    raise UserError(f"{file}, row {row + 1}: {name} is missing; download the file again")
                if name != "timestamp":
                    check_ids(file, name, batch[name])
            for name in ("played_ratio_pct", "track_length_seconds"):
                if (low := pc.min(batch[name]).as_py()) is not None and not low >= 0:
                    row = n_before + pc.index(batch[name], pa.scalar(low, batch[name].type)).as_py()
                    raise UserError(f"{file}, row {row + 1}: {name} is {low}, below 0; download the file again")
            n_before += len(batch)
            bar.update(len(batch))
            if has_kinds:
                kinds = batch["event_type"].cast(pa.string()).fill_null("(none)")
                for kind, n in zip(*pc.value_counts(kinds).flatten(), strict=True):
                    if kind.as_py() != "listen":
                        reason = f"an event that is no listen: {kind.as_py()}"
                        dropped[reason] = dropped.get(reason, 0) + n.as_py()
                batch = batch.filter(pc.equal(kinds, "listen"))
            yield batch


def check_numbers(source: pq.ParquetFile, file: Path, columns: Sequence[str]) -> None:
    """
    Raises:
        UserError: a column holds no numbers, or one of ids no whole ones.
    """
    for name in columns:
        found = source.schema_arrow.field(name).type
        wanted = "whole numbers" if name == "uid" or name.endswith("_id") else "numbers"
        is_number = pa.types.is_floating(found) or (name == "is_organic" and pa.types.is_boolean(found))
        if not (pa.types.is_integer(found) or (wanted == "numbers" and is_number)):
            raise UserError(
                f"{file}: column {name} holds {found}, where {wanted} are expected; download the file again"
            )


def check_ids(file: Path, name: str, ids: pa.Array | pa.ChunkedArray) -> None:
    """
    Raises:
        UserError: a number that is no id.
    """
    low, high = (end.as_py() for end in pc.min_max(ids).values())
    if low is not None and (low < 0 or high > MAX_ID):
        raise UserError(
            f"{file}: {name} {low if low < 0 else high} is no id of the dataset, which are 0 to {MAX_ID}; download the "
            "file again"
        )


def plays_of(batch: pa.RecordBatch, skip_below: float, lookups: dict[str, Mapping]) -> dict[str, pa.Array]:
    """Column of `SCHEMA` -> its values for a batch of listens."""
    ratio = batch["played_ratio_pct"].cast(pa.float32())
    share = pc.divide(ratio, pa.scalar(100, pa.float32()))
    seconds = pc.divide(
        pc.multiply(ratio, batch["track_length_seconds"].cast(pa.float32())), pa.scalar(100, pa.float32())
    )
    limits = np.array([skip_below, max(skip_below, TO_THE_END)], np.float32)
    level = 1 + np.searchsorted(limits, share.fill_null(0).to_numpy(zero_copy_only=False), side="right")
    level[(level == 1) & (seconds.fill_null(BRIEFLY).to_numpy(zero_copy_only=False) < BRIEFLY)] = 0
    organic = batch["is_organic"].cast(pa.int8())
    items = batch["item_id"].to_numpy()
    return {
        "user": batch["uid"].cast(pa.uint32()),
        "time": pc.multiply_checked(batch["timestamp"].cast(pa.int64()), 1_000_000).cast(SCHEMA.field("time").type),
        "track": batch["item_id"].cast(pa.uint32()),
        "skip": words(level, ratio.is_null().to_numpy(zero_copy_only=False), SKIPS),
        "seconds": seconds,
        "context": words(
            organic.fill_null(0).to_numpy(zero_copy_only=False) != 0,
            organic.is_null().to_numpy(zero_copy_only=False),
            CONTEXTS,
        ),
        **{name: lookup(items) for name, lookup in lookups.items()},
    }


def words(codes: np.ndarray, unknown: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8), mask=unknown), pa.array(names))


class Seen:
    """Which track ids there were: a byte for each number up to the largest one."""

    def __init__(self) -> None:
        self.flags = np.zeros(0, bool)

    def add(self, ids: np.ndarray) -> None:
        if len(ids) and (most := int(ids.max()) + 1) > len(self.flags):
            self.flags = np.concatenate([self.flags, np.zeros(most - len(self.flags), bool)])
        self.flags[ids] = True

    def values(self) -> np.ndarray:
        return np.flatnonzero(self.flags)


class Mapping(NamedTuple):
    """The artist or album of each track."""

    ids: np.ndarray
    """int64, by track id; -1 where there is none."""

    def __call__(self, items: np.ndarray) -> pa.Array:
        found = np.full(len(items), -1)
        inside = items < len(self.ids)
        found[inside] = self.ids[items[inside]]
        return pa.array(np.maximum(found, 0).astype(np.uint32), mask=found < 0)


def read_mapping(file: Path, column: str) -> Mapping:
    """Of several artists or albums of a track, that of its first row.

    Raises:
        UserError: a column is missing, holds no ids, or lacks one.
    """
    columns = ["item_id", column]
    source = open_parquet(file, columns)
    check_numbers(source, file, columns)
    with reading(file):
        table = source.read(columns)
    for name in columns:
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise UserError(f"{file}, row {row + 1}: {name} is missing; download the file again")
        check_ids(file, name, table[name])
    items = table["item_id"].to_numpy()[::-1]
    ids = np.full(int(items.max()) + 1 if len(items) else 0, -1)
    ids[items] = table[column].to_numpy()[::-1]
    return Mapping(ids)


def copy_embeddings(file: Path, target: Path, played: np.ndarray) -> str:
    """Write `track_id` and `embed` of the tracks that were played; returns a note.

    Raises:
        UserError: no column of lists, or a list of another width than the first one.
    """
    with reading(file):
        source = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    names = source.schema_arrow.names
    if missing := [name for name in ("item_id", "embed") if name not in names]:
        raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(names)}")
    if not pa.types.is_nested(source.schema_arrow.field("embed").type):
        raise UserError(f"{file}: column embed holds no lists; download the file again")
    schema = pa.schema([("track_id", pa.string()), ("embed", pa.list_(pa.float32()))])
    wanted, width, n, n_before = pa.array(played), None, 0, 0
    with (
        reading(file),
        pq.ParquetWriter(target, schema) as writer,
        tqdm(total=source.metadata.num_rows, desc="embeddings", unit=" tracks", unit_scale=True) as bar,
    ):
        for batch in source.iter_batches(EMBEDDINGS_A_BATCH, columns=["item_id", "embed"]):
            widths = pc.list_value_length(batch["embed"])
            width = width or pc.first(widths).as_py()  # the first that is not null
            if wrong := pc.index(pc.not_equal(widths, width), True).as_py() + 1:
                raise UserError(
                    f"{file}, row {n_before + wrong}: embed has {widths[wrong - 1]} numbers where the first has "
                    f"{width}; download the file again"
                )
            n_before += len(batch)
            bar.update(len(batch))
            keep = pc.is_in(batch["item_id"].cast(pa.int64()), value_set=wanted)
            batch = batch.filter(pc.and_(keep, batch["embed"].is_valid()))
            vectors = batch["embed"].cast(schema.field("embed").type)
            writer.write_table(pa.table([batch["item_id"].cast(pa.string()), vectors], schema=schema))
            n += len(batch)
    return f"{len(played) - n} of {len(played)} tracks have no embedding"
