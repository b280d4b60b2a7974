"""p(x0 | x_t) at the data end of a chain: a density of continuous data, probabilities of quantised data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.likelihood.cells import Cells

Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0 (B, *), mean (B, *), std broadcastable) -> nats (B,)
SMALLEST_PROBABILITY = 1e-12


def gaussian_decoder(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x0; mean, std²) of continuous data, (B,)."""
    z = (x0 - mean) / std
    return (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).expand_as(x0).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class DiscretizedGaussian(Cells):
    """The probability that N(mean, std²) gives to the cell of x0; the outermost cells are open.

        log P(k) = log [Φ((c + w/2 − mean)/std) − Φ((c − w/2 − mean)/std)]         (Ho et al. 2020, eq. 13)

    Args:
        levels, value_range: See `Cells`. DDPM's own values are value_range = (−256/255, 256/255).
        cdf: "exact", or "tanh": Φ(z) ≈ ½ (1 + tanh(√(2/π) (z + 0.044715 z³))) with the clamp at 1e-12, as the
            published code has it (up to 0.004 bits/dim apart).

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    cdf: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("DiscretizedGaussian", "cdf", self.cdf, ("exact", "tanh"))

    def __call__(self, x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        k = self.level(x0)
        centre = self.centre(k, torch.float64)
        mean, std = mean.double(), std.double()
        upper = torch.where(k == self.levels - 1, math.inf, (centre + self.width / 2 - mean) / std)
        lower = torch.where(k == 0, -math.inf, (centre - self.width / 2 - mean) / std)
        each = _log_difference(lower, upper) if self.cdf == "exact" else _log_difference_of_tanh(lower, upper)
        return each.flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class CategoricalDecoder(Cells):
    """A softmax over all levels of the Gaussian density at their centres: VDM's decoder.

        P(k) ∝ N(centre_k; mean, std²),   normalised over the levels                (Kingma et al. 2021, App. C)

    References:
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630.
    """

    def __call__(self, x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        centres = self.centre(torch.arange(self.levels, device=x0.device), mean.dtype)
        z = (centres - mean[..., None]) / std.to(mean)[..., None]
        log_probs = (-0.5 * z.square()).log_softmax(-1)
        each = log_probs.gather(-1, self.level(x0)[..., None])[..., 0]
        return each.flatten(1).sum(1)


def _log_difference(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Φ(upper) − Φ(lower)), in float64, without cancellation in either tail."""
    flip = lower > 0  # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): work in the lower tail
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-1e-16)))


def _log_difference_of_tanh(lower: Tensor, upper: Tensor) -> Tensor:
    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    below = torch.where(lower == -math.inf, 0.0, cdf(lower.nan_to_num(neginf=0.0)))
    above = torch.where(upper == math.inf, 1.0, cdf(upper.nan_to_num(posinf=0.0)))
    # the published code takes a tail of its own at either end; the same number, with its clamp
    return (above - below).clamp_min(SMALLEST_PROBABILITY).log()
