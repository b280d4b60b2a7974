"""azula (0.11): its guidance, with a VP schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import azula.denoise
import azula.guidance
import azula.noise
import azula.sample
import torch
from azula.linalg.covariance import IsotropicCovariance
from posterior_rows import Row, Task
from torch import Tensor

Options = dict[str, Any]
SCHEDULE = azula.noise.VPSchedule()


class BlackBox(azula.denoise.Denoiser):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.schedule = task, SCHEDULE

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> azula.denoise.Posterior:
        return azula.denoise.DiracPosterior(self.task.denoised(x_t, *self.schedule(t)))


class PerSampleDPS(azula.guidance.DPSSampler):
    """Its DPS, which divides by one norm over the whole batch, with a norm for each sample."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: Any) -> Tensor:
        plain = azula.sample.DDPMSampler.step(self, x_t, t, s, **kwargs)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            error = self.y - self.A(self.denoiser(x_t, t, **kwargs).mean)
            norm = torch.linalg.vector_norm(error, dim=1).sum()
        return plain - self.zeta * torch.autograd.grad(norm, x_t)[0]


def observation(task: Task) -> Options:
    A = task.problem.A
    return {"y": task.problem.y, "A": lambda x: x @ A.T}


def sampled(task: Task, sampler: azula.sample.Sampler) -> Tensor:
    x = sampler.init((task.samples, task.problem.mu.shape[1]), dtype=torch.float64)
    result: Tensor = sampler(x)
    return result


def of_sampler(name: str, kind: Any, options: Callable[[Task], Options], label: str, exact: bool = False) -> Row:
    def run(task: Task) -> Tensor:
        sampler = kind(BlackBox(task), **options(task), steps=task.steps, silent=True, dtype=torch.float64)
        return sampled(task, sampler)

    return Row(name, label, run, exact)


def of_denoiser(name: str, kind: Any, options: Callable[[Task], Options], solver: str, **more: Any) -> Row:
    def run(task: Task) -> Tensor:
        denoiser = kind(BlackBox(task), **observation(task), **options(task))
        make = getattr(azula.sample, f"{solver}Sampler")
        return sampled(task, make(denoiser, steps=task.steps, silent=True, dtype=torch.float64, **more))

    return Row(name, solver + (" eta=0" if more else ""), run)


def pseudo_inverse(task: Task) -> Options:
    inverse = torch.linalg.pinv(task.problem.A)
    return {**observation(task), "A_inv": lambda y: y @ inverse.T}


def variance(task: Task) -> Options:
    return {"var_y": task.problem.sigma_y**2}


def mmps(iterations: int | None) -> Callable[[Task], Options]:
    def options(task: Task) -> Options:
        cov_y = IsotropicCovariance(torch.tensor(task.problem.sigma_y**2, dtype=torch.float64))
        return {"cov_y": cov_y, "iterations": iterations or len(task.problem.y)}

    return options


def twist(task: Task) -> Options:
    problem = task.problem
    gram, noise = problem.A @ problem.A.T, problem.sigma_y**2 * torch.eye(len(problem.y), dtype=torch.float64)

    def log_prob(x: Tensor, ratio: Tensor) -> Tensor:
        """log N(y; A x, r² A Aᵀ + σ_y² I), r² = s²/(1 + s²) at s = σ/α: Cov[x0 | x_t] of x0 ~ N(0, I)."""
        law = torch.distributions.MultivariateNormal(x @ problem.A.T, ratio**2 / (1 + ratio**2) * gram + noise)
        return law.log_prob(problem.y)

    return {"twist": log_prob}


ROWS = [
    of_sampler("DPS 1", azula.guidance.DPSSampler, lambda task: {**observation(task), "zeta": 1.0}, "DDPM"),
    of_sampler("DPS 1, per sample", PerSampleDPS, lambda task: {**observation(task), "zeta": 1.0}, "DDPM"),
    of_sampler("DPS 0.1, per sample", PerSampleDPS, lambda task: {**observation(task), "zeta": 0.1}, "DDPM"),
    of_sampler("PGDM", azula.guidance.PGDMSampler, pseudo_inverse, "DDIM"),
    of_sampler("PGDM", azula.guidance.PGDMSampler, lambda task: {**pseudo_inverse(task), "eta": 1.0}, "DDIM eta=1"),
    of_denoiser("TMPD", azula.guidance.TMPDenoiser, variance, "DDPM"),
    of_denoiser("MMPS, 1 iteration", azula.guidance.MMPSDenoiser, mmps(1), "DDPM"),
    of_denoiser("MMPS, d_y iterations", azula.guidance.MMPSDenoiser, mmps(None), "DDPM"),
    of_denoiser("MMPS, d_y iterations", azula.guidance.MMPSDenoiser, mmps(None), "DDIM", eta=0.0),
    of_denoiser("DiffPIR", azula.guidance.DiffPIRDenoiser, variance, "DDPM"),
    of_sampler("TDS", azula.guidance.TDSSampler, twist, "500 particles", exact=True),
]
