"""Whether plain values are what a class or function takes, from its signature: names, kinds of values, lengths."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from scoresde.spelling import did_you_mean, nearest

SHOWN = 60  # characters of a value in a message
WORDS_OF_YAML = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def complaint(target: Any, arguments: Mapping[str, Any], where: str, *, waits: bool = False) -> str | None:
    """What is wrong with the arguments of a call, in one sentence that names the key; None if nothing is.

    Args:
        target: Class or function.
        arguments: By name.
        where: The key in front of their names.
        waits: Whether the call gets more arguments later.
    """
    parameters = inspect.signature(target).parameters
    named = {name for name, parameter in parameters.items() if parameter.kind not in (_REST, _MORE)}
    if not any(parameter.kind is _MORE for parameter in parameters.values()):
        for name in arguments:
            if name not in named:
                meant = nearest(str(name), named)
                return f"{where}.{name} is no argument of {_name(target)}{did_you_mean(meant and f'{where}.{meant}')}"
    for name, parameter in parameters.items():
        if not waits and name in named - set(arguments) and parameter.default is _EMPTY:
            return f"{where}.{name} has no default: {_name(target)} needs it, {where}.{name}=..."
    hints = _hints(target)
    for name, value in arguments.items():
        if name in named:
            default = parameters[name].default
            hint = hints.get(name, _kind_of(default))
            wrong = mismatch(value, hint, f"{where}.{name}", default=default)
            if wrong:
                return wrong
    return None


def argument_words(target: Any, name: str) -> str:
    """What an argument takes, for people; empty if its annotation does not say."""
    parameter = inspect.signature(target).parameters.get(name)
    if parameter is None:
        return ""
    hint = _hints(target).get(name, _kind_of(parameter.default))
    return "" if hint is Any else words(hint)


_EMPTY, _REST, _MORE = inspect.Parameter.empty, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def mismatch(value: Any, hint: Any, key: str, *, default: Any = _EMPTY) -> str | None:
    """A sentence if a value is not of the kind that an annotation says; None if it is.

    Lists stand for tuples, whole numbers for numbers. NaN is no number, and infinity is one only where the default has
    it: elsewhere it is the trace of a mistake.
    """
    infinite = any(isinstance(end, float) and math.isinf(end) for end in _parts(default))
    if fits(value, hint, infinite) or (value is None and default is None):
        return None
    needs = words(hint) + (", or null" if default is None and NoneType not in get_args(hint) else "")
    number = isinstance(value, float) and not math.isfinite(value) and fits(0.0, hint)
    text = f"{key} needs {needs.replace('a number', 'a finite number') if number else needs}, got {shown(value)}"
    word = WORDS_OF_YAML.get(value.lower(), value.lower()) if isinstance(value, str) else ""
    return f"{text}: write {key}={word}." if word in ("true", "false") and fits(True, hint) else f"{text}."


def fits(value: Any, hint: Any, infinite: bool = False) -> bool:
    """Whether a value is of the kind of an annotation; of kinds that cannot be judged, every value is."""
    origin, members = get_origin(hint), get_args(hint)
    if hint in (Any, _EMPTY) or isinstance(hint, str | TypeVar):
        return True
    if hint in (None, NoneType):
        return value is None
    if origin in (Union, UnionType):
        return any(fits(value, member, infinite) for member in members)
    if origin is Annotated:
        return fits(value, members[0], infinite)
    if origin is Literal:
        return any(type(value) is type(member) and value == member for member in members)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (abs(value) <= sys.float_info.max or (infinite and not math.isnan(value)))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return isinstance(value, str | os.PathLike)
    kind = origin or hint
    if kind is Callable:
        return callable(value)
    if not isinstance(kind, type) or (
        getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)
    ):
        return True
    if kind not in (list, tuple) and (kind.__module__ != "collections.abc" or issubclass(kind, Mapping)):
        return isinstance(value, kind)
    if not isinstance(value, list | tuple):
        return isinstance(value, kind) and not isinstance(value, str | Mapping)
    if issubclass(kind, tuple) and members and members[-1] is not Ellipsis:
        return len(value) == len(members) and all(map(lambda v, m: fits(v, m, infinite), value, members))
    return not members or all(fits(item, members[0], infinite) for item in value)


def words(hint: Any) -> str:
    """An annotation as a person says it: "a whole number, or null"."""
    origin, members = get_origin(hint), get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin in (Union, UnionType):
        others = [member for member in members if member is not NoneType]
        plain = [member for member in others if member in WORDS or get_origin(member)] or others  # what a YAML can say
        return " or ".join(dict.fromkeys(map(words, plain))) + (", or null" if NoneType in members else "")
    if origin is Annotated:
        return words(members[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}" if len(members) > 1 else str(members[0])
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "text"
    kind = origin or hint
    if origin is tuple and members and members[-1] is not Ellipsis:
        return f"[{', '.join(words(member).removeprefix('a ') for member in members)}]"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "keys with values"
    if isinstance(kind, type) and issubclass(kind, Iterable) and (members or kind in (list, tuple)):
        return f"a list of {words(members[0]).removeprefix('a ')}s" if members else "a list"
    name = getattr(kind, "__name__", str(kind))
    return "a function" if name == "Callable" else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value in a message: null as YAML has it, long ones cut."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def with_key(message: str, target: Any, arguments: Mapping[str, Any], where: str) -> str:
    """The message of a call that failed, with the key in front: that of its argument, if it speaks of a single one."""
    if message.startswith(where):
        return message
    spoken = [name for name in arguments if re.search(rf"\b{re.escape(name)}\b", message)]
    return f"{where}.{spoken[0]}: {message}" if len(spoken) == 1 else f"{where}: {message}"


def _parts(default: Any) -> tuple[Any, ...]:
    return default if isinstance(default, tuple) else (default,)


def _kind_of(default: Any) -> Any:
    """The annotation that an argument without one should have: a default of 0 stands for any number."""
    return float if type(default) in (int, float) else type(default) if type(default) in (bool, str) else Any


def _hints(target: Any) -> dict[str, Any]:
    """The annotations of what a call takes, without those that name what is not there at run time."""
    own = isinstance(target, type) and "__dataclass_fields__" not in vars(target)
    call = target.__init__ if own else target
    try:
        return get_type_hints(call)
    except (NameError, TypeError, AttributeError):
        return {}


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))
