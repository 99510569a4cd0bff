"""The code of docs/adding_a_model.md, run as it stands there."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_batch

import model
from utils.core.cli import parse_config

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the page's files, from which they can be imported beside the project's own modules."""
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in blocks] == ["model/bag.py", "train_bag_seq.py", "configs/bag_seq/demo.yml"]
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(tmp_path / "model")])
    yield tmp_path
    for name in ("train_bag_seq", "model.bag"):
        sys.modules.pop(name, None)


def test_the_page_trains_a_model_that_is_scored_again(checkout, dataset_folder, tmp_path):
    script = importlib.import_module("train_bag_seq")
    arguments = ["--config", str(checkout / "configs" / "bag_seq" / "demo.yml"), "--data.folder", str(dataset_folder)]
    arguments += ["--train.batch_size", "16", "--run.folder", str(tmp_path / "runs"), "--run.name", "a"]
    result = script.main(parse_config(script.Config, [*arguments, "--train.lr", "0.01", "--train.epochs", "8"]))
    assert result["scores"]["test"]["metrics"]["hr@20"]["mean"] > 0.6, "chance is one half: 20 of 40 tracks"
    evaluate = importlib.import_module("evaluate")
    again = evaluate.main(parse_config(evaluate.Config, ["--run", str(tmp_path / "runs" / "bag_seq" / "a")]))
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(result["scores"]["test"]))


def test_its_steps_are_its_states(checkout):
    bag = importlib.import_module("model.bag").BagForContinuation(45, torch.randn(45, 3), d_model=8).eval()
    batch = random_batch()
    previous = bag.previous_tracks(batch.history, batch.target_tracks)
    whole, state = bag(batch.history, previous), bag.begin(batch.history)
    for t in range(previous.shape[1]):
        states, state = bag.step(state, previous[:, t])
        torch.testing.assert_close(states, whole[:, t])
    changed = previous.clone()
    changed[:, -1] = 7
    assert torch.equal(bag(batch.history, changed)[:, :-1], whole[:, :-1]), "a later target changes no earlier state"
