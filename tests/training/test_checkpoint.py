"""Checkpoints: exact round trips, and clear words for what is none."""

import pickle

import pytest
import torch
from conftest import N_IDS
from sized_models import SeqTransformer
from torch import nn

from utils.core.errors import UserError
from utils.training.checkpoint import load_checkpoint, load_weights, save_checkpoint


def tiny(d_model=8):
    return SeqTransformer(N_IDS, torch.randn(N_IDS, 2), d_model=d_model, n_heads=2, n_layers=1, d_ff=8)


def test_round_trip(tmp_path):
    state = {"vocabulary_hash": "h", "x": torch.randn(3), "nested": {"list": [1, 2.5, None, "s", True]}}
    save_checkpoint(tmp_path / "a.pt", state)
    loaded = load_checkpoint(tmp_path / "a.pt", vocabulary_hash="h")
    assert torch.equal(loaded.pop("x"), state.pop("x"))
    assert loaded == state
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_weights_round_trip(tmp_path):
    source, target = tiny(), tiny()
    save_checkpoint(tmp_path / "a.pt", {"model": source.state_dict(), "vocabulary_hash": "h", "step": 3})
    assert load_weights(target, tmp_path / "a.pt", vocabulary_hash="h")["step"] == 3
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"vocabulary_hash": "h", "x": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(tmp_path / "a.pt", {"vocabulary_hash": "h", "x": lambda: 0})
    assert load_checkpoint(tmp_path / "a.pt")["x"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


class Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_loading_runs_no_code(tmp_path, capsys):
    torch.save({"vocabulary_hash": "h", "x": Evil()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; train the model first"),
        (b"", "no readable checkpoint"),
        (b"hello, this is text", "no readable checkpoint"),
        ("truncated", "no readable checkpoint"),
        (torch.ones(3), "holds no vocabulary hash"),
        ({"state_dict": {}}, "holds no vocabulary hash"),
        ({"vocabulary_hash": "another"}, r"another vocabulary \(another, the dataset has mine\)"),
    ],
    ids=["missing", "empty", "text", "truncated", "tensor", "foreign", "vocabulary"],
)
def test_bad_checkpoints(tmp_path, content, message):
    path = tmp_path / "a.pt"
    if content == "truncated":
        save_checkpoint(path, {"vocabulary_hash": "mine", "x": torch.ones(10_000)})
        path.write_bytes(path.read_bytes()[:20_000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path, vocabulary_hash="mine")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_or_name(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": tiny(8).state_dict(), "vocabulary_hash": "h"})
    with pytest.raises(UserError, match=r"a.pt does not fit the configured model(.|\n)*size mismatch"):
        load_weights(tiny(16), tmp_path / "a.pt", vocabulary_hash="h")
    with pytest.raises(UserError, match="Missing key"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.pt", vocabulary_hash="h")
