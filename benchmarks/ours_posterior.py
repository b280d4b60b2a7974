"""Our posterior samplers for benchmarks/posteriors.py: each method with the solver that suits it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from posterior_rows import Row, Task
from torch import Tensor

from scoresde import DDIM, DDPM, VPSDE, Denoiser, DPMSolverPP2M, EulerMaruyama
from scoresde.guidance import ReconstructionGuided
from scoresde.inverse import DAPS, DDRM, DPS, MMPS, TMPD, DiffPIR, Matrix, Measurement, PiGDM, TwistedSMC
from scoresde.noise import gaussian_noise
from scoresde.sde import expand
from scoresde.sde.grids import logsnr_grid
from scoresde.solvers import Solver


class BlackBox(Denoiser):
    """The exact E[x0 | x_t], and nothing else."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.sde = task, VPSDE()

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        wide = t.to(x.device).double()
        return self.task.denoised(x, expand(self.sde.alpha(wide), x), expand(self.sde.sigma(wide), x))

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self


def measurement(task: Task) -> Measurement:
    problem = task.problem
    return Measurement(Matrix(problem.A), problem.y[None], problem.sigma_y)


def guided(
    name: str,
    make: Callable[[Denoiser, Measurement], Denoiser],
    solver: Callable[[int], Solver],
    label: str,
    *,
    exact: bool = False,
) -> Row:
    """A method that makes the denoiser of the posterior, for any solver."""

    def run(task: Task) -> Tensor:
        denoiser = make(BlackBox(task), measurement(task))
        return solver(task.steps)(denoiser, x := _start(task), noise=gaussian_noise(x, task.generator))

    return Row(name, label, run, exact)


def solved(name: str, make: Callable[[Measurement, int], Solver], label: str, *, exact: bool = False) -> Row:
    """A method that is a solver itself."""

    def run(task: Task) -> Tensor:
        solver = make(measurement(task), task.steps)
        return solver(BlackBox(task), x := _start(task), noise=gaussian_noise(x, task.generator))

    return Row(name, label, run, exact)


def _start(task: Task) -> Tensor:
    shape = (task.samples, task.problem.mu.shape[1])
    return VPSDE().prior_sample(shape, generator=task.generator).double()


NEARLY_GAUSSIAN = float(VPSDE().time(-2 * torch.tensor(0.1, dtype=torch.float64).log()))  # σ/α = 0.1


def twisted(particles: int, independent: bool = False) -> Callable[[Measurement, int], Solver]:
    """Its last step samples the Gaussian that x0 nearly is at σ/α = 0.1."""

    def make(measurement: Measurement, steps: int) -> Solver:
        return TwistedSMC(
            measurement=measurement, steps=steps, particles=particles, independent=independent, t_end=NEARLY_GAUSSIAN
        )

    return make


ROWS = [
    guided(
        "ReconstructionGuided",
        lambda denoiser, measurement: ReconstructionGuided(denoiser, measurement.log_likelihood),
        lambda steps: DDPM(steps=steps),
        "DDPM",
    ),
    guided(
        "ReconstructionGuided",
        lambda denoiser, measurement: ReconstructionGuided(denoiser, measurement.log_likelihood),
        lambda steps: EulerMaruyama(steps=steps),
        "EulerMaruyama",
    ),
    solved("DPS", lambda measured, steps: DPS(measurement=measured, steps=steps, zeta=0.1), "DDPM, ζ = .1"),
    guided("PiGDM", PiGDM, lambda steps: DDPM(steps=steps), "DDPM"),
    guided("TMPD", TMPD, lambda steps: DDPM(steps=steps), "DDPM"),
    guided("DiffPIR", DiffPIR, lambda steps: DDIM(steps=steps, eta=1.0), "DDIM η = 1"),
    solved("DDRM", lambda measured, steps: DDRM(measurement=measured, steps=steps), "η = .85"),
    solved("DAPS", lambda measured, steps: DAPS(measurement=measured, steps=steps), "1 ODE step"),
    guided("MMPS", MMPS, lambda steps: DDPM(steps=steps, grid=logsnr_grid), "DDPM logsnr"),
    guided("MMPS", MMPS, lambda steps: DPMSolverPP2M(steps=steps, grid=logsnr_grid), "DPMSolverPP2M logsnr"),
    solved("TwistedSMC", twisted(16, independent=True), "16 particles each", exact=True),
    solved("TwistedSMC", twisted(8192), "8,192 particles", exact=True),
]
