"""First-order updates of the reverse SDE: Euler-Maruyama, and the reverse of the forward discretisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import linear
from scoresde.solvers.exponential import choose
from scoresde.solvers.mean_shift import GaussianStepSolver


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(GaussianStepSolver):
    """Euler-Maruyama for the reverse SDE, and for the family between it and the probability-flow ODE.

        x_s = x − (f x − ½ (1 + η²) g² score) (t − s) + η g √(t − s) z          (Song et al. 2021, eq. 6 and 13)

    From no signal, where f and g are infinite, the reverse SDE forgets x at once, x_s = α_s x̂0 + σ_s z; the
    probability flow does not, x_s = x − velocity (t − s).

    Args:
        eta: η: 1 is the reverse SDE, 0 Euler's method for the probability-flow ODE.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= eta <= 1")

    def mean_and_std(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
        t = interval.t
        if interval.denoising:
            return denoiser.x0(x, t), 0.0
        dt = t.t - interval.s.t
        if (silent := t.alpha == 0) is True:
            return self._from_no_signal(denoiser, x, interval, dt)
        push = 0.5 * (1 + self.eta**2) * t.g**2 * dt
        x_s = linear((1 - t.f * dt, x), (push, denoiser.score_at(x, t)))
        std = self.eta * t.g * dt**0.5 if self.eta else 0.0
        if silent is not False and denoiser.sde.ends_silent:
            x_s, std = choose(silent, self._from_no_signal(denoiser, x, interval, dt), (x_s, std))
        return x_s, std

    def _from_no_signal(self, denoiser: Denoiser, x: Tensor, interval: Interval, dt: Any) -> tuple[Tensor, Any]:
        if not self.eta:
            return x - dt * denoiser.velocity_at(x, interval.t), 0.0
        return interval.s.alpha * denoiser.x0(x, interval.t), interval.s.sigma


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(GaussianStepSolver):
    """Reverse of the forward process's own discretisation.

        x_t = a x_s + b z  forward, the exact transition from s to t
        x_s = (2 − a) x_t + ½ (1 + η²) b² score + η b z                        (Song et al. 2021, App. E)

    On a `DiscreteVPSDE`, a = √(1 − β_k) and b = √β_k. From no signal, a = 0, there is nothing to reverse: the step is
    `EulerMaruyama`'s for η > 0, and `DDIM`'s for η = 0.

    Args:
        eta: η: 1 samples, 0 follows the probability flow.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= eta <= 1")

    def weights(self, levels: Levels) -> Weights:
        a, b = levels.sde.transition(levels.t[1:], levels.t[:-1])
        return {"a": a, "b": b}

    def mean_and_std(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
        t = interval.t
        if interval.denoising:
            return denoiser.x0(x, t), 0.0
        if (silent := t.alpha == 0) is True:
            return self._from_no_signal(denoiser, x, interval)
        forward = interval.weights(self)
        a, b = forward.a, forward.b
        x_s = linear((2 - a, x), (0.5 * (1 + self.eta**2) * b**2, denoiser.score_at(x, t)))
        std = self.eta * b if self.eta else 0.0
        if silent is not False and denoiser.sde.ends_silent:
            x_s, std = choose(silent, self._from_no_signal(denoiser, x, interval), (x_s, std))
        return x_s, std

    def _from_no_signal(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
        t, s = interval.t, interval.s
        keep, std = (0.0, s.sigma) if self.eta else (s.sigma / t.sigma, 0.0)
        return linear((keep, x), (s.alpha, denoiser.x0(x, t))), std
