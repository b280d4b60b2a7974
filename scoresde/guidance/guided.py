"""Denoisers made from denoisers: guidance, composition, and conditioning on a differentiable log p(y | x_t)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_list, check_numbers, check_pair
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.guidance.gradients import gradient
from scoresde.guidance.potential import on_process
from scoresde.sde.clock import last_signal, nearest_signal
from scoresde.sde.levels import Level

LogProbability = Callable[[Tensor, Tensor], Tensor]  # (x (B, *), t () or (B,)) -> log p(y | x_t = x) (B,)


class Guided(Denoiser):
    """Extrapolation from a reference denoiser: classifier-free guidance and autoguidance.

        x̂0 = reference + scale (denoiser − reference)          (Ho & Salimans 2022, eq. 6, with scale = 1 + w)

    scale 1 is the denoiser itself, 0 the reference. Linear in x̂0, so the same holds for ε̂ and the score. With
    scale ≠ 1 this is not the score of any diffused density, and different solvers give different laws.

        Guided(model.given(label=y), model.given(label=None), 2.0)       classifier-free guidance
        Guided(model.given(label=y), worse_model.given(label=y), 2.0)    autoguidance

    Args:
        denoiser, reference: Denoisers on the same SDE. Conditions passed to a call reach both; bound ones stay.
        scale: Guidance scale.
        interval: (low, high) in units of σ/α: the scale is 1 outside (low, high]. None guides everywhere.

    References:
        Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598.
        Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, arXiv:2406.02507.
        Kynkäänniemi et al., "Applying Guidance in a Limited Interval", 2024, arXiv:2404.07724.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Denoiser,
        scale: float,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        _require_same_sde("Guided", denoiser, reference)
        _check_scale(self, scale)
        self.sde, self.denoiser, self.reference = denoiser.sde, denoiser, reference
        self.scale = scale
        self.interval = None if interval is None else check_pair(self, "interval", interval, "0 <= low < high")

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        scale = self._scale_at(level)
        if not isinstance(scale, Tensor) and scale == 1:
            return self.denoiser.x0(x, level, **cond)
        reference = self.reference.x0(x, level, **cond)
        return reference + scale * (self.denoiser.x0(x, level, **cond) - reference)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        scale = self._scale_at(level)
        if not isinstance(scale, Tensor) and scale == 1:
            return self.denoiser.v_at(x, level, **cond)
        reference = self.reference.v_at(x, level, **cond)
        return reference + scale * (self.denoiser.v_at(x, level, **cond) - reference)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        pair = self.denoiser.select(index, batch), self.reference.select(index, batch)
        return None if pair[0] is None or pair[1] is None else Guided(pair[0], pair[1], self.scale, self.interval)

    def _scale_at(self, level: Level) -> Any:
        if self.interval is None:
            return self.scale
        heard = isinstance(level.alpha, Tensor) or level.alpha > 0
        ratio = level.sigma / level.alpha if heard else math.inf
        inside = (ratio > self.interval[0]) & (ratio <= self.interval[1])
        return 1 + (self.scale - 1) * inside


class Composed(Denoiser):
    """Sum of the changes that several conditions make to a base denoiser.

        x̂0 = base + Σ_i w_i (part_i − base)                     (Liu et al. 2022, eq. 11)

    Args:
        base: The unconditional denoiser.
        parts: Denoisers on the same SDE.
        weights: One weight per part; negative weights push away from a condition.

    References:
        Liu et al., "Compositional Visual Generation with Composable Diffusion Models", 2022, arXiv:2206.01714.
    """

    def __init__(self, base: Denoiser, parts: Sequence[Denoiser], weights: Sequence[float]) -> None:
        super().__init__()
        if not parts or len(parts) != len(weights):
            raise ValueError(f"Composed needs one weight per part, got {len(parts)} parts and {len(weights)} weights.")
        check_list(self, "weights", weights)
        for part in parts:
            _require_same_sde("Composed", base, part)
        self.sde, self.base, self.parts, self.weights = base.sde, base, nn.ModuleList(parts), tuple(weights)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._sum(self.base.x0(x, level, **cond), [part.x0(x, level, **cond) for part in self._parts()])

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._sum(self.base.v_at(x, level, **cond), [part.v_at(x, level, **cond) for part in self._parts()])

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        base, parts = self.base.select(index, batch), [part.select(index, batch) for part in self._parts()]
        known = [part for part in parts if part is not None]
        return None if base is None or len(known) < len(parts) else Composed(base, known, self.weights)

    def _sum(self, base: Tensor, parts: Sequence[Tensor]) -> Tensor:
        changes = [w * (part - base) for w, part in zip(self.weights, parts, strict=True)]
        return base + torch.stack(changes).sum(0)

    def _parts(self) -> list[Denoiser]:
        return [part for part in self.parts if isinstance(part, Denoiser)]


class ClassifierGuided(Denoiser):
    """A denoiser conditioned on y through any differentiable log p(y | x_t).

        score = score(x) + scale ∇ₓ log p(y | x_t = x)          (Dhariwal and Nichol 2021, eq. 14)
        x̂0    = x̂0(x) + scale σ²/α ∇ₓ log p(y | x_t = x)

    With scale 1 and the exact likelihood this is the exact posterior denoiser E[x0 | x_t, y]. Where a process ends
    without signal, 1/α times the gradient is ∞ · 0: the gradient is then that at α/σ = 10⁻³, at the same x/σ, for all
    levels with less signal, which is off by 10⁻³.

    Args:
        denoiser: The prior.
        log_prob: Called as log_prob(x, t) -> (B,); log p(y | x_t) up to a constant. It must see noisy data. A
            `Potential` of another process is asked at equal σ/α.
        scale: Guidance scale.

    References:
        Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233.
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456, eq. 14.
    """

    def __init__(self, denoiser: Denoiser, log_prob: LogProbability, scale: float = 1.0) -> None:
        super().__init__()
        _check_scale(self, scale)
        self.sde, self.denoiser, self.scale = denoiser.sde, denoiser, scale
        self.log_prob = on_process(log_prob, self.sde)
        self.last = last_signal(self.sde)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.x0(x, level, **cond) + self._shift(x, level)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return _shifted_v(self.denoiser.v_at(x, level, **cond), self._shift(x, level), level)

    @differentiates
    def _shift(self, x: Tensor, level: Level) -> Tensor:
        """Of x̂0."""
        x, near = nearest_signal(self.sde, x, level, self.last)
        slope = gradient(lambda x: self.log_prob(x, near.time), x, "ClassifierGuided")
        return self.scale * near.sigma**2 / near.alpha * slope


class ReconstructionGuided(Denoiser):
    """A denoiser conditioned on a measurement through the likelihood of its own x̂0.

        x̂0' = x̂0 + scale σ²/α ∇ₓ log p(y | x̂0(x))             (Chung et al. 2023, eq. 15-16)

    Replaces p(y | x_t) = E[p(y | x0) | x_t] by the likelihood at the mean, which is too sharp where Cov[x0 | x_t] is
    not small. The gradient passes through the network. Where a process ends without signal, all is asked at
    α/σ = 10⁻³, at the same x/σ, for levels with less.

    Args:
        denoiser: The prior.
        log_likelihood: Called as log_likelihood(x0_hat) -> (B,).
        scale: Guidance scale.

    References:
        Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv:2209.14687.
    """

    def __init__(self, denoiser: Denoiser, log_likelihood: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        _check_scale(self, scale)
        self.sde, self.denoiser, self.log_likelihood, self.scale = denoiser.sde, denoiser, log_likelihood, scale
        self.last = last_signal(self.sde)

    @differentiates
    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        x, level = nearest_signal(self.sde, x, level, self.last)
        kept: list[Tensor] = []

        def potential(x: Tensor) -> Tensor:
            kept.append(self.denoiser.x0(x, level, **cond))
            return self.log_likelihood(kept[0])

        slope = gradient(potential, x, "ReconstructionGuided")
        x0_hat = kept[0] if torch.is_grad_enabled() else kept[0].detach()
        return x0_hat + self.scale * level.sigma**2 / level.alpha * slope


def _shifted_v(v: Tensor, shift: Tensor, level: Level) -> Tensor:
    """v̂ of a denoiser whose x̂0 is moved by a shift: v = α ε − σ x0 = (α x − (α² + σ²) x0)/σ."""
    return v - (level.alpha**2 + level.sigma**2) / level.sigma * shift


def _require_same_sde(owner: str, first: Denoiser, second: Denoiser) -> None:
    if first.sde != second.sde:
        raise ValueError(
            f"{owner} combines denoisers at equal (α, σ): they need the same SDE, got {first.sde} and {second.sde}."
        )


def _check_scale(guided: Denoiser, scale: float) -> None:
    if not isinstance(scale, Tensor):  # a tensor may hold one scale per sample
        check_numbers(guided, "-inf < scale < inf", scale=scale)
