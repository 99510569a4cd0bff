"""Decoding as a config asks for it, and the judgement of true tracks over a full catalogue."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import N_IDS
from numpy.testing import assert_array_equal
from sized_models import SeqTransformer
from torch.testing import assert_close

from model.decoding import beam_search, greedy
from model.embeddings import TrackHead
from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation import predict as predicting
from utils.evaluation.options import DecodingConfig
from utils.evaluation.predict import judge, predict_seq, seq_predictor

CPU = torch.device("cpu")
DATA = DataConfig()


@pytest.fixture(scope="module")
def dataset(dataset_folder: Path) -> Dataset:
    return Dataset.open(dataset_folder)


@pytest.fixture(scope="module")
def model() -> SeqTransformer:
    torch.manual_seed(0)
    model = SeqTransformer(N_IDS, torch.randn(N_IDS, 3), d_model=16, n_heads=2, n_layers=1, d_ff=16)
    with torch.no_grad():
        model.head.weight.mul_(3)
    return model


def decoded(model: SeqTransformer, dataset: Dataset, **options) -> torch.Tensor:
    decoding = DecodingConfig(**options)
    loader = SessionLoader(dataset.test, batch_size=5)
    return torch.from_numpy(
        seq_predictor(model, CPU, decoding, decoding.allowed_tracks(dataset, DATA))(loader).tracks
    ).long()


def test_every_method_reaches_its_function(model, dataset):
    (batch,) = SessionLoader(dataset.test, batch_size=len(dataset.test.lengths))
    assert_close(decoded(model, dataset), greedy(model, batch.history, 10))
    assert_close(decoded(model, dataset, no_repeat=4), greedy(model, batch.history, 10, no_repeat=4))
    for width in (1, 3):
        beams = beam_search(model, batch.history, 10, width=width, no_repeat=2)
        assert_close(decoded(model, dataset, method="beam", beam_width=width, no_repeat=2), beams.tracks[:, 0])
    drawn = decoded(model, dataset, method="sample")
    assert not torch.equal(drawn, greedy(model, batch.history, 10))
    assert_close(decoded(model, dataset, method="sample", top_p=1e-6), greedy(model, batch.history, 10))
    assert_close(decoded(model, dataset, method="sample"), drawn)
    assert not torch.equal(decoded(model, dataset, method="sample", seed=1), drawn)
    assert not torch.equal(decoded(model, dataset, method="sample", temperature=5.0), drawn)


def test_decoding_changes_continuations_and_nothing_else(model, dataset, tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_text("t_3\n\n  t_7 \nt_3\nt_20\n", encoding="utf-8")
    decoding = DecodingConfig(allow_list=str(path), no_repeat=2)
    assert decoding.allowed_tracks(dataset, DATA).tolist() == [N_SPECIAL + 3, N_SPECIAL + 7, N_SPECIAL + 20]
    loader = SessionLoader(dataset.test, batch_size=5)
    plain = predict_seq(model, CPU, loader)
    constrained = predict_seq(model, CPU, loader, decoding=decoding, allowed=decoding.allowed_tracks(dataset, DATA))
    assert set(constrained.tracks.ravel()) == {N_SPECIAL + 3, N_SPECIAL + 7, N_SPECIAL + 20}
    assert_array_equal(constrained.rank, plain.rank)
    assert_array_equal(constrained.log_probability, plain.log_probability)
    assert DecodingConfig().allowed_tracks(dataset, DATA) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "decoding.beam_width is 0; it must be at least 1"),
        ({"no_repeat": -1}, "decoding.no_repeat is -1; it must be at least 0"),
        ({"top_p": 0.0}, "decoding.top_p is 0.0; it must be above 0"),
        ({"top_p": 1.1}, "decoding.top_p is 1.1; it must be above 0 and at most 1"),
        ({"temperature": 0.0}, "decoding.temperature is 0.0; it must be at least 0.001"),
        ({"method": "beam", "beam_width": 1001}, "decoding.beam_width is 1001; it must be at most 1000"),
        ({"beam_width": 7}, "decoding.beam_width has no meaning for decoding.method greedy; use it"),
        ({"method": "beam", "top_p": 0.5}, "decoding.top_p has no meaning for decoding.method beam"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        DecodingConfig(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*allowed.txt as text: .*No such file"),
        (b"\xff\xfe\x00t", "cannot read .*allowed.txt as text"),
        (b"\n  \n", "allowed.txt holds no track; write one track id a line"),
        (b"t_1\n\nt_99\n", "allowed.txt, line 3: .* has no track 't_99'; take the line out"),
        (b"nobody\nt_1\n<unk>", r"allowed.txt, line 1 \(and 1 other lines\): .* has no track 'nobody'"),
    ],
)
def test_bad_allow_lists(content, message, dataset, tmp_path):
    path = tmp_path / "allowed.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        DecodingConfig(allow_list=str(path)).allowed_tracks(dataset, DATA)


def test_an_allow_list_must_be_longer_than_what_may_not_repeat(dataset, tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_text("t_1\nt_2", encoding="utf-8")
    assert len(DecodingConfig(allow_list=str(path), no_repeat=1).allowed_tracks(dataset, DATA)) == 2
    with pytest.raises(UserError, match=r"decoding.no_repeat is 2, but only 2 tracks may be predicted"):
        DecodingConfig(allow_list=str(path), no_repeat=2).allowed_tracks(dataset, DATA)
    # 4 plays and 36 targets: only 39 tracks are before the last target.
    assert DecodingConfig(no_repeat=1000).allowed_tracks(dataset, DataConfig(history_size=4, target_size=36)) is None
    with pytest.raises(UserError, match="only 40 tracks"):
        DecodingConfig(no_repeat=40).allowed_tracks(dataset, DataConfig(history_size=5, target_size=36))


@torch.no_grad()
def test_judge_is_brute_force():
    torch.manual_seed(0)
    head = TrackHead(300, 8)
    head.bias.normal_()
    head.weight[200:240], head.bias[200:240] = head.weight[100:140], head.bias[100:140]  # ties

    class Model:
        pass

    model = Model()
    model.head = head
    states, targets = 3 * torch.randn(30, 20, 8), torch.randint(0, 300, (30, 20))
    targets[0, 0], targets[0, 1] = PAD, 105
    log_p, rank = judge(model, states, targets)
    logits = head(states)
    true = logits.gather(2, targets[..., None])
    inside = targets >= N_SPECIAL
    assert_close(log_p, logits.log_softmax(2).gather(2, targets[..., None])[..., 0].masked_fill(~inside, 0.0))
    expected = (logits > true).sum(2) + ((logits == true).sum(2) - 1) / 2
    assert_close(rank, expected.masked_fill(~inside, torch.inf))
    assert rank[0, 1] % 1 == 0.5
    with torch.autocast("cpu", torch.bfloat16):  # it is float32 all the same
        assert all(torch.equal(*both) for both in zip(judge(model, states, targets), (log_p, rank), strict=True))


@torch.no_grad()
def test_judge_holds_few_scores_of_a_large_catalogue(monkeypatch):
    torch.manual_seed(0)
    model = SimpleNamespace(head=TrackHead(300, 8))
    states, targets = torch.randn(3, 20, 8), torch.randint(N_SPECIAL, 300, (3, 20))
    whole, seen = judge(model, states, targets), []
    monkeypatch.setattr(predicting, "rows_at_once", lambda *sizes: seen.append(sizes) or 7)
    for some, expected in zip(judge(model, states, targets), whole, strict=True):
        assert_close(some, expected)
    assert seen == [(300 - N_SPECIAL, predicting.LOGIT_ROWS)]
