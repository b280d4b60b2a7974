"""The Wiener filter: the best linear denoiser of the data, and a network for what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_numbers, check_sizes
from scoresde.models.karhunen_loeve import DENSE_LIMIT, karhunen_loeve, rotate, rotate_back

TARGETS = ("edm", "epsilon", "data")
LARGEST_LEVEL = 1e6  # of σ/α, as in the noise label


class WienerFilter(nn.Module):
    """Preconditioning by the mean μ and the covariance Σ_k λ_k v_k v_kᵀ of the data, around a network.

        x̂0 = μ + Σ_k v_k [λ_k / (λ_k + s²) y_k + s √λ_k / √(λ_k + s²) N_k],      y_k = v_kᵀ (x/α − μ),   s = σ/α
        N  = the network's output for the input Σ_k v_k y_k / √(λ_k + s²)

    The first term is the Wiener filter, the best linear denoiser, and the best of all for Gaussian data; it has full
    rank however narrow the network. In and out, the network sees unit variance in every direction: this is
    `scoresde.EDM` with one sigma_data per direction. What is computed here is F, of which a parameterization makes x̂0:

        F_k = g_k z_k + o_k N_k + terms of μ,    z = x/√(α² d² + σ²),    d the parameterization's sigma_data
        edm      g = s (λ − d²) / (d (λ + s²))            o = √λ √(s² + d²) / (d √(λ + s²))
        epsilon  g = s √(s² + d²) / (λ + s²)              o = −√λ / √(λ + s²)
        data     g = λ √(s² + d²) / (λ + s²)              o = s √λ / √(λ + s²)

    `fit` takes μ, v and λ from training data; until then the covariance is d² I, and edm has g = 0 and o = 1. They are
    constants of the network, saved with its weights.

    Args:
        shape: Event shape of the data.
        target: What F is: "edm", "epsilon" or "data". The noise label must be ¼ log s.
        data_scale: d.

    References:
        Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series", 1949.
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    mean: Tensor
    mix: Tensor
    variance: Tensor

    def __init__(self, shape: Sequence[int], target: str = "edm", data_scale: float = 1.0) -> None:
        super().__init__()
        self.shape = check_sizes("WienerFilter", "shape", shape)
        check_choice("WienerFilter", "target", target, TARGETS)
        check_numbers("WienerFilter", "0 < data_scale <= 1e9", data_scale=data_scale)
        self.target, self.data_scale = target, float(data_scale)
        entries = math.prod(self.shape)
        view = (entries,) if entries <= DENSE_LIMIT else self.shape
        channels, axes = view[0], view[1:]
        identity = torch.eye(channels).reshape(channels, channels, *[1] * len(axes))
        self.register_buffer("mean", torch.zeros(view))
        self.register_buffer("mix", identity.repeat(1, 1, *axes))
        self.register_buffer("variance", torch.full(view, self.data_scale**2))
        for axis, size in enumerate(axes):
            self.register_buffer(f"factor{axis}", torch.eye(size))

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """One matrix of directions per axis, see `Expansion`."""
        return tuple(self.get_buffer(f"factor{axis}") for axis in range(self.mean.ndim - 1))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take mean, directions and variances from training data (N, *shape) as the model sees them."""
        found = karhunen_loeve(x)
        own = (self.mean, *self.factors, self.mix, self.variance)
        for buffer, value in zip(own, (found.mean, *found.factors, found.mix, found.variance), strict=True):
            buffer.copy_(value)

    def forward(self, x: Tensor, c_noise: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """F around a network.

        Args:
            x: z, (B, *shape).
            c_noise: ¼ log s, (B,).
            network: N, a function of its input (B, *shape). Channels of its output beyond those of `shape` pass.
        """
        s = torch.exp(4 * c_noise).clamp(max=LARGEST_LEVEL).to(x.dtype).reshape(-1, *[1] * self.mean.ndim)
        c_in = (s.square() + self.data_scale**2).rsqrt()
        y = self._rotate(x) - c_in * self._rotate(self.mean[None])
        root = (self.variance + s.square()).sqrt()
        output = network(self._back(y / (c_in * root)))
        own, others = output[:, : self.shape[0]], output[:, self.shape[0] :]
        gain, of_network, of_mean = self._coefficients(s, c_in, root)
        filtered = self._back(gain * y + of_network * self._rotate(own))
        filtered = filtered + (of_mean * self.mean).reshape(-1, *self.shape)
        return torch.cat([filtered, others], 1) if others.shape[1] else filtered

    def in_directions(self, coordinates: Tensor) -> Tensor:
        """Σ_k v_k c_k of coordinates c (B, *shape)."""
        return self._back(coordinates.reshape(-1, *self.mean.shape).to(self.mean)).to(coordinates)

    def _coefficients(self, s: Tensor, c_in: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of z − c_in μ, of N and of μ in F."""
        variance, d = self.variance, self.data_scale
        damped = self.variance.sqrt() / root
        if self.target == "edm":
            gain = s * (variance - d**2) / (d * root.square())
            return gain, damped / (d * c_in), s * c_in / d
        if self.target == "epsilon":
            return s / (c_in * root.square()), -damped, torch.zeros_like(s)
        return variance / (c_in * root.square()), s * damped, torch.ones_like(s)

    def _rotate(self, x: Tensor) -> Tensor:
        return rotate(x.reshape(-1, *self.mean.shape), self.factors, self.mix)

    def _back(self, y: Tensor) -> Tensor:
        return rotate_back(y, self.factors, self.mix).reshape(-1, *self.shape)


def wiener_filter(shape: Sequence[int], wiener: str | None, data_scale: float) -> WienerFilter | None:
    """The filter that a network's option `wiener` asks for; None or "none" is no filter."""
    check_choice("a network", "wiener", wiener, (None, "none", *TARGETS))
    return None if wiener in (None, "none") else WienerFilter(shape, wiener, data_scale)
