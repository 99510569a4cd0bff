"""Run folders: one experiment, one folder, everything that is needed to read, repeat or resume it.

`runs/<experiment>/<stamp>/` holds `config.yml`, `metrics.jsonl`, TensorBoard events, `best.pt`, `last.pt` and, only
when the experiment is finished, `result.json` (docs/training.md has its keys).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from utils.core import distributed
from utils.core.errors import UserError
from utils.core.files import atomic_file, write_json
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import SPLITS
from utils.evaluation.metrics import HEADLINES
from utils.training.machine import git_commit, peak_memory_mib
from utils.training.seeds import HasRun

MAY_CHANGE = {
    *("train.epochs", "train.patience", "train.max_seconds", "train.device"),
    *("run.label", "run.seeds", "run.folder", "run.resume"),
}
"""Options that may differ when a run is resumed."""


POSITION_MAJORITY, TRACK_RATE = "position_majority", "skip_rate_of_the_track"
REPEAT_LAST, NGRAM = "repeat_last_action", "n_gram_with_knn"
"""`experiment` of the baselines that other code looks for."""


class Run:
    """A run folder that is being written.

    Args:
        experiment: name of the script without `train_`.
        config: the script's Config; saved as `config.yml`, which is valid as `--config`.
        dataset: what is trained and scored on.

    Raises:
        UserError: `config.run.resume` names a folder from which nothing can be resumed; or `train.patience` is set, and
            the dataset has no validation sessions.
    """

    def __init__(self, experiment: str, config: HasRun, dataset: Dataset) -> None:
        self.experiment = experiment
        self.config = config
        self.dataset = dataset
        self.started = time.monotonic()
        self.resumed = config.run.resume is not None
        self._writer: Any = None
        self._purge_step: int | None = None
        # A run's config.yml starts the same run again, so it does not say "resume".
        # Numbers of a restricted type (PositiveInt) become plain ones, which YAML can write.
        self._values = json.loads(json.dumps(dataclasses.asdict(config)))
        self._values["run"]["resume"] = None
        if flat(self._values).get("train.patience") and dataset.valid.n_sessions == 0:
            raise UserError(
                f"train.patience is for training that is validated, and {dataset.folder} has no validation sessions; "
                "add --train.patience 0"
            )
        self.folder = Path(distributed.once(lambda: str(self._open())))

    def _open(self) -> Path:
        """The folder, with the config in it."""
        run = self.config.run
        if run.resume is not None:
            folder = Path(run.resume)
            if not (folder / "last.pt").exists():
                raise UserError(f"{folder} has no last.pt to resume from; start a new run without --run.resume")
            _check_unchanged(folder / "config.yml", self._values, defaults=dataclasses.asdict(type(self.config)()))
        else:
            folder = _new_folder(Path(run.folder) / self.experiment, run.name)
        with atomic_file(folder / "config.yml") as temporary:
            temporary.write_text(yaml.safe_dump(self._values, sort_keys=False), encoding="utf-8")
        return folder

    def log(self, step: int, epoch: int, split: str, values: dict[str, float | None]) -> None:
        """Append a line to `metrics.jsonl` and to TensorBoard."""
        if not distributed.is_first():
            return
        line = {"step": step, "epoch": epoch, "split": split, **values}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        writer = self._tensorboard()
        for name, value in values.items():
            if value is not None:
                writer.add_scalar(f"{name}/{split}", value, step)

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`."""
        if not distributed.is_first():
            return
        self._purge_step = step + 1
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line, logged in zip(lines, _steps(path, lines), strict=False) if logged <= step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def finish(self, *, task: str, scores: dict[str, Any], kind: str = "model", **details: Any) -> dict[str, Any]:
        """Write `result.json` and return its content.

        Args:
            task: "skip", "seq" or "pretrain".
            scores: split -> `Scores.summary()`.
            kind: "model", "baseline" or "oracle".
            details: further keys, such as those of `training_details`.
        """
        if self._writer is not None:
            self._writer.close()
        run = self.config.run
        result = {
            "experiment": self.experiment,
            "label": run.label or self.experiment,
            "task": task,
            "kind": kind,
            "dataset": {
                "name": self.dataset.info["name"],
                "hash": self.dataset.vocabulary_hash,
                "protocol": self.dataset.info["protocol"],
                "folder": str(self.dataset.folder),
                "sessions": {split: self.dataset.split(split).n_sessions for split in SPLITS},
            },
            "seed": run.seed,
            "config": self._values,
            "command": " ".join(["python", *sys.argv]),
            "git_commit": git_commit(),
            "device": "cpu",
            "processes": distributed.n_processes(),
            "n_parameters": None,
            "best_step": None,
            "best_value": None,
            "seconds": round(time.monotonic() - self.started, 2),
            "peak_memory_mib": peak_memory_mib(),
            "scores": scores,
            **details,
        }
        if distributed.is_first():
            write_json(self.folder / "result.json", result)
        tqdm.write(f"{result['label']}: {headline(result)} -> {self.folder}")
        return result

    def _tensorboard(self) -> Any:
        if self._writer is None:
            # Importing TensorBoard takes a second: only runs that log pay for it.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge_step)
        return self._writer


def _steps(path: Path, lines: list[str]) -> list[int]:
    """The step of each line of `metrics.jsonl`, but for a last one that a crash has cut off.

    Raises:
        UserError: a line before the last is broken.
    """
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise UserError(f"{path}, line {number}: broken; remove the line to resume the run") from None
    return steps


def _check_unchanged(path: Path, values: dict[str, Any], *, defaults: dict[str, Any]) -> None:
    """Check that a run is resumed with its own options, except for those that only say how long and where."""
    try:
        before = saved_options(path, defaults)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the run cannot be resumed") from None
    now = flat(values)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in MAY_CHANGE:
            raise UserError(
                f"{path} says {key}: {before.get(key)}, not {now.get(key)}; resume with --config {path} and change "
                "only how long to train"
            )


def saved_options(path: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """The options of a run's `config.yml`, flat; an option that is newer than the run has its default, or what
    `DataConfig.OLDER` says."""
    older = {name: value for name, value in flat({"data": DataConfig.OLDER}).items() if name in flat(defaults)}
    return flat(defaults) | older | flat(yaml.safe_load(path.read_text(encoding="utf-8")))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _new_folder(parent: Path, name: str) -> Path:
    """Make a folder of this name, or named by the time; a run that starts in the same second gets the next free name.

    A named folder is taken over if its run was interrupted before there was anything to resume: the logs of that run
    are removed, and nothing else.

    Raises:
        UserError: the folder exists already, or `name` is not the name of a folder.
    """
    if name != Path(name).name:
        raise UserError(f"run.name is {name!r}; it must be the name of a folder in {parent}, not a path")
    old = parent / name
    logs = {path for pattern in ("config.yml", "metrics.jsonl", "events.out.tfevents.*") for path in old.glob(pattern)}
    if name and old.is_dir() and logs == set(old.iterdir()):
        for path in logs:
            path.unlink()
        old.rmdir()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    names = [name] if name else [stamp, *(f"{stamp}-{i}" for i in range(2, 1000))]
    for folder in (parent / name for name in names):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(
                    f"{parent} is not a folder, so no run can be written there; change --run.folder"
                ) from None
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error}); change --run.folder") from None
        return folder
    raise UserError(f"{parent / names[0]} exists; resume it with --run.resume, or take another --run.name")


def last_scored(scores: Mapping[str, Any]) -> str:
    """Test if it was scored, else validation, else training."""
    return [name for name in SPLITS if name in scores][-1]


def headline(result: dict[str, Any]) -> str:
    """The first metrics of a result on the last split that was scored, with intervals, where they are defined."""
    split = last_scored(result["scores"])
    metrics = result["scores"][split]["metrics"]
    shown = []
    for name in HEADLINES[result["task"]][:2]:
        mean, low, high = (metrics.get(name, {}).get(key) for key in ("mean", "low", "high"))
        if mean is not None:
            shown.append(f"{name} {mean:.4f}" + ("" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"))
    return f"{split} " + ", ".join(shown)
