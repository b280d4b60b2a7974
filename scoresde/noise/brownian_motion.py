"""A Brownian motion with its space-time Lévy area, for torchsde."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.noise.brownian_path import NEAR, Array
from scoresde.noise.keyed import KeyedSums, Words, deliver, mix, sample_keys

ROOT_3 = 3**0.5
_TAG = 0x6D6F74696F6E


class BrownianMotion:
    """What torchsde asks of a `bm`, as a function of (seed, time); made by `brownian_motion`.

        W(b) − W(a),    U(a, b) = ∫_a^b (W − W(a)) = h (½ (W(b) − W(a)) + H),    h = b − a

    White noise is expanded in Alpert's piecewise linear wavelets: every cell of a binary tree has two normals, which
    set W and ∫W inside it and nothing outside. Values and areas at any times are exactly those of a Brownian motion
    as long as no two times lie inside one finest cell, and agree with each other however an interval is divided.

        cell of length h, x = (t − a)/h, on its left half (the right one by symmetry):
        W    √h (√3 (2x² − x) ξ_1 + (3x² − x) ξ_2)
        ∫W   h√h (√3 (⅔x³ − ½x²) ξ_1 + (x³ − ½x²) ξ_2)
        finest cell, q = x(1 − x):  Var W = h q(1 − 3q),   Cov = ½ h² q²(1 − 2x),   Var ∫W = ⅓ h³ q³

    Attributes:
        shape, dtype, device: Of the increments, (B, D).
    References:
        Alpert, "A class of bases in L² for the sparse representation of integral operators", SIAM J. Math. Anal. 1993.
        Foster, Lyons and Oberhauser, "An optimal polynomial approximation of Brownian motion", 2020, arXiv:1904.06998.
    """

    levy_area_approximation = "space-time"

    def __init__(self, x: Tensor, keys: Sequence[int], start: float, end: float, depth: int) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.start, self.end, self.depth = start, end, depth
        self._sums = KeyedSums(keys, x.shape[1:].numel(), x.dtype)

    def __repr__(self) -> str:
        return f"BrownianMotion({self.start:g}, {self.end:g}, shape={tuple(self.shape)}, depth={self.depth})"

    def size(self) -> torch.Size:
        return self.shape

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        """W(tb) − W(ta), or the pair with U; one argument is W from the start."""
        if return_A:
            raise ValueError("BrownianMotion has the space-time area U and no Lévy area: use euler, milstein or srk.")
        a, b = (self.start, float(ta)) if tb is None else (float(ta), float(tb))
        x, y = self._place(a), self._place(b)
        if x % 1 and y % 1 and int(x) == int(y) and x != y:
            raise ValueError(
                f"BrownianMotion tells times apart that are in different cells, got {a:.9g} and {b:.9g} inside one of "
                f"{(self.end - self.start) * 2.0**-self.depth:.3g}: pass a larger depth or larger smallest steps."
            )
        (ids_x, w_x, i_x), (ids_y, w_y, i_y) = self._terms(x), self._terms(y)
        shared = ids_x == ids_y
        step = (y - x) * (self.end - self.start) * 2.0**-self.depth
        left = np.concatenate([np.where(shared, w_y - w_x, w_y), np.where(shared, 0.0, -w_x)])
        area = np.concatenate([np.where(shared, i_y - i_x - step * w_x, i_y), np.where(shared, 0.0, -i_x - step * w_x)])
        sums = self._sums.sums(np.concatenate([ids_y, ids_x])[None], *(left[None], area[None])[: 1 + return_U])
        results = tuple(deliver(total, self.shape, self.dtype, self.device) for total in sums)
        return results if return_U else results[0]

    def _place(self, time: float) -> float:
        """Time in finest cells since the start, moved to a boundary that is near."""
        span = self.end - self.start
        if not self.start - NEAR * span <= time <= self.end + NEAR * span:
            raise ValueError(
                f"BrownianMotion runs from {self.start:g} to {self.end:g}, got {time:g}: make it with the solver's "
                f"first and last time."
            )
        place = min(max((time - self.start) / span, 0.0), 1.0) * 2.0**self.depth
        return float(round(place)) if abs(place - round(place)) < NEAR else place

    def _terms(self, place: float) -> tuple[Words, Array, Array]:
        """Ids, and weights in W and in ∫W from the start, of the two draws of each cell on the way to a time."""
        level = np.arange(self.depth + 1)
        position = place * 2.0 ** (level - self.depth)
        index = np.floor(position)
        x, h = position - index, (self.end - self.start) * 2.0**-level
        even, odd, even_area, odd_area = wavelets(x)
        q = x[-1] * (1 - x[-1])
        scale = np.sqrt(q / (1 - 3 * q))
        even[-1], odd[-1] = np.sqrt(q * (1 - 3 * q)), 0.0
        even_area[-1], odd_area[-1] = scale * q * (0.5 - x[-1]), scale * q / np.sqrt(12)

        cells = (np.int64(1) << level) + index.astype(np.int64)
        words = mix(mix(np.concatenate([[0], cells]).astype(np.uint64)) ^ _TAG)
        ids = np.concatenate([mix(words ^ np.uint64(1)), mix(words ^ np.uint64(2))])
        z, span = place * 2.0**-self.depth, self.end - self.start
        value: list[Any] = [[span**0.5 * z], np.sqrt(h) * even, [span**0.5 * ROOT_3 * (z * z - z)], np.sqrt(h) * odd]
        even_whole, odd_whole = [span**1.5 * z * z / 2], [span**1.5 * ROOT_3 * z * z * (z / 3 - 0.5)]
        area: list[Any] = [even_whole, h**1.5 * even_area, odd_whole, h**1.5 * odd_area]
        return ids, np.concatenate(value), np.concatenate(area)


def wavelets(x: Array) -> tuple[Array, Array, Array, Array]:
    """∫_0^x of Alpert's even and odd wavelet on [0, 1], and the integrals of these."""
    left = x <= 0.5
    y, sign = np.where(left, x, 1 - x), np.where(left, 1.0, -1.0)
    return (
        sign * ROOT_3 * y * (2 * y - 1),
        y * (3 * y - 1),
        ROOT_3 * y * y * (2 * y / 3 - 0.5),
        sign * y * y * (y - 0.5),
    )


def brownian_motion(
    x: Tensor, seeds: int | Sequence[int] | Tensor, start: float, end: float, *, depth: int = 20
) -> BrownianMotion:
    """A `bm` for torchsde.sdeint, with the same path for every method, step size and batch.

        torchsde.sdeint(sde, y, ts, bm=brownian_motion(y, seeds, ts[0], ts[-1]), method="srk", adaptive=True)

    Args:
        x: Gives shape (B, D), dtype and device. Draws are made on the CPU in float32, and moved.
        seeds: One whole number per sample, or one for all, from which `sample_seeds` derives theirs.
        start, end: First and last time, start < end.
        depth: Times that are (end − start) 2^−depth apart are always told apart; the default is below torchsde's
            smallest step of an adaptive solve.
    """
    start, end = float(start), float(end)
    if not start < end:
        raise ValueError(f"brownian_motion needs start < end, got start={start:g} and end={end:g}.")
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 40:
        raise ValueError(f"brownian_motion needs depth to be a whole number from 1 to 40, got {depth!r}.")
    return BrownianMotion(x, sample_keys(seeds, x.shape[0], "brownian_motion"), start, end, depth)
