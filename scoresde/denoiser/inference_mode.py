"""What needs gradients, where torch.inference_mode has switched autograd off for good: in loops that only predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from scoresde.sde.levels import Level, Levels, Schedule

P = ParamSpec("P")
R = TypeVar("R")


def differentiates(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which leaves inference mode and works on clones of the tensors that were made in it.

    Raises:
        RuntimeError: If what it differentiates has parameters that were made in inference mode.
    """

    @wraps(function)
    def outside(*args: P.args, **named: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return _told(function, *args, **named)
        with torch.inference_mode(False), torch.no_grad():
            return _told(function, *args, **named)

    return outside


def _told(function: Callable[P, R], *args: Any, **named: Any) -> R:
    try:
        return function(*map(ordinary, args), **ordinary(named))
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise RuntimeError(
            f"{function.__qualname__} differentiates a model whose tensors were made in torch.inference_mode, which "
            f"keeps them from autograd for good: make or load it outside."
        ) from error


def ordinary(value: Any) -> Any:
    """Tensors of inference mode as ordinary ones, in levels, sequences and mappings too; anything else as it is."""
    if isinstance(value, Tensor):
        return _clone(value) if value.is_inference() else value
    if isinstance(value, Level):
        return _level(value)
    if isinstance(value, Mapping):
        return {key: ordinary(part) for key, part in value.items()}
    return type(value)(map(ordinary, value)) if type(value) in (tuple, list) else value


def _clone(value: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return value.clone()


def _level(level: Level) -> Level:
    if not level.time.is_inference() and not isinstance(level.alpha, Tensor):
        return level
    time, host_time = ordinary(level.time), ordinary(level.host_time)
    schedule, row = level.schedule, slice(level.index, level.index + 1)
    if schedule.like is None:
        return replace(level, time=time, host_time=host_time)
    if not schedule.levels.t.is_inference() and not schedule.like.is_inference():
        return level
    levels = schedule.levels[row]
    columns = (ordinary(column) for column in (levels.t, levels.alpha, levels.sigma, levels.lam))
    return Schedule(Levels(levels.sde, *columns), (time,), (host_time,), ordinary(schedule.like)).all[0]
