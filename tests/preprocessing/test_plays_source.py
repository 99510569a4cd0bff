"""`--source NAME PATH`: how it is written, and what becomes of the plays that a source hands over."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from plays_door import LINES, csv_of, funnel, read_sessions

import evaluate
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.datapreprocessing import main
from utils.preprocessing import sources
from utils.preprocessing.options import Config, PlaysColumns, SourceName, SourceOptions, spell_out_source
from utils.preprocessing.outside_plays import plays_as_split
from utils.preprocessing.sources.plays import SourcePlays, check_options, columns_of

READ_AS = "utils.preprocessing.sources.session_rec"
"""The module that the tests put a source of their own in place of."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A source of days: each line of a file is a listener and the tracks of a day; `-` is no track. What it read."""
    asked: list[Path] = []

    def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
        check_options(options, "session-rec", ("drop_incognito",))
        asked.append(path)
        rows, n_none = [], 0
        for day, line in enumerate(path.read_text().splitlines()):
            user, *tracks = line.split()
            n_none += tracks.count("-")
            times = pd.date_range("2026-01-01", periods=len(tracks), freq="min", tz="UTC") + pd.Timedelta(day, "D")
            rows += [(user, time, track) for time, track in zip(times, tracks, strict=True) if track != "-"]
        frame = pd.DataFrame(rows, columns=["user", "time", "track"]).assign(skip="skip_2", seconds=3.0)
        frame.iloc[: len(frame) // 2].to_parquet(work / "1.parquet")
        frame.iloc[len(frame) // 2 :].to_parquet(work / "2.parquet")
        features = work / "features.parquet"
        pd.DataFrame({"track_id": ["a", "b"], "x": [1.0, 3.0]}).to_parquet(features)
        return SourcePlays(
            files=[work / "1.parquet", work / "2.parquet"],
            columns=columns_of(["user", "time", "track", "skip", "seconds"]),
            sources=[{"file": path.name, "bytes": path.stat().st_size, "rows": len(rows) + n_none}],
            dropped=[("no track", n_none), ("of another kind", 0)],
            notes=["made by hand"],
            features=features,
            per_listener=True,
        )

    module = ModuleType(READ_AS)
    module.read = read  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, READ_AS, module)
    return asked


def days(path: Path) -> Path:
    """Five days of Ann, then four of Bob; Bob's last is a single play."""
    path.write_text("ann a b\nann b a -\nann a b\nann b b\nann b a\n" + "bob a a\nbob - b a\nbob a b\nbob a\n")
    return path


SPLITS = {
    "train": {"ann_1": ["a", "b"], "ann_2": ["b", "a"], "ann_3": ["a", "b"], "bob_1": ["a", "a"]},
    "valid": {"ann_4": ["b", "b"], "bob_2": ["b", "a"]},
    "test": {"ann_5": ["b", "a"], "bob_3": ["a", "b"]},
}
"""Of `days`, within each listener."""


def test_a_source_becomes_a_dataset(tmp_path: Path, asked: list[Path]) -> None:
    path = days(tmp_path / "days.txt")
    info = main(Config(tmp_path / "d", plays=path, source="session-rec", min_count=1))
    assert asked == [path]
    assert read_sessions(tmp_path / "d") == SPLITS
    assert info["sources"] == [{"file": "days.txt", "bytes": path.stat().st_size, "rows": 19}]
    assert list(funnel(info).items())[:3] == [("read", 19), ("dropped: no track", 2), ("dropped: of another kind", 0)]
    assert funnel(info)["dropped: fewer than 2 plays"] == 1
    assert "made by hand" in info["notes"]
    assert info["features"]["names"] == ["x"]
    assert (info["has_skips"], info["has_log"]) == (True, True)
    assert info["command"].endswith(f"--plays {path} --source session-rec --min_count 1")
    assert not list(tmp_path.glob("d/work*"))
    assert Dataset.open(tmp_path / "d").train.seconds is not None


def test_options_of_the_command_go_before_those_of_the_source(tmp_path: Path, asked: list[Path]) -> None:
    path = days(tmp_path / "days.txt")
    pd.DataFrame({"id": ["a"], "y": [1.0], "z": [1.0]}).to_csv(tmp_path / "f.csv", index=False)
    config = Config(tmp_path / "d", plays=path, source="session-rec", min_count=1, split_by="time")
    config.features, config.features_track = tmp_path / "f.csv", "id"
    config.plays_columns = PlaysColumns(gap=30.0)  # every play is a session
    config.min_session_length = 1
    info = main(config)
    assert info["features"]["names"] == ["y", "z"]
    assert list(read_sessions(tmp_path / "d")["test"]) == ["bob_6", "bob_7"]
    assert {len(tracks) for split in read_sessions(tmp_path / "d").values() for tracks in split.values()} == {1}
    assert "--plays_columns.gap 30.0" in info["command"]


def test_evaluate_reads_the_same_source(tmp_path: Path, asked: list[Path]) -> None:
    path = days(tmp_path / "days.txt")
    main(Config(tmp_path / "d", plays=path, source="session-rec", min_count=1))
    dataset = Dataset.open(tmp_path / "d")
    arrays = plays_as_split(path, PlaysColumns(), dataset, tmp_path / "x", source="session-rec")
    assert asked == [path, path]
    in_order = sorted(name for split in SPLITS.values() for name in split)
    assert arrays.sessions["session_id"].tolist() == in_order
    assert dataset.track_names[arrays.tracks[:6]].tolist() == ["a", "b", "b", "a", "a", "b"]
    assert arrays.seconds is not None
    with pytest.raises(UserError, match="time_zone has no meaning for --source session-rec"):
        plays_as_split(
            path, PlaysColumns(), dataset, tmp_path / "y", source="session-rec", options=SourceOptions(time_zone="CET")
        )


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["--source", "spotify", "x.zip", "--out", "d"], ["--source", "spotify", "--plays", "x.zip", "--out", "d"]),
        (["--out", "d", "--source", "spotify", "x.zip"], ["--out", "d", "--source", "spotify", "--plays", "x.zip"]),
        (["--source=lastfm", "a b.csv"], ["--source=lastfm", "--plays", "a b.csv"]),
        (["--source", "yambda", "--plays", "x"], ["--source", "yambda", "--plays", "x"]),
        (["--plays", "x", "--source", "yambda"], ["--plays", "x", "--source", "yambda"]),
        (["--source", "recbole"], ["--source", "recbole"]),
        (["--source", "--out", "d"], ["--source", "--out", "d"]),
        (["--plays", "x"], ["--plays", "x"]),
        (["--source_options.time_zone", "UTC", "x"], ["--source_options.time_zone", "UTC", "x"]),
    ],
)
def test_the_path_may_follow_the_name(written: list[str], meant: list[str]) -> None:
    assert spell_out_source(written) == meant
    assert spell_out_source(meant) == meant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spotify", "a.zip", "b.zip"], "--source takes a name and one path, not 2 (a.zip, b.zip); to read several"),
        (["spotify", "a.zip", "--plays", "b.zip"], "--source takes a name and one path, not 2 (a.zip, --plays);"),
        (["spotfy", "a.zip"], "--source spotfy: there is no such source; there are spotify, spotify-account, "),
        (["a.zip"], "--source a.zip: there is no such source"),
        (["spotify"], "--source spotify needs the path of its files: --source spotify PATH"),
        (["spotify", "a.zip", "--raw", "r"], "give either --raw"),
        (["spotify", "a.zip", "--plays_columns.track", "t"], "--plays_columns.track has no meaning beside --source"),
        (["spotify", "a.zip", "--split_column", "t"], "--plays_columns.split has no meaning beside --source"),
        (["spotify", "a.zip", "--drop_rows_without_track", "true"], "--drop_rows_without_track means nothing beside"),
    ],
)
def test_wrong_forms_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**how: Any) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli(shorthand=spell_out_source, args=["--source", *arguments, *how.pop("more")], description="", **how)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    said = run(main=main, config_class=Config, more=["--out", str(tmp_path / "d")])
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    if not {"--raw", "--split_column", "--drop_rows_without_track"} & set(arguments):
        assert run(main=evaluate.main, config_class=evaluate.Config, more=["--run", "r"]) == said


def test_options_of_sources_need_a_source(tmp_path: Path) -> None:
    options = SourceOptions(drop_incognito=True)
    with pytest.raises(UserError, match=r"--source_options.drop_incognito is for --source"):
        main(Config(tmp_path / "d", plays=csv_of(tmp_path / "p.csv", LINES), source_options=options))
    with pytest.raises(UserError, match=r"--source_options.drop_incognito is for --source"):
        evaluate.main(evaluate.Config("r", plays="p.csv", source_options=options))


def test_every_module_that_reads_is_named() -> None:
    """Modules of `sources/` with a function `read` are the choices of the option, and help may show them all."""
    found = set()
    for module in pkgutil.iter_modules(sources.__path__):
        if hasattr(importlib.import_module(f"{sources.__name__}.{module.name}"), "read"):
            found.add(module.name.replace("_", "-"))
    assert found
    assert found <= set(get_args(SourceName))


def test_a_source_without_times_drops_no_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, work: Path, options: SourceOptions) -> SourcePlays:
        frame = pd.DataFrame({"session": np.arange(18) // 2, "position": np.arange(18) % 2, "track": "a"})
        frame.astype({"session": str}).to_parquet(work / "p.parquet")
        columns = columns_of(["session", "position", "track"])
        return SourcePlays([work / "p.parquet"], columns, [{"file": "x", "bytes": 1, "rows": 18}], [], [])

    module = ModuleType(READ_AS)
    module.read = read  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, READ_AS, module)
    config = Config(tmp_path / "d", plays=tmp_path, source="session-rec", min_count=1)
    assert funnel(main(config))["kept"] == 18
    config.overwrite = config.keep_repeats = True
    with pytest.raises(UserError, match="--keep_repeats means nothing where plays have no times"):
        main(config)
