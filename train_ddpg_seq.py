"""Continuation with an agent (DDPG) that chooses what to play next, and is rewarded for the session's own tracks.

    python train_ddpg_seq.py --config configs/ddpg_seq/demo.yml
    python train_ddpg_seq.py --data.folder data/mssd --environment.negatives 9 --noise.schedule constant
    python train_ddpg_seq.py --config RUN/config.yml --run.resume RUN

The agent learns from logged sessions which candidates are the session's own next tracks and which are random. To score
it, the whole catalogue is ranked by what it would play next. `result.json` also has the original's ranking among 99
random tracks, `one_of_hundred`. It flatters every model, so compare it with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.agents.options import AgentConfig, DDPGConfig, EnvironmentConfig, NoiseConfig
from utils.core.cli import TYPE_CHECKING, cli
from utils.data.options import DataConfig
from utils.evaluation.options import DecodingConfig
from utils.training.options import RunConfig
from utils.training.seeds import each_seed

if TYPE_CHECKING:
    from model.ddpg import DDPGForContinuation
    from utils.data.dataset import Dataset


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    train: DDPGConfig = field(default_factory=DDPGConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(label="DDPG"))
    monitor: str = "mrr@20"
    """Validation metric that chooses the best weights."""


def build(config: Config, dataset: Dataset) -> DDPGForContinuation:
    """The model of this script for `dataset`."""
    from model.ddpg import DDPGForContinuation
    from utils.agents.learner import build_agent

    return DDPGForContinuation(build_agent(config.agent, dataset, config.data))


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by one validation metric, score once on test; returns result.json's content."""
    import torch
    from tqdm import tqdm

    from model.decoding import select
    from utils.agents.calibration import calibrate_ranks, calibration_loader, sampled_ranking
    from utils.agents.environment import LoggedSessions
    from utils.agents.learner import Learner, noise_mask, noise_rate
    from utils.agents.replay import PrioritisedReplay, Transition
    from utils.agents.training import Training
    from utils.data.dataloaders import training_loader
    from utils.data.dataset import Dataset
    from utils.evaluation.decoding import allowed_tracks, step_by_step
    from utils.evaluation.metrics import direction
    from utils.evaluation.predict import seq_predictor
    from utils.evaluation.scoring import score, scoring_loaders, validate, validation_loader
    from utils.training.machine import pick_device, seed_everything
    from utils.training.run import Run, last_scored
    from utils.training.track_table import load_table

    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    agent = model.agent
    if config.run.resume is None:
        load_table(agent.encoder.tracks, config.agent.vectors, dataset, width="agent.d_model")
    environment = LoggedSessions(dataset.n_ids, "seq", config.environment)
    replay = PrioritisedReplay(config.train.capacity, alpha=config.train.alpha)
    learner = Learner(agent, config.train)
    predict = seq_predictor(
        model, device, step_by_step(config.decoding), allowed_tracks(config.decoding, dataset, config.data)
    )
    calibration = calibration_loader(dataset, config.data)
    valid = validation_loader(dataset, config.data)

    def evaluate_fn() -> dict[str, float | None]:
        calibrate_ranks(model, calibration)
        return validate(predict, dataset, valid)

    loader = training_loader(dataset, config.data, batch_size=config.train.sessions, seed=config.run.seed)
    better = direction(config.monitor, "seq")
    run = Run("ddpg_seq", config, dataset)
    training = Training(
        model, learner, replay, loader, run=run, evaluate_fn=evaluate_fn, monitor=config.monitor, direction=better
    )
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
    sampled = sampled_ranking(model, dataset, config.data, last_scored(scores))
    shown = f"{sampled['split']} hr@1 {sampled['hr@1']:.3f}, mrr {sampled['mrr']:.3f}"
    tqdm.write(f"among 99 random tracks (flatters every model): {shown}")
    return run.finish(task="seq", scores=scores, one_of_hundred=sampled, **training.details())


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
