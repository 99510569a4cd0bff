"""What `--plays` is: a table of plays in CSV or Parquet, or the files of a service that a source reads."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from utils.preprocessing.options import PlaysColumns, SourceOptions
from utils.preprocessing.play_files import plays_files
from utils.preprocessing.sources.plays import SourcePlays


def open_plays(
    path: Path, columns: PlaysColumns, source: str | None, options: SourceOptions, work: Path
) -> SourcePlays:
    """The files of plays, and which of their columns is what.

    Args:
        path: the table of plays, or the files of the source.
        columns: of the table; of a source, only `gap` counts.
        source: one of `options.SourceName`: the module `sources/NAME.py`, dashes as underscores.
        work: a folder for temporary files.

    Raises:
        UserError: no such files, or files that cannot be read.
    """
    if source is None:
        return SourcePlays(plays_files(path), columns, [], [], [])
    folder = work / "source"
    folder.mkdir()
    plays = importlib.import_module(f"utils.preprocessing.sources.{source.replace('-', '_')}").read(
        path, folder, options
    )
    return plays._replace(columns=replace(plays.columns, gap=columns.gap))
