"""What every check of arguments takes and refuses, and what its sentence says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.checks import (
    check_choice,
    check_flags,
    check_list,
    check_numbers,
    check_pair,
    check_sizes,
    check_unused,
    check_whole,
)


@dataclass(frozen=True)
class Options:
    low: Any = 0.1
    high: Any = 2.0
    on: bool = False
    maybe: bool | None = None


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.5), np.int64(1), torch.tensor(0.5)], ids=repr)
def test_numbers_of_every_kind_are_numbers(value: object) -> None:
    check_numbers("f", "0 <= x <= 1", x=value)


@pytest.mark.parametrize(
    "value",
    [-0.1, 1.1, math.nan, math.inf, -math.inf, True, "0.5", b"0.5", None, [0.5], {}, 1j, 10**400, torch.ones(2),
     torch.ones((), device="meta")],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_what_is_no_number_in_range_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"^f needs 0 <= x <= 1, got x=.*\.$"):
        check_numbers("f", "0 <= x <= 1", x=value)


@pytest.mark.parametrize("value", [0, 2.0, True, "2", None, math.nan, 10**30, [2], torch.tensor(2.0)], ids=repr)
def test_what_is_no_whole_number_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"^f needs n >= 1, a whole number, got n="):
        check_whole("f", "n >= 1", n=value)


def test_a_relation_between_attributes_names_them_all() -> None:
    check_numbers(Options(), "0 < low < high < inf")
    with pytest.raises(ValueError, match=r"^Options needs 0 < low < high < inf, got low=3, high=2.0\.$"):
        check_numbers(Options(low=3), "0 < low < high < inf")
    with pytest.raises(ValueError, match="got low=0.1, high=inf"):
        check_numbers(Options(high=math.inf), "0 < low < high < inf")


def test_null_is_for_those_that_say_so() -> None:
    check_whole("f", "n >= 1 or null", n=None)
    check_whole("f", "n >= 1 or null", n=np.int64(3))
    with pytest.raises(ValueError, match="f needs n >= 1, a whole number, or null, got n=0"):
        check_whole("f", "n >= 1 or null", n=0)


@pytest.mark.parametrize("value", ["abc", None, 1.0, True, [1]], ids=repr)
def test_choices_are_listed(value: object) -> None:
    check_choice("f", "order", 1, (1, 2, 3))
    with pytest.raises(ValueError, match=r"^f needs order 1, 2 or 3, got "):
        check_choice("f", "order", value, (1, 2, 3))


def test_pairs_and_sizes_become_tuples() -> None:
    assert check_pair("f", "interval", [0, math.inf], "0 <= low < high") == (0.0, math.inf)
    assert check_sizes("f", "mults", [1, 2]) == (1, 2)
    for value in ([0.5], [2, 1], [0, math.nan], "ab", {1: 2, 3: 4}, None, 3):
        with pytest.raises(ValueError, match="f needs interval"):
            check_pair("f", "interval", value, "0 <= low < high")
    for value in ([], [0], [1.5], "12", None, 3, [True]):
        with pytest.raises(ValueError, match="f needs mults to be a list of one or more whole numbers from 1, got"):
            check_sizes("f", "mults", value)
    assert check_sizes("f", "mults", [], empty=True) == check_list("f", "taps", []) == ()
    assert check_list("f", "taps", [0.5, -1]) == (0.5, -1)
    for value in ([math.inf], [math.nan], ["1"], "12", None, 3, [True], {0: 1.0}):
        with pytest.raises(ValueError, match="f needs taps to be a list of finite numbers, got"):
            check_list("f", "taps", value)


def test_flags_and_options_without_effect_are_named() -> None:
    check_flags(Options(on=True, maybe=False))
    for value in ("no", None, 2, 0.0):
        with pytest.raises(ValueError, match="Options needs on to be true or false, got"):
            check_flags(Options(on=value))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs maybe to be true, false or null, got 'yes'"):
        check_flags(Options(maybe="yes"))  # type: ignore[arg-type]
    check_unused(Options(), "mode=plain", low=0.1)
    with pytest.raises(ValueError, match=r"^Options with mode=plain has no use for low=1: leave it out\.$"):
        check_unused(Options(low=1), "mode=plain", low=0.1)
