"""What the scripts that start from a pre-trained BERT refuse, and the cure that they name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import script_checks
from bert_runs import SCRIPTS, make_pretrained, options
from conftest import make_dataset

from utils.training.checkpoint import load_checkpoint, save_checkpoint
from utils.training.seeds import each_seed


@pytest.fixture(scope="module")
def pretrained(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pretrained(tmp_path_factory.mktemp("pretrained") / "run", dataset_folder)


def refused(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a script says before it exits with 2."""
    script = SCRIPTS[name]
    return script_checks.refused(each_seed(script.main), script.Config, arguments, capsys)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("given", [[], ["--pretrained", "nowhere"]])
def test_without_a_pretrained_run_the_command_that_makes_one_is_shown(name, given, tmp_path, capsys):
    """Before the data are looked at: there are none here."""
    said = refused(name, options(name, Path("no_data"), tmp_path, *given), capsys)
    assert ("--pretrained is needed" if not given else "nowhere holds no best.pt") in said
    sizes = "--bert.d_model 8 --bert.n_heads 2 --bert.n_layers 1 --bert.d_ff 8"
    assert f"    python train_bert_pretrain.py --data.folder no_data {sizes}\n" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--bert.d_ff", "16", "--bert.use_features", "true"], "add --bert.d_ff 8 --bert.use_features false"),
        (
            ["--data.history_size", "8"],
            "sessions of 20 plays, but data.history_size and data.target_size are 18 together",
        ),
    ],
)
def test_a_pretrained_run_has_to_fit(name, more, named, dataset_folder, tmp_path, pretrained, capsys):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(pretrained), *more)
    assert named in refused(name, arguments, capsys)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.parametrize("name", SCRIPTS)
def test_another_vocabulary_is_refused(name, dataset_folder, tmp_path, pretrained, capsys):
    other = Path(shutil.copytree(pretrained, tmp_path / "other"))
    checkpoint = load_checkpoint(other / "best.pt")
    save_checkpoint(other / "best.pt", checkpoint | {"vocabulary_hash": "0123456789abcdef"})
    said = refused(name, options(name, dataset_folder, tmp_path, "--pretrained", str(other)), capsys)
    assert "was trained on another vocabulary (0123456789ab, the dataset has " in said
    assert not (tmp_path / "runs").exists()


def test_skips_are_wanted(tmp_path, pretrained, capsys):
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False)
    for name in ("bert_finetune_skip", "skip_bert_augmented"):
        said = refused(name, options(name, folder, tmp_path, "--pretrained", str(pretrained)), capsys)
        assert "only the seq task can be run on it" in said


@pytest.mark.parametrize(
    ("name", "more", "named"),
    [
        ("bert_finetune_seq", ["--filling.passes", "0"], "filling.passes is 0; it must be at least 1"),
        ("bert_finetune_seq", ["--filling.order", "alphabetical"], "filling.order"),
        ("bert_finetune_seq", ["--filling.allow_list", "nowhere.txt"], "filling.allow_list: cannot read nowhere.txt"),
        ("bert_finetune_seq", ["--masks", "some"], "masks"),
        ("bert_finetune_seq", ["--bert.n_heads", "3", "--pretrained", "random"], "bert: d_model 8 is no multiple"),
        ("seq_bert_augmented", ["--drop_net", "1.5"], "error: model: "),
        ("seq_bert_augmented", ["--warm_start", "nowhere"], "python train_transformer_seq.py --data.folder"),
        ("skip_bert_augmented", ["--warm_start", "nowhere"], "python train_transformer_skip.py --data.folder"),
    ],
)
def test_bad_input(name, more, named, dataset_folder, tmp_path, pretrained, capsys):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(pretrained), *more)
    assert named in refused(name, arguments, capsys)
    assert not (tmp_path / "runs").exists()
