"""One step of an adaptive method with an error estimate: embedded Runge-Kutta pairs, and Adams with variable steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scoresde.sde import expand
from scoresde.sde.quadrature import gauss_legendre

State = tuple[Tensor, ...]  # parts with a common leading batch axis: (y,), or (y, log p)


@dataclass(frozen=True)
class Field:
    """The right-hand side of dy/dz = f(z, y), with whatever depends on z alone computed for all stages at once.

    Args:
        coefficients: z (stages, b) in float64 -> (m, stages, b), of which the first is shown in error messages.
        rate: (coefficients (m, b) of one stage, state) -> derivatives of the parts of the state.
        select: index (b,) of rows -> the field of these rows alone, or None if that is unknown: then rows that have
            finished stay in the batch, and what they return is ignored.
        inner: As rate, for stages that neither the new state nor the error estimate holds (b_i = e_i = 0): parts that
            the field does not depend on need no derivative there, and may have 0. None is rate.
    """

    coefficients: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor, State], State]
    select: Callable[[Tensor], Field | None] = lambda index: None
    inner: Callable[[Tensor, State], State] | None = None


class Attempt(NamedTuple):
    """A step that may be accepted.

    Attributes:
        state: The new state.
        error: Estimate of its error.
        slopes: At all stages, the last one at the end of the step.
        nodes: Where the stages are, in steps.
        at_end: The field's coefficients at the end of the step, (m, b).
        order: Of the error estimate: it is O(h^order); () or (b,).
    """

    state: State
    error: State
    slopes: list[State]
    nodes: tuple[float, ...]
    at_end: Tensor
    order: float | Tensor


class Method(Protocol):
    """What `integrate` asks of a method. A history is a tuple of states and tensors whose last axis or first is b.

    Attributes:
        calls: Field evaluations per attempted step.
        first_steps: The first step tried is this part of the interval.
        grow: Largest ratio of a step to the one before.
    """

    @property
    def calls(self) -> int: ...
    @property
    def first_steps(self) -> float: ...
    @property
    def grow(self) -> float: ...

    def begin(self, field: Field, z: Tensor, state: State) -> Any:
        """The history before the first step, at z (b,)."""

    def attempt(self, field: Field, z: Tensor, h: Tensor, state: State, history: Any) -> Attempt:
        """A step of every row from z by h, both (b,)."""

    def update(self, history: Any, z_to: Tensor, attempt: Attempt, accept: Tensor) -> Any:
        """The history after it, where `accept` (b,)."""

    def select(self, history: Any, keep: Tensor) -> Any:
        """The history of some rows."""


class Tableau(NamedTuple):
    """An embedded explicit Runge-Kutta pair.

        k_i = f(z + c_i h, y + h Σ_j a_ij k_j),    y' = y + h Σ_i b_i k_i,    error = h Σ_i e_i k_i = O(h^order)

    The last slope is also the first one of the next step: it is f(z', y') if the pair has first same as last, and
    otherwise close enough to keep the order (predict, evaluate, correct), so that no pair spends a call on it. That
    slope is the history.

    Attributes:
        order: Of the error estimate of one step.
        nodes: c_2, c_3, ...
        rows: a_2, a_3, ...
        weights: b.
        error: e.
    """

    order: float
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is f at the new state."""
        return self.nodes[-1] == 1 and self.weights == (*self.rows[-1], 0.0)

    @property
    def calls(self) -> int:
        return len(self.nodes)

    @property
    def first_steps(self) -> float:
        return 1 / 20

    @property
    def grow(self) -> float:
        return 10.0

    def begin(self, field: Field, z: Tensor, state: State) -> State:
        return field.rate(field.coefficients(z[None])[:, 0], state)

    def attempt(self, field: Field, z: Tensor, h: Tensor, state: State, history: State) -> Attempt:
        nodes = torch.tensor(self.nodes, dtype=torch.float64).to(z.device)[:, None]
        at = field.coefficients(torch.addcmul(z, nodes, h))
        slopes = [history]
        for i, row in enumerate(self.rows):
            stage = _advanced(state, h, row, slopes)
            last = i + 1 == len(self.rows)  # the next step begins with its slope
            idle = field.inner is not None and not last and self.weights[i + 1] == self.error[i + 1] == 0
            slopes.append((field.inner if idle else field.rate)(at[:, i], stage))  # type: ignore[misc]
        state_to = stage if self.first_same_as_last else _advanced(state, h, self.weights, slopes)
        error = tuple(_combined(self.error, slopes, part) * expand(h, y) for part, y in enumerate(state))
        return Attempt(state_to, error, slopes, (0.0, *self.nodes), at[:, -1], self.order)

    def update(self, history: State, z_to: Tensor, attempt: Attempt, accept: Tensor) -> State:
        return where(accept, attempt.slopes[-1], history)

    def select(self, history: State, keep: Tensor) -> State:
        return tuple(part[keep] for part in history)


class History(NamedTuple):
    """What Adams knows of a row: its last k times and slopes, the newest first, and how many of them are real.

    Attributes:
        z: (k, b).
        slopes: A state with parts (b, k, *).
        real: (b,), from 1 to k.
    """

    z: Tensor
    slopes: State
    real: Tensor


@dataclass(frozen=True)
class Adams:
    """Adams-Bashforth-Moulton with variable steps for every row, in the mode predict, evaluate, correct.

        predictor   y* = y + ∫ P,      P through the last p slopes, from z to z'
        slope       f* = f(z', y*)                                    the one call of a step
        corrector   y' = y + ∫ P',     P' through f* too
        error       the term of P' with its highest divided difference: the corrector of one order less

    f* is kept as the slope at z'. Starts with p = 1 and short steps, and grows to p = `order`. Where the field is
    smooth a step costs one call instead of the six of a Runge-Kutta pair of that order.

    Args:
        order: Largest p, at most 7; the error estimate is then O(h^(order + 1)).
    """

    order: int = 5
    calls: int = 1
    first_steps: float = 1 / 100
    grow: float = 2.0

    def begin(self, field: Field, z: Tensor, state: State) -> History:
        slope = field.rate(field.coefficients(z[None])[:, 0], state)
        slopes = tuple(torch.stack([part] * self.order, 1) for part in slope)
        return History(z.expand(self.order, -1), slopes, torch.ones_like(z, dtype=torch.long))

    def attempt(self, field: Field, z: Tensor, h: Tensor, state: State, history: History) -> Attempt:
        z_to, count = z + h, history.real
        weights = _terms(history.z, z, z_to, count).sum(0)
        (change,) = _weighted(weights[None], history.slopes)
        at = field.coefficients(z_to[None])[:, 0]
        slope = field.rate(at, tuple(map(torch.add, state, change)))
        terms = _terms(torch.cat([z_to[None], history.z]), z, z_to, count + 1)
        last = terms.gather(0, count.expand(1, len(terms), -1))[0]
        change, error = _weighted(torch.stack([terms.sum(0), last]), _joined(slope, history.slopes))
        first = tuple(part[:, 0] for part in history.slopes)
        state_to = tuple(map(torch.add, state, change))
        return Attempt(state_to, error, [first, slope], (0.0, 1.0), at, count + 1.0)

    def update(self, history: History, z_to: Tensor, attempt: Attempt, accept: Tensor) -> History:
        moved = tuple(part[:, :-1] for part in _joined(attempt.slopes[-1], history.slopes))
        return History(
            torch.where(accept, torch.cat([z_to[None], history.z[:-1]]), history.z),
            where(accept, moved, history.slopes),
            torch.where(accept, (history.real + 1).clamp(max=self.order), history.real),
        )

    def select(self, history: History, keep: Tensor) -> History:
        return History(history.z[:, keep], tuple(part[keep] for part in history.slopes), history.real[keep])


def _terms(nodes: Tensor, z: Tensor, z_to: Tensor, count: Tensor) -> Tensor:
    """∫ from z to z_to of the terms of Newton's polynomial through slopes at the first `count` nodes, as their weights.

        P = Σ_m f[z_0 ... z_m] Π_{i<m} (u − z_i),     f[z_0 ... z_m] = Σ_j f_j / Π_{i≤m, i≠j} (z_j − z_i)

    Args:
        nodes: z_0, z_1, ..., (k, b), at most 8, of which those from `count` (b,) on do not matter.
        z, z_to: (b,).
    Returns:
        (k, k, b): the weight of f_j in term m at [m, j]; 0 for m ≥ count.
    """
    h, places = z_to - z, torch.arange(len(nodes), device=nodes.device)[:, None]
    real = places < count
    s = (nodes - z) / torch.where(h == 0, 1.0, h)  # in steps from z, so that numbers stay of order 1
    s = torch.where(real, s, -1e3 * (places + 1))  # apart from all others
    used = (places <= places.T)[..., None] & real[None]  # [j, m]: j ≤ m < count
    differences = s[:, None] - s + torch.eye(len(nodes), device=s.device, dtype=s.dtype)[..., None]
    products = differences.cumprod(1)  # [j, m]: Π_{i≤m, i≠j} (s_j − s_i)
    points, masses = (values.to(s) for values in gauss_legendre(4))
    basis = (points[:, None, None] - s[:-1]).cumprod(1)  # [point, m − 1]: Π_{i<m} (u − s_i)
    integrals = torch.cat([torch.ones_like(s[:1]), torch.einsum("p,pmb->mb", masses, basis)])
    return torch.where(used, h * integrals / products, 0.0).transpose(0, 1)


def _weighted(weights: Tensor, slopes: State) -> tuple[State, ...]:
    """Σ_j w_j f_j for one or more sets of weights (n, k, b): n states."""
    sums = [torch.bmm(weights.permute(2, 0, 1).to(f.dtype), f.flatten(2)).unflatten(2, f.shape[2:]) for f in slopes]
    return tuple(tuple(part[:, index] for part in sums) for index in range(len(weights)))


def _joined(slope: State, slopes: State) -> State:
    return tuple(torch.cat([new[:, None], old], 1) for new, old in zip(slope, slopes, strict=True))


def where(accept: Tensor, new: State, old: State) -> State:
    """The rows of `new` where accept (b,), those of `old` elsewhere."""
    return tuple(torch.where(accept.reshape(-1, *[1] * (b.ndim - 1)), a, b) for a, b in zip(new, old, strict=True))


def _advanced(state: State, h: Tensor, weights: Sequence[float], stages: list[State]) -> State:
    """y + h Σ_i w_i k_i."""
    return tuple(torch.addcmul(y, expand(h, y), _combined(weights, stages, part)) for part, y in enumerate(state))


def _combined(weights: Sequence[float], stages: list[State], part: int) -> Tensor:
    (weight, first), *rest = [(w, k[part]) for w, k in zip(weights, stages, strict=False) if w]
    total = weight * first
    for weight, slope in rest:
        total = total.add_(slope, alpha=weight)
    return total
