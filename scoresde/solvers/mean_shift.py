"""Solvers whose steps are draws from a Gaussian, and guidance that moves its mean."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from scoresde.checks import check_choice, check_numbers
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.guidance.gradients import gradient
from scoresde.guidance.guided import LogProbability
from scoresde.guidance.potential import on_process
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver, add_noise


@dataclass(frozen=True, kw_only=True)
class GaussianStepSolver(StepSolver):
    """A solver whose steps are x_s = mean + std z: draws from N(mean, std²), whose mean guidance may move."""

    @abstractmethod
    def mean_and_std(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
        """Of x_s given x_t: the mean (B, *), and a standard deviation that broadcasts against it; 0 without noise."""

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        return add_noise(*self.mean_and_std(denoiser, x, interval), noise, interval), None


@dataclass(frozen=True, kw_only=True)
class MeanShift(StepSolver):
    """Discrete classifier guidance: the mean of every Gaussian step is moved by its variance times a gradient.

        p(x_s | x_t) = N(μ, Σ)  →  x_s ~ N(μ + scale Σ ∇ log p(y | x_s), Σ),    ∇ at x_s = μ, level s
                                                                    (Dhariwal and Nichol 2021, eq. 7-10 and Algorithm 1)

    which is p(x_s | x_t) p(y | x_s) to first order of log p(y | x_s) around μ. `at="state"` takes the gradient at x_t
    and level t, as their code does.

    How it differs from `ClassifierGuided`, which adds to the score: there an ancestral step moves its mean by
    (β/√α) ∇ at x_t, with β = σ_t² (1 − SNR_t/SNR_s) and √α = α_t/α_s, here by Σ ∇. The two agree to first order in
    the step for Σ = β, `DDPM(variance="large")`. With Σ = β̃ = β σ_s²/σ_t² the shift is too small where σ_s is much
    less than σ_t: near the data, and in runs of few steps. A step without noise, as the one to noise 0, is not guided
    at all; DDIM with η = 0 takes `ClassifierGuided`, which is Algorithm 2: ε̂ − σ ∇ log p.

    Args:
        solver: Whose steps they are, with its steps and grid: `DDPM`, `DDIM` with eta > 0, `EulerMaruyama`,
            `ReverseDiffusion`.
        log_prob: Called as log_prob(x, t) -> (B,), differentiable: log p(y | x_t) up to a constant, of noisy data. A
            `Potential` of another process is asked at equal σ/α.
        scale: Guidance scale.
        at: Where the gradient is taken: "mean" or "state".

    References:
        Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233.
        Sohl-Dickstein et al., "Deep Unsupervised Learning using Nonequilibrium Thermodynamics", 2015, arXiv:1503.03585.
    """

    solver: GaussianStepSolver
    log_prob: LogProbability
    scale: float = 1.0
    at: str = "mean"
    steps: int = field(init=False)
    grid: Grid = field(init=False)
    t_end: float | None = field(init=False)
    denoise: bool = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, GaussianStepSolver) or self.solver.deterministic:
            raise ValueError(
                f"MeanShift moves the mean of steps that draw noise, and needs solver to be DDPM, DDIM with eta > 0, "
                f"EulerMaruyama or ReverseDiffusion, got {self.solver!r}: for others use ClassifierGuided."
            )
        for each in fields(StepSolver):
            object.__setattr__(self, each.name, getattr(self.solver, each.name))
        super().__post_init__()
        if not callable(self.log_prob):
            raise ValueError(f"MeanShift needs log_prob to be a function (x, t) -> (B,), got {self.log_prob!r}.")
        if not isinstance(self.scale, Tensor):
            check_numbers(self, "-inf < scale < inf")
        check_choice(self, "at", self.at, ("mean", "state"))

    @property
    def calls(self) -> int:
        return self.solver.calls

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        mean, std = self.solver.mean_and_std(denoiser, x, interval)
        if not interval.to_data and (isinstance(std, Tensor) or std > 0):
            at, level = (mean, interval.s) if self.at == "mean" else (x, interval.t)
            mean = mean + self.scale * std**2 * self._gradient(denoiser, at, level.time)
        return add_noise(mean, std, noise, interval), None

    @differentiates
    def _gradient(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        log_prob = on_process(self.log_prob, denoiser.sde)
        return gradient(lambda x: log_prob(x, t), x, "MeanShift")
