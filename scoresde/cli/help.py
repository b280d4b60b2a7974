"""`--help`, and `help=GROUP`: every option of a group with every key, its default, what it takes and what it means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from scoresde.cli.keys import config_dir, folders, groups, options
from scoresde.spelling import did_you_mean, nearest


class Line(NamedTuple):
    """A key of an option, as its file has it."""

    key: str
    value: str
    comment: str


def help_asked(arguments: Sequence[str]) -> str | None:
    """The group that help is asked for, "" for all in short, None if the command is to be run."""
    for argument in arguments:
        if argument.startswith(("help=", "--help=")):
            return argument.partition("=")[2]
    return "" if {"--help", "-h", "help"} & set(arguments) else None


def help_text(name: str) -> str:
    """Every group with its options, and the top of the configuration with its comments.

    Written here because Hydra takes two seconds to list its own groups as well.
    """
    lines = [f"python {name}.py [group=option] [key=value] ...", "", "Groups (group=option):"]
    lines += [f"  {group:18}{', '.join(options(group))}" for group in groups()]
    lines += [
        "",
        f"python {name}.py help=solver (or another group, or help=all) lists every key of its options.",
        "",
        "Keys (key=value), with their defaults; group.key=value for those of an option, e.g. solver.steps=20:",
    ]
    own = (config_dir() / f"{name}.yaml").read_text(encoding="utf-8").split("\nhydra:")[0].strip()
    lines += [f"  {line}" for line in own.splitlines() if "override hydra/" not in line]
    lines += [
        "",
        "Flags are true or false: other words, as yes, no, on and off, are refused. null stands for none.",
        "--cfg job prints the whole configuration, --config-dir DIR adds a folder of your own options.",
    ]
    return "\n".join(lines)


def group_help(asked: str) -> str:
    """Every option of a group, or a single one ("solver=ode", "solver.ode"), or "all", with all keys.

    Raises:
        ValueError: If there is no such group or option.
    """
    group, _, option = asked.replace("=", ".").partition(".")
    if group not in (*groups(), "all"):
        raise ValueError(f"help={asked}: the groups are {', '.join(groups())}{did_you_mean(nearest(group, groups()))}")
    chosen = groups() if group == "all" else [group]
    parts = [_option_help(one, other) for one in chosen for other in options(one) if option in ("", other)]
    if not parts:
        raise ValueError(f"help={asked} names no option of {group}: there is {', '.join(options(group))}.")
    return "\n\n".join(parts)


def _option_help(group: str, option: str) -> str:
    files = (folder / group / f"{option}.yaml" for folder in folders())
    text = next(path for path in files if path.is_file()).read_text(encoding="utf-8")
    node = yaml.safe_load(text) or {}
    head = [f"{group}={option}", *([node["_target_"]] if "_target_" in node else [])]
    about = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    lines = ["    ".join(head), *(f"    {line}" for line in about)]
    for part in node.get("defaults", []):
        if part != "_self_":
            other = f"{group}={part}" if isinstance(part, str) else "=".join(map(str, *part.items()))
            lines.append(f"    starts from {other.removeprefix('override /')}")
    for line in yaml_lines(text):
        kind, meaning = _of_signature(node, line.key)
        says = "; ".join(part for part in (kind, line.comment or meaning) if part)
        full = line.key if group == "experiment" else f"{group}.{line.key}"
        lines.append(f"  {f'{full}={line.value}':44}{says}".rstrip())
    return "\n".join(lines)


def yaml_lines(text: str) -> Iterator[Line]:
    """The keys of a YAML file with the comments beside them."""
    rows = text.splitlines()

    def walk(node: Any, prefix: str) -> Iterator[Line]:
        for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if name.value in ("defaults", "_target_", "_partial_"):
                continue
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, f"{prefix}{name.value}.")
            else:
                written = text[value.start_mark.index : value.end_mark.index].strip()
                comment = re.search(r"\s#\s*(.*)", rows[value.end_mark.line])
                yield Line(prefix + name.value, written, comment[1] if comment else "")

    yield from walk(yaml.compose(text), "")


def _of_signature(node: Mapping[str, Any], key: str) -> tuple[str, str]:
    """What an argument takes and what it means, from the signature and the docstring of what the node names."""
    *outer, last = key.split(".")
    for name in outer:
        node = node.get(name) or {}
    if "_target_" not in node:
        return "", ""
    from scoresde.commands.arguments import argument_words
    from scoresde.commands.build import ANY_INTERFACE, ConfigError, find_target

    try:
        target = find_target(node["_target_"], key, [ANY_INTERFACE])
    except ConfigError:
        return "", ""
    return argument_words(target, last), _meaning(inspect.getdoc(target) or "", last)


def _meaning(doc: str, name: str) -> str:
    """The part of a docstring's Args that speaks of an argument."""
    for names, says in re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", doc, re.MULTILINE):
        if name in [word.strip() for word in names.split(",")]:
            return " ".join(str(says).split())
    return ""
