"""The names and values of MSSD's files, and how the dataset arrays code them.

One place for what the simulator writes, the preprocessing reads and the models embed. Source: Brost, Mehrotra,
Jehan, "The Music Streaming Sessions Dataset" (WWW 2019), and its challenge's data description.
"""

from __future__ import annotations

from typing import Any

SESSION_COLUMNS = (
    "session_id",
    "session_position",
    "session_length",
    "track_id_clean",
    "skip_1",
    "skip_2",
    "skip_3",
    "not_skipped",
    "context_switch",
    "no_pause_before_play",
    "short_pause_before_play",
    "long_pause_before_play",
    "hist_user_behavior_n_seekfwd",
    "hist_user_behavior_n_seekback",
    "hist_user_behavior_is_shuffle",
    "hour_of_day",
    "date",
    "premium",
    "context_type",
    "hist_user_behavior_reason_start",
    "hist_user_behavior_reason_end",
)
"""Columns of `training_set_*/log_*.csv` and of `test_set/log_prehistory_*.csv`, in file order."""
INPUT_COLUMNS = ("session_id", "track_id_clean", "session_position", "session_length")
"""Columns of `test_set/log_input_*.csv`, in file order (not the order of the training files)."""
FEATURE_COLUMNS = (
    "track_id",
    "duration",
    "release_year",
    "us_popularity_estimate",
    "acousticness",
    "beat_strength",
    "bounciness",
    "danceability",
    "dyn_range_mean",
    "energy",
    "flatness",
    "instrumentalness",
    "key",
    "liveness",
    "loudness",
    "mechanism",
    "mode",
    "organism",
    "speechiness",
    "tempo",
    "time_signature",
    "valence",
    *(f"acoustic_vector_{i}" for i in range(8)),
)
"""Columns of `track_features/tf_*.csv`, in file order. `mode` is "major" or "minor"."""
CATEGORICAL_FEATURES = {"key": tuple(range(12)), "time_signature": tuple(range(6))}
"""Integer audio features that are names, not sizes: one-hot in the feature matrix."""
CONTEXT_TYPES = (
    "editorial_playlist",
    "user_collection",
    "radio",
    "personalized_playlist",
    "catalog",
    "charts",
)
REASONS_START = (
    "trackdone",
    "fwdbtn",
    "backbtn",
    "clickrow",
    "appload",
    "playbtn",
    "remote",
    "trackerror",
    "endplay",
    "clickside",
    "popup",
    "uriopen",
)
REASONS_END = (
    "trackdone",
    "fwdbtn",
    "backbtn",
    "endplay",
    "logout",
    "remote",
    "clickrow",
    "appload",
    "clickside",
    "popup",
    "uriopen",
)
MAX_SEEKS = 10
"""Seek counts from this on share one code."""
LOG_COLUMNS = {
    "context_switch": 3,
    "no_pause_before_play": 3,
    "short_pause_before_play": 3,
    "long_pause_before_play": 3,
    "hist_user_behavior_n_seekfwd": MAX_SEEKS + 2,
    "hist_user_behavior_n_seekback": MAX_SEEKS + 2,
    "hist_user_behavior_is_shuffle": 3,
    "hour_of_day": 25,
    "premium": 3,
    "context_type": len(CONTEXT_TYPES) + 1,
    "hist_user_behavior_reason_start": len(REASONS_START) + 1,
    "hist_user_behavior_reason_end": len(REASONS_END) + 1,
}
"""Columns of `log.npy` in order, with the number of codes of each.

Code 0 is "unknown" in every column. Otherwise: flags 1 + (0 or 1); seek counts 1 + min(n, MAX_SEEKS);
hours 1 + hour; categories 1 + index in the tuples above.
"""
SKIP_NO_FLAG = 0
SKIP_PLAYED = 1
SKIP_3_ONLY = 2
SKIP_2 = 3
SKIP_1 = 4
SKIP_UNKNOWN = 255
"""Values of `skips.npy`, ordinal: no flag at all, played to the end, mostly played, briefly, very briefly.
`is_skip` tells which of them the challenge calls skipped."""

SKIP_FLAGS = {"not_skipped": SKIP_PLAYED, "skip_3": SKIP_3_ONLY, "skip_2": SKIP_2, "skip_1": SKIP_1}
"""MSSD's flags in ascending order of their codes. The skip flags are cumulative: the strictest that is set counts."""
SCHEMA_VERSION = 1
"""Version of the dataset folder's layout (docs/data.md)."""
OLDER_PROTOCOLS: dict[str, Any] = {"seed": "original"}
"""What protocols of earlier versions are called now, in options, datasets and runs."""
SPLITS = ("train", "valid", "test")
"""Splits of a dataset, in order of time."""
PREFIXES = "_prefixes"
"""Suffix of a split's name: the next track was predicted after every prefix of every session."""
N_SPLITS = 10
"""MSSD's training files come in ten splits a day."""
MIN_LENGTH, MAX_LENGTH = 10, 20
"""Shortest and longest MSSD session, in plays."""


def is_skip(codes: Any) -> Any:
    """Which codes `SKIP_*` mean skip_2, the challenge's label: an array or tensor in, bool of the same shape out."""
    return (codes >= SKIP_2) & (codes <= SKIP_1)


def skip_flags(codes: Any) -> dict[str, Any]:
    """MSSD's flags of known codes `SKIP_*`, each an array of their shape."""
    cumulative = {name: codes >= code for name, code in SKIP_FLAGS.items()}
    return cumulative | {"not_skipped": codes == SKIP_PLAYED}


def log_file(split: int, day: str) -> str:
    """Name of a training log of `split` (0..9) on `day` (YYYYMMDD)."""
    return f"log_{split}_{day}_000000000000.csv"


def half(length: int) -> int:
    """Plays in the first half: MSSD gives the odd play to the second half."""
    return length // 2
