"""Plays in order become sessions: the same whatever batches they come in, and from one disk order to another."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.preprocessing import play_store
from utils.preprocessing.engine import connect, parquet_batches, write_parquet
from utils.preprocessing.play_order import Columns, in_order, joined
from utils.preprocessing.play_sessions import Cut, find_sessions
from utils.preprocessing.play_store import BucketWriter, StoredPlays

PLAYS = [  # owner, time, track, split
    (0, 10, 7, 0),
    (0, 10, 8, 0),
    (0, 10, 7, 1),  # there again
    (0, 15, 7, 1),
    (0, 20, 7, 0),
    (0, 26, 7, 0),  # after a silence of 6
    (2, 5, 9, 2),
    (2, 5, 9, 2),  # there again
    (3, 5, 9, 2),
    (3, 6, 9, 2),
]


def columns_of(plays: list[tuple[int, int, int, int]]) -> Columns:
    """Plays of which each is at the place that its time says."""
    owner, time, track, split = (np.array(values) for values in zip(*plays, strict=True))
    return {
        "owner": owner.astype(np.int32),
        "place": time,
        "row": np.arange(len(plays)),
        "track": track.astype(np.int32),
        "time": time,
        "split": split.astype(np.uint8),
    }


def in_batches(plays: Columns, cuts: list[int]) -> Iterator[Columns]:
    bounds = [0, *sorted(cuts), len(plays["row"])]
    for first, last in itertools.pairwise(bounds):
        if first < last:
            yield {name: values[first:last] for name, values in plays.items()}


def found_in(batches: Iterator[Columns], cut: Cut) -> tuple[Columns, list[bool], int, dict[str, list[int]]]:
    found = list(find_sessions(batches, cut))
    pieces = joined([part.pieces for part in found])
    return (
        joined([part.plays for part in found]),
        np.concatenate([part.shares for part in found]).tolist(),
        sum(part.repeats for part in found),
        {name: values.tolist() for name, values in pieces.items()},
    )


@pytest.mark.parametrize("cuts", [[], [1], [2, 3], [5, 6, 7, 8], list(range(1, 10))])
def test_sessions_by_hand(cuts: list[int]) -> None:
    cut = Cut(silence=5, longest=2, repeats=True)
    plays, shares, repeats, pieces = found_in(in_batches(columns_of(PLAYS), cuts), cut)
    assert plays["row"].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert shares == [True, True, False, False, False, False, False, False]
    assert repeats == 2
    assert pieces == {
        "owner": [0, 0, 0, 2, 3],
        "session": [1, 1, 2, 1, 1],
        "piece": [0, 1, 0, 0, 0],
        "plays": [2, 2, 1, 1, 2],
        "shared": [2, 0, 0, 0, 0],
        "start": [10, 15, 26, 5, 5],
        "least_split": [0, 0, 0, 2, 2],
        "greatest_split": [0, 1, 0, 2, 2],
    }


def test_an_owner_without_a_silence_is_one_session() -> None:
    _, shares, repeats, pieces = found_in(in_batches(columns_of(PLAYS), [4]), Cut(None, None, repeats=False))
    assert pieces["plays"] == [6, 2, 2]
    assert pieces["session"] == [1, 1, 1]
    assert pieces["shared"] == [3, 2, 0]
    assert repeats == 0
    assert sum(shares) == 5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 2), st.integers(0, 1)), min_size=1),
    st.lists(st.integers(0, 60), max_size=6),
    st.sampled_from([Cut(2, None, True), Cut(3, 2, True), Cut(None, 3, True), Cut(0, 4, False)]),
)
def test_batches_do_not_matter(plays: list[tuple[int, int, int, int]], cuts: list[int], cut: Cut) -> None:
    """Beside one play after the other, in plain Python."""
    whole = columns_of(sorted(plays, key=lambda play: play[:2]))
    kept, _, repeats, pieces = found_in(in_batches(whole, [min(place, len(plays)) for place in cuts]), cut)
    rows, lengths, seen, last = [], [], set(), None
    for row, (owner, time, track, _) in enumerate(sorted(plays, key=lambda play: play[:2])):
        if cut.repeats and (owner, time, track) in seen:
            continue
        seen.add((owner, time, track))
        rows.append(row)
        starts = last is None or owner != last[0] or (cut.silence is not None and time - last[1] > cut.silence)
        if starts or (cut.longest is not None and lengths[-1] == cut.longest):
            lengths.append(0)
        lengths[-1] += 1
        last = (owner, time)
    assert kept["row"].tolist() == rows
    assert pieces["plays"] == lengths
    assert repeats == len(plays) - len(rows)


def test_an_engine_that_does_not_sort_is_found_out(tmp_path: Path) -> None:
    plays = columns_of(PLAYS)

    def read(order: list[int], sizes: list[int]) -> list[int]:
        files, first = [], 0
        for i, size in enumerate(sizes):
            files.append(tmp_path / f"{i}.parquet")
            some = order[first : first + size]
            pq.write_table(pa.table({name: values[some] for name, values in plays.items()}), files[-1])
            first += size
        rows = [row for batch in in_order(files) for row in batch["row"].tolist()]
        assert not any(file.exists() for file in files)
        return rows

    for sizes in ([10], [3, 7], [0, 9, 1]):
        assert read(list(range(10)), sizes) == list(range(10))
    for order in ([1, 0, *range(2, 10)], [*range(6), 8, 9, 6, 7], [*range(3), 4, 3, *range(5, 10)]):
        for sizes in ([10], [4, 6], [1, 9], [8, 2]):
            with pytest.raises(RuntimeError, match="has not sorted the plays"):
                read(order, sizes)


def test_a_parquet_file_is_not_read_ahead(tmp_path: Path) -> None:
    """A file of 16 MB, of which a batch has 80 kB."""
    values = np.random.default_rng(0).integers(0, 2**60, 2_000_000)
    pq.write_table(pa.table({"a": values}), tmp_path / "a.parquet", row_group_size=10_000)
    del values
    before = pa.total_allocated_bytes()
    most = n = 0
    for batch in parquet_batches(tmp_path / "a.parquet", rows=10_000):
        most, n = max(most, pa.total_allocated_bytes() - before), n + len(batch)
    assert n == 2_000_000
    assert 80_000 <= most < 4_000_000


def test_memory_of_a_step_is_given_back(tmp_path: Path) -> None:
    """After a sort of 80 MB, the engine keeps little of it."""
    engine = connect(memory_limit="1GB", folder=tmp_path).connection
    numbers = engine.sql("SELECT range AS a, hash(range) AS b FROM range(5000000)")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    write_parquet(engine, numbers.order_by("b"), tmp_path / "sorted.parquet")
    assert resident() - before < 60_000_000
    limit = engine.raw_sql("SELECT current_setting('memory_limit')").fetchall()[0][0]
    assert limit == "953.6 MiB"
    engine.disconnect()


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_plays_go_from_the_order_on_disk_to_that_of_the_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(play_store, "PLAYS_A_BUCKET", size)
    monkeypatch.setattr(play_store, "ROWS_AT_ONCE", 4)
    generator = np.random.default_rng(0)
    on_disk = generator.integers(1, 6, 20)
    numbers = generator.permutation(20).astype(np.int32)
    tracks = np.repeat(numbers * 100, on_disk) + np.concatenate([np.arange(n) for n in on_disk])
    stored = StoredPlays(tmp_path / "plays", ["track", "skip"])
    for some in (slice(0, 5), slice(5, None)):
        stored.append({"track": tracks[some], "skip": (tracks % 256)[some]})
    lengths = np.empty(20, np.int32)
    lengths[numbers] = on_disk
    writer = BucketWriter(tmp_path / "buckets", stored.dtype, lengths)
    for some, plays in stored.blocks(on_disk):
        writer.add(numbers[some], plays)
    assert not stored.file.exists()
    found = list(writer.buckets.read())
    expected = [i * 100 + place for i in range(20) for place in range(lengths[i])]
    assert np.concatenate([plays["track"] for _, plays in found]).tolist() == expected
    assert np.concatenate([plays["skip"] for _, plays in found]).tolist() == [track % 256 for track in expected]
    assert [len(plays) for _, plays in found] == [lengths[some].sum() for some, _ in found]
    assert all(lengths[some][:-1].sum() < size for some, _ in found)
    assert not list((tmp_path / "buckets").iterdir())
