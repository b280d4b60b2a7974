"""Whether a network's clock runs the way that it is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser

LEVELS = (0.03, 0.1, 0.3)  # σ/α near the data, in standard deviations of theirs
ALLOWED = 1.15  # of the loss that no denoising at all has


@torch.no_grad()
def check_time_direction(
    denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
) -> Tensor:
    """Raise unless a model removes noise near the data, as one whose time runs the wrong way does not.

        E‖ε − ε̂‖²/d ≤ 1 at little noise: ε̂ = 0 has 1, and the best denoiser less

    A velocity network that is asked at 1 − t, or whose sign is turned, takes clean data for noise: its loss is
    about 1 + 4 Var[x0] there. Use it on what comes from elsewhere; a network without training may fail it too.

    Args:
        denoiser: The model.
        x0: Some hundred examples (B, *) in the model's scaling.
        generator: For the noise, on the device of x0.
        cond: Conditions.
    Returns:
        The losses, (3,), at σ/α = 0.03, 0.1 and 0.3 standard deviations of the data.
    Raises:
        ValueError: If the loss is too large at one of them.
    """
    spread, losses = float(x0.double().std()), []
    for level in LEVELS:
        logsnr = torch.tensor(level * spread, dtype=torch.float64, device=x0.device).log() * -2
        t = denoiser.sde.time(logsnr).clamp(denoiser.sde.t_min, 1)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        error = (denoiser.eps(denoiser.sde.perturb(x0, t, noise), t, **cond) - noise).square().flatten(1).mean(1)
        losses.append(error.mean())
        if not float(error.mean()) <= ALLOWED + 3 * float(error.std()) / len(x0) ** 0.5:
            raise ValueError(
                f"the denoiser adds noise near the data: its loss at t={float(t):.3g} is {float(error.mean()):.3g}, "
                f"and 1 without any denoising. Does the network's time run from noise to data (Velocity(label="
                f"'data_time')), is its output x0 - noise, or are the data in another scaling?"
            )
    return torch.stack(losses)
