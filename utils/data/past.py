"""What is known of each play beside its track: the listener's past, its neighbours, what was logged (docs/past.md).

`with_past` opens a dataset with these numbers. They are made on first use and kept under `<dataset>/past/`. Past
statistics of a play know only plays whose outcome was known when its session started; relations know only which tracks
the session has; details are what was logged of the play itself, for plays of the history.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.core.distributed import once
from utils.core.errors import UserError
from utils.core.files import atomic_folder, read_json, write_json
from utils.data import past_plays
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import PastConfig
from utils.data.past_plays import Catalogue, Facts, Plays, Timeline
from utils.data.schema import SPLITS

VERSION = 1
"""Of the formulas and the files; files of another version are not read."""
LARGEST = 5.0
"""Standardised numbers are clipped at plus and minus this."""

_KINDS = ("track", "artist", "album")
STATISTICS = (
    *("listener", "listener_long", "listener_short", "artist", "album", "track"),
    *("artist_month", "album_month", "track_month", "track_last", "transition", "hour", "quarter", "last_session"),
    *(
        f"{kind}_{what}"
        for kind in _KINDS
        for what in ("plays", "labelled", "plays_7", "plays_30", "since_play", "since_skip", "streak", "new")
    ),
    *("track_fraction", "track_length", "transition_labelled", "listener_since_play"),
)
"""Of the listener's past; those of a dataset are `past_columns`."""
SHARED_STATISTICS = (
    *("overall", "at_position"),
    *(f"{kind}_{what}" for kind in _KINDS for what in ("all", "all_recent", "plays", "labelled", "since_day")),
)
"""Of all sessions of earlier days, for a dataset without listeners."""
RELATIONS = (
    *(f"same_{kind}_as_previous" for kind in _KINDS),
    *(f"same_{kind}_as_next" for kind in _KINDS),
    *(f"{kind}_before" for kind in _KINDS),
    *("position", "plays_left", "is_last"),
)
DETAILS = ("seconds", "fraction", "gap", "residual", "hour_sin", "hour_cos")

_NEED_TIMES = ("_month", "hour", "quarter", "_7", "_30", "_since_play", "_since_skip")
_NEED_SECONDS = ("track_fraction", "track_length")


def past_columns(dataset: Dataset, config: PastConfig) -> tuple[str, ...]:
    """Names of the columns of `SessionArrays.past`: statistics, then relations.

    Raises:
        UserError: the dataset knows too little for what `config` asks.
    """
    return _past_columns(_checked_facts(dataset, config), config)


def detail_columns(dataset: Dataset, config: PastConfig) -> tuple[str, ...]:
    """Names of the columns of `SessionArrays.details`.

    Raises:
        UserError: the dataset knows too little for what `config` asks.
    """
    return _detail_columns(_checked_facts(dataset, config), config)


def _past_columns(facts: Facts, config: PastConfig) -> tuple[str, ...]:
    statistics: tuple[str, ...] = ()
    if config.protocol != "none":
        statistics = STATISTICS if facts.listeners else SHARED_STATISTICS

    def has_meaning(name: str) -> bool:
        unknown = [kind for kind in ("artist", "album") if not getattr(facts, kind)]
        return (
            not any(kind in name for kind in unknown)
            and (facts.times or not facts.listeners or not name.endswith(_NEED_TIMES))
            and (facts.seconds or name not in _NEED_SECONDS)
        )

    return tuple(name for name in (*statistics, *(RELATIONS if config.relations else ())) if has_meaning(name))


def _detail_columns(facts: Facts, config: PastConfig) -> tuple[str, ...]:
    if not config.details:
        return ()
    personal = facts.listeners and config.protocol != "none"
    known = {
        "seconds": facts.seconds,
        "fraction": facts.seconds and personal,
        "gap": facts.times,
        "residual": config.protocol != "none",
        "hour_sin": facts.hours,
        "hour_cos": facts.hours,
    }
    return tuple(name for name in DETAILS if known[name])


def _checked_facts(dataset: Dataset, config: PastConfig) -> Facts:
    """
    Raises:
        UserError: the dataset knows too little for what `config` asks.
    """
    if not dataset.info["has_skips"]:
        raise UserError(f"{dataset.folder} has no skips (its source has none), so it has no past of skips")
    facts = past_plays.facts_of(dataset)
    if config.protocol != "none" and not facts.listeners:
        days = past_plays.days_of([dataset.train])
        if len(np.unique(days)) < 2 or (days < 0).any():
            raise UserError(
                f"{dataset.folder} knows no listeners, and its training sessions are not of several days: there is no "
                "past to learn from. Choose --past.protocol none, or make the dataset again with a column of users"
            )
    if config.details and not _detail_columns(facts, config):
        raise UserError(f"{dataset.folder} has no times, lengths or hours of plays; choose --past.details false")
    return facts


# --------------------------------------------------------------------------------------------------- the two doors


def with_past(dataset: Dataset, config: PastConfig) -> Dataset:
    """The same dataset, with `past` and `details` in its splits as `config` asks; made on first use.

    Raises:
        UserError: the dataset knows too little for what `config` asks, or its folder cannot be written.
    """
    if not _asked(config):
        return dataset
    facts = _checked_facts(dataset, config)
    tables = _tables(dataset.folder, facts, config)
    once(lambda: _make_missing(dataset, facts, config, tables))
    opened = {split: {name: _open(table.folder / f"{split}.npy") for name, table in tables.items()} for split in SPLITS}
    return replace(dataset, **{split: replace(dataset.split(split), **arrays) for split, arrays in opened.items()})


def past_of(arrays: SessionArrays, dataset: Dataset, config: PastConfig) -> SessionArrays:
    """The same for sessions from outside, which a model of `dataset` is to predict.

    They stand in time among the dataset's own sessions of the same listener (which are known to them, and, if
    `running`, they to each other); a session that the dataset holds, too, is not its own past. The files are written to
    `arrays.folder / "past"`.

    Raises:
        UserError: as `with_past`; or `arrays` have no users or times, though the dataset has.
    """
    if not _asked(config):
        return arrays
    facts = _checked_facts(dataset, config)
    tables = _tables(dataset.folder, facts, config)
    once(lambda: _make_missing(dataset, facts, config, tables))
    scales = {name: _Scale.read(table.folder) for name, table in tables.items()}

    def make() -> None:
        catalogue = past_plays.catalogue_of(dataset, arrays)
        sources = [*(dataset.split(name) for name in SPLITS), arrays]
        with _writable(arrays.folder):
            folder = arrays.folder / "past"
            folder.mkdir(exist_ok=True)
            _write(
                _Work(sources, facts, config, catalogue), scales, {name: {3: folder / f"{name}.npy"} for name in tables}
            )

    once(make)
    return replace(arrays, **{name: _open(arrays.folder / "past" / f"{name}.npy") for name in tables})


def _asked(config: PastConfig) -> bool:
    return config.protocol != "none" or config.relations or config.details


class _Table(NamedTuple):
    """One array of every split, and where it is kept."""

    folder: Path
    columns: tuple[str, ...]


def _tables(folder: Path, facts: Facts, config: PastConfig) -> dict[str, _Table]:
    """The field of `SessionArrays` -> its table."""
    tables, home = {}, folder / "past" / f"v{VERSION}"
    if config.protocol != "none" or config.relations:
        name = config.protocol + ("-relations" if config.relations else "")
        tables["past"] = _Table(home / name, _past_columns(facts, config))
    if config.details:
        tables["details"] = _Table(home / f"{config.protocol}-details", _detail_columns(facts, config))
    return tables


def _open(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def _make_missing(dataset: Dataset, facts: Facts, config: PastConfig, tables: dict[str, _Table]) -> None:
    """Make the tables that are not there, or were made of another dataset."""
    identity = _identity(dataset)
    missing = {name: table for name, table in tables.items() if not _is_of(table.folder, identity)}
    if not missing:
        return
    work = _Work([dataset.split(name) for name in SPLITS], facts, config, past_plays.catalogue_of(dataset))
    scales = _scales(work, missing)
    with _writable(dataset.folder), ExitStack() as stack:
        folders = {
            name: stack.enter_context(atomic_folder(table.folder, overwrite=True, holds="past.json"))
            for name, table in missing.items()
        }
        paths = {
            name: {i: folder / f"{split}.npy" for i, split in enumerate(SPLITS)} for name, folder in folders.items()
        }
        _write(work, scales, paths)
        for name, folder in folders.items():
            scales[name].write(folder, identity)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """
    Raises:
        UserError: instead of any `OSError` in the block.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the past cannot be written under {folder} ({error.strerror or error}); "
            "make the folder writable, or work on a copy of the dataset"
        ) from None


def _is_of(folder: Path, identity: str) -> bool:
    if not (folder / "past.json").exists():
        return False
    return bool(read_json(folder / "past.json").get("identity") == identity)


def _identity(dataset: Dataset) -> str:
    """A checksum of all files that a past is made of."""
    names = ["dataset.json", "tracks.parquet", "new_tracks.parquet"]
    arrays = ("tracks", "full_ids", "offsets", "skips", "times", "seconds", "log")
    names += [f"{split}/{name}" for split in SPLITS for name in (*(f"{a}.npy" for a in arrays), "sessions.parquet")]
    checksum = 0
    for name in names:
        path = dataset.folder / name
        if not path.exists():
            continue
        checksum = zlib.crc32(name.encode(), checksum)
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


# ------------------------------------------------------------------------------------------------- numbers of plays


class _Work(NamedTuple):
    """What numbers are made of."""

    sources: Sequence[SessionArrays]
    """The splits, in the order of `SPLITS`; a fourth one if it is for sessions from outside."""
    facts: Facts
    config: PastConfig
    catalogue: Catalogue


class _Block(NamedTuple):
    """Numbers of the plays of some sessions."""

    sessions: Timeline
    numbers: dict[str, np.ndarray]
    """The field of `SessionArrays` -> float32 (plays, columns), not yet standardised"""


def _blocks(work: _Work, tables: dict[str, tuple[str, ...]]) -> Iterator[_Block]:
    """All sessions with their numbers, each once; NaN where a number has no meaning.

    Args:
        work: if there are sessions from outside, only sessions of their listeners need to come.
        tables: field -> names of its columns.
    """
    from utils.data import past_pass

    seen = np.zeros(work.catalogue.n_entities, np.int32)
    for plays, names, statistics in _statistics(work):
        relations = np.empty((len(plays.labels), len(RELATIONS)), np.float32)
        if work.config.relations:
            past_pass.relations(plays.offsets, plays.entities, seen, relations)
        columns = {name: statistics[:, i] for i, name in enumerate(names)}
        columns |= {name: relations[:, i] for i, name in enumerate(RELATIONS)}
        numbers = {}
        for field, wanted in tables.items():
            source = _details(plays, columns) if field == "details" else columns
            numbers[field] = np.stack([source[name] for name in wanted], axis=1)
        yield _Block(plays.sessions, numbers)


def _statistics(work: _Work) -> Iterator[tuple[Plays, tuple[str, ...], np.ndarray]]:
    """All sessions with their statistics and these columns' names."""
    if work.config.protocol == "none":
        still = np.zeros(sum(arrays.n_sessions for arrays in work.sources), np.int64)
        timeline = past_plays.timeline_of(work.sources, still, past_plays.starts_of(work.sources, work.facts))
        if len(work.sources) > len(SPLITS):
            timeline = timeline.take(timeline.source == len(SPLITS))
        for part in timeline.pieces(past_plays.PLAYS_AT_ONCE):
            plays = past_plays.gather(work.sources, timeline.take(part), work.catalogue, work.facts)
            yield plays, (), np.empty((len(plays.labels), 0), np.float32)
    elif work.facts.listeners:
        for plays, numbers in _personal(work):
            yield plays, STATISTICS, numbers
    else:
        for plays, numbers in _shared(work):
            yield plays, SHARED_STATISTICS, numbers


def _personal(work: _Work) -> Iterator[tuple[Plays, np.ndarray]]:
    """Statistics of each listener's past."""
    from utils.data import past_pass

    listeners, starts = past_plays.listeners_of(work.sources), past_plays.starts_of(work.sources, work.facts)
    timeline = past_plays.timeline_of(work.sources, listeners, starts)
    if len(work.sources) > len(SPLITS):
        timeline = _of_outside(timeline, work.facts)
    slot_of = np.full(work.catalogue.n_entities, -1, np.int32)
    for part in timeline.parts(past_plays.PLAYS_AT_ONCE):
        sessions = timeline.take(part)
        plays = past_plays.gather(work.sources, sessions, work.catalogue, work.facts)
        group = _group(plays, work)
        state = past_pass.new_state(group, work.catalogue.n_entities, slot_of)
        for piece in sessions.pieces(past_plays.PLAYS_AT_ONCE):
            first, last = plays.offsets[piece.start], plays.offsets[piece.stop]
            numbers = np.empty((last - first, len(STATISTICS)), np.float32)
            past_pass.personal(group, state, piece.start, piece.stop, numbers)
            yield plays.take(piece), numbers
        past_pass.forget(state, 0)


def _of_outside(timeline: Timeline, facts: Facts) -> Timeline:
    """Sessions of the listeners from outside, without the dataset's copies of sessions from outside."""
    outside = timeline.source == len(SPLITS)
    timeline = timeline.take(np.isin(timeline.group, timeline.group[outside]))
    if not facts.times:
        return timeline
    outside = timeline.source == len(SPLITS)
    there = set(zip(timeline.group[outside].tolist(), timeline.start[outside].tolist(), strict=True))
    copied = [pair in there for pair in zip(timeline.group.tolist(), timeline.start.tolist(), strict=True)]
    return timeline.take(outside | ~np.array(copied, bool))


def _group(plays: Plays, work: _Work) -> Any:
    """What the compiled pass reads: plays, and the order in which they are learnt from."""
    from utils.data import past_pass

    sessions = plays.sessions
    changes = np.flatnonzero(np.diff(sessions.group)) + 1
    listeners = np.zeros(len(sessions.group), np.int64)
    listeners[changes] = 1
    listeners = np.cumsum(listeners)
    of_play = np.repeat(np.arange(len(listeners)), sessions.length)
    group = past_pass.Group(
        plays.offsets,
        sessions.start,
        listeners,
        plays.entities,
        plays.labels,
        plays.times,
        plays.seconds,
        of_play,
        plays.times.copy(),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
    )
    if work.facts.times:
        past_pass.outcome_times(group)
    learnt = np.arange(len(of_play))
    if work.config.protocol == "frozen":
        learnt = learnt[sessions.source[of_play] == 0]
    owner = listeners[of_play[learnt]]
    known = group.known[learnt]
    if ((known[1:] < known[:-1]) & (owner[1:] == owner[:-1])).any():  # sessions of one listener overlap
        order = np.lexsort((known, owner))
        learnt, owner = learnt[order], owner[order]
    bounds = np.searchsorted(owner, np.arange(listeners[-1] + 2))
    return group._replace(order=learnt, bounds=bounds)


def _shared(work: _Work) -> Iterator[tuple[Plays, np.ndarray]]:
    """Statistics over all sessions of earlier days."""
    from utils.data import past_pass

    days = past_plays.days_of(work.sources)
    if (days < 0).any():
        raise UserError(f"some sessions of {work.sources[-1].folder} have no day; choose --past.protocol none")
    timeline = past_plays.timeline_of(work.sources, days, np.zeros(len(days), np.int64))
    n_wanted = len(work.sources) - 1 if len(work.sources) > len(SPLITS) else 0
    shared = past_pass.Shared(np.zeros((work.catalogue.n_entities, 6)), np.zeros((past_pass.N_POSITIONS + 1, 2)))
    for part in timeline.parts(1):
        sessions = timeline.take(part)
        day = int(sessions.group[0])
        wanted = sessions.take(sessions.source >= n_wanted)
        for piece in wanted.pieces(past_plays.PLAYS_AT_ONCE):
            plays = past_plays.gather(work.sources, wanted.take(piece), work.catalogue, work.facts)
            numbers = np.empty((len(plays.labels), len(SHARED_STATISTICS)), np.float32)
            past_pass.of_all(plays.offsets, plays.entities, day, shared, numbers)
            yield plays, numbers
        learnt = sessions.take(sessions.source == 0) if work.config.protocol == "frozen" else sessions
        for piece in learnt.pieces(past_plays.PLAYS_AT_ONCE):
            plays = past_plays.gather(work.sources, learnt.take(piece), work.catalogue, work.facts)
            past_pass.learn_shared(plays.offsets, plays.entities, plays.labels, day, shared)


def _details(plays: Plays, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was logged of each play itself, as numbers: name -> float32 (N,)."""
    angle = 2 * np.pi * plays.hours / 24
    found = {"seconds": np.log1p(plays.seconds.clip(0)), "hour_sin": np.sin(angle), "hour_cos": np.cos(angle)}
    ends = plays.times + np.nan_to_num(plays.seconds.clip(0) * 1e6).astype(np.int64)
    gap = np.zeros(len(plays.times), np.float32)
    gap[1:] = np.log1p(((plays.times[1:] - ends[:-1]) / 1e6).clip(0))
    gap[plays.offsets[:-1]] = 0
    found["gap"] = gap
    if "track_length" in columns:
        found["fraction"] = (plays.seconds.clip(0) / np.exp(columns["track_length"])).clip(max=1)
    logit = columns.get("track", columns.get("track_all"))
    if logit is not None:
        residual = 2 * (plays.labels - 1 / (1 + np.exp(-logit)))
        found["residual"] = np.where(plays.labels < 0, np.float32(np.nan), residual)
    return found


# --------------------------------------------------------------------------------------------------- scales and files


class _Scale(NamedTuple):
    """Mean and deviation of each column over the plays of the training split."""

    columns: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> _Scale:
        kept = read_json(folder / "past.json")
        return cls(tuple(kept["columns"]), np.array(kept["mean"]), np.array(kept["deviation"]))

    def write(self, folder: Path, identity: str) -> None:
        values = {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}
        write_json(
            folder / "past.json", {"version": VERSION, "identity": identity, "columns": list(self.columns), **values}
        )

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Standardised, clipped, 0 where there is none: float16."""
        scaled = (numbers - self.mean.astype(np.float32)) / self.deviation.astype(np.float32)
        return np.nan_to_num(scaled.clip(-LARGEST, LARGEST), copy=False).astype(np.float16)


def _scales(work: _Work, tables: dict[str, _Table]) -> dict[str, _Scale]:
    """The scale of each table, from a first pass over all plays."""
    columns = {name: table.columns for name, table in tables.items()}
    sums = {name: np.zeros((3, len(wanted))) for name, wanted in columns.items()}
    for block in _with_bar(work, columns, "past: scales"):
        training = np.repeat(block.sessions.source == 0, block.sessions.length)
        for name, numbers in block.numbers.items():
            own = numbers[training].astype(np.float64)
            known = ~np.isnan(own)
            own[~known] = 0
            sums[name] += [known.sum(0), own.sum(0), (own * own).sum(0)]
    scales = {}
    for name, (count, total, squares) in sums.items():
        mean = total / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
        deviation[deviation <= 1e-6 * np.maximum(np.abs(mean), 1)] = 1.0  # the same for all plays
        scales[name] = _Scale(columns[name], mean, deviation)
    return scales


def _with_bar(work: _Work, columns: dict[str, tuple[str, ...]], title: str) -> Iterator[_Block]:
    total = sum(len(arrays.tracks) for arrays in work.sources)
    with tqdm(total=total, desc=title, unit=" plays", unit_scale=True, leave=False, delay=2) as bar:
        for block in _blocks(work, columns):
            yield block
            bar.update(int(block.sessions.length.sum()))


def _write(work: _Work, scales: dict[str, _Scale], paths: dict[str, dict[int, Path]]) -> None:
    """Write the standardised numbers of the wanted sources.

    Args:
        work: what they are made of.
        scales: field -> scale.
        paths: field -> number of a source -> its file.
    """
    with ExitStack() as stack:
        files: dict[tuple[str, int], Callable[[np.ndarray, int], None]] = {}
        for name, wanted in paths.items():
            for source, path in wanted.items():
                file = stack.enter_context(path.open("wb"))
                files[name, source] = _rows(file, len(work.sources[source].tracks), len(scales[name].columns))
        for block in _with_bar(work, {name: scales[name].columns for name in paths}, "past"):
            sessions = block.sessions
            ends = sessions.first + sessions.length
            joins = (sessions.source[1:] == sessions.source[:-1]) & (sessions.first[1:] == ends[:-1])
            offsets = np.append(0, np.cumsum(sessions.length))
            heads = np.append(0, np.flatnonzero(~joins) + 1)
            bounds = np.append(offsets[heads], offsets[-1])
            places = list(zip(sessions.source[heads].tolist(), sessions.first[heads].tolist(), strict=True))
            for name, numbers in block.numbers.items():
                scaled = scales[name](numbers)
                for (source, first), at, end in zip(places, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                    if (name, source) in files:
                        files[name, source](scaled[at:end], first)


def _rows(file: IO[bytes], n_rows: int, width: int) -> Callable[[np.ndarray, int], None]:
    """Prepare an open `.npy` file float16 (n_rows, width); returns what writes rows into it from a row on."""
    shape = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**shape, "shape": (n_rows, width)})
    file.flush()
    head, size = file.tell(), 2 * width
    os.truncate(file.fileno(), head + n_rows * size)

    def write(rows: np.ndarray, first: int) -> None:
        os.pwrite(file.fileno(), rows.data, head + first * size)

    return write
