"""Which groups, options and keys there are: read from the configuration files, without composing or importing them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scoresde.spelling import did_you_mean, nearest

PACKAGE = Path(__file__).resolve().parents[1]
NO_NAME = re.compile(r"|null|true|false|-?[\d.]+|[\[{].*", re.IGNORECASE)  # cannot be the name of an option


def config_dir() -> Path:
    """Where the configuration tree is: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def folders() -> list[Path]:
    """The configuration tree, and the user's own if the command line names one with --config-dir."""
    arguments = " ".join(sys.argv[1:])
    own = re.search(r"(?:--config-dir|-cd)[= ](\S+)", arguments)
    return [config_dir(), *([Path(own[1])] if own else [])]


def groups() -> list[str]:
    found = {path.parent.name for folder in folders() for path in folder.glob("*/*.yaml")}
    return sorted(found)


def options(group: str) -> list[str]:
    return sorted({path.stem for folder in folders() for path in (folder / group).glob("*.yaml")})


def own_keys(name: str) -> dict[str, Any]:
    """The keys of `train.yaml` or `sample.yaml` with their defaults, and the groups that it chooses from."""
    node = yaml.safe_load((config_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    chosen = [next(iter(part.items())) for part in node.pop("defaults") if isinstance(part, dict)]
    node.pop("hydra")
    return {group: option for group, option in chosen if not group.startswith("override")} | node


def keys_of(group: str) -> set[str]:
    """The keys of all options of a group, in full: solver.steps, solver.grid.rho, ..."""
    files = [path for folder in folders() for path in (folder / group).glob("*.yaml")]
    return {f"{group}.{key}" for path in files for key in flat(yaml.safe_load(path.read_text(encoding="utf-8")))}


def flat(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys of a configuration, without those that name classes."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if key not in ("defaults", "_target_", "_partial_"):
            yield f"{prefix}{key}"
            yield from flat(value, f"{prefix}{key}.")


def with_added(name: str, arguments: Sequence[str]) -> list[str]:
    """Arguments as Hydra takes them: `condition.path=c.npy` adds a key to what is null until then."""
    added = ("condition.", "image.", "sequence.") if name == "sample" else ()
    return [f"+{each}" if each.startswith(added) else each for each in arguments]


def check_choices(name: str, arguments: Sequence[str]) -> None:
    """Raise for what Hydra would accept, or refuse without naming it: no option of a group, a group that is removed.

    Raises:
        ValueError: With the argument, and what there is.
    """
    own = own_keys(name)
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        if argument.startswith("="):
            raise ValueError(f"{argument} has no key: write key=value, for example seed={value or 0}.")
        group = key.partition("@")[0]
        several = group == "experiment" and value.startswith("[")
        if equals and group in groups() and NO_NAME.fullmatch(value.strip("'\"")) and not several:
            raise ValueError(f"{argument} names no option of {group}: there is {', '.join(options(group))}.")
        removed = argument[1:].partition("=")[0]
        if argument.startswith("~") and removed in own and removed != "experiment":
            raise ValueError(f"{argument} removes {removed}, which {name}.py needs: write {removed}=... to change it.")


def with_one_length(config: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of a training, in which `trainer.steps=...` of the command stands above an experiment's time.

    Raises:
        ValueError: If the command itself gives both a number of steps and a time.
    """
    given = {argument.lstrip("+").partition("=")[0]: argument for argument in arguments}
    times = [given[key] for key in ("budget", "trainer.minutes") if key in given and not given[key].endswith("=null")]
    steps = given.get("trainer.steps", "")
    if not steps or steps.endswith("=null"):
        return config
    if times:
        raise ValueError(f"{steps} and {times[0]} are two lengths of one training: give one of them.")
    return config | {"budget": None, "trainer": {**config["trainer"], "minutes": None}}


def check_keys(name: str, cfg: Any) -> None:
    """Raise if a composed configuration has a key at the top that nothing takes, unless another key refers to it.

    Args:
        name: "train" or "sample".
        cfg: As composed, with its interpolations.
    Raises:
        ValueError: With the key, and what was probably meant.
    """
    from omegaconf import OmegaConf

    if any(argument.startswith(("--config-name", "-cn")) for argument in sys.argv):
        return  # the user's own file in place of ours
    known = own_keys(name)
    written = yaml.safe_dump(OmegaConf.to_container(cfg), width=10**6)
    for key in map(str, cfg):
        refers = rf"\$\{{([^}}]*[\s,:{{])?\.*{re.escape(key)}\b"
        if key not in known and not re.search(refers, written):
            raise ValueError(f"{key} is no key of {name}.py, and nothing refers to it{did_you_mean(meant(name, key))}")


def meant(name: str, key: str) -> str | None:
    """The key that was probably meant: at the top, of the same group, or with the same last part."""
    own = own_keys(name)
    head, dot, rest = key.partition(".")
    group = head if head in own else nearest(head, own)
    if not dot:
        inside = (f"{other}.{key}" for other in ("trainer", "solver", *own) if f"{other}.{key}" in keys_of(other))
        return group or next(inside, None)
    if group is None:
        return None
    return nearest(f"{group}.{rest}", [*keys_of(group), *(f"{group}.{inner}" for inner in flat(own[group]))])
