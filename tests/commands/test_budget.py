"""`budget=...`: times as people write them."""

from typing import Any

import pytest

from scoresde.cli.keys import with_one_length
from scoresde.commands.budget import minutes, with_budget
from scoresde.commands.build import ConfigError


@pytest.mark.parametrize(
    "budget, expected",
    [
        ("90s", 1.5),
        ("10min", 10.0),
        ("10 min", 10.0),
        ("2h", 120.0),
        ("1.5h", 90.0),
        (3, 3.0),
        (0.5, 0.5),
        ("1d", 1440.0),
    ],
)
def test_a_budget_is_a_number_of_minutes(budget: object, expected: float) -> None:
    assert minutes(budget) == pytest.approx(expected)  # type: ignore[arg-type]


def test_no_budget_is_none() -> None:
    assert minutes(None) is None


@pytest.mark.parametrize(
    "budget", [0, "0min", "-3min", "ten minutes", "10 apples", True, float("nan"), float("inf"), "", 1e9]
)
def test_a_budget_that_is_no_time_is_refused(budget: object) -> None:
    with pytest.raises(ConfigError, match="budget needs a time"):
        minutes(budget)  # type: ignore[arg-type]


CONFIG: dict[str, Any] = {"budget": "10min", "trainer": {"steps": 1100, "minutes": None}}


def test_a_budget_stands_in_place_of_the_steps() -> None:
    assert with_budget(CONFIG)["trainer"] == {"steps": None, "minutes": 10.0}
    assert with_budget(CONFIG | {"budget": None}) == CONFIG | {"budget": None}
    given = {"budget": None, "trainer": {"steps": 1100, "minutes": 3.0}}
    assert with_budget(given)["trainer"] == {"steps": None, "minutes": 3.0}
    with pytest.raises(ConfigError, match=r"budget=10min and trainer.minutes=3.0 are two times"):
        with_budget(given | {"budget": "10min"})


def test_steps_of_the_command_stand_above_the_time_of_an_experiment() -> None:
    assert with_one_length(CONFIG, ["experiment=photos"]) == CONFIG
    assert with_one_length(CONFIG, ["experiment=photos", "trainer.steps=5"])["budget"] is None
    assert with_one_length(CONFIG, ["trainer.steps=5", "budget=null"])["budget"] is None
    for time in ("budget=3min", "trainer.minutes=3"):
        with pytest.raises(ValueError, match=f"trainer.steps=5 and {time} are two lengths of one training"):
            with_one_length(CONFIG, ["trainer.steps=5", time])
