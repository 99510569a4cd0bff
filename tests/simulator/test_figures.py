"""Simulated figures beside those of MSSD."""

from dataclasses import replace

import numpy as np
import pytest

from utils.data import schema
from utils.simulator.behaviour import Behaviour
from utils.simulator.figures import MARGINALS, PLAYS_BY_RANK, real_plays
from utils.simulator.mssd_figures import real_figures, simulated_figures, solve_base
from utils.simulator.sessions import draw_sessions
from utils.simulator.world import build_world


@pytest.fixture(scope="module")
def world():
    return build_world(seed=0, n_tracks=5000)


def test_simulated_figures_are_near_the_real_ones(world):
    simulated = simulated_figures(world, Behaviour(), n_sessions=40_000, n_oracle=5_000, seed=3)
    real = real_figures(world.n_tracks)
    outside = {
        name: (figure.real, simulated[name])
        for name, figure in real.items()
        if abs(simulated[name] - figure.real) > figure.tolerance
    }
    assert outside == {}
    assert len(real) > 100


def test_solve_base_finds_the_real_rates(world):
    flat = replace(Behaviour(), base=(0.5,) * 20)
    solved = solve_base(world, flat, n_sessions=10_000, rounds=4)
    assert np.array(solved.base) == pytest.approx(np.array(Behaviour().base), abs=0.25)


def test_popularity_interpolates_the_real_curve():
    assert real_plays(np.array([1, 10, 1_326_951])).round().tolist() == [7857731, 3747048, 24]
    total = real_plays(np.arange(1, 3_604_455)).sum()
    assert total == pytest.approx(2_072_002_577, rel=0.05)  # all plays of the real training set
    assert max(PLAYS_BY_RANK) == 3_604_454


@pytest.mark.parametrize("name", list(MARGINALS))
def test_marginals_keep_their_quartiles(name):
    marginal = MARGINALS[name]
    quantiles = marginal.quantile(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    expected = [marginal.low, marginal.q25, marginal.median, marginal.q75, marginal.high]
    assert quantiles.tolist() == pytest.approx(expected)
    assert (np.diff(marginal.quantile(np.linspace(0, 1, 1001))) >= 0).all()


def test_a_large_world_is_a_matter_of_course():
    world = build_world(seed=1, n_tracks=103_000)
    sessions = draw_sessions(world, world.lists(0), Behaviour(), np.random.default_rng(0), 3000)
    played = np.arange(20) < sessions.length[:, None]
    assert (sessions.level[played] >= schema.SKIP_2).mean() == pytest.approx(0.509, abs=0.03)
    assert len(np.unique(sessions.tracks[played])) > 10_000
