"""Traces of a network's Jacobian: exact, or estimated from probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_whole
from scoresde.denoiser import KnowsDirections
from scoresde.noise.keyed import deliver, keyed_normals
from scoresde.noise.streams import stream_seed

DIVERGENCES = ("hutchinson", "exact", "hutch++")
PROBES = ("rademacher", "gaussian", "orthogonal")
TRACE_CHUNK_ENTRIES = 2**22  # entries of the stacked vectors that are multiplied with a Jacobian at once


@dataclass(frozen=True)
class Trace:
    """tr A of A = ∂output/∂x per sample, from products vᵀA of one forward pass.

        exact        Σ_i e_iᵀ A e_i
        hutchinson   v_kᵀ A v_k                                      one value per probe, E v vᵀ = I
        hutch++      tr(Qᵀ A Q) + (P v_k)ᵀ A (P v_k)                 Q = orth(Aᵀ S),  P = I − Q Qᵀ

    A network's Jacobian is not symmetric; all of these are traces of A all the same, as tr A = tr Aᵀ. Hutch++ is exact
    if the rank of A is at most that of the sketch S: then Aᵀ P = 0.

    Args:
        probes: v, (B, K, *), or None for the exact trace.
        sketch: S, (B, m, *), for Hutch++.
        orthogonal: Whether a sample's probes are orthogonal to each other.
    """

    probes: Tensor | None = None
    sketch: Tensor | None = None
    orthogonal: bool = False

    @property
    def values(self) -> int:
        """Number of values per sample, K."""
        return 1 if self.probes is None else self.probes.shape[1]

    def __call__(self, output: Tensor, x: Tensor, *, create_graph: bool = False) -> Tensor:
        """Values (B, K) of one estimate each; output (B, *) is a function of x (B, *) that treats samples apart.

        Without create_graph, the graph of output is freed.
        """
        if self.probes is None:
            return _exact(output, x, create_graph)
        if self.sketch is None:
            return _quadratic(output, x, self.probes.to(x.dtype), create_graph)
        return _hutch_plus_plus(output, x, self.probes.to(x.dtype), self.sketch.to(x.dtype), create_graph)

    def select(self, index: Tensor) -> Trace:
        """The same for some rows of the batch."""
        probes, sketch = (None if part is None else part[index] for part in (self.probes, self.sketch))
        return replace(self, probes=probes, sketch=sketch)


def trace_of(divergence: str, x: Tensor, probes: int, probe: str, seeds: Sequence[int]) -> Trace:
    """The trace of a divergence, with probes for x (B, *) that depend on each sample's own seed alone.

    Of the `probes` of Hutch++, a third makes the sketch, another is spent on Q, and the rest probe the complement.
    """
    if divergence == "exact":
        return Trace()
    orthogonal = probe == "orthogonal"
    if divergence == "hutchinson":
        return Trace(draw_probes(probe, x, probes, seeds), orthogonal=orthogonal)
    sketch = min(probes // 3, x.shape[1:].numel())
    directions = draw_probes("gaussian", x, sketch, seeds, "sketch")
    return Trace(draw_probes(probe, x, probes - 2 * sketch, seeds), directions, orthogonal)


def along_directions(trace: Trace, probe: str, denoiser: nn.Module) -> Trace:
    """Rademacher probes as signs along the directions that a part of the denoiser knows, see `KnowsDirections`.

    v = Σ_k v_k r_k,  r_k = ±1:       E v vᵀ = I,   and vᵀA v = tr A without error if A is diagonal there
    """
    known = next((part for part in denoiser.modules() if isinstance(part, KnowsDirections)), None)
    if known is None or trace.probes is None or probe != "rademacher":
        return trace
    turned = [known.in_directions(probes) for probes in trace.probes.unbind(1)]
    return replace(trace, probes=torch.stack(turned, 1))


def check_trace(owner: str, divergence: str, probes: int, probe: str) -> None:
    """Raise one sentence if the arguments of a trace do not fit together."""
    check_choice(owner, "divergence", divergence, DIVERGENCES)
    check_choice(owner, "probe", probe, PROBES)
    least = 3 if divergence == "hutch++" else 1
    check_whole(f"{owner} with divergence {divergence}", f"probes >= {least}", probes=probes)


def draw_probes(probe: str, x: Tensor, count: int, seeds: Sequence[int], purpose: str = "probe") -> Tensor:
    """Vectors with E v vᵀ = I, (B, count, *), in x's dtype and on its device; those of a sample follow from its seed.

    Orthogonal ones are the first columns of a random rotation times √d; there are at most d of them.
    """
    entries = x.shape[1:].numel()
    keys = [stream_seed(seed, purpose, k) for seed in seeds for k in range(count)]
    normals = keyed_normals(keys, entries, torch.Generator()).reshape(len(seeds), count, entries)
    if probe == "rademacher":
        normals = 1 - 2 * torch.signbit(normals).float()
    if probe == "orthogonal":
        frame = torch.linalg.qr(normals[:, :entries].double().mT).Q  # columns are uniform up to signs, which cancel
        normals = math.sqrt(entries) * frame.mT.contiguous()
    return deliver(normals, (len(seeds), normals.shape[1], *x.shape[1:]), x.dtype, x.device)


def mean_and_error(values: Tensor, trace: Trace, entries: int) -> tuple[Tensor, Tensor]:
    """Mean of values (B, K) from K probes, and its standard error (B,): 0 if exact, NaN for one probe.

        error = s / √K                          s² the sample variance, so that error² is unbiased
        error = s / √K √(1 − K/d)               orthogonal probes, drawn without replacement

    Frames of orthogonal probes have Σ v_kᵀ A v_k = d tr A if K = d.
    """
    count, mean = values.shape[1], values.mean(1)
    if trace.probes is None or (trace.orthogonal and count == entries):
        return mean, torch.zeros_like(mean)
    if count == 1:
        return mean, torch.full_like(mean, math.nan)
    missing = 1 - count / entries if trace.orthogonal else 1.0
    return mean, math.sqrt(missing / count) * values.std(1)


def _exact(output: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    entries, total = x.shape[1:].numel(), x.new_zeros(len(x))

    def basis(start: int, stop: int) -> Tensor:
        hot = torch.nn.functional.one_hot(torch.arange(start, stop, device=x.device), entries).to(x.dtype)
        return hot.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)

    for vectors, products in _products(output, x, entries, basis, create_graph):
        total = total + (products * vectors).flatten(2).sum((0, 2))
    return total[:, None]


def _quadratic(output: Tensor, x: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
    """v_kᵀ A v_k, (B, K)."""
    stacked = vectors.transpose(0, 1)
    parts = _products(output, x, len(stacked), lambda start, stop: stacked[start:stop], create_graph)
    return torch.cat([(products * chosen).flatten(2).sum(2) for chosen, products in parts]).T


def _hutch_plus_plus(output: Tensor, x: Tensor, probes: Tensor, sketch: Tensor, create_graph: bool) -> Tensor:
    stacked = sketch.transpose(0, 1)
    parts = _products(output, x, len(stacked), lambda start, stop: stacked[start:stop], False, keep=True)
    image = torch.cat([products for _, products in parts]).flatten(2)
    # any fixed Q gives an unbiased trace, so gradients may hold it fixed: those of a decomposition can be infinite
    basis = torch.linalg.qr(image.permute(1, 2, 0)).Q  # (B, d, m)
    flat = probes.flatten(2)
    outside = flat - (flat @ basis) @ basis.mT
    vectors = torch.cat([basis.mT, outside], 1).reshape(len(x), -1, *x.shape[1:])
    values, captured = _quadratic(output, x, vectors, create_graph), basis.shape[2]
    return values[:, :captured].sum(1, keepdim=True) + values[:, captured:]


def _products(
    output: Tensor,
    x: Tensor,
    count: int,
    vectors: Callable[[int, int], Tensor],
    create_graph: bool,
    *,
    keep: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors start to stop, (k, B, *), and their products vᵀA, in chunks that bound memory."""
    chunk = max(1, TRACE_CHUNK_ENTRIES // max(1, x.numel()))
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        chosen = vectors(start, stop)
        single = len(chosen) == 1
        (products,) = torch.autograd.grad(
            (output * chosen[0]).sum() if single else output,
            x,
            None if single else chosen,
            retain_graph=create_graph or keep or stop < count,
            create_graph=create_graph,
            is_grads_batched=not single,
        )
        yield chosen, products[None] if single else products
