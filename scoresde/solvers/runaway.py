"""Guidance that drives samples out of the data's range, or into NaN, is said to be the cause."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.guidance.guided import ClassifierGuided

PLAUSIBLE = 30.0  # up to here nothing is asked: ten times the range of data of unit size
FAR = 100.0  # times the largest value of the same run without guidance
UNAWARE = (
    "A log p(y | x_t) must know the noise at t: one of clean data is too sharp where x_t is noisy. For that take "
    "ReconstructionGuided or scoresde.inverse.MMPS, which fit every solver; else more steps, or a smaller scale."
)
ROUGH = "Its Gaussian for x0 does not suit the measurement: take scoresde.inverse.MMPS, more steps, or a smaller scale."


def plausible(denoiser: Denoiser, end: Tensor) -> Tensor:
    """Entry by entry, whether a result may stand: it is finite and, if the denoiser is guided, not large."""
    return torch.isfinite(end) if denoiser.unguided is denoiser else end.abs() <= PLAUSIBLE


def check_range(owner: object, denoiser: Denoiser, end: Tensor, again: Callable[[Denoiser], Tensor]) -> None:
    """`refuse_runaway`, if a guided denoiser led to values that are large."""
    if denoiser.unguided is not denoiser and not bool(plausible(denoiser, end).all()):
        refuse_runaway(owner, denoiser, end, again)


def refuse_runaway(owner: object, denoiser: Denoiser, end: Tensor, again: Callable[[Denoiser], Tensor]) -> None:
    """Raise FloatingPointError if the same run without guidance stays within a small part of the range of `end`.

    Args:
        owner: The solver.
        denoiser: The guided denoiser.
        end: What it led to, with some values that are large.
        again: The same run with another denoiser.
    """
    with torch.no_grad():
        largest, usual = float(end.abs().max()), float(again(denoiser.unguided).abs().max())
    if largest > FAR * usual:
        why = UNAWARE if isinstance(denoiser, ClassifierGuided) else ROUGH
        raise FloatingPointError(
            f"{type(owner).__name__} with {type(denoiser).__name__} ended at values up to {largest:.2g}, where the "
            f"same run without guidance stays within {usual:.2g}. {why}"
        )


def blame(denoiser: Denoiser, t: float) -> str:
    """Advice where a step is finite without guidance."""
    return (
        f"Without guidance this step is finite: the gradient of {type(denoiser).__name__} is not, at t = {t:.6g}. "
        f"Check its log-probability there: a norm or a square root has no gradient at 0."
    )
