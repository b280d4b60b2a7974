"""Noise levels: many at once as tensors, and one after the other as the numbers that the formulas of a step need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from scoresde.sde.base import LEAST_SIGNAL, SDE, expand

Weights = Mapping[str, "Tensor | Levels | Sequence[Tensor | Levels]"]  # by name, one entry per interval


class HasSDE(Protocol):
    """A denoiser, as far as its process goes."""

    sde: SDE


@dataclass(frozen=True, eq=False)
class Levels:
    """Noise levels in the order in which a run visits them, in float64; every tensor has shape (n, ...).

    Args:
        sde: The forward process.
        t, alpha, sigma: Times and their coefficients.
        lam: λ = log(α/σ) = ½ logsnr; infinite where σ is 0.
        whole: Whether these are all levels of a run: the first one has none before it, the last one none after it.
    """

    sde: SDE
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor
    whole: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, sde: SDE, times: Tensor) -> Levels:
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        if sde.ends_silent:
            alpha = torch.where(alpha <= LEAST_SIGNAL * sigma, 0, alpha)
        return cls(sde, times, alpha, sigma, torch.log(alpha / sigma))

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice | Tensor) -> Levels:
        return Levels(self.sde, self.t[rows], self.alpha[rows], self.sigma[rows], self.lam[rows], whole=self.whole)

    @property
    def ratio(self) -> Tensor:
        """σ/α: the noise level of x/α."""
        return self.sigma / self.alpha

    def landed(self) -> Levels:
        """With one more level at the end: the data themselves, α = 1 and σ = 0."""
        last = self.t[-1:]
        ends = (last, torch.ones_like(last), torch.zeros_like(last), torch.full_like(last, math.inf))
        return Levels(self.sde, *map(torch.cat, zip((self.t, self.alpha, self.sigma, self.lam), ends, strict=True)))

    def scaled(self, std: float) -> Levels:
        """For data divided by `std`: unit data with noise σ/std."""
        return replace(self, sigma=self.sigma / std, lam=self.lam + math.log(std))

    @staticmethod
    def joined(parts: Sequence[Levels]) -> Levels:
        """One after the other, of the same process."""
        columns = zip(*((part.t, part.alpha, part.sigma, part.lam) for part in parts), strict=True)
        return Levels(parts[0].sde, *map(torch.cat, columns))


@dataclass(eq=False, slots=True)
class Level:
    """One noise level, as a formula reads it: numbers in a run; with one time per sample, tensors that broadcast.

    Attributes:
        alpha, sigma: α and σ.
        time: t as a denoiser gets it, () or (B,), on the device of the states.
        host_time: The same on the CPU in a run, for noise sources.
    """

    alpha: Any
    sigma: Any
    time: Tensor
    host_time: Tensor
    schedule: Schedule
    index: int

    @classmethod
    def at(cls, sde: SDE, t: Tensor, x: Tensor) -> Level:
        """The level of states x (B, *) at times t, () or (B,)."""
        return Schedule(Levels.of(sde, t.double().unsqueeze(0)), (t,), (t,), x).all[0]

    @property
    def t(self) -> Any:
        """t in [0, 1]."""
        return self.read("t", None, lambda levels: (levels.t,))[0]

    @property
    def lam(self) -> Any:
        """λ = ½ logsnr."""
        return self.read("λ", None, lambda levels: (levels.lam,))[0]

    @property
    def f(self) -> Any:
        """f(t)."""
        return self.read("f", None, lambda levels: (levels.sde.f(levels.t),))[0]

    @property
    def g(self) -> Any:
        """g(t)."""
        return self.read("g", None, lambda levels: (levels.sde.g(levels.t),))[0]

    def read(self, name: str, owner: object, columns: Callable[[Levels], Iterable[Tensor]]) -> tuple[Any, ...]:
        """This level's row of `columns(levels)`: computed once for a whole run, and kept.

        Args:
            name, owner: What they are kept as: a name, and a frozen object that they depend on.
            columns: Elementwise functions of the levels.
        """
        schedule, key = self.schedule, (name, id(owner))
        if key not in schedule.kept:
            schedule.kept[key] = owner, list(zip(*map(schedule.values, columns(schedule.levels)), strict=True))
        return schedule.kept[key][1][self.index]  # type: ignore[no-any-return]

    def mapped(self, name: str, owner: object, to: Callable[[Levels], Levels]) -> Level:
        """This level's counterpart in `to(levels)`, levels of another process: found once for a whole run, and kept."""
        schedule, key = self.schedule, (name, id(owner))
        if key not in schedule.kept:
            schedule.kept[key] = owner, list(schedule.entries(to(schedule.levels)))
        return schedule.kept[key][1][self.index]  # type: ignore[no-any-return]


@dataclass(eq=False, slots=True)
class Interval:
    """A step from level t to level s.

    Attributes:
        t, s: The levels.
        h: λ_s − λ_t; infinite from no signal and to noise 0.
        decay: 1 − e^(−h).
        removed: 1 − SNR_t/SNR_s, the share of the noise that the step takes away; β̃ = σ_s² removed, β = σ_t² removed.
        to_data: Whether s is noise 0: the last step of a run that ends at x̂0.
        last_noise: Whether the next step of the run is `to_data`.
    """

    t: Level
    s: Level
    h: Any
    decay: Any
    removed: Any
    to_data: bool
    last_noise: bool = False

    @classmethod
    def between(cls, model: HasSDE | SDE, t: Tensor, s: Tensor, x: Tensor | None = None) -> Interval:
        """By hand, for `solver.step`: from times t to times s, () or (B,), of a denoiser or a process.

        Args:
            model: Whose process it is.
            t, s: Times.
            x: The states (B, *), if every sample has its own times.
        """
        sde = model if isinstance(model, SDE) else model.sde
        pair = (t, s) if t.shape == s.shape else torch.broadcast_tensors(t, s)
        levels = Levels.of(sde, torch.stack(pair).double())
        if x is None and levels.t.ndim > 1:
            raise ValueError(
                f"Interval.between needs the states for one time per sample, t of shape {tuple(t.shape)}: pass x."
            )
        constant = levels.t.ndim == 1 and levels.t.device.type == "cpu" and not levels.alpha.requires_grad
        like = None if constant else levels.t if x is None else x
        return Schedule(levels, (t, s), (t, s), like).intervals[0]

    @property
    def denoising(self) -> bool:
        """Whether t and s are at one time: the call that ends a run at x̂0, which is no step of a method in t."""
        return self.to_data and bool(self.t.t == self.s.t)

    @property
    def left(self) -> int | None:
        """How many steps are left in a run, this one included; None by hand."""
        levels = self.t.schedule.levels
        return len(levels) - 1 - self.t.index if levels.whole else None

    def over(self, h_before: Any) -> Any:
        """h/h' for an earlier step of length h'; 0 to noise 0, where no polynomial in λ has a limit."""
        if isinstance(self.h, float):
            return 0.0 if math.isinf(self.h) else self.h / h_before
        return torch.where(torch.isfinite(self.h), self.h, 0) / h_before

    def weights(self, solver: HasWeights, before: Sequence[Level] = ()) -> Any:
        """The row of `solver.weights(levels)` for this step, by name: computed once for a whole run.

        Args:
            solver: Whose weights.
            before: The levels visited before t, the latest first; in a run they are known.
        """
        schedule, index = self.t.schedule, self.t.index
        if schedule.levels.whole:
            return schedule.weights(solver)[index]
        visited = [level.schedule.levels[level.index :][:1] for level in (*reversed(before), self.t, self.s)]
        return Schedule(Levels.joined(visited), (), (), schedule.like).weights(solver)[-1]

    def reversed(self) -> Interval:
        """From s to t."""
        return self.t.schedule.reversed.intervals[-1 - self.t.index]

    @property
    def resting(self) -> Interval:
        """From s to s, for what improves a state where it is."""
        return Interval.inside(self.s, self.s, 0.0 * self.s.sigma)

    @classmethod
    def inside(cls, t: Level, s: Level, h: Any) -> Interval:
        """Between two levels inside a step, h apart, for the noise that is drawn there."""
        return cls(t, s, h, None, None, to_data=False)


class HasWeights(Protocol):
    """A solver whose steps need weights that are functions of several levels."""

    def weights(self, levels: Levels) -> Weights: ...


@dataclass(eq=False)
class Schedule:
    """The levels of a run, and whatever is a function of them: computed once for all, and read level by level.

    Args:
        levels: n of them.
        times: Their times for the denoiser: n tensors, () or (B,).
        host_times: The same for noise sources.
        like: States that the values are to broadcast against; None for Python numbers.
        unbind: The entries of a column along its first axis, where values are tensors.
    """

    levels: Levels
    times: Sequence[Tensor]
    host_times: Sequence[Tensor]
    like: Tensor | None = None
    unbind: Callable[[Tensor], Sequence[Tensor]] = Tensor.unbind
    kept: dict[tuple[str, int], tuple[object, list[Any]]] = field(default_factory=dict, init=False)

    @cached_property
    def all(self) -> list[Level]:
        """The levels one by one."""
        columns = self.values(self.levels.alpha), self.values(self.levels.sigma), self.times, self.host_times
        return [Level(*row, self, index) for index, row in enumerate(zip(*columns, strict=True))]

    @cached_property
    def intervals(self) -> list[Interval]:
        """The steps between neighbours."""
        expm1: Any = math.expm1 if self.like is None else torch.expm1
        h = [after - before for before, after in pairwise(self.values(self.levels.lam))]
        clean = [not (level.sigma if self.like is None else level.sigma.any()) for level in self.all[1:]]
        shares = [-expm1(-step) for step in h], [-expm1(-2 * step) for step in h]
        return [Interval(*row) for row in zip(self.all, self.all[1:], h, *shares, clean, [*clean[1:], False])]  # noqa: B905

    @cached_property
    def reversed(self) -> Schedule:
        """The same levels the other way round."""
        order = torch.arange(len(self.levels) - 1, -1, -1, device=self.levels.t.device)
        return replace(self, levels=self.levels[order], times=self.times[::-1], host_times=self.host_times[::-1])

    def weights(self, solver: HasWeights) -> list[Any]:
        """The rows of `solver.weights(levels)`, one per interval, with attributes of these names."""
        key = ("weights", id(solver))
        if key not in self.kept:
            named = solver.weights(self.levels)
            rows = zip(*map(self.entries, named.values()), strict=True)
            self.kept[key] = solver, [SimpleNamespace(**dict(zip(named, row, strict=True))) for row in rows]
        return self.kept[key][1]

    def values(self, column: Tensor) -> Sequence[Any]:
        """One value per entry of the first axis: numbers, or tensors that broadcast against the states."""
        return column.tolist() if self.like is None else [expand(row, self.like) for row in self.unbind(column)]

    def entries(self, value: Tensor | Levels | Sequence[Tensor | Levels]) -> Sequence[Any]:
        """One number, tensor or `Level` per entry of the first axis; rows of them for a sequence."""
        if isinstance(value, Tensor):
            return self.values(value)
        if not isinstance(value, Levels):
            return list(zip(*map(self.entries, value), strict=True))
        times = self.unbind(value.t)
        moved = self.unbind(value.t.to(self.times[0].device)) if self.times else times
        return Schedule(value, moved, times, self.like, self.unbind).all


def expm1(value: Any) -> Any:
    """e^value − 1 of a number or a tensor."""
    return math.expm1(value) if isinstance(value, float) else torch.expm1(value)
