"""Each part measures what it says, and leaves its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_checks import TINY, a_row, check_rows, measure_here, measure_in_this_process, save_in

from benchmarks import (
    decoding,
    evaluation,
    gpu,
    growth,
    large,
    loading,
    next_track,
    past,
    predicting,
    preprocessing,
    pretraining,
    processes,
    reference,
    training,
    workload,
)
from benchmarks.rounds import Contender, Measured
from benchmarks.rows import Row
from model.dropout import Dropout
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.dataset import Dataset


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows are saved here."""
    return save_in(tmp_path, monkeypatch)


@pytest.fixture
def here(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measure in this process, and save there."""
    measure_in_this_process(monkeypatch)
    return saved


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
    rows = [a_row(f"growth/{name}", value) for name, value in {**rates, "rank/tracks-100": 5.0}.items()]
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


def test_past(here: Path) -> None:
    sizes = {"plays": 3000, "large_plays": 5000, "tracks": 1000}
    found = past.main(past.Config(**sizes, rounds=1, out=here / "rows.json"))
    check_rows(found, ["past/reference", "past/ours", "past/large"], here / "rows.json")
    assert found[0].ratio == 1.0
    assert found[2].ratio is None


def test_another_past_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate notices one rate of one play."""
    folder = past.simulate(tmp_path / "gate", 3000, 1000)
    rates = past.python_rates

    def changed(dataset: Dataset) -> list[tuple[float, ...]]:
        found = rates(dataset)
        return [*found[:-1], (*found[-1][:3], found[-1][3] + 0.1)]

    past.check(folder)
    monkeypatch.setattr(past, "python_rates", changed)
    with pytest.raises(UserError, match="rates of the loop in Python"):
        past.check(folder)


def test_simulated_files_are_used_again_for_the_same_sizes_only(tmp_path: Path) -> None:
    few = preprocessing.simulate(tmp_path, sessions=20, tracks=1000, days=3)
    written = [path.stat().st_mtime_ns for path in sorted(few.rglob("*.csv"))]
    assert written
    assert preprocessing.simulate(tmp_path, sessions=20, tracks=1000, days=3) == few
    assert [path.stat().st_mtime_ns for path in sorted(few.rglob("*.csv"))] == written
    assert preprocessing.simulate(tmp_path, sessions=30, tracks=1000, days=3) != few
