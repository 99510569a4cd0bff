"""Names of the numbers that `utils/data/past.py` knows of plays, and which of them have a meaning for a dataset."""

from __future__ import annotations

from utils.data.options import PastConfig
from utils.data.past_plays import Facts

KINDS = ("track", "artist", "album")
STATISTICS = (
    *("listener", "listener_long", "listener_short", "artist", "album", "track"),
    *("artist_month", "album_month", "track_month", "track_last", "transition", "hour", "quarter", "last_session"),
    *(
        f"{kind}_{what}"
        for kind in KINDS
        for what in ("plays", "labelled", "plays_7", "plays_30", "since_play", "since_skip", "streak", "new")
    ),
    *("track_fraction", "track_length", "transition_labelled", "listener_since_play"),
)
"""Of the listener's past; those of a dataset are `past_columns`."""
SHARED_STATISTICS = (
    *("overall", "at_position"),
    *(f"{kind}_{what}" for kind in KINDS for what in ("all", "all_recent", "plays", "labelled", "since_day")),
)
"""Of all sessions of earlier days, for a dataset without listeners."""
RELATIONS = (
    *(f"same_{kind}_as_previous" for kind in KINDS),
    *(f"same_{kind}_as_next" for kind in KINDS),
    *(f"{kind}_before" for kind in KINDS),
    *("position", "plays_left", "is_last"),
)
DETAILS = ("seconds", "fraction", "gap", "residual", "hour_sin", "hour_cos")

_OF_AGE = ("_month", "_7", "_30", "_since_play", "_since_skip", "_recent", "_since_day")
"""Grow old with the plays that are known: frozen, they would say how long ago training ended, and little else."""
_NEED_TIMES = ("_month", "_7", "_30", "_since_play", "_since_skip", "hour", "quarter")
_NEED_SECONDS = ("track_fraction", "track_length")


def past_names(facts: Facts, config: PastConfig) -> tuple[str, ...]:
    """Columns of `SessionArrays.past`: statistics, then relations."""
    statistics: tuple[str, ...] = ()
    if config.protocol != "none":
        statistics = STATISTICS if facts.listeners else SHARED_STATISTICS

    def has_meaning(name: str) -> bool:
        unknown = [kind for kind in ("artist", "album") if not getattr(facts, kind)]
        return (
            not any(kind in name for kind in unknown)
            and (facts.times or not facts.listeners or not name.endswith(_NEED_TIMES))
            and (config.protocol != "frozen" or not name.endswith(_OF_AGE))
            and (facts.seconds or name not in _NEED_SECONDS)
        )

    return tuple(name for name in (*statistics, *(RELATIONS if config.relations else ())) if has_meaning(name))


def detail_names(facts: Facts, config: PastConfig) -> tuple[str, ...]:
    """Columns of `SessionArrays.details`."""
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
