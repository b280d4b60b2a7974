"""Checks for your own processes and solvers, as `torch.autograd.gradcheck` is for derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from scoresde.inverse import check_operator as check_operator  # of its own package, and found here too
from scoresde.sde import SDE
from scoresde.sde.quadrature import integrate

_ELEMENTWISE = "write alpha and sigma with elementwise torch functions of t"
ROUNDING = 1e-14  # α/σ that is taken for a 0 that was computed
_FORMULAS = ("alpha", "sigma", "f", "g")

__all__ = ["check_sde", "convergence_order"]


def check_sde(sde: SDE, *, rtol: float = 1e-6) -> None:
    """Raise one sentence that says what is wrong with a process, or return in silence.

    Checked, in this order, on (0, 1] in float64:

        t_min      a number between 0 and 1
        methods    alpha, sigma, f, g, logsnr elementwise: tensors of t's shape and dtype, for (), (3,) and (2, 3)
        α, σ       positive and finite; α_1 may be 0, exactly: such a process is given by alpha and sigma
        logsnr     = 2 log(α/σ), strictly decreasing
        rates      = (α', σ')
        f          = (log α)'
        g          (σ²)' = 2 f σ² + g²
        time       time(logsnr(t)) = t
        transition the identity at s = t, and the two legs t → s → u compose to t → u
        prior      prior_sample has standard deviation prior_std, near σ_1; prior_log_prob is its density

    The two differential equations are compared in integrated form, with the intervals halved where f or g jump, so
    tables with kinks pass. The process may be an `nn.Module`; nothing here needs or leaves gradients.

    Args:
        sde: The process, an instance.
        rtol: Relative tolerance of every identity.
    Raises:
        AssertionError: If a property fails; the message names the formula, the time, and expected and got values.
        TypeError: If `sde` is not an instance of `SDE`.
    """
    if not isinstance(sde, SDE):
        raise TypeError(f"check_sde needs an instance of a subclass of SDE, got {sde!r}. Pass MySDE(), not MySDE.")
    with torch.no_grad():
        _check_t_min(sde)
        _check_elementwise(sde)
        t = _times()
        _check_positive(sde, t)
        _check_logsnr(sde, t, rtol)
        _check_derivatives(sde, t, rtol)
        _check_time(sde, t, rtol)
        _check_transition(sde, t, rtol)
        _check_prior(sde, rtol)


def convergence_order(
    solve: Callable[[int], Tensor], exact: Tensor | float, *, steps: Sequence[int] = (40, 80, 160)
) -> float:
    """Observed order of convergence: minus the least-squares slope of log error against log steps.

    Args:
        solve: Called with a number of steps; returns the numerical solution.
        exact: The solution that it converges to.
        steps: Two or more step counts; errors must stay above rounding.
    Returns:
        The order: 1 for Euler's method, 2 for Heun's.
    Raises:
        ValueError: For fewer than two step counts, or an error that is zero or not finite.
    """
    if len(set(steps)) < 2 or min(steps) < 1:
        raise ValueError(f"convergence_order needs two or more different step counts, got {tuple(steps)}.")
    points = []
    for count in steps:
        error = float((torch.as_tensor(solve(count)).double() - exact).square().mean().sqrt())
        if not 0 < error < math.inf:
            raise ValueError(
                f"convergence_order needs a positive finite error at every step count, got {error} with {count} steps. "
                f"Use fewer steps if the solution is exact to rounding."
            )
        points.append((math.log(count), math.log(error)))
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def _times() -> Tensor:
    """Increasing times from 1e-5 to 1, geometric and then with irrational gaps, off the nodes of any table."""
    geometric = torch.logspace(-5, -1, 60, dtype=torch.float64)
    golden = (torch.arange(1, 91, dtype=torch.float64) * (math.sqrt(5) - 1) / 2) % 1
    return torch.cat([geometric, 0.1 + 0.9 * golden, geometric.new_ones(1)]).sort().values


def _check_t_min(sde: SDE) -> None:
    t_min = getattr(sde, "t_min", None)
    if not (isinstance(t_min, float) and 0 < t_min < 1):
        raise _failure(sde, f"t_min must be a float between 0 and 1, got {t_min!r}: 1e-5 is the usual value")


def _check_elementwise(sde: SDE) -> None:
    times = torch.tensor([0.21, 0.43, 0.65, 0.87, 0.12, 1.0])
    for name in (*_FORMULAS, "logsnr"):
        method = getattr(sde, name)
        for dtype in (torch.float64, torch.float32):
            t = times.to(dtype)
            for view in (t[0], t[:3], t.reshape(2, 3)):
                label = f"{name}(t) for t of shape {tuple(view.shape)} in {dtype}"
                try:
                    value = method(view)
                except Exception as error:
                    advice = "write it with elementwise torch functions of t"
                    raise _failure(sde, f"{label} raised {type(error).__name__} ({error}): {advice}") from error
                constant = "for a constant return torch.full_like(t, value)"
                if not isinstance(value, Tensor):
                    raise _failure(sde, f"{label} returned a {type(value).__name__}, not a tensor: {constant}")
                if value.shape != view.shape:
                    raise _failure(sde, f"{label} must have t's shape, got {tuple(value.shape)}: {constant}")
                if value.dtype != dtype:
                    advice = "compute in it, or end with .to(t.dtype)"
                    raise _failure(sde, f"{label} must keep t's dtype, got {value.dtype}: {advice}")
            together, alone = method(t).nan_to_num(), torch.stack([method(one) for one in t]).nan_to_num()
            rtol = 1e-3 if dtype == torch.float32 else 1e-9
            what, atol = f"{name}(t), asked for many t at once, against one at a time", 0.1 * rtol * alone.abs().max()
            _compare(sde, what, t, t, together, alone, rtol, "it must be elementwise", atol=atol)


def _check_positive(sde: SDE, t: Tensor) -> None:
    end_before = ": end the process just before the signal or the noise is gone"
    silent = bool(sde.alpha(t[-1:]) == 0)  # then f and g are infinite at t = 1
    inside = t[: -1 if silent else None]
    if type(sde).alpha is SDE.alpha:
        _check_signal_left(sde, t[-1:])
    for name, demand, holds, advice, at in (
        ("alpha", "positive and finite", lambda value: value > 0, ": it may be 0 at t = 1 alone", inside),
        ("sigma", "positive and finite", lambda value: value > 0, end_before, t),
        ("f", "finite", torch.isfinite, "", inside),
        ("g", "finite and not negative", lambda value: value >= 0, "", inside),
    ):
        value = getattr(sde, name)(at)
        bad = ~(torch.isfinite(value) & holds(value))
        if bool(bad.any()):
            got = f"got {_first(value, bad)} at t={_first(at, bad)}"
            raise _failure(sde, f"{name}(t) must be {demand} on (0, 1], {got}{advice}")
    alpha, sigma = float(sde.alpha(t[-1:])), float(sde.sigma(t[-1:]))
    if 0 < alpha < ROUNDING * sigma:
        advice = "write it so that it is 0 there, as sin(pi/2 (1 - t)) is and cos(pi/2 t) is not, or keep more signal"
        raise _failure(sde, f"alpha(1) = {alpha:.2g} is 0 but for rounding: {advice}")


def _check_signal_left(sde: SDE, one: Tensor) -> None:
    """Of a process given by f and g, whose alpha and sigma are integrals that do not reach a singular end."""
    for name in ("f", "g"):
        value = getattr(sde, name)(one)
        if not bool(value.isfinite().all()):
            raise _failure(
                sde,
                f"{name}(t) is {float(value):g} at t=1, where no quadrature of f and g arrives: if the signal is to "
                f"end there, write alpha and sigma instead, with alpha(1) = 0",
            )


def _check_logsnr(sde: SDE, t: Tensor, rtol: float) -> None:
    logsnr = sde.logsnr(t)
    if bool(sde.alpha(t[-1:]) == 0):
        if logsnr[-1] != -math.inf:
            got = f"got {logsnr[-1]:.6g}"
            raise _failure(sde, f"logsnr(t) must be -inf where alpha(t) is 0, {got} at t=1: correct logsnr, or drop it")
        t, logsnr = t[:-1], logsnr[:-1]
    expected = 2 * (sde.alpha(t).log() - sde.sigma(t).log())
    _compare(sde, "logsnr(t) = 2 log(alpha/sigma)", t, t, logsnr, expected, rtol, "correct logsnr", atol=rtol)
    rising = logsnr.diff() >= 0
    if bool(rising.any()):
        where = f"but it does not fall after t={_first(t[:-1], rising)}: noise must grow relative to the signal"
        raise _failure(sde, f"logsnr(t) must be strictly decreasing, {where}")


def _check_derivatives(sde: SDE, t: Tensor, rtol: float) -> None:
    low, high = t[:-1], t[1:]
    span, advice = high - low, "correct {}, or drop f and g and let them be derived from alpha and sigma"
    silent, rates_advice = bool(sde.alpha(t[-1:]) == 0), "correct rates, or drop it"
    if type(sde).rates is SDE.rates:  # then the user wrote something else
        by_f_and_g = type(sde).alpha is SDE.alpha
        rates_advice = (
            "f or g is too steep for quadrature: write alpha and sigma instead" if by_f_and_g else _ELEMENTWISE
        )
    for name, index in (("alpha", 0), ("sigma", 1)):
        steep = silent and bool(_rate(sde, index, t[-1:]).isinf())  # as of √(1 − t)
        starts, ends = (low[:-1], high[:-1]) if steep else (low, high)
        actual, expected = _integral(partial(_rate, sde, index), starts, ends), getattr(sde, name)(t).diff()
        what = f"rates(t)[{index}] = d/dt {name}(t), integrated"
        _compare(sde, what, starts, ends, actual, expected[: len(starts)], rtol, rates_advice, atol=1e-14)
    if silent:  # f and g are infinite there
        t, low, high, span = t[:-1], low[:-1], high[:-1], span[:-1]
    actual, expected = _integral(sde.f, low, high) / span, sde.alpha(t).log().diff() / span
    what = "f(t) = d/dt log alpha(t), averaged"
    _compare(sde, what, low, high, actual, expected, rtol, advice.format("f"), atol=1e-14 / span)
    # (σ²)' = 2 f σ² + g² in the form (σ²/α²)' = g²/α², then multiplied by α² again to read like g²
    variance, scale = torch.exp(-sde.logsnr(t)), sde.alpha(high).square() / span
    actual = _integral(lambda u: (sde.g(u) / sde.alpha(u)).square(), low, high) * scale
    expected, rounding = variance.diff() * scale, 1e-14 * variance[1:] * scale
    what = "g(t)^2 = d/dt sigma(t)^2 - 2 f(t) sigma(t)^2, averaged"
    _compare(sde, what, low, high, actual, expected, rtol, advice.format("g"), atol=rounding)


def _rate(sde: SDE, index: int, t: Tensor) -> Tensor:
    return sde.rates(t)[index]


def _check_time(sde: SDE, t: Tensor, rtol: float) -> None:
    again = sde.time(sde.logsnr(t))
    _compare(sde, "time(logsnr(t)) = t", t, t, again, t, rtol, "drop time and let it be found by bisection", atol=1e-9)
    single = sde.time(sde.logsnr(t[:3].float()))
    if single.dtype != torch.float32 or single.shape != (3,):
        got = f"got {tuple(single.shape)} in {single.dtype} for (3,) in float32"
        raise _failure(sde, f"time(logsnr) must keep shape and dtype, {got}")


def _check_transition(sde: SDE, t: Tensor, rtol: float) -> None:
    early, middle, late = t[:-40:3], t[20:-20:3], t[40::3]
    first, second, both = sde.transition(early, middle), sde.transition(middle, late), sde.transition(early, late)
    advice = "correct transition, or drop it and let it be derived"
    what, scale = "transition(t, s).scale = alpha(s)/alpha(t)", sde.alpha(late) / sde.alpha(early)
    _compare(sde, what, early, late, both.scale, scale, rtol, advice)
    what = "transition(t, s): scale^2 sigma(t)^2 + std^2 = sigma(s)^2"
    marginal = (both.scale * sde.sigma(early)).square() + both.std.square()
    _compare(sde, what, early, late, marginal, sde.sigma(late).square(), rtol, advice)
    what = "transition in two legs: scale^2 std^2 + std^2 = std^2 of one leg"
    variance = (second.scale * first.std).square() + second.std.square()
    _compare(sde, what, early, late, variance, both.std.square(), rtol, advice)
    rest, zeros, atol = sde.transition(t, t), torch.zeros_like(t), 1e-6 * sde.sigma(t)
    _compare(sde, "transition(t, t).scale = 1", t, t, rest.scale, torch.ones_like(t), rtol, advice)
    _compare(sde, "transition(t, t).std = 0", t, t, rest.std, zeros, rtol, advice, atol=atol)


def _check_prior(sde: SDE, rtol: float) -> None:
    std, sigma_1 = sde.prior_std, float(sde.sigma(torch.ones((), dtype=torch.float64)))
    if not (isinstance(std, float) and 0.5 * sigma_1 < std < 2 * sigma_1):
        raise _failure(sde, f"prior_std must be a float near sigma(1), expected about {sigma_1:.6g}, got {std!r}")
    shape, count = (64, 8, 8), 64 * 8 * 8
    x = sde.prior_sample(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if not (isinstance(x, Tensor) and x.shape == shape and x.dtype == torch.float64):
        demand = f"prior_sample({shape}, dtype=torch.float64) must have that shape and dtype"
        raise _failure(sde, f"{demand}, got {_describe(x)}")
    observed = float(x.square().mean().sqrt())
    if not abs(observed / std - 1) < 5 / math.sqrt(2 * count):
        expectation = f"expected {std:.6g}, got {observed:.6g}"
        raise _failure(sde, f"prior_sample must have standard deviation prior_std, {expectation}")
    value, rows = sde.prior_log_prob(x), x.flatten(1) / std
    if not (isinstance(value, Tensor) and value.shape == shape[:1]):
        raise _failure(sde, f"prior_log_prob(x) must have shape (B,), got {_describe(value)} for x of shape {shape}")
    expected = -0.5 * rows.square().sum(1) - rows.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(std))
    what, ones = "prior_log_prob(x) = log N(x; 0, prior_std^2 I)", torch.ones(64)
    advice = "sum over the entries of an event and keep the normalising constant"
    _compare(sde, what, ones, ones, value, expected, rtol, advice)


def _integral(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """∫ function over each [low, high]; intervals on which three rules differ are cut, down to jumps.

    Gauss's rule does not see a jump next to an end, so Boole's, which samples the ends, must agree; neither sees jumps
    placed symmetrically, so intervals are cut unevenly and the two parts must agree with the whole.
    """
    owner, total = torch.arange(len(low)), torch.zeros_like(low)
    for depth in range(80, 0, -1):
        span = high - low
        cut = low + 0.381966 * span
        gauss, parts = integrate(function, low, high), integrate(function, low, cut) + integrate(function, cut, high)
        ends, quarters = function(low) + function(high), function(low + 0.25 * span) + function(high - 0.25 * span)
        boole = span * (7 * ends + 32 * quarters + 12 * function(low + 0.5 * span)) / 90
        error = torch.maximum((gauss - boole).abs(), (gauss - parts).abs())
        split = (error > 1e-9 * gauss.abs()) & (depth > 1) & (len(low) < 100_000)
        total = total.index_add(0, owner[~split], parts[~split])
        low, high = torch.cat([low[split], cut[split]]), torch.cat([cut[split], high[split]])
        owner = owner[split].repeat(2)
        if not len(low):
            break
    return total


def _compare(
    sde: SDE, formula: str, low: Tensor, high: Tensor, actual: Tensor, expected: Tensor, rtol: float, advice: str,
    *, atol: Tensor | float = 1e-12,
) -> None:  # fmt: skip
    tolerance = torch.as_tensor(atol, dtype=expected.dtype) + rtol * expected.abs()
    bad = ~((actual - expected).abs() <= tolerance)
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        where = f"t={low[k]:.6g}" if low[k] == high[k] else f"t={low[k]:.6g} to {high[k]:.6g}"
        got = f"expected {expected[k]:.8g}, got {actual[k]:.8g}"
        raise _failure(sde, f"{formula} fails at {where}, {got}: {advice}")


def _failure(sde: SDE, message: str) -> AssertionError:
    return AssertionError(f"{type(sde).__name__}: {message}.")


def _first(values: Tensor, mask: Tensor) -> str:
    return f"{float(values[mask][0]):.6g}"


def _describe(value: object) -> str:
    return f"{tuple(value.shape)} in {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
