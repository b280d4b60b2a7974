"""log p(y | x_t) that has been learned on one process, asked on another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from scoresde.sde import SDE, expand

CLEAN, NOISY = 0.05, 20.0  # σ/α below which a picture looks clean, and above which it says nothing of a class


class Potential(ABC):
    """log p(y | x_t) up to a constant, of what has seen the noise of one process: called as potential(x, t) -> (B,).

    `ClassifierGuided` and `MeanShift` put it on the denoiser's process, by `on`.

    Attributes:
        sde: The process whose noise it has seen.
        noun: What it is, for messages.
    """

    sde: SDE
    noun: str

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, *) at t () or (B,) -> (B,)."""

    def on(self, sde: SDE) -> Potential:
        """The same potential on another process, asked at equal σ/α.

            x = α x0 + σ ε on `sde`,   y = α' x0 + σ' ε on its own
            σ/α = σ'/α':   y = (α'/α) x,   log p(c | x) = log p(c | y)

        Beyond its own levels it is asked at the nearer end of them: with less noise at y = (α'/α) x; with more at
        y = (σ'/σ) x, times (σ'/α')/(σ/α), as what is known of y falls with the signal.

        Raises:
            ValueError: If the process has levels that it has never seen and that matter: its own must reach down to
                σ/α = 0.05 and up to 20, or as far as those of the process.
        """
        if sde == self.sde:
            return self
        (low, high), (least, most) = noise_range(self.sde), noise_range(sde)
        if low > max(least, CLEAN) * 1.01 or high < min(most, NOISY) * 0.99:
            raise ValueError(
                f"The {self.noun} has seen noise of σ/α from {low:.3g} to {high:.3g}, and is to guide a denoiser of "
                f"{least:.3g} to {most:.3g}: train it on the denoiser's {type(sde).__name__}, or on one that covers it."
            )
        return _OnProcess(self, sde)


class _OnProcess(Potential):
    def __init__(self, potential: Potential, sde: SDE) -> None:
        self.potential, self.sde, self.noun = potential, sde, potential.noun

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.potential.sde
        t = t.double()
        clean, noisy = own.logsnr(t.new_tensor([own.t_min, 1.0])).unbind()
        logsnr = self.sde.logsnr(t)
        wanted = torch.minimum(torch.maximum(logsnr, noisy), clean)
        at = torch.where(wanted == noisy, 1.0, own.time(wanted).clamp(own.t_min, 1))
        louder = logsnr < noisy  # more noise than it has seen
        scale = torch.where(louder, own.sigma(at) / self.sde.sigma(t), own.alpha(at) / self.sde.alpha(t))
        faded = torch.where(louder, torch.exp(0.5 * (logsnr - noisy)), 1.0)
        return faded.to(x.dtype) * self.potential(expand(scale, x).to(x.dtype) * x, at)

    def on(self, sde: SDE) -> Potential:
        return self.potential.on(sde)


def on_process(log_prob: Any, sde: SDE) -> Any:
    """A potential on a process; any other function as it is."""
    return log_prob.on(sde) if isinstance(log_prob, Potential) else log_prob


def noise_range(sde: SDE) -> tuple[float, float]:
    """σ/α at both ends of a process, from data to noise; the second may be infinite."""
    with torch.no_grad():
        clean, noisy = sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64)).tolist()
    return math.exp(-0.5 * clean), math.exp(-0.5 * noisy)
