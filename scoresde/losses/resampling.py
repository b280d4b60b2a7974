"""Importance sampling of the terms of a sum, which learns from what they cost."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.checks import check_numbers, check_whole


class LossSecondMoment:
    """Importance sampling of the T terms of a variational bound by the second moment of their losses.

        p_k = (1 − uniform) √E[L_k²] / Σ_j √E[L_j²] + uniform/T,    weight 1/(T p_k)    (Nichol and Dhariwal 2021, §3.3)

    E[L_k²] is the mean over the last `history` losses of term k; p is uniform until every term has that many. Weighted
    means over such draws are unbiased. Losses recorded after a draw count from the next draw on, see `update`.

    Args:
        history: Losses remembered per term.
        uniform: Share of the uniform distribution, which keeps every weight below 1/uniform.

    References:
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    def __init__(self, *, history: int = 10, uniform: float = 0.001) -> None:
        check_whole(self, "1 <= history <= 1000000", history=history)
        check_numbers(self, "0 < uniform <= 1", uniform=uniform)
        self.history, self.uniform = history, uniform
        self.losses = torch.zeros(0, history, dtype=torch.float64)  # (T, history), the oldest is overwritten next
        self.counts = torch.zeros(0, dtype=torch.int64)  # losses seen of every term, (T,)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def draw(self, u: Tensor, terms: int) -> tuple[Tensor, Tensor]:
        """Terms 0 ... T−1 (B,) int64 and weights (B,) float64, for uniforms u (B,) in [0, 1)."""
        p = self.probabilities(terms, u.device)
        edges = p.cumsum(0)
        term = torch.searchsorted(edges / edges[-1], u.double(), right=True).clamp(max=terms - 1)
        return term, 1 / (terms * p[term])

    def probabilities(self, terms: int, device: torch.device | None = None) -> Tensor:
        """p (T,), float64, from the losses that count."""
        self._prepare(terms, device)
        root = self.losses.square().mean(1).sqrt()
        total = root.sum()
        learned = (1 - self.uniform) * root / total + self.uniform / terms
        ready = (self.counts >= self.history).all() & (total > 0)
        return torch.where(ready, learned, 1 / terms)

    def record(self, term: Tensor, losses: Tensor) -> None:
        """Remember losses (B,) of drawn terms (B,), which then wait for `update`."""
        self._waiting.append((term.detach(), losses.detach().double()))

    def update(self) -> None:
        """Let the recorded losses count: a batch can so be drawn once more until the next batch begins."""
        for term, losses in self._waiting:
            term, order = term.sort(stable=True)
            index = torch.arange(len(term), device=term.device)
            later = torch.searchsorted(term, term, right=True) - 1 - index  # of the same term in this batch
            rank = index - torch.searchsorted(term, term)
            slot = torch.where(later < self.history, (self.counts[term] + rank) % self.history, self.history)
            padded = F.pad(self.losses, (0, 1))  # what is overwritten at once goes to a last column
            self.losses = padded.index_put((term, slot), losses[order])[:, : self.history]
            self.counts = self.counts.index_add(0, term, torch.ones_like(term))
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        self.update()
        return {"losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: If it is of another length of history.
        """
        losses, counts = state["losses"], state["counts"]
        fit = counts.shape == losses.shape[:1] and counts.dtype == torch.int64 and bool((counts >= 0).all())
        if not fit or not losses.is_floating_point() or not bool(losses.isfinite().all()):
            raise ValueError("LossSecondMoment needs finite losses (T, history) and their counts (T,)")
        if state["losses"].shape[1:] != (self.history,):
            raise ValueError(
                f"LossSecondMoment with history={self.history} needs the state of one like it, got losses of shape "
                f"{tuple(state['losses'].shape)}"
            )
        self._waiting.clear()
        self.losses, self.counts = state["losses"].double().clone(), state["counts"].clone()

    def _prepare(self, terms: int, device: torch.device | None) -> None:
        if not len(self.counts):
            self.losses = torch.zeros(terms, self.history, dtype=torch.float64)
            self.counts = torch.zeros(terms, dtype=torch.int64)
        if len(self.counts) != terms:
            raise ValueError(
                f"LossSecondMoment has seen the losses of {len(self.counts)} terms and was asked about {terms}: "
                f"use one for each chain."
            )
        if device is not None:
            self.losses, self.counts = self.losses.to(device), self.counts.to(device)
