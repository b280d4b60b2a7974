"""Log-likelihoods by the probability-flow ODE."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.flow import FlowCoordinates, check_ode_arguments, odeint_options

TRACE_CHUNK_ENTRIES = 2**22  # entries of the stacked one-hot vectors that an exact trace differentiates at once


class LogProb(NamedTuple):
    """Result of `log_prob`.

    Attributes:
        log_prob: log p(x) in nats, (B,).
        std_error: Standard error of log_prob from the random probes, (B,): 0 for an exact trace, NaN for one probe,
            whose error cannot be estimated.
        latent: x at t = 1, (B, *).
        nfe: Network evaluations per sample.
    """

    log_prob: Tensor
    std_error: Tensor
    latent: Tensor
    nfe: int


def log_prob(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe: str = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    t_start: float | None = None,
    generator: torch.Generator | None = None,
) -> LogProb:
    """Log density of data under the probability-flow ODE.

        log p(x) = log π(x_1) + ∫ div(dx/dt) dt from t_start to 1               (Song et al. 2021, eq. 39)
        div ≈ vᵀ (∂(dx/dt)/∂x) v, with one v per probe held fixed along the path  (Hutchinson's estimator)

    Integrated in the coordinates of `scoresde.flow` with tolerances for every sample by itself; drift and divergence
    share one network call. p is the density of data at t_start, i.e. of x0 blurred by σ(t_start).

    Args:
        denoiser: The model.
        x: Data in the model's own scaling, (B, *), float32 or float64.
        divergence: "hutchinson", or "exact": the full trace, one backward pass per entry of an event.
        probes: Number of probe vectors; two or more give a standard error.
        probe: "rademacher" or "gaussian" entries.
        method, rtol, atol, steps: As for `ProbabilityFlowODE`.
        t_start: Data side of the integral; None is the SDE's t_min.
        generator: For the probes, on x's device.
    Returns:
        A `LogProb`.
    Raises:
        ValueError: For NaN in x, or arguments that do not fit together.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Grathwohl et al., "FFJORD", 2019, arXiv:1810.01367.
    """
    from torchdiffeq import odeint

    _check_arguments(x, divergence, probes, probe)
    check_ode_arguments("log_prob", method, rtol, atol, steps)
    flow = FlowCoordinates(denoiser.sde, denoiser.sde.t_min if t_start is None else t_start, "log_prob")
    vectors = None if divergence == "exact" else _probes(x, probes, probe, generator)
    nfe = 0

    def rate(z: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal nfe
        nfe += 1
        t = flow.time(z)
        with torch.enable_grad():
            x = (flow.scale(t) * state[0]).detach().requires_grad_()
            eps = denoiser.eps(x, t)
            traces = _traces(eps, x, vectors)
        return flow.rate(x.detach(), z, t, eps.detach()), flow.divergence(z, t, traces, x[0].numel())

    delta = x.new_zeros(x.shape[0], 1 if vectors is None else probes)
    times = torch.tensor([flow.data_end, flow.noise_end], dtype=torch.float64, device=x.device)
    options = odeint_options(method, flow.data_end, flow.noise_end, steps, device=x.device)
    try:
        with torch.no_grad():
            path = odeint(
                rate, (x / flow.scale(flow.t_end), delta), times, rtol=rtol, atol=atol, method=method, options=options
            )
    except AssertionError as error:
        raise FloatingPointError(
            f"log_prob stopped ({error}): the denoiser returned NaN or infinity, or rtol={rtol:g} is below what "
            f"{x.dtype} can resolve. Check the model, loosen rtol and atol, or use float64."
        ) from None
    latent, delta = flow.scale(1.0) * path[0][-1], path[1][-1]
    stretch = x[0].numel() * (flow.scale(1.0) / flow.scale(flow.t_end)).log().to(
        x.dtype
    )  # log |d(x_1, x_t)/d(y_1, y_t)|
    values = denoiser.sde.prior_log_prob(latent)[:, None] + stretch + delta
    return LogProb(values.mean(1), _standard_error(values, exact=vectors is None), latent, nfe)


def _traces(eps: Tensor, x: Tensor, vectors: Tensor | None) -> Tensor:
    """vᵀ (∂ε̂/∂x) v per probe (B, K), or the exact trace (B, 1)."""
    if vectors is not None:
        last = len(vectors) - 1
        columns = [
            (torch.autograd.grad(eps, x, v, retain_graph=k < last)[0] * v).flatten(1).sum(1)
            for k, v in enumerate(vectors)
        ]
        return torch.stack(columns, 1)
    entries, trace = x[0].numel(), x.new_zeros(x.shape[0])
    chunk = max(1, TRACE_CHUNK_ENTRIES // x.numel())
    for start in range(0, entries, chunk):
        rows = torch.arange(start, min(start + chunk, entries), device=x.device)
        hot = torch.nn.functional.one_hot(rows, entries).to(x.dtype)
        hot = hot.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        more = start + chunk < entries
        rows_of_jacobian = torch.autograd.grad(eps, x, hot, retain_graph=more, is_grads_batched=True)[0]
        trace = trace + (rows_of_jacobian * hot).flatten(2).sum((0, 2))
    return trace[:, None]


def _standard_error(values: Tensor, *, exact: bool) -> Tensor:
    if exact:
        return torch.zeros_like(values[:, 0])
    probes = values.shape[1]
    return values.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(values[:, 0], math.nan)


def _probes(x: Tensor, probes: int, probe: str, generator: torch.Generator | None) -> Tensor:
    shape = (probes, *x.shape)
    if probe == "gaussian":
        return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
    return torch.randint(0, 2, shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1


def _check_arguments(x: Tensor, divergence: str, probes: int, probe: str) -> None:
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f"log_prob needs divergence 'hutchinson' or 'exact', got {divergence!r}.")
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f"log_prob needs probe 'rademacher' or 'gaussian', got {probe!r}.")
    if probes < 1:
        raise ValueError(f"log_prob needs probes >= 1, got {probes}.")
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"log_prob needs data of shape (B, *) in float32 or float64, got shape {tuple(x.shape)} in {x.dtype}."
        )
    bad = (~torch.isfinite(x)).flatten(1).any(1)
    if bool(bad.any()):
        raise ValueError(f"log_prob needs finite data, got NaN or infinity in row {int(bad.nonzero()[0])}.")
