"""What the options of all parts have in common: how much is measured, and where its rows go."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol


class Options(Protocol):
    """Fields of every part's Config, a dataclass; others say how large the work is."""

    rounds: int
    """Rounds that are timed."""
    quick: bool
    """Other defaults: less work and fewer contenders."""
    out: Path | None
    """File for the rows."""


def fill_in(config: Options, **values: tuple[int, int]) -> None:
    """Give each named option that is 0 its default: the first value, or the second one if `config.quick`."""
    for name, (full, quick) in values.items():
        setattr(config, name, getattr(config, name) or (quick if config.quick else full))


def settings(config: Any) -> dict[str, Any]:
    """How much was measured, for the rows: all options but those that only choose contenders and places."""
    return {name: value for name, value in asdict(config).items() if name not in ("quick", "out", "work", "picture")}


def has_usual_sizes(config: Any) -> bool:
    """Whether rows can stand beside those of other runs: only the number of rounds is not the default."""
    return settings(config) == settings(type(config)(quick=config.quick, rounds=config.rounds))
