"""The measurements: rounds are interleaved, ratios are taken within them, and who does other work is not measured."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import mssd_files
import numpy as np
import pytest
import torch
import toy_contenders

from benchmarks import __main__ as everything
from benchmarks import (
    decoding,
    evaluation,
    gpu,
    growth,
    large,
    loading,
    next_track,
    predicting,
    preprocessing,
    pretraining,
    processes,
    reference,
    rows,
    training,
    workload,
)
from benchmarks.rounds import Contender, Measured, gate, measure
from benchmarks.rows import Row, save_rows, table
from benchmarks.workload import Sizes
from model.catalogue import Catalogue
from model.dropout import Dropout
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.core.files import read_json, write_json
from utils.data.dataset import SessionArrays
from utils.training import losses

TINY = Sizes(tracks=300, features=3, d_model=8, d_ff=16, batch_size=32)
SMALL = [f"--sizes.{name}={getattr(TINY, name)}" for name in ("tracks", "features", "d_model", "d_ff", "batch_size")]


# ---------------------------------------------------------------------------------------------------------- rows


def row(name: str, value: float, *, quick: bool = False) -> Row:
    return Row(name, value, "rows/s", peak_mib=1.5, quick=quick)


def test_rows_replace_those_of_the_same_name(saved: Path) -> None:
    path = saved / "latest.json"
    save_rows([row("a", 1), row("b", 2)], path)
    save_rows([row("b", 3), row("c", 4)], path)
    assert [(r["name"], r["value"]) for r in read_json(path)] == [("a", 1), ("b", 3), ("c", 4)]
    assert {"date", "commit", "processor", "cores", "torch", "threads", "spin_count"} <= set(read_json(path)[0])
    save_rows([row("c", 5)], path, keep_others=False)
    assert [r["name"] for r in read_json(path)] == ["c"]


def publish(config: loading.Config | training.Config, value: float) -> list[Row]:
    """Publish one row as a part does."""
    return rows.publish(config, lambda config, folder: [row("a", value, quick=config.quick)])


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
    ],
)
def test_quick_changes_defaults_only(
    part: ModuleType, full: dict, quick: dict, monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    def options_of(args: list[str]) -> dict:
        asked: list = []
        monkeypatch.setattr(part, "measure_all", lambda config, folder: asked.append(config) or [row("a", 1)])
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
    some = [row("load/a", 10), row("train/b", 20)]
    save_rows(some, rows.LATEST)
    rows.main(rows.Config())
    assert capsys.readouterr().out.endswith(table(some) + "\n")
    older = [{key: r[key] for key in r if key not in ("settings", "spin_count")} for r in read_json(rows.LATEST)]
    write_json(rows.LATEST, older)
    rows.main(rows.Config())
    assert capsys.readouterr().out.endswith(table(some) + "\n")
    with pytest.raises(UserError, match=r"latest_quick.json does not exist"):
        rows.main(rows.Config(quick=True))


# -------------------------------------------------------------------------------------------------------- rounds


def test_rounds_are_interleaved_after_one_warm_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow = Contender("slow", toy_contenders.writes, {"path": log, "name": "s", "seconds": 0.05})
    fast = Contender("fast", toy_contenders.writes, {"path": log, "name": "f"})
    measured = measure([slow, fast], rounds=3, title="toys")
    assert log.read_text() == "sf" + "sf" * 3
    assert list(measured) == ["slow", "fast"]
    assert [len(found.rates) for found in measured.values()] == [3, 3]
    assert all(10 < rate <= 10 / 0.05 for rate in measured["slow"].rates)
    assert measured["fast"].ratio(measured["slow"]) > 1


def test_ratios_are_taken_within_rounds() -> None:
    """The machine was fast in the second round, for both; the ratio of the medians would be 4.5."""
    reference = Measured("reference", rates=[1.0, 10.0, 2.0], idle_mib=1, peak_mib=2)
    ours = Measured("ours", rates=[2.0, 40.0, 9.0], idle_mib=1, peak_mib=3)
    found = ours.row("sessions/s", reference=reference, quick=True)
    assert found == Row("ours", 9.0, "sessions/s", ratio=4.0, peak_mib=3, best=40.0, idle_mib=1, quick=True)
    assert ours.row("sessions/s").ratio is None


def test_peak_memory_is_that_of_each_process_alone() -> None:
    ballast = b"x" * (300 << 20)
    contenders = [Contender(str(mib), toy_contenders.holds, {"mib": mib}) for mib in (1, 200)]
    small, large = measure(contenders, rounds=1, title="toys").values()
    assert len(ballast) == 300 << 20
    assert small.idle_mib <= small.peak_mib < 200
    assert 190 < large.peak_mib - small.peak_mib < 230


@pytest.mark.parametrize(
    ("setup", "options", "message"),
    [
        (toy_contenders.is_wrong, {}, r"bad failed:\nTraceback[\s\S]*ValueError: no such thing"),
        (toy_contenders.fails_later, {"after": 2}, r"bad failed:\nTraceback[\s\S]*StopIteration"),
        (toy_contenders.dies, {}, "bad: its process died with exit code 3"),
    ],
)
def test_a_contender_that_fails(tmp_path: Path, setup: Callable, options: dict, message: str) -> None:
    good = Contender("good", toy_contenders.writes, {"path": tmp_path / "log", "name": "g"})
    with pytest.raises(UserError, match=message):
        measure([good, Contender("bad", setup, options)], rounds=5, title="toys")
    assert not multiprocessing.active_children()


# --------------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows are saved here."""
    monkeypatch.setattr(rows, "LATEST", tmp_path / "latest.json")
    monkeypatch.setattr(rows, "LATEST_QUICK", tmp_path / "latest_quick.json")
    return tmp_path


def measure_here(contenders: Sequence[Contender], *, rounds: int, title: str) -> dict[str, Measured]:
    """`measure` without processes of their own, each of which takes seconds to import torch."""
    measured = {}
    for contender in contenders:
        contender = pickle.loads(pickle.dumps(contender))
        step = contender.setup(**contender.options)
        rates = []
        for _ in range(rounds):
            start = time.perf_counter()
            rates.append(step() / (time.perf_counter() - start))
        measured[contender.name] = Measured(contender.name, rates, idle_mib=1.0, peak_mib=2.0)
    return measured


@pytest.fixture
def here(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measure in this process, and save there."""
    for module in (
        training,
        predicting,
        large,
        growth,
        loading,
        preprocessing,
    ):  # which measure for others, too
        monkeypatch.setattr(module, "measure", measure_here)
    return saved


def check_rows(found: list[Row], names: list[str], path: Path) -> None:
    """All rows are there, once, with values that can be; and they are saved."""
    assert [row.name for row in found] == names
    for row in found:
        assert 0 < row.value < math.inf
        assert row.peak_mib is not None
        assert row.peak_mib > 0
        assert row.ratio is None or 0 < row.ratio < math.inf
    assert [row["name"] for row in read_json(path)] == names


def test_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "rows.json"
    found = training.main(training.Config(TINY, rounds=1, steps=1, matmul_size=16, out=path))
    seq = ["reference", *training.VARIANTS]
    names = [f"{training.SEQ}/{name}" for name in seq] + [
        f"{training.SKIP}/{name}" for name in ("reference", "ours", "ours-bf16")
    ]
    check_rows(found, ["matmul/fp32", "matmul/bf16", *names], path)
    for row in found[2:]:
        assert row.targets_per_second == pytest.approx(10 * row.value)
        assert row.ceiling_share is not None
        assert row.ceiling_share > 0
    assert {"sampled-2048", "sampled-8192", "full-fp32", "full-bf16"} <= set(training.VARIANTS)
    assert found[2].ratio == found[-3].ratio == 1.0
    assert "seq-transformer/sampled-2048" in capsys.readouterr().out


@pytest.mark.parametrize("quick", [False, True])
def test_pretraining(here: Path, quick: bool) -> None:
    path = here / "rows.json"
    found = pretraining.main(pretraining.Config(TINY, rounds=1, steps=1, matmul_size=16, quick=quick, out=path))
    names = ["reference", *(pretraining.QUICK_NAMES if quick else pretraining.NAMES)]
    check_rows(found, [f"{pretraining.BERT}/{name}" for name in names], path)
    for row in found:
        assert row.targets_per_second == pytest.approx(4 * row.value)
        assert row.ceiling_share is not None
        assert row.ceiling_share > 0
    assert found[0].ratio == 1.0


@pytest.mark.parametrize("quick", [False, True])
def test_next_track(here: Path, quick: bool) -> None:
    """Units are targets, of the GRU 19 in a session; the second table has the GRU's own reference."""
    path = here / "rows.json"
    found = next_track.main(next_track.Config(TINY, rounds=1, steps=1, matmul_size=16, quick=quick, out=path))
    names = ["transformer/reference", "gru/sampled-2048"]
    names += [] if quick else ["gru/sampled-2048-fp32", "gru/reference", "gru/reference-2048"]
    check_rows(found, [f"next-track/{name}" for name in names], path)
    for row in found:
        assert (row.unit, row.targets_per_second) == ("targets/s", row.value)
        assert row.ceiling_share is not None
        assert row.ceiling_share > 0
    assert found[0].ratio == 1.0


def test_large(here: Path) -> None:
    path = here / "rows.json"
    found = large.main(large.Config(replace(TINY, tracks=400), rounds=1, steps=1, out=path))
    tasks = [f"train/{name}" for name in large.BUILDS] + list(large.PREDICTORS)
    check_rows(found, [f"large/{task}/{size}" for task in tasks for size in ("few-tracks", "all-tracks")], path)
    assert all(row.unit == "sessions/s" for row in found)
    assert [row.ratio for row in found[::2]] == [1.0] * len(tasks)


def test_large_has_all_of_msssds_tracks_by_default() -> None:
    assert large.Config().sizes.tracks == 3_700_000
    assert large.Config(quick=True).sizes.tracks == 370_000
    assert large.Config(TINY, quick=True).sizes.tracks == TINY.tracks


def test_moments_are_in_memory_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload.full_sessions(tmp_path / "train", 64, TINY)
    kept: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(large, "fill_memory", lambda optimizers: kept.extend(optimizers))
    step = large.setup_training(tmp_path / "train", TINY, 1, large.skip_transformer)
    assert step() == TINY.batch_size
    monkeypatch.undo()
    moments = next(iter(kept[1].state.values()))["exp_avg"]
    assert (moments == 0).all(1).any(), "some tracks have not been seen"
    large.fill_memory(kept)
    assert not (moments == 0).all(1).any()


def test_processes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two processes are set up in one here; tests/test_distributed.py has two."""
    path = here / "rows.json"
    asked: dict[str, int] = {}

    def measure_one(contenders: Sequence[Contender], *, rounds: int, title: str) -> dict[str, Measured]:
        asked.update((contender.name, contender.options["processes"]) for contender in contenders)
        alone = [replace(c, options={**c.options, "processes": 1}) for c in contenders if "sharded" not in c.name]
        return measure_here(alone, rounds=rounds, title=title)

    monkeypatch.setattr(processes, "measure", measure_one)
    found = processes.main(processes.Config(TINY, TINY, rounds=1, steps=2, out=path))
    alone = ["processes/train/one", "processes/train/two", "processes/table/replicated", "processes/save/replicated"]
    check_rows(found, alone, path)
    assert asked == {
        "processes/train/one": 1,
        "processes/train/two": 2,
        "processes/table/replicated": 2,
        "processes/table/sharded": 2,
        "processes/save/replicated": 2,
        "processes/save/sharded": 2,
    }


def test_a_step_of_saving_is_a_whole_checkpoint(tmp_path: Path) -> None:
    sizes = replace(TINY, batch_size=1)
    workload.full_sessions(tmp_path / "train", 8, sizes)
    assert processes.setup(tmp_path / "train", sizes, 2, "saved", 1)() == 2, "saves"
    state = torch.load(tmp_path / "train" / "last.pt", weights_only=True)
    assert state["model"]["tracks.table.weight"].shape == (sizes.n_ids, sizes.d_model)
    moments = [value["exp_avg"].shape for optimizer in state["optimizers"] for value in optimizer["state"].values()]
    assert (sizes.n_ids, sizes.d_model) in moments


def test_gpu_benchmark_on_the_processor(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved / "rows.json"
    config = gpu.Config(device="cpu", sizes=TINY, seconds=0.01, sessions=64, matmul_size=16, out=path)
    found = gpu.main(config)
    names = [f"gpu/{name}/eager" for name in gpu.BUILDS]
    assert [row.name for row in found] == ["gpu/matmul-bf16", *names]
    assert [row["name"] for row in read_json(path)] == ["gpu/matmul-bf16", *names]
    for row in found[1:]:
        assert row.value > 0
        assert row.peak_mib is not None
        assert row.ceiling_share is not None
        assert row.ceiling_share > 0
    assert capsys.readouterr().out.count(" min") == len(gpu.BUILDS)


def test_epochs_by_hand() -> None:
    rows = [Row("gpu/matmul-bf16", 9.0, "GFLOP/s"), Row("gpu/x/eager", 1000.0, "sessions/s")]
    _, line = gpu.epochs(rows, replace(TINY, batch_size=256)).splitlines()
    assert line.split() == ["x/eager", "256.0", "55.0", "min"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_benchmark_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(gpu.main, gpu.Config, description="", args=[])
    assert stopped.value.code == 2
    assert "there is no CUDA GPU here" in capsys.readouterr().err


def test_growth(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(growth, "MANY", TINY)
    monkeypatch.setattr(growth, "FEW_TRACKS", 1000)
    picture, path = here / "growth.png", here / "rows.json"
    found = growth.main(growth.Config([400, 400], [600, 300], rounds=1, steps=1, picture=picture, out=path))
    names = ["preprocess/sessions-400", "train/sessions-400", "score/sessions-400"]
    names += [f"{curve}/tracks-{n}" for n in (300, 600) for curve in ("train", "rank", "top-10")]
    check_rows(found, [f"growth/{name}" for name in names], path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "time as n^" in capsys.readouterr().out


def test_growth_by_hand() -> None:
    """A thousand sessions take 1 s, ten thousand 20 s, with memory that does not grow; ranking slows down tenfold."""
    rates = {"train/sessions-1000": 1000.0, "train/sessions-10000": 500.0, "rank/tracks-10": 50.0}
    rows = [row(f"growth/{name}", value) for name, value in {**rates, "rank/tracks-100": 5.0}.items()]
    first, _, second, ends = growth.describe(rows).splitlines()
    assert first.split() == ["train/sessions", "time", "as", "n^1.30,", "memory", "as", "n^0.00"]
    assert second.split() == ["rank/tracks", "time", "as", "n^1.00,", "memory", "as", "n^0.00"]
    assert ends == "    10: 20 s a thousand sessions, 2 MiB, 100: 200 s a thousand sessions, 2 MiB"


def test_units_of_next_track_are_targets(tmp_path: Path) -> None:
    workload.full_sessions(tmp_path / "train", 64, TINY)
    n = TINY.batch_size
    assert next_track.setup_transformer(tmp_path / "train", TINY)() == n * 10
    assert next_track.setup_reference(tmp_path / "train", TINY)() == n * 19
    assert next_track.setup_sampled_reference(tmp_path / "train", TINY, 2, 50)() == 2 * n * 19
    variant = training.VARIANTS["sampled-2048"]
    assert next_track.setup_gru(tmp_path / "train", TINY, 2, variant)() == 2 * n * 19


def test_flops_of_next_track_are_those_of_a_target(tmp_path: Path) -> None:
    """Of the softmax 6 D V, as below."""
    tiny, more = replace(TINY, batch_size=256), replace(TINY, batch_size=256, tracks=500)
    arrays = workload.full_sessions(tmp_path / "train", 256, tiny)
    variants = {"sampled": training.VARIANTS["sampled-2048"]}
    few, many = (next_track.work_of(arrays, sizes, variants) for sizes in (tiny, more))
    difference = {name: many[name].flops - few[name].flops for name in few}
    dense = 6 * TINY.d_model * 200
    gru, transformer = next_track.GRU, next_track.TRANSFORMER
    assert difference == pytest.approx(
        {
            f"{gru}/reference": dense,
            f"{gru}/reference-2048": 0,
            f"{gru}/sampled": 0,
            f"{transformer}/reference": dense,
        }
    )
    sampled, full = few[f"{gru}/sampled"].flops, few[f"{gru}/reference"].flops
    assert sampled - full == pytest.approx(6 * TINY.d_model * (2048 - TINY.n_ids), rel=0.01)


def test_the_gru_has_the_width_of_the_transformer_and_its_reference_no_fast_paths() -> None:
    model = workload.next_track_gru(TINY, sparse=True)
    assert (model.gru.input_size, model.gru.hidden_size, model.tracks.table.sparse) == (8, 8, True)
    assert not [m for m in reference.without_fast_paths(model).modules() if isinstance(m, Dropout)]


def test_flops_are_those_of_the_matrices(tmp_path: Path) -> None:
    """Of the softmax 6 N D V: the product forward, and two of the same size backward."""
    tiny, more = replace(TINY, batch_size=128), replace(TINY, batch_size=128, tracks=500)
    arrays = workload.full_sessions(tmp_path / "train", 128, tiny)
    variants = {"full": training.VARIANTS["full-fp32"], "sampled": training.VARIANTS["sampled-2048"]}
    few, many = (training.work_of(arrays, sizes, variants) for sizes in (tiny, more))
    difference = {name: many[name].flops - few[name].flops for name in few}
    each_track = 6 * tiny.target_size * tiny.d_model
    assert difference == {
        f"{training.SEQ}/reference": 200 * each_track,
        f"{training.SEQ}/full": 200 * each_track,
        f"{training.SEQ}/sampled": 0,
        f"{training.SKIP}/reference": 0,
        f"{training.SKIP}/ours": 0,
        f"{training.SKIP}/ours-bf16": 0,
    }
    sampled, full = few[f"{training.SEQ}/sampled"], few[f"{training.SEQ}/full"]
    assert sampled.flops - full.flops == (2048 - tiny.n_ids) * each_track
    assert (sampled.precision, full.precision) == ("bfloat16", "float32")


def test_decoding(here: Path) -> None:
    found = decoding.main(decoding.Config(TINY, rounds=1, out=here / "rows.json"))
    names = ["decode/greedy/reference", "decode/greedy/ours", "decode/beam-5", "decode/sample"]
    check_rows(found, names, here / "rows.json")


def test_evaluation(here: Path) -> None:
    found = evaluation.main(evaluation.Config(TINY, rounds=1, out=here / "rows.json"))
    check_rows(found, ["evaluate/top-10/reference", "evaluate/top-10/ours", "evaluate/ranks"], here / "rows.json")


@pytest.mark.parametrize(("part", "contenders"), [(decoding, 4), (evaluation, 3)])
def test_contenders_of_prediction_have_one_allocator(
    here: Path, monkeypatch: pytest.MonkeyPatch, part: ModuleType, contenders: int
) -> None:
    """As scoring has it, the reference too."""
    calls = []
    monkeypatch.setattr(predicting, "reuse_memory", lambda: calls.append(1))
    part.main(part.Config(TINY, rounds=1))
    assert len(calls) == contenders


def test_loading_in_processes_of_their_own(saved: Path) -> None:
    found = loading.main(loading.Config(sessions=10_000, quick=True, out=saved / "rows.json"))
    check_rows(found, ["load/python", "load/shuffled-4096"], saved / "rows.json")
    assert all(row.quick for row in found)
    assert found[1].ratio is not None
    assert found[1].ratio > 3


def test_preprocessing(here: Path) -> None:
    sizes = {"sessions": 2000, "tracks": 1000, "large_sessions": 3000, "memory_sessions": 20}
    found = preprocessing.main(preprocessing.Config(**sizes, rounds=1, out=here / "rows.json"))
    names = ["reference", "ours", "parse", "large/parse", "large/ours", "memory/10-files", "memory/60-files"]
    check_rows(found, [f"preprocess/{name}" for name in names], here / "rows.json")


def test_simulated_files_are_used_again_for_the_same_sizes_only(tmp_path: Path) -> None:
    few = preprocessing.simulate(tmp_path, sessions=20, tracks=1000, days=3)
    written = [path.stat().st_mtime_ns for path in sorted(few.rglob("*.csv"))]
    assert written
    assert preprocessing.simulate(tmp_path, sessions=20, tracks=1000, days=3) == few
    assert [path.stat().st_mtime_ns for path in sorted(few.rglob("*.csv"))] == written
    assert preprocessing.simulate(tmp_path, sessions=30, tracks=1000, days=3) != few


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
    }
    for name, part in found.items():
        measured = partial(measured_at_once, name)
        monkeypatch.setattr(part, "measure_all", measured)
    return found


def measured_at_once(name: str, config: loading.Config, folder: Path) -> list[Row]:
    return [row(f"{name}/x", config.rounds, quick=config.quick)]


def test_all_parts_are_run_and_printed(
    saved: Path, parts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    save_rows([row("preprocess/of old", 1)], rows.LATEST_QUICK)
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
    save_rows([row("pretrain/x", 99)], rows.LATEST)
    with pytest.raises(UserError, match=r"some parts failed.*: python -m benchmarks.pretraining$"):
        everything.main(everything.Config())
    printed = capsys.readouterr()
    together = printed.out.partition("All together")[2].splitlines()
    assert [line.split()[0] for line in together if line.startswith(tuple(parts))] == list(parts)
    assert str(error) in printed.err
    assert ("Traceback" in printed.err) == isinstance(error, OSError)
    values = {r["name"]: r["value"] for r in read_json(saved / "latest.json")}
    assert values == {f"{name}/x": 5 if name in ("preprocess", "large", "processes") else 7 for name in parts} | {
        "pretrain/x": 99
    }


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


# --------------------------------------------------------------------------------------------------------- gates


def test_gate() -> None:
    gate(True, "not said")
    with pytest.raises(UserError, match="nothing was measured, because outputs differ: a is not b"):
        gate(False, "a is not b")


def wrong(function: Callable, change: Callable) -> Callable:
    """`function` with a changed result."""
    return lambda *args, **kwargs: change(function(*args, **kwargs))


def in_bfloat16(factor: float) -> Callable:
    """Changes the sum of a loss under autocast only."""
    return lambda loss: (loss[0] * (factor if torch.is_autocast_enabled("cpu") else 1), loss[1])


@pytest.mark.parametrize(
    ("part", "name", "change", "message"),
    [
        (training, "seq_loss", lambda loss: (loss[0] * 1.001, loss[1]), "losses of train/seq-transformer/full-fp32"),
        (training, "skip_loss", lambda loss: (loss[0] * 1.001, loss[1]), "losses of train/skip-transformer/ours are"),
        (training, "skip_loss", in_bfloat16(1.01), "losses of train/skip-transformer/ours-bf16 are"),
        (losses, "gbce", lambda loss: loss * 1.01, "losses of train/seq-transformer/gbce-2048 are"),
        (training, "make_optimizers", lambda optimizers: [], "losses of train/seq-transformer/full-fp32"),
        (next_track, "next_track_loss", lambda loss: (loss[0] * 1.001, loss[1]), "losses of next-track/gru/full-fp32"),
        (pretraining, "masked_loss", lambda loss: (loss[0] * 1.2, loss[1]), "losses of pretrain/bert/sampled-2048"),
        (decoding, "greedy", lambda tracks: tracks.flip(1), "tracks of decode/greedy are not the reference's"),
        (decoding, "sample", lambda tracks: tracks + 1, "decode/sample"),
        (decoding, "beam_search", lambda beams: beams._replace(tracks=beams.tracks.flip(2)), "decode/beam-5 claims"),
        (Catalogue, "top_k", lambda top: top._replace(ids=top.ids.flip(1)), "ids of evaluate/top-10"),
        (evaluation, "judge", lambda judged: (judged[0], judged[1] + 2), "evaluate/ranks"),
        (reference, "collate", lambda batch: batch._replace(target_skips=-batch.target_skips), "Python collation"),
    ],
)
def test_no_row_is_written_for_other_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, part: object, name: str, change: Callable, message: str
) -> None:
    monkeypatch.setattr(part, name, wrong(getattr(part, name), change))
    common = {"rounds": 1, "out": here / "rows.json"}
    steps = {"steps": 1, "matmul_size": 16, **common}
    runs = {
        training: lambda: training.main(training.Config(TINY, quick=True, **steps)),
        losses: lambda: training.main(training.Config(TINY, **steps)),
        next_track: lambda: next_track.main(next_track.Config(TINY, quick=True, **steps)),
        pretraining: lambda: pretraining.main(pretraining.Config(TINY, quick=True, **steps)),
        decoding: lambda: decoding.main(decoding.Config(TINY, **common)),
        evaluation: lambda: evaluation.main(evaluation.Config(TINY, **common)),
        Catalogue: lambda: evaluation.main(evaluation.Config(TINY, **common)),
        reference: lambda: loading.main(loading.Config(sessions=5000, **common)),
    }
    with pytest.raises(UserError, match=message):
        runs[part]()
    assert list(here.iterdir()) == []


def test_a_failed_gate_is_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "measure_all", lambda config, folder: gate(False, "x"))
    with pytest.raises(SystemExit) as stopped:
        cli(loading.main, loading.Config, description="", args=["--sessions", "10"])
    assert stopped.value.code == 2
    assert "error: nothing was measured" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- references


def test_the_reference_has_none_of_our_fast_paths() -> None:
    model = reference.without_fast_paths(workload.seq_transformer(TINY))
    assert not [module for module in model.modules() if isinstance(module, Dropout)]
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {TINY.dropout}


def test_the_reference_scores_what_it_ranks_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workload.full_sessions(tmp_path / "test", 4, TINY)
    history = next(predicting.ordered_batches(tmp_path / "test", TINY)).history
    model = workload.seq_transformer(TINY).eval()
    scored: list[torch.Tensor] = []
    monkeypatch.setattr(model, "logits", lambda states: scored.append(model.head(states)) or scored[-1])
    top = reference.top_next(model, history, 3)
    assert [logits.shape for logits in scored] == [(4, 1, TINY.n_ids)]
    assert torch.equal(top, scored[0][:, 0].argsort(-1, descending=True)[:, :3])


def test_dense_gbce_by_hand() -> None:
    """Four tracks and six negatives: a = 2, beta = 2 (0.75 (1 - 1/2) + 1/2) = 1.75; odds are exp(score) / 3."""
    odds = torch.tensor([[0.5, 1.0, 2.0, 3.0]])
    logits = torch.cat([torch.full((1, 5), -math.inf), (3 * odds).log()], 1)
    ours = reference.gbce(logits, torch.tensor([7]), n_negatives=6, calibration=0.75)
    by_hand = (1.75 * math.log(1 + 1 / 2) + 2 * math.log(1.5 * 2 * 4)) / 7
    assert ours.item() == pytest.approx(by_hand, rel=1e-6)


def test_sessions_of_the_benchmark(tmp_path: Path) -> None:
    arrays = workload.write_sessions(tmp_path / "s", np.array([3, 20, 10_000]), tracks=1000)
    assert isinstance(arrays, SessionArrays)
    assert arrays.lengths.tolist() == [3, 20, 10_000]
    assert (arrays.tracks.min(), arrays.tracks.max()) == (5, 1004)
    assert np.mean(arrays.tracks < 105) == pytest.approx(0.1 ** (1 / 3), abs=0.02), "the popular tenth"
    plays = workload.train_plays(arrays)
    assert plays.shape == (1005,)
    assert plays.sum() == 10_023


def test_pandas_version_writes_the_same_arrays(tmp_path: Path) -> None:
    raw = mssd_files.write_mssd(tmp_path / "raw", n_days=3, n_sessions=30)
    preprocessing.preprocess(raw, tmp_path / "ours")
    preprocessing.pandas_preprocess(raw, tmp_path / "pandas")
    for split in ("train", "valid", "test"):
        for name in preprocessing.ARRAYS:
            ours, theirs = (np.load(tmp_path / who / split / f"{name}.npy") for who in ("ours", "pandas"))
            assert (ours == theirs).all(), (split, name)
