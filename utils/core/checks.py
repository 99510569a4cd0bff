"""Checks that options make sense, for the `__post_init__` of a Config: each names the option that does not."""

from __future__ import annotations

from typing import Any

from utils.core.errors import UserError


def check_at_least(config: Any, section: str, **least: float) -> None:
    """Check that fields of a config are not below their least values.

    Args:
        section: the options' name before the dot; "" for options of the command itself.

    Raises:
        UserError: names the option.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:
            option = f"{section}.{name}" if section else f"--{name}"
            raise UserError(f"{option} is {value}; it must be at least {bound}")


def check_used(config: Any, section: str, choice: str, **used_by: tuple[str, ...]) -> None:
    """Check that options which only some values of `choice` use keep their defaults under the other values.

    Raises:
        UserError: names the option and the values that use it.
    """
    chosen = getattr(config, choice)
    for name, users in used_by.items():
        default = type(config).__dataclass_fields__[name].default
        if chosen not in users and getattr(config, name) != default:
            options = " or ".join(f"--{section}.{choice} {user}" for user in users)
            raise UserError(f"{section}.{name} has no meaning for {section}.{choice} {chosen}; use it with {options}")
