"""YAML of a run, which may come from elsewhere: plain values of bounded size, bounded before they are made."""

from __future__ import annotations

from typing import Any

import yaml

from scoresde.training.run import LARGEST_CONFIG

MOST_NODES = 100_000  # values, with all that aliases repeat
DEEPEST = 64
MOST_BRACKETS = 5_000  # of lists and mappings in flow style, which take time that grows with their depth squared
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def plain_yaml(text: str) -> Any:
    """Mappings with names as keys, lists, texts, numbers, flags and nulls.

    Raises:
        ValueError: If it is not readable, is too large, or holds something else; continues "config.yaml ...".
    """
    if len(text.encode()) > LARGEST_CONFIG:
        raise ValueError(f"is larger than {LARGEST_CONFIG >> 20} MB, as no configuration is")
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        raise ValueError(f"has more than {MOST_BRACKETS} brackets, as no configuration has")
    try:
        problem = _size_problem(text)
        value = None if problem else yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # a number or a date may be none
        raise ValueError(f"is not readable YAML: {str(error).splitlines()[0]}") from None
    if problem := problem or _kind_problem(value):
        raise ValueError(problem)
    return value


def _size_problem(text: str) -> str | None:
    """Whether there are too many values or levels, with aliases counted as what they stand for."""
    known: dict[str, tuple[int, int]] = {}  # values and levels of what has an anchor
    open_nodes = [("", 0, 0)]  # of the enclosing lists and mappings: anchor, values and levels so far
    for event in yaml.parse(text, Loader=_Loader):
        values, levels, anchor = 1, 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor or "", 1, 1))
            known.pop(anchor or "", None)
            continue
        if isinstance(event, yaml.AliasEvent):
            if anchor not in known:
                return f"has the alias *{anchor} within or before what it stands for"
            values, levels = known[anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values, levels = open_nodes.pop()
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor:
            known[anchor] = values, levels
        outer, before, deepest = open_nodes[-1]
        open_nodes[-1] = outer, before + values, max(deepest, levels + 1)
        if before + values > MOST_NODES or levels + len(open_nodes) > DEEPEST:
            return f"has more than {MOST_NODES} values or {DEEPEST} levels, as no configuration has"
    return None


def _kind_problem(value: Any) -> str | None:
    if isinstance(value, dict):
        strange = [key for key in value if not isinstance(key, str)]
        found = f"has the key {strange[0]!r}, which is not a text" if strange else None
        return found or next(filter(None, map(_kind_problem, value.values())), None)
    if isinstance(value, list):
        return next(filter(None, map(_kind_problem, value)), None)
    if value is None or type(value) in (str, int, float, bool):
        return None
    return f"holds a {type(value).__name__}, and not only texts, numbers, flags and nulls"
