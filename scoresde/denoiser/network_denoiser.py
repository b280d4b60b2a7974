"""A network as a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.denoiser.denoiser import Denoiser
from scoresde.parameterization import Parameterization, combination
from scoresde.sde import SDE
from scoresde.sde.levels import Level, Levels


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

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        skip, out, c_in, c_noise = level.read("x0", self.parameterization, self._x0_coefficients)
        return skip * x + out * self._network(x, c_in, c_noise, cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        skip, out, c_in, c_noise = level.read("eps", self.parameterization, self._eps_coefficients)
        return skip * x + out * self._network(x, c_in, c_noise, cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        skip, out, c_in, c_noise = level.read("v", self.parameterization, self._v_coefficients)
        return skip * x + out * self._network(x, c_in, c_noise, cond)

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self

    def _x0_coefficients(self, levels: Levels) -> tuple[Tensor, ...]:
        """Of x and of the network in x̂0, of x in the network's input, and its noise label."""
        return self._coefficients(levels, torch.ones_like(levels.alpha), torch.zeros_like(levels.alpha))

    def _eps_coefficients(self, levels: Levels) -> tuple[Tensor, ...]:
        """The same for ε̂ = (x − α x̂0)/σ, combined first: exact for ε-networks, no cancellation as σ → 0."""
        return self._coefficients(levels, torch.zeros_like(levels.alpha), torch.ones_like(levels.alpha))

    def _v_coefficients(self, levels: Levels) -> tuple[Tensor, ...]:
        return self._coefficients(levels, -levels.sigma, levels.alpha)

    def _coefficients(self, levels: Levels, to_a: Tensor, to_b: Tensor) -> tuple[Tensor, ...]:
        """For to_a x0 + to_b ε, as in `scoresde.parameterization.convert`."""
        alpha, sigma, rule = levels.alpha, levels.sigma, self.parameterization
        skip, out = combination(alpha, sigma, rule.target(alpha, sigma), (to_a, to_b))
        if levels.sde.ends_silent:
            silent = alpha == 0
            noise = silent & (to_a == 0)  # ε̂ = x/σ, whatever the network says
            skip, out = torch.where(noise, to_b / sigma, skip), torch.where(noise, 0, out)
            if bool((silent & ~(skip.isfinite() & out.isfinite())).any()):
                raise _no_signal(rule, levels.sde)
        return skip, out, rule.c_in(alpha, sigma), rule.c_noise(alpha, sigma)

    def _network(self, x: Tensor, c_in: Any, c_noise: Any, cond: dict[str, Any]) -> Tensor:
        dtype = next((parameter.dtype for parameter in self.net.parameters()), x.dtype)
        if isinstance(c_noise, Tensor):
            label = c_noise.to(x.device, dtype).reshape(-1).expand(x.shape[0])
        else:
            label = x.new_full((x.shape[0],), c_noise, dtype=dtype)
        output = self.net((c_in * x).to(dtype), label, **cond)
        if output.shape != x.shape:
            raise _wrong_shape(self.net, x, output)
        return output.to(x.dtype)


def check_signal(denoiser: nn.Module) -> None:
    """Raise ValueError, before a run finds out, if a network in it says nothing where its process has no signal."""
    for part in denoiser.modules():
        if isinstance(part, NetworkDenoiser) and part.sde.ends_silent:
            part._v_coefficients(Levels.of(part.sde, torch.ones(1, dtype=torch.float64)))


def _no_signal(rule: Parameterization, sde: SDE) -> ValueError:
    return ValueError(
        f"A network that predicts {type(rule).__name__} says nothing about the data where there is no signal, and "
        f"alpha is 0 at t = 1 of {type(sde).__name__}: train with parameterization Velocity, VPrediction, Data or "
        f"EDM, or use a process that ends with alpha > 0."
    )


def _wrong_shape(net: nn.Module, x: Tensor, output: Tensor) -> ValueError:
    return ValueError(
        f"{type(net).__name__} must return the shape of its input {tuple(x.shape)}, got {tuple(output.shape)}: build "
        f"the network for this data."
    )
