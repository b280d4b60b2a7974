"""Langevin correctors, and predictor-corrector sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde import expand
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver, check_step_solvers
from scoresde.solvers.euler_maruyama import ReverseDiffusion


@dataclass(frozen=True, kw_only=True)
class Langevin(StepSolver):
    """Langevin dynamics at the current noise level, with a step size set by the signal-to-noise ratio of the step.

        e = 2 a² (snr ‖z‖ / ‖score‖)²,      x ← x + e score + √(2e) z             (Song et al. 2021, Alg. 4 and 5)

    Norms are those of each sample, so a sample does not depend on its batch. a = α_t/α_s is the transition scale of
    the grid step: a² = 1 − β_k on a DDPM table, 1 for VE, and defined for every SDE. Used alone it moves along the
    noise levels by correction only; inside `PredictorCorrector` it is the corrector.

    In few dimensions one sample's score can be near 0 by chance and the rule's step without bound, so e is kept below
    `max_ratio` times the step of `AnnealedLangevin`, 2 a² (snr σ_t)². Images seldom reach that; for events of less
    than about 16 entries prefer `AnnealedLangevin`, whose step has no such scatter.

    Args:
        snr: Ratio of the score's to the noise's part of a step; 0.16 for CIFAR-10 with VE.
        inner_steps: Updates per noise level.
        max_ratio: Bound on e; infinity is the published rule.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    snr: float = 0.16
    inner_steps: int = 1
    max_ratio: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 < snr <= 100")
        check_whole(self, "inner_steps >= 1")
        if self.max_ratio != math.inf:
            check_numbers(self, "0 < max_ratio <= 1e9")

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        t, scale = interval.t, self.snr * interval.t.alpha / interval.s.alpha  # a snr
        if interval.denoising:
            return denoiser.x0(x, t), None
        for _ in range(self.inner_steps):
            z, score = noise(t.host_time, t.host_time), denoiser.score_at(x, t)
            step = scale * expand(_norm(z) / _norm(score), x)  # √(e/2)
            step = step if self.max_ratio == math.inf else step.clamp_max(self.max_ratio**0.5 * scale * t.sigma)
            x = x + 2 * step**2 * score + 2 * step * z
        return x, None


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(StepSolver):
    """Langevin dynamics with a step size proportional to the noise variance.

        e = 2 a² (snr σ_t)²,                x ← x + e score + √(2e) z             (Song and Ermon 2019, Alg. 1)

    a as in `Langevin`.

    Args:
        snr: Step size relative to the noise level.
        inner_steps: Updates per noise level.

    References:
        Song and Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019, arXiv:1907.05600.
    """

    snr: float = 0.16
    inner_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 < snr <= 100")
        check_whole(self, "inner_steps >= 1")

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        t = interval.t
        if interval.denoising:
            return denoiser.x0(x, t), None
        e = 2 * (t.alpha / interval.s.alpha * self.snr * t.sigma) ** 2
        for _ in range(self.inner_steps):
            z = noise(t.host_time, t.host_time)
            x = x + e * denoiser.score_at(x, t) + (2 * e) ** 0.5 * z
        return x, None


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(StepSolver):
    """Predictor-corrector sampling: a step of the reverse process and Langevin updates at each noise level.

    Args:
        predictor: Moves from t to s: any step solver.
        corrector: Improves x at its level; its own steps and grid are not used.
        order: "corrector_first" corrects at t, then predicts to s (the published code); "predictor_first" predicts
            to s and corrects there (the paper's Algorithm 1), so the last state is corrected too.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    predictor: StepSolver = field(default_factory=ReverseDiffusion)
    corrector: StepSolver = field(default_factory=Langevin)
    order: str = "corrector_first"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, ("corrector_first", "predictor_first"))
        check_step_solvers(self, "predictor", "corrector")

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        if interval.denoising:
            return denoiser.x0(x, interval.t), None
        if self.order == "corrector_first":
            x, _ = self.corrector.step(denoiser, x, interval, noise, None)
            return self.predictor.step(denoiser, x, interval, noise, state)
        x, state = self.predictor.step(denoiser, x, interval, noise, state)
        if not interval.to_data:
            x, _ = self.corrector.step(denoiser, x, interval.resting, noise, None)
        return x, state


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
