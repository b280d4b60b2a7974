"""What constructors ask of their arguments: a range, and one sentence that names the argument and what it got."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from os import PathLike
from typing import Any, SupportsFloat, SupportsIndex

RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
LARGEST = 2**64  # of whole numbers, seeds among them


def check_numbers(owner: object, *conditions: str, **values: object) -> None:
    """Raise ValueError unless the numbers named in every condition stand in that relation: "0 < low < high < inf".

    Args:
        owner: Whose attributes they are, or with `values` its name alone.
        conditions: Names and numbers with <, <=, > or >= between them; what no bound excludes may be infinite. One name
            followed by " or null" may be None.
        values: The numbers, if they are no attributes.
    """
    for condition in conditions:
        _check(owner, condition, values, whole=False)


def check_whole(owner: object, *conditions: str, **values: object) -> None:
    """The same for whole numbers."""
    for condition in conditions:
        _check(owner, condition, values, whole=True)


def check_choice(owner: object, name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless a value is one of a few."""
    if isinstance(value, bool | float) or not any(value == choice for choice in choices):
        *most, last = map(str, choices)
        words = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"{owner_name(owner)} needs {name} {words}, got {value!r}.")


def check_pair(owner: object, name: str, value: Any, condition: str) -> tuple[float, float]:
    """Two numbers as a tuple: `condition` is a relation of `low` and `high`."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection) or len(value) != 2:
        raise ValueError(f"{owner_name(owner)} needs {name} to be two numbers, [low, high], got {value!r}.")
    low, high = value
    if not all(map(is_number, (low, high))) or not _holds(condition, {"low": low, "high": high}):
        raise ValueError(f"{owner_name(owner)} needs {name} [low, high] with {condition}, got {[low, high]!r}.")
    return float(low), float(high)


def check_sizes(owner: object, name: str, value: Any, *, empty: bool = False) -> tuple[int, ...]:
    """A list of whole numbers from 1 as a tuple; with `empty` it may be empty."""
    sizes = _listed(value)
    if sizes is None or not (sizes or empty) or not all(is_whole(size) and size >= 1 for size in sizes):
        some = "a list of" if empty else "a list of one or more"
        raise ValueError(f"{owner_name(owner)} needs {name} to be {some} whole numbers from 1, got {value!r}.")
    return sizes


def check_list(owner: object, name: str, value: Any) -> tuple[float, ...]:
    """A list of finite numbers as a tuple."""
    numbers = _listed(value)
    if numbers is None or not all(is_number(number) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{owner_name(owner)} needs {name} to be a list of finite numbers, got {value!r}.")
    return numbers


def check_flags(owner: Any) -> None:
    """Raise ValueError unless every field of a dataclass that is annotated as a bool is one."""
    for field in fields(owner):
        optional = field.type in ("bool | None", bool | None)
        if field.type in ("bool", bool) or optional:
            check_flag(owner, field.name, getattr(owner, field.name), optional)


def check_flag(owner: object, name: str, value: object, optional: bool = False) -> None:
    """Raise ValueError unless a value is true or false."""
    if not (isinstance(value, int) and value in (0, 1)) and not (optional and value is None):
        words = "true, false or null" if optional else "true or false"
        raise ValueError(f"{owner_name(owner)} needs {name} to be {words}, got {value!r}.")


def check_text(owner: object, name: str, value: object, *, optional: bool = True) -> None:
    """Raise ValueError unless a value is text, of one letter at least, a path too, or None if it is optional."""
    if (not isinstance(value, str | PathLike) or value == "") and not (optional and value is None):
        raise ValueError(f"{owner_name(owner)} needs {name} to be text{' or null' * optional}, got {value!r}.")


def check_unused(owner: object, because: str, **defaults: object) -> None:
    """Raise ValueError if options that have no effect are not left alone.

    Args:
        owner: Whose attributes they are.
        because: What takes their effect: "s_churn=0".
        defaults: The options, with what stands for left alone.
    """
    for name, default in defaults.items():
        if (value := getattr(owner, name)) != default:
            raise ValueError(f"{owner_name(owner)} with {because} has no use for {name}={value!r}: leave it out.")


def is_number(value: object) -> bool:
    """Whether a value is one real number, and not NaN."""
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        return False
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # of arrays, huge integers, tensors without data
        return False


def is_whole(value: object) -> bool:
    """Whether a value is a whole number that something can be counted with."""
    if isinstance(value, bool | float) or not isinstance(value, SupportsIndex):
        return False
    try:
        return abs(operator.index(value)) < LARGEST
    except (TypeError, RuntimeError):
        return False


def _listed(value: Any) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else None


def owner_name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__


@cache
def _parts(condition: str) -> tuple[tuple[str | float, ...], tuple[str, ...]]:
    """The terms of a condition, numbers or names, and the relations between them."""
    terms, relations = re.split(r" *[<>]=? *", condition), re.findall(r"[<>]=?", condition)
    return tuple(term if term.isidentifier() and term != "inf" else float(term) for term in terms), tuple(relations)


def _check(owner: object, condition: str, given: Mapping[str, object], whole: bool) -> None:
    chain = condition.removesuffix(" or null")
    names = [term for term in _parts(chain)[0] if isinstance(term, str)]
    values = {name: given[name] if name in given else getattr(owner, name) for name in names}
    if chain != condition and all(value is None for value in values.values()):
        return
    if not all(map(is_whole if whole else is_number, values.values())) or not _holds(chain, values):
        kind = ", a whole number" if whole else ""
        if chain != condition:
            kind += ", or null"
        got = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(f"{owner_name(owner)} needs {chain}{kind}, got {got}.")


def _holds(condition: str, values: Mapping[str, Any]) -> bool:
    terms, relations = _parts(condition)
    numbers = [values[term] if isinstance(term, str) else term for term in terms]
    pairs = zip(relations, numbers, numbers[1:], strict=False)
    return all(bool(RELATIONS[relation](left, right)) for relation, left, right in pairs)
