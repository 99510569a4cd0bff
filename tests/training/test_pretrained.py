"""From a run to the model that starts from it: what fits, what is refused, and what each refusal advises."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from sized_models import BertAugmentedSeqTransformer, BertForContinuation, BertForSkips, SeqTransformer
from torch import nn

import train_bert_pretrain
import train_transformer_seq
import train_transformer_skip
from model.attention import BertBranch
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.training.checkpoint import load_checkpoint, save_checkpoint
from utils.training.model_configs import BertConfig, SeqTransformerConfig, SkipTransformerConfig
from utils.training.options import RunConfig
from utils.training.pretrained import build_bert, check_pretrained, load_pretrained, warm_start

SMALL = BertConfig(d_model=8, n_heads=2, n_layers=1, d_ff=8)
MODEL = SeqTransformerConfig(d_model=12, n_heads=2, n_layers=1, d_ff=8)


@dataclass
class Config:
    """Of a script that starts from other runs."""

    pretrained: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    bert: BertConfig = field(default_factory=lambda: BertConfig(**asdict(SMALL)))
    run: RunConfig = field(default_factory=RunConfig)
    model: SeqTransformerConfig = field(default_factory=lambda: SeqTransformerConfig(**asdict(MODEL)))
    warm_start: str = ""


@dataclass
class ConfigWithHead(Config):
    """Of a script whose model has BERT's own head."""

    tie_weights: bool = True


@pytest.fixture(scope="module")
def dataset(dataset_folder: Path) -> Dataset:
    return Dataset.open(dataset_folder)


def make_run(folder: Path, script, config, dataset: Dataset) -> Path:
    """A run folder with untrained weights."""
    torch.manual_seed(5)
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    model = script.build(config, dataset)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    weights = {"model": model.state_dict(), "vocabulary_hash": dataset.vocabulary_hash, "step": 0}
    save_checkpoint(folder / "best.pt", weights)
    (folder / "result.json").touch()
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    return make_run(folder, train_bert_pretrain, train_bert_pretrain.Config(bert=SMALL), dataset)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return make_run(folder, train_transformer_seq, train_transformer_seq.Config(model=MODEL), dataset)


def augmented(dataset: Dataset) -> BertAugmentedSeqTransformer:
    transformer = SeqTransformer(
        dataset.n_ids, dataset.features, sparse=True, branch=BertBranch(8, 0.0), **asdict(MODEL)
    )
    return BertAugmentedSeqTransformer(transformer, build_bert(SMALL, dataset, DataConfig(), sparse=True))


# --- An untrained BERT


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("use_features", [False, True])
def test_every_option_reaches_the_bert(sparse, use_features, dataset):
    config = BertConfig(d_model=12, n_heads=3, n_layers=2, d_ff=20, dropout=0.3, use_features=use_features)
    bert = build_bert(config, dataset, DataConfig(history_size=7, target_size=6), sparse=sparse)
    assert bert.positions.shape == (13, 12)
    assert bert.tracks.table.weight.shape == (dataset.n_ids, 12)
    assert bert.tracks.table.sparse == sparse
    assert torch.equal(bert.tracks.features, dataset.features if use_features else dataset.features[:, :0])
    assert [(layer.attention.n_heads, layer.dropout.p) for layer in bert.layers] == [(3, 0.3)] * 2
    assert bert.layers[0].feed_forward[0].weight.shape == (20, 12)


def test_sizes_that_do_not_fit_each_other_are_blamed_on_the_options(dataset):
    with pytest.raises(UserError, match="bert: d_model 8 is no multiple of n_heads 3"):
        build_bert(BertConfig(d_model=8, n_heads=3), dataset, DataConfig(), sparse=True)


# --- Checks before anything else is done


def test_a_run_that_fits_is_accepted(pretrained):
    check_pretrained(Config(str(pretrained)))
    check_pretrained(ConfigWithHead(str(pretrained)))
    check_pretrained(Config(str(pretrained), data=DataConfig(history_size=15, target_size=5)))
    other_dropout = BertConfig(**asdict(SMALL) | {"dropout": 0.5})
    check_pretrained(Config(str(pretrained), bert=other_dropout))


@pytest.mark.parametrize("config", [Config("random"), Config("", run=RunConfig(resume="run"))])
def test_nothing_is_needed_or_copied_for_a_random_bert_and_when_a_run_is_resumed(config, dataset):
    check_pretrained(config)
    config.warm_start = config.run.resume or ""
    model = augmented(dataset)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_pretrained(model, config, dataset)
    warm_start(model, config, dataset, experiment="transformer_seq")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "command"),
    [
        (Config(bert=BertConfig()), "python train_bert_pretrain.py --data.folder data/demo\n"),
        (
            Config(data=DataConfig("data/x", history_size=20, target_size=11), bert=BertConfig(n_layers=2)),
            "python train_bert_pretrain.py --data.folder data/x --bert.n_layers 2 --data.history_size 15 "
            "--data.target_size 16\n",
        ),
        (
            ConfigWithHead(bert=BertConfig(use_features=True), tie_weights=False),
            "python train_bert_pretrain.py --data.folder data/demo --bert.use_features true --tie_weights false\n",
        ),
    ],
)
def test_the_command_makes_a_run_that_fits(config, command):
    with pytest.raises(UserError, match="--pretrained is needed") as caught:
        check_pretrained(config)
    assert command in str(caught.value)
    assert str(caught.value).endswith("--pretrained random")


@pytest.mark.parametrize(
    ("bert", "advice"),
    [
        ({"d_model": 16}, "add --bert.d_model 8"),
        ({"n_heads": 4, "n_layers": 3}, "add --bert.n_heads 2 --bert.n_layers 1"),
        ({"use_features": True}, "add --bert.use_features false"),
    ],
)
def test_other_sizes_are_named(bert, advice, pretrained):
    config = Config(str(pretrained), bert=BertConfig(**asdict(SMALL) | bert))
    with pytest.raises(UserError) as caught:
        check_pretrained(config)
    assert str(caught.value) == f"{pretrained} was trained with other options; {advice}"


def test_another_head_is_named(pretrained):
    with pytest.raises(UserError, match=r"with other options; add --tie_weights true$"):
        check_pretrained(ConfigWithHead(str(pretrained), tie_weights=False))


@pytest.mark.parametrize("history_size", [8, 20])
def test_other_lengths_are_named(history_size, pretrained):
    length = history_size + 10
    with pytest.raises(UserError, match=rf"for sessions of 20 plays, .* are {length} together; choose them so that"):
        check_pretrained(Config(str(pretrained), data=DataConfig(history_size=history_size)))


def test_what_is_no_pretraining_run_is_refused(pretrained, alone, tmp_path):
    with pytest.raises(
        UserError, match=r"is a run of another script \(no bert.d_ff in it\); make one with\n    python"
    ):
        check_pretrained(Config(str(alone)))
    with pytest.raises(UserError, match=r"nowhere holds no best.pt; make a run with\n    python train_bert_pre"):
        check_pretrained(Config("nowhere"))
    # A run of another script can have a BERT of the same sizes, and nobody knows how it was trained.
    finetuned = Path(shutil.copytree(pretrained, tmp_path / "finetuned"))
    options = yaml.safe_load((finetuned / "config.yml").read_text())
    del options["masking"]
    (finetuned / "config.yml").write_text(yaml.safe_dump(options))
    with pytest.raises(UserError, match=r"finetuned is a run of another script \(no masking.rate in it\)"):
        check_pretrained(Config(str(finetuned)))
    unfinished = Path(shutil.copytree(pretrained, tmp_path / "unfinished"))
    (unfinished / "result.json").unlink()
    with pytest.raises(UserError, match=r"unfinished is not finished \(no result.json\); resume it, or make a run"):
        check_pretrained(Config(str(unfinished)))
    broken = Path(shutil.copytree(pretrained, tmp_path / "broken"))
    for content in ("a: [", "nothing", None):
        if content is None:
            (broken / "config.yml").unlink()
        else:
            (broken / "config.yml").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"broken holds no readable config.yml; make a run with"):
            check_pretrained(Config(str(broken)))


# --- Weights


@pytest.mark.parametrize("kind", [BertForContinuation, BertForSkips])
def test_weights_are_copied(kind, pretrained, dataset):
    torch.manual_seed(1)
    model = kind(build_bert(SMALL, dataset, DataConfig(), sparse=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_pretrained(model, Config(str(pretrained)), dataset)
    file = load_checkpoint(pretrained / "best.pt")["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, file[name] if name in file else before[name]), name
    new = {name for name in before if name not in file}
    assert all(name.startswith(("skip_state", "log", "output")) for name in new)
    assert bool(new) == (kind is BertForSkips)


def changed(folder: Path, to: Path, **changes) -> Path:
    """A copy of a run with other content in its checkpoint."""
    shutil.copytree(folder, to)
    save_checkpoint(to / "best.pt", load_checkpoint(to / "best.pt") | changes)
    return to


def test_weights_of_something_else_are_refused(pretrained, alone, dataset, tmp_path):
    model = augmented(dataset)
    weights = load_checkpoint(pretrained / "best.pt")["model"]
    some = dict(list(weights.items())[:-3])
    more = weights | {"bert.new": torch.zeros(1)}
    other = weights | {"bert.positions": torch.zeros(3, 8)}
    for name, wrong in (("some", some), ("more", more), ("other", other)):
        config = Config(str(changed(pretrained, tmp_path / name, model=wrong)))
        with pytest.raises(UserError, match=rf"{name}/best.pt does not fit the configured model: (?s:.)*bert"):
            load_pretrained(model, config, dataset)
    without = {name: value for name, value in load_checkpoint(alone / "best.pt")["model"].items() if "norm" not in name}
    config = Config(warm_start=str(changed(alone, tmp_path / "without", model=without)))
    with pytest.raises(UserError, match=r"without/best.pt does not fit the configured model: it lacks .*norm"):
        warm_start(model, config, dataset, experiment="transformer_seq")


def test_another_vocabulary_is_refused(pretrained, alone, dataset, tmp_path):
    model = augmented(dataset)
    other = changed(pretrained, tmp_path / "bert", vocabulary_hash="abc")
    with pytest.raises(UserError, match="trained on another vocabulary"):
        load_pretrained(model, Config(str(other)), dataset)
    other = changed(alone, tmp_path / "alone", vocabulary_hash="abc")
    with pytest.raises(UserError, match="trained on another vocabulary"):
        warm_start(model, Config(warm_start=str(other)), dataset, experiment="transformer_seq")


# --- Warm start


def test_only_the_attention_to_bert_is_new(alone, dataset):
    model = augmented(dataset)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = Config(warm_start=str(alone))
    config.model.dropout = 0.7
    warm_start(model, config, dataset, experiment="transformer_seq")
    file = {f"transformer.{name}": value for name, value in load_checkpoint(alone / "best.pt")["model"].items()}
    new = {name for name in before if name.startswith("transformer.") and name not in file}
    assert new == {name for name in before if "bert_attention" in name}
    assert len(new) > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, file[name] if name in file else before[name]), name


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"d_ff": 16}, "add --model.d_ff 8"),
        ({"use_log": True, "start": "bos"}, "add --model.use_log false --model.start last"),
        ({"tie_weights": True}, "add --model.tie_weights false"),
    ],
)
def test_a_transformer_of_other_sizes_or_inputs_is_refused(options, advice, alone, dataset):
    config = Config(warm_start=str(alone), model=SeqTransformerConfig(**asdict(MODEL) | options))
    with pytest.raises(UserError) as caught:
        warm_start(nn.Module(), config, dataset, experiment="transformer_seq")
    assert str(caught.value) == f"{alone} was trained with other options; {advice}"


def test_a_warm_start_needs_the_same_lengths(alone, dataset):
    config = Config(warm_start=str(alone), data=DataConfig(history_size=8, target_size=12))
    with pytest.raises(UserError, match=r"add --data.history_size 10 --data.target_size 10$"):
        warm_start(nn.Module(), config, dataset, experiment="transformer_seq")


def test_a_warm_start_from_the_other_task_is_refused(dataset, tmp_path):
    sizes = SkipTransformerConfig(d_model=12, n_heads=2, n_layers=1, d_ff=8, dropout=0.2)
    folder = make_run(tmp_path / "skip", train_transformer_skip, train_transformer_skip.Config(model=sizes), dataset)
    with pytest.raises(UserError, match=r"a run of another script \(no model.start in it\)") as caught:
        warm_start(nn.Module(), Config(warm_start=str(folder)), dataset, experiment="transformer_seq")
    assert str(caught.value).endswith(
        "python train_transformer_seq.py --data.folder data/demo --model.d_model 12 --model.n_layers 1 --model.d_ff 8"
    )
