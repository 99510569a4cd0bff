"""Rows: which of them are saved, where, and how they are printed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_checks import a_row, save_in

from benchmarks import decoding, evaluation, loading, next_track, past, preprocessing, pretraining, rows, training
from benchmarks.rows import Row, save_rows, table
from benchmarks.workload import Sizes
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.core.files import read_json, write_json


def test_rows_replace_those_of_the_same_name(saved: Path) -> None:
    path = saved / "latest.json"
    save_rows([a_row("a", 1), a_row("b", 2)], path)
    save_rows([a_row("b", 3), a_row("c", 4)], path)
    assert [(r["name"], r["value"]) for r in read_json(path)] == [("a", 1), ("b", 3), ("c", 4)]
    assert {"date", "commit", "processor", "cores", "torch", "threads", "spin_count"} <= set(read_json(path)[0])
    save_rows([a_row("c", 5)], path, keep_others=False)
    assert [r["name"] for r in read_json(path)] == ["c"]


def publish(config: loading.Config | training.Config, value: float) -> list[Row]:
    """Publish one row as a part does."""
    return rows.publish(config, lambda config, folder: [a_row("a", value, quick=config.quick)])


def test_quick_rows_never_replace_full_ones(saved: Path) -> None:
    publish(training.Config(), 1)
    publish(training.Config(quick=True), 2)
    assert [r["value"] for r in read_json(saved / "latest.json")] == [1]
    assert [r["value"] for r in read_json(saved / "latest_quick.json")] == [2]


def test_rows_say_how_much_was_measured(saved: Path) -> None:
    [found] = publish(training.Config(rounds=3), 1)
    expected = {"sizes": asdict(Sizes()), "rounds": 3, "steps": 4, "matmul_size": 4096}
    assert found.settings == expected == read_json(saved / "latest.json")[0]["settings"]


@pytest.mark.parametrize(
    "config",
    [
        training.Config(replace(Sizes(), tracks=10_000)),
        training.Config(steps=2),
        training.Config(steps=8, quick=True),
        loading.Config(sessions=1_000_000),
    ],
)
def test_rows_of_other_sizes_never_replace_those_of_the_default_sizes(
    saved: Path, capsys: pytest.CaptureFixture[str], config: loading.Config | training.Config
) -> None:
    publish(config, 1)
    assert list(saved.iterdir()) == []
    assert "Not saved in latest" in capsys.readouterr().out
    publish(replace(config, out=saved / "mine" / "rows.json"), 2)
    assert [path.name for path in saved.iterdir()] == ["mine"]
    assert [r["value"] for r in read_json(saved / "mine" / "rows.json")] == [2]
    assert "Not saved" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "full", "quick"),
    [
        (training, {"rounds": 7, "steps": 4}, {"rounds": 2, "steps": 2}),
        (next_track, {"rounds": 7, "steps": 4}, {"rounds": 2, "steps": 2}),
        (pretraining, {"rounds": 7, "steps": 4}, {"rounds": 2, "steps": 2}),
        (decoding, {"rounds": 7}, {"rounds": 2}),
        (evaluation, {"rounds": 7}, {"rounds": 2}),
        (loading, {"rounds": 7, "sessions": 10_000_000}, {"rounds": 2, "sessions": 1_000_000}),
        (
            preprocessing,
            {"rounds": 5, "sessions": 181_000, "memory_sessions": 18_100},
            {"rounds": 2, "sessions": 18_100, "memory_sessions": 0},
        ),
        (
            past,
            {"rounds": 3, "plays": 1_000_000, "large_plays": 10_000_000},
            {"rounds": 2, "plays": 100_000, "large_plays": 0},
        ),
    ],
)
def test_quick_changes_defaults_only(
    part: ModuleType, full: dict, quick: dict, monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    def options_of(args: list[str]) -> dict:
        asked: list = []
        monkeypatch.setattr(part, "measure_all", lambda config, folder: asked.append(config) or [a_row("a", 1)])
        cli(part.main, part.Config, description="", args=args)
        return {name: getattr(asked[0], name) for name in full}

    assert options_of([]) == full
    assert options_of(["--quick", "true"]) == quick
    assert options_of(["--quick", "true", *(f"--{name}={value}" for name, value in full.items())]) == full


def test_table() -> None:
    some = [
        Row("matmul/fp32", 151.4, "GFLOP/s", peak_mib=300, best=160),
        Row("train/seq/reference", 43.21, "sessions/s", 1.0, 4633.0, 50.0, None, 432.1, 0.3),
        Row("train/seq/sampled", 1234567.0, "sessions/s", 12.34, 1500.0, 2e6, None, 1.2e7, 0.456),
    ]
    assert table(some).splitlines() == [
        "matmul               value       best  unit         ratio   targets/s  of ceiling  peak MiB",
        "  fp32                 151        160  GFLOP/s                                          300",
        "",
        "train                value       best  unit         ratio   targets/s  of ceiling  peak MiB",
        "  seq/reference       43.2         50  sessions/s     1 x         432         30%     4,633",
        "  seq/sampled    1,234,567  2,000,000  sessions/s  12.3 x  12,000,000         46%     1,500",
    ]
    assert "targets/s" not in table(some[:1])


def test_the_latest_rows_are_printed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = [a_row("load/a", 10), a_row("train/b", 20)]
    save_rows(some, rows.LATEST)
    rows.main(rows.Config())
    assert capsys.readouterr().out.endswith(table(some) + "\n")
    older = [{key: r[key] for key in r if key not in ("settings", "spin_count")} for r in read_json(rows.LATEST)]
    write_json(rows.LATEST, older)
    rows.main(rows.Config())
    assert capsys.readouterr().out.endswith(table(some) + "\n")
    with pytest.raises(UserError, match=r"latest_quick.json does not exist"):
        rows.main(rows.Config(quick=True))


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows are saved here."""
    return save_in(tmp_path, monkeypatch)
