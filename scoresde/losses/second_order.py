"""Second-order denoising score matching: the Jacobian of the score has a regression target too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.likelihood.elbo import random_probe
from scoresde.losses.loss import SampledLoss, check_functions
from scoresde.losses.times import TimeLaw, uniform_times
from scoresde.losses.weightings import Weighting, simple_weighting
from scoresde.sde import SDE, expand
from scoresde.sde.clock import last_signal


@dataclass(frozen=True, kw_only=True)
class SecondOrderLoss(SampledLoss):
    """Denoising score matching of the score and of its Jacobian, one value per example.

        L  = w(t) [mean_d (ε − ε̂)² + weight L₂]
        A  = σ² ∇s + I − r rᵀ = I − σ ∇ε̂ − r rᵀ,   r = ε − ε̂ detached            (Lu et al. 2022, eqs. 12, 13)
        L₂ = ‖A‖²_F / d   ("jacobian"),   (tr A)² / d   ("trace"),   or their sum   ("both")

    The target is exact because I + σ² ∇² log p_t = Cov[ε | x_t] = E[r rᵀ | x_t] − δ δᵀ, where δ is the error of ε̂: it
    enters at second order only. With probes v, ‖A‖²_F is the mean of ‖v − σ (∇ε̂)ᵀ v − (r·v) r‖² and tr A the mean of
    vᵀ A v; the target's own probe keeps the minimum where it is, as ‖r‖² in place of (r·v)² would not.

    A matched Jacobian makes the density of the probability flow match, not only that of the reverse SDE. With
    `velocity_weighting`, "trace" is i-DODE's loss [σ div F − α (d − ‖F − F*‖²)]²/d, for F the velocity on VP. Where a
    process ends without signal, times beyond α/σ = 10⁻³ are taken there, as weights of ε̂ may grow without end.

    Args:
        weighting: w, as for `DenoisingLoss`.
        time: Distribution of t, as for `DenoisingLoss`; `logsnr_times` trains for likelihood.
        sampling: How a batch draws from it, as for `DenoisingLoss`.
        label_dropout, condition_dropout, image_dropout, sequence_dropout, joint_dropout: As for `DenoisingLoss`.
        weight: λ of the second-order term.
        order2: "trace" (the divergence alone, what a likelihood needs), "jacobian" or "both".
        probes: Probe vectors per example, one backward pass each; None: all d of them, the exact term.
        probe: "rademacher" or "gaussian" entries.

    References:
        Lu et al., "Maximum Likelihood Training for Score-Based Diffusion ODEs by High-Order Denoising Score Matching",
            2022, arXiv:2206.08265.
        Zheng et al., "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023,
            arXiv:2305.03935.
    """

    weighting: Weighting = simple_weighting
    time: TimeLaw = uniform_times
    weight: float = 0.1
    order2: str = "trace"
    probes: int | None = 1
    probe: str = "rademacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order2", self.order2, ("jacobian", "trace", "both"))
        check_choice(self, "probe", self.probe, ("rademacher", "gaussian"))
        check_whole(self, "probes >= 1 or null")
        check_numbers(self, "0 <= weight <= 1e9")
        check_functions(self, "weighting", "time")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        """Loss of one batch at random times: x0 (B, *) -> (B,)."""
        t, noise = self.draw(denoiser.sde, x0, generator)
        cond = self.drop_conditions(cond, x0, generator)
        return self.at(denoiser, x0, t, noise, self._vectors(x0, generator), **cond)

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return self.time(sde, u)

    def at(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, vectors: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """Loss at given times (B,), noise (B, *) and probes (K, B, *); without probes it is exact."""
        learning = torch.is_grad_enabled()
        if (last := last_signal(denoiser.sde)) < 1:
            t = t.clamp(max=last)
        with torch.enable_grad():
            x = denoiser.sde.perturb(x0, t, noise).requires_grad_()
            eps = denoiser.eps(x, t, **cond)
            residual = (noise - eps).detach()
            products = self._products(eps, x, expand(denoiser.sde.sigma(t), x), residual, vectors, learning)
            second = self._second(*products, x0[0].numel())
            weights, squares = self.weighting(denoiser.sde, t), (eps - noise).square().flatten(1)
            loss = weights * squares.mean(1) + self.weight * weights * second
        return loss if learning else loss.detach()

    def _products(
        self, eps: Tensor, x: Tensor, sigma: Tensor, residual: Tensor, vectors: Tensor | None, learning: bool
    ) -> tuple[Tensor, Tensor]:
        """‖Aᵀv‖² and vᵀ A v, summed over unit vectors or averaged over probes: both (B,)."""
        norms = x.new_zeros(x.shape[0])
        traces = x.new_zeros(x.shape[0])
        count = x[0].numel() if vectors is None else len(vectors)
        for k in range(count):
            v = _unit_vector(x, k) if vectors is None else vectors[k]
            (row,) = torch.autograd.grad(eps, x, v, create_graph=learning, retain_graph=True)
            along = (residual * v).flatten(1).sum(1)
            product = v - sigma * row - expand(along, x) * residual
            norms = norms + product.square().flatten(1).sum(1)
            traces = traces + (product * v).flatten(1).sum(1)
        return (norms, traces) if vectors is None else (norms / count, traces / count)

    def _second(self, norms: Tensor, traces: Tensor, entries: int) -> Tensor:
        if self.order2 == "jacobian":
            return norms / entries
        if self.order2 == "trace":
            return traces.square() / entries
        return (norms + traces.square()) / entries

    def _vectors(self, x0: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.probes is None:
            return None
        return random_probe(x0.expand(self.probes, *x0.shape), self.probe, generator)


def _unit_vector(x: Tensor, index: int) -> Tensor:
    v = torch.zeros_like(x, requires_grad=False)
    v.flatten(1)[:, index] = 1
    return v
