"""Times at which a step solver stops: (sde, steps, t_end) -> (steps + 1,) float64, decreasing from 1 to t_end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_whole
from scoresde.sde.base import SDE
from scoresde.sde.continuous import VPSDE

Grid = Callable[[SDE, int, float], Tensor]
Clock = Callable[[Tensor], Tensor]  # elementwise, monotone
SILENT = -10.0  # logsnr: the level of VP at t = 1, σ/α = 150
LEAST_PUBLISHED = 5  # steps: label L − L/S of fewer has too little noise for a start from pure noise


class Start(ABC):
    """A way from t = 1 to the first time of a grid that begins below, which needs no network."""

    @abstractmethod
    def __call__(self, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Take x (B, *) from t to s, both () in float64; s > t is the way back."""


class StartedGrid(ABC):
    """A grid that may begin below t = 1, and brings what leads there. Pass the object itself as a solver's grid.

    Attributes:
        start: None if the grid begins at t = 1.
    """

    start: Start | None

    @abstractmethod
    def times(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        """steps + 1 times, float64, decreasing."""

    def __call__(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        """The times alone, which mean the same only if there is nothing before them."""
        if self.start is not None:
            raise TypeError(
                f"{type(self).__name__} begins below t = 1 and brings the way there, which a function of its times "
                f"would lose: pass the object itself as grid=..."
            )
        return self.times(sde, steps, t_end)


class EarlyGrid(ABC):
    """A grid that may end early in a run that goes on to noise 0, if no t_end is given. Pass the object itself."""

    @abstractmethod
    def __call__(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        """steps + 1 times, float64, decreasing from 1 to t_end."""

    @abstractmethod
    def early(self, sde: SDE, steps: int, t_end: float, *, calls: int) -> Tensor:
        """The times for a run of so many calls per step whose last step is to noise 0."""


@dataclass(frozen=True, kw_only=True)
class BalancedGrid(EarlyGrid):
    """Equal steps of (σ/(σ + 3α))^(1/4), down to σ/α = 2/calls²: the default of deterministic solvers.

    σ/(σ + s α) is the share of noise in x_t for data of size s: a clock that is finite at both ends of every process,
    and t itself on the straight path for s = 1. The root gives small noise its part, where fine structure comes in. The
    end, if a step to noise 0 follows, is where that step errs about as much as those before it. The numbers were chosen
    on two Gaussian mixtures, for all solvers together (`python benchmarks/default_grids.py`). Methods that ask several
    times a step in log-SNR, or extrapolate with parabolas there, pass on more of what changes at high noise: their
    `long_step_grid` counts data as twice as large, s = 6, and leaves twice the noise to the last step, 4/calls².

    Args:
        scale: s, in the units in which the model sees the data.
        power: Of which the root is taken; larger values place more levels at little noise.
        end: σ/α is end/calls² where the step to noise 0 begins; 0 goes to t_end, like a run without such a step.
    """

    scale: float = 3.0
    power: float = 4.0
    end: float = 2.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < scale <= 1e9", "0 < power <= 1000", "0 <= end <= 1e9")

    def __call__(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        def clock(logsnr: Tensor) -> Tensor:
            return (1 + self.scale * torch.exp(0.5 * logsnr)) ** (-1 / self.power)

        def logsnr(place: Tensor) -> Tensor:
            return 2 * ((place**-self.power - 1) / self.scale).log()

        return _spaced(sde, steps, t_end, clock, logsnr, compact=True)

    def early(self, sde: SDE, steps: int, t_end: float, *, calls: int) -> Tensor:
        if not self.end:
            return self(sde, steps, t_end)
        level = torch.tensor(self.end / (calls * steps) ** 2, dtype=torch.float64)
        return self(sde, steps, max(t_end, min(float(sde.time(-2 * level.log())), 0.5)))


balanced_grid = BalancedGrid()
long_step_grid = BalancedGrid(scale=6, end=4)


def uniform_grid(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps in t."""
    return torch.linspace(1, t_end, steps + 1, dtype=torch.float64)


def quadratic_grid(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps in √t: finer near the data."""
    times = torch.linspace(1, t_end**0.5, steps + 1, dtype=torch.float64).square()
    times[-1] = t_end
    return times


def vp_grid(sde: SDE, steps: int, t_end: float, *, power: float = 2.0) -> Tensor:
    """The noise levels of equal steps in t^(1/power) of `VPSDE()`, carried over to any process.

    Levels are sparse at both ends and dense around σ/α = 1, where data take shape. On `VPSDE()` itself, power 2 is
    `quadratic_grid` and power 1 `uniform_grid`.
    """
    check_numbers("vp_grid", "0 < power <= 1000", power=power)
    vp = VPSDE()
    return _spaced(
        sde, steps, t_end, lambda logsnr: vp.time(logsnr) ** (1 / power), lambda place: vp.logsnr(place**power)
    )


def few_step_grid(sde: SDE, steps: int, t_end: float) -> Tensor:
    """`vp_grid` down to σ/α = 0.64 steps^(−3/2), or to t_end if that is noisier.

    With few steps the small noise levels are better left to the step to noise 0 of a solver that extrapolates there.
    The constant was chosen on two Gaussian mixtures at 5, 10 and 20 network calls.
    """
    earliest = sde.time(torch.tensor(-2 * math.log(0.64 * steps**-1.5), dtype=torch.float64))
    return vp_grid(sde, steps, min(max(t_end, float(earliest)), 0.5))


def logsnr_grid(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps in log-SNR."""
    return _spaced(sde, steps, t_end, lambda logsnr: logsnr, lambda place: place)


def karras_grid(sde: SDE, steps: int, t_end: float, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (σ/α)^(1/ρ) (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    check_numbers("karras_grid", "0 < rho <= 1000", rho=rho)
    return _spaced(sde, steps, t_end, lambda logsnr: torch.exp(-0.5 / rho * logsnr), lambda root: -2 * rho * root.log())


def subsequence_grid(sde: SDE, steps: int, t_end: float, *, length: int = 1000, spacing: str = "uniform") -> Tensor:
    """A sub-sequence of the `length` states of a discrete chain, then t_end: accelerated sampling from a long table.

        "uniform"    0-based labels 0, L/S, 2L/S, ...               (Song et al. 2021, arXiv:2010.02502, App. D.2)
        "quadratic"  ⌊linspace(0, √(L−1), S)²⌋
        "even"       round(i (L−1)/(S−1)): from the first to the last state  (Improved DDPM, arXiv:2102.09672)
        "even_1"     round(1 + i (L−1)/(S−1)) − 1: the same counted from 1, off by one at ties
                     (Analytic-DPM, arXiv:2201.06503); both round half to even

    Label k is t = (k + 1)/L. S = `steps` labels, all different: S network calls with `denoise=False` and t_end = 0. The
    noisiest has label L − 1, pure noise as the start of a run is, or L − L/S for "uniform". One step takes it alone.

    Song et al.'s code takes every ⌊L/S⌋th label, more than S of them unless S divides L, and squares up to √(0.8 L),
    which starts at label 0.8 L and repeats the smallest labels from S = 30 on for L = 1000. Here "uniform" is as
    published where S divides L and is 5 or more, else "even"; "quadratic" ends at the last label and moves a repeated
    label up to the next free one.

    Where t_end > 0, the labels are those of the states from t_end on, and one that is at t_end is the end itself.
    """
    check_whole("subsequence_grid", f"1 <= steps <= length <= {10**6}", steps=steps, length=length)
    check_choice("subsequence_grid", "spacing", spacing, ("uniform", "quadratic", "even", "even_1"))
    states = torch.arange(1, length + 1, dtype=torch.float64) / length
    states = states[states >= t_end]
    if steps > len(states):
        raise ValueError(
            f"subsequence_grid needs steps <= {len(states)}, the states of {length} from t_end={t_end:g} on, "
            f"got steps={steps}."
        )
    times = states[_labels(len(states), steps, spacing)].flip(0)
    return torch.cat([times[times > t_end], times.new_tensor([t_end])])


def _labels(length: int, steps: int, spacing: str) -> Tensor:
    """Different labels from 0 to length − 1, increasing, (steps,)."""
    if steps == 1:
        return torch.tensor([length - 1])
    if spacing == "uniform" and length % steps == 0 and steps >= LEAST_PUBLISHED:
        return torch.arange(0, length, length // steps)
    place = torch.arange(steps)
    if spacing == "quadratic":
        squares = (length - 1) * place.square() // (steps - 1) ** 2
        return (squares - place).cummax(0).values + place
    one = spacing == "even_1"
    return torch.tensor([round(one + Fraction(i * (length - 1), steps - 1)) - one for i in range(steps)])


def _spaced(sde: SDE, steps: int, t_end: float, clock: Clock, logsnr: Clock, *, compact: bool = False) -> Tensor:
    """Equal steps in clock(logsnr), of which `logsnr` is the inverse.

    Unless the clock is `compact`, finite at both ends, `SILENT` stands for no signal at t = 1, and t_end needs noise.
    """
    ends = sde.logsnr(torch.tensor([1.0, t_end], dtype=torch.float64))
    if sde.ends_silent and not compact:
        ends[0] = SILENT
    if not compact and not bool(ends[1] < math.inf):
        raise _no_noise(sde, t_end)
    times = sde.time(logsnr(torch.linspace(*clock(ends).tolist(), steps=steps + 1, dtype=torch.float64)))  # type: ignore[call-overload]
    times[0], times[-1] = 1.0, t_end
    return times


def _no_noise(sde: SDE, t_end: float) -> ValueError:
    return ValueError(
        f"A grid in log-SNR needs noise at both ends: σ is 0 at t_end={t_end} of {type(sde).__name__}. "
        f"Use t_end > 0, for example the SDE's t_min={sde.t_min:g}."
    )
