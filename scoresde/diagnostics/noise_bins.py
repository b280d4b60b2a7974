"""Noisy examples sorted by log-SNR, and averages over them with error bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.covariance.moments import Examples
from scoresde.sde import SDE
from scoresde.sde.clock import last_signal

Progress = Callable[[int], object]  # told how many noisy examples are done


class Noisy(NamedTuple):
    """Examples of one bin of log-SNR: x_t = α x0 + σ ε; x0, x and noise (B, *), t (B,) in float64."""

    bin: int
    x0: Tensor
    x: Tensor
    t: Tensor
    noise: Tensor
    cond: dict[str, Any]


Measure = Callable[[Noisy], Sequence[Tensor]]  # to columns (B,)


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
    """Edges of equal bins of log-SNR from t = 1 to t_min, float64, (bins + 1,), increasing; or those that are given.

    They begin at α/σ = 10⁻³ where a process ends without signal: what lies beyond is ½ 10⁻⁶ E‖x0 − x̂0‖² of a bound.
    """
    if isinstance(bins, Tensor):
        return bins.double().cpu()
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins of log-SNR need to be a whole number of at least 1, got {bins!r}.")
    return torch.linspace(*logsnr_ends(sde), bins + 1, dtype=torch.float64)


def logsnr_ends(sde: SDE) -> tuple[float, float]:
    """log-SNR at t = 1, or at α/σ = 10⁻³ where a process ends without signal, and at t_min."""
    with torch.no_grad():
        noise_end, data_end = sde.logsnr(torch.tensor([last_signal(sde), sde.t_min], dtype=torch.float64)).tolist()
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


def measured(sde: SDE, examples: Examples, edges: Tensor, measure: Measure, owner: str, **options: Any) -> Tensor:
    """Numbers of noisy examples, float64 on the CPU, (columns, bins, n).

    Args:
        sde, examples, edges, options: As for `noisy_examples`.
        measure: What to find for the examples of one part.
        owner: Named in the error message.
    Raises:
        ValueError: If there are fewer than two examples.
    """
    rows: list[list[Tensor]] = [[] for _ in edges[1:]]
    for at in noisy_examples(sde, examples, edges, **options):
        rows[at.bin].append(torch.stack([column.detach().double().cpu() for column in measure(at)]))
    count = sum(part.shape[1] for part in rows[0])
    if count < 2:
        raise ValueError(f"{owner} needs at least two examples, whose scatter is the error bar, got {count}.")
    return torch.stack([torch.cat(parts, 1) for parts in rows], 1)


def mean_curve(edges: Tensor, table: Tensor) -> Curve:
    """Mean of each bin's values (bins, n), with its error for independent levels: stratified ones have no more."""
    return Curve(edges=edges, value=table.mean(1), std_error=table.std(1) / table.shape[1] ** 0.5)


def root_curve(edges: Tensor, squares: Tensor, scales: Tensor | None = None) -> Curve:
    """√(E square / E scale) of each bin, with the error of the root from that of the ratio.

    std_error = √(R + δ) − √R for a ratio R ± δ: δ / (2 √R) where δ is small, and finite at R = 0. An unbiased estimate
    of a square may be negative; its root is 0.

    Args:
        edges: Of the bins.
        squares, scales: Values (bins, n); no scales are ones.
    """
    ratio, scale = squares.mean(1), torch.ones(())
    if scales is not None:
        scale = scales.mean(1).clamp_min(torch.finfo(torch.float64).tiny)
        ratio = ratio / scale
        squares = squares - ratio[:, None] * scales
    error, ratio = mean_curve(edges, squares).std_error / scale, ratio.clamp_min(0)
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
