"""What values are for an annotation, and the sentences when they are not."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from scoresde.commands.arguments import complaint, mismatch
from scoresde.commands.build import ConfigError, build
from scoresde.spelling import nearest

CASES = [  # annotation, values that are of its kind, values that are not, what it is called
    (bool, [True], [1, 0, "no", "off", "False", None, [], math.nan], "true or false"),
    (int, [3, -1], [True, 0.5, 3.0, "1", math.nan, None, [1], {}], "a whole number"),
    (float, [1, 0.5, -2], [True, "0.5", math.nan, math.inf, -math.inf, None, [0.5], 10**400], "number"),
    (str, ["abc", ""], [1, None, ["a"], True], "text"),
    (str | Path, ["a", Path("a")], [1, [], {}], "text"),
    (int | None, [1, None], ["null", 0.5, False], "a whole number, or null"),
    (list[int], [[], [1, 2]], [[0.5], [True], 1, "12", {}, [None]], "a list of whole numbers"),
    (Sequence[float], [[1, 0.5], (1,)], [[math.nan], ["a"], "ab", 1.0, {}], "a list of numbers"),
    (tuple[float, float], [[0, 1], (0.5, 1)], [[1], [1, 2, 3], 1, [1, "a"], [math.nan, 1]], r"\[number, number\]"),
    (tuple[int, ...], [[], [1, 2]], [[0.5], 1], "a list of whole numbers"),
    (tuple[float, float] | None, [None, [1, 2]], [[1], "a"], r"\[number, number\], or null"),
    (Literal["a", "b"], ["a"], ["c", 1, None], "one of a, b"),
    (dict[str, int], [{}, {"a": 1}], [[], 1], "keys with values"),
    (Mapping[str, Any], [{}], [[], "a"], "keys with values"),
    (Callable[[int], int], [len], [1, "len"], "a function"),
    (float | torch.Tensor, [1.0, torch.ones(1)], [[], "a", math.nan], "number"),
    (torch.Tensor, [torch.ones(1)], [[1.0], 1.0], "a Tensor"),
    (Any, [1, None, [], math.nan], [], ""),
]


@pytest.mark.parametrize(("hint", "good", "bad", "name"), CASES, ids=[str(case[0]) for case in CASES])
def test_values_of_an_annotation(hint: Any, good: list[Any], bad: list[Any], name: str) -> None:
    assert not [value for value in good if mismatch(value, hint, "k")]
    for value in bad:
        said = mismatch(value, hint, "solver.k")
        assert said is not None, value
        assert re.match(rf"solver\.k needs .*{name}.*, got .*\.$", said), said


@pytest.mark.parametrize(
    ("value", "hint", "default", "said"),
    [
        ("no", bool, True, "k needs true or false, got 'no': write k=false."),
        ("On", bool, True, "k needs true or false, got 'On': write k=true."),
        ("abc", bool, True, "k needs true or false, got 'abc'."),
        (math.nan, float, 1.0, "k needs a finite number, got nan."),
        (math.inf, float, 1.0, "k needs a finite number, got inf."),
        (math.inf, float, math.inf, None),
        ([0.0, math.inf], tuple[float, float], (0.0, math.inf), None),
        (math.nan, float, math.inf, "k needs a finite number, got nan."),
        (None, int, None, None),
        (None, int, 3, "k needs a whole number, got null."),
        ("x" * 3000, int, 3, f"k needs a whole number, got '{'x' * 56}...."),
    ],
)
def test_sentences(value: Any, hint: Any, default: Any, said: str | None) -> None:
    assert mismatch(value, hint, "k", default=default) == said


def call(steps: int, rate: float = 0, *, weight=0, name: str = "a") -> None:  # type: ignore[no-untyped-def]
    if steps < 1:
        raise ValueError(f"call needs steps of at least 1, got {steps}")
    if rate > weight > 0:
        raise ValueError("call needs rate <= weight")
    if name == "b":
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stesp": 1}, "g.stesp is no argument of call: did you mean g.steps?"),
        ({"steps": 1, "zzz": 1}, "g.zzz is no argument of call."),
        ({}, "g.steps has no default: call needs it, g.steps=..."),
        ({"steps": "a"}, "g.steps needs a whole number, got 'a'."),
        ({"steps": 1, "rate": 0.5, "weight": 0.5}, None),  # a default of 0 stands for numbers, annotated or not
        ({"steps": 1, "weight": "a"}, "g.weight needs a number, got 'a'."),
    ],
)
def test_complaints_about_a_call(arguments: dict[str, Any], said: str | None) -> None:
    assert complaint(call, arguments, "g") == said


def test_calls_that_take_anything_are_given_anything() -> None:
    assert complaint(lambda **more: None, {"anything": object()}, "g") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "g.steps: call needs steps of at least 1, got 0"),
        ({"steps": 1, "rate": 2.0, "weight": 1.0}, "g: call needs rate <= weight"),
        ({"steps": 1, "name": "b"}, "g: division by zero"),
    ],
)
def test_calls_that_fail_name_their_key(arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.commands.build.find_target", lambda *_: call)
    with pytest.raises(ConfigError) as failed:
        build({"_target_": "call", **arguments}, "g")
    assert str(failed.value) == said


def test_an_optimizer_takes_numbers_where_torch_has_a_default_of_0() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1))]
    for name in ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam"):
        node = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 1, "weight_decay": 0.1}
        assert build(node, "optimizer")(parameters).defaults["weight_decay"] == 0.1


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    size: "Nowhere"  # type: ignore[name-defined]  # noqa: F821
    rate: float = 0


def test_an_annotation_that_names_nothing_leaves_the_defaults() -> None:
    assert complaint(Unresolved, {"size": object(), "rate": 0.5}, "g") is None
    assert complaint(Unresolved, {"size": 1, "rate": "a"}, "g") == "g.rate needs a number, got 'a'."


@pytest.mark.parametrize(
    ("word", "meant"),
    [("stpes", "steps"), ("STEPS", "steps"), ("ste", "steps"), ("zzz", None), ("warmpu", "warmup"), ("x", None)],
)
def test_spelling(word: str, meant: str | None) -> None:
    assert nearest(word, ["steps", "warmup", "batch_size"]) == meant
