"""What tests of the door for tables of plays share: writing a table, and reading what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from utils.core.errors import UserError
from utils.data import vocab
from utils.data.dataset import Dataset
from utils.datapreprocessing import main
from utils.preprocessing.options import Config, PlaysColumns
from utils.preprocessing.outside_plays import read_plays

COLUMNS = PlaysColumns(user="user", time="ts", track="track")
BY_SESSION = PlaysColumns(session="s", position="at", track="track")
HEADER = "user,ts,track\n"
DAYS = [f"2026-02-{day:02d}T10:{minute:02d}:00Z" for day in range(1, 9) for minute in (0, 1)]
LINES = [f"u1,{time},{track}\n" for time, track in zip(DAYS, "ab" * 8, strict=True)]
"""Eight sessions a, b of one listener, a day each."""
SESSIONS = {
    "train": {f"u1_{i}": ["a", "b"] for i in range(1, 7)},
    "valid": {"u1_7": ["a", "b"]},
    "test": {"u1_8": ["a", "b"]},
}
"""What becomes of `LINES`."""


def read_sessions(out: Path) -> dict[str, dict[str, list[str]]]:
    """{split: {session: its tracks}}, in order."""
    names = pd.read_parquet(out / "tracks.parquet").set_index("index")["track_id"].to_dict() | {vocab.UNK: "?"}
    found = {}
    for split in ("train", "valid", "test"):
        ids = pd.read_parquet(out / split / "sessions.parquet")["session_id"]
        offsets = np.load(out / split / "offsets.npy")
        tracks = [names[i] for i in np.load(out / split / "tracks.npy").tolist()]
        found[split] = {name: tracks[offsets[i] : offsets[i + 1]] for i, name in enumerate(ids)}
    return found


def make(
    path: Path, columns: PlaysColumns = COLUMNS, *, out: Path | None = None, **options: Any
) -> tuple[dict[str, Any], dict]:
    """`dataset.json` and the sessions of a table of plays; what `evaluate.py --plays` reads of it is the same."""
    out = out or path.parent / "made" / "data"
    options.setdefault("min_count", 1)
    info = main(Config(out=out, plays=path, plays_columns=columns, overwrite=True, **options))
    dataset, found = Dataset.open(out), read_sessions(out)
    if options.keys() == {"min_count"}:
        chunk, _ = read_plays(path, columns, pq.read_table(out / "tracks.parquet"))
        in_order = {name: tracks for split in found.values() for name, tracks in split.items()}
        ends = np.cumsum(chunk.lengths)
        outside = [dataset.track_names[ids].tolist() for ids in np.split(chunk.tracks, ends[:-1])]
        assert dict(zip(chunk.session_id.to_pylist(), outside, strict=True)) == {
            name: ["<unk>" if track == "?" else track for track in tracks] for name, tracks in in_order.items()
        }
    return info, found


def error(path: Path, columns: PlaysColumns = COLUMNS, **options: Any) -> str:
    """The message of both commands, which differ in the options that they advise."""
    out = path.parent / "made" / "nothing"
    with pytest.raises(UserError) as outside:
        read_plays(path, columns, pa.table({"track_id": ["a"], "index": pa.array([5], pa.int32())}))
    assert "--min_session_length" not in str(outside.value)
    assert "--drop_rows" not in str(outside.value)
    with pytest.raises(UserError) as caught:
        main(Config(out=out, plays=path, plays_columns=columns, overwrite=True, **options))
    assert not out.exists()
    return str(caught.value)


def funnel(info: dict[str, Any]) -> dict[str, int]:
    """{reason: rows}; every row that was read is kept or dropped, once."""
    rows = {row["reason"]: row["rows"] for row in info["funnel"]}
    assert rows["read"] == rows["kept"] + sum(n for reason, n in rows.items() if reason.startswith("dropped"))
    assert rows["read"] == sum(source["rows"] for source in info["sources"])
    assert rows["kept"] == sum(split["events"] for split in info["splits"].values())
    return rows


def csv_of(path: Path, lines: Iterable[str] = LINES, header: str = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "".join(lines))
    return path
