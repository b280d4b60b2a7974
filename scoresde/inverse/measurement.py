"""Measurements y = A(x0) + noise, and laws of the noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.inverse.operators import Operator


class NoiseLaw(nn.Module, ABC):
    """p(y | A x0), entry by entry or with correlations.

    Methods that approximate p(y | x_t) by a Gaussian ask for `covariance_times`, the others for `log_prob`.
    """

    @abstractmethod
    def log_prob(self, y: Tensor, clean: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(y | A x0 = clean), (B,), over the observed entries; differentiable in `clean`."""

    @abstractmethod
    def covariance_times(self, vector: Tensor, clean: Tensor) -> Tensor:
        """Cov[y | A x0 = clean] vector, both (B, *measured)."""

    @abstractmethod
    def sample(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """y, in the shape of `clean`."""


class GaussianNoise(NoiseLaw):
    """y = A x0 + n, n ~ N(0, std²), or N(0, cov) over the flattened measurement.

    Args:
        std: Standard deviation: a number, or a tensor that broadcasts against y. 0 is an exact measurement.
        cov: (m, m), in place of `std`.
    """

    std: Tensor | None
    cov: Tensor | None

    def __init__(self, std: Tensor | float | None = None, cov: Tensor | None = None) -> None:
        super().__init__()
        if (std is None) == (cov is None):
            raise ValueError("GaussianNoise needs either std or cov.")
        std = None if std is None else torch.as_tensor(std, dtype=torch.float64)
        if std is not None and not bool((std >= 0).all() & torch.isfinite(std).all()):
            raise ValueError(f"GaussianNoise needs a finite std >= 0, got {float(std.min()):g}.")
        self.register_buffer("std", std)
        self.register_buffer("cov", None if cov is None else _positive_definite(cov))

    def log_prob(self, y: Tensor, clean: Tensor, observed: Tensor | None = None) -> Tensor:
        residual = y - clean
        if self.cov is not None:
            factor = torch.linalg.cholesky(self.cov.to(residual))
            z = torch.linalg.solve_triangular(factor, residual.flatten(1).T, upper=False)
            log_norm = factor.diagonal().log().sum() + 0.5 * len(factor) * math.log(2 * math.pi)
            return -0.5 * z.square().sum(0) - log_norm
        assert self.std is not None
        std = self.std.to(residual)
        each = -0.5 * (residual / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        return (each if observed is None else torch.where(observed, each, 0)).flatten(1).sum(1)

    def covariance_times(self, vector: Tensor, clean: Tensor) -> Tensor:
        if self.cov is not None:
            return (vector.flatten(1) @ self.cov.to(vector)).reshape(vector.shape)
        assert self.std is not None
        return self.std.to(vector).square() * vector

    def sample(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        if self.cov is None:
            assert self.std is not None
            return clean + self.std.to(z) * z
        factor = torch.linalg.cholesky(self.cov.to(z))
        return clean + (z.flatten(1) @ factor.T).reshape(clean.shape)


class Measurement(nn.Module):
    """What was seen of each sample: y = A(x0) + noise.

    Args:
        operator: A.
        y: (B, *measured), one per sample, or (1, *measured) for all samples.
        noise: Law of the noise; a number is the std of Gaussian noise.
    """

    y: Tensor

    def __init__(self, operator: Operator, y: Tensor, noise: NoiseLaw | float) -> None:
        super().__init__()
        self.operator = operator
        self.noise = noise if isinstance(noise, NoiseLaw) else GaussianNoise(noise)
        y = torch.as_tensor(y)
        with torch.no_grad():
            expected = operator(
                y.new_zeros((1, *operator.shape)) if y.is_floating_point() else torch.zeros(1, *operator.shape)
            ).shape[1:]
        if y.shape[1:] != expected or not bool(torch.isfinite(y).all()):
            raise ValueError(
                f"Measurement needs a finite y of shape (B, {', '.join(map(str, expected))}), one per sample or B = 1, "
                f"for a {type(operator).__name__} of events of shape {operator.shape}, got {tuple(y.shape)}."
            )
        self.register_buffer("y", y)

    def log_likelihood(self, x0: Tensor) -> Tensor:
        """log p(y | x0), (B,)."""
        clean = self.operator(x0)
        return self.noise.log_prob(self.y.to(clean), clean, self.operator.observed)

    def residual(self, x0: Tensor) -> Tensor:
        """y − A(x0), (B, *measured)."""
        clean = self.operator(x0)
        return self.y.to(clean) - clean

    def select(self, index: Tensor, batch: int) -> Measurement:
        """The measurements of some rows of a batch."""
        y = self.y[index.to(self.y.device)] if len(self.y) == batch and batch > 1 else self.y
        return Measurement(self.operator.select(index, batch), y, self.noise)


def _positive_definite(cov: Any) -> Tensor:
    cov = torch.as_tensor(cov, dtype=torch.float64)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or not torch.allclose(cov, cov.T, rtol=1e-6, atol=1e-12):
        raise ValueError(f"GaussianNoise needs a symmetric cov (m, m), got shape {tuple(cov.shape)}.")
    if not bool((torch.linalg.eigvalsh(cov) > 0).all()):
        raise ValueError("GaussianNoise needs a positive-definite cov, got one with a variance of 0 or less.")
    return cov
