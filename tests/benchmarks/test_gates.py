"""Who does other work is not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark_checks import TINY, measure_in_this_process, save_in

from benchmarks import decoding, evaluation, loading, next_track, pretraining, reference, training
from benchmarks.rounds import gate
from model.catalogue import Catalogue
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.training import losses


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows are saved here."""
    return save_in(tmp_path, monkeypatch)


@pytest.fixture
def here(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measure in this process, and save there."""
    measure_in_this_process(monkeypatch)
    return saved


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
        (evaluation, "judge", lambda judged: (judged[0] - 1, *judged[1:]), "log-probabilities of evaluate/ranks"),
        (
            evaluation,
            "judge",
            lambda judged: (judged[0], judged[1] + 2, judged[2]),
            "evaluate/ranks are not the places",
        ),
        (evaluation, "judge", lambda judged: (*judged[:2], judged[2] + 2), "ties of evaluate/ranks are not"),
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
