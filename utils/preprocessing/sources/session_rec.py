"""Tables of session-rec and GRU4Rec: text with a header, tabs or commas, with SessionId, ItemId and Time in any order.

session-rec (github.com/rn5l/session-rec, `evaluation/loader.py`) reads NAME_train_full.txt and NAME_test.txt, and to
tune NAME_train_tr.txt and NAME_train_valid.txt, which NAME_train_full.txt is divided into; slices have their number
before the suffix (NAME_train_full.0.txt). With users it reads NAME_train.csv and NAME_test.csv, and to tune
NAME_train_valid.csv and NAME_test_valid.csv, with columns user_id, session_id, item_id and created_at. GRU4Rec
(github.com/hidasib/GRU4Rec) writes the former. Times are seconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from utils.core.errors import UserError
from utils.preprocessing.csv_files import hidden
from utils.preprocessing.engine import connect
from utils.preprocessing.sources.plays import SourceOptions, SourcePlays, check_options, columns_of, no_plays, source_of
from utils.preprocessing.sources.text_tables import (
    Layout,
    column_names,
    copy_plays,
    first_lines,
    split,
)

MEMORY = "1GB"
"""Of the engine; files stream through it."""
PART = re.compile(
    r"(?P<name>.+?)_(?P<part>train_full|train_tr|train_valid|test_valid|train|valid|test)(?P<slice>\.\d+)?"
    r"\.(?:txt|csv|tsv)(?:\.gz)?",
    re.IGNORECASE,
)
TUNED: tuple[Mapping[str, str], ...] = (
    {"train": "train_tr", "valid": "train_valid", "test": "test"},
    {"train": "train_valid", "valid": "test_valid", "test": "test"},
    {"train": "train", "valid": "valid", "test": "test"},
    {"train": "train_full", "test": "test"},
    {"train": "train", "test": "test"},
)
"""Split -> part, the best first."""
NAMES = {
    "session": ("sessionid", "session_id", "session"),
    "track": ("itemid", "item_id", "item", "trackid", "track_id", "songid", "song_id"),
    "time": ("time", "timestamp", "created_at", "ts"),
    "user": ("userid", "user_id", "user"),
}
"""Column of ours -> names in headers."""


def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
    """Plays of one table, or of the tables of a dataset, whose splits are kept.

    Args:
        path: a table, a folder with those of one dataset, or such a folder and the common start of their names.

    Raises:
        UserError: no such file, several datasets, columns missing.
    """
    check_options(options, "session-rec")
    parts = find_parts(path)
    layouts = {part: recognise(file) for part, file in parts.items()}
    given = [name for name in ("session", "user", "time") if all(name in each.columns for each in layouts.values())]
    names = [*given, "track", *([] if "time" in given else ["position"]), *(["split"] if len(parts) > 1 else [])]
    files, sources = [], []
    engine = connect(memory_limit=MEMORY, folder=work)
    for part, file in parts.items():
        target = work / f"{part or 'all'}.parquet"

        def extend(columns: dict[str, pa.Array], part: str = part) -> dict[str, pa.Array]:
            return columns | {"split": pa.array([part] * len(columns["track"]), pa.string())}

        rows = copy_plays(engine.connection, file, layouts[part], target, work, names=names, extend=extend)
        files.append(target)
        sources.append(source_of(path, file, rows))
    engine.connection.disconnect()
    if not sum(source["rows"] for source in sources):
        raise no_plays(path, [])
    notes = ["splits are those of the files: " + ", ".join(f"{part} {file.name}" for part, file in parts.items())]
    return SourcePlays(files, columns_of(names), sources, [], notes if len(parts) > 1 else [])


def find_parts(path: Path) -> dict[str, Path]:
    """Split -> file; the split of a single table is nothing.

    Raises:
        UserError: nothing there, several datasets or slices, or parts that make no splits.
    """
    if path.is_file():
        return {"": path}
    folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
    if not folder.is_dir():
        raise UserError(f"{path} does not exist")
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not hidden(file.name)]
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for file in files:
        if match := PART.fullmatch(file.name):
            key = (match["name"], match["slice"] or "")
            if not start or start in (match["name"], match["name"] + key[1]):
                found.setdefault(key, {})[match["part"].lower()] = file
    tables = [file for file in files if file.name.lower().removesuffix(".gz").endswith((".txt", ".csv", ".tsv"))]
    if not found and not start and len(tables) == 1:
        return {"": tables[0]}
    if not found and start:
        raise UserError(f"{path} does not exist, nor do tables such as {start}_train_full.txt and {start}_test.txt")
    if not found:
        raise UserError(f"{path} holds no tables such as NAME_train_full.txt and NAME_test.txt; give one file")
    if len(found) > 1:
        each = ", ".join(str(folder / (name + number)) for name, number in found)
        raise UserError(f"{path} holds several datasets; give one of {each}")
    (there,) = found.values()
    for parts in TUNED:
        if all(part in there for part in parts.values()):
            return {split: there[part] for split, part in parts.items()}
    if len(there) == 1:
        return {"": next(iter(there.values()))}
    raise UserError(
        f"{path} has the parts {', '.join(there)}, which are no splits; expected train_full and test, with train_tr "
        "and train_valid or without them, or train and test, with valid or without it"
    )


def recognise(file: Path) -> Layout:
    """
    Raises:
        UserError: no text, or a header without sessions or items.
    """
    line = first_lines(file)[0]
    delimiter = "\t" if "\t" in line else ";" if ";" in line and "," not in line else ","
    header = split(line, delimiter)
    columns = column_names(header, NAMES)
    for name, usual in (("session", "SessionId"), ("track", "ItemId")):
        if name not in columns:
            raise UserError(
                f"{file}, line 1: no column {usual}; it has {', '.join(header)}. Separate columns with tabs or commas, "
                "and name them in the first line"
            )
    return Layout(columns, delimiter, header=True)
