"""Denoising score matching: one loss, with a weighting over noise levels and a distribution of training times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.losses.loss import SampledLoss, check_functions
from scoresde.losses.times import TimeLaw, uniform_times, with_signal
from scoresde.losses.weightings import Weighting, simple_weighting
from scoresde.sde import SDE, expand


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss(SampledLoss):
    """Weighted denoising score matching, one value per example.

        L = w(t) mean_d (ε − ε̂(x_t, t))²,      x_t = α_t x0 + σ_t ε            (Song et al. 2021, eq. 7; λ = σ² w)
        ε̂ − ε = α/(α² + σ²) (v̂ − v),           v = α ε − σ x0

    On processes that end without signal the error is formed from v, which is regular there: with `flow_weighting`,
    `velocity_weighting` or `edm_weighting` L is finite at t = 1, where w is not.

    Args:
        weighting: Weight of the squared ε-error: `simple_weighting`, `likelihood_weighting`, `snr_weighting`,
            `edm_weighting`, `flow_weighting`, or any function (sde, t) -> weight.
        time: Quantile function of t, (sde, u) -> t: `uniform_times`, `discrete_times`, `lognormal_times`,
            `logit_normal_times`, `shifted_times`, `mode_times`.
        reduction: Over the entries of an event: "mean", or "half_sum", the reference's `reduce_mean=False`.
        sampling, label_dropout, condition_dropout, image_dropout, sequence_dropout, joint_dropout: See `SampledLoss`.

    References:
        Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598.
    """

    weighting: Weighting = simple_weighting
    time: TimeLaw = uniform_times
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "reduction", self.reduction, ("mean", "half_sum"))
        check_functions(self, "weighting", "time")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch at random times: x0 (B, *) -> (B,)."""
        t, noise = self.draw(denoiser.sde, x0, generator)
        return self.at(denoiser, x0, t, noise, **self.drop_conditions(cond, x0, generator))

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return self.time(sde, u)

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        """Loss at given times (B,) and noise (B, *): deterministic, for evaluation and reproduction."""
        sde, t = denoiser.sde, with_signal(denoiser.sde, t)
        x = sde.perturb(x0, t, noise)
        if not sde.ends_silent:
            return self.weighting(sde, t) * self._reduced(denoiser.eps(x, t, **cond) - noise)
        alpha, sigma = (value(t.double()) for value in (sde.alpha, sde.sigma))
        v = expand(alpha, x) * noise - expand(sigma, x) * x0
        weight = self.weighting(sde, t.double()) * (alpha / (alpha.square() + sigma.square())).square()
        return weight.to(x.dtype) * self._reduced(denoiser.v(x, t, **cond) - v)

    def _reduced(self, error: Tensor) -> Tensor:
        squares = error.square().flatten(1)
        return squares.mean(1) if self.reduction == "mean" else 0.5 * squares.sum(1)
