"""Log-likelihoods by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser, check_signal, devices_named
from scoresde.denoiser.inference_mode import differentiates
from scoresde.integrate.adaptive import QuantityOfInterest, integrate
from scoresde.integrate.coordinates import FlowCoordinates
from scoresde.integrate.methods import Attempt, Field, State
from scoresde.integrate.torchdiffeq_backend import adaptive_method, check_ode_arguments, integrate_together
from scoresde.likelihood.chain import checked_start
from scoresde.likelihood.decoder import Decoder, gaussian_decoder
from scoresde.likelihood.intervals import interval
from scoresde.likelihood.trace import Trace, along_directions, check_trace, mean_and_error, trace_of
from scoresde.noise.keyed import deliver, keyed_normals
from scoresde.noise.streams import sample_seeds, stream_seed
from scoresde.sde import expand

STEP_SHARE = 0.3  # of atol √d nats, for one step: a path has tens of them
RUNGE_KUTTA, ADAMS = (200.0, 2.0), (2.0, 1.0)  # c and q of the solver error; fitted to Gaussians, mixtures and digits
ROUNDING = 4.0  # of a step's change of log p, in units of the dtype's resolution
NOISE_RESOLUTION = 0.5  # least σ_t_start / α_t_start that changes x, in units of its rounding


class LogProb(NamedTuple):
    """Result of `log_prob`.

    Attributes:
        log_prob: log p(x) in nats, (B,), the term `below` included.
        std_error: Standard error of log_prob from all random numbers, (B,); its square is unbiased. 0 for an exact
            trace. NaN where one draw cannot tell: for one probe, and for below="decoder", which draws x_ε once.
        latent: x at t = 1, (B, *).
        nfe: Network evaluations of each sample, (B,); the products with the Jacobian share them.
        solver_error: Estimate of the error of log_prob from finite steps in nats, (B,), rather too large than too
            small; NaN for fixed steps, which estimate none.
        below: The part of log_prob from between 0 and t_start, (B,): zeros for below="density".
        failures: For on_error="nan", one sentence for each row that could not be done; its values are NaN.
        freedom: Degrees of freedom of std_error: one less than the number of values from probes.
    """

    log_prob: Tensor
    std_error: Tensor
    latent: Tensor
    nfe: Tensor
    solver_error: Tensor
    below: Tensor
    failures: dict[int, str]
    freedom: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (B,) of the interval that holds the exact trace's value in a share `level` of cases, few probes or many.

        log_prob ± c std_error with c = `coverage_factor(freedom, level)`. Solver error and model error come on top.
        """
        return interval(self.log_prob, self.std_error, self.freedom, level)


@differentiates
def log_prob(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe: str = "rademacher",
    method: str = "adams",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    t_start: float | None = None,
    below: str = "density",
    decoder: Decoder = gaussian_decoder,
    create_graph: bool = False,
    on_error: str = "raise",
    seeds: int | Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> LogProb:
    """Log density of data under the probability-flow ODE.

        log p(x) = log π(x_1) + ∫ div(dx/dt) dt from t_start to 1               (Song et al. 2021, eq. 39)
        div      = f d + g²/(2σ) tr(∂ε̂/∂x),   the trace exact or from probes held fixed along the path

    Integrated in `FlowCoordinates`, in float64 around a network that gets x's dtype. Drift and trace
    share one forward pass. Every sample has its own steps, chosen for its own log p: a step may change y by the
    tolerance (root mean square over entries) and log p by 0.3 atol √d, where the error δy of a step counts with the
    score at hand,

        δ log p = δ∫div + ∇_y log p · δy,       ∇_y log p = −ν ε̂/σ.

    A sample's value therefore does not depend on its batch, given its seed.

    Args:
        denoiser: The model.
        x: Data in the model's own scaling, (B, *), float32 or float64.
        divergence: "hutchinson", "hutch++", or "exact": the full trace, one product per entry of an event.
        probes: Number of products with the Jacobian per evaluation; of Hutch++ a third each are for the sketch, for its
            image, and for the rest. Two or more values give a standard error.
        probe: "rademacher", "gaussian" or "orthogonal" (at most d are used: d make up the exact trace).
        method, rtol, atol, steps: As for `ProbabilityFlowODE`.
        t_start: Data side of the integral; None is the SDE's t_min.
        below: What to do about 0 < t < t_start. "density" takes x for x_t_start: the density of data blurred by
            σ(t_start). "decoder" gives a lower bound of log p(x0), from one draw x_ε ~ q(x_t_start | x0):
            log p(x_ε) + log p(x0 | x_ε) − log q(x_ε | x0), at one more network call.
        decoder: log p(x0 | x_ε) from (x0, x̂0(x_ε), σ/α), for below="decoder"; `DiscretizedGaussian` makes the result
            a probability of levels.
        create_graph: Whether log_prob can be differentiated by x and by the denoiser's parameters; the steps count as
            constants. Otherwise no graph is kept.
        on_error: "raise", or "nan": rows that cannot be done get NaN, a sentence in `failures`, and stop no other.
        seeds: For the probes and for x_ε: one whole number per sample, or one from which all are derived.
        generator: On x's device, draws the seeds if none are given.
    Returns:
        A `LogProb`.
    Raises:
        ValueError: For NaN in x, or arguments that do not fit together.
        FloatingPointError: If the denoiser returns NaN or infinity, or if the tolerance cannot be met.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Grathwohl et al., "FFJORD", 2019, arXiv:1810.01367.
        Meyer et al., "Hutch++: Optimal Stochastic Trace Estimation", 2021, arXiv:2010.09649.
    """
    check_trace("log_prob", divergence, probes, probe)
    check_ode_arguments("log_prob", method, rtol, atol, steps)
    check_below("log_prob", below)
    check_choice("log_prob", "on_error", on_error, ("raise", "nan"))
    check_signal(denoiser)
    failures = _check_data(x, on_error)
    t_start = checked_start("log_prob", denoiser.sde, t_start)
    flow = FlowCoordinates(denoiser.sde, t_start, "log_prob")
    if failures:
        x = x.index_fill(0, torch.tensor(list(failures), device=x.device), 0.0)
    _check_resolution(flow, x)
    seeds = sample_seeds(_drawn_seeds(x, generator) if seeds is None else seeds, len(x), "log_prob")
    trace, entries = trace_of(divergence, x, probes, probe, seeds), x.shape[1:].numel()
    trace = along_directions(trace, probe, denoiser)

    with devices_named("log_prob", denoiser, x=x), nullcontext() if create_graph else torch.no_grad():
        start, decoder_term = x, x.new_zeros(len(x), dtype=torch.float64)
        if below == "decoder":
            start, decoder_term = _decoded(flow, denoiser, x, decoder, seeds)
        state = start.double() / flow.scale(t_start), decoder_term.new_zeros(len(x), trace.values)
        field = likelihood_field(flow, denoiser, trace, len(x), x.dtype, create_graph=create_graph)
        error = torch.zeros_like(decoder_term)
        problem = field, state, flow.data_end, flow.noise_end
        if steps is None:
            resolution, lost = torch.finfo(x.dtype).eps, failures if on_error == "nan" else None
            effect = partial(_effect, flow=flow, fit=ADAMS if method == "adams" else RUNGE_KUTTA, eps=resolution)
            quantity = QuantityOfInterest(effect, STEP_SHARE * atol * math.sqrt(entries), error)
            (y, delta), nfe, *_ = integrate(
                *problem, adaptive_method(method),
                rtol=rtol, atol=atol, quantity=quantity, failures=lost, owner="log_prob",
            )  # fmt: skip
        else:
            (y, delta), nfe, *_ = integrate_together(*problem, method, rtol=rtol, atol=atol, steps=steps)
            error = error.fill_(math.nan)
            failures |= _failed_rows(y, delta, failures, on_error)
        latent = flow.scale(1.0) * y
        log_det = entries * (flow.scale(1.0) / flow.scale(t_start)).log()  # log |d(x_1, x_t)/d(y_1, y_t)|
        mean, std_error = mean_and_error(delta, trace, entries)
        std_error = std_error if below == "density" else torch.full_like(std_error, math.nan)
        value = denoiser.sde.prior_log_prob(latent) + log_det + mean + decoder_term
    columns = [part.to(x.dtype) for part in (value, std_error, latent, error, decoder_term)]
    if failures:
        rows = torch.tensor(list(failures), device=x.device)
        columns = [column.index_fill(0, rows, math.nan) for column in columns]
    value, std_error, latent, error, decoder_term = columns
    freedom = max(trace.values - 1, 1)
    return LogProb(value, std_error, latent, nfe + (below == "decoder"), error, decoder_term, failures, freedom)


def likelihood_field(
    flow: FlowCoordinates, denoiser: Denoiser, trace: Trace, batch: int, dtype: torch.dtype, *, create_graph: bool
) -> Field:
    """The probability flow of y (B, *) and its divergence for every value of the trace (B, K), for `integrate`."""

    def v_at(at: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (expand(at[1], y) * y).to(dtype)
        x = x if create_graph else x.detach()
        x = x if x.requires_grad else x.requires_grad_()
        return denoiser.v(x, at[0]), x

    def rate(at: Tensor, state: State) -> State:
        y, _ = state
        with torch.enable_grad():
            v, x = v_at(at, y)
            traces = trace(flow.traced(at, x, v), x, create_graph=create_graph).double()
        v = v if create_graph else v.detach()
        return flow.slope(at, v.double()), flow.divergence(at, traces, x.shape[1:].numel())

    def inner(at: Tensor, state: State) -> State:
        y, delta = state
        v = denoiser.v((expand(at[1], y) * y).to(dtype), at[0])
        return flow.slope(at, v.double()), torch.zeros_like(delta)

    def select(index: Tensor) -> Field | None:
        smaller = denoiser.select(index, batch)
        if smaller is None:
            return None
        return likelihood_field(flow, smaller, trace.select(index), len(index), dtype, create_graph=create_graph)

    return Field(flow.coefficients, rate, select, inner)


def _effect(
    tried: Attempt, h: Tensor, *, flow: FlowCoordinates, fit: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor]:
    """Sizes of the change of log p by the error of a step.

    To decide, terms add up as independent ones do; to record, as if all had one sign. The error estimate is that of the
    lower order of the pair; the result has the higher one, which is better by a power of the step,

        c error (error / moved)^(q/(p−1))         q = 1 in theory; but signs cancel more, the more steps a pair takes.
    """
    (factor, power), slope, error = fit, tried.slopes[-1], tried.error
    y, rate, error_y = (part[0].flatten(1) for part in (tried.state, slope, error))
    score = flow.score(tried.at_end, y, rate)
    terms = score * error_y
    largest = terms.abs().sum(1) + error[1].abs().mean(1)
    moved = h.abs() * ((score * rate).abs().sum(1) + slope[1].abs().mean(1))
    decides = (terms.square().sum(1) + error[1].square().mean(1)).sqrt()
    decides = (decides - ROUNDING * eps * moved).clamp_min(0)  # no step resolves less
    share = (largest / moved).nan_to_num(1.0).clamp(max=1.0)
    return decides, factor * largest * share ** (power / torch.as_tensor(tried.order - 1).clamp(min=1))


def _decoded(
    flow: FlowCoordinates, denoiser: Denoiser, x: Tensor, decoder: Decoder, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """x_ε ~ q(x_ε | x0) and log p(x0 | x_ε) − log q(x_ε | x0), (B,), at t_start."""
    t = torch.tensor(flow.t_end, dtype=torch.float64, device=x.device)
    alpha, sigma = denoiser.sde.alpha(t), denoiser.sde.sigma(t)
    keys = [stream_seed(seed, "noise") for seed in seeds]
    normals = keyed_normals(keys, x.shape[1:].numel(), torch.Generator())
    noise = deliver(normals, x.shape, x.dtype, x.device)
    noisy = alpha * x + sigma * noise
    mean = denoiser(noisy, t)
    density = gaussian_decoder(noisy.double(), alpha * x.double(), sigma)  # of x_ε as it was rounded
    return noisy, decoder(x.double(), mean.double(), sigma / alpha).double() - density


def _drawn_seeds(x: Tensor, generator: torch.Generator | None) -> list[int]:
    return [int(seed) for seed in torch.randint(2**62, (len(x),), generator=generator, device=x.device).tolist()]


def _failed_rows(y: Tensor, delta: Tensor, known: dict[int, str], on_error: str) -> dict[int, str]:
    """A sentence for each row that fixed steps left without a finite value."""
    finite = y.detach().flatten(1).isfinite().all(1) & delta.detach().isfinite().all(1)
    rows = [row for row in (~finite).nonzero().flatten().tolist() if row not in known]
    sentence = "log_prob found NaN or infinity for sample {}: check the model's output, or take more steps."
    return _named(rows, sentence, FloatingPointError, on_error)


def check_below(owner: str, below: str) -> None:
    """Raise one sentence if there is no such way to treat 0 < t < t_start."""
    check_choice(owner, "below", below, ("density", "decoder"))


def _check_data(x: Tensor, on_error: str) -> dict[int, str]:
    if x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"log_prob needs data of shape (B, *) in float32 or float64, got shape {tuple(x.shape)} in {x.dtype}."
        )
    bad = (~x.detach().flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    sentence = "log_prob needs finite data, got NaN or infinity in row {}: remove it or fill it in."
    return _named(bad, sentence, ValueError, on_error)


def _named(rows: list[int], sentence: str, error: type[Exception], on_error: str) -> dict[int, str]:
    """The sentence for each row, or the first of them raised."""
    if rows and on_error == "raise":
        raise error(sentence.format(rows[0]))
    return {row: sentence.format(row) for row in rows}


def _check_resolution(flow: FlowCoordinates, x: Tensor) -> None:
    """Noise at t_start must be seen next to x in x's dtype."""
    sde, t = flow.sde, torch.tensor(flow.t_end, dtype=torch.float64)
    level = float(sde.sigma(t) / sde.alpha(t))
    least = NOISE_RESOLUTION * torch.finfo(x.dtype).eps * float(x.detach().double().square().mean().sqrt())
    if level < least:
        enough = float(sde.time(torch.tensor(-2 * math.log(4 * least), dtype=torch.float64)))
        raise ValueError(
            f"log_prob needs noise that {x.dtype} can tell from none: σ/α = {level:.1e} at t_start={flow.t_end:g} of "
            f"{type(sde).__name__} is lost in data of size {least / NOISE_RESOLUTION / torch.finfo(x.dtype).eps:.1e}. "
            f"Use t_start={enough:.1e} or float64."
        )
