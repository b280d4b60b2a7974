"""A sample of the campaign of kills."""

from __future__ import annotations

import pytest
from campaigns.kills import campaign


@pytest.mark.parametrize("seed", [0])
def test_killed_commands_end_as_if_they_had_never_been_killed(seed: int) -> None:
    outcomes = campaign(3, seed, processes=1, jobs=("training of images", "evaluation"))
    assert sum(len(outcome.kills) for outcome in outcomes) >= 3
    assert [miss for outcome in outcomes for miss in outcome.misses] == []
