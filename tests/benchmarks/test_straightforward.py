"""The straightforward versions that ratios are taken to."""

from __future__ import annotations

import math
from pathlib import Path

import mssd_files
import numpy as np
import pytest
import torch
from benchmark_checks import TINY

from benchmarks import predicting, preprocessing, reference, workload
from model.dropout import Dropout
from utils.data.dataset import SessionArrays


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
