"""The terms of a discrete chain's variational bound, one at a time and differentiable: what a loss is built from."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_whole, is_number
from scoresde.covariance.reverse_variance import FIXED, check_known, posterior_std, removed
from scoresde.denoiser import Denoiser, KnowsFullCovariance, PredictsRange
from scoresde.likelihood.decoder import Decoder, gaussian_decoder
from scoresde.sde import SDE, DiscreteVPSDE, expand
from scoresde.sde.grids import Grid, uniform_grid
from scoresde.sde.levels import Levels

VARIANCES = (*FIXED, "learned", "optimal", "full")


class Prediction(NamedTuple):
    """What a denoiser says about x0 given x_t: all that a term needs of it.

    Attributes:
        mean: x̂0, (B, *).
        uncertainty: What the variance of a step is made from: None for "small" and "large", v (B, *) for "learned", the
            diagonal of Cov[x0 | x_t] (B, *) for "optimal", the matrix (B, d, d) for "full".
    """

    mean: Tensor
    uncertainty: Tensor | None

    def detached_mean(self) -> Prediction:
        """With no gradient through x̂0: L_hybrid trains only the variance on the bound."""
        return self._replace(mean=self.mean.detach())


def predict(denoiser: Denoiser, x: Tensor, t: Tensor, variance: str, **cond: Any) -> Prediction:
    """x̂0 and what the variance needs, x (B, *) and t () or (B,), with one call of the denoiser.

    "full" calls it twice, for x̂0 and for the matrix.
    """
    if variance in FIXED:
        return Prediction(denoiser(x, t, **cond), None)
    if variance == "full":
        assert isinstance(denoiser, KnowsFullCovariance)  # check_chain
        return Prediction(denoiser(x, t, **cond), denoiser.covariance(x, t, **cond))
    if variance == "optimal":
        mean, uncertainty = denoiser.mean_and_covariance(x, t, **cond)
    else:
        assert isinstance(denoiser, PredictsRange)
        mean, uncertainty = denoiser.mean_and_range(x, t, **cond)
    return Prediction(mean, uncertainty.to(x).expand_as(x))


def transition_kl(
    denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, variance: str = "small", **cond: Any
) -> Tensor:
    """KL(q(x_s | x_t, x0) ‖ N(μ(x_t), Σ(x_t))) in nats; see `posterior_kl`.

    Args:
        denoiser: The model.
        x0, x_t: Data and a draw of q(x_t | x0), (B, *).
        t, s: The step's times, () or (B,), s < t, with noise at s.
        variance: Σ, see `vlb`.
    Returns:
        (B,), differentiable.
    """
    return posterior_kl(denoiser.sde, x0, predict(denoiser, x_t, t, variance, **cond), t, s, variance)


def reconstruction(
    denoiser: Denoiser,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    before: Tensor,
    variance: str = "small",
    decoder: Decoder = gaussian_decoder,
    decoder_variance: float | str | None = None,
    **cond: Any,
) -> Tensor:
    """−log p(x0 | x_t) in nats at the last state t of a chain, whose state before it is `before`; see `decoder_nll`.

    Returns:
        (B,), differentiable.
    """
    prediction = predict(denoiser, x_t, t, variance, **cond)
    return decoder_nll(
        denoiser.sde, x0, prediction, t, before, variance, decoder=decoder, decoder_variance=decoder_variance
    )


def chain_term(
    sde: SDE,
    x0: Tensor,
    prediction: Prediction,
    k: Tensor,
    times: Tensor,
    *,
    variance: str = "small",
    decoder: Decoder = gaussian_decoder,
    decoder_variance: float | str | None = None,
) -> Tensor:
    """One term of the bound per example, from the prediction at its state t_k: −log p(x0 | x_1) for k = 1, else a KL.

    The expectation over k uniform on 1 ... T, times T, is the bound without the prior.

    Args:
        sde: The forward process.
        x0: Data, (B, *).
        prediction: `predict` at x_{t_k}, times[-k].
        k: 1 ... T, (B,).
        times: `chain_times`: t_T ... t_1.
        variance, decoder, decoder_variance: See `vlb`.
    Returns:
        (B,) nats, differentiable.
    """
    values = x0.new_zeros(x0.shape[0])
    last, inner = (k == 1).nonzero()[:, 0], (k > 1).nonzero()[:, 0]
    if len(last):
        nll = decoder_nll(
            sde, x0[last], _rows(prediction, last), times[-1], times[-2], variance,
            decoder=decoder, decoder_variance=decoder_variance,
        )  # fmt: skip
        values = values.index_copy(0, last, nll.to(values.dtype))
    if len(inner):
        column = len(times) - k[inner]
        kl = posterior_kl(sde, x0[inner], _rows(prediction, inner), times[column], times[column + 1], variance)
        values = values.index_copy(0, inner, kl)
    return values


def chain_times(
    sde: SDE, steps: int, grid: Grid = uniform_grid, t_start: float | None = None, *, owner: str = "vlb"
) -> Tensor:
    """The states t_T ... t_1 of a chain, float64, (T,): `grid` from 1 to t_start, which is the SDE's t_min if None.

    A sub-sequence whose labels include t_start has fewer states than asked for; it is asked for one more. The first
    state may be without signal; the states of such a chain are k/T by default, as DDPM's: where σ = t, a step from 1/T
    to a small t_min would cost ½ d/(T t_min)² nats.

    Raises:
        ValueError: For fewer than two states, or a last state without noise.
    """
    check_whole(owner, "2 <= steps <= 1000000", steps=steps)
    if t_start is None and grid is uniform_grid and sde.ends_silent and not isinstance(sde, DiscreteVPSDE):
        t_start = max(sde.t_min, 1 / steps)
    t_end = checked_start(owner, sde, t_start)
    times = grid(sde, steps - 1, t_end)
    if len(times) < steps:
        times = grid(sde, steps, t_end)
    if not bool((sde.logsnr(times) < math.inf).all()):
        raise ValueError(
            f"{owner} needs noise at the last state: σ is 0 at t={float(times[-1]):g} of {type(sde).__name__}. "
            f"Use t_start > 0, for example 1e-5."
        )
    return times


def checked_start(owner: str, sde: SDE, t_start: float | None) -> float:
    """Where a likelihood begins: t_start, or the SDE's t_min for None.

    Raises:
        ValueError: If it is outside [t_min, 1), where the process or the model means nothing.
    """
    if t_start is None:
        return sde.t_min
    check_numbers(owner, "t_min <= t_start < 1", t_min=sde.t_min, t_start=t_start)
    return t_start


def prior_kl(sde: SDE, x0: Tensor, t: Tensor) -> Tensor:
    """KL(q(x_t | x0) ‖ π) = ½ Σ_d (α² x0² + σ²)/π² − 1 − log(σ²/π²) in nats, t () or (B,) -> (B,)."""
    wide = t.double()
    ratio = (sde.sigma(wide) / sde.prior_std).square()
    shift = (expand(sde.alpha(wide) / sde.prior_std, x0) * x0).square().flatten(1).sum(1)
    return 0.5 * (shift + x0[0].numel() * (ratio - 1 - ratio.log()).to(x0.dtype))


def posterior_kl(sde: SDE, x0: Tensor, prediction: Prediction, t: Tensor, s: Tensor, variance: str) -> Tensor:
    """KL of a reverse step from the true posterior, in nats, (B,): the step has DDPM's mean with x̂0 in place of x0.

    KL = ½ Σ_d log ρ + 1/ρ − 1 + w (x0 − x̂0)²/ρ,        w = SNR_s − SNR_t,   ρ = Σ/β̃
    ρ  = 1,   β/β̃ = σ_t²/σ_s²,   (β/β̃)^v,   1 + w Cov[x0 | x_t]      "small", "large", "learned", "optimal"
    KL = ½ (log det R + tr R⁻¹ − d + w (x0 − x̂0)ᵀ R⁻¹ (x0 − x̂0)),   R = I + w Cov[x0 | x_t]         "full"
    """
    levels = Levels.of(sde, torch.stack(torch.broadcast_tensors(t.double(), s.double())))
    weight = expand(torch.exp(2 * levels.lam[1]) * removed(levels)[0], x0)  # (α_s (1 − r))²/β̃
    error = x0 - prediction.mean
    if variance == "small":
        return 0.5 * (weight * error.square()).flatten(1).sum(1)
    if variance == "full":
        weight = weight.flatten()[:, None] if weight.ndim else weight
        return _full_kl(weight, error.flatten(1), _uncertainty(prediction))
    if variance == "optimal":
        log_ratio = torch.log1p(weight * _uncertainty(prediction))
    else:
        log_ratio = expand(2 * (levels.sigma[0].log() - levels.sigma[1].log()), x0)
        log_ratio = (log_ratio * _uncertainty(prediction) if variance == "learned" else log_ratio).expand_as(x0)
    each = log_ratio + torch.expm1(-log_ratio) + weight * error.square() * torch.exp(-log_ratio)
    return 0.5 * each.flatten(1).sum(1)


def decoder_nll(
    sde: SDE,
    x0: Tensor,
    prediction: Prediction,
    t: Tensor,
    before: Tensor,
    variance: str,
    *,
    decoder: Decoder = gaussian_decoder,
    decoder_variance: float | str | None = None,
) -> Tensor:
    """−log p(x0 | x_t) of a decoder about x̂0 in nats, (B,); its variance is that of the step to the data.

        "small", "large"   β̃ of the step from `before` to t: that to the data has none of its own
        "learned"          σ_t²^v β̃^(1−v), with the same β̃
        "optimal", "full"  Cov[x0 | x_t], for `gaussian_decoder` with all its correlations if "full"

    Args:
        decoder_variance: In place of these: a number, or "posterior", β̃ between the first two states of the table of
            a `DiscreteVPSDE`, whichever chain runs on it; without a table, β̃ as for "small".
    """
    if decoder_variance is None and variance == "full" and decoder is gaussian_decoder:
        return -_full_log_prob((x0 - prediction.mean).flatten(1), _uncertainty(prediction))
    if isinstance(decoder_variance, int | float):
        std = torch.tensor(math.sqrt(decoder_variance), dtype=torch.float64, device=x0.device)
    elif decoder_variance is None and variance == "optimal":
        std = _positive(_uncertainty(prediction)).sqrt()
    elif decoder_variance is None and variance == "full":
        std = _positive(_uncertainty(prediction).diagonal(dim1=1, dim2=2)).sqrt().reshape(x0.shape)
    else:
        posterior = decoder_variance == "posterior" and isinstance(sde, DiscreteVPSDE)
        table = len(sde.betas) if posterior else 0  # type: ignore[attr-defined]
        first = (2 / table, 1 / table) if table > 1 else (before.double(), t.double())
        ends = torch.broadcast_tensors(*(torch.as_tensor(t, dtype=torch.float64, device=x0.device) for t in first))
        std = posterior_std(Levels.of(sde, torch.stack(ends)))[0]
        if variance == "learned" and decoder_variance is None:
            log_ratio = sde.sigma(t.double()).log() - std.log()
            std = torch.exp(expand(std.log(), x0) + expand(log_ratio, x0) * _uncertainty(prediction))
    return -decoder(x0, prediction.mean, expand(std, x0) if std.ndim < 2 else std)


def check_chain(denoiser: Denoiser, variance: str, decoder_variance: float | str | None, *, owner: str = "vlb") -> None:
    """Raise one sentence, before any call, if the variances make no sense or the denoiser cannot give them."""
    check_variances(owner, variance, decoder_variance)
    check_known(denoiser, variance)


def check_variances(owner: str, variance: str, decoder_variance: float | str | None) -> None:
    """Raise one sentence if the variances of a chain make no sense."""
    check_choice(owner, "variance", variance, VARIANCES)
    number = isinstance(decoder_variance, int | float) and is_number(decoder_variance)
    if not (0 < float(decoder_variance) < math.inf if number else decoder_variance in (None, "posterior")):  # type: ignore[arg-type]
        raise ValueError(
            f"{owner} needs decoder_variance 'posterior', a number > 0, or None for that of the steps, got "
            f"{decoder_variance!r}."
        )


def _full_kl(weight: Tensor, error: Tensor, covariance: Tensor) -> Tensor:
    """`posterior_kl` with R = I + w Cov, error (B, d), w () or (B, 1)."""
    eye = torch.eye(error.shape[1], dtype=error.dtype, device=error.device)
    factor = _cholesky(eye + (weight if weight.ndim == 0 else weight[..., None]) * covariance)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    white = torch.einsum("bij,bj->bi", inverse, error)
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return 0.5 * (log_det + inverse.square().sum((1, 2)) - error.shape[1] + (weight * white.square()).sum(1))


def _full_log_prob(error: Tensor, covariance: Tensor) -> Tensor:
    """log N(error; 0, covariance), (B, d) and (B, d, d) -> (B,)."""
    factor = _cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, error[..., None], upper=False)[..., 0]
    density = gaussian_decoder(white, torch.zeros_like(white), torch.ones_like(white))
    return density - factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower factors, (B, d, d): NaN for an example whose matrix has none, instead of an error for all."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed == 0)[:, None, None], factor, math.nan)


def _uncertainty(prediction: Prediction) -> Tensor:
    assert prediction.uncertainty is not None, "the prediction was made for another variance"
    return prediction.uncertainty


def _rows(prediction: Prediction, index: Tensor) -> Prediction:
    rows = None if prediction.uncertainty is None else prediction.uncertainty[index]
    return Prediction(prediction.mean[index], rows)


def _positive(variance: Tensor) -> Tensor:
    return variance.clamp_min(torch.finfo(variance.dtype).tiny)
