"""Regression on the squared noise, which trains the variance heads of Extended Analytic-DPM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_flags
from scoresde.covariance import VarianceHead
from scoresde.losses.denoising import DenoisingLoss
from scoresde.losses.loss import Loss
from scoresde.losses.times import TimeLaw, uniform_times
from scoresde.sde import SDE
from scoresde.sde.clock import last_signal


@dataclass(frozen=True, kw_only=True)
class SecondMomentLoss(Loss):
    """Regression of a `VarianceHead` on the squared noise, one value per example.

        "sn"    L = w mean_d (h − ε²)²             "npr"   L = w mean_d (g − (ε − ε̂)²)²

    The minimum over functions of (x_t, t) does not depend on w > 0. The paper has w = 1, which neglects high noise,
    where g is small but counts σ²/α² times. `relative` has w = 1/u² for "npr" and 1/u for "sn", u = `VarianceHead.unit`
    the value for Gaussian data, so that every noise level counts alike in units of its own scatter.

    Where a process ends without signal, what is known of x0 no longer changes: times beyond α/σ = 10⁻³ are taken there.

    Args:
        time: Distribution of t, as for `DenoisingLoss`.
        sampling: How a batch draws from it, as for `DenoisingLoss`.
        relative: Whether to weight as above; False is the paper's loss.

    References:
        Bao et al., "Estimating the Optimal Covariance with Imperfect Mean", 2022, arXiv:2206.07309.
    """

    time: TimeLaw = uniform_times
    sampling: str = "stratified"
    relative: bool = True

    def __post_init__(self) -> None:
        check_flags(self)
        self._draws()

    def __call__(
        self, head: VarianceHead, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch at random times: x0 (B, *) -> (B,)."""
        t, noise = self.draw(head.sde, x0, generator)
        return self.at(head, x0, t, noise, **cond)

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        return self._draws().draw(sde, x0, generator)

    def at(self, head: VarianceHead, x0: Tensor, t: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        """Loss at given times (B,) and noise (B, *)."""
        if not isinstance(head, VarianceHead):
            raise TypeError(f"SecondMomentLoss trains a VarianceHead around a denoiser, got {type(head).__name__}.")
        if (last := last_signal(head.sde)) < 1:
            t = t.clamp(max=last)
        x = head.sde.perturb(x0, t, noise)
        with torch.no_grad():
            eps = head.denoiser.eps(x, t, **cond)
            unit = head.unit(x, t)
            if head.kind == "sn":
                target = (noise - eps) * (noise + eps) / unit  # (ε² − ε̂²)/u: the head's own unit
                weight = unit if self.relative else unit.square()
            else:
                target = (noise - eps).square() / unit
                weight = torch.ones_like(unit) if self.relative else unit.square()
        return (weight * (head.ratio(x, t, eps) - target).square()).flatten(1).mean(1)

    def _draws(self) -> DenoisingLoss:
        return DenoisingLoss(time=self.time, sampling=self.sampling)
