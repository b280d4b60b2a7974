"""What a run measures about itself, without making an accelerator wait."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Meter:
    """Running means of loss and gradient norm, throughput, and the first update that was not finite.

    `record` only queues work on the device; `means` and `trouble` read from it.

    Args:
        device: Where losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device)  # of loss, its variance and gradient norm since the last reset
        self.count = 0  # of updates in them
        self._trouble = torch.full((3,), -1, device=device)
        self.restart()

    def restart(self) -> None:
        """Start the clock; the sums stay."""
        self._examples = 0
        self._began = self._since = time.perf_counter()

    def forget(self) -> None:
        """Leave out the updates since the last row."""
        self.sums.zero_()
        self.count = 0

    def record(self, step: int, losses: Tensor, norm: Tensor) -> None:
        """One update: the loss of each example (B,) and the norm of the gradient ()."""
        worst = losses.argmax()  # a NaN counts as the largest
        finite = losses.isfinite().all()
        found = torch.stack([torch.full_like(worst, step), worst, finite.long()])
        first = (self._trouble[0] < 0) & ~(finite & norm.isfinite())
        self._trouble = torch.where(first, found, self._trouble)
        self.sums += torch.stack([losses.mean().float(), losses.float().var(correction=0), norm.float()])
        self.count += 1
        self._examples += len(losses)

    def trouble(self) -> tuple[int, int, bool] | None:
        """First bad update, its worst example, and whether that loss is finite (then it was the gradient)."""
        step, example, finite = self._trouble.tolist()
        return None if step < 0 else (step, example, bool(finite))

    def means(self, lr: float) -> dict[str, float]:
        """A row of metrics, averaged over the updates since the last one; starts over."""
        loss, variance, norm = (self.sums / self.count).tolist()
        now = time.perf_counter()
        rate = self._examples / max(now - self._since, 1e-9)
        self.sums.zero_()
        self.count = 0
        self._examples, self._since = 0, now
        return {
            "loss": loss, "loss_std": max(variance, 0.0) ** 0.5, "grad_norm": norm, "lr": lr,
            "examples_per_second": rate, "seconds": now - self._began,
        }  # fmt: skip

    def pause(self, seconds: float) -> None:
        """Leave time that was not spent on training out of the throughput."""
        self._since += seconds
