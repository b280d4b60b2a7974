"""The keys of `train.yaml` and `sample.yaml` that belong to no group: what kind of value each takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scoresde.commands.arguments import mismatch, shown
from scoresde.commands.build import ConfigError

LARGEST_SEED = 2**63 - 1


class Key(NamedTuple):
    """An annotation, and the limits of a number."""

    kind: Any
    least: int | None = None
    most: int | None = None


BOTH = {
    "batch_size": Key(int, 1),
    "seed": Key(int, 0, LARGEST_SEED),
    "device": Key(str | None),
    "extensions": Key(list[str]),
    "run": Key(str | None),
}
TRAIN = BOTH | {
    "init": Key(str | None),
    "of": Key(str | None),
    "head": Key(str | None),
    "variance_output": Key(str),
    "conditional": Key(bool),
    "budget": Key(str | int | float | None),
}
SAMPLE = BOTH | {
    "num_samples": Key(int, 0),
    "label": Key(int | str | list[int | str] | None),
    "condition": Key(Any),
    "image": Key(Any),
    "sequence": Key(Any),
    "out": Key(str | None),
    "trajectory": Key(int | None, 2, 1000),
    "neighbours": Key(int | None, 1, 1000),
}


def check_options(config: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    """Raise if a key has a value of another kind or outside its limits.

    Raises:
        ConfigError: With the key, what it needs, and what it got.
    """
    for name, key in keys.items():
        if name not in config:
            continue
        value = config[name]
        wrong = mismatch(value, key.kind, name)
        if wrong:
            raise ConfigError(wrong)
        if value in ("", []) and name != "extensions":
            raise ConfigError(f"{name} needs a value, or null, got {shown(value)}.")
        if isinstance(value, int) and key.least is not None:
            if value < key.least:
                raise ConfigError(f"{name} needs to be a whole number of at least {key.least}, got {value}.")
            if key.most is not None and value > key.most:
                raise ConfigError(f"{name} needs to be a whole number of at most {key.most}, got {value}.")
