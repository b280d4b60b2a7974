"""Flow matching: regression on the velocity of lines between noise and data, which may be paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.losses.denoising import DenoisingLoss
from scoresde.losses.loss import SampledLoss, check_functions
from scoresde.losses.times import TimeLaw, logit_normal_times
from scoresde.losses.weightings import flow_weighting
from scoresde.sde import SDE

COUPLINGS = ("independent", "optimal_transport")


@dataclass(frozen=True, kw_only=True)
class FlowLoss(SampledLoss):
    """Flow matching, one value per example, whatever the denoiser's network predicts.

        L = mean_d (u − û(x_t, t))²,      u = ε − x0,   x_t = α x0 + σ ε
                                                                    (Lipman et al. 2023, eq. 23; Liu et al. 2023, eq. 1)

    With independent noise this is `DenoisingLoss` with `flow_weighting`: the denoiser learns E[x0 | x_t], its score and
    its flow. Noise that is paired with the data leaves the law of the data and, as x_1 = ε, that of the noise; the
    lines between the two cross less, and the flow is straighter. The minimum is then the velocity that carries the one
    law into the other: solvers and `log_prob` of the probability flow hold, while the laws in between are no longer
    Gaussian blurs of the data, so that the score, SDE sampling, bounds and measurements by it do not.

    Args:
        time: Quantile function of t, as for `DenoisingLoss`.
        coupling: "independent"; "optimal_transport": the noise of a batch is permuted among its examples so that
            Σ ‖ε − x0‖² is least (Pooladian et al. 2023, Tong et al. 2024), exact, O(B³) for B examples. Data and
            conditions stay in their places. Batches that bring their own noise are pairs already: see `reflow_pairs`.
        sampling, label_dropout, condition_dropout, image_dropout, sequence_dropout, joint_dropout: See `SampledLoss`.

    References:
        Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747.
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
        Pooladian et al., "Multisample Flow Matching", 2023, arXiv:2304.14772.
        Tong et al., "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", 2024,
        arXiv:2302.00482.
        Esser et al., "Scaling Rectified Flow Transformers", 2024, arXiv:2403.03206 (times).
    """

    time: TimeLaw = logit_normal_times
    coupling: str = "independent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "coupling", self.coupling, COUPLINGS)
        check_functions(self, "time")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        **cond: Any,
    ) -> Tensor:
        """Loss of one batch at random times: x0 (B, *) -> (B,); `noise` (B, *) is that of pairs, instead of a draw."""
        t, drawn = self.draw(denoiser.sde, x0, generator)
        cond = self.drop_conditions(cond, x0, generator)
        if noise is not None:
            _check_end(denoiser.sde, "noise of its own")
            if self.coupling != "independent":
                raise ValueError(
                    f"FlowLoss with coupling={self.coupling} got noise that is paired already: use independent."
                )
        return self.at(denoiser, x0, t, drawn if noise is None else noise, **cond)

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch; the noise is paired with x0."""
        t, noise = super().draw(sde, x0, generator)
        if self.coupling == "independent":
            return t, noise
        _check_end(sde, f"coupling={self.coupling}")
        return t, optimal_pairing(x0, noise)

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        return self.time(sde, u)

    def at(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, **cond: Any) -> Tensor:
        """Loss at given times (B,) and noise (B, *), in the pairs that they are in."""
        return DenoisingLoss(weighting=flow_weighting, time=self.time).at(denoiser, x0, t, noise, **cond)


@torch.no_grad()
def optimal_pairing(x0: Tensor, noise: Tensor) -> Tensor:
    """The noise in the order that makes Σ ‖ε − x0‖² least: x0 and noise (B, *) -> (B, *).

    Raises:
        ValueError: If there are fewer than two examples, which leave nothing to choose.
    """
    from scipy.optimize import linear_sum_assignment

    if len(x0) < 2:
        raise ValueError(
            f"coupling=optimal_transport needs batches of at least 2 examples, got batch_size={len(x0)}: use larger "
            f"batches, or coupling=independent."
        )
    data, drawn = (value.flatten(1).double().cpu() for value in (x0, noise))
    _, order = linear_sum_assignment((-data @ drawn.T).numpy())  # ‖ε‖² and ‖x0‖² are the same in every order
    return noise[torch.as_tensor(order, device=noise.device)]


def _check_end(sde: SDE, pairs: str) -> None:
    if not sde.ends_silent:
        raise ValueError(
            f"FlowLoss with {pairs} needs x_1 to be the noise alone, and alpha(1) is not 0 on {type(sde).__name__}: "
            f"use sde=straight, or coupling=independent."
        )
