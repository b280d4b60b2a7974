"""Adaptive steps in which every sample of a batch has its own: the engine, which knows no process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.integrate.methods import Attempt, Field, Method, State, where

MAX_ATTEMPTS = 10_000
SMALLEST_STEP = 1e-10  # of the interval; a step rejected at this size will never be accepted
SAFETY, SHRINK = 0.9, 0.2
SIZES_PER_OCTAVE = 16  # step sizes are changed by powers of 2^(1/16)
COMPACT_BELOW = 0.75  # share of unfinished rows at which the finished ones are dropped


class Solution(NamedTuple):
    """What an adaptive solver found, and what it cost.

    Attributes:
        x: The result, (B, *).
        nfe: Network evaluations that each sample needed, (B,), the denoising one included.
        accepted, rejected: Steps of each sample, (B,).
    """

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


class AdditiveNoise(ABC):
    """Noise that is added to the first part of the state in every step, the same for every stage."""

    @abstractmethod
    def __call__(self, z: Tensor, z_to: Tensor) -> Tensor:
        """The noise from z to z_to, both (b,); shape of the first part."""

    @abstractmethod
    def update(self, z: Tensor, accept: Tensor, rejected: Tensor) -> Tensor:
        """Told which rows took the step asked for last, and where they are now; a number () for `reserve`."""

    @abstractmethod
    def reserve(self, number: int) -> None:
        """Told on the host what `update` returned."""

    @abstractmethod
    def select(self, keep: Tensor) -> None:
        """Go on with these of the rows in hand."""


@dataclass
class QuantityOfInterest:
    """A number that the end of the path gives, and what the errors of steps do to it: goal-oriented error control.

    Args:
        effect: (attempted step, h (b,)) -> two sizes (b,) of the change of that number by its error: one to decide, one
            to record.
        tolerance: Of the first by one step.
        error: (B,), to which `integrate` adds the second over each sample's accepted steps.
    """

    effect: Callable[[Attempt, Tensor], tuple[Tensor, Tensor]]
    tolerance: float
    error: Tensor

    def record(self, sample: Tensor, accept: Tensor, change: Tensor) -> None:
        self.error.index_add_(0, sample, torch.where(accept, change, 0).to(self.error.dtype))


class Integral(NamedTuple):
    """Result of `integrate`: the state at the end, and per sample (B,) its calls, accepted and rejected steps."""

    state: State
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


class Rows(NamedTuple):
    """What the samples in hand carry from one attempted step to the next, all (b,)."""

    sample: Tensor  # number in the whole batch
    z: Tensor
    step: Tensor
    error_before: Tensor  # of the last accepted step, for the step-size controller
    accepted: Tensor
    rejected: Tensor


def integrate(
    field: Field, state: State, start: float, end: float, method: Method, *, rtol: float, atol: float,
    controlled: Sequence[int] = (0,), noise: AdditiveNoise | None = None, quantity: QuantityOfInterest | None = None,
    failures: dict[int, str] | None = None, owner: str = "integrate",
) -> Integral:  # fmt: skip
    """Integrate every sample from start to end with its own steps.

        error ratio  r = max over controlled parts of rms(error / (atol + rtol max(|y|, |y'|))), the effect on the
                         quantity over its tolerance
        accepted if  r ≤ 1
        next step    h · 0.9 r^(−0.7/p) r_before^(0.4/p)       (Gustafsson's PI controller; 0.9 r^(−1/p) if rejected)

    No sample looks at another one. The host waits for the device once per attempted step. Differentiable by the state
    and by what `field` depends on, with the steps held fixed.

    Args:
        field: The right-hand side; never asked outside the interval.
        state: Parts (B, *), float32 or float64.
        start, end: In either order.
        method: A `Tableau`, or `Adams`.
        rtol, atol: Relative and absolute tolerance.
        controlled: Parts whose error decides.
        noise: Of a stochastic equation, for a pair whose only node is 1.
        quantity: Its error decides as well and is recorded; for pairs whose last node is 1.
        failures: Filled with one sentence per sample that cannot go on, which then ends with NaN and does not hold up
            the others; None raises.
        owner: Named in error messages.
    Raises:
        FloatingPointError: If the field returns NaN or infinity, or if steps become too small or too many.
    """
    batch, device = state[0].shape[0], state[0].device
    ones = torch.ones(batch, dtype=torch.float64, device=device)
    zeros = torch.zeros(batch, dtype=torch.long, device=device)
    first = abs(end - start) * method.first_steps
    rows = Rows(torch.arange(batch, device=device), start * ones, first * ones, ones, zeros, zeros)
    done, done_rows, whole, compactable = state, rows, field, True
    history = method.begin(field, rows.z, state)

    for attempt in range(MAX_ATTEMPTS):
        z_to = _next_time(rows, end)
        h = z_to - rows.z
        start_state = state if noise is None else (state[0] + noise(rows.z, z_to), *state[1:])
        tried = method.attempt(field, rows.z, h, start_state, history)
        with torch.no_grad():
            ratio = _error_ratio(tried.error, state, tried.state, controlled, rtol, atol)
            if quantity is not None:
                size, change = quantity.effect(tried, h)
                ratio = torch.maximum(ratio, size / quantity.tolerance)
            active = rows.z != end
            accept = active & (ratio <= 1)
            if quantity is not None:
                quantity.record(rows.sample, accept, change)
            rows = _controlled(rows, z_to, ratio, active, accept, tried.order, method.grow)
            unfinished, broken = active & (rows.z != end), active & ~torch.isfinite(ratio)
            stuck = unfinished & ((rows.step < SMALLEST_STEP * abs(end - start)) | (attempt == MAX_ATTEMPTS - 1))
            counts = [unfinished.sum(), (broken | stuck).sum()]
            if noise is not None:
                counts.append(noise.update(rows.z, accept, active & ~accept))
            left, failed, *number = torch.stack(counts).tolist()  # the one synchronisation
        if failed:
            attempted = field, rows, h, tried, f"rtol={rtol:g}, atol={atol:g}"
            if failures is None:
                raise _failure(owner, broken, stuck, *attempted)
            ended = broken | stuck
            for row in ended.nonzero():
                one = torch.zeros_like(ended).index_fill(0, row, True)
                failures[int(rows.sample[row])] = str(_failure(owner, broken & one, stuck & one, *attempted))
            # a state that was accepted stays, so that the field is not asked at NaN
            rows = rows._replace(z=torch.where(ended, end, rows.z), step=torch.where(ended, first, rows.step))
            unfinished, left = unfinished & ~ended, left - failed
        state = where(accept, tried.state, state)
        if left == 0:
            break
        if noise is not None:
            noise.reserve(*number)
        history = method.update(history, z_to, tried, accept)
        if compactable and left <= COMPACT_BELOW * len(rows.sample):
            keep = unfinished.sort(descending=True, stable=True).indices[:left]
            smaller = whole.select(rows.sample[keep])
            compactable = smaller is not None
            if smaller is not None:
                done, done_rows = _scattered(done, done_rows, state, rows)
                field, rows = smaller, Rows(*(column[keep] for column in rows))
                state, history = tuple(part[keep] for part in state), method.select(history, keep)
                if noise is not None:
                    noise.select(keep)
    state, rows = _scattered(done, done_rows, state, rows)
    if failures:
        lost = torch.tensor(list(failures), device=device)
        state = tuple(part.index_fill(0, lost, torch.nan) for part in state)
    nfe = 1 + method.calls * (rows.accepted + rows.rejected)
    return Integral(state, nfe, rows.accepted, rows.rejected)


def _next_time(rows: Rows, end: float) -> Tensor:
    """z after the step in hand; steps that all but reach the end are stretched to land on it."""
    gap = end - rows.z
    return torch.where(1.01 * rows.step >= gap.abs(), end, rows.z + torch.copysign(rows.step, gap))


def _error_ratio(
    error: State, state: State, state_to: State, controlled: Sequence[int], rtol: float, atol: float
) -> Tensor:
    ratios = []
    for part in controlled:
        size = torch.maximum(state[part].abs(), state_to[part].abs())
        relative = (error[part] / size.mul_(rtol).add_(atol))[:, None].flatten(1)
        ratios.append(torch.linalg.vector_norm(relative, dim=1).double() / relative.shape[1] ** 0.5)
    return ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax(0)


def _controlled(
    rows: Rows, z_to: Tensor, ratio: Tensor, active: Tensor, accept: Tensor, order: float | Tensor, grow: float
) -> Rows:
    """Move the accepted rows, and give every row its next step size."""
    size = ratio.clamp(min=1e-10)
    grown = SAFETY * size ** (-0.7 / order) * rows.error_before ** (0.4 / order)
    shrunk = (SAFETY * size ** (-1 / order)).clamp(max=1.0)
    factor = torch.where(accept, grown, shrunk).clamp(SHRINK, grow).log2()
    # by few factors, so that rounding errors, which depend on the batch, do not reach the steps
    factor = torch.exp2((SIZES_PER_OCTAVE * factor).round() / SIZES_PER_OCTAVE)
    return rows._replace(
        z=torch.where(accept, z_to, rows.z),
        step=torch.where(active, (z_to - rows.z).abs() * factor, rows.step),
        error_before=torch.where(accept, ratio.clamp(min=1e-4), rows.error_before),
        accepted=rows.accepted + accept,
        rejected=rows.rejected + (active & ~accept),
    )


def _scattered(done: State, done_rows: Rows, state: State, rows: Rows) -> tuple[State, Rows]:
    """The whole batch with the rows in hand written to their places."""
    if rows.sample.shape == done_rows.sample.shape:
        return state, rows
    index = rows.sample
    return (
        tuple(whole.index_copy(0, index, part) for whole, part in zip(done, state, strict=True)),
        Rows(*(whole.index_copy(0, index, part) for whole, part in zip(done_rows, rows, strict=True))),
    )


def _failure(
    owner: str, broken: Tensor, stuck: Tensor, field: Field, rows: Rows, h: Tensor, tried: Attempt, tolerances: str
) -> FloatingPointError:
    """What to say of the broken rows, or, where there are none, of the stuck ones."""
    if bool(broken.any()):
        row = int(broken.nonzero()[0])
        finite = [all(bool(torch.isfinite(part[row]).all()) for part in slope) for slope in tried.slopes]
        node = 1.0 if all(finite) else tried.nodes[finite.index(False)]
        return FloatingPointError(
            f"{owner} stopped at t = {_time_of(field, rows.z[row] + node * h[row])}: the denoiser returned NaN or "
            f"infinity for {_names(rows, broken)}. Check the model's weights and its output at that time."
        )
    row = int(stuck.nonzero()[0])
    return FloatingPointError(
        f"{owner} stopped at t = {_time_of(field, rows.z[row])} after {int(rows.accepted[row])} steps and "
        f"{int(rows.rejected[row])} rejected ones: {_names(rows, stuck)} cannot meet {tolerances} in "
        f"{tried.state[0].dtype}. Loosen rtol and atol, use float64, or check whether the model is continuous."
    )


def _time_of(field: Field, z: Tensor) -> str:
    return f"{float(field.coefficients(z.reshape(1, 1))[0]):.6g}"


def _names(rows: Rows, chosen: Tensor) -> str:
    samples = rows.sample[chosen].tolist()
    return f"sample {samples[0]}" if len(samples) == 1 else f"{len(samples)} samples, the first of them {samples[0]}"
