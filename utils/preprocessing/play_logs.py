"""What a table of plays says of each play beside its track: skip, log columns, seconds played, official split.

The codes are those of `schema`. The log columns of a play stand in one number until they are written, so that sorts
move few bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import numpy as np

from utils.data import schema
from utils.preprocessing import play_times

BITS = 5
"""Of each log column in the number that holds all of them."""
WORDS = {
    "reason_start": ("hist_user_behavior_reason_start", schema.REASONS_START),
    "reason_end": ("hist_user_behavior_reason_end", schema.REASONS_END),
    "context": ("context_type", schema.CONTEXT_TYPES),
}
"""Option -> its column of `schema.LOG_COLUMNS`, and the words that it knows."""
FLAGS = {"shuffle": "hist_user_behavior_is_shuffle", "premium": "premium"}
"""The same for options that are true or false."""
YES, NO = ("true", "1", "1.0"), ("false", "0", "0.0")
SKIPS = {
    schema.SKIP_1: ("skip_1",),
    schema.SKIP_2: (*YES, "skip_2"),
    schema.SKIP_3_ONLY: ("skip_3",),
    schema.SKIP_PLAYED: (*NO, "not_skipped"),
    schema.SKIP_NO_FLAG: ("none",),
}
"""What the words of a skip mean; anything else is unknown."""
HOUR = 3600 * play_times.SECOND
"""Microseconds."""
FAULTS = {
    "seconds": "not a number of seconds from 0 on",
    "hour": "not an hour from 0 to 23",
    "split": f"not one of {', '.join(schema.SPLITS)}",
}
"""Options whose values may be at fault, and how; the place of an option here, from 1 on, is the code of its fault."""
assert max(schema.LOG_COLUMNS.values()) <= 1 << BITS
assert len(schema.LOG_COLUMNS) * BITS < 63


def skip_code(skip: ibis.Value) -> ibis.Value:
    """`schema.SKIP_*`, uint8."""
    text = skip.cast("string").lower()
    return ibis.cases(*((text.isin(words), code) for code, words in SKIPS.items()), else_=schema.SKIP_UNKNOWN).cast(
        "uint8"
    )


def log_code(table: ibis.Table, time: ibis.Value) -> ibis.Value:
    """All log columns of a play in one int64: see `unpack_log`.

    Args:
        table: columns under the names of their options.
        time: microseconds since 1970, null where there is none.
    """
    found: dict[str, ibis.Value] = {}
    for option, (column, words) in WORDS.items():
        if option in table.columns:
            text = table[option].cast("string").lower()
            found[column] = ibis.cases(*((text == word, i) for i, word in enumerate(words, start=1)), else_=0)
    for option, column in FLAGS.items():
        if option in table.columns:
            text = table[option].cast("string").lower()
            found[column] = ibis.cases((text.isin(NO), 1), (text.isin(YES), 2), else_=0)
    if "hour" in table.columns:
        hour, good, _ = hour_of(table.hour)
        found["hour_of_day"] = ibis.ifelse(good, hour.try_cast("int64") + 1, 0)
    elif "time" in table.columns:
        # From the first time there is, for a remainder of negative numbers would be negative.
        hours = play_times.divide(time - play_times.EARLIEST * play_times.SECOND, HOUR)
        found["hour_of_day"] = (hours % 24 + 1).fill_null(0)
    code: ibis.Value = ibis.literal(0, "int64")
    for i, column in enumerate(schema.LOG_COLUMNS):
        if column in found:
            code = code + found[column].cast("int64") * (1 << (BITS * i))
    return code.cast("int64")


def unpack_log(code: np.ndarray) -> np.ndarray:
    """Codes of `schema.LOG_COLUMNS`, uint8 (N, L), of what `log_code` made of them, int64 (N,)."""
    log = np.empty((len(code), len(schema.LOG_COLUMNS)), np.uint8)
    for i in range(log.shape[1]):
        log[:, i] = (code >> (BITS * i)) & ((1 << BITS) - 1)
    return log


def unknown_words(log: np.ndarray, options: Sequence[str]) -> np.ndarray:
    """Plays of which one of the given options has no word that is known: uint8 (N, L) -> bool (N,)."""
    names = {option: column for option, (column, _) in WORDS.items()} | FLAGS
    places = [list(schema.LOG_COLUMNS).index(names[option]) for option in options if option in names]
    return (log[:, places] == 0).any(axis=1)


def numbers(column: ibis.Value) -> tuple[ibis.Value, ibis.Value]:
    """Numbers of a column, float64, and where there is none: empty, or NaN."""
    if column.type().is_string():
        text = column.strip().lower()
        return column.try_cast("float64"), column.isnull() | text.isin(("", "nan"))
    number = column.try_cast("float64")
    return number, column.isnull() | number.isnan().fill_null(False)


def hour_of(column: ibis.Value) -> tuple[ibis.Value, ibis.Value, ibis.Value]:
    """Hours, which of them are hours, and where there is no value."""
    hour, missing = numbers(column)
    hour = play_times.finite(hour)  # before it is compared: see `play_times.read_number`
    hour = ibis.ifelse((hour >= 0) & (hour <= 23), hour, ibis.null("float64"))  # what is huge has no floor
    good = (hour == hour.floor()).fill_null(False)
    return hour, good, missing


def seconds_of(column: ibis.Value) -> tuple[ibis.Value, ibis.Value, ibis.Value]:
    """Seconds played, float32 and null where unknown; which are numbers of seconds, and where there is no value."""
    seconds, missing = numbers(column)
    good = ((seconds >= 0) & (seconds < float(np.finfo(np.float32).max))).fill_null(False) & ~missing
    return ibis.ifelse(good, seconds, ibis.null("float64")).cast("float32"), good, missing


def split_of(column: ibis.Value) -> ibis.Value:
    """Place in `schema.SPLITS`, uint8; null for anything else."""
    text = column.cast("string").strip().lower()
    places = ((text == split, i) for i, split in enumerate(schema.SPLITS))
    return ibis.cases(*places, else_=ibis.null("int8")).cast("uint8")


def fault_of(table: ibis.Table) -> ibis.Value:
    """The code of the first fault of a play (`FAULTS`), uint8; 0 if there is none."""
    wrong: list[tuple[ibis.Value, int]] = []
    for code, option in enumerate(FAULTS, start=1):
        if option not in table.columns:
            continue
        if option == "split":
            wrong.append((split_of(table.split).isnull(), code))
        else:
            _, good, missing = (seconds_of if option == "seconds" else hour_of)(table[option])
            wrong.append((~good & ~missing, code))
    return (ibis.cases(*wrong, else_=0) if wrong else ibis.literal(0)).cast("uint8")
