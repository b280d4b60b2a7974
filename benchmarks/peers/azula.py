"""azula (0.11): samplers over a denoiser E[x0 | x_t] with a schedule t -> (alpha, sigma); a step is equal in t."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import azula.denoise
import azula.noise
import azula.sample
import torch
from mixture import CountedModel
from torch import Tensor

from peers import Candidate

ALPHA_MIN = math.exp(-0.25 * 19.9 - 0.5 * 0.1)  # α of VP(0.1, 20) at t = 1
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0

Curve = Callable[[Tensor], tuple[Tensor, Tensor]]


class Schedule(azula.noise.Schedule):
    """A schedule of our own: azula's way of placing its steps."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.curve(t)


def karras(t: Tensor, rho: float = 7.0) -> tuple[Tensor, Tensor]:
    low, high = SIGMA_MIN ** (1 / rho), SIGMA_MAX ** (1 / rho)
    return torch.ones_like(t), (low + t * (high - low)) ** rho


def vp(t: Tensor) -> tuple[Tensor, Tensor]:
    b = 0.1 * t + 0.5 * 19.9 * t.square()
    return torch.exp(-0.5 * b), torch.sqrt(-torch.expm1(-b))


def vp_quadratic(t: Tensor) -> tuple[Tensor, Tensor]:
    low = math.sqrt(1e-3)
    return vp((low + t * (1 - low)).square())


def vp_logsnr(t: Tensor) -> tuple[Tensor, Tensor]:
    ratio = azula.noise.VESchedule(SIGMA_MIN, math.sqrt(ALPHA_MIN**-2 - 1)).sigma(t)
    alpha = torch.rsqrt(1 + ratio.square())
    return alpha, alpha * ratio


SCHEDULES: dict[str, tuple[str, Callable[[Tensor], tuple[Tensor, Tensor]]]] = {
    "log-uniform": ("edm", azula.noise.VESchedule(SIGMA_MIN, SIGMA_MAX)),
    "own karras": ("edm", Schedule(karras)),
    "rectified": ("edm", azula.noise.RectifiedSchedule(1 / SIGMA_MAX, 1e-3)),
    "rectified (default)": ("edm", azula.noise.RectifiedSchedule()),
    "decay": ("edm", azula.noise.DecaySchedule(1 / SIGMA_MAX, 1e-3)),
    "vp": ("vp", azula.noise.VPSchedule(ALPHA_MIN)),
    "cosine": ("vp", azula.noise.CosineSchedule(ALPHA_MIN)),
    "own time_quadratic": ("vp", Schedule(vp_quadratic)),
    "own log-uniform": ("vp", Schedule(vp_logsnr)),
}

# name, class, options, network calls per step
DETERMINISTIC: list[tuple[str, str, dict[str, Any], int]] = [
    ("DDIM", "DDIMSampler", {}, 1),
    ("Heun", "HeunSampler", {}, 2),
    *(
        (f"{kind}({order})", f"{kind}Sampler", {"order": order}, 1)
        for kind, orders in {
            "zAB": (2, 3, 4),
            "vAB": (2, 3, 4),
            "zEAB": (2, 3),
            "xEAB": (2, 3, 4),
            "REAB": (2, 3),
        }.items()
        for order in orders
    ),
]
STOCHASTIC: list[tuple[str, str, dict[str, Any], int]] = [
    ("DDPM", "DDPMSampler", {}, 1),
    ("Ito", "ItoSampler", {}, 1),
    ("Ito(0.5)", "ItoSampler", {"eta": 0.5}, 1),
]


class Exact(azula.denoise.Denoiser):
    def __init__(self, model: CountedModel, schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.model, self.schedule = model, schedule

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> azula.denoise.Posterior:
        alpha, sigma = self.schedule(t)
        return azula.denoise.DiracPosterior(self.model.denoised(x_t, float(alpha), float(sigma)))


def candidate(solver: str, kind: str, options: dict[str, Any], calls: int, grid: str) -> Candidate:
    family, schedule = SCHEDULES[grid]
    alpha, sigma = (float(value) for value in schedule(torch.ones((), dtype=torch.float64)))

    def run(model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        exact, steps = Exact(model, schedule), nfe // calls
        sampler = getattr(azula.sample, kind)(exact, steps=steps, silent=True, dtype=torch.float64, **options)
        return sampler(x)

    std = math.hypot(alpha, sigma) if family == "vp" else sigma
    return Candidate(
        library="azula", solver=solver, grid=grid, family=family, alpha=alpha, sigma=sigma, std=std, run=run
    )


def deterministic() -> Iterator[Candidate]:
    for row in DETERMINISTIC:
        yield from (candidate(*row, grid) for grid in SCHEDULES)


def stochastic() -> Iterator[Candidate]:
    for row in STOCHASTIC:
        yield from (candidate(*row, grid) for grid in SCHEDULES)


class Trivial(azula.denoise.Denoiser):
    def __init__(self, network: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.schedule = network, azula.noise.VPSchedule()

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> azula.denoise.Posterior:
        return azula.denoise.DiracPosterior(self.network(x_t, t))


def overhead() -> Iterator[tuple[str, Callable[[Callable[..., Tensor], Tensor, int], Tensor]]]:
    """run(network, x, steps) of its samplers, for timing."""
    for solver, kind, options, _ in [*DETERMINISTIC, *STOCHASTIC]:
        if solver in ("DDIM", "Heun", "zAB(3)", "xEAB(3)", "DDPM"):
            yield solver, partial(_sample, getattr(azula.sample, kind), options)


def _sample(kind: Any, options: dict[str, Any], network: Callable[..., Tensor], x: Tensor, steps: int) -> Tensor:
    result: Tensor = kind(Trivial(network), steps=steps, silent=True, **options)(x)
    return result
