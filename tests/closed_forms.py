"""What several tests compare with: exact flows, exact moments of a chain, replayed noise, golden arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde import (
    EDM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Data,
    Denoiser,
    DiscreteVPSDE,
    Epsilon,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NoiseSource,
    Parameterization,
    Score,
    Solver,
    StepSolver,
    SubVPSDE,
    Velocity,
    VPrediction,
    expand,
    linear_betas,
    logsnr_grid,
)

SDES = [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), CosineSDE(), DiscreteVPSDE(linear_betas())]
PARAMETERIZATIONS = [Epsilon(), Data(), VPrediction(), Velocity(), Score(), EDM()]
MEAN, STD = 1.5, 0.7


def name(value: object) -> str:
    """What a test is called after its argument, the same in every process: a class and what was set, a function."""
    if isinstance(value, SDE):
        return type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        chosen = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
        return f"{type(value).__name__}({', '.join(f'{key}={name(chosen[key])}' for key in chosen)})"
    return re.sub(r"<function ([^ ]+) at 0x\w+>", r"\1", str(value))


def moments(sde: SDE, t: Tensor | float, mean: float = MEAN, std: float = STD) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_t for x0 ~ N(mean, std²)."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return sde.alpha(t) * mean, torch.hypot(sde.alpha(t) * std, sde.sigma(t))


def exact_flow(sde: SDE, x: Tensor, t: float, s: float, mean: float = MEAN, std: float = STD) -> Tensor:
    """Probability-flow solution for x0 ~ N(mean, std²): standardised coordinates are constant."""
    (mean_t, std_t), (mean_s, std_s) = moments(sde, t, mean, std), moments(sde, s, mean, std)
    return mean_s + std_s / std_t * (x - mean_t)


def chain_moments(solver: Solver, denoiser: Denoiser, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of the output of a solver that is affine in its start and its noises.

    Row 0 starts at 0 and row 1 at 1, both without noise; row j + 2 has the j-th noise alone equal to 1.
    """
    drawn = 0

    def count(t: Tensor, s: Tensor) -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros(1, 1, dtype=torch.float64)

    solver(denoiser, torch.zeros(1, 1, dtype=torch.float64), noise=count)
    rows = torch.eye(drawn + 2, dtype=torch.float64)[2:]
    draws = iter(rows)
    start = torch.zeros(drawn + 2, 1, dtype=torch.float64)
    start[1] = 1
    out = solver(denoiser, start, noise=lambda t, s: next(draws)[:, None])[:, 0]
    responses = out[1:] - out[0]
    return out[0] + responses[0] * mean, torch.sqrt((responses[0] * std).square() + responses[1:].square().sum())


def std_of_chains(sde: SDE, solver: StepSolver, end: float = 0.05) -> tuple[Callable[[int], Tensor], Tensor]:
    """The exact std of x at `end` as a function of the number of steps, and the true one; the mean must be exact."""
    denoiser, prior = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    mean, std = moments(sde, end)

    def solve(steps: int) -> Tensor:
        chain = chain_moments(
            replace(solver, steps=steps, grid=logsnr_grid, t_end=end, denoise=False), denoiser, *prior
        )
        torch.testing.assert_close(chain[0], mean, rtol=1e-9, atol=1e-9)  # α_t E[x0] is a fixed point of every step
        return chain[1]

    return solve, std


def predicted(rule: Parameterization, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the field says the network predicts, given the clean data and the noise."""
    if isinstance(rule, EDM):  # (x0 − c_skip x)/c_out of x/α at noise σ/α, Karras et al., Table 1; at α = 0 its limit
        s, ratio = rule.sigma_data, sigma / alpha
        skip, out = s**2 / (ratio**2 + s**2), ratio * s / (ratio**2 + s**2).sqrt()
        value = (x0 - skip * (x0 + ratio * noise)) / out
        return torch.where(alpha > 0, value, x0 / s)
    formulas = {
        Epsilon: lambda: noise,
        Data: lambda: x0,
        VPrediction: lambda: alpha * noise - sigma * x0,
        Velocity: lambda: noise - x0,
        Score: lambda: -noise / sigma,
    }
    return formulas[type(rule)]()


def replay(noises: Tensor) -> NoiseSource:
    """The given noises, in order."""
    rows: Iterator[Tensor] = iter(noises)
    return lambda t, s: next(rows)


class FromScore(Denoiser):
    """A denoiser whose score is a given function of (x, t)."""

    def __init__(self, sde: SDE, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.sde, self.function = sde, function

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return (x + expand(self.sde.sigma(t), x).square() * self.function(x, t)) / expand(self.sde.alpha(t), x)


def golden(file: str) -> dict[str, Tensor]:
    """Arrays of tests/data, as tensors."""
    with np.load(Path(__file__).parent / "data" / file) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def mixture(sde: SDE) -> GaussianMixtureDenoiser:
    """The reference's four-component mixture in the plane."""
    data = golden("score_sde_gmm2d.npz")
    return GaussianMixtureDenoiser(sde, data["weights"], data["means"], data["covs"])
