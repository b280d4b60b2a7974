"""`budget=...`: times as people write them."""

import pytest

from scoresde.commands.budget import minutes
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
