"""Exports as people get them: a zip, a folder of what was in it, a folder of several, or one file.

They are read a bit at a time. Nothing is unpacked to a name that an archive chooses.
"""

from __future__ import annotations

import codecs
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.core.errors import UserError
from utils.preprocessing.csv_files import hidden, walk

BLOCK = 1 << 20
"""Bytes that are read together."""
MAX_ROW = 1 << 20
"""Letters of the longest entry or line; those of real exports have a few thousand at most."""
MAX_BYTES = 16 << 30
"""Bytes, unpacked, of the files of an export together."""
MAX_RATIO, SMALL = 250, 64 << 20
"""How much smaller a zip may make a file of more than `SMALL` bytes; plays in JSON become 20 times smaller."""
MAX_DEPTH = 3
"""Zips within zips."""
MOST_SHARED = 0.5
"""Share of the plays of two listeners that are the same, from which they are taken for one."""
FEW = 20
"""So many same plays of two listeners may be chance, if each has others, too."""


class ExportFile(NamedTuple):
    """A file of an export."""

    path: Path
    """The file itself, or the zip that holds it."""
    member: zipfile.ZipInfo | None
    """Its entry in the zip."""
    name: str
    """Its name relative to the input, with the zip's name where there is one."""
    owner: str
    """The folder or the zip right below a folder of exports, without .zip; nothing for other inputs."""
    size: int
    """Bytes, unpacked."""

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.name.replace("\\", "/")).name

    @property
    def where(self) -> str:
        """What an error message calls it."""
        if self.member is None:
            return str(self.path)
        return f"{self.path}, in it {self.member.filename}"


def export_files(path: Path, work: Path) -> list[ExportFile]:
    """All files of an input, in order of their names; hidden ones, and what macOS adds to zips, are passed over.

    Args:
        path: a file, a zip, or a folder of them.
        work: zips within zips are copied here.

    Raises:
        UserError: no such input, a link to nothing, a zip that is damaged, encrypted, or holds unsafe names.
    """
    if not path.exists():
        raise UserError(f"{path} {'is a link to nothing' if path.is_symlink() else 'does not exist'}")
    if not path.is_dir():
        return [file._replace(owner="") for file in expand(path, path.name, "", work)]
    found: list[ExportFile] = []
    for file in sorted(walk(path)):
        parts = file.relative_to(path).parts
        owner = parts[0] if len(parts) > 1 else file.stem if is_zip(file.name) else ""
        found += expand(file, "/".join(parts), owner, work)
    return found


def is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def expand(path: Path, name: str, owner: str, work: Path, depth: int = 0) -> Iterator[ExportFile]:
    """A file, or the files in a zip and in the zips in it."""
    if not is_zip(path.name):
        yield ExportFile(path, None, name, owner, path.stat().st_size)
        return
    if depth > MAX_DEPTH:
        raise UserError(f"{name}: zips within zips within zips; unpack it")
    for info in members(path):
        file = ExportFile(path, info, f"{name}/{info.filename}", owner, info.file_size)
        if not is_zip(info.filename):
            yield file
            continue
        check_sizes([file])
        inner = work / f"inner_{depth}_{len(list(work.iterdir()))}.zip"
        with opened(file) as packed, inner.open("wb") as copy:
            shutil.copyfileobj(packed, copy, BLOCK)
        yield from expand(inner, file.name, owner, work, depth + 1)


def members(path: Path) -> list[zipfile.ZipInfo]:
    """The files in a zip, in order of their names.

    Raises:
        UserError: it is damaged or encrypted, or a name in it leads out of it.
    """
    with mended(path), zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
    for info in infos:
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
            raise UserError(f"{path} holds {info.filename!r}, a name that leads out of the zip; do not trust this file")
        if info.flag_bits & 1:
            raise UserError(f"{path} is encrypted; unpack it with its password, and give the folder")
    visible = [info for info in infos if not any(hidden(part) for part in info.filename.split("/"))]
    return sorted(visible, key=lambda info: info.filename)


def check_sizes(files: list[ExportFile]) -> None:
    """
    Raises:
        UserError: more than any real export holds; nothing has been unpacked.
    """
    for file in files:
        if file.member and file.size > SMALL and file.size > MAX_RATIO * file.member.compress_size:
            raise UserError(
                f"{file.where} would unpack to {file.size:,} bytes, over {MAX_RATIO} times its packed size; "
                "that is no export. If you trust it, unpack it and give the folder"
            )
    if (total := sum(file.size for file in files)) > MAX_BYTES:
        raise UserError(f"{files[0].path}: {total:,} bytes of plays are more than the {MAX_BYTES:,} of any real export")


@contextmanager
def mended(path: Path | str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a `UserError` that names it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200] or "it ends too early"
        raise UserError(f"{path} is cut off, damaged or no zip ({reason}); download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


class Counted:
    """A binary stream that moves a progress bar."""

    def __init__(self, stream: IO[bytes], bar: tqdm[Any] | None) -> None:
        self.stream, self.bar = stream, bar

    def read(self, size: int = -1) -> bytes:
        return self.moved(self.stream.read(size))

    def readline(self, limit: int = -1) -> bytes:
        return self.moved(self.stream.readline(limit))

    def moved(self, data: bytes) -> bytes:
        if self.bar is not None:
            self.bar.update(len(data))
        return data


@contextmanager
def opened(file: ExportFile, bar: tqdm[Any] | None = None) -> Iterator[Counted]:
    """The bytes of a file; what goes wrong while it is read is a `UserError`."""
    with mended(file.where), ExitStack() as stack:
        if file.member is None:
            yield Counted(stack.enter_context(file.path.open("rb")), bar)
        else:
            archive = stack.enter_context(zipfile.ZipFile(file.path))
            yield Counted(stack.enter_context(archive.open(file.member)), bar)


def progress(files: list[ExportFile]) -> tqdm[Any]:
    """A bar over the bytes of some files, after a look at their sizes."""
    check_sizes(files)
    total = sum(file.size for file in files)
    return tqdm(total=total, desc="reading", unit="B", unit_scale=True, leave=False)


def listeners(path: Path, files: list[ExportFile]) -> dict[str, str]:
    """Owner -> what the listener is called: one export is one listener, those in a folder have the names they have."""
    owners = sorted({file.owner for file in files})
    if len(owners) <= 1:
        return dict.fromkeys(owners, "listener")
    return {owner: owner or path.resolve().name for owner in owners}


def check_listeners(path: Path, plays: Mapping[str, Collection[Hashable]]) -> None:
    """
    Args:
        plays: name of each listener -> what tells its plays apart, each once.

    Raises:
        UserError: two listeners are one: an export that was downloaded twice, a zip beside the folder that was in it,
            an older and a newer export of one account.
    """
    if len(plays) <= 1:
        return
    hashes = {
        name: np.unique(np.fromiter(map(hash, theirs), np.int64, len(theirs)))
        for name, theirs in plays.items()
        if theirs
    }
    names = sorted(hashes)
    for i, one in enumerate(names):
        for other in names[:i]:
            fewer = min(len(hashes[one]), len(hashes[other]))
            same = len(np.intersect1d(hashes[one], hashes[other], assume_unique=True))
            if same == len(hashes[one]) == len(hashes[other]) or (same > FEW and same > MOST_SHARED * fewer):
                raise UserError(
                    f"{path}: {other} and {one} have {same} plays in common, so they are one listener; remove one of "
                    "them, or put both into one folder in it"
                )


def by_number(file: ExportFile) -> tuple[str, int, str]:
    """Sorts the numbered files of each owner: endsong_2 before endsong_10."""
    numbers = re.findall(r"\d+", Path(file.file_name).stem)
    return file.owner, int(numbers[-1]) if numbers else -1, file.name


def numbered_files(path: Path, files: list[ExportFile], suffix: str, names: re.Pattern[str]) -> list[ExportFile]:
    """The one file that was given, if it has the suffix; else those with such names, in order of their numbers."""
    if path.is_file() and path.suffix.lower() == suffix:
        return files
    return sorted((file for file in files if names.fullmatch(file.file_name)), key=by_number)


def json_rows(file: ExportFile, bar: tqdm[Any] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place (from 1) and content of the entries of a JSON list of objects.

    Raises:
        UserError: it is no such list (file and line), or is not UTF-8.
    """
    with opened(file, bar) as stream:
        text = JsonText(file.where, stream.read)
        if (first := text.peek()) != "[":
            found = "is empty" if not first else "holds a JSON object" if first == "{" else "holds no JSON"
            raise UserError(f"{file.where} {found}, where a list of plays is expected; download the export again")
        n, mark = 0, "["
        while mark != "]":
            text.at += 1
            if n == 0 and text.peek() == "]":
                mark = "]"
                break
            value, n = text.value(), n + 1
            if not isinstance(value, dict):
                raise UserError(f"{file.where}, entry {n}: {str(value)[:40]!r} is no play (a JSON object)")
            yield n, value
            mark = text.peek()
            if mark not in ("]", ","):
                raise text.wrong("Expecting ',' or ']'", text.at)
        text.at += 1
        if text.peek():
            raise text.wrong("More than one list", text.at)


class JsonText:
    """JSON that is decoded one value at a time, as it is read.

    Args:
        where: what an error message calls it.
        read: the next bytes, at most as many as it is told; none at the end.
    """

    def __init__(self, where: str, read: Callable[[int], bytes]) -> None:
        self.where, self.read = where, read
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.scan = json.JSONDecoder().raw_decode
        self.buffer, self.at, self.lines, self.ended = "", 0, 0, False

    def fill(self) -> None:
        """Forget what was decoded, read on."""
        self.lines += self.buffer.count("\n", 0, self.at)
        data = self.read(BLOCK)
        self.ended = not data
        try:
            self.buffer = self.buffer[self.at :] + self.decode(data, self.ended)
        except UnicodeDecodeError:
            raise UserError(f"{self.where}, below line {self.lines + 1}: this is not UTF-8; export it again") from None
        self.at = 0

    def peek(self) -> str:
        """The next letter that is no space; nothing at the end."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in " \t\r\n":
                    return self.buffer[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.fill()

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, self.at = self.scan(self.buffer, self.at)
                return value
            except json.JSONDecodeError as error:
                message, place = error.msg, error.pos
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
                raise self.wrong(str(error), self.at) from None
            if self.ended or len(self.buffer) - self.at > MAX_ROW:
                raise self.wrong(message, place)
            self.fill()

    def wrong(self, message: str, place: int) -> UserError:
        line = self.lines + self.buffer.count("\n", 0, place) + 1
        if self.ended and (place >= len(self.buffer.rstrip()) or message.startswith("Unterminated")):
            return UserError(f"{self.where} is cut off in line {line}; download it again")
        return UserError(f"{self.where}, line {line}: not valid JSON ({message}); download the export again")


def lines(file: ExportFile, bar: tqdm[Any] | None = None) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of the lines of a file, with their ends.

    Raises:
        UserError: a line that is not UTF-8, or too long (file and line).
    """
    with opened(file, bar) as stream:
        n = 0
        while line := stream.readline(MAX_ROW + 1):
            n += 1
            if len(line) > MAX_ROW:
                raise UserError(f"{file.where}, line {n} has more than {MAX_ROW:,} bytes; that is no export")
            try:
                yield n, line.decode("utf-8-sig" if n == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{file.where}, line {n}: this is not UTF-8; export it again") from None
