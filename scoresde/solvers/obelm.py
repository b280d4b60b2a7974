"""O-BELM: an explicit linear two-step method with an exact inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.clock import SignalClock
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import linear
from scoresde.solvers.reversible import ReversibleSolver

History = tuple[Any, ...]  # x_u, and the levels visited before s, the latest first


@dataclass(frozen=True, kw_only=True)
class OBELM(ReversibleSolver):
    """Optimal bidirectional explicit linear two-step solver; second order, one network call per step both ways.

        x_s = Φ_t→s(x_t) + γ (x_u − Φ_t→u(x_t))                   Φ the DDIM step, one x̂0(x_t) for both; u > t > s
        γ   = c_s/c_u (h/h')²,   h = w_s − w_t,   h' = w_t − w_u

    The bracket is the error of the step back to u, so γ is what cancels the error of the step to s: to leading order in
    any clock w and any scale c. The first step is DDIM's.

        "flow"     w = asinh ½ Λ,  c = ν^(3/4) σ^(1/4),  ν² = α² + σ²,  Λ = logsnr, or that of `SignalClock`
        "sigma"    w = σ/α,  c = α:  the published O-BELM              (Wang et al. 2024)

    Where u has no signal, which σ/α does not reach, "flow" stands for "sigma".

    Residuals (what x_t differs by from a DDIM step) are multiplied by γ per step, by its inverse when encoding. Over a
    run the product is (c_end/c_1) (h_last/h_first)²: near 1 with "flow"; as small as (σ_end/σ_1)² with "sigma", whose
    latents of given data are that much less accurate.

    Args:
        clock: "flow" or "sigma".

    References:
        Wang et al., "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion Models",
            2024, arXiv:2410.07273.
        Zhang et al., "Exact Diffusion Inversion via Bi-directional Integration Approximation", 2023, arXiv:2307.10829.
    """

    steps: int = 40
    grid: Grid = karras_grid
    clock: str = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "clock", self.clock, ("flow", "sigma"))

    def weights(self, levels: Levels) -> Weights:
        """Of x_t, of x̂0(x_t) and of x_u; at the start there is no u, and a residual is added as it is."""
        none = torch.zeros_like(levels.t[:1])
        gamma = torch.cat([none + 1, self._gamma(levels)])
        alpha_u, sigma_u = (torch.cat([none, values[:-2]]) for values in (levels.alpha, levels.sigma))
        keep = (levels.sigma[1:] - gamma * sigma_u) / levels.sigma[:-1]
        now = levels.alpha[1:] - gamma * alpha_u - keep * levels.alpha[:-1]
        return {"keep": keep, "now": now, "before": gamma}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: History | None
    ) -> tuple[Tensor, History | None]:
        x0 = denoiser.x0(x, interval.t)
        if interval.denoising:
            return x0, None
        x_u, *before = (None,) if state is None else state
        w = interval.weights(self, before)
        earlier = () if x_u is None else ((w.before, x_u),)
        return linear((w.keep, x), (w.now, x0), *earlier), (x, interval.t, *before)

    def inverse(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History | None
    ) -> tuple[Tensor, History]:
        x_t, *visited = state or (None,)
        w = interval.weights(self, visited[1:])
        x0 = denoiser.x0(x_t, interval.t)
        x_u = linear((1 / w.before, x), (-w.keep / w.before, x_t), (-w.now / w.before, x0))
        return x_t, (x_u, *visited[1:])

    def _gamma(self, levels: Levels) -> Tensor:
        clock = torch.asinh(0.5 * SignalClock(levels.sde).at(levels.t))
        norm = torch.hypot(levels.alpha, levels.sigma)
        gamma = _cancelling(clock, norm**0.75 * levels.sigma**0.25)
        if self.clock == "flow":
            return gamma
        return torch.where(levels.alpha[:-2] == 0, gamma, _cancelling(levels.ratio, levels.alpha))

    def _residual(self, denoiser: Denoiser, x: Tensor, last: Interval, state: Any) -> Tensor:
        return state[0] - self._back(denoiser, x, last)  # type: ignore[no-any-return]

    def _history(self, denoiser: Denoiser, x: Tensor, last: Interval, state: Any) -> Any:
        x_t = self._back(denoiser, x, last)
        return (x_t if state is None else x_t + state[0],)

    def _back(self, denoiser: Denoiser, x: Tensor, last: Interval) -> Tensor:
        """Φ of the last interval, from the data end to the time before."""
        up = last.reversed()
        ratio = up.s.sigma / up.t.sigma
        return linear((ratio, x), (up.s.alpha - ratio * up.t.alpha, denoiser.x0(x, up.t)))


def _cancelling(clock: Tensor, scale: Tensor) -> Tensor:
    """c_s/c_u (h/h')²."""
    h = clock.diff(dim=0)
    return scale[2:] / scale[:-2] * (h[1:] / h[:-1]).square()
