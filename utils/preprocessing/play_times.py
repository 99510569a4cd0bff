"""What a time is in a table of plays: instants, in UTC, to the microsecond."""

from __future__ import annotations

import calendar
from typing import Any, NamedTuple

import ibis
import ibis.expr.datatypes as dt

SECOND = 1_000_000
"""Microseconds."""
EARLIEST, LATEST = (calendar.timegm((year, 1, 1, 0, 0, 0)) for year in (1900, 2100))
"""Seconds since 1970 between which every time lies."""
RECENT = calendar.timegm((1990, 1, 1, 0, 0, 0))
"""Numbers of milliseconds and smaller units are times from here on; below, they could be seconds."""
FORMS = (
    "2026-02-01, 2026-02-01 10:00, 2026-02-01T10:00:00.123Z, 2026-02-01 10:00:00 +02:00, 1 Feb 2026 10:00, "
    "or seconds, ms, µs or ns since 1970 as a number; of the years 1900 to 2099 (numbers in ms, µs, ns: from 1990)"
)
"""For error messages."""


class Unit(NamedTuple):
    """A unit of numbers since 1970."""

    name: str
    a_second: int


UNITS = (Unit("seconds", 1), Unit("milliseconds", 1000), Unit("microseconds", 10**6), Unit("nanoseconds", 10**9))
NO_NUMBER = len(UNITS)
"""The code of a time that is no number; of others, it is their place in `UNITS`."""
WRITTEN = [
    f"{date}{time}"
    for date in ("%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y")
    for time in (" %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "")
]
"""Times with the name of a month, English whatever the locale; without commas."""


@ibis.udf.scalar.builtin
def epoch_us(moment: dt.Timestamp("UTC")) -> dt.int64:  # type: ignore[valid-type]
    """DuckDB's: microseconds since 1970."""
    raise NotImplementedError


@ibis.udf.scalar.builtin
def try_strptime(text: str, formats: dt.Array(dt.string)) -> dt.Timestamp():  # type: ignore[valid-type]
    """DuckDB's: the time in the first of the formats that fits; null if none does."""
    raise NotImplementedError


@ibis.udf.scalar.builtin
def divide(number: dt.int64, by: dt.int64) -> dt.int64:
    """DuckDB's division of whole numbers; that of Ibis goes by way of float64."""
    raise NotImplementedError


def readable(type_: Any) -> bool:
    """Whether a column of this type (of Ibis) can hold times."""
    number = type_.is_numeric() and not type_.is_boolean()
    return number or type_.is_timestamp() or type_.is_date() or type_.is_string() or type_.is_null()


def read_times(time: ibis.Value) -> tuple[ibis.Value, ibis.Value]:
    """Microseconds since 1970, int64, of a column of timestamps, dates, numbers or text; null where it is no time.

    Returns:
        The times, and uint8: what the number is in (place in `UNITS`), or `NO_NUMBER`.
    """
    if time.type().is_timestamp() or time.type().is_date():
        return within(microseconds(time)), ibis.literal(NO_NUMBER, "uint8")
    if time.type().is_string():
        written = within(read_text(time))
        found, unit = read_number(time)
        no_number = written.notnull()
        return ibis.coalesce(written, found), ibis.ifelse(no_number, NO_NUMBER, unit).cast("uint8")
    return read_number(time)


def microseconds(moment: ibis.Value) -> ibis.Value:
    """Of a timestamp or a date; one without a zone is in UTC, as the engine is (`engine.connect`)."""
    return epoch_us(moment.cast(dt.Timestamp("UTC")))


def within(time: ibis.Value) -> ibis.Value:
    """Null for the years in which nobody listened: 0001 and 9999 stand for a time that is missing."""
    return ibis.ifelse((time >= EARLIEST * SECOND) & (time < LATEST * SECOND), time, ibis.null("int64"))


def read_text(text: ibis.Value) -> ibis.Value:
    """Microseconds since 1970 of text; null for a number, and for what is no time.

    ISO times go first, as they stand. The engine knows no more of them than their usual form, so what is left is put
    in this form; then the names of months are tried.
    """
    # "inf" and "epoch" are times for the engine, "2026-02-01 (BC)" too.
    plain = ibis.ifelse(text.re_search(r"^\d{4}[-/ ][^(]*$"), text, ibis.null("string"))
    written = ibis.ifelse(text.re_search(r"[A-Za-z]{3}.*\d{4}"), text, ibis.null("string"))
    written = written.strip().re_replace(r"\s*(?:Z|UTC|GMT)$", "").replace(",", " ").re_replace(r"\s+", " ")
    return ibis.coalesce(
        microseconds(plain.try_cast(dt.Timestamp("UTC"))),
        microseconds(usual_form(text).try_cast(dt.Timestamp("UTC"))),
        microseconds(try_strptime(written, ibis.array(WRITTEN)).cast(dt.Timestamp("UTC"))),
    )


def usual_form(text: ibis.Value) -> ibis.Value:
    """`2026-02-01t10:00,5 +02` as `2026-02-01 10:00:00.5+02`; null for what is not written so."""
    parts = (
        r"^\s*(\d{4}[-/]\d{1,2}[-/]\d{1,2})(?:[Tt ]\s*(\d{1,2}:\d{2})(:\d{2})?(?:[.,](\d+))?)?"
        r"\s*([Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?\s*$"
    )
    clock = text.re_extract(parts, 2)
    day = text.re_extract(parts, 1)
    whole = (
        day
        + ibis.literal(" ")
        + ibis.ifelse(clock == "", "00:00", clock)
        + ibis.ifelse(text.re_extract(parts, 3) == "", ":00", text.re_extract(parts, 3))
        + ibis.ifelse(text.re_extract(parts, 4) == "", "", ibis.literal(".") + text.re_extract(parts, 4))
        + ibis.ifelse(text.re_extract(parts, 5).isin(["", "UTC", "GMT"]), "Z", text.re_extract(parts, 5).upper())
    )
    return ibis.ifelse(day == "", ibis.null("string"), whole)


def finite(number: ibis.Value) -> ibis.Value:
    """Null for NaN and infinity, which come before or after every number."""
    return ibis.ifelse(number.isnan() | number.isinf(), ibis.null("float64"), number)


def read_number(time: ibis.Value) -> tuple[ibis.Value, ibis.Value]:
    """Microseconds since 1970 of numbers (or their text), and the place of their unit in `UNITS`.

    The unit is told by the size: only in one of them is the number a time of our days.
    """
    # NaN must go first: the statistics of a Parquet file leave it out, so the engine would skip the comparisons below.
    number = finite(time.try_cast("float64"))
    exact = time.try_cast("int64")  # a float64 holds no nanoseconds
    whole = ibis.ifelse(exact.cast("float64") == number, exact, ibis.null("int64"))
    found, units = [], []
    for i, unit in enumerate(UNITS):
        first = EARLIEST if unit.a_second == 1 else RECENT
        fits = (number >= first * unit.a_second) & (number < LATEST * unit.a_second)
        if unit.a_second <= SECOND:
            factor = SECOND // unit.a_second
            scaled = ibis.coalesce(whole * factor, (number * factor).round().try_cast("int64"))
        else:
            factor = unit.a_second // SECOND
            scaled = ibis.coalesce(divide(whole, factor), (number / factor).floor().try_cast("int64"))
        found.append((fits, scaled))
        units.append((fits, i))
    return ibis.cases(*found, else_=ibis.null("int64")), ibis.cases(*units, else_=NO_NUMBER).cast("uint8")


def looks_like_dates(time: ibis.Value, unit: ibis.Value) -> ibis.Value:
    """Whether a number of seconds (as microseconds) is a date written together: 20260201."""
    number = time // SECOND
    month, day = number // 100 % 100, number % 100
    in_calendar = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return (unit == 0) & (number >= 1900_01_01) & (number < 2100_01_01) & in_calendar


def unit_notes(counts: dict[str, int]) -> list[str]:
    """What `dataset.json` says of numbers that are not seconds.

    Args:
        counts: times read in each unit, by its name.
    """
    return [
        f"{counts[unit.name]} times are numbers so large that they were read as {unit.name} since 1970"
        for unit in UNITS[1:]
        if counts.get(unit.name)
    ]
