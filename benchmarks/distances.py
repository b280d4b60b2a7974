"""Distances between generated and true samples of a mixture, in units of the data's rms."""

from __future__ import annotations

import torch
from mixture import Mixture
from torch import Tensor


class Judge:
    """Holds true samples and compares others with them.

    Args:
        problem: The mixture.
        count: Number of true samples.
    """

    def __init__(self, problem: Mixture, count: int = 20_000) -> None:
        self.problem, self.truth = problem, problem.sample(count, seed=1)
        generator = torch.Generator().manual_seed(2)
        directions = torch.randn(problem.mu.shape[1], 256, generator=generator, dtype=torch.float64)
        self.directions = directions / directions.norm(dim=0)
        self.projected = (self.truth @ self.directions).sort(0).values
        self.near = self.truth[:5000]
        self.within = _mean_distance(self.near, self.near) * len(self.near) / (len(self.near) - 1)

    def __call__(self, x: Tensor) -> dict[str, float]:
        if not bool(torch.isfinite(x).all()):
            return {"sw2": float("inf"), "energy": float("inf"), "within_logvar": float("inf")}
        return {"sw2": self.sliced(x), "energy": self.energy(x), "within_logvar": self.within_logvar(x)}

    def sliced(self, x: Tensor) -> float:
        """√ of the squared Wasserstein-2 distance averaged over 256 directions, by quantiles."""
        quantiles = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x) * len(self.projected)
        truth = self.projected[quantiles.long()]
        return float(((x @ self.directions).sort(0).values - truth).square().mean().sqrt()) / self.problem.rms

    def energy(self, x: Tensor) -> float:
        """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ with ‖·‖ the rms over dimensions; of 5000 each, unbiased."""
        x = x[:5000]
        own = _mean_distance(x, x) * len(x) / (len(x) - 1)
        return (2 * _mean_distance(x, self.near) - own - self.within) / self.problem.rms

    def within_logvar(self, x: Tensor) -> float:
        """Mean |log(variance / true variance)| over components and dimensions; a sample counts for its likeliest."""
        owner = self.problem.responsibilities(x, 1.0, 0.0)[0].argmax(1)
        ratios = [
            (x[owner == k].var(0).clamp_min(1e-12) / self.problem.var[k]).log().abs().mean()
            for k in range(len(self.problem.w))
            if int((owner == k).sum()) > 1
        ]
        return float(torch.stack(ratios).mean())


def _mean_distance(x: Tensor, y: Tensor) -> float:
    total = sum(float(torch.cdist(rows, y).sum()) for rows in x.split(1000))
    return total / (len(x) * len(y)) / x.shape[1] ** 0.5
