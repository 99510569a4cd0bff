"""Compare all runs: print leaderboards, and write leaderboard.json, report.html and accuracy_by_position.png.

python report.py
python report.py --runs runs
python report.py --runs runs --html false
python report.py --runs runs --compare '[[Transformer, n-gram with kNN]]'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from utils.core.cli import cli


@dataclass
class Config:
    """What to compare and what to write."""

    runs: Path = Path("runs")
    """Folder of the runs, with `<experiment>/<stamp>/result.json` inside."""
    compare: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of rows to compare session by session, by their labels."""
    html: bool = True
    """Write report.html and the picture; without them the command takes a second."""


def main(config: Config) -> None:
    """Read the runs, print the leaderboards, write the files."""
    from utils.core.files import write_json
    from utils.reporting.leaderboard import add_comparisons, build_tables, run_records
    from utils.reporting.page import write_report
    from utils.reporting.picture import plot_accuracy_by_position
    from utils.reporting.runs import load_runs
    from utils.reporting.text import describe_choices, format_table, wrap

    runs, notes = load_runs(config.runs)
    tables, more = add_comparisons(build_tables(runs), config.compare)
    notes += more
    for table in tables:
        print(format_table(table), end="\n\n")
    for choice in describe_choices(tables):
        print(wrap(choice), end="\n\n")
    for note in notes:
        print(f"note: {note}")
    write_json(config.runs / "leaderboard.json", run_records(runs, tables))
    print(f"wrote {config.runs / 'leaderboard.json'}: {len({run.folder for run in runs})} runs")
    if config.html:
        write_report(config.runs / "report.html", runs, tables, notes)
        print(f"wrote {config.runs / 'report.html'}")
        picture = config.runs / "accuracy_by_position.png"
        picture.unlink(missing_ok=True)
        if any(plot_accuracy_by_position(picture, table) for table in tables if table.task == "skip"):
            print(f"wrote {picture}")


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
