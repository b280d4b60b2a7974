"""Denoisers of examples with gaps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser.denoiser import Denoiser
from scoresde.sde.levels import Level


class MissingEntries(Denoiser):
    """A denoiser told which entries are missing, which then are independent of the others with law N(0, std²).

        x̂0 = std² α x/s²,   ε̂ = σ x/s²,   v̂ = (1 − std²) α σ x/s²   where missing,     s² = std² α² + σ²
        the denoiser with 0 in place of x there                       elsewhere

    std = 0 is how a model is trained: what is missing is 0 in its scaling, and adds nothing to any loss. With std = 1
    each missing entry that is put at 0 adds log N(0; 0, 1) to the log-likelihood, so that of the observed part follows.

    Args:
        denoiser: Its networks take `concat`, (B, *), 1 where an entry is missing and 0 elsewhere; None: none is.
        std: Of missing entries.
    """

    def __init__(self, denoiser: Denoiser, std: float = 0.0) -> None:
        super().__init__()
        self.denoiser, self.sde, self.std = denoiser, denoiser.sde, std

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._ask(self.denoiser.x0, x, level, self.std**2 * level.alpha, cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._ask(self.denoiser.eps_at, x, level, level.sigma, cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self._ask(self.denoiser.v_at, x, level, (1 - self.std**2) * level.alpha * level.sigma, cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        inner = self.denoiser.select(index, batch)
        return None if inner is None else MissingEntries(inner, self.std)

    def _ask(self, method: Any, x: Tensor, level: Level, factor: Any, cond: dict[str, Any]) -> Tensor:
        concat = cond.get("concat")
        if concat is None:
            return method(x, level, **cond)  # type: ignore[no-any-return]
        missing = concat != 0
        known = method(x.masked_fill(missing, 0.0), level, **cond)
        return torch.where(missing, factor / (self.std**2 * level.alpha**2 + level.sigma**2) * x, known)
