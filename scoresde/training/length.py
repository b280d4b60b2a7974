"""How long a training is: a number of steps, or a time, from which it follows by what a step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from scoresde.checks import check_numbers, check_whole, is_number, is_whole

TOLERANCE = 0.03  # of the budget, by which the end may miss before the number of steps is corrected
PAUSES = 0.1  # of the time, which pictures on the way may take
SEEN = 0.05  # of the budget, from when on steps count more than the trial
TRIAL = 0.02  # of the budget, and at most TRIAL_SECONDS, for updates that only measure
TRIAL_SECONDS = 3.0
ENOUGH = 300  # updates below which a network has hardly begun to learn
FEWEST = 10
UNKNOWN = 2**62  # steps


class KeepsLoss(Protocol):
    """The state of a loss, as `Update` has it."""

    def loss_state(self) -> dict[str, Any]: ...

    def load_loss_state(self, state: dict[str, Any]) -> None: ...


class Length:
    """How many steps a training has: given, or as many as fit into a time.

        steps = step + (time left − time of the last picture and checkpoint) / (seconds per step)

    The seconds per step are first those of a few trial updates; later those of all steps of this process, with a share
    for pictures and checkpoints, whenever the end would miss by more than 3 % of the budget. Pictures on the way take
    at most a tenth of the time.

    Args:
        steps: Number of steps; None with `minutes`.
        minutes: How long the training may take, in all processes that it is done by.
    """

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        if (steps is None) == (minutes is None):
            raise ValueError(f"Trainer needs either steps or minutes, got steps={steps} and minutes={minutes}.")
        check_whole("Trainer", "steps >= 1 or null", steps=steps)
        if minutes is not None:
            check_numbers("Trainer", "0 < minutes < 1e6", minutes=minutes)
        self.steps, self.minutes = steps, minutes  # steps are None until they are planned
        self._spent = 0.0  # seconds, in earlier processes
        self._paused = self._longest_pause = 0.0
        self.start(0)

    @property
    def known(self) -> int:
        """Number of steps, without an end while it is not known."""
        return UNKNOWN if self.steps is None else self.steps

    def finished(self, step: int) -> bool:
        """Whether all steps are done; not while their number is unknown."""
        return self.steps is not None and step >= self.steps

    def due(self, step: int, period: float, *, at_the_end: bool = False) -> bool:
        """Whether something is to be done after a step; what has a period is done after the last one too.

        Args:
            step: Steps that are done.
            period: In steps, or below 1 as a share of the training; 0: never.
            at_the_end: Whether it is done after the last step even without a period.
        """
        if step == self.steps:
            return period > 0 or at_the_end
        every = max(1, round(period if period >= 1 else period * self.known))
        return period > 0 and step % every == 0

    def warmup(self, steps: int) -> int:
        """Steps of a warm-up, at most a fifth of a training of a given time."""
        return steps if self.minutes is None else min(steps, self.known // 5)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._spent + time.perf_counter() - self._began

    @property
    def longest_trial(self) -> float:
        """Seconds that may go into updates that only measure; 0 if there is nothing to find out."""
        return 0.0 if self.minutes is None or self.steps is not None else min(TRIAL * 60 * self.minutes, TRIAL_SECONDS)

    def start(self, step: int) -> None:
        """Start the clock of this process, which goes on from a step."""
        self._first = step
        self._began = self._since = time.perf_counter()

    def plan(self, step: int, seconds_per_step: float) -> str:
        """Set the number of steps from what a step takes; returns what to expect, in one sentence.

        Raises:
            ValueError: If no training fits into the time.
        """
        assert self.minutes is not None
        left = 60 * self.minutes - self.elapsed - self._longest_pause
        self.steps, self._since = step + max(1, int(left / seconds_per_step)), time.perf_counter()
        return _forecast(self.minutes, step, self.steps, seconds_per_step)

    def correct(self, step: int, pause: float) -> None:
        """Set another number of steps if the end would miss the time that is given.

        Args:
            step: Steps that are done.
            pause: Seconds that pictures and checkpoints of this step took: those of the last will take as long.
        """
        if self.minutes is None or self.finished(step):
            return
        budget, now = 60 * self.minutes, time.perf_counter()
        self._longest_pause, self._paused = max(self._longest_pause, pause), self._paused + pause
        passed, left = now - self._since, budget - self.elapsed - self._longest_pause
        seconds = (passed - self._paused) / (step - self._first)
        seconds /= 1 - min(PAUSES, self._paused / passed if passed > 0 else 0.0)
        misses = abs((self.known - step) * seconds - left) > TOLERANCE * budget
        if misses and passed > SEEN * budget:
            self.steps = step + max(1, int(left / seconds))

    def has_time_for_a_picture(self, step: int) -> bool:
        """Whether a picture may be drawn after a step: the last one always is, and the first."""
        if self.minutes is None or self.finished(step):
            return True
        return self._paused + self._longest_pause <= PAUSES * (time.perf_counter() - self._since) or self._paused == 0

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps; None without a time."""
        return None if self.minutes is None else {"minutes": self.minutes, "elapsed": self.elapsed, "steps": self.steps}

    def take_up(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint: with its number of steps if it was for the same time.

        Args:
            state: From `state`; None if the training had no such time so far.
        """
        if self.minutes is not None and state is not None:
            self._spent = float(state["elapsed"])
            self.steps = int(state["steps"]) if float(state["minutes"]) == self.minutes else None


def check_period(name: str, period: Any) -> None:
    """Raise ValueError unless a period is a whole number of steps, a share of the training, or null."""
    share = is_number(period) and 0 < period < 1
    if not (period is None or share or (is_whole(period) and period >= 0)):
        raise ValueError(
            f"Trainer needs {name} to be a whole number of steps, a share of the training below 1, or null, got "
            f"{period!r}."
        )


def seconds_per_update(
    update: Callable[[int], None], step: int, keep: tuple[nn.Module, Optimizer, KeepsLoss], longest: float
) -> float:
    """Time of one update, from a few whose effect is undone; the first is not counted.

    Args:
        update: Makes update number k, and waits until the device has done it.
        step: Number of the first.
        keep: What updates change.
        longest: Seconds after which no other is begun.
    """
    module, optimizer, loss = keep
    before = deepcopy((module.state_dict(), optimizer.state_dict(), loss.loss_state()))
    update(step)
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < longest:
        count += 1
        update(step + count)
    seconds = (time.perf_counter() - began) / count
    module.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    loss.load_loss_state(before[2])
    return seconds


def _forecast(minutes: float, step: int, steps: int, seconds_per_step: float) -> str:
    """What to expect of a budget, in one sentence.

    Raises:
        ValueError: If no training fits into it.
    """
    more = " more" if step else ""
    text = f"budget of {duration(minutes)}: {_short(seconds_per_step)} a step, so {steps - step:,}{more} steps"
    if steps >= ENOUGH:
        return f"{text}."
    needed = duration(float(f"{ENOUGH * seconds_per_step / 60:.2g}"))
    advice = f"a network needs {ENOUGH} to begin to learn, which take {needed}: give more time, or a smaller model"
    if steps < FEWEST:
        raise ValueError(f"{text}; {advice}.")
    return f"{text}, too few for good samples: {advice}."


def duration(minutes: float) -> str:
    """A length of time for people: 20 s, 10 min, 2.5 h."""
    if minutes < 1:
        return f"{60 * minutes:.3g} s"
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
