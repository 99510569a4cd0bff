"""What would a finished run's own choice of the next track be worth? Off-policy estimates beside the simulator's truth.

    python evaluate_policy.py --run runs/ddpg_skip/STAMP --raw data/raw/demo
    python evaluate_policy.py --run runs/ddpg_seq/STAMP --raw data/raw/demo --candidates 10 --split test
    python evaluate_policy.py --run runs/transformer_skip/STAMP --raw data/raw/demo --out policy.json

The command takes simulated sessions in which a uniform shuffle chose the first track of the second half. The run
chooses among a few tracks that the shuffle might have played; the value of its choices is the probability that the
chosen track is listened to. A skip model chooses the track that is least likely to be skipped, a seq model the one that
is most likely to come next.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.core.errors import UserError


@dataclass
class Config:
    """Whose choices, and among what."""

    run: str
    """Folder of a finished run of a skip or seq model."""
    raw: str
    """Folder that python -m utils.simulator wrote, from which the run's dataset was made."""
    split: Literal["valid", "test"] = "valid"
    """Split of the run's dataset."""
    candidates: int = 5
    """Tracks to choose among: the one that was played, and others."""
    seed: int = 0
    """Seed of the draw of candidates."""
    data: str | None = None
    """Dataset folder, if it has moved since the run was trained."""
    out: str | None = None
    """Also write the result to this file, as JSON."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        check_at_least(self, "", candidates=2, seed=0)


def main(config: Config) -> dict[str, Any]:
    """Print the values of four policies (the shuffle's, the reward model's, the run's, the best), and return them."""
    import numpy as np

    from utils.agents import off_policy
    from utils.core.files import read_json, write_json
    from utils.evaluation.scoring import scoring_loader
    from utils.training.machine import pick_device
    from utils.training.rebuild import rebuild

    folder = Path(config.run)
    result = read_json(folder / "result.json")
    if not (folder / "best.pt").exists() or result["task"] not in ("skip", "seq"):
        raise UserError(f"{folder} is no run of a skip or seq model that keeps weights")
    script, device = importlib.import_module(f"train_{result['experiment']}"), pick_device(config.device)
    trained, dataset, model = rebuild(script, folder, device=device, data=config.data, needs_skips=True)

    loader = scoring_loader(dataset, trained.data, config.split)
    choices = off_policy.simulated_choices(Path(config.raw), dataset, loader, k=config.candidates, seed=config.seed)
    expected = off_policy.reward_model(dataset, trained.data, loader, choices)
    uniform = np.full(choices.candidates.shape, 1 / config.candidates)
    policies = {
        "uniform shuffle": uniform,
        "reward model": off_policy.greedy_policy(expected),
        result["label"]: off_policy.greedy_policy(
            off_policy.policy_scores(model, result["task"], loader, choices, device)
        ),
        "best possible": off_policy.greedy_policy(choices.truth),
    }
    values = {name: off_policy.evaluate_policy(choices, policy, expected) for name, policy in policies.items()}
    content = {
        "run": str(folder),
        "split": config.split,
        "candidates": config.candidates,
        "n_choices": len(choices.rows),
        "logged_reward": float(choices.reward.mean()),
        "policies": values,
    }
    print(f"{len(choices.rows):,} choices among {config.candidates} tracks, {config.split} of {dataset.folder}")
    print(f"{'policy':32}{'SNIPS':^26}{'doubly robust':^26}{'truth':>7}")
    for name, value in values.items():
        snips, dr = (f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in (value["snips"], value["dr"]))
        print(f"{name:32}{snips:^26}{dr:^26}{value['truth']:7.3f}")
    if config.out is not None:
        write_json(Path(config.out), content)
    return content


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
