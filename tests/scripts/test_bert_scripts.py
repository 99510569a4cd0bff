"""The scripts that start from a pre-trained BERT: what they start with, what they leave, which options arrive."""

from __future__ import annotations

import shutil
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bert_runs import AUGMENTED, BERT, SCRIPTS, TRAIN, make_pretrained, options
from script_checks import (
    FILES,
    check_continuation_arrives,
    check_loss_arrives,
    check_weighting_arrives,
    given_to_fit,
    lines,
    result,
    train,
)
from sized_models import BertForContinuation

import evaluate
import train_bert_finetune_seq
import train_bert_pretrain
import train_seq_bert_augmented
import train_seq_bert_augmented_dropnet
import train_transformer_seq
import train_transformer_skip
from model.filling import fill
from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.evaluation.options import DecodingConfig, FillingConfig
from utils.training.checkpoint import load_checkpoint, save_checkpoint
from utils.training.losses import hidden_targets_loss


@pytest.fixture(scope="module")
def pretrained(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pretrained(tmp_path_factory.mktemp("pretrained") / "run", dataset_folder)


@pytest.fixture(scope="module")
def runs(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> dict[str, Path]:
    """A finished run of each script; the pre-training run that they name is gone."""
    folder = tmp_path_factory.mktemp("finetuned")
    gone = Path(shutil.copytree(pretrained, folder / "gone"))
    found = {}
    for name, script in SCRIPTS.items():
        (found[name],) = train(script, options(name, dataset_folder, folder, "--pretrained", str(gone)))
    shutil.rmtree(gone)
    return found


def weights(folder: Path, file: str = "best.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / file)["model"]


def assert_same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """The same weights, to the bit."""
    assert some.keys() == others.keys()
    for name, value in some.items():
        assert torch.equal(value, others[name]), name


def bert_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("bert.")}


def model_at_the_start(script, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The model of a script as it is given to `fit`."""
    return given_to_fit(script, arguments, monkeypatch).model


# --- Runs


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_leaves_exactly_this(name, runs):
    folder = runs[name]
    names = {path.name for path in folder.iterdir()}
    (events,) = names - FILES
    assert events.startswith("events.out.tfevents")
    assert names > FILES
    assert [(line["step"], line["split"]) for line in lines(folder)] == [
        *((4, "train"), (4, "valid"), (8, "train"), (8, "valid"))
    ]
    content = result(folder)
    assert list(content["scores"]) == ["train", "valid", "test"]
    assert (content["experiment"], content["kind"]) == (name, "model")
    assert content["task"] == ("skip" if "skip" in name else "seq")
    valid = {line["step"]: line for line in lines(folder) if line["split"] == "valid"}
    assert content["best_value"] == max(line["maa"] for line in valid.values())
    assert content["scores"]["valid"]["metrics"]["maa"]["mean"] == pytest.approx(content["best_value"])
    parameters = {key: value for key, value in weights(folder).items() if "features" not in key}
    trained = {key: value for key, value in parameters.items() if name not in AUGMENTED or not key.startswith("bert.")}
    for counted, key in ((parameters, "n_parameters"), (trained, "n_trained_parameters")):
        storages = {value.untyped_storage().data_ptr(): value.numel() for value in counted.values()}
        assert content[key] == sum(storages.values()), key
    assert (content["n_trained_parameters"] < content["n_parameters"]) == (name in AUGMENTED)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_is_scored_without_the_one_that_it_started_from(name, runs):
    own = result(runs[name])["scores"]["valid"]["metrics"]
    summary = evaluate.main(evaluate.Config(str(runs[name]), split="valid", device="cpu"))
    assert summary["metrics"].keys() == own.keys()
    for metric, value in own.items():
        assert summary["metrics"][metric]["mean"] == pytest.approx(value["mean"], abs=1e-6), metric


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_resumed_run_is_the_whole_run_and_needs_no_pretrained_one(name, dataset_folder, tmp_path, pretrained, runs):
    gone = Path(shutil.copytree(pretrained, tmp_path / "gone"))
    more = ["--pretrained", str(gone), "--train.epochs", "1"]
    (part,) = train(SCRIPTS[name], options(name, dataset_folder, tmp_path, *more))
    shutil.rmtree(gone)
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "2"]
    assert train(SCRIPTS[name], arguments) == [part]
    assert lines(part) == lines(runs[name])
    assert_same(weights(part, "last.pt"), weights(runs[name], "last.pt"))
    assert result(part)["scores"] == result(runs[name])["scores"]


# --- What a model starts with


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_model_starts_with_the_pretrained_weights(name, dataset_folder, tmp_path, pretrained, monkeypatch):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(pretrained))
    model = model_at_the_start(SCRIPTS[name], arguments, monkeypatch)
    file = weights(pretrained)
    assert_same(bert_of(model.state_dict()), bert_of(file))
    tracks = torch.arange(5, 45)
    assert torch.equal(model.bert.tracks(tracks), file["bert.tracks.table.weight"][5:]), "what forward sees"
    if name == "bert_finetune_seq":
        assert torch.equal(model.head.bias, file["head.bias"])
        assert model.head.weight is model.bert.tracks.table.weight


def test_an_output_table_of_its_own_is_pretrained_too(dataset_folder, tmp_path, monkeypatch):
    untied = ["--tie_weights", "false"]
    folder = make_pretrained(tmp_path / "run", dataset_folder, *untied)
    name = "bert_finetune_seq"
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(folder), *untied)
    model = model_at_the_start(SCRIPTS[name], arguments, monkeypatch)
    assert_same(model.state_dict(), weights(folder))
    assert not torch.equal(model.head.weight, model.bert.tracks.table.weight)


@pytest.mark.parametrize("name", AUGMENTED)
def test_a_frozen_bert_is_the_same_at_the_end(name, runs, pretrained):
    for file in ("best.pt", "last.pt"):
        assert_same(bert_of(weights(runs[name], file)), bert_of(weights(pretrained)))


@pytest.mark.parametrize("name", ["bert_finetune_seq", "bert_finetune_skip"])
def test_a_finetuned_bert_is_not(name, runs, pretrained):
    before, after = bert_of(weights(pretrained)), bert_of(weights(runs[name], "last.pt"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[key], after[key]) for key in before if "features" not in key)


@pytest.mark.parametrize("name", ["seq_bert_augmented", "skip_bert_augmented"])
def test_an_augmenting_bert_can_be_finetuned(name, dataset_folder, tmp_path, pretrained):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(pretrained), "--finetune_bert", "true")
    (folder,) = train(SCRIPTS[name], [*arguments, "--train.epochs", "1"])
    before, after = bert_of(weights(pretrained)), bert_of(weights(folder, "last.pt"))
    assert not any(torch.equal(before[key], after[key]) for key in before if "features" not in key)
    assert result(folder)["n_trained_parameters"] == result(folder)["n_parameters"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_random_is_what_the_seed_makes(name, dataset_folder, tmp_path, pretrained, monkeypatch):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", "random", "--run.seed", "3")
    model = model_at_the_start(SCRIPTS[name], arguments, monkeypatch)
    torch.manual_seed(3)
    config = parse_config(SCRIPTS[name].Config, arguments)
    assert_same(model.state_dict(), SCRIPTS[name].build(config, Dataset.open(dataset_folder)).state_dict())
    assert not torch.equal(model.bert.tracks.table.weight, weights(pretrained)["bert.tracks.table.weight"])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("seq_bert_augmented", train_transformer_seq),
        ("seq_bert_augmented_dropnet", train_transformer_seq),
        ("skip_bert_augmented", train_transformer_skip),
    ],
)
def test_a_warm_start_copies_all_of_a_transformer(name, plain, dataset_folder, tmp_path, pretrained, monkeypatch):
    (alone,) = train(plain, options("transformer", dataset_folder, tmp_path, "--train.epochs", "1"))
    more = ["--pretrained", str(pretrained), "--warm_start", str(alone), "--model.dropout", "0.3"]
    model = model_at_the_start(SCRIPTS[name], options(name, dataset_folder, tmp_path, *more), monkeypatch)
    new = {key: value for key, value in model.transformer.state_dict().items() if "bert_attention" not in key}
    assert_same(new, weights(alone))
    assert len(new) < len(model.transformer.state_dict())
    assert_same(bert_of(model.state_dict()), bert_of(weights(pretrained)))


def test_a_real_pretraining_run_will_do(dataset_folder, tmp_path, monkeypatch):
    arguments = ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *BERT, *TRAIN]
    (folder,) = train(train_bert_pretrain, [*arguments, "--train.epochs", "1"])
    name = "bert_finetune_seq"
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(folder))
    model = model_at_the_start(SCRIPTS[name], arguments, monkeypatch)
    assert_same(model.state_dict(), weights(folder))


# --- DropNet


def test_dropnet_is_a_variant(runs):
    variant, sibling = train_seq_bert_augmented_dropnet, train_seq_bert_augmented
    assert variant.build is sibling.build
    assert issubclass(variant.Config, sibling.Config)
    one, other = variant.Config(), sibling.Config()
    assert [field.name for field in fields(one)] == [field.name for field in fields(other)]
    assert (one.drop_net, one.train.epochs, other.drop_net, other.train.epochs) == (0.8, 10, 0.0, 5)
    one.drop_net, one.train.epochs, one.run.label = other.drop_net, other.train.epochs, other.run.label
    assert asdict(one) == asdict(other)
    saved = (
        yaml.safe_load((runs[f"seq_bert_augmented{suffix}"] / "config.yml").read_text()) for suffix in ("", "_dropnet")
    )
    assert [config["drop_net"] for config in saved] == [0.0, 0.8]


@pytest.mark.parametrize("name", AUGMENTED)
def test_drop_net_reaches_every_layer(name, dataset_folder, tmp_path, pretrained, monkeypatch):
    more = ["--pretrained", str(pretrained), "--drop_net", "0.6", "--model.n_layers", "2"]
    model = model_at_the_start(SCRIPTS[name], options(name, dataset_folder, tmp_path, *more), monkeypatch)
    mixes = [layer.mix.p for part in (model.transformer.encoder, model.transformer.decoder) for layer in part.layers]
    assert mixes == [0.6] * 4


# --- Filling in masks


@torch.no_grad()
def enliven(model: BertForContinuation) -> None:
    """Make the order matter in which masks are filled; two epochs of training do not."""
    model.bert.positions.normal_(generator=torch.manual_seed(2))
    model.bert.tracks.table.weight.mul_(6)
    model.bert.layers[0].attention.output.weight.mul_(4)


@pytest.mark.parametrize("passes", [3, 10])
def test_evaluate_fills_in_masks_as_asked(passes, dataset_folder, runs, tmp_path):
    folder, table, dataset = tmp_path / "run", tmp_path / "p.csv", Dataset.open(dataset_folder)
    shutil.copytree(runs["bert_finetune_seq"], folder)
    trained = parse_config(train_bert_finetune_seq.Config, ["--config", str(folder / "config.yml")])
    model = train_bert_finetune_seq.build(trained, dataset).eval()
    enliven(model)
    save_checkpoint(folder / "best.pt", load_checkpoint(folder / "best.pt") | {"model": model.state_dict()})
    (batch,) = SessionLoader(dataset.test, batch_size=1000)
    places = np.nonzero(batch.target_tracks.numpy())

    def predicted(*more: str) -> tuple[list[str], dict[str, dict[str, float]]]:
        arguments = ["--run", str(folder), "--predictions", str(table), "--device", "cpu", *more]
        summary = evaluate.main(parse_config(evaluate.Config, arguments))
        return pd.read_csv(table)["predicted_track_id"].tolist(), summary["metrics"]

    def expected(**options) -> list[str]:
        return dataset.track_names[fill(model, batch.history, 10, **options).numpy()[places]].tolist()

    found, metrics = predicted("--filling.order", "confident", "--filling.passes", str(passes))
    assert found == expected(order="confident", passes=passes)
    in_parallel, own = predicted()
    assert in_parallel == expected()
    assert len({tuple(tracks) for tracks in (found, in_parallel, expected(order="confident", passes=13 - passes))}) == 3
    assert {name: metrics[name] for name in ("perplexity", "mrr@20")} == {
        name: own[name] for name in ("perplexity", "mrr@20")
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert_finetune_seq", {"decoding": DecodingConfig()}, "continues sessions by --filling; leave out --decoding"),
        ("seq_bert_augmented", {"filling": FillingConfig()}, "continues sessions by --decoding; leave out --filling"),
        ("bert_finetune_skip", {"filling": FillingConfig()}, "nothing to decode; leave out --filling"),
        ("skip_bert_augmented", {"decoding": DecodingConfig()}, "nothing to decode; leave out --decoding"),
    ],
)
def test_a_run_is_decoded_only_as_its_model_can(name, options, message, runs):
    with pytest.raises(UserError, match=message):
        evaluate.main(evaluate.Config(str(runs[name]), device="cpu", **options))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("bert_finetune_seq", ["--masks", "random", "--filling.order", "left_to_right", "--filling.passes", "4"]),
        ("bert_finetune_seq", ["--loss.name", "full", "--data.every_prefix", "true", "--monitor", "mrr@20"]),
        ("bert_finetune_seq", ["--data.train_cut", "every", "--filling.order", "confident", "--masks", "random"]),
        ("bert_finetune_skip", ["--weighting", "maa", "--use_log", "false"]),
        ("seq_bert_augmented", ["--loss.name", "full", "--model.tie_weights", "true", "--decoding.method", "beam"]),
        ("seq_bert_augmented", ["--data.every_prefix", "true", "--data.train_cut", "random", "--monitor", "mrr@20"]),
        ("skip_bert_augmented", ["--model.causal", "false", "--model.skip_encoding", "token", "--weighting", "maa"]),
    ],
)
def test_variants(name, more, dataset_folder, tmp_path, pretrained):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", str(pretrained), "--train.epochs", "1", *more)
    (folder,) = train(SCRIPTS[name], arguments)
    content = result(folder)
    assert ("test_prefixes" in content["scores"]) == ("--data.every_prefix" in more)
    monitor = "mrr@20" if "mrr@20" in more else "maa"
    (valid,) = (line for line in lines(folder) if line["split"] == "valid")
    assert content["best_value"] == valid[monitor]


@pytest.mark.parametrize("name", ["bert_finetune_skip", "skip_bert_augmented"])
def test_the_weighting_arrives(name, dataset_folder, tmp_path, monkeypatch):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", "random")
    check_weighting_arrives(SCRIPTS[name], arguments, monkeypatch)


@pytest.mark.parametrize("name", ["bert_finetune_seq", "seq_bert_augmented"])
def test_the_loss_arrives(name, dataset_folder, tmp_path, monkeypatch):
    arguments = options(name, dataset_folder, tmp_path, "--pretrained", "random")
    check_loss_arrives(SCRIPTS[name], arguments, monkeypatch)
    if name == "bert_finetune_seq":
        check_loss_arrives(SCRIPTS[name], [*arguments, "--masks", "random"], monkeypatch, hidden_targets_loss)


def test_filling_and_its_allow_list_arrive(dataset_folder, tmp_path, monkeypatch):
    more = ["--pretrained", "random", "--bert.d_model", "16"]
    arguments = options("bert_finetune_seq", dataset_folder, tmp_path, *more)
    fillings = (FillingConfig(), FillingConfig(order="confident", passes=4))
    check_continuation_arrives(
        train_bert_finetune_seq, arguments, monkeypatch, tmp_path, "filling", fillings, enliven=enliven
    )


def test_decoding_and_its_allow_list_arrive(dataset_folder, tmp_path, monkeypatch):
    arguments = options("seq_bert_augmented", dataset_folder, tmp_path, "--pretrained", "random")
    decodings = (DecodingConfig(), DecodingConfig(method="beam", beam_width=3, no_repeat=1))
    check_continuation_arrives(train_seq_bert_augmented, arguments, monkeypatch, tmp_path, "decoding", decodings)


def test_options_reach_the_model(dataset_folder, tmp_path, monkeypatch):
    def started(name: str, *more: str) -> torch.nn.Module:
        arguments = options(name, dataset_folder, tmp_path, "--pretrained", "random", *more)
        return model_at_the_start(SCRIPTS[name], arguments, monkeypatch)

    assert started("bert_finetune_seq", "--data.target_size", "8", "--data.history_size", "12").target_size == 8
    assert started("bert_finetune_skip").log is not None
    assert started("bert_finetune_skip", "--use_log", "false").log is None
    assert started("bert_finetune_skip", "--bert.use_features", "true").bert.tracks.project is not None


def test_random_masks_train_another_model(dataset_folder, tmp_path, pretrained, runs):
    name = "bert_finetune_seq"
    (folder,) = train(
        SCRIPTS[name], options(name, dataset_folder, tmp_path, "--pretrained", str(pretrained), "--masks", "random")
    )
    losses, others = ([line["loss"] for line in lines(one) if line["split"] == "train"] for one in (folder, runs[name]))
    assert losses != others
