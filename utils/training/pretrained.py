"""Start a model from a finished run: check that its options fit, and copy its weights.

A BERT starts from a run of train_bert_pretrain.py, and the Transformer that it augments may start from a run of the
same Transformer alone ("warm start"). A run holds all its weights, so to resume or score it, the run that it started
from is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor, nn

from model.bert import BertTransformer
from utils.core.errors import UserError, blame
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.training.checkpoint import load_checkpoint
from utils.training.model_configs import BertConfig
from utils.training.options import RunConfig
from utils.training.run import saved_options

RANDOM = "random"
"""Instead of a run: an untrained BERT, as a control."""


class HasBert(Protocol):
    """Config of a script whose model holds a pre-trained BERT."""

    data: DataConfig
    bert: BertConfig
    pretrained: str
    """Folder of a run of train_bert_pretrain.py, or "random"."""
    run: RunConfig


class HasWarmStart(Protocol):
    """Config of a script whose model has a part `transformer`, which may have been trained alone."""

    data: DataConfig
    model: Any
    """A dataclass, the same as in the script that trains the part alone."""
    warm_start: str
    """Folder of a run of that script; empty for none."""
    run: RunConfig


def build_bert(
    config: BertConfig, dataset: Dataset, data: DataConfig, *, sparse: bool, use_ids: bool = True
) -> BertTransformer:
    """An untrained BERT that can read the sessions of `data`.

    Raises:
        UserError: sizes do not fit each other.
    """
    sizes = asdict(config)
    features = dataset.features if sizes.pop("use_features") else dataset.features[:, :0]
    with blame("bert"):
        return BertTransformer(
            dataset.n_ids,
            features,
            max_length=data.history_size + data.target_size,
            sparse=sparse,
            use_ids=use_ids,
            **sizes,
        )


def check_pretrained(config: HasBert) -> None:
    """Check that a pre-training run fits, before anything else is done; a resumed run needs none.

    Raises:
        UserError: no run given, not a finished run, no trained weights, or other options.
    """
    if config.run.resume is not None or config.pretrained == RANDOM:
        return
    options, defaults = _options(config.bert, "bert"), _options(BertConfig(), "bert")
    if hasattr(config, "tie_weights"):
        options, defaults = options | {"tie_weights": config.tie_weights}, defaults | {"tie_weights": True}
    length = config.data.history_size + config.data.target_size
    halves = {"data.history_size": length // 2, "data.target_size": -(-length // 2)}  # of the whole sessions it reads
    command = _command("bert_pretrain", config.data, options | halves, defaults | _lengths(DataConfig()))
    if not config.pretrained:
        raise UserError(
            f"--pretrained is needed: the folder of a pre-training run; make one with\n    {command}\n"
            "or compare with an untrained BERT: --pretrained random"
        )
    folder = Path(config.pretrained)
    trained = _check_run(folder, options, command=command, only_there="masking.rate")
    longest = trained["data.history_size"] + trained["data.target_size"]
    if length != longest:
        raise UserError(
            f"{folder} has a BERT for sessions of {longest} plays, but data.history_size and data.target_size are "
            f"{length} together; choose them so that they are {longest}"
        )


def load_pretrained(model: nn.Module, config: HasBert, dataset: Dataset) -> None:
    """Copy the pre-trained weights to `model.bert`, and to `model.head` where it scores BERT's own states.

    Nothing is copied if BERT is to be random, or if the run is resumed.

    Args:
        model: its weights have the names of the pre-training run's, `bert.` and perhaps `head.`.
        config, dataset: of the run that starts; `config` has passed `check_pretrained`.

    Raises:
        UserError: the run has another vocabulary, or its weights do not fit.
    """
    if config.run.resume is not None or config.pretrained == RANDOM:
        return
    path = Path(config.pretrained) / "best.pt"
    weights = load_checkpoint(path, vocabulary_hash=dataset.vocabulary_hash)["model"]
    parts = tuple(part for part in ("bert.", "head.") if any(name.startswith(part) for name in model.state_dict()))
    wanted = {name: value for name, value in weights.items() if name.startswith(parts)}
    _copy(wanted, model, path, may_be_new=lambda name: not name.startswith(parts))


def warm_start(model: nn.Module, config: HasWarmStart, dataset: Dataset, *, experiment: str) -> None:
    """Copy the weights of a Transformer that was trained alone to `model.transformer`.

    All of them are copied, so that only the attention to BERT is new (Zhu et al. 2020, section 3.3). Nothing is copied
    if no run is given, or if the run is resumed.

    Args:
        model: has the part `transformer`.
        config, dataset: of the run that starts.
        experiment: name of the script that trains the Transformer alone, without `train_`.

    Raises:
        UserError: not a finished run of that script, no trained weights, or other sizes, inputs or vocabulary.
    """
    if config.run.resume is not None or not config.warm_start:
        return
    options = _options(config.model, "model") | _lengths(config.data)
    defaults = _options(type(config.model)(), "model") | _lengths(DataConfig())
    _check_run(Path(config.warm_start), options, command=_command(experiment, config.data, options, defaults))
    path = Path(config.warm_start) / "best.pt"
    weights = load_checkpoint(path, vocabulary_hash=dataset.vocabulary_hash)["model"]
    _copy(weights, model.get_submodule("transformer"), path, may_be_new=lambda name: "bert_attention" in name)


def _options(config: Any, section: str) -> dict[str, Any]:
    """The options of a dataclass that weights depend on, by their dotted names: all but the dropout rate."""
    return {f"{section}.{name}": value for name, value in asdict(config).items() if name != "dropout"}


def _lengths(data: DataConfig) -> dict[str, int]:
    return {f"data.{name}": getattr(data, name) for name in ("history_size", "target_size")}


def _command(experiment: str, data: DataConfig, options: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The command that makes a run with these options."""
    changed = {name: value for name, value in options.items() if value != defaults[name]}
    return f"python train_{experiment}.py --data.folder {data.folder}{_arguments(changed)}"


def _arguments(options: dict[str, Any]) -> str:
    return "".join(f" --{name} {str(value).lower()}" for name, value in options.items())


def _check_run(folder: Path, options: dict[str, Any], *, command: str, only_there: str | None = None) -> dict[str, Any]:
    """All options of a run, flat.

    Args:
        folder: the run's.
        options: those that must be the same in the run.
        command: makes a run that fits.
        only_there: an option that only the script of such runs has.

    Raises:
        UserError: the run is not finished, lacks one of these options, or has other values.
    """
    if not (folder / "best.pt").exists():
        raise UserError(f"{folder} holds no best.pt; make a run with\n    {command}")
    if not (folder / "result.json").exists():
        raise UserError(f"{folder} is not finished (no result.json); resume it, or make a run with\n    {command}")
    try:
        trained = saved_options(folder / "config.yml", {})
    except (OSError, AttributeError, UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{folder} holds no readable config.yml; make a run with\n    {command}") from None
    unknown = sorted((options.keys() | ({only_there} if only_there else set())) - trained.keys())
    if unknown:
        raise UserError(f"{folder} is a run of another script (no {unknown[0]} in it); make one with\n    {command}")
    different = {name: trained[name] for name, value in options.items() if trained[name] != value}
    if different:
        raise UserError(f"{folder} was trained with other options; add{_arguments(different)}")
    return trained


def _copy(weights: dict[str, Tensor], module: nn.Module, path: Path, *, may_be_new: Callable[[str], bool]) -> None:
    """Copy all weights of `path` to a module, which gets every weight from there except those that may be new.

    Raises:
        UserError: they do not fit.
    """
    try:
        names = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the configured model: {error}") from None
    missing = [name for name in names.missing_keys if not may_be_new(name)]
    if missing or names.unexpected_keys:
        raise UserError(
            f"{path} does not fit the configured model: it lacks {missing[:3]} and has {names.unexpected_keys[:3]} "
            "beyond it"
        )
