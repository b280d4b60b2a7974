"""A measurement near x̂0, and the conditioning of a Gaussian on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.inverse.measurement import Measurement
from scoresde.inverse.operators import LinearOperator

LinearMap = Callable[[Tensor], Tensor]
ASYMMETRIC = 0.1  # |pᵀ M q| / √(pᵀ M p qᵀ M q) of directions that should have 0
MOST, CHEAP = 8, 64  # iterations of conjugate gradients by default: with the denoiser's Jacobian, and with A alone


class Linearised:
    """y = A(x0) + noise with A replaced by A(x̂0) + A' (x0 − x̂0); exact if A is linear.

    Args:
        measurement: y, A and the noise.
        x0: x̂0, (B, *shape).
        through: Whether what follows is to be differentiated by x̂0.

    Attributes:
        residual: y − A(x̂0), (B, *measured), 0 where nothing is observed.
    """

    def __init__(self, measurement: Measurement, x0: Tensor, through: bool) -> None:
        self._operator, self._law, self._through = measurement.operator, measurement.noise, through
        check_fit(measurement, x0)
        self._x0 = x0 if through else x0.detach()
        if isinstance(self._operator, LinearOperator):
            self._clean = self._operator(self._x0)
        else:
            with torch.enable_grad():
                self._x0 = x0 if through else self._x0.requires_grad_()
                self._clean = self._operator(self._x0)
        self._seen_clean = self._clean if through else self._clean.detach()
        self.residual = self._seen(measurement.y.to(self._seen_clean) - self._seen_clean)

    def times(self, v: Tensor) -> Tensor:
        """A' v: (B, *shape) -> (B, *measured); of a function A, the derivative of uᵀA' by u."""
        if isinstance(self._operator, LinearOperator):
            return self._operator(v)
        with torch.enable_grad():
            u = torch.zeros_like(self._clean).requires_grad_()
            row = torch.autograd.grad(self._clean, self._x0, u, create_graph=True)[0]
            return torch.autograd.grad(row, u, v, create_graph=self._through, retain_graph=True)[0]

    def adjoint(self, u: Tensor) -> Tensor:
        """A'ᵀ u: (B, *measured) -> (B, *shape)."""
        if isinstance(self._operator, LinearOperator):
            return self._operator.adjoint(u)
        return torch.autograd.grad(self._clean, self._x0, u, create_graph=self._through, retain_graph=True)[0]

    def noise(self, u: Tensor) -> Tensor:
        """Σ_y u, (B, *measured)."""
        return self._seen(self._law.covariance_times(u, self._seen_clean))

    def conditioned(self, covariance: LinearMap, iterations: int | None, tolerance: float, most: int = MOST) -> Tensor:
        """C A'ᵀ (A' C A'ᵀ + Σ_y)⁻¹ (y − A(x̂0)), what y moves a Gaussian N(x̂0, C) by; (B, *shape).

        Args:
            covariance: v -> C v, symmetric.
            iterations: Of conjugate gradients, one product with C each; None: as many as y has entries, at
                most `most`.
            tolerance: Where they stop, of ‖y − A(x̂0)‖, sample by sample.
        """

        def system(u: Tensor) -> tuple[Tensor, Tensor]:
            moved = covariance(self.adjoint(u))
            return self._seen(self.times(moved)) + self.noise(u), moved

        iterations = iterations or min(self.residual[0].numel(), most)
        return conjugate_gradients(system, self.residual, iterations, tolerance, wait=self._through)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A' (B, m, d) and Σ_y (B, m, m), in float64."""
        basis = [self._seen(row) for row in _basis(self.residual)]
        return _columns([self.adjoint(u) for u in basis]).mT, _columns([self.noise(u) for u in basis])

    def _seen(self, u: Tensor) -> Tensor:
        observed = self._operator.observed
        return u if observed is None else torch.where(observed, u, 0)


def conjugate_gradients(
    system: Callable[[Tensor], tuple[Tensor, Tensor]], b: Tensor, iterations: int, tolerance: float, wait: bool = True
) -> Tensor:
    """F M⁻¹ b for a symmetric M ≥ 0 and a linear F of every sample, by Hestenes and Stiefel's iteration.

    Samples do not see each other: each has its own step sizes, and stops at ‖b − M u‖ ≤ tolerance ‖b‖, or at a
    direction where M is not positive, or where it is not symmetric: two directions p, q with pᵀ M q ≠ 0, as the
    Jacobian of a network gives them. The loop ends early where looking costs nothing, on the CPU.

    Args:
        system: u -> (M u, F u).
        b: (B, *).
        iterations: At most.
        tolerance: Relative; not below rounding.
        wait: Whether to take all iterations.
    """
    tolerance = max(tolerance, 4 * torch.finfo(b.dtype).eps)
    rest = direction = b
    square = _dot(rest, rest)
    least = tolerance**2 * square
    going, before, curved = square > 0, direction, torch.zeros_like(square)
    total: Tensor | None = None
    for _ in range(iterations):
        going = going & (square > least)
        if not wait and b.device.type == "cpu" and total is not None and not bool(going.any()):
            break
        applied, image = system(direction)
        curvature = _dot(direction, applied)
        mixed = _dot(before, applied).square() > ASYMMETRIC**2 * curved * curvature  # 0 if M is symmetric
        going = going & (curvature > 0) & ~((curved > 0) & mixed)
        size = torch.where(going, square / torch.where(going, curvature, 1), 0)
        step = size.reshape(-1, *[1] * (image.ndim - 1)) * image
        total = step if total is None else total + step
        rest = rest - size * applied
        latest = _dot(rest, rest)
        ratio = torch.where(going, latest / torch.where(going, square, 1), 0)
        before, curved, square, direction = direction, curvature, latest, rest + ratio * direction
    assert total is not None
    return total


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Per sample, (B, 1, ..., 1)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def _basis(like: Tensor) -> list[Tensor]:
    """Unit vectors, each for the whole batch."""
    entries = like[0].numel()
    one = torch.eye(entries, dtype=like.dtype, device=like.device).reshape(entries, *like.shape[1:])
    return [row.expand_as(like) for row in one]


def _columns(images: list[Tensor]) -> Tensor:
    return torch.stack([image.flatten(1).double() for image in images], -1)


def check_fit(measurement: Measurement, x0: Tensor) -> None:
    """Raise ValueError unless there is one y for all samples x0, or one for each, of the operator's shape."""
    shape = tuple(measurement.operator.shape)
    if x0.shape[1:] != shape or len(measurement.y) not in (1, len(x0)):
        raise ValueError(
            f"A measurement of {len(measurement.y)} events of shape {shape} needs as many samples of that shape, "
            f"or one y for all; got samples of shape {tuple(x0.shape)}."
        )
