"""The one object that solvers, likelihoods and losses consume: E[x0 | x_t = x]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from scoresde.parameterization import Parameterization
from scoresde.sde import SDE, expand


class Denoiser(nn.Module, ABC):
    """The posterior mean of the data, and the score and velocity that follow from it.

        x̂0       = E[x0 | x_t = x]
        ε̂        = (x − α x̂0) / σ
        score    = ∇ log p_t(x) = −ε̂ / σ                            (Tweedie's formula)
        velocity = f x − ½ g² score                                 (probability-flow ODE, Song et al. 2021, eq. 13)

    A subclass writes `forward` and has an `sde`. Conditions are keyword tensors that `forward` receives.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    sde: SDE

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x_t = x]: x (B, *), t () or (B,) -> (B, *), in x's dtype."""

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[ε | x_t = x], shape (B, *)."""
        x0_hat = self(x, t, **cond)
        return (x - expand(self.sde.alpha(t), x) * x0_hat) / expand(self.sde.sigma(t), x)

    def score(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """∇ log p_t(x), shape (B, *)."""
        return -self.eps(x, t, **cond) / expand(self.sde.sigma(t), x)

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE, shape (B, *)."""
        return self.sde.drift(x, t) - 0.5 * expand(self.sde.g(t).square(), x) * self.score(x, t, **cond)

    def given(self, **cond: Any) -> Denoiser:
        """The same denoiser with conditions bound; parameters are shared.

        Bound conditions stay: the same condition passed to a later call is ignored, so that
        `Guided(model, model.given(label=None), 2.0)` can be called with labels.
        """
        return _Given(self, cond)


class _Given(Denoiser):
    def __init__(self, denoiser: Denoiser, cond: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser, self.sde, self.cond = denoiser, denoiser.sde, cond

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, t, **{**cond, **self.cond})

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser.eps(x, t, **{**cond, **self.cond})


class NetworkDenoiser(Denoiser):
    """A network F and a parameterization as a denoiser: x̂0 = c_skip x + c_out F(c_in x, c_noise).

    Coefficients are computed in float64 and applied in x's dtype; the network runs in its own parameters' dtype.

    Args:
        net: Called as net(x, c_noise, **cond) with c_noise (B,); returns the shape of x.
        sde: The process that the network was trained on.
        parameterization: What the network predicts.
    """

    def __init__(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> None:
        super().__init__()
        self.net, self.sde, self.parameterization = net, sde, parameterization

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = self._alpha_sigma(t)
        c_skip, c_out = self.parameterization.skip_out(alpha, sigma)
        return expand(c_skip, x) * x + expand(c_out, x) * self._network(x, alpha, sigma, cond)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        # (x − α x̂0)/σ with the coefficients combined first: exact for ε-networks, no cancellation as σ → 0
        alpha, sigma = self._alpha_sigma(t)
        c_skip, c_out = self.parameterization.skip_out(alpha, sigma)
        network = self._network(x, alpha, sigma, cond)
        return expand((1 - alpha * c_skip) / sigma, x) * x - expand(alpha * c_out / sigma, x) * network

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        wide = t.double()
        return self.sde.alpha(wide), self.sde.sigma(wide)

    def _network(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        c_in = self.parameterization.c_in(alpha, sigma)
        c_noise = self.parameterization.c_noise(alpha, sigma)
        parameter = next(self.net.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        output = self.net((expand(c_in, x) * x).to(dtype), c_noise.to(dtype).expand(x.shape[0]), **cond)
        if output.shape != x.shape:
            raise ValueError(
                f"{type(self.net).__name__} must return the shape of its input {tuple(x.shape)}, "
                f"got {tuple(output.shape)}: build the network for this data."
            )
        return output.to(x.dtype)
