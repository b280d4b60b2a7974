"""Weighted populations of particles, one population for each observation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Level


@dataclass(frozen=True, eq=False)
class Particles:
    """R weighted populations that stand for p(x0 | y), and how they came about.

    Attributes:
        x: (R, N, *).
        log_weights: Normalised, (R, N).
        log_evidence: log p̂(y), (R,), in nats; p̂(y) has the mean p(y) of the discretised prior.
        ess: Effective sample size over N before resampling, at every level and at the end, (levels, R).
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ess: Tensor

    def draw(self, count: int, uniform: Tensor) -> Tensor:
        """`count` particles of each population, (R · count, *): by systematic resampling, uniform (R,)."""
        index = systematic(self.log_weights, uniform, count)
        return self.x.flatten(0, 1)[index.flatten()]


def systematic(log_weights: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Rows of the flattened populations (R, N), (R, count): particle n about `count` times its weight.

    Args:
        log_weights: (R, N), up to a constant per population.
        uniform: One uniform number per population, (R,).
        count: Particles to draw from each.
    """
    total = log_weights.softmax(1).cumsum(1)
    places = (torch.arange(count, device=total.device) + uniform.to(total)[:, None]) / count
    chosen = torch.searchsorted(total, places * total[:, -1:]).clamp_max(total.shape[1] - 1)
    return chosen + total.shape[1] * torch.arange(len(total), device=total.device)[:, None]


class Draws:
    """Standard normals of the particles, from those of the samples, so that a stream per sample stays one.

    With a population for each sample, its particles use that sample's stream; a population for all uses all of them.

    Args:
        noise: (t, s) -> (B, *).
        samples: B.
        populations, particles: R, 1 or B, and N.
    """

    def __init__(self, noise: NoiseSource, samples: int, populations: int, particles: int) -> None:
        self.noise, self.own, self.rows = noise, populations == samples, populations * particles
        self.calls = particles if self.own else math.ceil(particles / samples)

    def __call__(self, level: Level) -> Tensor:
        """(R · N, *)."""
        drawn = torch.stack([self._fresh(level) for _ in range(self.calls)], int(self.own))
        return drawn.flatten(0, 1)[: self.rows]

    def entries(self, level: Level, count: int) -> Tensor:
        """(R · N, count)."""
        parts = [self(level).flatten(1)]
        while sum(part.shape[1] for part in parts) < count:
            parts.append(self(level).flatten(1))
        return torch.cat(parts, 1)[:, :count]

    def uniform(self, level: Level, populations: int) -> Tensor:
        """(R,)."""
        return torch.special.ndtr(self._fresh(level)[:populations].flatten(1)[:, 0].double())

    def _fresh(self, level: Level) -> Tensor:
        return self.noise(level.host_time, level.host_time)
