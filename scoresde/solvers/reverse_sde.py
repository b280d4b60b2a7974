"""The reverse SDE through torchsde."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_unused, check_whole
from scoresde.denoiser import Denoiser, devices_named
from scoresde.integrate.coordinates import FlowCoordinates
from scoresde.noise.brownian_motion import brownian_motion
from scoresde.noise.sources import NoiseSource, gaussian_noise
from scoresde.solvers.adaptive_sde import first_time, from_no_signal
from scoresde.solvers.base import MOST_STEPS, Solver
from scoresde.solvers.runaway import check_range


@dataclass(frozen=True, kw_only=True)
class ReverseSDE(Solver):
    """Stochastic sampling with torchsde's integrators.

        dx = (f x − g² score) dt + g dw          (Song et al. 2021, eq. 6), in `FlowCoordinates`

    The noise does not multiply the state, so srk has strong order 1.5 and milstein equals euler. Network calls per
    step: 3 for srk, 1 for the others; an adaptive solve takes each step once whole and once in halves. From no signal
    a run begins as that of `AdaptiveSDE`.

    Args:
        method: euler, milstein or srk.
        steps: Equal steps of asinh(½ logsnr); the first guess of an adaptive solve.
        adaptive: Whether torchsde chooses its own steps, which the batch shares; then the noise is a `brownian_motion`,
            the same at every tolerance. `AdaptiveSDE` has steps per sample.
        rtol, atol: Tolerances of an adaptive solve.
        seed: Of the Brownian paths of an adaptive solve; None takes one from torch's global generator.

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
        check_choice(self, "method", self.method, ("euler", "milstein", "srk"))
        check_whole(self, f"1 <= steps <= {MOST_STEPS}", f"0 <= seed < {2**63} or null")
        check_numbers(self, "0 < rtol < 1", "0 < atol < 1")
        if not self.adaptive:
            check_unused(self, "adaptive=false", seed=None)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        import torchsde

        start = x
        silent, first = denoiser.sde.ends_silent, first_time(denoiser.sde, self.end(denoiser.sde))
        flow = FlowCoordinates(denoiser.sde, self.end(denoiser.sde), "ReverseSDE", t_start=float(first))
        span = flow.data_end - flow.noise_end
        noise = gaussian_noise(x) if noise is None else noise
        if self.adaptive:
            seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
            path: Any = brownian_motion(x.flatten(1), seed, flow.noise_end - silent, flow.data_end, depth=24)
        else:
            path = _FreshIncrements(flow, x.flatten(1), noise)
        with devices_named(self, denoiser, x=x):
            if silent:  # the path begins one unit earlier
                ahead = path(flow.noise_end - 1, flow.noise_end).reshape(x.shape) if self.adaptive else None
                z = noise(torch.ones_like(first), first) if ahead is None else ahead
                x = from_no_signal(denoiser, x, first, z)
            flat = x.flatten(1) / flow.scale(first)
            flat = torchsde.sdeint(
                _Reverse(denoiser, flow, x.shape),
                flat,
                torch.tensor([flow.noise_end, flow.data_end], dtype=torch.float64, device=x.device),
                bm=path,
                method=self.method,
                dt=span / self.steps * (1 + 1e-9),  # without the margin, rounding adds a step of length zero
                adaptive=self.adaptive,
                rtol=self.rtol,
                atol=self.atol,
                dt_min=span * 1e-6,
            )[-1]
        x = flow.scale(flow.t_end) * flat.reshape(x.shape)
        x = denoiser(x, x.new_tensor(flow.t_end, dtype=torch.float64)) if self.denoise else x
        check_range(self, denoiser, x, lambda plain: self(plain, start, noise=noise))
        return x


class _Reverse:
    """The reverse SDE in the form that torchsde asks for: flat states, time z increasing from noise to data."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, denoiser: Denoiser, flow: FlowCoordinates, shape: torch.Size) -> None:
        self.denoiser, self.flow, self.shape = denoiser, flow, shape
        self.recent: list[tuple[Tensor, Tensor, Tensor]] = []

    def f(self, z: Tensor, y: Tensor) -> Tensor:
        # torchsde's srk asks for its three different stages ten times over in every step
        for when, state, value in self.recent:
            if bool(z == when) and torch.equal(y, state):
                return value
        at, rows = self.flow.reverse_coefficients(z), y.reshape(self.shape)
        value = self.flow.reverse_drift(at, rows, self.denoiser.eps(at[1] * rows, at[0])).flatten(1)
        self.recent = [*self.recent[-2:], (z, y, value)]
        return value

    def g(self, z: Tensor, y: Tensor) -> Tensor:
        return self.flow.diffusion(z).to(y.dtype).expand(y.shape)


class _FreshIncrements:
    """A NoiseSource as torchsde's `bm`, for fixed steps, which never ask for the same interval twice.

    W(b) − W(a) = √h z₁,     U = ∫ (W − W(a)) = h (½ ΔW + √(h/12) z₂)
    """

    levy_area_approximation = "space-time"

    def __init__(self, flow: FlowCoordinates, flat: Tensor, noise: NoiseSource) -> None:
        self.flow, self.noise = flow, noise
        self.shape, self.dtype, self.device = flat.shape, flat.dtype, flat.device

    def __call__(self, a: Tensor, b: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        h = b - a
        t, s = self.flow.time(a), self.flow.time(b)
        increment = h.sqrt().to(self.dtype) * self.noise(t, s).flatten(1)
        if not return_U:
            return increment
        bridge = (h / 12).sqrt().to(self.dtype) * self.noise(t, t).flatten(1)
        return increment, h.to(self.dtype) * (0.5 * increment + bridge)
