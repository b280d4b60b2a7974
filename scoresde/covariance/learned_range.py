"""Improved DDPM's network, which predicts a variance along with the mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE, DiscreteVPSDE, expand
from scoresde.sde.levels import Level


class LearnedRange(Denoiser):
    """A network with twice the data's channels: F for x̂0 as in `NetworkDenoiser`, then r for the variance of a step.

        log Σ = v log β + (1 − v) log β̃,      v = (r + 1)/2           (Nichol and Dhariwal 2021, eq. 15)

    Under another grid β and β̃ are those of its own steps: `DDPM(variance="learned")`. As Σ is learned for the steps of
    one chain, it also tells the covariance of x0, from which `variance="optimal"` makes the variance of any other step:

        Cov[x0 | x_t] = (Σ − β̃)/(α_s (1 − SNR_t/SNR_s))²,   s = t − 1/steps

    Args:
        net: Called as net(x, c_noise, **cond); (B, C, *) -> (B, 2C, *). `NCSNpp` and `MLP` with out_channels=2C.
        sde: The process that the network was trained on.
        parameterization: What F is.
        steps: Length of the chain that the variance was learned for; None: that of the `DiscreteVPSDE`.

    References:
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    def __init__(
        self, net: nn.Module, sde: SDE, parameterization: Parameterization, *, steps: int | None = None
    ) -> None:
        super().__init__()
        self.net, self.sde, self.parameterization = net, sde, parameterization
        self.steps = (len(sde.betas) if isinstance(sde, DiscreteVPSDE) else 0) if steps is None else steps

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._halves()[1].x0(x, level, **cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._halves()[1].eps_at(x, level, **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._halves()[1].v_at(x, level, **cond)

    def mean_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """x̂0 and v, both (B, *): v = 0 stands for a step's β̃, 1 for its β."""
        halves, mean = self._halves()
        return mean(x, t, **cond), halves.range_as(x)

    def eps_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """ε̂ and v, both (B, *), with one call of the network."""
        halves, mean = self._halves()
        return mean.eps(x, t, **cond), halves.range_as(x)

    def v_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """v̂ = α ε̂ − σ x̂0 and the v of the variance, both (B, *), with one call of the network."""
        halves, mean = self._halves()
        return mean.v(x, t, **cond), halves.range_as(x)

    def _halves(self) -> tuple[_Halves, NetworkDenoiser]:
        halves = _Halves(self.net)
        return halves, NetworkDenoiser(halves, self.sde, self.parameterization)

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Diagonal of Cov[x0 | x_t = x] that the variance of the chain's own step implies, (B, *)."""
        return self.mean_and_covariance(x, t, **cond)[1]

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        self._check_steps()
        x0_hat, v = self.mean_and_range(x, t, **cond)
        return x0_hat, self.covariance_of(v, x, t)

    def covariance_of(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Diagonal of Cov[x0 | x_t = x] for a given v, (B, *)."""
        self._check_steps()
        wide = t.double()
        s = (wide - 1 / self.steps).clamp_min(0)
        s = torch.where(s * self.steps < 1e-6, wide / 2, s)  # the step to the data has β̃ = 0: half of it tells as much
        removed = -torch.expm1(self.sde.logsnr(wide) - self.sde.logsnr(s))
        small = self.sde.sigma(s).square() * removed
        log_ratio = 2 * (self.sde.sigma(wide).log() - self.sde.sigma(s).log())  # log β/β̃
        gain = small / (self.sde.alpha(s) * removed).square()
        return (expand(gain, x) * torch.expm1(expand(log_ratio, x) * v)).clamp_min(0)

    def _check_steps(self) -> None:
        if self.steps < 1:
            raise ValueError(
                f"LearnedRange on {self.sde} knows no length of its chain: pass steps=1000, the number of steps that "
                f"the variance was learned for."
            )


class _Halves(nn.Module):
    """A network with twice the channels as one with the data's own, for `NetworkDenoiser`; the rest is kept aside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rest = net, torch.empty(0)

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        output = self.net(x, c_noise.to(x.device), **cond)
        if output.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(
                f"LearnedRange needs a network that returns twice the channels of its input {tuple(x.shape)}, "
                f"got {tuple(output.shape)}: the first half for the mean, the second for the variance."
            )
        mean, self.rest = output.chunk(2, dim=1)
        return mean

    def range_as(self, x: Tensor) -> Tensor:
        """v of the last call, in x's dtype; given out once, so that no graph is held."""
        rest, self.rest = self.rest, torch.empty(0)
        return (rest.to(x.dtype) + 1) / 2
