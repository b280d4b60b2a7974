"""Training of variational dequantisation, for a given model or together with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.chain import prior_kl
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.losses.loss import SampledLoss
from scoresde.losses.times import logsnr_times
from scoresde.sde import SDE
from scoresde.sde.clock import SignalClock
from scoresde.sde.levels import Level


class DequantizedDenoiser(Denoiser):
    """A denoiser together with the dequantisation that turns its discrete data into continuous ones.

    As a denoiser it is the one that it holds. Train it with `DequantizationLoss`.

    Args:
        denoiser: The model.
        dequantization: q(x | k).
        joint: Whether the denoiser learns too; otherwise it is frozen here and stays in evaluation mode.
    """

    def __init__(self, denoiser: Denoiser, dequantization: VariationalDequantization, *, joint: bool = False) -> None:
        super().__init__()
        if not isinstance(dequantization, VariationalDequantization):
            raise TypeError(
                f"DequantizedDenoiser needs a VariationalDequantization, which has something to learn, got "
                f"{type(dequantization).__name__}."
            )
        self.sde, self.denoiser, self.dequantization, self.joint = denoiser.sde, denoiser, dequantization, joint
        if not joint:
            self.denoiser.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DequantizedDenoiser:
        super().train(mode)
        if not self.joint:
            self.denoiser.eval()
        return self

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.x0(x, level, **cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.eps_at(x, level, **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.v_at(x, level, **cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        return self.denoiser.select(index, batch)


@dataclass(frozen=True, kw_only=True)
class DequantizationLoss(SampledLoss):
    """The bound on −log P(k) that a dequantisation and a model give together, in bits/dim, one value per example.

        L = E [KL(q(x_1 | x) ‖ π) + ½ ∫ ‖ε − ε̂‖² d logsnr − log p(x | x_ε) + log q(x | k)] / (d log 2),   x ~ q(x | k)
        −log p(x | x_ε) = ½ ‖ε − ε̂(x_ε)‖² + d log(σ_ε/α_ε) + ½ d log 2π,         x_ε at ε = t_min

    L is at least −log P(k) / (d log 2), in bits/dim of the levels for any number of them. Gradients run through x, so q
    moves to where the model finds the data likely. The integrand of the second term at t_min, times 1, is what the
    third needs: both are one integral over logsnr with one more unit of length at t_min, estimated by one network call
    at a stratified position,

        L_2 + L_3 = ½ (Z + 1) ‖ε − ε̂‖² + const,                     Z = logsnr(t_min) − logsnr(1)

    Where a process ends without signal the integral is over 2 log(α/σ + 0.01) instead, with its weight (`SignalClock`).

    Args:
        sampling: How a batch draws the positions, as for `DenoisingLoss`.
        label_dropout, condition_dropout, image_dropout, sequence_dropout, joint_dropout: See `SampledLoss`;
            for joint training with guidance.

    References:
        Ho et al., "Flow++", 2019, arXiv:1902.00275.
        Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, arXiv:2101.09258.
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630.
    """

    def __call__(
        self, module: DequantizedDenoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch: x0 (B, *) anywhere in the cells of the data's levels -> (B,)."""
        if not isinstance(module, DequantizedDenoiser):
            raise TypeError(f"DequantizationLoss trains a DequantizedDenoiser, got {type(module).__name__}.")
        t, noise = self.draw(module.sde, x0, generator)
        cond = self.drop_conditions(cond, x0, generator)
        return self.at(module, x0, t, noise, generator=generator, **cond)

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """logsnr uniform from logsnr(t_min) + 1 to logsnr(1); what lies above logsnr(t_min) is at t_min."""
        length, unit = _lengths(sde, u.device)
        return logsnr_times(sde, (((length + unit) * u - unit) / length).clamp_min(0).to(u.dtype))

    def at(
        self,
        module: DequantizedDenoiser,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        """Loss at given times (B,) and noise (B, *) of one draw of x."""
        sde, entries = module.sde, x0[0].numel()
        length, unit = _lengths(sde, x0.device)
        k = module.dequantization.cells.level(x0)
        x, log_q, _ = module.dequantization(k, sde, generator=generator, dtype=x0.dtype)
        prior = prior_kl(sde, x, torch.ones((), dtype=torch.float64, device=x0.device))

        error = module.denoiser.eps(sde.perturb(x, t, noise), t, **cond) - noise
        squares = error.square().flatten(1).sum(1)
        # what ‖ε‖² alone contributes, as it would for N(0, 1) data, less its mean: the same loss with less scatter
        excess = torch.sigmoid(sde.logsnr(t)).square() * (noise.square().flatten(1).sum(1) - entries)
        cost = 0.5 * (length + unit) * SignalClock(sde).rate(t.double()) * (squares - excess).double()
        start = torch.tensor(sde.t_min, dtype=torch.float64, device=x0.device)
        constant = 0.5 * entries * (math.log(2 * math.pi) - sde.logsnr(start))
        return ((prior + cost + constant + log_q) / (entries * math.log(2))).to(x0.dtype)


def _lengths(sde: SDE, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the clock from t_min to 1, and of one unit of logsnr at t_min on it; float64."""
    clock, ends = SignalClock(sde), torch.tensor([sde.t_min, 1.0], dtype=torch.float64, device=device)
    return -clock.at(ends).diff()[0], 1 / clock.rate(ends[0])
