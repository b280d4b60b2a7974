"""Twisting functions: p(y | x_t) under the Gaussian with the moments of p(x0 | x_t), and the step that they guide."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.inverse.krylov import LinearMap, matrix_function
from scoresde.inverse.linearised import Linearised
from scoresde.inverse.measurement import GaussianNoise, Measurement
from scoresde.inverse.operators import LinearOperator
from scoresde.inverse.posterior_denoiser import Estimate
from scoresde.sde.clock import last_signal, nearest_signal
from scoresde.sde.levels import Interval, Level


class Moments(NamedTuple):
    """Of x0 and y given x_t, for b particles and the m observed entries of y.

    Attributes:
        x0: x̂0, (b, *shape).
        residual: y − A(x̂0), (b, m).
        cross: A C, (b, m, *shape).
        noise, cov: Σ_y and S = A C Aᵀ + Σ_y, (b, m, m).
        log_twist: log p̃(y | x_t) = log N(y; A x̂0, S), (b,).
    """

    x0: Tensor
    residual: Tensor
    cross: Tensor
    noise: Tensor
    cov: Tensor
    log_twist: Tensor


class Twist:
    """What b particles are told by their measurement.

    Args:
        denoiser: The prior.
        measurement: Of these particles, or one for all.
        isotropic: Whether C = r² I, r² = σ²/(α² + σ²), in place of σ²/α Jᵀ.
        iterations: Products with C for a root of it.
    """

    def __init__(self, denoiser: Denoiser, measurement: Measurement, isotropic: bool, iterations: int) -> None:
        self.denoiser, self.measurement, self.iterations = denoiser, measurement, iterations
        self.isotropic, self.last = isotropic, last_signal(denoiser.sde)
        observed = measurement.operator.observed
        self.entries: Tensor | None = None  # of y that are observed; None: all
        if observed is not None and (observed.ndim < measurement.y.ndim or len(observed) == 1):
            self.entries = observed.expand(1, *measurement.y.shape[1:]).flatten().nonzero()[:, 0]

    def moments(self, x: Tensor, level: Level) -> Moments:
        x0, covariance = self._asked(x, level)
        near = Linearised(self.measurement, x0, False)
        basis = self._basis(near.residual)
        cross = [covariance(near.adjoint(u)) for u in basis]
        noise = self._columns([near.noise(u) for u in basis])
        cov = _positive(self._columns([near.times(row) for row in cross])) + noise
        residual = self._seen(near.residual)
        return Moments(x0, residual, torch.stack(cross, 1), noise, cov, log_normal(residual, cov))

    def step(self, x: Tensor, known: Moments, interval: Interval, z: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """x_s ~ q = p(x_s | x_t, y), and the change of the log-weight without log p̃(y | x_s), for Gaussians.

            p(x_s | x_t)    = N(μ, P),    μ = g x̂0 + α_t σ_s²/(α_s σ_t²) x_t,    P = β̃ I + g² C,    g = α_s (1 − r)
            W = P^(−½) g C Aᵀ,    S_s = S − WᵀW                     Cov[y | x_s, x_t]
            y' = A x̂0 + Wᵀ z + S_s^½ n                              a draw of y with x_s' = μ + P^½ z
            x_s = x_s' + g C Aᵀ S⁻¹ (y − y')                        Matheron's rule
            p(x_s | x_t) / (q p̃(y | x_t)) = 1 / N(y; E[y | x_s, x_t], S_s)

        To noise 0, P = C and E[y | x_0, x_t] = A x_0.
        """
        t, s, removed = interval.t, interval.s, interval.removed
        gain, floor = s.alpha * removed, s.sigma**2 * removed  # g and β̃
        _, covariance = self._asked(x, t)

        def root(v: Tensor, power: float) -> Tensor:
            return matrix_function(covariance, v, self.iterations, lambda c: _power(floor + gain**2 * c, power))

        mean = gain * known.x0 + t.alpha / s.alpha * (s.sigma / t.sigma) ** 2 * x
        moved = root(z, 0.5)
        cross = gain * known.cross
        if interval.to_data:
            cov_s, told = known.noise, self._times(known.x0, moved)
        else:
            w = torch.stack([root(row, -0.5) for row in cross.unbind(1)], 1).flatten(2).double()
            cov_s = known.noise + _positive(known.cov - known.noise - w @ w.mT)
            told = _apply(w, z.flatten(1).double())
        surprise = known.residual - told - _apply(_root(cov_s), n.double())  # y − y'
        solved = torch.linalg.solve(_regular(known.cov), surprise)
        x_s = mean + moved + torch.einsum("bm,bm...->b...", solved.to(x), cross)
        if interval.to_data:
            return x_s, self._last(known, x_s)
        left = known.residual - told - _apply(w, torch.einsum("bm,bmd->bd", solved, w))  # y − E[y | x_s, x_t]
        return x_s, -log_normal(left, cov_s)

    def _last(self, known: Moments, x0: Tensor) -> Tensor:
        """log p(y | x0) − log N(y; A x0, Σ_y): 0 for a linear A and Gaussian noise."""
        if isinstance(self.measurement.operator, LinearOperator) and isinstance(self.measurement.noise, GaussianNoise):
            return x0.new_zeros(len(x0)).double()
        left = known.residual - self._times(known.x0, x0 - known.x0)
        return self.measurement.log_likelihood(x0).double() - log_normal(left, known.noise)

    def _asked(self, x: Tensor, level: Level) -> tuple[Tensor, LinearMap]:
        """x̂0, and v -> Cov[x0 | x_t] v."""
        x, level = nearest_signal(self.denoiser.sde, x, level, self.last)
        if self.isotropic:
            scale = level.sigma**2 / (level.alpha**2 + level.sigma**2)
            return self.denoiser.x0(x, level), lambda v: scale * v
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = self.denoiser.x0(leaf, level)
        none: dict[str, Any] = {}
        return x0.detach(), Estimate(leaf, x0, level, none, False).covariance

    def _times(self, x0: Tensor, v: Tensor) -> Tensor:
        """A' v, (b, m)."""
        return self._seen(Linearised(self.measurement, x0, False).times(v))

    def _seen(self, u: Tensor) -> Tensor:
        rows = u.flatten(1).double()
        return rows if self.entries is None else rows[:, self.entries]

    def _basis(self, like: Tensor) -> list[Tensor]:
        eye = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
        eye = eye if self.entries is None else eye[self.entries]
        return [row.reshape(like.shape[1:]).expand_as(like) for row in eye]

    def _columns(self, images: list[Tensor]) -> Tensor:
        return torch.stack([self._seen(image) for image in images], -1)


def log_normal(residual: Tensor, cov: Tensor) -> Tensor:
    """log N(residual; 0, cov), (b,); entries of variance 0 with nothing to say are left out."""
    factor = torch.linalg.cholesky_ex(_regular(cov)).L
    z = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
    heard = (cov.diagonal(dim1=-2, dim2=-1) > 0).sum(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (z.square().sum(-1) + heard * math.log(2 * math.pi)) - log_det


def _regular(cov: Tensor) -> Tensor:
    """Positive definite to rounding: silent entries get variance 1."""
    diagonal = cov.diagonal(dim1=-2, dim2=-1)
    rounding = 4 * torch.finfo(cov.dtype).eps * diagonal.amax(-1, keepdim=True)
    return cov + torch.diag_embed(torch.where(diagonal > 0, rounding, 1))


def _positive(matrix: Tensor) -> Tensor:
    """The nearest symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    return (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


def _power(value: Tensor, power: float) -> Tensor:
    return value**power if power > 0 else torch.where(value > 0, torch.where(value > 0, value, 1) ** power, 0)
