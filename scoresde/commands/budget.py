"""`budget=10min`: the time that a training may take, in the words that people use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from scoresde.commands.arguments import shown
from scoresde.commands.build import ConfigError

UNITS = {"s": 1 / 60, "sec": 1 / 60, "m": 1.0, "min": 1.0, "h": 60.0, "hour": 60.0, "hours": 60.0, "d": 1440.0}


def minutes(budget: str | int | float | None) -> float | None:
    """A budget in minutes; None if there is none.

    Args:
        budget: A number with a unit, "90s", "10min" or "2h", or a number of minutes.
    Raises:
        ConfigError: If it is no positive length of time.
    """
    if budget is None:
        return None
    word = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", str(budget).lower())
    if isinstance(budget, bool) or word is None or (word[2] or "min") not in UNITS:
        raise ConfigError(f"budget needs a time as 90s, 10min or 2h, or null, got {shown(budget)}.")
    length = float(word[1]) * UNITS[word[2] or "min"]
    if not 0 < length < 1e6:
        raise ConfigError(f"budget needs a time longer than 0 and below a million minutes, got {shown(budget)}.")
    return length


def with_budget(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the budget as `trainer.minutes`, which stand in place of `trainer.steps`.

    Raises:
        ConfigError: If the budget is no time, or trainer.minutes says another.
    """
    trainer, length = config.get("trainer"), minutes(config.get("budget"))
    if not isinstance(trainer, Mapping):
        return config
    given = trainer.get("minutes")
    if length is not None and given not in (None, length):
        raise ConfigError(f"budget={config['budget']} and trainer.minutes={given} are two times: give one of them.")
    length = given if length is None else length
    return config if length is None else config | {"trainer": {**trainer, "minutes": length, "steps": None}}
