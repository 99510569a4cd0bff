"""Logs on their way into a dataset: each is parsed once, and its part is kept on disk until the dataset is complete.

A part holds what a log says and not what a protocol makes of it. So it serves every protocol and every option, and
after a run that was interrupted, or that failed, the next run goes on with its parts:

    <out>.parts/log_0_20180715_000000000000/
        part.json          the log that it was made from, and the code that made it
        sessions.parquet   session_id, day, plays int64, complete bool (M,)
        tracks.parquet     track_id (K,)
        tracks.npy         int32 (N,): places in tracks.parquet
        skips.npy log.npy  uint8 (N,) and (N, L), as in the dataset

A part is whole or absent (it is written under a temporary name), and used only if the log and the code are the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core.errors import UserError
from utils.core.files import atomic_folder, write_json
from utils.data import schema
from utils.preprocessing import csv_files, mssd

ENDS = 1 << 16
"""Bytes at each end of a log that are compared; the last ones of a .gz hold the checksum of the whole."""


class Part(NamedTuple):
    """One log after parsing, on disk. N plays, M sessions, K tracks; plays by session and position."""

    log: mssd.LogFile
    folder: Path
    rows: int

    def sessions(self) -> pa.Table:
        """`session_id`, `day`, `plays` int64, `complete` bool (M,)"""
        return pq.read_table(self.sessions_file)

    @property
    def sessions_file(self) -> Path:
        return self.folder / "sessions.parquet"

    def track_ids(self) -> pa.Array:
        """string (K,)"""
        return pq.read_table(self.folder / "tracks.parquet")["track_id"].combine_chunks()

    def tracks(self) -> np.ndarray:
        """int32 (N,): places in `track_ids`; memory-mapped."""
        return np.load(self.folder / "tracks.npy", mmap_mode="r")

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Skips uint8 (N,) and log uint8 (N, L); memory-mapped."""
        skips, log = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("skips", "log"))
        return skips, log


@contextmanager
def parts_folder(out: Path) -> Iterator[Path]:
    """`<out>.parts`, for this process alone: removed if the block succeeds, and otherwise kept if it holds a part.

    Raises:
        UserError: something else is in it, or another process works there.
    """
    out = out if out.name else out.resolve()  # "." has no name
    if not out.name:
        raise UserError(f"--out {out} is no place for a dataset; choose a folder inside")
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if not path.name.startswith(".") and not (path / "part.json").exists():
            raise UserError(f"{path} is no part of a dataset; move it away, or choose another --out")
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is making {out}; wait for it, or choose another --out") from None
        removed = folder.parent.glob(f".{folder.name}.*.old")
        for unfinished in (*folder.glob(".log_*"), *removed):  # left by a process that was killed
            shutil.rmtree(unfinished)
        try:
            yield folder
        except BaseException:
            n_parts = len(list(folder.glob("*/part.json")))
            if n_parts:
                message = f"{n_parts} parsed files are kept in {folder}: the same command goes on from there"
                print(message, file=sys.stderr)
            else:
                shutil.rmtree(folder)
            raise
        gone = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        os.replace(folder, gone)  # in one step, so that no half of a part is ever found
        shutil.rmtree(gone, ignore_errors=True)  # the next run with this --out removes what is left


@cache
def code_version() -> str:
    """A hash of everything that decides what is in a part."""
    digest = hashlib.blake2b(pa.__version__.encode(), digest_size=16)
    for path in (csv_files.__file__, mssd.__file__, schema.__file__, __file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def identity(log: mssd.LogFile) -> dict[str, Any]:
    """What has to be the same for a part to be used: name, size, time and both ends of the log, and the code."""
    state = log.path.stat()
    with log.path.open("rb") as file:
        ends = file.read(ENDS)
        file.seek(max(0, state.st_size - ENDS), os.SEEK_SET)
        ends += file.read(ENDS)
    return {
        "file": log.path.name,
        "bytes": state.st_size,
        "modified_ns": state.st_mtime_ns,
        "ends": hashlib.blake2b(ends, digest_size=16).hexdigest(),
        "code": code_version(),
    }


def part_path(folder: Path, log: mssd.LogFile) -> Path:
    return folder / log.path.name.removesuffix(".gz").removesuffix(".csv")


def find_part(folder: Path, log: mssd.LogFile) -> Part | None:
    """The part of `log` in `folder`, if there is one that is whole and of this very log and code."""
    path = part_path(folder, log)
    try:
        found = json.loads((path / "part.json").read_text(encoding="utf-8"))
        sizes = {name: (path / name).stat().st_size for name in found["files"]}
        same = found["log"] == identity(log) and found["files"] == sizes
        return Part(log, path, found["rows"]) if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def make_part(folder: Path, log: mssd.LogFile) -> Part:
    """Parse a log and leave its part in `folder`, in place of an older one.

    Raises:
        UserError: see `mssd.read_log` and `mssd.days_of`.
    """
    source = identity(log)  # before the parse: a log that changes meanwhile does not match it afterwards
    parsed = mssd.read_log(log.path)
    sessions = {
        "session_id": parsed.session_ids,
        "day": mssd.days_of(log, parsed.session_ids),
        "plays": parsed.lengths,
        "complete": parsed.complete,
    }
    path = part_path(folder, log)
    with atomic_folder(path, overwrite=True, holds="part.json") as part:
        pq.write_table(pa.table(sessions), part / "sessions.parquet", use_dictionary=["day"], compression="none")
        tracks = pa.table({"track_id": parsed.track_ids})
        pq.write_table(tracks, part / "tracks.parquet", use_dictionary=False, compression="none")
        for name in ("tracks", "skips", "log"):
            np.save(part / f"{name}.npy", getattr(parsed, name))
        files = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
        write_json(part / "part.json", {"log": source, "rows": len(parsed.tracks), "files": files})
    pa.default_memory_pool().release_unused()
    return Part(log, path, len(parsed.tracks))
