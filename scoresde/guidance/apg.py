"""Adaptive projected guidance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.guidance.branches import ask_all, require_same_sde, select_all
from scoresde.guidance.scales import GuidanceScale, Scale
from scoresde.sde.levels import Level


class APG(Denoiser):
    """Adaptive projected guidance: the part of the guidance along x̂0, which saturates, counts less.

        Δ  = (denoiser − reference) min(1, norm/‖denoiser − reference‖)
        Δ∥ = denoiser ⟨Δ, denoiser⟩/‖denoiser‖²,     Δ⊥ = Δ − Δ∥
        x̂0 = denoiser + (scale − 1) (Δ⊥ + eta Δ∥)                                  (Sadat et al. 2024, §5)

    with norms and products over the entries of each sample. eta=1 and norm=∞ is `Guided`. With eta=0, data for which Δ
    is along x̂0, such as centred isotropic Gaussians or a single number, are not guided at all. The paper's momentum, a
    weighted sum of the Δ of earlier steps, is left out: a denoiser is a function of (x, t), which adaptive solvers
    and likelihoods ask in any order.

    Args:
        denoiser, reference: As for `Guided`.
        scale, interval: As for `Guided`.
        eta: η of the part along x̂0.
        norm: r, the largest ‖Δ‖, in the model's scaling.

    References:
        Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales", 2024, arXiv:2410.02416.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Denoiser,
        scale: Scale,
        interval: tuple[float, float] | None = None,
        *,
        eta: float = 0.0,
        norm: float = math.inf,
    ) -> None:
        super().__init__()
        require_same_sde("APG", denoiser, reference)
        check_numbers(self, "-inf < eta < inf", "0 < norm <= inf", eta=eta, norm=norm)
        self.sde, self.denoiser, self.reference = denoiser.sde, denoiser, reference
        self.strength, self.eta, self.norm = GuidanceScale.of(self, scale, interval), eta, norm

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        scale = self.strength.at(level, x)
        if not isinstance(scale, Tensor) and scale == 1:
            return self.denoiser.x0(x, level, **cond)
        wanted, reference = ask_all((self.denoiser, self.reference), lambda denoiser: denoiser.x0, x, level, cond)
        change = wanted - reference
        if self.norm < math.inf:
            change = change * (self.norm / _length(change).clamp_min(self.norm))
        along = wanted * _product(change, wanted) / _product(wanted, wanted).clamp_min(torch.finfo(x.dtype).tiny)
        return wanted + (scale - 1) * (change - along + self.eta * along)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        pair, strength = select_all((self.denoiser, self.reference), index, batch), self.strength
        if pair is None:
            return None
        return APG(pair[0], pair[1], strength.rows(index, batch), strength.interval, eta=self.eta, norm=self.norm)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of every sample, (B, 1, ..., 1)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def _length(a: Tensor) -> Tensor:
    """‖a‖ of every sample, (B, 1, ..., 1)."""
    return torch.linalg.vector_norm(a, dim=tuple(range(1, a.ndim)), keepdim=True)
