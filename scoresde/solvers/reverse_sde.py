"""The reverse SDE through torchsde."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.flow import LogSNRClock
from scoresde.solvers.base import Solver
from scoresde.solvers.noise import NoiseSource, gaussian_noise


@dataclass(frozen=True, kw_only=True)
class ReverseSDE(Solver):
    """Stochastic sampling with torchsde's integrators.

        dx = (c x − σ ε̂) dℓ + σ dw,      ℓ = log-SNR,  c = −f σ²/g²          (Song et al. 2021, eq. 6, in log-SNR)

    The noise does not multiply the state, so srk has strong order 1.5 and milstein equals euler. Network calls per
    step: 3 for srk, 1 for the others; an adaptive solve takes each step once whole and once in halves.

    Args:
        method: euler, milstein or srk.
        steps: Equal steps in log-SNR; the first guess of an adaptive solve.
        adaptive: Whether torchsde chooses its own steps; then the noise is a Brownian path from torchsde and the step
            size is shared by the batch.
        rtol, atol: Tolerances of an adaptive solve.
        seed: Of the Brownian path of an adaptive solve; None takes one from torch's global generator.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Li et al., "Scalable Gradients for Stochastic Differential Equations", 2020, arXiv:2001.01328.
    """

    method: str = "srk"
    steps: int = 100
    adaptive: bool = False
    rtol: float = 1e-3
    atol: float = 1e-3
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("euler", "milstein", "srk"):
            raise ValueError(f"ReverseSDE needs method euler, milstein or srk, got {self.method!r}.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"ReverseSDE needs steps to be a whole number of at least 1, got {self.steps!r}.")

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        import torchsde

        clock = LogSNRClock(denoiser.sde, self.end(denoiser.sde), "ReverseSDE")
        span = clock.data_end - clock.noise_end
        flat = x.flatten(1)
        if self.adaptive:
            seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
            path: Any = torchsde.BrownianInterval(
                t0=clock.noise_end, t1=clock.data_end, size=tuple(flat.shape), dtype=x.dtype, device=x.device,
                entropy=seed, levy_area_approximation="space-time",
            )  # fmt: skip
        else:
            path = _FreshIncrements(clock, flat, gaussian_noise(x) if noise is None else noise)
        flat = torchsde.sdeint(
            _Reverse(denoiser, clock, x.shape),
            flat,
            torch.tensor([clock.noise_end, clock.data_end], dtype=torch.float64, device=x.device),
            bm=path,
            method=self.method,
            dt=span / self.steps * (1 + 1e-9),  # without the margin, rounding adds a step of length zero
            adaptive=self.adaptive,
            rtol=self.rtol,
            atol=self.atol,
            dt_min=span * 1e-6,
        )[-1]
        x = flat.reshape(x.shape)
        return denoiser(x, x.new_tensor(clock.t_end, dtype=torch.float64)) if self.denoise else x


class _Reverse:
    """The reverse SDE in the form that torchsde asks for: flat states, time ℓ increasing from noise to data."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, denoiser: Denoiser, clock: LogSNRClock, shape: torch.Size) -> None:
        self.denoiser, self.clock, self.shape = denoiser, clock, shape
        self.recent: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(self, logsnr: Tensor, y: Tensor) -> Tensor:
        # torchsde's srk asks for its three different stages ten times over in every step
        for when, state, value in self.recent:
            if bool(logsnr == when) and torch.equal(y, state):
                return value
        x, t = y.reshape(self.shape), self.clock.time(logsnr)
        value = self.clock.rate(x, t, self.denoiser.eps(x, t), 1.0).flatten(1)
        self.recent = [*self.recent[-2:], (logsnr, y, value)]
        return value

    def g(self, logsnr: Tensor, y: Tensor) -> Tensor:
        return self.clock.sde.sigma(self.clock.time(logsnr)).to(y.dtype).expand(y.shape)


class _FreshIncrements:
    """A NoiseSource as torchsde's `bm`, for fixed steps, which never ask for the same interval twice.

    W(b) − W(a) = √h z₁,     U = ∫ (W − W(a)) = h (½ ΔW + √(h/12) z₂)
    """

    levy_area_approximation = "space-time"

    def __init__(self, clock: LogSNRClock, flat: Tensor, noise: NoiseSource) -> None:
        self.clock, self.noise = clock, noise
        self.shape, self.dtype, self.device = flat.shape, flat.dtype, flat.device

    def __call__(self, a: Tensor, b: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        h = b - a
        t, s = self.clock.time(a), self.clock.time(b)
        increment = h.sqrt().to(self.dtype) * self.noise(t, s).flatten(1)
        if not return_U:
            return increment
        bridge = (h / 12).sqrt().to(self.dtype) * self.noise(t, t).flatten(1)
        return increment, h.to(self.dtype) * (0.5 * increment + bridge)
