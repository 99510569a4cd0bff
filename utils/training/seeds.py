"""One experiment under several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from utils.core.errors import UserError
from utils.training.options import RunConfig


class HasRun(Protocol):
    """A script's Config: a dataclass with a field `run`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    run: RunConfig


C = TypeVar("C", bound=HasRun)


def each_seed(main: Callable[[C], Any]) -> Callable[[C], list[Any]]:
    """Make `main` run once for each of `config.run.seeds` seeds."""

    def main_of_all(config: C) -> list[Any]:
        if config.run.resume is not None and config.run.seeds > 1:
            raise UserError("--run.resume goes on with one run; leave out --run.seeds")
        if config.run.name and config.run.seeds > 1:
            raise UserError("--run.name names one run's folder; leave out --run.seeds, or the name")
        results = []
        for seed in range(config.run.seed, config.run.seed + config.run.seeds):
            run = dataclasses.replace(config.run, seed=seed, seeds=1)
            results.append(main(dataclasses.replace(config, run=run)))
        return results

    return main_of_all
