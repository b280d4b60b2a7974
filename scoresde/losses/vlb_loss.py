"""L_simple, L_vlb and L_hybrid of a discrete chain: training for the variational bound, one random term per example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_unused, check_whole
from scoresde.covariance import LearnedRange
from scoresde.denoiser import Denoiser
from scoresde.likelihood.chain import VARIANCES, Prediction, chain_term, chain_times, check_chain, predict, prior_kl
from scoresde.likelihood.decoder import Decoder, DiscretizedGaussian, gaussian_decoder
from scoresde.losses.loss import SampledLoss, standard_normal
from scoresde.losses.resampling import LossSecondMoment
from scoresde.sde import SDE, expand


@dataclass(frozen=True, kw_only=True)
class VLBLoss(SampledLoss):
    """The losses of Improved DDPM on a chain of T = steps states, at one random state k per example.

        L_simple = mean_d (ε − ε̂)²
        L_vlb    = T L_k / (d log 2),     L_k = KL(q(x_{k−1} | x_k, x0) ‖ p_θ),   L_1 = −log p_θ(x0 | x_1)
        L_hybrid = L_simple + vlb_weight L_vlb, with no gradient through the mean in L_vlb

    For k uniform the expectation of L_vlb is the variational bound in bits/dim without its prior term. The published
    code counts the terms from 0 and has T/1000 L_k in L_hybrid ("RESCALED_MSE"), T L_k in L_vlb ("RESCALED_KL").

    Args:
        objective: "hybrid" trains the variance of a `LearnedRange` by the bound and its mean by L_simple; "vlb"; or
            "simple", which leaves a learned variance as it is.
        variance: Variance of the reverse steps: "learned", "small" β̃, "large" β, or another of `likelihood.vlb`.
        steps: T; on a `DiscreteVPSDE` the length of its table.
        vlb_weight: λ of L_hybrid.
        levels, value_range: Number of levels and outer edges of quantised data, whose L_1 is the probability of a cell
            (see `DiscretizedGaussian`); both None: continuous data, whose L_1 is a density.
        cdf: "exact", or "tanh" for the published approximation.
        prior: Add KL(q(x_T | x0) ‖ π) to L_vlb: it makes the value a bound, and teaches only learned processes.
        resampling: Distribution of k, for "vlb": `LossSecondMoment`; its weights keep the expectation. None: uniform.
        sampling: How a batch draws from it, as for `DenoisingLoss`.
        label_dropout, condition_dropout, image_dropout, sequence_dropout, joint_dropout: As for `DenoisingLoss`.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    objective: str = "hybrid"
    variance: str = "learned"
    steps: int = 1000
    vlb_weight: float = 0.001
    levels: int | None = None
    value_range: tuple[float, float] | None = None
    cdf: str = "exact"
    prior: bool = False
    resampling: LossSecondMoment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "objective", self.objective, ("simple", "vlb", "hybrid"))
        if self.objective == "hybrid" and self.variance != "learned":
            raise ValueError(
                f"VLBLoss with objective='hybrid' trains only the variance by the bound, so it needs "
                f"variance='learned', got {self.variance!r}: use objective='simple' or 'vlb'."
            )
        if (self.levels is None) != (self.value_range is None):
            raise ValueError(
                f"VLBLoss needs levels and value_range of quantised data, or neither for continuous data, got "
                f"levels={self.levels}, value_range={self.value_range}."
            )
        check_choice(self, "variance", self.variance, VARIANCES)
        check_whole(self, "2 <= steps <= 1000000", "levels >= 2 or null")
        check_numbers(self, "0 <= vlb_weight <= 1e9")
        check_choice(self, "cdf", self.cdf, ("exact", "tanh"))
        if not isinstance(self.resampling, LossSecondMoment | None):
            raise ValueError(f"VLBLoss needs resampling to be a LossSecondMoment, or null, got {self.resampling!r}.")
        if self.objective != "vlb":
            check_unused(self, f"objective={self.objective}", prior=False)
        if self.objective != "hybrid":
            check_unused(self, f"objective={self.objective}", vlb_weight=0.001)
        _ = self.decoder

    @property
    def decoder(self) -> Decoder:
        """p(x0 | x_1)."""
        if self.levels is None or self.value_range is None:
            return gaussian_decoder
        return DiscretizedGaussian(levels=self.levels, value_range=self.value_range, cdf=self.cdf)

    @property
    def dequantize(self) -> bool:
        """Whether to dequantise the data: not for a bound on the probability of the levels."""
        return self.levels is None

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch at random states: x0 (B, *) -> (B,). In training mode, `resampling` learns from it."""
        if self.resampling is not None:
            self.resampling.update()
        term, weight = self._terms(self.uniforms(x0, generator))
        noise = standard_normal(x0, generator)
        cond = self.drop_conditions(cond, x0, generator)
        losses = self.at(denoiser, x0, self._chain(denoiser.sde, x0)[-1 - term], noise, **cond)
        if self.resampling is not None and denoiser.training:
            self.resampling.record(term, losses)
        return losses if weight is None else weight.to(losses.dtype) * losses

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return self._chain(sde, u)[-1 - self._terms(u)[0]]

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        """Loss at given times (B,), rounded to states of the chain, and noise (B, *): unweighted, deterministic."""
        if self.objective != "simple":
            check_chain(denoiser, self.variance, None, owner="VLBLoss")
        sde, times = denoiser.sde, self._chain(denoiser.sde, x0)
        rising = times.flip(0)
        k = 1 + torch.searchsorted((rising[1:] + rising[:-1]) / 2, t.double().contiguous())
        t = times[-k]
        x = sde.perturb(x0, t, noise)
        if self.objective == "vlb":
            bound = self._bound(sde, x0, predict(denoiser, x, t, self.variance, **cond), k, times)
            return bound + self._bits(prior_kl(sde, x0, times[0]), x0) if self.prior else bound
        if self.objective == "simple":
            return (denoiser.eps(x, t, **cond) - noise).square().flatten(1).mean(1)
        eps, prediction = _eps_and_prediction(denoiser, x, t, cond)
        simple = (eps - noise).square().flatten(1).mean(1)
        return simple + self.vlb_weight * self._bound(sde, x0, prediction.detached_mean(), k, times)

    def state_dict(self) -> dict[str, Any]:
        """What `resampling` has seen."""
        return {} if self.resampling is None else self.resampling.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.resampling is not None:
            self.resampling.load_state_dict(state)

    def _bound(self, sde: SDE, x0: Tensor, prediction: Prediction, k: Tensor, times: Tensor) -> Tensor:
        term = chain_term(sde, x0, prediction, k, times, variance=self.variance, decoder=self.decoder)
        return self._bits(self.steps * term, x0)

    def _bits(self, nats: Tensor, x0: Tensor) -> Tensor:
        return nats / (x0[0].numel() * math.log(2))

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """k − 1 and weights, (B,), or None."""
        if self.resampling is not None:
            return self.resampling.draw(u, self.steps)
        return (u.double() * self.steps).long().clamp(max=self.steps - 1), None

    def _chain(self, sde: SDE, x: Tensor) -> Tensor:
        """t_T ... t_1."""
        return chain_times(sde, self.steps, owner="VLBLoss").to(x.device)


def _eps_and_prediction(denoiser: Denoiser, x: Tensor, t: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Prediction]:
    """ε̂, and x̂0 with v, from one call of a denoiser with a learned variance."""
    alpha, sigma = (expand(value, x) for value in (denoiser.sde.alpha(t), denoiser.sde.sigma(t)))
    if isinstance(denoiser, LearnedRange) and denoiser.sde.ends_silent:
        (v, share), norm = denoiser.v_and_range(x, t, **cond), alpha.square() + sigma.square()
        return (sigma * x + alpha * v) / norm, Prediction((alpha * x - sigma * v) / norm, share)
    if isinstance(denoiser, LearnedRange):
        eps, share = denoiser.eps_and_range(x, t, **cond)
        return eps, Prediction((x - sigma * eps) / alpha, share)
    prediction = predict(denoiser, x, t, "learned", **cond)
    return (x - alpha * prediction.mean) / sigma, prediction
