"""Products and mixtures of densities, from their denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_list
from scoresde.denoiser import Denoiser
from scoresde.guidance.branches import Method, ask_all, require_same_sde, select_all
from scoresde.sde.levels import Level

LogJoint = Callable[[Tensor, Tensor], Tensor]  # (x (B, *), t () or (B,)) -> log π_i p_i(x_t = x), (B, K)


class Composed(Denoiser):
    """Sum of the changes that several conditions make to a base denoiser: a product of densities.

        x̂0 = base + Σ_i w_i (part_i − base)                     (Liu et al. 2022, eq. 11)

    At every noise level this is the score of p_base Π (p_i/p_base)^w_i there, which is not the diffusion of one law of
    the data: for Gaussian data of one mean the flow ends at variance v_base Π (v_i/v_base)^w_i. Parts that are one
    network with different conditions are asked in one call.

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
        require_same_sde("Composed", base, *parts)
        self.sde, self.base, self.parts, self.weights = base.sde, base, nn.ModuleList(parts), tuple(weights)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._sum(lambda denoiser: denoiser.x0, x, level, cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._sum(lambda denoiser: denoiser.v_at, x, level, cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        chosen = select_all((self.base, *_denoisers(self.parts)), index, batch)
        return None if chosen is None else Composed(chosen[0], chosen[1:], self.weights)

    def _sum(self, method: Method, x: Tensor, level: Level, cond: dict[str, Any]) -> Tensor:
        base, *parts = ask_all((self.base, *_denoisers(self.parts)), method, x, level, cond)
        changes = [w * (part - base) for w, part in zip(self.weights, parts, strict=True)]
        return base + torch.stack(changes).sum(0)


class Mixture(Denoiser):
    """A mixture of the laws of several denoisers.

        x̂0 = Σ_i r_i(x) part_i,      r_i(x) = π_i p_i(x_t)/Σ_j π_j p_j(x_t)

    which is exact, as a mixture of data diffuses to the mixture of what they diffuse to. The responsibilities need
    log p_i at every noise level: analytic denoisers know it, and a classifier of noisy data has it as its logits:

        Mixture([model.given(label=3), model.given(label=8)], lambda x, t: classifier(x, t)[:, [3, 8]])     3 or 8

    With constant weights in place of r this would be a product Π p_i^w_i: see `Composed`.

    Args:
        parts: Denoisers on the same SDE; those that are one network with different conditions are asked in one call.
        log_joint: Called as log_joint(x, t) -> (B, K), log π_i p_i(x_t = x) up to what the parts have in common.
    """

    def __init__(self, parts: Sequence[Denoiser], log_joint: LogJoint) -> None:
        super().__init__()
        if not parts:
            raise ValueError("Mixture needs at least one part, got none.")
        require_same_sde("Mixture", *parts)
        self.sde, self.parts, self.log_joint = parts[0].sde, nn.ModuleList(parts), log_joint

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._average(lambda denoiser: denoiser.x0, x, level, cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._average(lambda denoiser: denoiser.v_at, x, level, cond)

    def _average(self, method: Method, x: Tensor, level: Level, cond: dict[str, Any]) -> Tensor:
        parts = torch.stack(ask_all(_denoisers(self.parts), method, x, level, cond), 1)
        log_joint = self.log_joint(x, level.time)
        if log_joint.shape != parts.shape[:2]:
            raise ValueError(
                f"Mixture needs log_joint to return one number per sample and part: expected shape "
                f"{tuple(parts.shape[:2])}, got {tuple(log_joint.shape)}."
            )
        share = log_joint.softmax(1).to(parts.dtype)
        return (share.reshape(*share.shape, *[1] * (x.ndim - 1)) * parts).sum(1)


def _denoisers(parts: nn.ModuleList) -> list[Denoiser]:
    return [part for part in parts if isinstance(part, Denoiser)]
