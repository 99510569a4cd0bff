"""Which tracks does a listener now skip, and when? Answered from a dataset folder alone, without a model.

    python -m utils.reporting.listening --data data/mine
    python -m utils.reporting.listening --data data/mine --time_zone Europe/Paris --html runs/mine/listening.html
    python -m utils.reporting.listening --data data/ours --listener ada --months 3

The answers are printed, and written as a page with charts if --html names one. Everything stays on this machine.
docs/your_listening.md says how to read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.errors import UserError


@dataclass
class Config:
    """Whose listening, and how it is told."""

    data: Path
    """Dataset folder with skips."""
    html: Path | None = None
    """Write a page with charts to this file, too."""
    time_zone: str = "UTC"
    """IANA name of the time zone in which hours and days are told, such as Europe/Paris."""
    months: float = 6
    """How long "now" is, counted back from the last play (half of the history at most)."""
    min_sessions: int = 3
    """Fewest sessions with a track or artist, both before and now, for it to be compared."""
    listener: str | None = None
    """Only this listener."""
    listeners: int = 10
    """Tell of at most so many listeners, those with the most plays."""

    def __post_init__(self) -> None:
        check_at_least(self, "", months=0.1, min_sessions=1, listeners=1)


def main(config: Config) -> None:
    """Print the answers and write the page."""
    from tqdm import tqdm

    from utils.data.dataset import Dataset
    from utils.reporting.changed_habits import habits_changed
    from utils.reporting.heard import TrackNames, listeners, plays_of
    from utils.reporting.listening_page import write_listening
    from utils.reporting.listening_text import Answers, format_answers
    from utils.reporting.skip_rates import skip_habits

    dataset = Dataset.open(config.data)
    if not dataset.info["has_skips"]:
        print(f"{config.data} has no skips (its source has none), so there is nothing to tell of them")
        return
    everyone = listeners(dataset)
    if config.listener is not None and config.listener not in everyone:
        known = ", ".join(str(name) for name in list(everyone)[:5])
        raise UserError(f"{config.data} has no listener {config.listener!r}; it has {len(everyone)}: {known}")
    chosen = [config.listener] if config.listener is not None else list(everyone)[: config.listeners]
    names, answers = TrackNames(dataset), []
    for listener in tqdm(chosen, desc="listeners", disable=len(chosen) == 1):
        plays = plays_of(dataset, listener, config.time_zone)
        habits = skip_habits(plays) if plays.known.any() else None
        changes = habits_changed(plays, names, months=config.months, min_sessions=config.min_sessions)
        answers.append(Answers.of(listener if len(everyone) > 1 else None, plays, habits, changes))
    title = f"{dataset.info['name']}, times in {config.time_zone}"
    for answer in answers:
        print(format_answers(title, answer, min_sessions=config.min_sessions), end="\n\n")
    if len(chosen) < len(everyone) and config.listener is None:
        print(f"{len(everyone) - len(chosen)} listeners with fewer plays are left out: see --listeners and --listener")
    if config.html is not None:
        write_listening(config.html, title, answers, min_sessions=config.min_sessions)
        print(f"wrote {config.html}")


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
