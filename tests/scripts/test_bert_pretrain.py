"""Pre-training from end to end on tiny data: what a run leaves behind, resume, and who can work with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import N_IDS, make_dataset, random_batch
from run_folders import in_one_line
from script_checks import CPU, check_loss_arrives, given_to_fit, refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import report
import sweep
import train_bert_pretrain as script
from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.evaluation.scoring import validate, validation_loader
from utils.track_vectors.files import load_vectors
from utils.training.checkpoint import load_checkpoint
from utils.training.losses import full_softmax
from utils.training.masked_tracks import masked_loss, masked_predictor
from utils.training.model_configs import BertConfig
from utils.training.options import MaskingConfig, RunConfig
from utils.training.pretrained import check_pretrained, load_pretrained
from utils.training.seeds import each_seed
from utils.training.sweeps import PlannedRun, saved_runs, state_of

TINY = [
    *("--bert.d_model", "8", "--bert.n_heads", "2", "--bert.n_layers", "1", "--bert.d_ff", "8"),
    *("--train.epochs", "2", "--train.batch_size", "16", "--train.lr", "0.01", "--train.device", "cpu"),
]
FILES = {
    *("config.yml", "metrics.jsonl", "best.pt", "last.pt", "result.json"),
    *("track_embeddings.safetensors", "vocabulary.txt", "embedding.png"),
}
METRICS = {"mrr@20", "hr@1", "hr@10", "hr@20", "perplexity"}


def options(dataset_folder, tmp_path, *more):
    return ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TINY, *more]


def pretrain(arguments) -> Path:
    """Run the script as its command line does; returns the latest run's folder."""
    config = parse_config(script.Config, arguments)
    each_seed(script.main)(config)
    return max((Path(config.run.folder) / "bert_pretrain").iterdir(), key=lambda folder: folder.stat().st_ctime_ns)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


MORE = [
    *("--run.label", "Tiny BERT", "--bert.use_features", "true"),
    *("--masking.rate", "0.3", "--masking.last_item", "0.1"),
]
"""Options of `run`."""


@pytest.fixture(scope="module")
def run(dataset_folder, tmp_path_factory) -> Path:
    """A finished run with audio features in BERT, and masks of its own."""
    return pretrain(options(dataset_folder, tmp_path_factory.mktemp("pretrain"), *MORE))


def test_a_run_leaves_exactly_this(run):
    names = {path.name for path in run.iterdir()}
    (events,) = names - FILES
    assert events.startswith("events.out.tfevents")
    assert names > FILES
    assert [(line["step"], line["epoch"], line["split"]) for line in lines(run)] == [
        *((4, 1, "train"), (4, 1, "valid"), (8, 2, "train"), (8, 2, "valid"))
    ]
    content = result(run)
    assert {key: content[key] for key in ("experiment", "label", "task", "kind", "seed", "device")} == {
        "experiment": "bert_pretrain",
        "label": "Tiny BERT",
        "task": "pretrain",
        "kind": "model",
        "seed": 1,
        "device": "cpu",
    }
    assert list(content["scores"]) == ["train", "valid", "test"]
    valid = {line["step"]: line for line in lines(run) if line["split"] == "valid"}
    assert content["best_value"] == max(line["mrr@20"] for line in valid.values())
    for scores in content["scores"].values():
        assert set(scores["metrics"]) == METRICS
        assert all(value["low"] <= value["mean"] <= value["high"] for value in scores["metrics"].values())
    measured = content["scores"]["valid"]["metrics"]
    assert {name: value["mean"] for name, value in measured.items()} == {
        name: pytest.approx(valid[content["best_step"]][name]) for name in METRICS
    }
    assert {"loss/train", "mrr@20/valid"} <= set(EventAccumulator(str(run)).Reload().Tags()["scalars"])


def test_the_vectors_are_those_that_bert_sees(run, dataset_folder):
    """Table and projected audio features, of the best weights."""
    dataset = Dataset.open(dataset_folder)
    weights = load_checkpoint(run / "best.pt")["model"]
    expected = weights["bert.tracks.table.weight"] + dataset.features @ weights["bert.tracks.project.weight"].T
    loaded = load_vectors(run / "track_embeddings.safetensors", vocabulary_hash=dataset.vocabulary_hash)
    torch.testing.assert_close(loaded.vectors, expected)
    assert not loaded.vectors[0].any()
    assert loaded.vectors.abs().sum(1)[1:].all()


def test_resume_equals_uninterrupted(dataset_folder, tmp_path):
    more = ["--masking.last_item", "0.2", "--loss.n_negatives", "9"]
    whole = pretrain(options(dataset_folder, tmp_path / "whole", *more, "--train.epochs", "3"))
    part = pretrain(options(dataset_folder, tmp_path / "part", *more, "--train.epochs", "1"))
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "3"]
    assert pretrain(arguments) == part
    assert [line["step"] for line in lines(part)] == [4, 4, 8, 8, 12, 12]
    assert lines(part) == lines(whole)
    assert result(part)["scores"] == result(whole)["scores"]
    first, second = (load_checkpoint(folder / "last.pt")["model"] for folder in (part, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(*(load_vectors(folder / "track_embeddings.safetensors").vectors for folder in (part, whole)))


def test_its_config_repeats_a_run_and_seeds_differ(run, tmp_path):
    arguments = ["--config", str(run / "config.yml"), "--run.folder", str(tmp_path)]
    assert lines(pretrain(arguments)) == lines(run)
    other = lines(pretrain([*arguments, "--run.seed", "2"]))
    assert other != lines(run)


def test_hidden_tracks_are_found(dataset_folder, tmp_path):
    """The next track is the next id, so neighbours tell the hidden one; by chance hr@1 would be near 1 in 40."""
    more = ["--train.epochs", "30", "--bert.d_model", "32", "--bert.d_ff", "32", "--bert.dropout", "0"]
    folder = pretrain(options(dataset_folder, tmp_path, *more))
    losses = [line["loss"] for line in lines(folder) if line["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    assert result(folder)["scores"]["test"]["metrics"]["hr@1"]["mean"] > 0.25


@pytest.mark.parametrize(
    "more",
    [
        ["--loss.name", "full", "--tie_weights", "false", "--monitor", "perplexity"],
        ["--loss.name", "gbce", "--loss.n_negatives", "9", "--masking.last_item", "1", "--train.precision", "bfloat16"],
        [
            "--loss.in_batch",
            "true",
            "--loss.n_negatives",
            "9",
            "--data.scored",
            "[valid]",
            "--data.valid_sessions",
            "8",
        ],
    ],
)
def test_variants(more, dataset_folder, tmp_path):
    folder = pretrain(options(dataset_folder, tmp_path, *more))
    weights = load_checkpoint(folder / "best.pt")["model"]
    tied = weights["head.table.weight"].data_ptr() == weights["bert.tracks.table.weight"].data_ptr()
    assert tied == ("--tie_weights" not in more)
    if "perplexity" in more:
        values = [line["perplexity"] for line in lines(folder) if line["split"] == "valid"]
        assert result(folder)["best_value"] == min(values)
    assert list(result(folder)["scores"]) == (["valid"] if "[valid]" in more else ["train", "valid", "test"])


def test_masking_arrives_in_the_loss_and_in_the_scores(dataset_folder, tmp_path, monkeypatch):
    dataset, batch, losses, scores = Dataset.open(dataset_folder), random_batch(), [], []
    for masking in (MaskingConfig(), MaskingConfig(rate=0.5), MaskingConfig(rate=0.5, last_item=0.6)):
        more = [f"--masking.{name}={value}" for name, value in asdict(masking).items()]
        arguments = options(dataset_folder, tmp_path, "--loss.name", "full", *more)
        model, loss_fn, evaluate_fn = given_to_fit(script, arguments, monkeypatch)
        model.eval()
        for loss in (loss_fn, partial(masked_loss, loss=full_softmax, masking=masking)):
            torch.manual_seed(1)
            losses.append(loss(model, batch))
        valid = validation_loader(dataset, DataConfig())
        scores += [evaluate_fn(), validate(masked_predictor(model, CPU, masking), dataset, valid)]
    for found in (losses, scores):
        assert found[::2] == found[1::2]
        assert all(found[i] != found[j] for i, j in ((0, 2), (0, 4), (2, 4)))


def test_the_loss_arrives(dataset_folder, tmp_path, monkeypatch):
    expected = partial(masked_loss, masking=MaskingConfig())
    check_loss_arrives(script, options(dataset_folder, tmp_path), monkeypatch, expected)


def test_one_dimension_has_no_picture(dataset_folder, tmp_path, capsys):
    folder = pretrain(options(dataset_folder, tmp_path, "--bert.d_model", "1", "--bert.n_heads", "1"))
    assert FILES - {path.name for path in folder.iterdir()} == {"embedding.png"}
    assert "vectors of shape (40, 1) have no two components: no embedding.png" in capsys.readouterr().out


def test_a_picture_does_not_cost_the_run(run, dataset_folder, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no room for pictures")

    monkeypatch.setattr("utils.track_vectors.picture.plot_vectors", broken)
    with pytest.raises(OSError, match="no room for pictures"):
        pretrain(options(dataset_folder, tmp_path, *MORE))
    (folder,) = (tmp_path / "runs" / "bert_pretrain").iterdir()
    assert FILES - {path.name for path in folder.iterdir()} == {"embedding.png"}
    assert result(folder)["scores"] == result(run)["scores"]


def test_ragged_sessions_without_features_or_skips(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", n_features=0, has_skips=False, min_length=2)
    folder = pretrain(options(data, tmp_path))
    assert not (folder / "embedding.png").exists()
    assert "has no audio features: no embedding.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--bert.n_heads", "3"], "error: bert: d_model 8 is no multiple of n_heads 3"),
        (["--masking.rate", "0"], "masking.rate is 0"),
        (["--data.train_cut", "random"], "error: pre-training reads whole sessions"),
        (["--data.folder", "nowhere"], "error: nowhere is no dataset folder"),
        (["--run.resume", "nowhere"], "error: nowhere has no last.pt to resume from"),
    ],
)
def test_bad_input(more, named, dataset_folder, tmp_path, capsys):
    assert named in refused(each_seed(script.main), script.Config, options(dataset_folder, tmp_path, *more), capsys)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_an_unknown_monitor_names_the_metrics(dataset_folder, tmp_path):
    with pytest.raises(
        UserError, match="monitor is maa, which is no metric of this task; choose one of perplexity, hr@1"
    ):
        pretrain(options(dataset_folder, tmp_path, "--monitor", "maa"))
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------------ who reads it


@dataclass
class FineTuning:
    """What a script that starts from a pre-training run has in its Config."""

    data: DataConfig
    bert: BertConfig
    pretrained: str
    run: RunConfig = field(default_factory=RunConfig)


def test_fine_tuning_starts_from_it(run, dataset_folder):
    trained = parse_config(script.Config, ["--config", str(run / "config.yml")])
    config = FineTuning(trained.data, trained.bert, str(run))
    dataset = Dataset.open(dataset_folder)
    check_pretrained(config)
    torch.manual_seed(7)
    model = script.build(trained, dataset)
    load_pretrained(model, config, dataset)
    weights = load_checkpoint(run / "best.pt")["model"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"--bert\.d_model 8"):
        check_pretrained(FineTuning(trained.data, BertConfig(), str(run)))


def test_another_vocabulary_is_refused(run, dataset_folder):
    trained = parse_config(script.Config, ["--config", str(run / "config.yml")])
    dataset = Dataset.open(dataset_folder)
    dataset.info["vocabulary"]["hash"] = "0" * 64
    model = script.build(trained, dataset)
    with pytest.raises(UserError, match=r"best\.pt was trained on another vocabulary"):
        load_pretrained(model, FineTuning(trained.data, trained.bert, str(run)), dataset)
    with pytest.raises(UserError, match="another vocabulary"):
        load_vectors(run / "track_embeddings.safetensors", vocabulary_hash=dataset.vocabulary_hash)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_evaluate_finds_the_same_scores(run, split, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    table = tmp_path / "hidden.csv"
    summary = evaluate.main(evaluate.Config(str(run), split=split, device="cpu", predictions=str(table)))
    assert summary == result(run)["scores"][split]
    assert table.read_text().startswith("session_id,position,track_id,probability,rank\n")
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_evaluate_has_nothing_to_decode(run):
    with pytest.raises(UserError, match="continues no sessions, so there is nothing to decode; leave out --decoding"):
        evaluate.main(evaluate.Config(str(run), decoding=DecodingConfig()))


def test_report_has_a_table_of_hidden_tracks(run, capsys):
    report.main(report.Config(runs=run.parent.parent))
    out = capsys.readouterr().out
    assert "Which tracks are hidden?  tiny, temporal protocol, test sessions" in out
    header = next(line for line in out.splitlines() if "MRR@20" in line)
    assert header.split() == ["MRR@20", "HR@20", "HR@1", "perplexity", "weights", "time"]
    value = result(run)["scores"]["test"]["metrics"]["mrr@20"]
    assert f"Tiny BERT {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in in_one_line(out)
    page = (run.parent.parent / "report.html").read_text()
    assert "<h2>Which tracks are hidden?</h2>" in page
    assert "<dt>Hidden tracks</dt>" in page
    section = page[page.index("<h2>Which tracks are hidden?</h2>") :]
    assert "Right answers by position" not in section
    assert "Learning curves" in section
    record = json.loads((run.parent.parent / "leaderboard.json").read_text())[0]
    assert record["task"] == "pretrain"
    assert record["metrics"]["mrr@20"]["mean"] == value["mean"]


def test_sweep_knows_it(run, dataset_folder):
    saved = saved_runs(run.parent, script.Config())
    arguments = ("--data.folder", str(dataset_folder), *TINY, *MORE, "--run.folder", str(run.parent.parent))
    assert state_of(sweep.options_of(PlannedRun("bert_pretrain", arguments)), saved) == ("finished", [])
    other = sweep.options_of(PlannedRun("bert_pretrain", (*arguments, "--run.seed", "2")))
    assert state_of(other, saved) == ("new", [])


def test_sparse_gradients_follow_the_loss(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    for name, sparse in (("full", False), ("sampled", True), ("gbce", True)):
        model = script.build(parse_config(script.Config, ["--loss.name", name, "--tie_weights", "false"]), dataset)
        assert (model.bert.tracks.table.sparse, model.head.table.sparse) == (sparse, sparse)
        assert len(model.head.bias) == N_IDS
