"""Denoising score matching: one loss, with a weighting over noise levels and a distribution of training times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.losses.loss import Loss
from scoresde.losses.times import TimeLaw, uniform_times
from scoresde.losses.weightings import Weighting, simple_weighting
from scoresde.sde import SDE


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss(Loss):
    """Weighted denoising score matching, one value per example.

        L = w(t) mean_d (ε − ε̂(x_t, t))²,      x_t = α_t x0 + σ_t ε            (Song et al. 2021, eq. 7; λ = σ² w)

    Args:
        weighting: Weight of the squared ε-error: `simple_weighting`, `likelihood_weighting`, `snr_weighting`,
            `edm_weighting`, or any function (sde, t) -> weight.
        time: Quantile function of t, (sde, u) -> t: `uniform_times`, `discrete_times`, `lognormal_times`.
        sampling: How the uniforms u of a batch are drawn. "independent"; "stratified": one per cell of width 1/B;
            "antithetic": one draw shifted by multiples of 1/B (arXiv:2107.00630, App. I.1). Each u alone is uniform.
        reduction: Over the entries of an event: "mean", or "half_sum", the reference's `reduce_mean=False`.
        label_dropout: Probability of replacing a label by −1 (no label), for classifier-free guidance.

    References:
        Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598.
    """

    weighting: Weighting = simple_weighting
    time: TimeLaw = uniform_times
    sampling: str = "stratified"
    reduction: str = "mean"
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("sampling", self.sampling, ("independent", "stratified", "antithetic")),
            ("reduction", self.reduction, ("mean", "half_sum")),
        ):
            if value not in allowed:
                raise ValueError(f"DenoisingLoss needs {name} to be one of {', '.join(allowed)}, got {value!r}.")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"DenoisingLoss needs 0 <= label_dropout < 1, got {self.label_dropout}.")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch at random times: x0 (B, *) -> (B,)."""
        t, noise = self.draw(denoiser.sde, x0, generator)
        return self.at(denoiser, x0, t, noise, **self.drop_labels(cond, x0, generator))

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        u = self.uniforms(x0, generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return self.time(sde, u), noise

    def uniforms(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The uniforms u of a batch, (B,), in x0's dtype."""
        batch = x0.shape[0]
        cells = torch.arange(batch, device=x0.device, dtype=x0.dtype)
        if self.sampling == "antithetic":
            u = (torch.rand(1, generator=generator, device=x0.device, dtype=x0.dtype) + cells / batch) % 1
        else:
            u = torch.rand(batch, generator=generator, device=x0.device, dtype=x0.dtype)
            if self.sampling == "stratified":
                u = (cells + u) / batch
        if self.sampling != "independent":  # which example gets which cell must not depend on its position
            u = u[torch.randperm(batch, generator=generator, device=x0.device)]
        return u

    def drop_labels(self, cond: dict[str, Any], x0: Tensor, generator: torch.Generator | None = None) -> dict[str, Any]:
        """The conditions with every label replaced by −1 with probability `label_dropout`."""
        if self.label_dropout == 0 or cond.get("label") is None:
            return cond
        drop = torch.rand(x0.shape[0], generator=generator, device=x0.device) < self.label_dropout
        return {**cond, "label": cond["label"].masked_fill(drop, -1)}

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        """Loss at given times (B,) and noise (B, *): deterministic, for evaluation and reproduction."""
        x = denoiser.sde.perturb(x0, t, noise)
        return self.of_error(denoiser.sde, t, denoiser.eps(x, t, **cond) - noise)

    def of_error(self, sde: SDE, t: Tensor, error: Tensor) -> Tensor:
        """The weighted and reduced square of errors ε̂ − ε, (B, *) -> (B,)."""
        squares = error.square().flatten(1)
        reduced = squares.mean(1) if self.reduction == "mean" else 0.5 * squares.sum(1)
        return self.weighting(sde, t) * reduced
