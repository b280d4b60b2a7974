"""The variational bound of a diffusion model as a training loss, for learned noise schedules too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_whole
from scoresde.denoiser import Denoiser
from scoresde.likelihood.cells import Cells
from scoresde.likelihood.chain import prior_kl
from scoresde.likelihood.decoder import CategoricalDecoder, Decoder
from scoresde.losses.loss import SampledLoss, check_functions, standard_normal
from scoresde.losses.times import discrete_times, logsnr_times, uniform_times
from scoresde.losses.weightings import importance_weighting, likelihood_weighting
from scoresde.sde import SDE, LearnedVPSDE
from scoresde.sde.clock import last_signal


@dataclass(frozen=True, kw_only=True)
class VDMLoss(SampledLoss):
    """The variational bound of −log p(x0) in bits per entry, one unbiased draw per example.

        L    = (KL(q(x_1 | x0) ‖ π) − log p(x0 | z) + diffusion) / (D log 2),   z = x_{t_min}
        diffusion = ½ ∫ γ'(t) ‖ε − ε̂‖² dt,   γ = −logsnr                    (Kingma et al. 2021, eq. 17, 22)
        diffusion = ½ T E_k expm1(γ(t_k) − γ(t_{k−1})) ‖ε − ε̂‖²             with steps = T (eq. 14)
        p(x0 | z) about z/α with standard deviation σ/α, without the network

    On any SDE the gradient is that of L. A learned schedule γ = γ_0 + (γ_1 − γ_0) r (`LearnedVPSDE`) leaves the
    continuous bound unchanged whatever r is; there the ends follow the gradient of L, and the parameters φ of r that of
    the estimator's second moment, hence of its variance, in the same backward pass:

        ∂/∂φ E[ℓ²] = E[2 ℓ ∂ℓ/∂φ],   ℓ the diffusion term of an example            (Kingma et al. 2021, App. I.2)

    each term divided by the mean ℓ of the batch's other examples, which keeps the scale of L and the direction. The
    optimum has dt/dγ ∝ √E[‖ε − ε̂‖⁴ | γ]. With `steps`, L depends on r, and r follows L.

    Args:
        decoder: p(x0 | z): `CategoricalDecoder` or `DiscretizedGaussian` for quantised data, which are then taken at
            the centres of their cells; `gaussian_decoder` for continuous data, with a density as the result.
        steps: Number T of steps of a chain with equal steps of the clock; None is continuous time.
        clock: "own": uniform t, for learned schedules. "logsnr": uniform log-SNR, for the others, whose own clock
            has γ' ~ 1/t near the data (`logsnr_times`). Where a process ends without signal, γ = ∞, the level of
            α/σ = 10⁻³ stands for less: of 10⁻⁶ E‖x0‖² nats.
        sampling, label_dropout, condition_dropout, image_dropout, sequence_dropout, joint_dropout: See `SampledLoss`.

    References:
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630.
    """

    decoder: Decoder = field(default_factory=CategoricalDecoder)
    steps: int | None = None
    clock: str = "own"
    sampling: str = "antithetic"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "clock", self.clock, ("own", "logsnr"))
        check_whole(self, "1 <= steps <= 1000000 or null")
        check_functions(self, "decoder")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch at random times: x0 (B, *) -> (B,) bits per entry."""
        u = self.uniforms(x0, generator)
        noise, end_noise = standard_normal(x0, generator), standard_normal(x0, generator)
        terms = self.terms(denoiser, x0, u, noise, end_noise, **self.drop_conditions(cond, x0, generator))
        return torch.stack(list(terms.values())).sum(0)

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """Those of the diffusion term."""
        return self._levels(sde, u)[0]

    def terms(
        self, denoiser: Denoiser, x0: Tensor, u: Tensor, noise: Tensor, end_noise: Tensor, **cond: Any
    ) -> dict[str, Tensor]:
        """The parts of the loss at given draws: deterministic, for evaluation and reproduction.

        Args:
            denoiser: The model.
            x0: Data, (B, *).
            u: Where on the clock the diffusion term is, (B,) in [0, 1): t_min at 0.
            noise, end_noise: Of x_t in the diffusion term and of z, (B, *).
            cond: Conditions.
        Returns:
            "prior", "diffusion", "reconstruction", each (B,) in bits per entry.
        """
        sde, decoder = denoiser.sde, self.decoder
        if isinstance(decoder, Cells):
            x0 = decoder.centre(decoder.level(x0), x0.dtype)
        start, end = torch.tensor([sde.t_min, 1.0], dtype=torch.float64, device=x0.device)
        std = torch.exp(-0.5 * sde.logsnr(start))
        bits = x0[0].numel() * math.log(2)
        return {
            "prior": prior_kl(sde, x0, end) / bits,
            "diffusion": self._diffusion(denoiser, x0, u, noise, cond) / bits,
            "reconstruction": -decoder(x0, x0 + std * end_noise, std).to(x0.dtype) / bits,
        }

    @property
    def dequantize(self) -> bool:
        """Whether batches of quantised data should be dequantised."""
        return not isinstance(self.decoder, Cells)

    def _diffusion(self, denoiser: Denoiser, x0: Tensor, u: Tensor, noise: Tensor, cond: dict[str, Any]) -> Tensor:
        """In nats, (B,)."""
        t, weight = self._levels(denoiser.sde, u)
        interior = None
        if self.steps is None and self.clock == "own" and torch.is_grad_enabled():
            interior = _Interior.of(denoiser.sde, t)
        if interior is not None:
            t, weight = t + interior.shift, weight * (1 + interior.stretch)
        x = denoiser.sde.perturb(x0, t, noise)
        error = (denoiser.eps(x, t, **cond) - noise).square().flatten(1).sum(1)
        losses = 0.5 * weight.to(x0.dtype) * error
        if interior is not None:
            interior.minimise_second_moment(losses.detach())
        return losses

    def _levels(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times and the weights of ½ ‖ε − ε̂‖², (B,), float64."""
        u = u.double()
        own, logsnr = (uniform_times, likelihood_weighting), (logsnr_times, importance_weighting)
        time_of, density = own if self.clock == "own" else logsnr
        last = last_signal(sde)
        if self.steps is None:
            t = time_of(sde, u)
            t = t if last == 1 else t.clamp(max=last)
            return t, (1 - sde.t_min) * density(sde, t)
        end = discrete_times(sde, u, steps=self.steps)
        t, s = time_of(sde, end), time_of(sde, end - 1 / self.steps)
        if last < 1:
            t, s = t.clamp(max=last), s.clamp(max=last)
        return t, self.steps * torch.expm1(sde.logsnr(s) - sde.logsnr(t))


class _Interior:
    """Turns the gradient by the interior r of a schedule from that of the losses into that of their second moment.

    ℓ depends on r through γ(t) and γ'(t) alone, so changes of r at fixed t act as changes of t at fixed r, and of γ':

        dt = dr / r',   d log γ' = dr' / r'

    Attributes:
        shift, stretch: Zeros, (B,), whose gradients are those of dt and d log γ'. Added to t and to log γ' they pass on
            to r what the losses do not already, once `minimise_second_moment` has said how much.
    """

    def __init__(self, r: Tensor, slope: Tensor) -> None:
        self.changes = (r - r.detach(), slope - slope.detach())
        self.shift, self.stretch = (change / slope.detach() for change in self.changes)

    @classmethod
    def of(cls, sde: SDE, t: Tensor) -> _Interior | None:
        """That of a `LearnedVPSDE`; None if there is none to be trained."""
        if not isinstance(sde, LearnedVPSDE):
            return None
        r, slope = sde.progress(t)
        return cls(r, slope) if r.requires_grad and slope.requires_grad else None

    def minimise_second_moment(self, losses: Tensor) -> None:
        """∂ℓ/∂r of every example, of which one share flows already, becomes 2 ℓ/mean ∂ℓ/∂r; losses (B,)."""
        count = len(losses)
        mean_of_others = (losses.sum() - losses) / (count - 1) if count > 1 else torch.ones_like(losses)
        missing = 2 * losses / mean_of_others - 1
        for change in self.changes:
            change.register_hook(lambda gradient: gradient * missing.to(gradient.dtype))
