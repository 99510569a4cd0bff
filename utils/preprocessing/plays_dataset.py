"""From a table of plays to a dataset folder: arrange in sessions, split, count, write."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data import schema, vocab
from utils.preprocessing import play_tables, play_tracks, plays_spark, split_rules
from utils.preprocessing.dataset_writer import (
    SplitWriter,
    any_in_session,
    write_dataset,
    write_tracks,
)
from utils.preprocessing.engine import Engine, connect, read_parquet
from utils.preprocessing.options import Config, command_line
from utils.preprocessing.play_logs import FLAGS, SKIPS, WORDS, unknown_words
from utils.preprocessing.play_order import Order
from utils.preprocessing.play_splits import choose_splits
from utils.preprocessing.plays_source import open_plays
from utils.preprocessing.track_tables import read_features


def prepare_plays(config: Config, folder: Path, work: Path, engine: Engine) -> dict[str, Any]:
    """Write the dataset of `config.plays` into `folder`; returns `dataset.json`.

    Args:
        work: folder for temporary files.
        engine: numbers and sorts the plays; everything else is done by DuckDB here.
    """
    if config.engine == "duckdb":
        return make_dataset(config, folder, work, engine.connection, None, engine.name)
    here = connect(memory_limit=config.memory_limit, folder=work).connection
    try:
        order = partial(plays_spark.order_plays, engine.connection, here)
        return make_dataset(config, folder, work, here, order, engine.name)
    finally:
        here.disconnect()


def make_dataset(
    config: Config, folder: Path, work: Path, connection: Any, order: Order | None, engine: str
) -> dict[str, Any]:
    """`prepare_plays`, once it is settled who orders the plays."""
    assert config.plays is not None
    source = open_plays(config.plays, config.plays_columns, config.source, config.source_options, work)
    columns = source.columns
    if config.keep_repeats and not columns.time:
        raise UserError("--keep_repeats means nothing where plays have no times: no play is dropped then")
    rules = play_tables.Rules(
        shortest=config.min_session_length,
        longest=config.max_session_length,
        keep_repeats=config.keep_repeats,
        drop_without_track=config.drop_rows_without_track,
    )
    arranged = play_tables.arrange(connection, config.plays, source, work, rules, order)
    sessions = arranged.sessions
    split, training_only, empty = choose_splits(config, sessions, per_listener=source.per_listener)
    if training_only is not None:
        arranged.funnel.add(
            "kept, of which by listeners with too few sessions to be split",
            rows=sessions.lengths[training_only].sum(),
            sessions=training_only.sum(),
        )
    buckets, counts = play_tables.deal(arranged, split == split_rules.TRAIN, work)
    min_count = split_rules.DEFAULT_MIN_COUNT if config.min_count is None else config.min_count
    tracks, new, ids = play_tracks.vocabulary(counts, arranged.tracks, min_count=min_count)
    new = play_tracks.with_names(connection, new, arranged.names, work)
    pq.write_table(new, folder / "new_tracks.parquet")
    tracks = play_tracks.with_names(connection, tracks, arranged.names, work)
    n_ids = vocab.N_SPECIAL + len(tracks)

    writers = [SplitWriter(folder / name, play_tables.optional_arrays(columns)) for name in schema.SPLITS]
    words = [option for option in (*WORDS, *FLAGS) if getattr(columns, option)]
    total = int(sessions.lengths.sum())
    done = 0
    has_skips = has_log = False
    with tqdm(total=total, desc="writing", unit=" rows", unit_scale=True) as bar:
        for chunk in play_tables.chunks(buckets, sessions, ids, config.plays.name, n_ids=n_ids):
            mine = split[done : done + len(chunk.lengths)]
            for i, writer in enumerate(writers):
                writer.add(chunk.take(mine == i))
            some = [("a track outside the vocabulary", chunk.tracks == vocab.UNK)]
            if words:
                some.append(("an unknown category", unknown_words(chunk.log, words)))
            for reason, events_of in some:
                n_sessions = any_in_session(events_of, chunk.lengths).sum()
                arranged.funnel.add(f"kept, of which {reason}", rows=events_of.sum(), sessions=n_sessions)
            has_skips |= bool((chunk.skips != schema.SKIP_UNKNOWN).any())
            has_log |= bool(chunk.log.any())
            done += len(chunk.lengths)
            bar.update(len(chunk.tracks))
    splits = {name: writer.close() for name, writer in zip(schema.SPLITS, writers, strict=True)}
    raw, notes = tracks.select([]), ["no --features: tracks have no features"]
    file = config.features or source.features
    if file is not None:
        column = config.features_track if config.features else "track_id"
        pq.write_table(tracks.select(["track_id", "index"]), work / "vocabulary.parquet")
        known = read_parquet(connection, work / "vocabulary.parquet")
        made_of = None if config.features else source.features_file
        raw, notes = read_features(connection, file, column, known, work, made_of)
    if columns.skip and not has_skips and config.source is None:
        notes.append(
            f"no value of column {columns.skip} (--plays_columns.skip) says whether a play was skipped; known are "
            f"{', '.join(word for words in SKIPS.values() for word in words)}"
        )
    if not has_log:
        notes.append("no log column is known")
    return write_dataset(
        folder,
        name=config.out.name,
        protocol="plays",
        sources=source.sources or account_of(config.plays, source.files, arranged.rows),
        funnel=arranged.funnel,
        splits=splits,
        empty_splits=empty,
        max_session_length=config.max_session_length,
        tracks=tracks,
        min_count=min_count,
        features=write_tracks(folder, tracks, raw, categories=False),
        has_skips=has_skips,
        has_log=has_log,
        notes=[*notes, *source.notes, *arranged.notes],
        engine=engine,
        command=command_line(config),
    )


def account_of(path: Path, files: list[Path], rows: list[int]) -> list[dict[str, Any]]:
    """What `dataset.json` says of the files of a table."""
    return [
        {
            "file": file.name if file == path else str(file.relative_to(path)),
            "bytes": file.stat().st_size,
            "rows": n,
        }
        for file, n in zip(files, rows, strict=True)
    ]
