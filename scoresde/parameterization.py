"""What the network predicts: F ≈ a x0 + b ε, so x̂0 = c_skip x + c_out F(c_in x, c_noise), by (α, σ) alone."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_flags, check_numbers

__all__ = ["EDM", "Data", "Epsilon", "Parameterization", "Score", "VPrediction", "Velocity", "convert"]

MOST_NOISE = 1e6  # of σ/α in a noise label: finite where there is no signal


@dataclass(frozen=True, kw_only=True)
class Parameterization(ABC):
    """How a raw network F becomes a denoiser.

        F is trained towards a x0 + b ε,    x = α x0 + σ ε
        x̂0 = c_skip x + c_out F,            c_skip = b/D,   c_out = −σ/D,    D = α b − σ a
        ε̂  = (α F − a x)/D

    A subclass writes `target`, (a, b), or `skip_out`, (c_skip, c_out); the other follows. Where D is 0 the two
    equations are one, and nothing follows from F: so it is for ε and the score where α = 0. Nothing here depends on the
    clock. v and the score depend on the scale of x: `denoiser.on(sde)` puts a trained network on any other process.

    Args:
        sigma_data: Standard deviation of the data, used to scale the network input to unit variance.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    sigma_data: float = 1.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.target is Parameterization.target and cls.skip_out is Parameterization.skip_out:
            raise TypeError(f"{cls.__name__} needs a formula: write target(alpha, sigma) or skip_out(alpha, sigma).")

    def __post_init__(self) -> None:
        check_numbers(self, "0 < sigma_data <= 1e9")

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b): the network predicts a x0 + b ε."""
        skip, out = self.skip_out(alpha, sigma)
        return (1 - alpha * skip) / out, -sigma * skip / out

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out)."""
        a, b = self.target(alpha, sigma)
        determinant = alpha * b - sigma * a
        return b / determinant, -sigma / determinant

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """1 / √(α² sigma_data² + σ²), the inverse standard deviation of x_t."""
        return 1 / torch.hypot(alpha * self.sigma_data, sigma)

    def c_noise(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """¼ log(σ/α), the network's noise label; that of σ/α = 10⁶ where there is less signal."""
        return 0.25 * torch.log((sigma / alpha).clamp_max(MOST_NOISE))


def convert(
    prediction: Tensor,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    source: Parameterization,
    to: Parameterization,
) -> Tensor:
    """What `to` predicts, from what `source` predicts for the same x.

        x = α x0 + σ ε,   F = a x0 + b ε,   F' = a' x0 + b' ε
        F' = ((a' b − a b') x + (α b' − σ a') F) / D,      D = α b − σ a
        F' = k F                                            where (a', b') = k (a, b), as for ε and the score

    Every pair at every level. Where D is 0, only multiples of F follow from it, and all else is infinite: from ε and
    the score at α = 0, from x0 at σ = 0.

    Args:
        prediction, x: F and the noisy state, of one shape.
        alpha, sigma: The level, of a shape that broadcasts against x.
        source, to: What F predicts, and what is asked for.
    """
    of_x, of_prediction = combination(alpha, sigma, source.target(alpha, sigma), to.target(alpha, sigma))
    return of_x * x + of_prediction * prediction


def combination(
    alpha: Tensor, sigma: Tensor, target: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(c, d) with a' x0 + b' ε = c x + d (a x0 + b ε): what `wanted` (a', b') is of x and of `target` (a, b)."""
    (a, b), (to_a, to_b) = target, wanted
    determinant, across = alpha * b - sigma * a, to_a * b - a * to_b
    parallel, multiple = across == 0, (to_a * a + to_b * b) / (a.square() + b.square())
    of_target = torch.where(parallel, multiple, (alpha * to_b - sigma * to_a) / determinant)
    return torch.where(parallel, 0, across / determinant), of_target


@dataclass(frozen=True, kw_only=True)
class Epsilon(Parameterization):
    """The network predicts the noise ε.

        x̂0 = (x − σ F) / α                                          (Ho et al. 2020, eq. 15)

    Where α = 0 it says nothing about the data, and a denoiser made with it refuses to be asked there.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True, kw_only=True)
class Data(Parameterization):
    """The network predicts the clean data: x̂0 = F."""

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(alpha)


@dataclass(frozen=True, kw_only=True)
class VPrediction(Parameterization):
    """The network predicts v = α ε − σ x0.

        x̂0 = (α x − σ v) / (α² + σ²)                    (Salimans & Ho 2022, App. D when α² + σ² = 1)

    Dividing by α² + σ² extends the definition to SDEs that do not preserve variance.

    References:
        Salimans and Ho, "Progressive Distillation", 2022, arXiv:2202.00512.
    """

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma, alpha


@dataclass(frozen=True, kw_only=True)
class Velocity(Parameterization):
    """The network predicts u = ε − x0, the dx/dt of the straight path.

        x̂0 = (x − σ u) / (α + σ)         ε̂ = (x + α u) / (α + σ)    (Lipman et al. 2023, eq. 22, on any α and σ)

    Defined at every level of every process, α = 0 and σ = 0 included. The label is r = σ/(α + σ), which is t on the
    straight path.

    Args:
        sigma_data: As for every parameterization; inputs are scaled by c_in only if `scale_input`.
        label: What the network gets as c_noise: "time", r; "data_time", 1 − r, of networks whose time runs from noise
            to data; both times `label_scale`.
        label_scale: 1 for networks that are given t, 1000 for those that are given 1000 t.
        scale_input: Whether the network's input is x/√(α² sigma_data² + σ²), as for the others, or x/(α + σ): x
            itself on the straight path, which networks of other flow-matching systems expect.

    References:
        Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747.
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """

    label: str = "time"
    label_scale: float = 1.0
    scale_input: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self)
        check_choice(self, "label", self.label, ("time", "data_time"))
        check_numbers(self, "0 < label_scale <= 1e6")

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(alpha)

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return super().c_in(alpha, sigma) if self.scale_input else 1 / (alpha + sigma)

    def c_noise(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.label_scale * (sigma if self.label == "time" else alpha) / (alpha + sigma)


@dataclass(frozen=True, kw_only=True)
class Score(Parameterization):
    """The network predicts the score ∇ log p_t(x).

        x̂0 = (x + σ² F) / α                                         (Tweedie's formula)

    A network for this should divide its output by σ (`scale_by_sigma`), as the score grows like 1/σ.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(sigma), -1 / sigma


@dataclass(frozen=True, kw_only=True)
class EDM(Parameterization):
    """Karras et al.'s preconditioning: unit-variance input and target, and the least amplified network error.

        c_skip = α s² / (σ² + α² s²)       c_out = σ s / √(σ² + α² s²)       s = sigma_data     (Karras et al., Table 1)
        c_in   = 1 / √(σ² + α² s²)         c_noise = ¼ log(σ/α)
        F ≈ (σ/s x0 − α s ε) / √(σ² + α² s²)

    Table 1 has α = 1; here it is applied to x/α at noise level σ/α, so any SDE can use it.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    sigma_data: float = 0.5

    def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.hypot(sigma, alpha * self.sigma_data)
        return sigma / (self.sigma_data * norm), -alpha * self.sigma_data / norm
