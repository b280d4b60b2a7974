"""What a posterior sampler of a library gets, and how its calls are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from posterior_problems import Problem
from torch import Tensor


@dataclass
class Count:
    """Rows that went through the denoiser, and rows of cotangents that went back through it."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Task:
    """One problem for one method.

    Attributes:
        problem: What is observed.
        steps: That the method may take.
        samples: That it must return, (samples, d) in float64.
        count: Where `denoised` counts.
        generator: Its randomness.
    """

    problem: Problem
    steps: int
    samples: int
    count: Count
    generator: torch.Generator = field(default_factory=torch.Generator)

    def denoised(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | x_t = x], x (B, d)."""
        self.count.forward += len(x)
        result = self.problem.denoised(x, alpha, sigma)
        if result.requires_grad:
            result.register_hook(self._back)
        return result

    def _back(self, gradient: Tensor) -> None:
        self.count.backward += len(gradient)


@dataclass(frozen=True)
class Row:
    """A method with the solver that suits it.

    Attributes:
        method, solver: Names.
        exact: Whether it samples the posterior in the limit of many steps and particles.
        run: task -> samples.
    """

    method: str
    solver: str
    run: Callable[[Task], Tensor]
    exact: bool = False
