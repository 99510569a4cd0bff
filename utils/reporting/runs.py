"""Read every `result.json` into finished runs, one for each split to report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from utils.core.errors import UserError
from utils.core.files import read_json
from utils.data.schema import OLDER_PROTOCOLS, PREFIXES
from utils.training.run import POSITION_MAJORITY, REPEAT_LAST, TRACK_RATE

TASKS = {
    "skip": "Which tracks will be skipped?",
    "seq": "Which tracks come next?",
    "pretrain": "Which tracks are hidden?",
}
KINDS = ("baseline", "model", "oracle")
INCIDENTAL = ("run", "seed")
"""Groups of options that may differ between the runs of one row: seed, folders, label."""
PAST = {
    "none": "no statistics of the past",
    "frozen": "statistics of the past: frozen at the end of training",
    "running": "statistics of the past: running to the session's start",
}
"""What a run may know of the plays before a session, and how headings say it (`PastConfig.protocol`)."""
KNOW_NO_PAST = (POSITION_MAJORITY, TRACK_RATE, REPEAT_LAST)
"""`experiment` of the skip baselines that make no use of it."""
STARTS = {"pretrained", "warm_start"}
"""Options that name the run whose weights a run started from."""
RESULT_KEYS = ("experiment", "label", "task", "kind", "dataset", "seed", "scores")
DATASET_KEYS = ("name", "hash", "protocol")


class Measured(NamedTuple):
    """A mean over sessions with its 95 % interval; `low` and `high` are None where there is no interval."""

    mean: float
    low: float | None
    high: float | None


class FinishedRun(NamedTuple):
    """One finished run, with one of the splits that it scored."""

    folder: Path
    result: dict[str, Any]
    split: str

    @property
    def scores(self) -> dict[str, Any]:
        """Scores of the split."""
        return self.result["scores"][self.split]

    @property
    def metrics(self) -> dict[str, Measured]:
        """Metrics of the split that have a value."""
        return {
            name: Measured(value["mean"], value.get("low"), value.get("high"))
            for name, value in self.scores["metrics"].items()
            if value["mean"] is not None
        }

    @property
    def past(self) -> str:
        """What the run knew of the plays before a session, a key of `PAST`.

        Runs of scripts without that option knew nothing, and nor do baselines that look at nothing but the session and
        the training split, whatever the others of their command are told.
        """
        if self.result["task"] != "skip" or self.result["experiment"] in KNOW_NO_PAST:
            return "none"
        return str((self.result.get("config", {}).get("past") or {}).get("protocol", "none"))

    @property
    def scored_on(self) -> tuple[str, str, str, str, str]:
        """What runs share that were scored on the same targets: dataset name, hash and protocol, task, split."""
        dataset = self.result["dataset"]
        return dataset["name"], dataset["hash"], dataset["protocol"], self.result["task"], self.split

    @property
    def configuration(self) -> str:
        """The run's configuration without its seed and folders, as text that equal configurations share.

        The name of the run that it started from loses the seed, too: pre-training long-2 is to seed 2 what long-1 is to
        seed 1.
        """
        config = {name: value for name, value in self.result.get("config", {}).items() if name not in INCIDENTAL}
        for name in STARTS & config.keys():
            config[name] = re.sub(rf"(?<!\d){self.result['seed']}$", "{seed}", str(config[name]))
        return json.dumps(config, sort_keys=True, default=str)


def load_runs(root: Path) -> tuple[list[FinishedRun], list[str]]:
    """Read `root/*/*/result.json`.

    Returns:
        The finished runs, latest stamp first, one for each reported split: test (valid where test was not scored), and
        the same after every prefix where that was scored. And a note on each folder that was left out, with the reason.

    Raises:
        UserError: `root` does not exist, or holds no finished run.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder of the runs: --runs FOLDER")
    runs, notes = [], []
    folders = [folder for folder in root.glob("*/*") if folder.is_dir() and not folder.name.startswith(".")]
    for folder in sorted(folders, key=stamp_order, reverse=True):
        path = folder / "result.json"
        if not path.exists():
            here = folder.parent
            deeper = f"{here} holds finished runs one folder deeper: show them with --runs {here}; left out"
            if not any(folder.glob("*/result.json")):
                notes.append(f"{folder} is not finished (no result.json); left out")
            elif deeper not in notes:
                notes.append(deeper)
            continue
        try:
            result = read_json(path)
            check_result(result)
            result["dataset"]["protocol"] = OLDER_PROTOCOLS.get(
                result["dataset"]["protocol"], result["dataset"]["protocol"]
            )
        except UserError as error:
            notes.append(f"{error}; left out" if str(path) in str(error) else f"{path} {error}; left out")
            continue
        split = "test" if "test" in result["scores"] else "valid"
        runs += [FinishedRun(folder, result, name) for name in (split, split + PREFIXES) if name in result["scores"]]
    if not runs:
        found = ", ".join(notes) or "it is empty"
        raise UserError(f"no finished run in {root} ({found}); train one first, for example with `make demo`")
    return runs, notes


def stamp_order(folder: Path) -> tuple[list[int], str]:
    """Sorts run folders by time; the tenth run of a second comes after the second one."""
    return [int(number) for number in re.findall(r"\d+", folder.name)], str(folder)


def check_result(result: Any) -> None:
    """Check the parts of a result that leaderboards are made of.

    Raises:
        UserError: names a key that is missing or has an unknown value.
    """
    if not isinstance(result, dict):
        raise UserError("is not a JSON object")
    dataset = result.get("dataset")
    missing = [key for key in RESULT_KEYS if key not in result]
    missing += [f"dataset.{key}" for key in DATASET_KEYS if not isinstance(dataset, dict) or key not in dataset]
    if missing:
        raise UserError(f"lacks {', '.join(missing)}")
    for key, known in (("task", tuple(TASKS)), ("kind", KINDS)):
        if result[key] not in known:
            raise UserError(f"{key} is {result[key]!r}, not one of {', '.join(known)}")
    past = FinishedRun(Path(), result, "").past
    if past not in PAST:
        raise UserError(f"config.past.protocol is {past!r}, not one of {', '.join(PAST)}")
    scores = result["scores"]
    if isinstance(scores, dict) and scores.keys() and not {"test", "valid"} & scores.keys():
        raise UserError("has scores of training sessions only")
    if not isinstance(scores, dict) or not scores:
        raise UserError("has no scores")
    for split, values in scores.items():
        metrics = values.get("metrics") if isinstance(values, dict) else None
        if not isinstance(metrics, dict) or not metrics:
            raise UserError(f"scores.{split} has no metrics")
        for name, value in metrics.items():
            if not isinstance(value, dict) or "mean" not in value:
                raise UserError(f"scores.{split}.metrics.{name} has no mean")
