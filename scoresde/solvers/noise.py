"""Sources of noise: functions (t, s) -> z ~ N(0, I) for the step from t to s; t = s asks for a fresh draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSource = Callable[[Tensor, Tensor], Tensor]


def gaussian_noise(x: Tensor, generator: torch.Generator | None = None) -> NoiseSource:
    """Independent draws of the shape, dtype and device of x."""

    def draw(t: Tensor, s: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    return draw


def per_sample_noise(x: Tensor, seeds: Sequence[int]) -> NoiseSource:
    """Draws in which sample k depends on seeds[k] alone, not on the batch it is drawn in.

    Args:
        x: Gives shape (B, *), dtype and device; draws are made on the CPU, so devices agree.
        seeds: One seed per sample.
    """
    if len(seeds) != x.shape[0]:
        raise ValueError(f"per_sample_noise needs one seed per sample: expected {x.shape[0]}, got {len(seeds)}.")
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def draw(t: Tensor, s: Tensor) -> Tensor:
        rows = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype) for generator in generators]
        return torch.stack(rows).to(x.device)

    return draw


def brownian_noise(x: Tensor, seed: int, *, tol: float = 1e-9) -> NoiseSource:
    """Increments of one Brownian path in t per entry of x, through torchsde's BrownianInterval.

        z(t, s) = (W(t) − W(s)) / √(t − s)

    The path depends on the seed and the shape of x alone, so runs with different step counts share it.

    Args:
        x: Gives shape (B, *), dtype and device.
        seed: Of the path, and of the fresh draws asked for with t = s.
        tol: Resolution of the path in t; every step must be longer.
    """
    import torchsde

    path = torchsde.BrownianInterval(
        t0=0.0, t1=1.0, size=(x.shape[0], x[0].numel()), dtype=x.dtype, device=x.device, entropy=seed, tol=tol,
        halfway_tree=True,  # without it the path depends on the order in which its intervals are asked for
    )  # fmt: skip
    generator = torch.Generator(device=x.device).manual_seed(seed)

    def draw(t: Tensor, s: Tensor) -> Tensor:
        if t.ndim or s.ndim:
            raise ValueError("brownian_noise follows one clock for the whole batch: t and s must be scalars.")
        if float(t) == float(s):
            return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        if float(t) - float(s) < 2 * tol:
            raise ValueError(
                f"brownian_noise needs steps longer than 2 tol, got one of {float(t - s):g} with tol={tol:g}."
            )
        increment = path(float(s), float(t)) / (t - s).sqrt()
        return increment.reshape(x.shape).to(x.dtype)

    return draw
