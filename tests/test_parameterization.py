from __future__ import annotations

from itertools import product

import pytest
import torch
from closed_forms import PARAMETERIZATIONS, SDES, name, predicted
from torch import Tensor

from scoresde import (
    EDM,
    SDE,
    Data,
    DiscreteVPSDE,
    Epsilon,
    Parameterization,
    Score,
    StraightSDE,
    Velocity,
    VPrediction,
    linear_betas,
)
from scoresde.commands.build import ConfigError, build
from scoresde.parameterization import convert
from scoresde.sde import rescale_zero_terminal_snr

ALPHA = torch.tensor([1.0, 0.8, 0.3, 0.01], dtype=torch.float64)
SIGMA = torch.tensor([0.02, 0.6, 1.7, 40.0], dtype=torch.float64)  # not variance preserving


ZERO_SNR = DiscreteVPSDE(rescale_zero_terminal_snr(linear_betas(20)))


@pytest.mark.parametrize("sde", [*SDES, StraightSDE(), ZERO_SNR], ids=name)
def test_every_prediction_converts_into_every_other_at_every_level(sde: SDE) -> None:
    """All 36 pairs, by the field's definitions, and back again; at α = 0 those from which something follows."""
    t = torch.tensor([sde.t_min, 0.01, 0.2, 0.5, 0.9, 0.999, 1.0], dtype=torch.float64)[:, None]
    x0, noise = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = alpha * x0 + sigma * noise
    for source, to in product(PARAMETERIZATIONS, PARAMETERIZATIONS):
        rows = slice(None)
        if sde.ends_silent and isinstance(source, Epsilon | Score) and not isinstance(to, Epsilon | Score):
            assert not convert(noise, x, alpha, sigma, source=source, to=to)[-1].isfinite().any()
            rows = slice(-1)
        given, wanted = (predicted(rule, x0, noise, alpha, sigma)[rows] for rule in (source, to))
        level = alpha[rows], sigma[rows]
        close(convert(given, x[rows], *level, source=source, to=to), wanted)
        if rows == slice(None) and not (sde.ends_silent and isinstance(to, Epsilon | Score)):
            close(convert(wanted, x, *level, source=to, to=source), given)


def close(actual: Tensor, expected: Tensor) -> None:
    """To 1e-9 of the largest entry of a level, or of 1: from x0 to ε a rounding error grows by α/σ, here up to 1e5."""
    error = (actual - expected).abs().amax(1)
    assert bool((error <= 1e-9 * expected.abs().amax(1).clamp_min(1)).all()), error


def test_from_a_prediction_that_is_the_state_follows_nothing_but_itself() -> None:
    """Where σ is 0, x0 is x: converted to x0 it is itself, and to ε it is infinite or NaN."""
    one, zero, x = torch.ones(()), torch.zeros(()), torch.randn(3)
    assert torch.equal(convert(x, x, one, zero, source=Data(), to=Data()), x)
    assert not convert(x, x, one, zero, source=Data(), to=Epsilon()).isfinite().any()
    assert torch.equal(convert(x, x, zero, 2 * one, source=Epsilon(), to=Score()), -x / 2)  # and so with ε at α = 0
    for rule in (Epsilon(), VPrediction(), Velocity()):  # these know both there
        noise = torch.randn(3)
        given = {Epsilon: noise, VPrediction: noise, Velocity: noise - x}[type(rule)]
        torch.testing.assert_close(convert(given, x, one, zero, source=rule, to=Velocity()), noise - x)


@pytest.mark.parametrize("rule", PARAMETERIZATIONS, ids=lambda rule: type(rule).__name__)
def test_a_subclass_writes_either_pair_of_formulas(rule: Parameterization) -> None:
    """The same parameterization with `skip_out` alone, or `target` alone, and the other from it."""
    outer = type(rule)

    class BySkip(Parameterization):
        def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            return outer.skip_out(rule, alpha, sigma)

    class ByTarget(Parameterization):
        def target(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            return outer.target(rule, alpha, sigma)

    for mine in (BySkip(), ByTarget()):
        for method in ("target", "skip_out"):
            expected = getattr(rule, method)(ALPHA, SIGMA)
            torch.testing.assert_close(getattr(mine, method)(ALPHA, SIGMA), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match=r"Neither needs a formula: write target\(alpha, sigma\) or skip_out"):
        type("Neither", (Parameterization,), {})


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, lambda t: t),
        ({"label_scale": 1000.0}, lambda t: 1000 * t),
        ({"label": "data_time"}, lambda t: 1 - t),
        ({"label": "data_time", "label_scale": 999.0}, lambda t: 999 * (1 - t)),
    ],
)
def test_labels_of_flow_networks_are_their_times(options: dict[str, object], label: object) -> None:
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    rule, sde = Velocity(**options, scale_input=False), StraightSDE()  # type: ignore[arg-type]
    torch.testing.assert_close(rule.c_noise(sde.alpha(t), sde.sigma(t)), label(t), rtol=1e-14, atol=1e-14)  # type: ignore[operator]
    assert torch.equal(rule.c_in(sde.alpha(t), sde.sigma(t)), torch.ones_like(t))
    # of the state of another process at the same σ/α, both are what the straight path has
    alpha, sigma = 0.3 * sde.alpha(t), 0.3 * sde.sigma(t)
    torch.testing.assert_close(rule.c_noise(alpha, sigma), label(t), rtol=1e-14, atol=1e-14)  # type: ignore[operator]
    torch.testing.assert_close(rule.c_in(alpha, sigma), torch.full_like(t, 1 / 0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": "time"},
            r"parameterization\.labels is no argument of Velocity: did you mean parameterization\.label",
        ),
        ({"label": "tiem"}, r"label time or data_time, got 'tiem'"),
        ({"label_scale": 0}, r"0 < label_scale <= 1e6, got label_scale=0"),
        ({"scale_input": "no"}, r"scale_input needs true or false, got 'no'"),
    ],
)
def test_a_mistyped_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"_target_": "scoresde.Velocity", **options}, "parameterization")


def test_edm_is_table_1_of_karras_in_the_coordinates_x_over_alpha() -> None:
    s, ratio = 0.5, SIGMA / ALPHA
    c_skip, c_out = EDM().skip_out(ALPHA, SIGMA)

    torch.testing.assert_close(c_skip * ALPHA, s**2 / (ratio.square() + s**2))
    torch.testing.assert_close(c_out, ratio * s / (ratio.square() + s**2).sqrt())
    torch.testing.assert_close(EDM().c_in(ALPHA, SIGMA) * ALPHA, 1 / (ratio.square() + s**2).sqrt())
    torch.testing.assert_close(EDM().c_noise(ALPHA, SIGMA), ratio.log() / 4)


def test_edm_input_and_target_have_unit_variance() -> None:
    for s in (0.5, 1.3):
        parameterization = EDM(sigma_data=s)
        c_skip, c_out = parameterization.skip_out(ALPHA, SIGMA)
        input_variance = parameterization.c_in(ALPHA, SIGMA).square() * ((ALPHA * s).square() + SIGMA.square())
        # target (x0 − c_skip x) / c_out with x0 of standard deviation s and unit noise
        target_variance = (((1 - c_skip * ALPHA) * s).square() + (c_skip * SIGMA).square()) / c_out.square()
        torch.testing.assert_close(input_variance, torch.ones_like(ALPHA), rtol=1e-12, atol=0)
        torch.testing.assert_close(target_variance, torch.ones_like(ALPHA), rtol=1e-10, atol=0)


def test_sigma_data_must_be_positive() -> None:
    with pytest.raises(ValueError, match="VPrediction needs 0 < sigma_data <= 1e9, got sigma_data=0.0"):
        VPrediction(sigma_data=0.0)
