"""Noisy examples sorted by log-SNR, and averages over them with error bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.covariance.moments import Examples
from scoresde.sde import SDE

Progress = Callable[[int], object]  # told how many noisy examples are done


class Noisy(NamedTuple):
    """Examples of one bin of log-SNR: x_t = α x0 + σ ε; x0, x and noise (B, *), t (B,) in float64."""

    bin: int
    x0: Tensor
    x: Tensor
    t: Tensor
    noise: Tensor
    cond: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number per bin of log-SNR.

    Args:
        edges: Of the bins in log-SNR, (bins + 1,), increasing.
        value: (bins,).
        std_error: Monte-Carlo standard errors of `value`, (bins,).
    """

    edges: Tensor
    value: Tensor
    std_error: Tensor


def logsnr_edges(sde: SDE, bins: int | Tensor) -> Tensor:
    """Edges of equal bins of log-SNR from t = 1 to t_min, float64, (bins + 1,), increasing; or those that are given."""
    if isinstance(bins, Tensor):
        return bins.double().cpu()
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins of log-SNR need to be a whole number of at least 1, got {bins!r}.")
    return torch.linspace(*logsnr_ends(sde), bins + 1, dtype=torch.float64)


def logsnr_ends(sde: SDE) -> tuple[float, float]:
    """log-SNR at t = 1 and at t_min."""
    with torch.no_grad():
        noise_end, data_end = sde.logsnr(torch.tensor([1.0, sde.t_min], dtype=torch.float64)).tolist()
    if not -float("inf") < noise_end < data_end < float("inf"):
        raise ValueError(
            f"bins of log-SNR need noise and data at both ends, got logsnr={noise_end:g} at t = 1 and {data_end:g} at "
            f"t_min={sde.t_min:g} of {type(sde).__name__}. Use a larger t_min."
        )
    return noise_end, data_end


def noisy_examples(
    sde: SDE,
    examples: Examples,
    edges: Tensor,
    *,
    margin: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Iterator[Noisy]:
    """Every batch at noise levels of every bin, one level per example, stratified inside the bin.

    Args:
        sde: The forward process.
        examples: Batches of x0 (B, *), or of pairs (x0, conditions).
        edges: Of the bins in log-SNR, (bins + 1,).
        margin: Least distance in log-SNR from the ends of the process.
        generator: For levels and noise, on the device of the examples.
        progress: Called with the number of examples after each bin has been used.
    """
    noise_end, data_end = logsnr_ends(sde)
    for batch in examples:
        x0, cond = batch if isinstance(batch, tuple) else (batch, {})
        count = len(x0)
        for index, (first, last) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            cells = torch.randperm(count, generator=generator, device=x0.device)
            u = torch.rand(count, generator=generator, device=x0.device, dtype=torch.float64)
            with torch.no_grad():
                logsnr = (first + (last - first) * (cells + u) / count).clamp(noise_end + margin, data_end - margin)
                t = sde.time(logsnr).clamp(sde.t_min, 1)
                noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
                x = sde.perturb(x0, t, noise)
            yield Noisy(index, x0, x, t, noise, cond)
            if progress is not None:
                progress(count)


def mean_and_error(values: list[list[Tensor]], owner: str) -> tuple[Tensor, Tensor]:
    """Mean and its standard error of each bin's values, given in parts (B,); float64 on the CPU, both (bins,).

    The standard error is that of independent levels: stratified ones have no more.
    """
    rows = [
        torch.cat([part.detach().double().cpu() for part in parts]) if parts else torch.empty(0) for parts in values
    ]
    if min(map(len, rows)) < 2:
        raise ValueError(f"{owner} needs at least two examples, whose scatter is the error bar, got {len(rows[0])}.")
    table = torch.stack(rows)
    return table.mean(1), table.std(1) / table.shape[1] ** 0.5


def root_curve(edges: Tensor, squares: list[list[Tensor]], scales: list[list[Tensor]] | None, owner: str) -> Curve:
    """√(E square / E scale) of each bin, with the error of the root from that of the ratio.

    std_error = √(R + δ) − √R for a ratio R ± δ: δ / (2 √R) where δ is small, and finite at R = 0. An unbiased estimate
    of a square may be negative; its root is 0.

    Args:
        edges: Of the bins.
        squares, scales: Parts (B,) per bin; no scales are ones.
        owner: Named in the error message.
    """
    if scales is None:
        ratio, error = mean_and_error(squares, owner)
    else:
        scale = mean_and_error(scales, owner)[0].clamp_min(torch.finfo(torch.float64).tiny)
        ratio = mean_and_error(squares, owner)[0] / scale
        offsets = [
            [a.double().cpu() - ratio[k] * b.double().cpu() for a, b in zip(square, part, strict=True)]
            for k, (square, part) in enumerate(zip(squares, scales, strict=True))
        ]
        error = mean_and_error(offsets, owner)[1] / scale
    ratio = ratio.clamp_min(0)
    return Curve(edges=edges, value=ratio.sqrt(), std_error=(ratio + error).sqrt() - ratio.sqrt())


def directions(x: Tensor, probes: int | None, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Vectors (B, *) for estimates over directions: `probes` of random signs, or the whole basis for None."""
    if probes is not None:
        for _ in range(probes):
            yield torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1
        return
    for index in range(x[0].numel()):
        v = torch.zeros_like(x)
        v.flatten(1)[:, index] = 1
        yield v
