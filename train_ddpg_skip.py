"""Skip prediction with an agent (DDPG) that chooses what to play, and is rewarded for what is listened to.

    python train_ddpg_skip.py --config configs/ddpg_skip/demo.yml
    python train_ddpg_skip.py --data.folder data/mssd --noise.schedule constant --agent.state recent
    python train_ddpg_skip.py --config RUN/config.yml --run.resume RUN

The agent learns from logged sessions which tracks bring +1 (listened), -1 (skipped) or nothing (not of the session).
How much it likes each target track then tells whether the track will be skipped. This is classification in disguise:
an agent learns what helps it to choose, so a model that learns only to classify should do better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from utils.agents.options import AgentConfig, DDPGConfig, EnvironmentConfig, NoiseConfig
from utils.core.cli import TYPE_CHECKING, cli
from utils.data.options import DataConfig
from utils.training.options import RunConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.ddpg import DDPGForSkips
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=lambda: DataConfig(new_plays=1))
    agent: AgentConfig = field(default_factory=AgentConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    train: DDPGConfig = field(default_factory=DDPGConfig)
    score: Literal["actor", "critic"] = "actor"
    """How much a track is liked. actor: its dot product with the action (the original). critic: the value of playing
    it."""
    advance: bool = False
    """Walk along the second half, with the agent's own decisions as its skips; false stays at the history's end."""
    run: RunConfig = field(default_factory=lambda: RunConfig(label="DDPG"))


def build(config: Config, dataset: Dataset) -> DDPGForSkips:
    """The model of this script for `dataset`."""
    from model.ddpg import DDPGForSkips
    from utils.agents.learner import build_agent

    agent = build_agent(config.agent, dataset, config.data)
    return DDPGForSkips(agent, target_size=config.data.target_size, score=config.score, advance=config.advance)


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by validation MAA, score once on test; returns the content of result.json."""
    import torch

    from model.decoding import select
    from utils.agents.calibration import calibrate_skips, calibration_loader
    from utils.agents.environment import LoggedSessions
    from utils.agents.learner import Learner, noise_mask, noise_rate
    from utils.agents.replay import PrioritisedReplay, Transition
    from utils.agents.training import Training
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.predict import skip_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.machine import pick_device, seed_everything
    from utils.training.run import Run
    from utils.training.track_table import load_table

    dataset = Dataset.open(config.data.folder, needs_skips=True)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    agent = model.agent
    if config.run.resume is None:
        load_table(agent.encoder.tracks, config.agent.vectors, dataset, width="agent.d_model")
    environment = LoggedSessions(dataset.n_ids, "skip", config.environment)
    replay = PrioritisedReplay(config.train.capacity, alpha=config.train.alpha)
    learner = Learner(agent, config.train)
    predict = skip_predictor(model, device)
    calibration = calibration_loader(dataset, config.data, labels=True)
    valid = validation_loader(dataset, config.data)

    def evaluate_fn() -> dict[str, float | None]:
        calibrate_skips(model, calibration)
        return validate(predict, dataset, valid)

    loader = training_loader(dataset, config.data, batch_size=config.train.sessions, seed=config.run.seed)
    run = Run("ddpg_skip", config, dataset)
    training = Training(model, learner, replay, loader, run=run, evaluate_fn=evaluate_fn, monitor="maa")
    for batch in training.episodes():
        environment.reset(batch)
        while environment.active.any():
            s, candidates, active = environment.history, environment.candidates, environment.active
            with torch.no_grad():
                a = agent(s)
                choice = agent.choose(a, candidates, noise_mask(a, noise_rate(config.noise, training.episode)))
            r, done = environment.step(choice)
            item = candidates.gather(1, choice[:, None])[:, 0]
            replay.add(select(Transition(s, item, a, r, environment.history, environment.candidates, done), active))
            training.count(r, active)
            for _ in range(config.train.updates if len(replay) >= config.train.batch_size else 0):
                transition, weights, places = replay.sample(config.train.batch_size, beta=learner.beta)
                delta, loss = learner.update(transition, weights)
                replay.update(places, delta)
                training.learn(loss)
    scores = score(predict, dataset, scoring_loaders(dataset, config.data), folder=run.folder)
    return run.finish(task="skip", scores=scores, **training.details())


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
