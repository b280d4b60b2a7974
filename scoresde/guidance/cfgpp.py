"""CFG++."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.guidance.branches import Method, ask_all, require_same_sde, select_all
from scoresde.sde.levels import Interval, Level


class CFGPP(Denoiser):
    """CFG++: guided towards x̂0, and noised again with the reference's ε̂; a rule of the steps of `DDIM`.

        x_s = α_s x̂0^λ + σ_s ε̂_ref,     x̂0^λ = reference + scale (denoiser − reference)    (Chung et al. 2024, Alg. 2)

    DDIM noises again with the ε̂ that belongs to x̂0. That is the same step if it is given

        x̂0 = reference + scale/(1 − e^(−h)) (denoiser − reference),     h = λ_s − λ_t,  λ = ½ logsnr

    so this denoiser's answer depends on where the step in hand ends: the scale is one per step, and more steps guide
    more. The number of steps is a part of the law, there is no ODE behind it, and no likelihood. Ask it in a run of
    DDIM with eta=0, forwards or in `encode`.

    Args:
        denoiser, reference: As for `Guided`.
        scale: λ; 1 goes all the way to the denoiser's x̂0.

    References:
        Chung et al., "CFG++: Manifold-Constrained Classifier Free Guidance", 2024, arXiv:2406.08070.
    """

    def __init__(self, denoiser: Denoiser, reference: Denoiser, scale: float) -> None:
        super().__init__()
        require_same_sde("CFGPP", denoiser, reference)
        check_numbers(self, "-inf < scale < inf", scale=scale)
        self.sde, self.denoiser, self.reference, self.scale = denoiser.sde, denoiser, reference, scale

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._guided(lambda denoiser: denoiser.x0, x, level, cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._guided(lambda denoiser: denoiser.v_at, x, level, cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        pair = select_all((self.denoiser, self.reference), index, batch)
        return None if pair is None else CFGPP(pair[0], pair[1], self.scale)

    def _guided(self, method: Method, x: Tensor, level: Level, cond: dict[str, Any]) -> Tensor:
        wanted, reference = ask_all((self.denoiser, self.reference), method, x, level, cond)
        return reference + self.scale / _step_from(level).decay * (wanted - reference)


def _step_from(level: Level) -> Interval:
    """The step of a run that begins at a level."""
    schedule = level.schedule
    if not schedule.levels.whole or level.index + 1 >= len(schedule.levels):
        raise ValueError(
            "CFGPP is a rule of the steps of DDIM, and was asked outside of them: sample with DDIM on the denoiser's "
            "own process, or take Guided, which has an ODE and goes with every solver."
        )
    return schedule.intervals[level.index]
