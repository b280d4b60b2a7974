"""Extrapolation from a reference denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.guidance.branches import Method, ask_all, require_same_sde, select_all
from scoresde.guidance.scales import GuidanceScale, Scale
from scoresde.sde.levels import Level


class Guided(Denoiser):
    """Extrapolation from a reference denoiser: classifier-free guidance, negative conditions, autoguidance.

        x̂0 = reference + scale (denoiser − reference)          (Ho & Salimans 2022, eq. 6, with scale = 1 + w)

    scale 1 is the denoiser itself, 0 the reference. Linear in x̂0, so the same holds for ε̂ and the score. With
    scale ≠ 1 this is not the score of any diffused density, and different solvers give different laws: for Gaussian
    data of variance v and v_r in the reference the flow ends at v (v/v_r)^w, while p^(1+w)/p_r^w has
    1/((1 + w)/v − w/v_r).

        Guided(model.given(label=y), model.given(label=None), 2.0)       classifier-free guidance
        Guided(model.given(label=y), model.given(label=n), 2.0)          away from n: a negative condition
        Guided(model.given(label=y), worse_model.given(label=y), 2.0)    autoguidance

    The first two are one network call of twice the batch, see `ask_all`.

        x̂0' = rescale x̂0 std(denoiser)/std(x̂0) + (1 − rescale) x̂0        (Lin et al. 2024, §3.4)

    takes back what large scales add to the contrast; std is over the entries of each sample. Where there is no signal,
    the paper's network output v is −x̂0.

    Args:
        denoiser, reference: Denoisers on the same SDE. Conditions passed to a call reach both; bound ones stay.
        scale: Guidance scale: a number, one per sample (B,), or a function of σ/α such as `PowerScale`.
        interval: (low, high) in units of σ/α: the scale is 1 outside (low, high]. None guides everywhere.
        rescale: φ from 0 to 1.

    References:
        Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598.
        Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, arXiv:2406.02507.
        Kynkäänniemi et al., "Applying Guidance in a Limited Interval", 2024, arXiv:2404.07724.
        Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024, arXiv:2305.08891, §3.4.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Denoiser,
        scale: Scale,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__()
        require_same_sde("Guided", denoiser, reference)
        check_numbers(self, "0 <= rescale <= 1", rescale=rescale)
        self.sde, self.denoiser, self.reference = denoiser.sde, denoiser, reference
        self.strength, self.rescale = GuidanceScale.of(self, scale, interval), rescale

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._guided(lambda denoiser: denoiser.x0, x, level, cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        if self.rescale:  # which is not linear
            return super().v_at(x, level, **cond)
        return self._guided(lambda denoiser: denoiser.v_at, x, level, cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        pair = select_all((self.denoiser, self.reference), index, batch)
        scale, interval = self.strength.rows(index, batch), self.strength.interval
        return None if pair is None else Guided(pair[0], pair[1], scale, interval, self.rescale)

    def _guided(self, method: Method, x: Tensor, level: Level, cond: dict[str, Any]) -> Tensor:
        scale = self.strength.at(level, x)
        if not isinstance(scale, Tensor) and (scale == 1 or (scale == 0 and not self.rescale)):
            return method(self.denoiser if scale == 1 else self.reference)(x, level, **cond)
        wanted, reference = ask_all((self.denoiser, self.reference), method, x, level, cond)
        guided = reference + scale * (wanted - reference)
        return guided if not self.rescale else guided * (1 - self.rescale + self.rescale * _contrast(wanted, guided))


def _contrast(wanted: Tensor, guided: Tensor) -> Tensor:
    """std(wanted)/std(guided) of every sample, (B, 1, ..., 1); 1 where nothing varies."""
    axes = tuple(range(1, wanted.ndim))
    ours, theirs = (value.std(axes, correction=0, keepdim=True) for value in (wanted, guided))
    return torch.where(theirs > 0, ours / theirs, 1)
