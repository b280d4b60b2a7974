"""Brownian paths as functions of (seed, time): no history, the same path for every number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.noise.keyed import FEW, KeyedSums, Words, deliver, mix, sample_keys
from scoresde.noise.sources import PathNoise

Array: TypeAlias = NDArray[np.float64]
Clock: TypeAlias = Callable[[Tensor], Tensor]

OCTAVES = 32  # of time that a path without a grid tells apart near the data
NEAR = 1e-4  # of the finest cell: times closer than this to a split are taken to be the split


@dataclass(frozen=True, eq=False)
class Mesh:
    """The places at which a Brownian path is split, which fix what its random numbers mean.

    Units (b − a = m equal parts of the indices of `ends`) have independent increments √(b−a) ξ. Below a unit, cells
    [a, b] are halved by index down to the cells of `ends`, and those by length, `depth` times:

        W(m) = linear(a, b) + √((m−a)(b−m)/(b−a)) ξ_cell          (Lévy's construction, in the Schauder basis)
        W(u) = linear(a, b) + √((u−a)(b−u)/(b−a)) ξ_cell          in the finest cells

    so that any set of values is exactly Brownian as long as no two of them lie inside one finest cell. A value at a
    split needs nothing below it.

    Args:
        ends: Clock at the ends of the cells, ascending, (n + 1,).
        unit: Cells in a unit, a power of two that divides n.
        depth: Halvings of a cell.
        tag: Names the mesh; meshes with one tag share the random numbers of the cells that they share.

    References:
        Jelinčič, Foster and Kidger, "Single-seed generation of Brownian paths and integrals for adaptive and high
        order SDE solvers", 2024, arXiv:2405.06464.
    """

    ends: Array
    unit: int
    depth: int
    tag: int

    def steps(self, start: Array, end: Array) -> tuple[Words, Array, Array, NDArray[np.bool_]]:
        """W(end) − W(start) = Σ_i w_i ξ_i for q pairs of clock values.

        Returns:
            Ids of the draws ξ_i (q, L), weights w_i (q, L), variances (q,), and whether the pair is told apart (q,).
        """
        q = len(start)
        cell, place, clock = self._locate(np.concatenate([start, end]))
        ids, hats = self._hats(cell, place, clock)
        cell_a, place_a, a, cell_b, place_b, b = cell[:q], place[:q], clock[:q], cell[q:], place[q:], clock[q:]
        ids_a, hats_a, ids_b, hats_b = ids[:q], hats[:q], ids[q:], hats[q:]
        inside = (place_a % 1 > 0) & (place_b % 1 > 0)
        together = (cell_a == cell_b) & (np.floor(place_a) == np.floor(place_b)) & inside
        unit_ids, slopes = self._units(cell_a, a, cell_b, b)
        shared = ids_a == ids_b
        hats_b, hats_a = np.where(shared, hats_b - hats_a, hats_b), np.where(shared, 0.0, hats_a)
        ids, weights = np.hstack([unit_ids, ids_b, ids_a]), np.hstack([slopes, hats_b, -hats_a])
        return ids, weights, np.abs(b - a), ~together & (a != b)

    def _locate(self, clock: Array) -> tuple[NDArray[np.int64], Array, Array]:
        """Cell, place in it in units of the finest cells, and the clock there, with times near a split moved to it."""
        cell = np.clip(np.searchsorted(self.ends, clock, side="right") - 1, 0, len(self.ends) - 2)
        low, high = self.ends[cell], self.ends[cell + 1]
        place = np.clip((clock - low) / (high - low), 0.0, 1.0) * 2.0**self.depth
        split = np.rint(place)
        place = np.where(np.abs(place - split) < NEAR, split, place)
        inside = low + (high - low) * (place * 2.0**-self.depth)
        return cell, place, np.where(place == 2.0**self.depth, high, inside)

    def _units(self, cell_a: NDArray[np.int64], a: Array, cell_b: NDArray[np.int64], b: Array) -> tuple[Words, Array]:
        first, last = np.minimum(cell_a, cell_b) // self.unit, np.maximum(cell_a, cell_b) // self.unit
        columns = first[:, None] + np.arange((last - first).max(initial=0) + 1)
        columns = np.minimum(columns, (len(self.ends) - 1) // self.unit - 1)
        low, high = self.ends[columns * self.unit], self.ends[(columns + 1) * self.unit]
        covered = np.minimum(np.maximum(a, b)[:, None], high) - np.maximum(np.minimum(a, b)[:, None], low)
        covered = np.where(np.arange(columns.shape[1]) <= (last - first)[:, None], np.clip(covered, 0.0, None), 0.0)
        return mix(self._unit_words(columns)), np.sign(b - a)[:, None] * covered / np.sqrt(high - low)

    def _hats(self, cell: NDArray[np.int64], place: Array, clock: Array) -> tuple[Words, Array]:
        """Ids and values at the clock of all functions below the units that do not vanish there, (q, levels)."""
        span = self.unit >> np.arange(self.unit.bit_length() - 1)
        start = cell[:, None] // span * span
        low, middle, high = self.ends[start], self.ends[start + span // 2], self.ends[start + span]
        u = clock[:, None]
        peak = np.sqrt((middle - low) * (high - middle) / (high - low))
        above = peak * np.minimum((u - low) / (middle - low), (high - u) / (high - middle))

        level = np.arange(self.depth + 1)
        x = place[:, None] * 2.0 ** (level - self.depth)
        index = np.floor(x)
        f = x - index
        rise = np.minimum(f, 1 - f)
        rise[:, -1] = np.sqrt(f[:, -1] * (1 - f[:, -1]))
        below = np.sqrt((self.ends[cell + 1] - self.ends[cell])[:, None] * 2.0**-level) * rise

        leaf = (self.unit + cell % self.unit)[:, None]
        heap = np.concatenate([leaf // span, (leaf << level) + index.astype(np.int64)], axis=1)
        ids = mix(self._unit_words(cell[:, None] // self.unit) ^ heap.astype(np.uint64))
        return ids, np.concatenate([above, below], axis=1)

    def _unit_words(self, number: NDArray[np.int64]) -> Words:
        return mix(mix(self.tag) ^ number.astype(np.uint64))


class BrownianPath(PathNoise):
    """One Brownian path per sample and entry; made by `brownian_noise`.

        z(t, s) = (W(u_t) − W(u_s)) / √|u_t − u_s|

    W is a function of (seed of the sample, clock u) alone: nothing depends on earlier questions or on the batch. Times
    are tensors () or, with each sample at its own, (B,); a time on a GPU is waited for. t = s asks for the next of a
    sequence of independent draws, which each sample counts for itself.
    """

    def __init__(self, x: Tensor, keys: Sequence[int], mesh: Mesh, clock: Clock | None) -> None:
        self._sums = KeyedSums(keys, x.shape[1:].numel(), x.dtype)
        self._mesh, self._clock_of = mesh, clock
        self._shape, self._dtype, self._device = x.shape[1:], x.dtype, x.device
        self._planned: dict[tuple[float, float], tuple[list[int], list[float]]] = {}

    def __len__(self) -> int:
        return len(self._sums.keys)

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        """z (B, *) for the step from t to s."""
        if self._planned and t.ndim == 0 and s.ndim == 0:
            plan = self._planned.get((float(t), float(s)))
            if plan is not None:
                return self._deliver(self._sums.shared_sums(*plan)[0])
        high, low = np.broadcast_arrays(self._host(t), self._host(s))
        moving = high != low
        if moving.all():
            return self._deliver(self._difference(self._sums, high, low, standard=True))
        if not moving.any():
            return self._deliver(self._sums.fresh())
        z = torch.empty(len(self), self._sums.entries, dtype=self._sums.dtype)
        go, stay = moving.nonzero()[0], (~moving).nonzero()[0]
        z[go] = self._difference(self._sums.select(go), high[go], low[go], standard=True)
        z[stay] = self._sums.select(stay).fresh()
        return self._deliver(z)

    def increment(self, t: Tensor, s: Tensor, rows: Any = None) -> Tensor:
        """W(u_t) − W(u_s), (B, *); with `rows`, for these samples alone, at times () or one for each of them."""
        if rows is not None:
            return self.select(rows).increment(t, s)
        high, low = np.broadcast_arrays(self._host(t), self._host(s))
        return self._deliver(self._difference(self._sums, high, low, standard=False))

    def value(self, t: Tensor) -> Tensor:
        """W(u_t), (B, *), counted from the lowest clock of the path."""
        clock = self._clock(self._host(t))
        ids, weights, _, _ = self._mesh.steps(np.full_like(clock, self._mesh.ends[0]), clock)
        return self._deliver(self._sums.sums(ids, weights)[0])

    def select(self, index: Any) -> BrownianPath:
        """The paths of some samples, which stay what they are; `index` as for the first axis of a tensor."""
        rows = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        path = copy(self)
        path._sums = self._sums.select(rows.reshape(-1).numpy())
        return path

    def plan(self, times: Array) -> None:
        """Work out the steps between decreasing times beforehand."""
        ids, weights, _, _ = self._mesh.steps(self._clock(times[1:]), self._clock(times[:-1]))
        weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        used = weights.any(0)
        rows = zip(ids[:, used].tolist(), weights[:, used].tolist(), strict=True)
        if self._sums.entries >= FEW:
            for pair, (nodes, row) in zip(pairwise(times.tolist()), rows, strict=True):
                self._planned[pair] = [node for node, w in zip(nodes, row, strict=True) if w], [w for w in row if w]

    def _difference(self, sums: KeyedSums, high: Array, low: Array, *, standard: bool) -> Tensor:
        ids, weights, variance, apart = self._mesh.steps(self._clock(low), self._clock(high))
        if not (apart | (high == low)).all():
            k = int((~apart & (high != low)).argmax())
            raise ValueError(
                f"brownian_noise tells times apart that are in different cells, got a step from {high[k]:.9g} to "
                f"{low[k]:.9g} inside one cell at depth={self._mesh.depth}: pass a larger depth."
            )
        if standard:
            weights = weights / np.sqrt(variance)[:, None]
        return sums.sums(ids, weights)[0]

    def _host(self, t: Tensor) -> Array:
        if t.ndim and t.shape != (len(self),):
            raise ValueError(
                f"brownian_noise needs times () or one per sample: expected ({len(self)},), got {tuple(t.shape)}."
            )
        return t.detach().to("cpu", torch.float64).reshape(-1).numpy()

    def _clock(self, times: Array) -> Array:
        clock = times
        if self._clock_of is not None:
            clock = self._clock_of(torch.from_numpy(times.copy())).detach().to("cpu", torch.float64).numpy()
        low, high = self._mesh.ends[0], self._mesh.ends[-1]
        outside = ~((clock >= low - NEAR * (high - low)) & (clock <= high + NEAR * (high - low)))
        if outside.any():
            k = int(outside.argmax())
            raise ValueError(
                f"This Brownian path runs over clock values from {low:g} to {high:g}, got {clock[k]:g} at "
                f"t = {times[k]:g}: stay inside, or start `times` and the clock further out."
            )
        return clock

    def _deliver(self, rows: Tensor) -> Tensor:
        return deliver(rows, (len(rows), *self._shape), self._dtype, self._device)


def brownian_noise(
    x: Tensor, seeds: int | Sequence[int] | Tensor, *, times: Tensor | None = None, clock: Clock | None = None,
    depth: int = 14,
) -> BrownianPath:  # fmt: skip
    """Increments of Brownian paths, one for each sample and entry of x, that are functions of (seed, time).

        z(t, s) = (W(u_t) − W(u_s)) / √|u_t − u_s|

    Runs of any solver with any number of steps, adaptive ones too, follow the same path of a sample, in any batch,
    float32 or float64, on any device. Without `times` a step of an N-step run draws about depth + 1 − log₂ N normals
    per entry, as its end must agree with whatever other times somebody may ask for.

    With the `times` of a solver's grid, a step on the grid draws one normal per entry on average. The path is split at
    the times first, so runs whose grids are refinements of each other by powers of two (20, 40 and 80 steps of a
    `Grid`; not 20 and 30) share one path, which is another one than without `times`. Other times may still be asked
    for.

    Args:
        x: Gives shape (B, *), dtype and device. Draws are made on the CPU in float32, and moved.
        seeds: One whole number per sample, or one for all, from which `sample_seeds` derives theirs.
        times: Grid of the solver, decreasing, (N + 1,); questions must lie within.
        clock: u(t), monotone, maps times (n,) in float64 to clock values (n,); None is t itself. A solver whose noise
            is ∫ h dw is refined consistently along the clock ∫ h².
        depth: How fine the path is: steps longer than 2^−depth t are always told apart (with `times`: 2^−depth of the
            grid step they lie in), and shorter ones are refused.
    Raises:
        ValueError: For seeds, times or a clock that do not fit; when called, for a step that is too short.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 40:
        raise ValueError(f"brownian_noise needs depth to be a whole number from 1 to 40, got {depth!r}.")
    keys = sample_keys(seeds, x.shape[0], "brownian_noise")
    if times is None:
        low, high = np.sort(clock_values(clock, np.array([0.0, 1.0])))
        octaves = np.append(0.0, np.ldexp(1.0, np.arange(-OCTAVES, 1)))
        return BrownianPath(x, keys, Mesh(low + (high - low) * octaves, 1, depth, 0), clock)

    grid = torch.as_tensor(times).detach().to("cpu", torch.float64).numpy()
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) < 0).all():
        raise ValueError(
            f"brownian_noise needs times to be a decreasing grid (N + 1,), got shape {grid.shape}: "
            f"pass what the solver's `grid` returns."
        )
    steps = len(grid) - 1
    unit = steps & -steps  # the largest power of two in it
    path = BrownianPath(x, keys, Mesh(np.sort(clock_values(clock, grid)), unit, depth, steps // unit), clock)
    path.plan(grid)
    return path


def clock_values(clock: Clock | None, times: Array) -> Array:
    """The clock at monotone times, if it is finite and strictly monotone there."""
    values = times if clock is None else clock(torch.from_numpy(times)).detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all() or abs(np.sign(np.diff(values)).sum()) != len(values) - 1:
        raise ValueError(
            f"brownian_noise needs a clock that is finite and strictly monotone, got {values[:6]} at times "
            f"{times[:6]}: without `times` it must be so on all of [0, 1]."
        )
    return values
