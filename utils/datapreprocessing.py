"""Raw listening logs to a dataset folder (`docs/data.md`): MSSD's files, exports of services, or any table of plays.

    python -m utils.datapreprocessing --raw data/raw/demo --out data/demo
    python -m utils.datapreprocessing --raw data/raw/mssd --out data/mssd_original --protocol original
    python -m utils.datapreprocessing --plays plays.parquet --plays_columns.session session_id \\
        --plays_columns.position position --out data/plays
    python -m utils.datapreprocessing --source spotify my_spotify_data.zip --out data/mine

Protocols for MSSD's files:
    temporal  split by day, train before valid before test; sessions of 10 to 20 plays; rare tracks count as new
    original  the original experiment's 103K-track sample of the first 60 days: split 0 trains, split 9 tests; sessions
              of exactly 20 plays, all of tracks with 150 training plays or more; valid is cut from training by session
    session   split by a hash of the session id, whatever the day: for a single day, such as the mini set. Easier than
              `temporal`, since the sessions of a day share playlists
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from utils.core.cli import cli
from utils.core.errors import UserError
from utils.preprocessing.options import Config, check_source, spell_out_source

OPTIONS_OF = {
    "workers": ("temporal", "original", "session"),
    "valid_days": ("temporal",),
    "test_days": ("temporal",),
    "valid_fraction": ("original", "session", "plays"),
    "test_fraction": ("session", "plays"),
    "plays_columns": ("plays",),
    "min_session_length": ("plays",),
    "max_session_length": ("plays",),
    "keep_repeats": ("plays",),
    "drop_rows_without_track": ("plays",),
    "split_by": ("plays",),
    "features": ("plays",),
    "features_track": ("plays",),
    "source": ("plays",),
    "source_options": ("plays",),
}
"""The protocols that use an option; `plays` is the protocol of `--plays`."""


def check_config(config: Config) -> None:
    """
    Raises:
        UserError: no input or two, a number out of range, or an option that would be ignored.
    """
    check_source(config.plays_columns, config.source, config.source_options, config.plays)
    if (config.raw is None) == (config.plays is None):
        raise UserError("give either --raw (a folder with MSSD's files) or --plays (a table of plays)")
    if config.plays is not None and config.protocol != "temporal":
        raise UserError(f"--protocol {config.protocol} is for MSSD's files; a table of plays is split by time")
    if config.engine == "duckdb" and config.spark_remote is not None:
        raise UserError("--spark_remote is for --engine spark")
    is_spark_alone = config.engine == "spark" and config.plays is None
    if is_spark_alone and config.memory_limit != Config(out=config.out).memory_limit:
        raise UserError("--memory_limit is for --engine duckdb; Spark's memory is configured where it is started")
    protocol = "plays" if config.plays is not None else config.protocol
    default = Config(out=config.out)
    for name, meant_for in OPTIONS_OF.items():
        if protocol not in meant_for and getattr(config, name) != getattr(default, name):
            raise UserError(f"--{name} is for {', '.join(meant_for)}; it means nothing to {protocol}")
    if config.features is None and config.features_track != default.features_track:
        raise UserError("--features_track is for --features")
    if config.keep_repeats and config.source is None and not config.plays_columns.time:
        raise UserError("--keep_repeats means nothing without --plays_columns.time: no play is dropped then")
    if config.drop_rows_without_track and config.source is not None:
        raise UserError("--drop_rows_without_track means nothing beside --source, which drops what is no track")
    if config.plays is not None and config.min_count == 0:
        raise UserError(
            "--min_count 0 takes in the tracks of track_features that nobody played, which a table of plays does not "
            "have; use --min_count 1"
        )
    for name, least in {"min_count": 0, "min_session_length": 1, "max_session_length": 1}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be {least} or more")
    if config.max_session_length is not None and config.max_session_length < config.min_session_length:
        raise UserError("--max_session_length is below --min_session_length: nothing would be left")
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 1 or more, or 0 to choose it")
    for name in ("valid_fraction", "test_fraction"):
        value = getattr(config, name)
        if not (0 < value < 1 or (value == 0 and protocol == "plays")):
            raise UserError(f"--{name} {value}: must be between 0 and 1" + (", or 0" if protocol == "plays" else ""))
    if protocol != "original" and config.valid_fraction + config.test_fraction >= 1:
        raise UserError("--valid_fraction and --test_fraction leave nothing to train on; their sum must be below 1")


def main(config: Config) -> dict[str, Any]:
    """Write the dataset folder `config.out`; returns its `dataset.json`.

    Raises:
        UserError: bad input, or no space to write to. Then `config.out` is as it was before, and what was parsed of
            MSSD's files is kept for the next run (`utils.preprocessing.parsed_logs`).
    """
    import duckdb

    from utils.core.files import atomic_folder
    from utils.preprocessing import mssd_spark
    from utils.preprocessing.dataset_writer import summary
    from utils.preprocessing.engine import connect
    from utils.preprocessing.mssd_dataset import prepare_mssd
    from utils.preprocessing.parsed_logs import parts_folder
    from utils.preprocessing.plays_dataset import prepare_plays

    check_config(config)
    keeps_parts = config.plays is None and config.engine == "duckdb"
    parsed = parts_folder(config.out) if keeps_parts else nullcontext(Path())
    try:
        with parsed as parts, atomic_folder(config.out, overwrite=config.overwrite, holds="dataset.json") as folder:
            work = folder / "work"
            work.mkdir()
            if config.engine == "spark":
                engine = mssd_spark.connect(config.spark_remote)
            else:
                engine = connect(memory_limit=config.memory_limit, folder=work)
            if config.plays is None:
                dataset = prepare_mssd(config, folder, work, engine, parts)
            else:
                dataset = prepare_plays(config, folder, work, engine)
            engine.connection.disconnect()
            shutil.rmtree(work)
    except duckdb.OutOfMemoryException as error:
        message = " ".join(str(error).split("Possible solutions")[0].split())
        raise UserError(f"--memory_limit {config.memory_limit} is too little ({message}); raise it") from None
    except (OSError, duckdb.IOException) as error:
        raise UserError(f"{error} (writing {config.out}: is the disk full, or may you not write there?)") from None
    print(summary(dataset))
    return dataset


if __name__ == "__main__":
    cli(main, Config, description=__doc__, shorthand=spell_out_source)
