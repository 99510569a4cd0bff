"""Run folders: what is written, what is refused on resume."""

import json
from dataclasses import dataclass, field

import pytest
import yaml

from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.training.machine import git_commit, peak_memory_mib, pick_device
from utils.training.options import RunConfig, TrainConfig
from utils.training.run import Run, headline
from utils.training.seeds import each_seed


@dataclass
class Config:
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


@pytest.fixture
def dataset(dataset_folder):
    return Dataset.open(dataset_folder)


def config(tmp_path, **run):
    return Config(run=RunConfig(folder=str(tmp_path), **run))


def interval(mean, low=0.0, high=1.0):
    return {"mean": mean, "low": low, "high": high}


def scores(**metrics):
    return {"test": {"metrics": {name: interval(value) for name, value in metrics.items()}}}


def test_new_folders_have_different_names(tmp_path, dataset):
    runs = [Run("x", config(tmp_path), dataset) for _ in range(3)]
    assert len({run.folder for run in runs}) == 3
    assert {run.folder.parent for run in runs} == {tmp_path / "x"}


def test_a_folder_with_a_name(tmp_path, dataset):
    first = Run("x", config(tmp_path, name="base"), dataset)
    assert first.folder == tmp_path / "x" / "base"
    for name in ("metrics.jsonl", "events.out.tfevents.1.host"):  # as a run leaves them that was killed
        (first.folder / name).touch()
    # Nothing of the first can be resumed, so that the second takes its place.
    second = Run("x", config(tmp_path, name="base"), dataset)
    assert sorted(path.name for path in second.folder.iterdir()) == ["config.yml"]
    (second.folder / "notes.txt").touch()
    with pytest.raises(UserError, match=r"x/base exists"):  # nothing of anybody else's is removed
        Run("x", config(tmp_path, name="base"), dataset)
    assert sorted(path.name for path in second.folder.iterdir()) == ["config.yml", "notes.txt"]
    (second.folder / "last.pt").touch()
    with pytest.raises(UserError, match=r"x/base exists; resume it with --run.resume, or take another --run.name"):
        Run("x", config(tmp_path, name="base"), dataset)
    with pytest.raises(UserError, match=r"run.name is 'a/b'; it must be the name of a folder"):
        Run("x", config(tmp_path, name="a/b"), dataset)
    with pytest.raises(UserError, match=r"--run.name names one run's folder"):
        each_seed(lambda _: None)(config(tmp_path, name="base", seeds=2))


def test_log_and_finish(tmp_path, dataset):
    run = Run("x", config(tmp_path, label="Label", seed=7), dataset)
    run.log(3, 1, "valid", {"maa": 0.5, "auc": None})
    run.log(4, 1, "train", {"loss": 0.25})
    assert [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 3, "epoch": 1, "split": "valid", "maa": 0.5, "auc": None},
        {"step": 4, "epoch": 1, "split": "train", "loss": 0.25},
    ]
    result = run.finish(
        task="skip", scores=scores(maa=0.5, first_accuracy=0.25), kind="baseline", device="cpu", n_parameters=3
    )
    assert json.loads((run.folder / "result.json").read_text()) == result
    assert {key: result[key] for key in ("experiment", "label", "task", "kind", "seed", "n_parameters")} == {
        "experiment": "x",
        "label": "Label",
        "task": "skip",
        "kind": "baseline",
        "seed": 7,
        "n_parameters": 3,
    }
    assert result["dataset"] == {
        "name": "tiny",
        "hash": dataset.vocabulary_hash,
        "protocol": "temporal",
        "folder": str(dataset.folder),
        "sessions": {"train": 64, "valid": 16, "test": 16},
    }
    assert result["config"] == yaml.safe_load((run.folder / "config.yml").read_text())
    assert 50 < result["peak_memory_mib"] < 100_000
    assert result["seconds"] >= 0


def test_rewind(tmp_path, dataset):
    run = Run("x", config(tmp_path), dataset)
    run.rewind(0)
    for step in (2, 4, 6):
        run.log(step, 0, "valid", {"maa": 0.5})
    run.rewind(4)
    assert [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == [2, 4]


def test_rewind_drops_a_line_that_a_crash_has_cut_off(tmp_path, dataset):
    run = Run("x", config(tmp_path), dataset)
    path, whole = run.folder / "metrics.jsonl", [f'{{"step": {step}, "split": "valid", "maa": 0.5}}' for step in (2, 4)]
    for torn in (
        '{"step": 4, "sp',
        '{"step": 4, "split": "valid", "maa": 0.5',
        "{",
        "\0\0\0",
        "4",
        '{"epoch": 1}',
        "[]\n",
    ):
        path.write_text("\n".join([*whole, torn]), encoding="utf-8")
        run.rewind(4)
        assert path.read_text(encoding="utf-8").splitlines() == whole
    path.write_text("\n".join(whole), encoding="utf-8")  # only the line's end is lost
    run.rewind(4)
    assert path.read_text(encoding="utf-8") == "\n".join(whole) + "\n"
    run.log(6, 0, "valid", {"maa": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]


@pytest.mark.parametrize("broken", ['{"step": 4, "sp', "", "4", '{"epoch": 1}', '{"step": null}'])
def test_rewind_refuses_another_broken_line(tmp_path, dataset, broken):
    run = Run("x", config(tmp_path), dataset)
    path = run.folder / "metrics.jsonl"
    text = "\n".join(['{"step": 2}', broken, '{"step": 4}', '{"step": 6}']) + "\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: broken; remove the line to resume the run"):
        run.rewind(4)
    assert path.read_text(encoding="utf-8") == text, "a refusal changes nothing"


@pytest.mark.parametrize("name", ["", "base"])
def test_a_file_where_the_folder_of_runs_should_be(tmp_path, dataset, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_text("mine")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for folder in ("file", "file/deeper", "runs", "broken"):
        with pytest.raises(UserError, match=rf"{tmp_path / folder}.*; change --run.folder"):
            Run("x", config(tmp_path / folder, name=name), dataset)
    assert (tmp_path / "file").read_text() == (tmp_path / "runs" / "x").read_text() == "mine"


def resumable(tmp_path, dataset, **run):
    first = Run("x", config(tmp_path, **run), dataset)
    (first.folder / "last.pt").touch()
    return first.folder


def test_resume_goes_on_in_the_folder(tmp_path, dataset):
    folder = resumable(tmp_path, dataset)
    again = Run("x", config(tmp_path, resume=str(folder)), dataset)
    assert again.folder == folder
    assert again.resumed
    # The config of a resumed run starts the same run afresh.
    assert yaml.safe_load((folder / "config.yml").read_text())["run"]["resume"] is None


def test_resume_wants_the_same_options(tmp_path, dataset):
    folder = resumable(tmp_path, dataset)
    options = Config(TrainConfig(epochs=9, patience=3, max_seconds=5), RunConfig(resume=str(folder), label="new"))
    Run("x", options, dataset)
    assert yaml.safe_load((folder / "config.yml").read_text())["train"]["epochs"] == 9
    with pytest.raises(UserError, match=r"config.yml says train.lr: 0.0001, not 0.5; resume with --config"):
        Run("x", Config(TrainConfig(lr=0.5), RunConfig(resume=str(folder))), dataset)
    with pytest.raises(UserError, match=r"run.seed: 1, not 2"):
        Run("x", config(tmp_path, resume=str(folder), seed=2), dataset)
    assert yaml.safe_load((folder / "config.yml").read_text())["train"]["lr"] == 1e-4, "a refusal changes nothing"


def test_nothing_to_resume(tmp_path, dataset):
    with pytest.raises(UserError, match=r"has no last.pt to resume from"):
        Run("x", config(tmp_path, resume=str(tmp_path / "nowhere")), dataset)
    folder = resumable(tmp_path, dataset)
    (folder / "config.yml").unlink()
    with pytest.raises(UserError, match=r"config.yml does not exist"):
        Run("x", config(tmp_path, resume=str(folder)), dataset)


def test_each_seed():
    seen = []
    main = each_seed(lambda config: seen.append((config.run.seed, config.run.seeds)) or config.run.seed)
    assert main(Config(run=RunConfig(seed=4, seeds=3))) == [4, 5, 6]
    assert seen == [(4, 1), (5, 1), (6, 1)]
    with pytest.raises(UserError, match=r"leave out --run.seeds"):
        main(Config(run=RunConfig(seeds=2, resume="x")))


def test_headline():
    found = scores(auc=1, first_accuracy=0.25, maa=0.5)
    assert headline({"task": "skip", "scores": found}) == (
        "test maa 0.5000 [0.0000, 1.0000], first_accuracy 0.2500 [0.0000, 1.0000]"
    )
    valid_only = {
        "train": scores(maa=0.9, first_accuracy=0.9)["test"],
        "valid": scores(maa=0.5, first_accuracy=None)["test"],
    }
    assert headline({"task": "skip", "scores": valid_only}) == "valid maa 0.5000 [0.0000, 1.0000]"
    assert headline({"task": "skip", "scores": scores(maa=None, first_accuracy=None)}) == "test "
    hidden = scores(**{"perplexity": 9.0, "hr@20": 0.5, "mrr@20": 0.25})
    assert headline({"task": "pretrain", "scores": hidden}) == (
        "test mrr@20 0.2500 [0.0000, 1.0000], hr@20 0.5000 [0.0000, 1.0000]"
    )


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("cuda:77", "toaster"):
        with pytest.raises(UserError, match=f"device '{name}' cannot be used here"):
            pick_device(name)


def test_environment():
    commit = git_commit()
    assert commit is None or len(commit.rstrip("+")) == 12
    assert peak_memory_mib() > 50
