"""Gaussian data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.analytic.analytic_denoiser import AnalyticDenoiser, flat
from scoresde.sde import SDE


class GaussianDenoiser(AnalyticDenoiser):
    """Exact denoiser of data x0 ~ N(mean, diag(std²)) or N(mean, cov).

        E[x0 | x_t]   = mean + α Σ (α² Σ + σ² I)⁻¹ (x_t − α mean)
        Cov[x0 | x_t] = σ² Σ (α² Σ + σ² I)⁻¹

    A full covariance is diagonalised once; `std` then holds the standard deviations along the columns of `axes`.

    Args:
        sde: The forward process.
        mean, std: Floats or tensors that broadcast to the event shape; std positive, 1 if left out.
        cov: Full covariance (d, d) of the flattened event, in place of std.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor | None

    def __init__(
        self, sde: SDE, mean: float | Tensor = 0.0, std: float | Tensor | None = None, *, cov: Tensor | None = None
    ) -> None:
        super().__init__()
        self.sde = sde
        mean = torch.as_tensor(mean, dtype=torch.float64)
        if cov is not None and std is not None:
            raise ValueError("GaussianDenoiser needs std or cov, got both. Leave one of them out.")
        if cov is None:
            std, axes = torch.as_tensor(1.0 if std is None else std, dtype=torch.float64), None
            if not bool((std > 0).all()):
                raise ValueError(f"GaussianDenoiser needs std > 0, got {std.min().item():g}.")
        else:
            variances, axes = principal_axes("GaussianDenoiser", cov)
            mean, std = mean.expand(len(variances)).clone() if mean.ndim == 0 else mean, variances.sqrt()
            if mean.numel() != len(std):
                raise ValueError(
                    f"GaussianDenoiser needs a mean with one entry for each row of cov, got a mean of shape "
                    f"{tuple(mean.shape)} and a cov of shape {tuple(axes.shape)}. Pass both for the same event."
                )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("axes", axes)  # columns are eigenvectors; None when the covariance is diagonal

    @property
    def event_shape(self) -> torch.Size:
        """Shape of mean and std together; (1,) if both are floats, although those fit any event."""
        if self.axes is not None:
            return self.mean.shape
        return torch.broadcast_shapes(self.mean.shape, self.std.shape) or torch.Size([1])

    def rms(self) -> float:
        mean, std = self._moments(self.event_shape)
        return math.sqrt(float(mean.square().mean() + std.square().mean()))

    def finest_scale(self) -> float:
        return float(self.std.min())

    def flow(self, y: Tensor, s: Tensor) -> Tensor:
        """Exact probability-flow solution at noise 0 from y = x/α at noise s = σ/α; s () or (B, 1, ..., 1).

        x0 = mean + Σ^½ (Σ + s² I)^(−½) (y − mean)
        """
        z, std, s = self._principal(y, s)
        return self._event(std / (std.square() + s.square()).sqrt() * z, y, center=True)

    def _mean(self, y: Tensor, s: Tensor) -> Tensor:
        z, std, s = self._principal(y, s)
        return self._event(std.square() / (std.square() + s.square()) * z, y, center=True)

    def _pull(self, y: Tensor, s: Tensor) -> Tensor:
        z, std, s = self._principal(y, s)
        return self._event(z / (std.square() + s.square()), y)

    def _log_density(self, y: Tensor, s: Tensor) -> Tensor:
        z, std, s = self._principal(y, s)
        variance = std.square() + s.square()
        return -0.5 * (z.square() / variance + variance.log() + math.log(2 * math.pi)).sum(1)

    def _covariance(self, y: Tensor, s: Tensor) -> Tensor:
        variance = self._posterior_variance(y, s)
        if self.axes is None:
            return torch.diag_embed(variance)
        return (self.axes * variance[:, None]) @ self.axes.T

    def _mean_and_variance(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        variance = self._posterior_variance(y, s)
        variance = variance if self.axes is None else variance @ self.axes.T.square()
        return self._mean(y, s), variance.reshape(y.shape)

    def _draw(self, n: int, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        self._check_event(shape)
        z = torch.randn((n, *shape), generator=generator, dtype=torch.float64, device=self.mean.device)
        return self._event(self._moments(shape)[1] * z.flatten(1), z, center=True)

    def _posterior_variance(self, y: Tensor, s: Tensor) -> Tensor:
        """Eigenvalues of Cov[x0 | y], (B, d)."""
        z, std, s = self._principal(y, s)
        return (s.square() * std.square() / (std.square() + s.square())).expand_as(z)

    def _moments(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Mean and standard deviations of the flattened event, (d,)."""
        if self.axes is not None:
            return self.mean.flatten(), self.std
        return _fit(self.mean, shape), _fit(self.std, shape)

    def _principal(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y − mean along the axes (B, d), the standard deviations (d,), and s as () or (B, 1)."""
        mean, std = self._moments(y.shape[1:])
        z, s = flat(y, s)
        z = z - mean
        return z if self.axes is None else z @ self.axes, std, s

    def _event(self, z: Tensor, like: Tensor, *, center: bool = False) -> Tensor:
        """From principal axes back to events of the shape of `like`."""
        z = z if self.axes is None else z @ self.axes.T
        if center:
            z = z + self._moments(like.shape[1:])[0]
        return z.reshape(like.shape)

    def _check_event(self, shape: torch.Size) -> None:
        if self.axes is not None:
            super()._check_event(shape)
        for value in (self.mean, self.std):
            if value.numel() != math.prod(shape) and _broadcast(value.shape, shape) != shape:
                raise ValueError(
                    f"GaussianDenoiser needs events that its mean and std broadcast to, got events of shape "
                    f"{tuple(shape)} for parameters of shape {tuple(value.shape)}. Pass x of shape (B, *)."
                )


def principal_axes(owner: str, covs: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (*, d) and axes (*, d, d) of symmetric positive-definite matrices (*, d, d)."""
    covs = torch.as_tensor(covs, dtype=torch.float64)
    if covs.ndim < 2 or covs.shape[-1] != covs.shape[-2]:
        raise ValueError(f"{owner} needs square covariances (d, d), got shape {tuple(covs.shape)}.")
    if not torch.allclose(covs, covs.mT, rtol=1e-6, atol=1e-12):
        raise ValueError(f"{owner} needs symmetric covariances, got one that differs from its transpose.")
    variances, axes = torch.linalg.eigh(0.5 * (covs + covs.mT))
    if not bool((variances > 0).all()):
        raise ValueError(
            f"{owner} needs positive weights and positive-definite covariances, "
            f"got a variance of {variances.min().item():g}."
        )
    return variances, axes


def _fit(value: Tensor, shape: torch.Size) -> Tensor:
    return (value.reshape(shape) if value.numel() == math.prod(shape) else value.expand(shape)).flatten()


def _broadcast(first: torch.Size, second: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(first, second)
    except RuntimeError:
        return None
