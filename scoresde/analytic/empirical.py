"""A finite set of data: the denoiser that a network with unlimited capacity would learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from scoresde.analytic.analytic_denoiser import AnalyticDenoiser, Rowwise, blockwise, flat
from scoresde.sde import SDE

BLOCK_ENTRIES = 2**21  # entries of a temporary


class EmpiricalDenoiser(AnalyticDenoiser):
    """Exact denoiser of data that are N points, drawn with probabilities w_n: the ideal denoiser of a data set.

        p_t(x)        = Σ_n w_n N(x; α x_n, σ² I)
        E[x0 | x_t]   = Σ_n r_n x_n,   r = softmax_n(log w_n − ‖x_t − α x_n‖² / (2σ²))   (Karras et al. 2022, eq. 57)
        Cov[x0 | x_t] = Σ_n r_n (x_n − x̂0)(x_n − x̂0)ᵀ

    As σ → 0 it returns the nearest point: solvers that follow it reproduce the data. Sums over n are streamed, `chunk`
    points at a time and samples in blocks, so memory grows with neither N nor B beyond the data and the answer.
    Distances are differences summed in float64; ‖x‖² − 2 x·y + ‖y‖² would cancel for close points.

    Args:
        sde: The forward process.
        data: The points, (N, *).
        weights: Probabilities (N,), positive, normalised here; None is uniform.
        chunk: Number of points handled at once.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    data: Tensor
    weights: Tensor
    center: Tensor

    def __init__(self, sde: SDE, data: Tensor, *, weights: Tensor | None = None, chunk: int = 1024) -> None:
        super().__init__()
        self.sde, self.chunk = sde, chunk
        data = torch.as_tensor(data, dtype=torch.float64)
        weights = torch.ones(data.shape[:1]) if weights is None else torch.as_tensor(weights)
        if data.ndim < 2 or not len(data) or weights.shape != data.shape[:1]:
            raise ValueError(
                f"EmpiricalDenoiser needs data (N, *) and one weight for each point, "
                f"got {tuple(data.shape)} and {tuple(weights.shape)}. Pass vectors as (N, d), numbers as (N, 1)."
            )
        if not bool((weights > 0).all()) or chunk < 1:
            raise ValueError(
                f"EmpiricalDenoiser needs positive weights and chunk of at least 1, "
                f"got a weight of {weights.min().item():g} and chunk={chunk}. Leave out points of weight 0."
            )
        weights = weights.to(data)
        self.register_buffer("data", data)
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("center", data.flatten(1).mean(0), persistent=False)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.data.shape[1:]

    def rms(self) -> float:
        return math.sqrt(float(self.weights @ self.data.flatten(1).square().mean(1)))

    def finest_scale(self) -> float:
        """The distance between two different points, the smallest of those from 1,000 of them to all."""
        points = self.data.flatten(1)
        nearest = math.inf
        for some in points[:1000].split(max(1, BLOCK_ENTRIES // len(points))):
            distance = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
            nearest = min(nearest, float(torch.where(distance > 0, distance, math.inf).min()))
        return nearest if nearest < math.inf else self.rms() or 1.0

    def _mean(self, y: Tensor, s: Tensor) -> Tensor:
        return self._blockwise(self._posterior, y, s)[0].reshape(y.shape)

    def _pull(self, y: Tensor, s: Tensor) -> Tensor:
        return (y - self._mean(y, s)) / s.square()

    def _log_density(self, y: Tensor, s: Tensor) -> Tensor:
        _, lowest, total = self._blockwise(self._posterior, y, s)
        y, s = flat(y, s)
        log_norm = y.shape[1] * (0.5 * math.log(2 * math.pi) + s.log())
        return (total.log() - 0.5 * lowest / s.square() - log_norm).squeeze(1)

    def _covariance(self, y: Tensor, s: Tensor) -> Tensor:
        entries = self.data[0].numel()

        def covariance(y: Tensor, s: Tensor) -> tuple[Tensor]:
            mean, lowest, total = self._posterior(y, s)
            result = y.new_zeros(len(y), entries, entries)
            for points, energy in self._energies(y, s):
                offset = points - mean[:, None]
                result = result + (_boltzmann(energy - lowest, s)[..., None] * offset).mT @ offset
            return (result / total[..., None],)

        return self._blockwise(covariance, y, s, width=entries)[0]

    def _mean_and_variance(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        def moments(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            mean, lowest, total = self._posterior(y, s)
            second = torch.zeros_like(y)
            for points, energy in self._energies(y, s):
                second = second + _boltzmann(energy - lowest, s) @ (points - self.center).square()
            return mean, (second / total - (mean - self.center).square()).clamp_min(0)

        mean, variance = self._blockwise(moments, y, s)
        return mean.reshape(y.shape), variance.reshape(y.shape)

    def _draw(self, n: int, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        self._check_event(shape)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.data[k].reshape(n, *shape)

    def _posterior(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x̂0 (b, d), the lowest energy and Σ_n exp(−(energy_n − lowest) / (2 s²)), both (b, 1)."""
        lowest = torch.full_like(y[:, :1], math.inf)
        total, weighted = torch.zeros_like(lowest), torch.zeros_like(y)
        for points, energy in self._energies(y, s):
            previous, lowest = lowest, torch.minimum(lowest, energy.detach().amin(1, keepdim=True))
            kept, probability = _boltzmann(previous - lowest, s), _boltzmann(energy - lowest, s)
            total = kept * total + probability.sum(1, keepdim=True)
            weighted = kept * weighted + probability @ points
        return weighted / total, lowest, total

    def _energies(self, y: Tensor, s: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of points (n, d) and their ‖y − x_n‖² − 2 s² log w_n, (b, n)."""
        for points, weights in zip(self.data.flatten(1).split(self.chunk), self.weights.split(self.chunk), strict=True):
            yield points, _SquaredDistance.apply(y, points) - 2 * s.square() * weights.log()

    def _blockwise(self, function: Rowwise, y: Tensor, s: Tensor, *, width: int = 1) -> tuple[Tensor, ...]:
        """function(y, s) with temporaries of (rows, chunk, width)."""
        return blockwise(function, y, s, rows=BLOCK_ENTRIES // (min(self.chunk, len(self.data)) * width))


def _boltzmann(energy: Tensor, s: Tensor) -> Tensor:
    """exp(−energy / (2 s²)) of energies ≥ 0; as s → 0 the indicator of energy 0."""
    return torch.exp(-energy / (2 * s.square()).clamp_min(torch.finfo(torch.float64).tiny))


class _SquaredDistance(torch.autograd.Function):
    """‖y_b − x_n‖², (b, n), without a (b, n, d) temporary and with derivatives of any order in y."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, points: Tensor) -> Tensor:
        return torch.cdist(y, points, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, points = ctx.saved_tensors
        return 2 * (grad.sum(1, keepdim=True) * y - grad @ points), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        y, points = ctx.saved_tensors
        return 2 * ((tangent * y).sum(1, keepdim=True) - tangent @ points.mT)
