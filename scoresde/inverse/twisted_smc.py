"""Twisted sequential Monte Carlo: asymptotically exact samples of p(x0 | y), and the evidence log p(y)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_flag, check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.populations import Draws, Particles, systematic
from scoresde.inverse.twist import Moments, Twist
from scoresde.noise.sources import NoiseSource, standard_normal
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.solvers import DDPM, Plan, Solver


@dataclass(frozen=True, kw_only=True)
class TwistedSMC(Solver):
    """The twisted diffusion sampler: particles that are guided by p̃(y | x_t), weighted and resampled.

        x_T ~ p(x_T),                 w = p̃(y | x_T)
        x_s ~ q(x_s | x_t, y),        w ← w · p(x_s | x_t) p̃(y | x_s) / (q(x_s | x_t, y) p̃(y | x_t))
        resample where 1/Σ w² < threshold · particles (w normalised);     p̃(y | x_0) = p(y | x_0)
                                                                                  (Wu et al. 2023, Algorithm 1)

    All kernels have the moments of x0 given x_t, x̂0 and C = σ²/α Jᵀ (J = ∂x̂0/∂x), instead of C = 0:

        p(x_s | x_t) = N(g x̂0 + ..., β̃ I + g² C)                   DDPM's mean, variance "optimal" with all of C
        p̃(y | x_t)   = N(y; A x̂0, A C Aᵀ + Σ_y)
        q            = p(x_s | x_t) conditioned on y by that Gaussian: mean and covariance

    For a Gaussian prior the weights are equal. For any prior the weighted population stands for p(x0 | y) in the limit
    of many particles and steps, p̂(y) = Π mean w has the mean p(y), and only the prior's own discretisation, of second
    order, is left at few steps. Where p(x0 | x_t) is nearly Gaussian at `t_end` the last step is exact: it need not
    be near the data.

    A y for all samples has one population, from which the samples are drawn by systematic resampling: they depend on
    each other, as particles do. One y per sample, or `independent`, has a population for each sample, which is a
    function of its y and its own noise; its law is off by the order of 1/particles. On mixtures of 25 components
    16 of its own are within 1 to 2 times the distance that exact samples have (docs/inverse.md).

    A step costs each particle 2 forward passes and m + (m + 1) · root_iterations backward passes, if m entries of y are
    observed: for small m.

    Args:
        measurement: y, A and the noise. A that is not linear is linearised at x̂0, noise that is not Gaussian has its
            covariance there; the last weight has the exact p(y | x0).
        steps, grid: Times, as for other solvers.
        particles: N of a population; 4,096 for figures, fewer for networks.
        threshold: Of the effective sample size over N, below which a population is resampled.
        covariance: "jacobian", or "isotropic": C = σ²/(α² + σ²) I, that of x0 ~ N(0, I), without backward passes.
        root_iterations: Products with C for P^½ v and P^(−½) v, by Lanczos.
        independent: Whether each sample has a population of its own.
        rows: Particles in one call of the denoiser.

    References:
        Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models", 2023,
        arXiv:2306.17775.
    """

    measurement: Measurement
    steps: int = 100
    grid: Grid = logsnr_grid
    particles: int = 4096
    threshold: float = 0.5
    covariance: str = "jacobian"
    root_iterations: int = 4
    independent: bool = False
    rows: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "1 <= particles", "1 <= root_iterations", "1 <= rows")
        check_numbers(self, "0 <= threshold <= 1")
        check_choice(self, "covariance", self.covariance, ("jacobian", "isotropic"))
        check_flag(self, "independent", self.independent)
        if not isinstance(self.measurement, Measurement):
            raise TypeError(f"TwistedSMC needs measurement to be a Measurement, got {self.measurement!r}.")
        self._path()

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        """Samples (B, *) of p(x0 | y), from x at t = 1 (B, *).

        Raises:
            ValueError: If one population has fewer particles than there are samples.
            FloatingPointError: If the weights or the samples are not finite.
        """
        populations = self._populations(x)
        if populations == 1 and len(x) > self.particles:
            raise ValueError(
                f"TwistedSMC needs at least as many particles as samples, got particles={self.particles} for "
                f"{len(x)} samples: raise particles, or set independent=true."
            )
        noise = noise or partial(standard_normal, x.detach())
        found = self.run(denoiser, x, noise=noise)
        last = self.plan(denoiser, device=x.device).intervals[-1].s
        uniform = Draws(noise, len(x), populations, self.particles).uniform(last, populations)
        result = found.draw(len(x) // populations, uniform)
        if not bool(torch.isfinite(result).all() & torch.isfinite(found.log_evidence).all()):
            raise FloatingPointError(
                "TwistedSMC got NaN or infinity in its particles or weights: the denoiser or p(y | x0) is not finite "
                "there, or no particle explains y. Take more particles, or check y and the noise."
            )
        return result

    @torch.no_grad()
    def run(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Particles:
        """The weighted populations, with log p̂(y) and the effective sample sizes.

        Args:
            denoiser: The prior.
            x: Starts at t = 1, (B, *): of the first particles; the others are drawn.
            noise: Source of standard normal noise of x's shape; it is asked several times a step.
        """
        noise = noise or partial(standard_normal, x.detach())
        return self._run(denoiser, x, noise, self.plan(denoiser, device=x.device))

    @differentiates
    def _run(self, denoiser: Denoiser, x: Tensor, noise: NoiseSource, plan: Plan) -> Particles:
        populations, size = self._populations(x), self.particles
        draws = Draws(noise, len(x), populations, size)
        x = self._starts(denoiser, x, draws, plan)
        twists = self._twists(denoiser, populations, x)
        known = self._moments(twists, x, plan.intervals[0].t)
        log_w, trace = known.log_twist.reshape(populations, size), []
        for interval in plan.intervals:
            trace.append(share := effective_size(log_w))
            index = systematic(log_w, draws.uniform(interval.t, populations), size)
            poor = (share < self.threshold)[:, None]
            index = torch.where(poor, index, torch.arange(len(x), device=x.device).reshape(populations, size)).flatten()
            log_w = torch.where(poor, log_w.logsumexp(1, keepdim=True) - math.log(size), log_w)
            x, known = x[index], Moments(*(value[index] for value in known))

            z, n = draws(interval.s), draws.entries(interval.s, known.residual.shape[1])
            parts = [
                twist.step(x[rows], Moments(*(value[rows] for value in known)), interval, z[rows], n[rows])
                for twist, rows in twists
            ]
            x, change = (torch.cat(part) for part in zip(*parts, strict=True))
            if not interval.to_data:
                known = self._moments(twists, x, interval.s)
                change = change + known.log_twist
            log_w = log_w + change.reshape(populations, size)
        trace.append(effective_size(log_w))
        total = log_w.logsumexp(1)
        shaped = x.reshape(populations, size, *x.shape[1:])
        return Particles(shaped, log_w - total[:, None], total - math.log(size), torch.stack(trace))

    def _populations(self, x: Tensor) -> int:
        seen = len(self.measurement.y)
        if seen not in (1, len(x)):
            raise ValueError(
                f"TwistedSMC needs one y for all samples or one for each, got {seen} for {len(x)} samples."
            )
        return len(x) if self.independent or seen > 1 else 1

    def _starts(self, denoiser: Denoiser, x: Tensor, draws: Draws, plan: Plan) -> Tensor:
        first = plan.intervals[0].t
        others = denoiser.sde.prior_std * draws(first)
        if draws.own:  # rows of a population are neighbours
            others[:: self.particles] = x
        else:
            others[: len(x)] = x[: len(others)]
        one = torch.ones((), dtype=torch.float64)
        return others if plan.start is None else plan.start(plan.sde, others, one, first.host_time)

    def _twists(self, denoiser: Denoiser, populations: int, x: Tensor) -> list[tuple[Twist, slice]]:
        """Of blocks of rows, each with its own measurements."""
        made = []
        for start in range(0, len(x), self.rows):
            rows = slice(start, min(start + self.rows, len(x)))
            index = torch.arange(rows.start, rows.stop, device=x.device) // self.particles
            chosen = denoiser.select(index, populations) if populations > 1 else denoiser
            measurement = self.measurement.select(index, populations) if populations > 1 else self.measurement
            made.append(
                (Twist(chosen or denoiser, measurement, self.covariance == "isotropic", self.root_iterations), rows)
            )
        return made

    def _moments(self, twists: list[tuple[Twist, slice]], x: Tensor, level: Any) -> Moments:
        parts = [twist.moments(x[rows], level) for twist, rows in twists]
        return Moments(*map(torch.cat, zip(*parts, strict=True)))

    def plan(self, denoiser: Denoiser, *, device: Any = None) -> Plan:
        """The levels of a run."""
        return self._path().plan(denoiser, device=device)

    def _path(self) -> DDPM:
        """The times, as DDPM takes them."""
        return DDPM(steps=self.steps, grid=self.grid, t_end=self.t_end, denoise=self.denoise)


def effective_size(log_weights: Tensor) -> Tensor:
    """1/Σ w² of normalised weights over N: (R, N) -> (R,) in (0, 1]."""
    return log_weights.softmax(1).square().sum(1).reciprocal() / log_weights.shape[1]
