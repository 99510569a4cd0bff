"""Outputs that are either whole or absent: everything is written under a temporary name, then renamed."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.core.errors import UserError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, delete it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False, holds: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds, delete it otherwise.

    Args:
        path: the folder.
        overwrite: replace it if it is there.
        holds: a file that every such folder holds; a folder without it is somebody else's, and is not replaced.

    Raises:
        UserError: `path` exists, and `overwrite` is false or it is no such folder.
    """
    path = path if path.name else path.resolve()  # "." has no name
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another folder or add --overwrite true")
    if path.exists() and not (path / holds).exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} holds no {holds}, so it is not replaced; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _is_alive(left.name.split(".")[-2]):  # left by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):  # another user's process, or not a number
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: no such file, or not JSON (names the line).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None


def only(path: Path) -> str:
    """What names `path` and no other file to DuckDB, which takes `[`, `*` and `?` for patterns.

    Raises:
        UserError: the name is not UTF-8, as DuckDB needs it.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!a}: the name of this file is not UTF-8; rename it") from None
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in os.path.abspath(path))
