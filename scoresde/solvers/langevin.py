"""Langevin correctors, and predictor-corrector sampling."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde import expand
from scoresde.solvers.ancestral import ReverseDiffusion
from scoresde.solvers.base import StepSolver


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
        _check_inner(self, self.snr, self.inner_steps)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        a = denoiser.sde.alpha(t) / denoiser.sde.alpha(s)
        for _ in range(self.inner_steps):
            z, score = noise(t, t), denoiser.score(x, t)
            e = 2 * (a * self.snr * _norm(z) / _norm(score)).square()
            e = e.minimum(2 * self.max_ratio * (a * self.snr * denoiser.sde.sigma(t)).square()).to(x.dtype)
            x = x + expand(e, x) * score + expand((2 * e).sqrt(), x) * z
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
        _check_inner(self, self.snr, self.inner_steps)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        sde = denoiser.sde
        e = 2 * (sde.alpha(t) / sde.alpha(s) * self.snr * sde.sigma(t)).square()
        for _ in range(self.inner_steps):
            z = noise(t, t)
            x = x + expand(e, x) * denoiser.score(x, t) + expand((2 * e).sqrt(), x) * z
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
        if self.order not in ("corrector_first", "predictor_first"):
            raise ValueError(
                f"PredictorCorrector needs order 'corrector_first' or 'predictor_first', got {self.order!r}."
            )

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: object
    ) -> tuple[Tensor, object]:
        if self.order == "corrector_first":
            x, _ = self.corrector.step(denoiser, x, t, s, noise, None)
            return self.predictor.step(denoiser, x, t, s, noise, state)
        x, state = self.predictor.step(denoiser, x, t, s, noise, state)
        x, _ = self.corrector.step(denoiser, x, s, s, noise, None)  # at s itself: a = 1
        return x, state


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _check_inner(solver: StepSolver, snr: float, inner_steps: int) -> None:
    if not snr > 0 or inner_steps < 1:
        raise ValueError(
            f"{type(solver).__name__} needs snr > 0 and inner_steps >= 1, got snr={snr}, inner_steps={inner_steps}."
        )
