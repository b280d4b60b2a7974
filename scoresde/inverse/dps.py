"""DPS: every step of a solver is followed by a step down the misfit of x̂0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.denoiser.dependence import asks_for_gradient
from scoresde.denoiser.inference_mode import differentiates
from scoresde.inverse.linearised import check_fit
from scoresde.inverse.measurement import Measurement
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Interval, Level
from scoresde.solvers import DDPM, StepSolver
from scoresde.solvers.base import check_step_solvers


@dataclass(frozen=True, kw_only=True)
class DPS(StepSolver):
    """Diffusion posterior sampling, as published: a solver, because the size of its shift is tied to the steps.

        x_s = step(x_t, x̂0) − ζ ∇_x ‖y − A x̂0(x_t)‖                     (Chung et al. 2023, Algorithm 1)

    The norm is that of each sample; the paper's ζ_i ∇‖·‖² with ζ_i = ζ'/‖·‖ is ζ = 2 ζ'. The shift does not shrink with
    the steps: twice as many guide twice as much, and there is no law in the limit. For any solver, and as a score
    with the scale of the noise, the same gradient is that of `ReconstructionGuided(..., plug_in=True)`.

    A step costs one forward and one backward pass, if the solver's step does. Of a solver that asks several times in a
    step the first answer is measured.

    Args:
        measurement: y and A; the noise is not used, ζ stands for it.
        solver: Whose step; times and `denoise` are those given here.
        zeta: ζ, from 0.1 to 1 for data of unit size and 1000 steps.

    References:
        Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv:2209.14687.
    """

    steps: int = 1000
    measurement: Measurement
    solver: StepSolver = field(default_factory=DDPM)
    zeta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_solvers(self, "solver")
        check_numbers(self, "0 <= zeta < inf")
        if not isinstance(self.measurement, Measurement):
            raise TypeError(f"DPS needs measurement to be a Measurement, got {self.measurement!r}.")

    @property
    def calls(self) -> int:
        return self.solver.calls

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        if interval.denoising:
            return self.solver.step(denoiser, x, interval, noise, state)
        asked = _Remembered(denoiser)
        x_s, state = self.solver.step(asked, x, interval, noise, state)
        return x_s - self.zeta * asked.gradient_of(self.measurement), state


class _Remembered(Denoiser):
    """A denoiser that keeps the graph of its first answer."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.sde, self.denoiser = denoiser.sde, denoiser
        self.first: tuple[Tensor, Tensor, bool] | None = None

    @differentiates
    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        if self.first is not None:
            return self.denoiser.x0(x, level, **cond)
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            x0 = self.denoiser.x0(leaf, level, **cond)
        through = asks_for_gradient(x0, leaf, x)
        self.first = leaf, x0, through
        return x0 if through else x0.detach()

    @differentiates
    def gradient_of(self, measurement: Measurement) -> Tensor:
        """∇_x ‖y − A x̂0‖, the norm of each sample, (B, *)."""
        assert self.first is not None
        x, x0, through = self.first
        check_fit(measurement, x0)
        with torch.enable_grad():
            misfit = measurement.residual(x0)
            if (observed := measurement.operator.observed) is not None:
                misfit = torch.where(observed, misfit, 0)
            norm = torch.linalg.vector_norm(misfit.flatten(1), dim=1)
            return torch.autograd.grad(norm.sum(), x, create_graph=through)[0]
