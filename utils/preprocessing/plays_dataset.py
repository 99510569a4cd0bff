"""From a table of plays to a dataset folder: arrange in sessions, count, split by time, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.data import schema, vocab
from utils.preprocessing import play_tables, split_rules
from utils.preprocessing.dataset_writer import (
    SplitWriter,
    any_in_session,
    build_vocabulary,
    write_dataset,
    write_tracks,
)
from utils.preprocessing.engine import Engine, read_parquet
from utils.preprocessing.options import Config, command_line


def prepare_plays(config: Config, folder: Path, work: Path, engine: Engine) -> dict[str, Any]:
    """Write the dataset of `config.plays` into `folder`, with temporary files in `work`; returns `dataset.json`."""
    assert config.plays is not None
    arranged = play_tables.arrange(
        engine.connection,
        config.plays,
        config.plays_columns,
        work,
        play_tables.Rules(
            shortest=config.min_session_length,
            longest=config.max_session_length,
            keep_repeats=config.keep_repeats,
            drop_without_track=config.drop_rows_without_track,
        ),
    )
    valid, test = split_rules.split_sessions(
        arranged.sessions["whole"].to_pylist(),
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
    )
    training = arranged.events.filter(arranged.events.number < valid)
    counts = training.group_by("track_id").agg(plays=training.count())
    min_count = split_rules.DEFAULT_MIN_COUNT if config.min_count is None else config.min_count
    tracks = build_vocabulary(counts, min_count=min_count)
    pq.write_table(tracks, work / "vocabulary.parquet")
    known = read_parquet(engine.connection, work / "vocabulary.parquet")

    writers = [SplitWriter(folder / split) for split in schema.SPLITS]
    batches = play_tables.indexed_batches(engine.connection, arranged.events, known)
    total = int(arranged.sessions["plays"].to_numpy().sum())
    done = 0
    n_unknown = sessions_unknown = 0
    has_skips = False
    with tqdm(total=total, desc="writing", unit=" rows", unit_scale=True) as bar:
        for chunk in play_tables.chunks(batches, arranged.sessions, config.plays.name):
            split = np.digitize(np.arange(done, done + len(chunk.lengths)), [valid, test])
            for i, writer in enumerate(writers):
                writer.add(chunk.take(split == i))
            unknown = chunk.tracks == vocab.UNK
            n_unknown += int(unknown.sum())
            sessions_unknown += int(any_in_session(unknown, chunk.lengths).sum())
            has_skips |= bool((chunk.skips != schema.SKIP_UNKNOWN).any())
            done += len(chunk.lengths)
            bar.update(len(chunk.tracks))
    arranged.funnel.add("kept, of which a track outside the vocabulary", rows=n_unknown, sessions=sessions_unknown)
    splits = {split: writer.close() for split, writer in zip(schema.SPLITS, writers, strict=True)}
    return write_dataset(
        folder,
        name=config.out.name,
        protocol="plays",
        sources=[
            {
                "file": file.name if file == config.plays else str(file.relative_to(config.plays)),
                "bytes": file.stat().st_size,
                "rows": rows,
            }
            for file, rows in zip(arranged.files, arranged.rows, strict=True)
        ],
        funnel=arranged.funnel,
        splits=splits,
        tracks=tracks,
        min_count=min_count,
        features=write_tracks(folder, tracks, tracks.select([])),
        has_skips=has_skips,
        has_log=False,
        notes=["a table of plays has no audio features and no log columns", *arranged.notes],
        engine=engine.name,
        command=command_line(config),
    )
