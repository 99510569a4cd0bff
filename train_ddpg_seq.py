"""Continuation with an agent that chooses what to play next (DDPG): rewarded for the tracks of the session.

    python train_ddpg_seq.py --config configs/ddpg_seq/demo.yml
    python train_ddpg_seq.py --data.folder data/mssd --environment.negatives 9 --noise.schedule constant
    python train_ddpg_seq.py --config RUN/config.yml --run.resume RUN

The agent learns from logged sessions which candidates are the session's own next tracks and which are random ones; what
it would play next is then ranked over the whole catalogue. `result.json` also has the seed's ranking among 99 random
tracks, `one_of_hundred`: it flatters every model and is not to be compared with anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from model import DDPGForContinuation
from model.decoding import select
from utils import agent as agents
from utils.cli import cli
from utils.dataloaders import DataConfig, Dataset, training_loader
from utils.environment import EnvironmentConfig, LoggedSessions
from utils.evaluation import SEQ_METRICS, direction
from utils.replay import PrioritisedReplay, Transition
from utils.run import Run, RunConfig, each_seed, last_scored, pick_device, seed_everything
from utils.scoring import DecodingConfig, score, seq_predictor, validate
from utils.track_vectors import load_table


@dataclass
class Config:
    """Experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    agent: agents.AgentConfig = field(default_factory=agents.AgentConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    noise: agents.NoiseConfig = field(default_factory=agents.NoiseConfig)
    train: agents.DDPGConfig = field(default_factory=agents.DDPGConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(label="DDPG"))
    monitor: str = "mrr@20"
    """Validation metric that chooses the best weights."""


def build(config: Config, dataset: Dataset) -> DDPGForContinuation:
    """The model of this script for `dataset`."""
    return DDPGForContinuation(agents.build_agent(config.agent, dataset, config.data))


def main(config: Config) -> dict[str, Any]:
    """Train, choose the best weights by one validation metric, score once on test; returns result.json's content."""
    dataset = Dataset.open(config.data.folder)
    device = pick_device(config.train.device)
    seed_everything(config.run.seed)
    model = build(config, dataset).to(device)
    mu = model.agent
    if config.run.resume is None:
        load_table(mu.encoder.tracks, config.agent.vectors, dataset, width="agent.d_model")
    environment = LoggedSessions(dataset.n_ids, "seq", config.environment)
    replay = PrioritisedReplay(config.train.capacity, alpha=config.train.alpha)
    learner = agents.Learner(mu, config.train)
    predict = seq_predictor(model, device, config.decoding, config.decoding.allowed_tracks(dataset, config.data))
    calibration = agents.calibration_loader(dataset, config.data)

    def evaluate_fn() -> dict[str, float | None]:
        agents.calibrate_ranks(model, calibration)
        return validate(predict, dataset, config.data)

    loader = training_loader(dataset, config.data, batch_size=config.train.sessions, seed=config.run.seed)
    better, run = direction(config.monitor, SEQ_METRICS), Run("ddpg_seq", config, dataset)
    training = agents.Training(
        model, learner, replay, loader, run=run, evaluate_fn=evaluate_fn, monitor=config.monitor, direction=better
    )
    for batch in training.episodes():
        environment.reset(batch)
        while environment.active.any():
            s, candidates, active = environment.history, environment.candidates, environment.active
            with torch.no_grad():
                a = mu(s)
                choice = mu.choose(a, candidates, config.noise.mask(a, training.episode))
            r, done = environment.step(choice)
            item = candidates.gather(1, choice[:, None])[:, 0]
            replay.add(select(Transition(s, item, a, r, environment.history, environment.candidates, done), active))
            training.count(r, active)
            for _ in range(config.train.updates if len(replay) >= config.train.batch_size else 0):
                transition, weights, places = replay.sample(config.train.batch_size, beta=learner.beta)
                delta, loss = learner.update(transition, weights)
                replay.update(places, delta)
                training.learn(loss)
    scores = score(predict, dataset, config.data, folder=run.folder)
    sampled = agents.sampled_ranking(model, dataset, config.data, last_scored(scores))
    shown = f"{sampled['split']} hr@1 {sampled['hr@1']:.3f}, mrr {sampled['mrr']:.3f}"
    tqdm.write(f"among 99 random tracks (flatters every model): {shown}")
    return run.finish(task="seq", scores=scores, one_of_hundred=sampled, **training.details())


if __name__ == "__main__":
    cli(each_seed(main), Config, description=__doc__)
