"""Trainings of a given time, on a clock that only updates move."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.training import RunDirectory, Trainer
from scoresde.training.checkpoint import load_checkpoint
from scoresde.training.length import Length, check_period


class Clock:
    """Seconds that pass when something takes them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def trainer_of(clock: Clock, seconds: Callable[[int], float] = lambda index: 0.5, **options: Any) -> Trainer:
    """A tiny network whose micro-batch number k takes seconds(k), half a second by default."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))

    def batch(index: int) -> tuple[Tensor, dict[str, Any]]:
        clock.now += seconds(index)
        return x + 0.01 * index, {}

    def loss(module: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
        return module(x0).square()[:, 0]

    options = {"log_every": 50, "checkpoint_every": None, "decay": "cosine", "warmup": 20, "progress": False} | options
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    return Trainer(denoiser=module, loss=loss, optimizer=optimizer, batch=batch, **options)


def weights(trainer: Trainer) -> Tensor:
    return nn.utils.parameters_to_vector(trainer.denoiser.parameters()).detach()


def test_a_training_ends_in_its_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(clock, minutes=2)
    last = trainer.fit()
    assert clock.now == pytest.approx(120, rel=0.01)
    assert last["step"] == trainer.steps == pytest.approx(240, rel=0.03)  # the trial takes 2 % of it
    assert "budget of 2 min: 0.5 s a step, so 23" in capsys.readouterr().out


def test_a_machine_that_slows_down_does_fewer_steps(clock: Clock) -> None:
    trainer = trainer_of(clock, lambda index: 0.5 if index < 80 else 1.5, minutes=2)
    trainer.fit()
    assert clock.now == pytest.approx(120, rel=0.04)
    assert trainer.steps == pytest.approx(80 + 77 / 1.5, rel=0.06)


def test_pictures_and_checkpoints_count(clock: Clock) -> None:
    drawn = []

    def preview(denoiser: nn.Module, step: int) -> None:
        drawn.append(step)
        clock.now += 5.0

    trainer = trainer_of(clock, minutes=2, sample_every=0.2, preview=preview)
    trainer.fit()
    assert clock.now == pytest.approx(120, rel=0.04)
    assert drawn[-1] == trainer.steps and len(drawn) <= 4  # a tenth of two minutes, the first and the last


def test_pictures_that_cost_little_are_all_drawn(clock: Clock) -> None:
    drawn = []

    def preview(denoiser: nn.Module, step: int) -> None:
        drawn.append(step)
        clock.now += 0.5

    trainer_of(clock, minutes=2, sample_every=0.2, preview=preview).fit()
    assert 5 <= len(drawn) <= 6
    assert clock.now == pytest.approx(120, rel=0.04)


def test_measuring_leaves_no_trace(clock: Clock) -> None:
    timed = trainer_of(clock, minutes=0.5, ema_decay=None, warmup=5)
    timed.fit()
    counted = trainer_of(clock, steps=timed.steps, ema_decay=None, warmup=5)
    counted.fit()
    assert torch.equal(weights(timed), weights(counted))
    assert all(map(torch.equal, timed.ema.shadow_params, counted.ema.shadow_params))


def test_a_stopped_training_goes_on_with_its_steps_and_its_time(clock: Clock, tmp_path: Path) -> None:
    whole = trainer_of(clock, minutes=1)  # half a second is exact in binary
    whole.fit()
    run = RunDirectory.create(tmp_path / "run", "a: 1\n")

    class Stop(Exception):
        pass

    def seconds(index: int) -> float:
        if index >= 60:
            raise Stop
        return 0.5

    with pytest.raises(Stop):
        trainer_of(clock, seconds, minutes=1, run=run, checkpoint_every=20).fit()
    began = clock.now
    resumed = trainer_of(clock, minutes=1, run=run, checkpoint_every=20)
    resumed.fit()
    assert resumed.steps == whole.steps and torch.equal(weights(resumed), weights(whole))
    assert clock.now - began == pytest.approx(60 - 60 * 0.5 - 2, abs=2)
    state = load_checkpoint(run.last)["length"]
    assert state["minutes"] == 1 and state["elapsed"] == pytest.approx(60, rel=0.03)


def test_more_time_on_resuming_is_planned_anew(clock: Clock, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "a: 1\n")
    first = trainer_of(clock, minutes=1, run=run)
    first.fit()
    began = clock.now
    second = trainer_of(clock, minutes=3, run=run)
    second.fit()
    assert clock.now - began == pytest.approx(120, rel=0.04)
    assert second.steps == pytest.approx(first.steps + 240, rel=0.04)


@pytest.mark.parametrize(
    "minutes, words", [(0.5, "so 5. steps, too few for good samples.* take 2.5 min"), (3, "steps.$")]
)
def test_a_time_that_is_too_short_is_said_before(
    clock: Clock, capsys: pytest.CaptureFixture[str], minutes: float, words: str
) -> None:
    trainer_of(clock, minutes=minutes).fit()
    assert re.search(words, capsys.readouterr().out.splitlines()[0])


def test_a_time_without_room_for_training_is_refused(clock: Clock) -> None:
    with pytest.raises(ValueError, match=r"budget of 0.6 s: 0.5 s a step, so \d steps; a network needs 300"):
        trainer_of(clock, minutes=0.01).fit()


def test_the_warm_up_is_at_most_a_fifth_of_a_given_time(clock: Clock) -> None:
    assert Length(None, 1.0).warmup(100) == 100  # while it is measured
    length = Length(None, 1.0)
    length.plan(0, 0.2)
    assert length.warmup(100) == length.known // 5 < 100
    assert Length(150, None).warmup(100) == 100


def test_periods_are_steps_or_shares() -> None:
    length = Length(1000, None)
    assert [step for step in range(1, 1001) if length.due(step, 0.25)] == [250, 500, 750, 1000]
    assert [step for step in range(1, 1001) if length.due(step, 300)] == [300, 600, 900, 1000]
    assert [step for step in range(1, 1001) if length.due(step, 0)] == []
    assert [step for step in range(1, 1001) if length.due(step, 0, at_the_end=True)] == [1000]
    assert [step for step in range(1, 4) if Length(3, None).due(step, 0.01)] == [1, 2, 3]


@pytest.mark.parametrize("period", [-1, 1.5, float("nan"), float("inf"), True, "often"])
def test_other_periods_are_refused(period: Any) -> None:
    with pytest.raises(ValueError, match="Trainer needs log_every to be a whole number of steps, a share"):
        check_period("log_every", period)


@pytest.mark.parametrize("given", [{}, {"steps": 3, "minutes": 1.0}])
def test_either_steps_or_minutes(clock: Clock, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Trainer needs either steps or minutes, got"):
        trainer_of(clock, **given)


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf"), True, "3"])
def test_a_time_is_a_positive_number(clock: Clock, minutes: Any) -> None:
    with pytest.raises(ValueError, match="Trainer needs"):
        trainer_of(clock, minutes=minutes)
