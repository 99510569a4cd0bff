"""Compare the simulator with the real data, in every figure that it was calibrated on.

    python -m utils.simulator.calibration                  the table of docs/simulator.md
    python -m utils.simulator.calibration --solve true     derives `Behaviour.base` anew first, if its spreads changed

How the constants of `Behaviour` were found. The spreads (type, propensity, own, match, situation, coherence) were set
by hand, so that persistence, the spread of per-track skip rates, "repeat last" and the oracle come out as in the real
task. Then `solve_base` corrected the base of each position by the difference between the logits of the real and the
simulated skip rate, with the same random numbers each time, until the rate was the real one. The base is the mean over
the worlds of seeds 0 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.core.cli import cli


@dataclass(frozen=True)
class Config:
    """What to simulate for the table."""

    tracks: int = 5_000
    """Size of the world."""
    seed: int = 0
    """Seed of the world."""
    sessions: int = 200_000
    """Sessions to simulate."""
    oracle_sessions: int = 20_000
    """Sessions on which the oracle is scored."""
    solve: bool = False
    """Derive the base by position anew (the mean over four worlds), print it and use it."""


def main(config: Config) -> None:
    """Print a Markdown table."""
    import numpy as np
    from tqdm import tqdm

    from utils.simulator.behaviour import Behaviour
    from utils.simulator.mssd_figures import BEST_KNOWN, real_figures, simulated_figures, solve_base
    from utils.simulator.world import build_world

    behaviour = Behaviour()
    if config.solve:
        worlds = (build_world(seed=seed, n_tracks=config.tracks) for seed in range(4))
        bases = [solve_base(world, behaviour).base for world in tqdm(worlds, total=4, desc="solving")]
        behaviour = replace(behaviour, base=tuple(np.mean(bases, axis=0).round(3).tolist()))
        print("base =", behaviour.base)
    world = build_world(seed=config.seed, n_tracks=config.tracks)
    simulated = simulated_figures(
        world, behaviour, n_sessions=config.sessions, n_oracle=config.oracle_sessions, seed=config.seed + 1
    )
    print("| figure | real | simulated |\n|---|---|---|")
    for name, figure in real_figures(config.tracks).items():
        outside = abs(simulated[name] - figure.real) > figure.tolerance
        real = BEST_KNOWN.get(name, figure.real)
        print(f"| {name} | {real:.4g} | {simulated[name]:.4g}{' (!)' if outside else ''} |")


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
