"""The options that `conf/` has for a group, read without Hydra: `packaged("solver", "heun")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scoresde.commands.build import ConfigError
from scoresde.spelling import did_you_mean, nearest

PACKAGE = Path(__file__).resolve().parents[1]


def packaged(group: str, option: str) -> dict[str, Any]:
    """One option of a group, with those that it builds on.

    Raises:
        ConfigError: If there is none of that name.
    """
    conf = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
    names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    if option not in names:
        near = nearest(option, names)
        there = did_you_mean(near) if near else f": there is {', '.join(names)}."
        raise ConfigError(f"{group}={option} is not there{there}")
    node: dict[str, Any] = yaml.safe_load((conf / group / f"{option}.yaml").read_text(encoding="utf-8"))
    based = [part for part in node.pop("defaults", []) if part != "_self_"]
    return {key: value for part in based for key, value in packaged(group, part).items()} | node
