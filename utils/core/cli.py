"""One door for every command: a `Config` dataclass becomes the command line, bad input becomes a clear error.

    python train_x.py --config configs/demo.yml --train.lr 1e-3 --print_config

Unknown keys and wrong types are errors (exit code 2), and so is every `UserError`: one line, no traceback.
"""

from __future__ import annotations

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from utils.core.errors import UserError
from utils.core.threads import choose_waiting

# The docstring under each field of a Config is its help text.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

TYPE_CHECKING = False
"""Guards imports that only annotations need. Under typing's own constant, jsonargparse would execute them, and `--help`
would wait for torch."""
C = TypeVar("C")


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a module's docstring as they are written."""


def parse_config(config_class: type[C], args: Sequence[str] | None = None, *, description: str = "") -> C:
    """Build a `config_class` (a dataclass, possibly nested) from command-line arguments and `--config` files."""
    parser = ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config_class)
    parsed = parser.parse_args(args)
    if older := older_values(config_class, parsed.config or ()):
        parser.set_defaults(older)
        parsed = parser.parse_args(args)
    options = parser.instantiate(parsed)
    return config_class(**{name: value for name, value in vars(options).items() if name != "config"})


def older_values(config_class: type[Any], files: Sequence[Any]) -> dict[str, Any]:
    """Options that are newer than a run whose `config.yml` is among the files -> what they meant then.

    A section of the options says so in its `OLDER`, where it is not the default. Only a run's file holds all options;
    it is told by `run.resume`, which a file that people write does not have.
    """
    sections = {each.name: each.default_factory for each in fields(config_class) if each.default_factory is not MISSING}
    found: dict[str, Any] = {}
    for file in files:
        saved = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        if "resume" not in (saved.get("run") or {}):
            continue
        for section, make in sections.items():
            older = getattr(make(), "OLDER", {})
            there = saved.get(section) or {}
            found |= {f"{section}.{name}": value for name, value in older.items() if name not in there}
    return found


def cli(
    main: Callable[[C], Any],
    config_class: type[C],
    *,
    description: str,
    args: Sequence[str] | None = None,
    processes: bool = False,
    shorthand: Callable[[Sequence[str]], list[str]] | None = None,
) -> None:
    """Parse the command line into `config_class`, call `main` with it and exit.

    Exit codes: 0 done, 2 bad input (`UserError`, or an argument that does not parse), 130 interrupted.

    Args:
        main: what the command does.
        config_class: its options, a dataclass.
        description: for `--help`.
        args: instead of those of the command line.
        processes: whether `main` can share its work with the other processes that torchrun started.
        shorthand: spells out arguments that the parser does not know as they are.
    """
    try:
        if shorthand is not None:
            args = shorthand(sys.argv[1:] if args is None else args)
        config = parse_config(config_class, args, description=description)
        choose_waiting()
        if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            main(config)
        elif processes:
            from utils.core import distributed  # imports torch

            with distributed.processes():
                main(config)
        else:
            raise UserError("this command runs in one process; start it with python instead of torchrun")
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # of several processes, one on each machine prints
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
