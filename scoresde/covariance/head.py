"""Extended Analytic-DPM: a second network that learns the variance of a frozen denoiser, entry by entry."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice
from scoresde.covariance.covariance_denoiser import CovarianceDenoiser, DataRange
from scoresde.denoiser import Denoiser
from scoresde.parameterization import MOST_NOISE
from scoresde.sde import expand

LARGEST_LABEL = 0.25 * math.log(MOST_NOISE)


class VarianceHead(CovarianceDenoiser):
    """A frozen denoiser with a trained covariance.

        kind "sn"    h = E[ε² | x_t]          Cov[x0 | x_t] = (σ²/α²)(h − ε̂²)
        kind "npr"   g = E[(ε − ε̂)² | x_t]    Cov[x0 | x_t] + error² = (σ²/α²) g

    "npr" is the spread of x0 around x̂0 as it is, the best variance for an inexact mean; it is never negative, and its
    target has less noise. Both are predicted as a multiple of what N(0, sigma_data²) data would have, so that one
    network serves all noise levels:

        Cov = (1 + F([c_in x, ε̂], c_noise)) sigma_data² σ²/(α² sigma_data² + σ²)

    Train it with `SecondMomentLoss`; the denoiser's parameters are frozen here and stay in evaluation mode.

    Args:
        denoiser: Gives x̂0; called once per call of this.
        net: F: called as net(z, c_noise) with z (B, 2C, *), returns the shape of z; the first half is used. Any of
            `scoresde.models` built for twice the channels.
        kind: "npr" or "sn".
        sigma_data: Standard deviation of the data.
        data_range: (low, high) of the data, (−1, 1) for images; None leaves out the upper bound.

    References:
        Bao et al., "Estimating the Optimal Covariance with Imperfect Mean", 2022, arXiv:2206.07309.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        net: nn.Module,
        *,
        kind: str = "npr",
        sigma_data: float = 1.0,
        data_range: DataRange | None = None,
    ) -> None:
        super().__init__(denoiser, data_range)
        check_choice("VarianceHead", "kind", kind, ("npr", "sn"))
        if not sigma_data > 0:
            raise ValueError(f"VarianceHead needs sigma_data > 0, got {sigma_data}.")
        self.net, self.kind, self.sigma_data = net, kind, sigma_data
        self.denoiser.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VarianceHead:
        super().train(mode)
        self.denoiser.eval()
        return self

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._alpha_sigma(x, t)
        with torch.no_grad():
            x0_hat = self.denoiser(x, t, **cond)
            eps = (x - alpha * x0_hat) / sigma
        ratio = self.ratio(x, t, eps)
        prior = (self.sigma_data * sigma / torch.hypot(alpha * self.sigma_data, sigma)).square()
        return x0_hat, self.bounded(prior * ratio)

    def ratio(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """1 + F: the predicted covariance over that of N(0, sigma_data²) data, (B, *)."""
        alpha, sigma = self._alpha_sigma(x, t)
        parameter = next(self.net.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        z = torch.cat([x / torch.hypot(alpha * self.sigma_data, sigma), eps], dim=1)
        level = (-0.125 * self.sde.logsnr(t.double())).clamp_max(LARGEST_LABEL)  # ¼ log(σ/α)
        label = level.to(x.device, dtype).expand(x.shape[0])
        output = self.net(z.to(dtype), label)
        if output.shape != z.shape:
            raise ValueError(
                f"VarianceHead needs a network that returns the shape of its input {tuple(z.shape)}, x and ε̂ along "
                f"the first axis, got {tuple(output.shape)}: build it for twice the channels of the data."
            )
        return 1 + output.to(x.dtype).chunk(2, dim=1)[0]

    def unit(self, x: Tensor, t: Tensor) -> Tensor:
        """E[(ε − ε̂)²] of N(0, sigma_data²) data: (α sigma_data)²/((α sigma_data)² + σ²); broadcasts against x."""
        alpha, sigma = self._alpha_sigma(x, t)
        signal = (alpha * self.sigma_data).square()
        return signal / (signal + sigma.square())

    def _alpha_sigma(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        wide = t.double()
        return expand(self.sde.alpha(wide), x), expand(self.sde.sigma(wide), x)
