"""RecBole's atomic files: NAME.inter and NAME.item, tables with tabs and a header of `field:type`.

RecBole's guide (recbole.io/docs/user_guide/data/atomic_files.html) names the types token, token_seq, float and
float_seq; parts of a sequence are separated by spaces. `benchmark_filename` of its settings (data_args.html) names
splits: NAME.train.inter, NAME.valid.inter, NAME.test.inter. RecSysDatasets, which most files come from, writes fields
as they are, without quotes, and `nan` for what is missing (conversion_tools/src/base_dataset.py), so a quote is a
letter here.

The session datasets (diginetica-session, tmall-session, nowplaying-session) have examples instead of plays: a row is
`session_id`, `item_id_list` (a history) and `item_id` (what followed), and each start of a session is a row. Of these
only the longest is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing.csv_files import hidden
from utils.preprocessing.engine import connect
from utils.preprocessing.sources.plays import (
    SourceOptions,
    SourcePlays,
    check_options,
    columns_of,
    no_plays,
    source_of,
    write_plays,
)
from utils.preprocessing.sources.text_tables import Layout, copy_plays, first_lines, open_rows

MEMORY = "1GB"
"""Of the engine; files stream through it."""
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
"""Word in the name of a file -> split."""
TYPES = ("token", "token_seq", "float", "float_seq")
HISTORY = "item_id_list"
ITEMS = ("item_id", "track_id", "song_id", "music_id", "artist_id")
"""Fields that hold what is played, the best first."""
NAMES = {
    "name": ("name", "title", "track_name", "song_name", "music_name", "track", "song", "movie_title"),
    "artist": ("artist", "artist_name", "singer"),
    "album": ("album", "album_name"),
}
EARLIER = "an earlier start of a session that is there as a whole"
MISSING = ("", "nan", "NaN")


class Items(NamedTuple):
    """What NAME.item says of tracks."""

    ids: pa.Array
    names: dict[str, pa.Array]
    """name, artist, album -> of each of `ids`."""
    features: Path | None
    notes: list[str]


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """Plays of NAME.inter, or of the files of its splits, which are kept; names and numbers of NAME.item.

    Sessions are those of `session_id`; else they are made from `user_id` and `timestamp`. Where splits are given, or
    times are missing, all that a user has in a file is one session, as RecBole takes it.

    Raises:
        UserError: no such file, several datasets, another header, no field of items.
    """
    check_options(options, "recbole")
    parts = find_parts(path)
    heads = {part: fields_of(file) for part, file in parts.items()}
    first = next(iter(parts))
    item = item_field(parts[first], heads[first])
    for part, file in parts.items():
        if heads[part] != heads[first]:
            raise UserError(f"{file} has other fields than {parts[first]}: {', '.join(heads[part])}")
    engine = connect(memory_limit=MEMORY, folder=work)
    item_file = next(iter(parts.values())).with_name(parts[first].name.split(".")[0] + ".item")
    has_items = item_file.exists()
    items = read_items(engine.connection, item_file, item, work) if has_items else Items(pa.array([]), {}, None, [])
    is_examples = HISTORY in heads[first]
    names = names_of(heads[first], splits=len(parts) > 1, names=[*items.names], is_examples=is_examples)
    files, sources, n_earlier = [], [], 0
    for part, file in parts.items():
        target = work / f"plays_{part or 'all'}.parquet"
        if is_examples:
            rows, earlier = copy_examples(file, heads[part], item, part, target, names, items)
            n_earlier += earlier
        else:
            layout = layout_of(heads[part], item)

            def extend(columns: dict[str, pa.Array], part: str = part) -> dict[str, pa.Array]:
                return with_sessions(with_names(columns, items), part)

            rows = copy_plays(engine.connection, file, layout, target, work, names=names, extend=extend)
        files.append(target)
        sources.append(source_of(path, file, rows))
    engine.connection.disconnect()
    if not any(pq.read_metadata(file).num_rows for file in files):
        raise no_plays(path, [])
    notes = [*items.notes]
    if "time" not in names:
        notes.append("there are no times: plays are in order of the file")
    if len(parts) > 1:
        notes.append("splits are those of the files: " + ", ".join(f"{split} {f.name}" for split, f in parts.items()))
    dropped = [(EARLIER, n_earlier)] if n_earlier else []
    features_file = item_file if items.features else None
    return SourcePlays(files, columns_of(names), sources, dropped, notes, items.features, features_file)


def find_parts(path: Path) -> dict[str, Path]:
    """Split -> file; the split of NAME.inter is nothing.

    Raises:
        UserError: nothing there, several datasets, or files that make no splits.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_dir():
        return {"": path}
    files = [file for file in sorted(path.iterdir()) if file.name.endswith(".inter") and file.is_file()
             and not hidden(file.name)]  # fmt: skip
    if not files:
        raise UserError(f"{path} holds no .inter file; give the folder of a RecBole dataset, or its .inter file")
    if len({file.name.split(".")[0] for file in files}) > 1:
        raise UserError(f"{path} holds several datasets; give one of {', '.join(map(str, files))}")
    if len(files) == 1:
        return {"": files[0]}
    parts: dict[str, Path] = {}
    for file in files:
        word = ".".join(file.name.split(".")[1:-1])
        split = SPLITS.get(word.lower())
        if split is None or split in parts:
            raise UserError(
                f"{path} holds {', '.join(each.name for each in files)}; expected one NAME.inter, or NAME.train.inter, "
                "NAME.valid.inter and NAME.test.inter; remove the others, or give one file"
            )
        parts[split] = file
    if not {"train", "test"} <= set(parts):
        raise UserError(f"{path} lacks NAME.train.inter or NAME.test.inter; give one file to read it alone")
    return {split: parts[split] for split in ("train", "valid", "test") if split in parts}


def fields_of(file: Path) -> dict[str, str]:
    """Field -> type, in order.

    Raises:
        UserError: the header is of another form, or names a field twice.
    """
    header = first_lines(file)[0].split("\t")
    found = [name.strip().rpartition(":") for name in header]
    wrong = [name for name, (field, _, kind) in zip(header, found, strict=True) if not field or kind not in TYPES]
    if wrong:
        raise UserError(
            f"{file}, line 1: {wrong[0]!r} is no field:type with one of the types {', '.join(TYPES)}; RecBole's files "
            f"are separated by tabs; the line is {', '.join(header)}"
        )
    if len({field for field, _, _ in found}) < len(found):
        raise UserError(f"{file}, line 1: a field is named twice: {', '.join(header)}")
    return {field: kind for field, _, kind in found}


def item_field(file: Path, fields: dict[str, str]) -> str:
    """
    Raises:
        UserError: there is none, or which one it is cannot be told.
    """
    for name in ITEMS:
        if name in fields:
            return name
    others = [name for name in fields if name.endswith("_id") and name not in ("user_id", "session_id")]
    if len(others) != 1:
        raise UserError(f"{file}, line 1: no field item_id; it has {', '.join(fields)}")
    return others[0]


def layout_of(fields: dict[str, str], item: str) -> Layout:
    ours = {"session_id": "session", "user_id": "user", "timestamp": "time", item: "track"}
    return Layout([ours.get(name, f"unused_{i}") for i, name in enumerate(fields)], "\t", header=True, quoted=False)


def names_of(fields: dict[str, str], *, splits: bool, names: Sequence[str], is_examples: bool) -> list[str]:
    """Columns of the plays.

    Raises:
        UserError: nothing tells who played.
    """
    if is_examples:
        return ["session", "position", "track", *names, *(["split"] if splits else [])]
    if not {"session_id", "user_id"} & set(fields):
        raise UserError(f"neither session_id nor user_id is among the fields {', '.join(fields)}")
    has_time, has_session = "timestamp" in fields, "session_id" in fields
    found = ["session"] if has_session or splits or not has_time else []
    found += [*(["user"] if "user_id" in fields else []), "time" if has_time else "position", "track", *names]
    return [*found, *(["split"] if splits else [])]


def with_sessions(columns: dict[str, pa.Array], part: str) -> dict[str, pa.Array]:
    """Adds the split, and sessions where there are none: all of a user's plays in this file."""
    n = len(columns["track"])
    added = {"split": pa.array([part] * n, pa.string())}
    if "session" not in columns:
        added["session"] = pc.binary_join_element_wise(columns["user"], part, "/") if part else columns["user"]
    return columns | added


def with_names(columns: dict[str, pa.Array], items: Items) -> dict[str, pa.Array]:
    if not items.names:
        return columns
    places = pc.index_in(columns["track"], value_set=items.ids)
    return columns | {name: values.take(places) for name, values in items.names.items()}


def copy_examples(
    file: Path, fields: dict[str, str], item: str, part: str, target: Path, names: Sequence[str], items: Items
) -> tuple[int, int]:
    """Write the longest examples of sessions as plays; returns plays and examples, those that were left out apart."""
    layout = layout_of(fields, item)
    history, track = list(fields).index(HISTORY), list(fields).index(item)
    earlier = 0

    def examples() -> Iterator[list[str]]:
        with tqdm(desc=file.name, unit=" rows", unit_scale=True, leave=False) as bar:
            for line, row in layout.records(file):
                if len(row) != len(fields):
                    raise UserError(f"{file}, line {line}: {len(row)} fields, not {len(fields)} ({', '.join(fields)})")
                bar.update()
                yield [*row[history].split(), row[track].strip()]

    def longest() -> Iterator[list[str]]:
        nonlocal earlier
        before: list[str] | None = None
        waiting: list[str] | None = None
        for example in examples():
            # One after the other, the starts of a session become shorter by one, or longer.
            if waiting is not None and waiting == example[:-1]:
                earlier += 1
                waiting = None
            elif before is not None and before[:-1] == example:
                earlier += 1
                before = example
                continue
            if waiting is not None:
                yield waiting
            before = waiting = example
        if waiting is not None:
            yield waiting

    def plays() -> Iterator[list[Any]]:
        for n, tracks in enumerate(longest()):
            session = f"{part}/{n:09}" if part else f"{n:09}"
            places = pc.index_in(pa.array(tracks), value_set=items.ids) if items.names else None
            more = [values.take(places).to_pylist() for values in items.names.values()]
            for i, name in enumerate(tracks):
                yield [session, float(i), name, *(values[i] for values in more), *([part] if "split" in names else [])]

    return write_plays(target, names, plays()) + earlier, earlier


def read_items(connection: Any, file: Path, item: str, work: Path) -> Items:
    """Names of tracks, and their numbers as features: all fields of floats, or else the one of float sequences.

    Raises:
        UserError: another header, no field of items, a float that is none, sequences of several lengths.
    """
    fields = fields_of(file)
    if item not in fields:
        raise UserError(f"{file}, line 1: no field {item}, as the .inter file has; it has {', '.join(fields)}")
    chosen = {ours: next((name for name in theirs if name in fields), "") for ours, theirs in NAMES.items()}
    floats = [name for name, kind in fields.items() if kind == "float" and name != item]
    sequences = [name for name, kind in fields.items() if kind == "float_seq"]
    numbers = floats or (sequences if len(sequences) == 1 else [])
    if "track_id" in numbers:  # what the ids are called in the table of features
        raise UserError(f"{file}: a field of numbers may not be called 'track_id'; rename or remove it")
    safe = {name: f"c{i}" for i, name in enumerate(fields)}
    layout = Layout([*safe.values()], "\t", header=True, quoted=False)
    with open_rows(connection, file, layout, work) as rows:
        wanted = [item, *filter(None, chosen.values()), *numbers]
        table = connection.to_pyarrow(rows.select(**{safe[name]: rows[safe[name]] for name in wanted}))
    columns = {name: table[safe[name]].combine_chunks() for name in wanted}
    columns = {name: pc.if_else(pc.is_in(values, pa.array(MISSING)), None, values) for name, values in columns.items()}
    there = columns[item].is_valid()
    rows_there = np.flatnonzero(there.to_numpy(zero_copy_only=False))
    columns = {name: values.filter(there) for name, values in columns.items()}
    names = {ours: columns[theirs] for ours, theirs in chosen.items() if theirs}
    features, notes = None, []
    if numbers:
        features = work / "features.parquet"
        found = {name: as_numbers(file, name, columns[name], is_list=not floats) for name in numbers}
        for name in [] if floats else numbers:
            check_widths(file, layout, name, found[name], rows_there)
        pq.write_table(pa.table({"track_id": columns[item], **found}), features)
    if left := [name for name in sequences if name not in numbers]:
        notes.append(f"fields of {file.name} that are not used: {', '.join(left)}")
    return Items(columns[item], names, features, notes)


def as_numbers(file: Path, name: str, values: pa.Array, *, is_list: bool) -> pa.Array:
    """
    Raises:
        UserError: something is no number.
    """
    try:
        if is_list:
            return pc.split_pattern(pc.utf8_trim_whitespace(values), " ").cast(pa.list_(pa.float32()))
        return values.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: field {name} holds something that is no number ({error})") from None


def check_widths(file: Path, layout: Layout, name: str, lists: pa.Array, rows: np.ndarray) -> None:
    """
    Args:
        rows: of each list, its row (from 0) in the file.

    Raises:
        UserError: a sequence of another length than the first one.
    """
    widths = pc.list_value_length(lists)
    first = pc.first(widths).as_py()  # that is not null
    if first is not None and (wrong := pc.index(pc.not_equal(widths, first), True).as_py()) >= 0:
        raise UserError(
            f"{layout.line(file, int(rows[wrong]))}: {name} has {widths[wrong]} numbers where the first has {first}; "
            "give every track as many"
        )
