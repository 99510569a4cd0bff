"""train_gru_seq.py and train_blend_seq.py from end to end on tiny data."""

import numpy as np
import pytest
from script_checks import FILES, check_continuation_arrives, check_loss_arrives, lines, refused, result, train

import evaluate
import train_baselines
import train_blend_seq
import train_gru_seq
import train_transformer_seq
from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.dataset import Dataset
from utils.data.schema import SPLITS
from utils.evaluation.options import DecodingConfig
from utils.reporting.leaderboard import build_tables
from utils.reporting.runs import load_runs
from utils.training.checkpoint import load_checkpoint
from utils.training.losses import next_track_loss
from utils.training.seeds import each_seed

TINY = ["--train.epochs", "2", "--train.batch_size", "16", "--train.lr", "0.01", "--train.device", "cpu"]


def options(dataset_folder, tmp_path, *more):
    model = ["--model.d_model", "8", "--model.d_hidden", "12"]
    return ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TINY, *model, *more]


@pytest.fixture(scope="module")
def gru(dataset_folder, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("gru")
    (run,) = train(train_gru_seq, options(dataset_folder, folder, "--run.seed", "5", "--data.every_prefix", "true"))
    return run


def blend(neural, tmp_path, *more):
    arguments = ["--neural", str(neural), "--run.folder", str(tmp_path / "runs"), *more]
    train_blend_seq.main(parse_config(train_blend_seq.Config, arguments))
    return sorted((tmp_path / "runs" / "blend_seq").iterdir())[-1]


def test_a_run_leaves_exactly_this(gru):
    names = {path.name for path in gru.iterdir()}
    assert names >= FILES
    assert {name.split(".")[0] for name in names - FILES} == {"events", "predictions_test_prefixes"}
    content = result(gru)
    assert [content[key] for key in ("experiment", "label", "task", "kind", "seed")] == [
        *("gru_seq", "Next-track GRU", "seq", "model", 5)
    ]
    assert list(content["scores"]) == [f"{split}{part}" for part in ("", "_prefixes") for split in SPLITS]
    assert [(line["step"], line["split"]) for line in lines(gru)] == [
        *((4, "train"), (4, "valid"), (8, "train"), (8, "valid"))
    ]
    weights = load_checkpoint(gru / "best.pt")["model"]
    assert content["n_parameters"] == sum(value.numel() for name, value in weights.items() if "features" not in name)


def test_resume_adds_exactly_the_missing_steps(dataset_folder, tmp_path):
    (whole,) = train(train_gru_seq, options(dataset_folder, tmp_path / "whole", "--train.epochs", "3"))
    (part,) = train(train_gru_seq, options(dataset_folder, tmp_path / "part", "--train.epochs", "1"))
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "3"]
    assert train(train_gru_seq, arguments) == [part]
    assert lines(part) == lines(whole)
    assert result(part)["scores"] == result(whole)["scores"]


def test_options_arrive(dataset_folder, tmp_path, monkeypatch):
    arguments = options(dataset_folder, tmp_path)
    check_loss_arrives(train_gru_seq, arguments, monkeypatch, next_track_loss)
    decodings = (DecodingConfig(), DecodingConfig(method="beam", beam_width=3, no_repeat=1))
    check_continuation_arrives(train_gru_seq, arguments, monkeypatch, tmp_path, "decoding", decodings)


def test_sizes_arrive(dataset_folder):
    more = ["--model.n_layers", "2", "--model.dropout", "0.3", "--model.tie_weights", "true", "--loss.name", "full"]
    config = parse_config(train_gru_seq.Config, ["--data.folder", str(dataset_folder), *more, "--model.d_hidden", "24"])
    model = train_gru_seq.build(config, Dataset.open(dataset_folder))
    assert (model.gru.num_layers, model.gru.input_size, model.gru.hidden_size) == (2, 128, 24)
    assert (model.dropout.p, model.head.weight is model.tracks.table.weight) == (0.3, True)
    assert not model.tracks.table.sparse
    sampled = train_gru_seq.build(parse_config(train_gru_seq.Config, []), Dataset.open(dataset_folder))
    assert sampled.tracks.table.sparse
    assert sampled.head.table.sparse


def test_training_learns_the_rule(dataset_folder, tmp_path):
    """The next track is the next id."""
    more = ["--train.epochs", "15", "--model.d_model", "32", "--model.d_hidden", "32", "--model.dropout", "0"]
    (run,) = train(train_gru_seq, options(dataset_folder, tmp_path, *more))
    assert result(run)["scores"]["test"]["metrics"]["hr@1"]["mean"] > 0.8  # by chance 0.025


def test_a_run_can_be_scored_again(gru, capsys):
    scores = evaluate.main(parse_config(evaluate.Config, ["--run", str(gru), "--device", "cpu"]))
    assert scores == result(gru)["scores"]["test"]
    args = ["--run", str(gru), "--device", "cpu", "--decoding.method", "beam"]
    beam = evaluate.main(parse_config(evaluate.Config, args))
    assert beam["metrics"]["perplexity"] == scores["metrics"]["perplexity"]
    assert "Next-track GRU on test" in capsys.readouterr().out


# --- The blend


def test_all_of_the_model_scores_as_the_model(gru, tmp_path):
    content = result(blend(gru, tmp_path, "--weights", "[1.0]"))
    assert list(content["scores"]) == list(result(gru)["scores"])
    for split, scores in result(gru)["scores"].items():
        for name, value in scores["metrics"].items():
            assert content["scores"][split]["metrics"][name]["mean"] == pytest.approx(value["mean"], rel=1e-5)


def test_a_blend_stands_beside_its_model(gru, tmp_path):
    run = blend(gru, tmp_path, "--scored", "[valid, test]")
    assert {path.name for path in run.iterdir()} == {
        *("config.yml", "result.json", "predictions_test.npz", "predictions_test_prefixes.npz")
    }
    content, of_model = result(run), result(gru)
    assert [content[key] for key in ("experiment", "label", "task", "kind", "seed", "weight", "neural")] == [
        *("blend_seq", "Next-track GRU and n-gram with kNN", "seq", "model", 5, 0.5, str(gru))
    ]
    assert content["n_parameters"] == of_model["n_parameters"]
    assert list(content["scores"]) == ["valid", "test", "valid_prefixes", "test_prefixes"]
    assert content["scores"]["test"]["metrics"]["maa"]["mean"] > 0.9, "the n-gram knows the rule"
    tables = build_tables([*load_runs(gru.parent.parent)[0], *load_runs(tmp_path / "runs")[0]])
    assert {row.label for row in tables[0].rows} == {"Next-track GRU", "Next-track GRU and n-gram with kNN"}


def test_the_weight_is_chosen_on_validation(gru, tmp_path):
    content = result(blend(gru, tmp_path, "--config", "configs/blend_seq/chosen.yml", "--scored", "[valid]"))
    weights = {name: value for name, value in content["trials"].items() if name.startswith("weight")}
    assert list(weights) == [f"weight {weight}" for weight in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert f"weight {content['weight']}" == max(weights, key=weights.__getitem__)
    measured = content["scores"]["valid_prefixes"]["metrics"]["mrr@20"]["mean"]
    assert max(weights.values()) == pytest.approx(measured), "every prefix of the same sessions"


def test_blends_of_seeds_are_one_row(gru, dataset_folder, tmp_path):
    more = ("--run.seed", "6", "--data.every_prefix", "true")
    (other,) = train(train_gru_seq, options(dataset_folder, tmp_path, *more))
    for run in (gru, other):
        blend(run, tmp_path, "--scored", "[test]")
    found = [run for run in load_runs(tmp_path / "runs")[0] if run.result["experiment"] == "blend_seq"]
    assert [row.label for row in build_tables(found)[0].rows] == ["Next-track GRU and n-gram with kNN"]
    assert len(build_tables(found)[0].rows[0].runs) == 2
    blend(other, tmp_path, "--scored", "[test]", "--order", "1")
    found = [run for run in load_runs(tmp_path / "runs")[0] if run.result["experiment"] == "blend_seq"]
    assert len(build_tables(found)[0].rows[0].runs) == 1, "another n-gram is another row"


def test_any_step_by_step_model_can_be_blended(dataset_folder, tmp_path):
    model = ["--model.d_model", "8", "--model.n_heads", "2", "--model.n_layers", "1", "--model.d_ff", "8"]
    common = ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TINY]
    (run,) = train(train_transformer_seq, [*common, *model, "--train.epochs", "1"])
    content = result(blend(run, tmp_path, "--weights", "[1]", "--run.label", "Mine"))
    assert content["label"] == "Mine"
    expected = result(run)["scores"]["test"]["metrics"]
    assert content["scores"]["test"]["metrics"]["perplexity"]["mean"] == pytest.approx(
        expected["perplexity"]["mean"], rel=1e-5
    )


def test_the_size_of_the_ngram_arrives(gru, tmp_path, monkeypatch):
    seen = []
    baselines = train_baselines.seq_baselines
    monkeypatch.setattr(
        train_baselines, "seq_baselines", lambda config, data: seen.append(config) or baselines(config, data)
    )
    blend(gru, tmp_path, "--max_sessions", "20", "--order", "2", "--scored", "[test]")
    assert (seen[0].max_sessions, seen[0].order, seen[0].data.every_prefix) == (20, 2, True)
    few = np.load(
        tmp_path
        / "runs"
        / "blend_seq"
        / sorted((tmp_path / "runs" / "blend_seq").iterdir())[-1].name
        / "predictions_test.npz"
    )["rank"]
    assert np.isfinite(few).all()


def test_a_blend_is_not_scored_again(gru, tmp_path):
    run = blend(gru, tmp_path, "--scored", "[test]")
    with pytest.raises(
        UserError, match=r"Next-track GRU and n-gram with kNN\) keeps no weights; run its script again instead"
    ):
        evaluate.main(parse_config(evaluate.Config, ["--run", str(run), "--device", "cpu"]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "neural is '', which is no folder of a finished run; train a model first"),
        (["--neural", "nowhere"], "neural is 'nowhere', which is no folder of a finished run"),
        (
            ["--neural", "GRU", "--weights", "[0.5, 1.1]"],
            "weights is [0.5, 1.1]; it must be a list of numbers from 0 to",
        ),
        (["--neural", "GRU", "--weights", "[]"], "weights is []; it must be"),
        (["--neural", "GRU", "--scored", "[tests]"], "scored is ['tests']; it must be some of train, valid, test"),
        (["--neural", "GRU", "--device", "mps"], "device"),
        (["--neural", "GRU", "--run.seeds", "3"], "run.seeds: a blend is of one run"),
        (["--neural", "BERT"], "is a run of bert_finetune_seq, which does not continue track by track"),
    ],
)
def test_bad_input(more, message, gru, tmp_path, capsys):
    bert = tmp_path / "bert"
    bert.mkdir()
    content = read_json(gru / "result.json") | {"experiment": "bert_finetune_seq", "config": {"filling": {}}}
    (bert / "result.json").write_text(str(content).replace("'", '"').replace("None", "null").replace("True", "true"))
    places = {"GRU": str(gru), "BERT": str(bert)}
    args = [places.get(part, part) for part in more] + ["--run.folder", str(tmp_path / "runs")]
    assert message in refused(train_blend_seq.main, train_blend_seq.Config, args, capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.dropout", "1.5"], "error: model: dropout is 1.5"),
        (["--model.d_model", "0"], "model.d_model is 0; it must be at least 1"),
        (["--monitor", "mma"], "monitor is mma, which is no metric of this task"),
        (["--data.folder", "nowhere"], "error: nowhere is no dataset folder"),
        (["--model.d_ff", "8"], "d_ff"),
        (["--train.compiled", "true"], "train.compiled has no meaning for this model"),
    ],
)
def test_bad_input_of_training(more, message, dataset_folder, tmp_path, capsys):
    arguments = options(dataset_folder, tmp_path, *more)
    assert message in refused(each_seed(train_gru_seq.main), train_gru_seq.Config, arguments, capsys)
    assert not (tmp_path / "runs").exists()
