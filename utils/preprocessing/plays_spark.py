"""A table of plays on Spark: what outgrows a machine. Ids become numbers, and all plays are sorted (`play_order`).

The driver reads, checks and codes the files with DuckDB, one at a time, as without Spark, and leaves the coded plays in
a folder that it and the executors both see. It reads what Spark has sorted from there, once, from the first play to the
last.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ibis
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.preprocessing.engine import parquet_batches, read_parquet, write_parquet
from utils.preprocessing.mssd_spark import explained, uri
from utils.preprocessing.play_order import IDS, ORDER, TYPES, OrderedPlays, numbered, with_numbers


def order_plays(spark: Any, here: Any, plays: ibis.Table, work: Path) -> OrderedPlays:
    """Number and sort the plays with Spark; see `play_order.Order`.

    Args:
        spark: the connection to Spark.
        here: that to DuckDB, which knows `plays`.
        work: a folder that driver and executors both see.
    """
    (work / "coded_plays").mkdir()
    write_parquet(here, for_spark(plays), work / "coded_plays" / "plays.parquet")
    columns = [column for column in IDS if column in plays.columns]
    ids = {column: work / f"{column}.parquet" for column in columns}
    with explained([]), tqdm(total=len(columns) + 1, desc="Spark", unit=" steps") as bar:
        coded = spark.read_parquet(uri(work / "coded_plays"), table_name="coded_plays")
        codes = {}
        for column, target in ids.items():
            folder = work / f"{column}_parts"
            spark.to_parquet(numbered(coded, column), uri(folder))
            table = read_parquet(here, parts_of(folder))
            write_parquet(here, table.select(table.text, table.code.cast("int32")).order_by("code"), target)
            codes[column] = spark.read_parquet(uri(folder), table_name=folder.name)
            bar.update()
        frame = spark._session.sql(ibis.to_sql(with_numbers(coded, codes), dialect="pyspark"))
        frame.orderBy(*ORDER).write.parquet(uri(work / "ordered_parts"))
        bar.update()
    for name in ("coded_plays", *(f"{column}_parts" for column in columns)):
        shutil.rmtree(work / name)
    return OrderedPlays(sorted(parts_of(work / "ordered_parts"), key=first_play), ids)


def for_spark(plays: ibis.Table) -> ibis.Table:
    """The columns that Spark needs, of types that it has: there are no unsigned bytes, and 0 stands before -0."""
    columns: dict[str, ibis.Value] = {}
    for name in (*IDS, "place", *TYPES):
        if name not in plays.columns:
            continue
        value = plays[name]
        columns[name] = value.cast("int16") if value.type().is_unsigned_integer() else value
    if plays.place.type().is_floating():
        columns["place"] = ibis.ifelse(plays.place == 0, 0.0, plays.place)
    return plays.select(**columns)


def parts_of(folder: Path) -> list[Path]:
    """The Parquet files with rows that Spark has left in a folder."""
    return [file for file in sorted(folder.glob("*.parquet")) if pq.read_metadata(file).num_rows]


def first_play(file: Path) -> tuple[Any, ...]:
    """What tells the order of a file among others, each of which is in order."""
    first = next(parquet_batches(file, ORDER, rows=1)).to_pylist()[0]
    return tuple(first[name] for name in ORDER)
