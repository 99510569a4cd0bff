"""All parts, one after another, by one command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_checks import SMALL, a_row, measure_in_this_process, save_in

from benchmarks import __main__ as everything
from benchmarks import (
    decoding,
    evaluation,
    large,
    loading,
    next_track,
    past,
    preprocessing,
    pretraining,
    processes,
    rows,
    training,
)
from benchmarks.rows import Row, save_rows
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.core.files import read_json


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows are saved here."""
    return save_in(tmp_path, monkeypatch)


@pytest.fixture
def here(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measure in this process, and save there."""
    measure_in_this_process(monkeypatch)
    return saved


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The parts by the names of their rows, each of which only says that it was there."""
    found = {"matmul": training, "next-track": next_track, "pretrain": pretraining, "decode": decoding}
    found |= {
        "evaluate": evaluation,
        "large": large,
        "processes": processes,
        "load": loading,
        "preprocess": preprocessing,
        "past": past,
    }
    for name, part in found.items():
        measured = partial(measured_at_once, name)
        monkeypatch.setattr(part, "measure_all", measured)
    return found


def measured_at_once(name: str, config: loading.Config, folder: Path) -> list[Row]:
    return [a_row(f"{name}/x", config.rounds, quick=config.quick)]


def test_all_parts_are_run_and_printed(
    saved: Path, parts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    save_rows([a_row("preprocess/of old", 1)], rows.LATEST_QUICK)
    names = [f"{name}/x" for name in parts]
    assert [found.name for found in everything.main(everything.Config(quick=True))] == names
    together = capsys.readouterr().out.partition("All together")[2].splitlines()
    assert [line.split()[0] for line in together if line.startswith(tuple(parts))] == list(parts)
    assert [r["name"] for r in read_json(saved / "latest_quick.json")] == names, "rows of old are gone"
    assert {r["value"] for r in read_json(saved / "latest_quick.json")} == {2}
    assert read_json(saved / "latest_quick.json")[0]["settings"]["steps"] == 2
    assert not (saved / "latest.json").exists()


@pytest.mark.parametrize("error", [UserError("pretrain/bert died"), OSError("no space left")])
def test_a_part_that_fails_costs_no_rows_of_others(
    saved: Path,
    parts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(config: training.Config, folder: Path) -> list[Row]:
        raise error

    monkeypatch.setattr(parts.pop("pretrain"), "measure_all", fail)
    save_rows([a_row("pretrain/x", 99)], rows.LATEST)
    with pytest.raises(UserError, match=r"some parts failed.*: python -m benchmarks.pretraining$"):
        everything.main(everything.Config())
    printed = capsys.readouterr()
    together = printed.out.partition("All together")[2].splitlines()
    assert [line.split()[0] for line in together if line.startswith(tuple(parts))] == list(parts)
    assert str(error) in printed.err
    assert ("Traceback" in printed.err) == isinstance(error, OSError)
    values = {r["name"]: r["value"] for r in read_json(saved / "latest.json")}
    rounds = {"preprocess": 5, "large": 5, "processes": 5, "past": 3}
    assert values == {f"{name}/x": rounds.get(name, 7) for name in parts} | {"pretrain/x": 99}


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        (training, ["--sizes.history_size=5"], "sizes.history_size is 5 and sizes.target_size 10; they must be equal"),
        (training, ["--sizes.tracks=0"], "sizes.tracks is 0; it must be at least 2"),
        (training, ["--sizes.batch_size=0"], "sizes.batch_size is 0; it must be at least 1"),
        (training, ["--rounds=-1"], "benchmark.rounds is -1; it must be at least 1"),
        (training, [*SMALL, "--sizes.n_heads=3"], "sizes: d_model 8 is no multiple of n_heads 3"),
        (pretraining, [*SMALL, "--sizes.dropout=2"], "sizes: dropout is 2.0; it must be "),
        (decoding, [*SMALL, "--sizes.n_heads=3"], "sizes: d_model 8 is no multiple of n_heads 3"),
        (decoding, [*SMALL, "--sizes.tracks=4"], "sizes.tracks is 4; it must be at least 5"),
        (evaluation, [*SMALL, "--sizes.tracks=8"], "sizes.tracks is 8; it must be at least 10"),
    ],
)
def test_bad_sizes_are_a_line_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], part: ModuleType, options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(part.main, part.Config, description="", args=options)
    assert stopped.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err
