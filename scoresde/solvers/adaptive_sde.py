"""The reverse SDE with steps that every sample chooses for itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser, devices_named
from scoresde.integrate.adaptive import AdditiveNoise, Solution, integrate
from scoresde.integrate.coordinates import FlowCoordinates
from scoresde.integrate.methods import Field, State, Tableau
from scoresde.noise.sources import NoiseSource, PathNoise, gaussian_noise
from scoresde.sde import SDE, expand
from scoresde.sde.clock import last_signal
from scoresde.solvers.base import Solver
from scoresde.solvers.runaway import check_range

# error h/2 (f(y') − f(y)), which the noise in y' makes h^1.5
EULER_HEUN = Tableau(order=1.5, nodes=(1.0,), rows=((1.0,),), weights=(0.5, 0.5), error=(0.5, -0.5))


@dataclass(frozen=True, kw_only=True)
class AdaptiveSDE(Solver):
    """Stochastic sampling with steps that every sample chooses for itself.

        y'  = y + h f(y) + N                           Euler-Maruyama, f the drift and N the noise of this step
        y'' = y + h/2 (f(y) + f(y')) + N               stochastic improved Euler, kept if ‖y'' − y'‖ is in tolerance

    The pair of Jolicoeur-Martineau et al. 2021 (Algorithm 1) in `FlowCoordinates`, where the noise
    does not multiply the state: N has its exact variance and cancels in the error. f(y') starts the next step, so an
    attempted step costs one network call where the paper's costs two. A rejected step keeps its Brownian path: choosing
    a smaller step does not choose the noise. Weak order 2. Samples that have arrived leave the batch if the denoiser
    knows how to go on without them (`Denoiser.select`).

    `noise` may be any source: a `PathNoise` is asked with one time per sample (`brownian_noise`; with the clock
    log(1 + 1/SNR) its refinements are exactly those of N); any other gives fresh draws, and the path is kept here.

    From no signal the reverse SDE forgets its start at once: a run begins at α/σ = 10⁻³, with x = α x̂0(x_1) + σ z from
    one call at t = 1, which is off by O(10⁻⁶).

    Args:
        rtol, atol: Relative and absolute tolerance of one step, for x scaled to unit variance, per sample (root mean
            square over its entries).

    References:
        Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models", 2021,
        arXiv:2105.14080.
        Rackauckas and Nie, "Adaptive Methods for Stochastic Differential Equations via Natural Embeddings and
        Rejection Sampling with Memory", 2017, doi:10.3934/dcdsb.2017133.
    """

    rtol: float = 0.02
    atol: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 < rtol < 1", "0 < atol < 1")

    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        end = self.solution(denoiser, x, noise=noise).x
        check_range(self, denoiser, end, lambda plain: self(plain, x, noise=noise))
        return end

    @torch.no_grad()
    def solution(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Solution:
        """The result of a call and its cost per sample."""
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"AdaptiveSDE needs a float32 or float64 state, got {x.dtype}: "
                f"half precision loses the small steps near the data. Use autocast for the network instead."
            )
        noise = gaussian_noise(x) if noise is None else noise
        first = first_time(denoiser.sde, self.end(denoiser.sde))
        flow = FlowCoordinates(denoiser.sde, self.end(denoiser.sde), "AdaptiveSDE", t_start=float(first))
        with devices_named(self, denoiser, x=x):
            if denoiser.sde.ends_silent:
                x = from_no_signal(denoiser, x, first, noise(torch.ones_like(first), first))
            y = x / flow.scale(first)
            (y,), nfe, accepted, rejected = integrate(
                reverse_field(flow, denoiser, len(x)), (y,), flow.noise_end, flow.data_end, EULER_HEUN,
                rtol=self.rtol, atol=self.atol, noise=path_noise(flow, y, noise), owner="AdaptiveSDE",
            )  # fmt: skip
        x, nfe = flow.scale(flow.t_end) * y, nfe + denoiser.sde.ends_silent
        if self.denoise:
            x, nfe = denoiser(x, torch.tensor(flow.t_end, dtype=torch.float64, device=x.device)), nfe + 1
        return Solution(x, nfe, accepted, rejected)


def first_time(sde: SDE, t_end: float) -> Tensor:
    """Where a reverse SDE starts: t = 1, or `last_signal` of a process that ends without signal."""
    return torch.tensor(max(last_signal(sde), 0.5 * (1 + t_end)), dtype=torch.float64)


def from_no_signal(denoiser: Denoiser, x: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """x_s = α_s x̂0(x_1) + σ_s z: the reverse SDE from no signal, whose bias is O(α_s²)."""
    one = torch.ones((), dtype=torch.float64, device=x.device)
    return denoiser.sde.perturb(denoiser(x, one), s.to(x), z)


def reverse_field(flow: FlowCoordinates, denoiser: Denoiser, batch: int) -> Field:
    """The drift of the reverse SDE as a right-hand side for `integrate`."""

    def rate(at: Tensor, state: State) -> State:
        (y,) = state
        return (flow.reverse_drift(at, y, denoiser.eps(expand(at[1], y) * y, at[0])),)

    def select(index: Tensor) -> Field | None:
        smaller = denoiser.select(index, batch)
        return None if smaller is None else reverse_field(flow, smaller, batch)

    return Field(flow.reverse_coefficients, rate, select)


def path_noise(flow: FlowCoordinates, y: Tensor, noise: NoiseSource) -> AdditiveNoise:
    """Noise of the reverse SDE along one Brownian path per sample, which rejected steps do not change.

    A `PathNoise` is such a path already; any other source gives fresh draws, and the path is kept here.
    """
    return _GivenPath(flow, noise) if isinstance(noise, PathNoise) else _RecordedPath(flow, y, noise)


class _GivenPath(AdditiveNoise):
    """A source that is a Brownian path by itself, asked with one time per sample."""

    def __init__(self, flow: FlowCoordinates, path: PathNoise) -> None:
        self.flow, self.path = flow, path

    def __call__(self, z: Tensor, z_to: Tensor) -> Tensor:
        draws = self.path(self.flow.time(z), self.flow.time(z_to))
        return expand(self.flow.variance(z, z_to).sqrt(), draws) * draws

    def update(self, z: Tensor, accept: Tensor, rejected: Tensor) -> Tensor:
        return rejected.new_zeros((), dtype=torch.long)

    def reserve(self, number: int) -> None:
        pass

    def select(self, keep: Tensor) -> None:
        self.path = self.path.select(keep)


class _RecordedPath(AdditiveNoise):
    """A Brownian path drawn as it is visited: points that rejected steps have seen ahead are kept and bridged.

    W(c) | W(a), W(b) ~ N(W(a) + (c−a)/(b−a) (W(b) − W(a)),  (c−a)(b−c)/(b−a))            a < c < b
    """

    def __init__(self, flow: FlowCoordinates, y: Tensor, noise: NoiseSource) -> None:
        self.flow, self.noise = flow, noise
        self.now = torch.zeros_like(y)
        self.samples: Tensor | None = None
        self.ahead = [self._slot()]  # (z, W): free for a row whose z is past it
        self.trial = self.now, self.now

    def __call__(self, z: Tensor, z_to: Tensor) -> Tensor:
        left, w_left = z, self.now
        right, w_right = torch.full_like(z, float("inf")), self.now
        for point, w in self.ahead:
            before, after = (point > left) & (point <= z_to), (point > z_to) & (point < right)
            left, w_left = torch.where(before, point, left), _where(before, w, w_left)
            right, w_right = torch.where(after, point, right), _where(after, w, w_right)
        gap = z_to - left
        part = gap / (right - left)
        draws = self.noise(*2 * (torch.ones((), dtype=torch.float64, device=z.device),))  # t = s: a fresh draw
        draws = draws if self.samples is None else draws[self.samples]
        w_to = w_left + expand(part, w_left) * (w_right - w_left) + expand((gap * (1 - part)).sqrt(), w_left) * draws
        self.trial = z_to, w_to
        per_unit = torch.where(z_to > z, self.flow.variance(z, z_to) / (z_to - z), 0.0).sqrt()
        return expand(per_unit, w_to) * (w_to - self.now)

    def update(self, z: Tensor, accept: Tensor, rejected: Tensor) -> Tensor:
        z_to, w_to = self.trial
        pending = rejected
        for k, (point, w) in enumerate(self.ahead):
            here = pending & (point <= z)
            self.ahead[k] = torch.where(here, z_to, point), _where(here, w_to, w)
            pending = pending & ~here
        self.now = _where(accept, w_to, self.now)
        return torch.stack([point > z for point, _ in self.ahead]).all(0).sum()

    def reserve(self, number: int) -> None:
        if number:  # rows without a free slot for their next point
            self.ahead.append(self._slot())

    def select(self, keep: Tensor) -> None:
        self.samples = keep if self.samples is None else self.samples[keep]
        self.now = self.now[keep]
        self.ahead = [(point[keep], w[keep]) for point, w in self.ahead]

    def _slot(self) -> tuple[Tensor, Tensor]:
        passed = torch.full(self.now.shape[:1], -float("inf"), dtype=torch.float64, device=self.now.device)
        return passed, self.now


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)
