"""A linear measurement seen along orthogonal directions of the event, where it is one number and one noise each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.inverse.decomposed import decomposed
from scoresde.inverse.measurement import GaussianNoise, Measurement
from scoresde.inverse.operators import SMALL, KnowsSingularValues, LinearOperator, Mask, Matrix
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Level


@dataclass(frozen=True, eq=False)
class Coordinates:
    """c = Vᵀ x0 of A = U S Vᵀ: what y says of every coordinate by itself.

        value = Uᵀ y / s = c + std n,      std = σ_y / s,      n ~ N(0, 1)         where known, s > 0

    Args:
        operator: Has V.
        value: (B, *shape) or (1, *shape), as many as entries of an event; 0 where nothing is known.
        std: Broadcasts against it; 0 for an exact measurement.
        known: Whether y says something of a coordinate; broadcasts against `value`.
    """

    operator: KnowsSingularValues
    value: Tensor
    std: Tensor
    known: Tensor

    @classmethod
    def of(cls, owner: object, measurement: Measurement, x: Tensor) -> Coordinates:
        """For states x (B, *shape), in their dtype and on their device.

        Raises:
            ValueError: If the states are no events of the operator, or not one for each y.
        """
        check_states(owner, measurement, x)
        return cls.found(measurement, x)

    @classmethod
    def found(cls, measurement: Measurement, like: Tensor) -> Coordinates:
        """In the dtype and on the device of `like`."""
        operator, y, std = _whitened(measurement, like)
        s = operator.singular_values(like)
        known = s > max(SMALL, 10 * torch.finfo(s.dtype).eps) * s.max()
        s = torch.where(known, s, 1)
        value = torch.where(known, operator.measurement_coordinates(y.to(like)) / s, 0)
        parts = value, torch.where(known, std.to(like) / s, 0), known
        return cls(operator, *(part.reshape(-1, *operator.shape) for part in parts))

    def along(self, x: Tensor) -> Tensor:
        """c = Vᵀ x, (B, *shape)."""
        return self.operator.event_coordinates(x).reshape(x.shape)

    def event(self, c: Tensor) -> Tensor:
        """x = V c, (B, *shape)."""
        return self.operator.event(c.flatten(1))

    def rows_along(self, rows: Tensor) -> Tensor:
        """Vᵀ r for rows r (B, n, d) of flattened events."""
        return self.along(rows.reshape(-1, *self.operator.shape)).reshape(rows.shape)

    def put(self, x: Tensor, c: Tensor, known: Tensor | None = None) -> Tensor:
        """x (B, *shape) with coordinates c where known."""
        return self.event(torch.where(self.known if known is None else known, c, self.along(x)))

    def noised(self, x: Tensor, level: Level, noise: NoiseSource) -> Tensor:
        """x (B, *shape) at a level, with its known part drawn anew.

            c = α value + √(σ² − α² std²) z        where known and α std ≤ σ        (σ² in all, given x0)

        Coordinates noisier than the level are left as they are: what y says of them came in at an earlier level.
        """
        std, z = level.alpha * self.std, fresh(noise, level)
        rest = (level.sigma**2 - std.square()).clamp_min(0).sqrt()
        c = level.alpha * self.value + (0 if z is None else rest * self.along(z))
        return self.put(x, c, self.known & (std <= level.sigma))


def fresh(noise: NoiseSource, level: Level) -> Tensor | None:
    """A fresh draw of standard normals at a level; None, and nothing is drawn, at the number 0."""
    if isinstance(level.sigma, float) and level.sigma == 0:
        return None
    return noise(level.host_time, level.host_time)


def check_states(owner: object, measurement: Measurement, x: Tensor) -> None:
    """Raise ValueError unless states x (B, *) are events of the operator, one for each y."""
    shape, rows = tuple(measurement.operator.shape), len(measurement.y)
    mask = measurement.operator.observed
    per_sample = 1 if mask is None or mask.ndim <= len(shape) else len(mask)
    if tuple(x.shape[1:]) != shape or rows not in (1, len(x)) or per_sample not in (1, len(x)):
        raise ValueError(
            f"{type(owner).__name__} needs states of shape (B, {', '.join(map(str, shape))}) with B that of y "
            f"({max(rows, per_sample)}), or one y for all, got {tuple(x.shape)}."
        )


def is_linear_gaussian(measurement: Measurement) -> bool:
    """Whether A is linear and the noise Gaussian."""
    return isinstance(measurement.operator, LinearOperator) and isinstance(measurement.noise, GaussianNoise)


def is_exact(measurement: Measurement) -> bool:
    """Whether y has no noise at all."""
    noise = measurement.noise
    return isinstance(noise, GaussianNoise) and noise.std is not None and not bool((noise.std > 0).any())


def check_linear_gaussian(owner: object, measurement: object, *, exact: bool = False) -> None:
    """Raise ValueError unless a measurement is of a linear operator with Gaussian noise, or `exact` without noise."""
    name = type(owner).__name__
    if not isinstance(measurement, Measurement):
        raise ValueError(f"{name} needs measurement to be a Measurement, got {measurement!r}.")
    if not isinstance(measurement.operator, LinearOperator):
        raise ValueError(
            f"{name} needs a linear operator, got {type(measurement.operator).__name__}: use DAPS, which needs only "
            f"the likelihood."
        )
    noise = measurement.noise
    if not isinstance(noise, GaussianNoise):
        raise ValueError(f"{name} needs Gaussian noise, got {type(noise).__name__}: use DAPS, which takes any.")
    if exact and not is_exact(measurement):
        raise ValueError(f"{name} needs a measurement without noise, std 0: use Replacement or DDRM for a noisy one.")


def _whitened(measurement: Measurement, x: Tensor) -> tuple[KnowsSingularValues, Tensor, Tensor]:
    """A, y and σ_y, one for all coordinates or (1, d); with noise that is unequal or correlated, L⁻¹ A, L⁻¹ y and 1."""
    operator, noise = measurement.operator, measurement.noise
    assert isinstance(operator, LinearOperator)
    assert isinstance(noise, GaussianNoise)
    y, std = measurement.y.to(x), noise.std
    if std is not None and std.numel() == 1:
        return decomposed(operator), y, std.reshape(())
    if std is not None and isinstance(operator, Mask):
        return operator, y, std.to(x).expand(torch.broadcast_shapes(std.shape, (1, *operator.shape))).flatten(1)
    matrix, flat = operator.matrix(x.new_zeros((), dtype=torch.float64)), y.double().flatten(1)
    if std is not None:
        if (std.ndim == y.ndim and len(std) > 1) or not bool((std > 0).all()):
            raise ValueError("A std of its own for each sample, or one of 0 beside others, needs a Mask as operator.")
        std = std.to(matrix).expand(1, *y.shape[1:]).flatten()
        matrix, flat = matrix / std[:, None], flat / std
    else:
        assert noise.cov is not None
        factor = torch.linalg.cholesky(noise.cov.to(matrix))
        matrix = torch.linalg.solve_triangular(factor, matrix, upper=False)
        flat = torch.linalg.solve_triangular(factor, flat.T, upper=False).T
    return decomposed(Matrix(matrix, operator.shape)), flat, torch.ones(())
