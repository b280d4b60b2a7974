"""What the network predicts: x̂0 = c_skip x + c_out F(c_in x, c_noise), all four functions of (α, σ) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_numbers

__all__ = ["EDM", "Data", "Epsilon", "Parameterization", "Score", "VPrediction"]


@dataclass(frozen=True, kw_only=True)
class Parameterization(ABC):
    """How a raw network F becomes a denoiser.

        x̂0 = c_skip x + c_out F(c_in x, c_noise)

    Nothing here depends on the clock, so a trained network can be sampled under another SDE's times.

    Args:
        sigma_data: Standard deviation of the data, used to scale the network input to unit variance.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < sigma_data <= 1e9")

    @abstractmethod
    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out)."""

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """1 / √(α² sigma_data² + σ²), the inverse standard deviation of x_t."""
        return 1 / torch.hypot(alpha * self.sigma_data, sigma)

    def c_noise(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """¼ log(σ/α), the network's noise label."""
        return 0.25 * torch.log(sigma / alpha)


@dataclass(frozen=True, kw_only=True)
class Epsilon(Parameterization):
    """The network predicts the noise ε.

        x̂0 = (x − σ F) / α                                          (Ho et al. 2020, eq. 15)

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / alpha, -sigma / alpha


@dataclass(frozen=True, kw_only=True)
class Data(Parameterization):
    """The network predicts the clean data: x̂0 = F."""

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True, kw_only=True)
class VPrediction(Parameterization):
    """The network predicts v = α ε − σ x0.

        x̂0 = (α x − σ v) / (α² + σ²)                    (Salimans & Ho 2022, App. D when α² + σ² = 1)

    Dividing by α² + σ² extends the definition to SDEs that do not preserve variance.

    References:
        Salimans and Ho, "Progressive Distillation", 2022, arXiv:2202.00512.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        norm = alpha.square() + sigma.square()
        return alpha / norm, -sigma / norm


@dataclass(frozen=True, kw_only=True)
class Score(Parameterization):
    """The network predicts the score ∇ log p_t(x).

        x̂0 = (x + σ² F) / α                                         (Tweedie's formula)

    A network for this should divide its output by σ (`scale_by_sigma`), as the score grows like 1/σ.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / alpha, sigma.square() / alpha


@dataclass(frozen=True, kw_only=True)
class EDM(Parameterization):
    """Karras et al.'s preconditioning: unit-variance input and target, and the least amplified network error.

        c_skip = α s² / (σ² + α² s²)       c_out = σ s / √(σ² + α² s²)       s = sigma_data     (Karras et al., Table 1)
        c_in   = 1 / √(σ² + α² s²)         c_noise = ¼ log(σ/α)

    Table 1 has α = 1; here it is applied to x/α at noise level σ/α, so any SDE can use it.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    sigma_data: float = 0.5

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = sigma.square() + (alpha * self.sigma_data).square()
        return alpha * self.sigma_data**2 / variance, sigma * self.sigma_data / variance.sqrt()
