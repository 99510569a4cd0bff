"""Decoding as a config asks for it, and lists of the only tracks that are allowed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import N_IDS
from numpy.testing import assert_array_equal
from sized_models import SeqTransformer
from torch.testing import assert_close

from model.decoding import beam_search, greedy, sample
from utils.core.errors import UserError
from utils.data.batch import History
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL
from utils.evaluation.decoding import allowed_tracks, read_allow_list, step_by_step
from utils.evaluation.options import DecodingConfig
from utils.evaluation.predict import predict_seq, seq_predictor

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
    config = DecodingConfig(**options)
    predict = seq_predictor(model, CPU, step_by_step(config), allowed_tracks(config, dataset, DATA))
    return torch.from_numpy(predict(SessionLoader(dataset.test, batch_size=5)).tracks).long()


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


def test_what_a_session_gets_does_not_depend_on_the_others(model, dataset):
    """In batches of any size, and in whatever order they come."""
    decoding = step_by_step(DecodingConfig(method="sample", seed=3))
    by_size = [
        predict_seq(model, CPU, SessionLoader(dataset.test, batch_size=size), decoding=decoding).tracks.tolist()
        for size in (1, 5, 16)
    ]
    assert by_size[0] == by_size[1] == by_size[2]
    (batch,) = SessionLoader(dataset.test, batch_size=16)
    order = torch.randperm(16)
    shuffled = batch.take(order)
    drawn = sample(model, shuffled.history, 10, top_p=0.9, seed=3, rows=shuffled.rows)
    assert drawn.tolist() == [by_size[0][row] for row in order.tolist()]
    one = History(*(tensor[:1].expand(16, *tensor.shape[1:]) for tensor in batch.history))
    alike = sample(model, one, 10, top_p=0.9, seed=3, rows=torch.arange(16))
    assert len(set(map(tuple, alike.tolist()))) > 8, "the same session in another row has other random numbers"


def test_decoding_changes_continuations_and_nothing_else(model, dataset, tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_bytes(b"\xef\xbb\xbft_3\n\nt_7\r\n\r\nt_3\nt_20\n")
    config = DecodingConfig(allow_list=str(path), no_repeat=2)
    allowed = allowed_tracks(config, dataset, DATA)
    assert allowed.tolist() == [N_SPECIAL + 3, N_SPECIAL + 7, N_SPECIAL + 20]
    loader = SessionLoader(dataset.test, batch_size=5)
    plain = predict_seq(model, CPU, loader)
    constrained = predict_seq(model, CPU, loader, decoding=step_by_step(config), allowed=allowed)
    assert set(constrained.tracks.ravel()) == {N_SPECIAL + 3, N_SPECIAL + 7, N_SPECIAL + 20}
    assert_array_equal(constrained.rank, plain.rank)
    assert_array_equal(constrained.tied, plain.tied)
    assert_array_equal(constrained.log_probability, plain.log_probability)
    assert allowed_tracks(DecodingConfig(), dataset, DATA) is None


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
        (b"\n\r\n", "allowed.txt holds no track; write one track id a line"),
        (b"\xef\xbb\xbf", "allowed.txt holds no track; write one track id a line"),
        (b"\n  \n", "allowed.txt, line 2: .* has no track '  '; take the line out"),
        (b"t_1\n t_2\n", "allowed.txt, line 2: .* has no track ' t_2'; take the line out"),
        (b"t_1\xe2\x80\xa8t_2\n", r"allowed.txt, line 1: .* has no track 't_1\\u2028t_2'; take the line out"),
        (b"t_1\n\nt_99\n", "allowed.txt, line 3: .* has no track 't_99'; take the line out"),
        (b"nobody\nt_1\n<unk>", r"allowed.txt, line 1 \(and 1 other lines\): .* has no track 'nobody'"),
    ],
)
def test_bad_allow_lists(content, message, dataset, tmp_path):
    path = tmp_path / "allowed.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        allowed_tracks(DecodingConfig(allow_list=str(path)), dataset, DATA)


def test_any_track_id_can_be_named(dataset, tmp_path):
    """Nothing but a line's end ends a line, and nothing is stripped."""
    names = np.array(dataset.track_names)
    odd = [
        " outer spaces  ",
        "a\u2028b",
        "tab\t",
        "\x0bvertical",
        "form\x0cfeed",
        "\x85",
        "\xa0",
        "carriage\rreturn",
        "\ufeff",
    ]
    names[N_SPECIAL : N_SPECIAL + len(odd)] = odd
    source = SimpleNamespace(track_names=names, n_ids=dataset.n_ids, folder=dataset.folder)
    path = tmp_path / "allowed.txt"
    for start, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")):
        path.write_bytes(start + end.join(name.encode() for name in odd) + end)
        allowed = read_allow_list(str(path), source, option="decoding.allow_list")
        assert allowed.tolist() == list(range(N_SPECIAL, N_SPECIAL + len(odd)))


def test_an_allow_list_must_be_longer_than_what_may_not_repeat(dataset, tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_text("t_1\nt_2", encoding="utf-8")
    assert len(allowed_tracks(DecodingConfig(allow_list=str(path), no_repeat=1), dataset, DATA)) == 2
    with pytest.raises(UserError, match=r"decoding.no_repeat is 2, but only 2 tracks may be predicted"):
        allowed_tracks(DecodingConfig(allow_list=str(path), no_repeat=2), dataset, DATA)
    # 4 plays and 36 targets: only 39 tracks are before the last target.
    assert allowed_tracks(DecodingConfig(no_repeat=1000), dataset, DataConfig(history_size=4, target_size=36)) is None
    with pytest.raises(UserError, match="only 40 tracks"):
        allowed_tracks(DecodingConfig(no_repeat=40), dataset, DataConfig(history_size=5, target_size=36))
