from __future__ import annotations

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor

from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    DiscreteVPSDE,
    Kernel,
    StraightSDE,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
)
from scoresde.sde import rescale_zero_terminal_snr
from scoresde.testing import check_sde, convergence_order


class Good(SDE):
    """A correct process written in full, of which each broken class below changes one line: dx = −2x dt + 2 dw."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-4 * t))

    def f(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -2.0)

    def g(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 2.0)


class FromDrift(SDE):
    """f and g alone."""

    def f(self, t: Tensor) -> Tensor:
        return -1.5 * (1 + t)

    def g(self, t: Tensor) -> Tensor:
        return 1 + torch.sin(3 * t).square()


class FromMarginal(SDE):
    """α and σ alone, as a user writes them."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(1.5 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(1 - self.alpha(t) ** 2)


class Learned(torch.nn.Module, SDE):
    """A monotone network for logsnr, variance preserving: the learned schedule of VDM."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Parameter(torch.linspace(-1, 1, 5))

    def _minus_logsnr(self, t: Tensor) -> Tensor:
        powers = torch.stack([t ** (k + 1) for k in range(5)])
        weights = torch.nn.functional.softplus(self.inner).to(t.dtype).reshape(-1, *[1] * t.ndim)
        return -9 + 12 * (powers * weights).sum(0) / weights.sum()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self._minus_logsnr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self._minus_logsnr(t)).sqrt()


class Sine(SDE):
    """α_1 = 0 in a process of one's own, α and σ alone."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * torch.pi * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * torch.pi * t)


class Root(SDE):
    """The same, and infinitely steep there."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(1 - t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(t)


OTHERS = [
    StraightSDE(),
    Sine(),
    Root(),
    DiscreteVPSDE(rescale_zero_terminal_snr(linear_betas(20))),
    DiscreteVPSDE(cosine_betas()),
    DiscreteVPSDE(quadratic_betas(50)),
    DiscreteVPSDE(scaled_linear_betas(400)),
    DiscreteVPSDE(sigmoid_betas(250)),
    DiscreteVPSDE((0.1, 0.5, 0.9)),
    CosineSDE(logsnr_min=-30.0),
    VESDE(sigma_min=1e-3, sigma_max=1000.0),
    VPSDE(beta_min=1e-3, beta_max=40.0),
    Good(),
    FromDrift(),
    FromMarginal(),
    Learned(),
]


@pytest.mark.parametrize("sde", SDES + OTHERS, ids=name)
def test_correct_processes_pass_in_silence(sde: SDE) -> None:
    check_sde(sde)
    assert not isinstance(sde, torch.nn.Module) or all(p.grad is None for p in sde.parameters())


def broken(**changes: object) -> SDE:
    return type("Broken", (Good,), changes)()


def kernel(sde: SDE, t: Tensor, s: Tensor) -> Kernel:
    return SDE.transition(sde, t, s)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"alpha": lambda self, t: torch.exp(-2 * t) - 0.2},
            r"alpha\(t\) must be positive.*at t=0\.8\d+: it may be 0 at t = 1 alone",
        ),
        (
            {"sigma": lambda self, t: torch.log(t)},
            r"sigma\(t\) must be positive and finite on \(0, 1\], got -11\.51.* at t=1e-05",
        ),
        (
            {"f": lambda self, t: -2.0},
            r"f\(t\) for t of shape \(\) in torch.float64 returned a float, not a tensor.*full_like",
        ),
        (
            {"g": lambda self, t: torch.tensor(2.0, dtype=t.dtype)},
            r"g\(t\) for t of shape \(3,\).*must have t's shape, got \(\)",
        ),
        (
            {"sigma": lambda self, t: Good.sigma(self, t.double())},
            r"sigma\(t\) for t of shape \(\) in torch.float32 must keep t's dtype, got torch.float64",
        ),
        (
            {"f": lambda self, t: -2 * t[:, None] / t[:, None]},
            r"f\(t\) for t of shape \(\) .* raised IndexError .*elementwise torch functions",
        ),
        (
            {"alpha": lambda self, t: Good.alpha(self, t) * (1 + 1e-3 * t.mean())},
            r"alpha\(t\), asked for many t at once, against one at a time",
        ),
        (
            {"f": lambda self, t: -2.001 * torch.ones_like(t)},
            r"f\(t\) = d/dt log alpha.* at t=1e-05 to .*, expected -2, got -2\.001: correct f",
        ),
        ({"g": lambda self, t: 4.0 * torch.ones_like(t)}, r"g\(t\)\^2 = d/dt sigma\(t\)\^2 .*: correct g"),
        ({"g": lambda self, t: 2.0 - 3e-3 * (t > 0.7).to(t.dtype)}, r"g\(t\)\^2 = d/dt .* at t=0\.(69|7)\d* to 0\.7"),
        (
            {"g": lambda self, t: -2.0 * torch.ones_like(t)},
            r"g\(t\) must be finite and not negative on \(0, 1\], got -2",
        ),
        ({"f": lambda self, t: -2 / (t < 0.9).to(t.dtype)}, r"f\(t\) must be finite on \(0, 1\], got -inf at t=0\.9"),
        ({"logsnr": lambda self, t: SDE.logsnr(self, t) / 2}, r"logsnr\(t\) = 2 log\(alpha/sigma\) fails at t=1e-05"),
        ({"time": lambda self, logsnr: 1.001 * SDE.time(self, logsnr)}, r"time\(logsnr\(t\)\) = t fails .*drop time"),
        (
            {"time": lambda self, logsnr: SDE.time(self, logsnr.double())},
            r"time\(logsnr\) must keep shape and dtype, got \(3,\) in torch.float64",
        ),
        (
            {"transition": lambda self, t, s: kernel(self, t, s)._replace(scale=self.alpha(s))},
            r"transition\(t, s\)\.scale = alpha\(s\)/alpha\(t\)",
        ),
        (
            {"transition": lambda self, t, s: kernel(self, t, s)._replace(std=self.sigma(s))},
            r"scale\^2 sigma\(t\)\^2 \+ std\^2 = sigma\(s\)\^2",
        ),
        ({"prior_std": 50.0}, r"prior_std must be a float near sigma\(1\), expected about 0\.99\d+, got 50"),
        (
            {"prior_sample": lambda self, shape, **kw: torch.zeros(shape, dtype=torch.float64)},
            r"prior_sample must have standard deviation prior_std",
        ),
        (
            {"prior_sample": lambda self, shape, **kw: torch.randn(shape)},
            r"prior_sample\(\(64, 8, 8\), dtype=torch.float64\).*got \(64, 8, 8\) in torch.float32",
        ),
        (
            {"prior_log_prob": lambda self, x: -0.5 * x.flatten(1).square().sum(1)},
            r"prior_log_prob\(x\) = log N\(x; 0, prior_std\^2 I\) .*normalising constant",
        ),
        (
            {"prior_log_prob": lambda self, x: -0.5 * x.square()},
            r"prior_log_prob\(x\) must have shape \(B,\), got \(64, 8, 8\)",
        ),
        ({"t_min": 0.0}, r"t_min must be a float between 0 and 1, got 0\.0"),
        ({"t_min": None}, r"t_min must be a float between 0 and 1, got None"),
    ],
)
def test_one_sentence_says_what_is_wrong(changes: dict[str, object], words: str) -> None:
    with pytest.raises(AssertionError, match=rf"^Broken: .*{words}") as caught:
        check_sde(broken(**changes))
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


def test_noise_that_stops_growing_is_named() -> None:
    class Flat(SDE):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return t.clamp(max=0.5)

    with pytest.raises(AssertionError, match=r"Flat: logsnr\(t\) must be strictly decreasing.* after t=0\.5"):
        check_sde(Flat())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"alpha": lambda self, t: 1 - 1.01 * t},
            r"alpha\(t\) must be positive.*got -0.00260927 at t=0.99.*at t = 1 alone",
        ),
        ({"alpha": lambda self, t: (1 - 2 * t).clamp_min(0)}, r"alpha\(t\) must be positive.*got 0 at t=0.50"),
        (
            {"alpha": lambda self, t: torch.cos(0.5 * torch.pi * t)},
            r"alpha\(1\) = 6.1e-17 is 0 but for rounding: .*sin",
        ),
        ({"logsnr": lambda self, t: Sine.logsnr(Sine(), t).clamp_min(-20)}, r"logsnr.* must be -inf .* got -20 at t=1"),
        ({"logsnr": lambda self, t: Sine.logsnr(Sine(), t) + 0 / (1 - t)}, r"logsnr.* must be -inf .* got nan at t=1"),
        ({"rates": lambda self, t: (-t, t)}, r"rates\(t\)\[0\] = d/dt alpha.* correct rates, or drop it"),
    ],
)
def test_what_is_wrong_with_an_end_without_signal(changes: dict[str, object], words: str) -> None:
    with pytest.raises(AssertionError, match=rf"^Wrong: {words}") as caught:
        check_sde(type("Wrong", (Sine,), changes)())
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


def test_a_signal_that_ends_needs_alpha_and_sigma() -> None:
    """f and g of the straight path: infinite at t = 1, or too steep for a quadrature."""
    for small, words in (
        (0.0, r"f\(t\) is -inf at t=1, .*write alpha and sigma instead"),
        (1e-9, "too steep .*write alpha"),
    ):

        class Singular(SDE):
            def f(self, t: Tensor, small: float = small) -> Tensor:
                return -1 / (1 + small - t)

            def g(self, t: Tensor, small: float = small) -> Tensor:
                return torch.sqrt(2 * t / (1 + small - t))

        with pytest.raises(AssertionError, match=rf"^Singular: .*{words}"):
            check_sde(Singular())


def test_the_factors_that_papers_lose_are_found() -> None:
    """β for β/2 in the drift, √ missing in σ, sub-VP with the exponent of VP: each fails the right formula."""

    class Drift(SDE):
        def alpha(self, t: Tensor) -> Tensor:
            return VPSDE().alpha(t)

        def sigma(self, t: Tensor) -> Tensor:
            return VPSDE().sigma(t)

        def f(self, t: Tensor) -> Tensor:
            return 2 * VPSDE().f(t)

    class Root(Drift):
        f = VPSDE.f
        _beta, beta_min, beta_max = VPSDE._beta, 0.1, 20.0
        g = VPSDE.g

        def sigma(self, t: Tensor) -> Tensor:
            return VPSDE().sigma(t).square()

    with pytest.raises(AssertionError, match=r"f\(t\) = d/dt log alpha\(t\)"):
        check_sde(Drift())
    with pytest.raises(AssertionError, match=r"g\(t\)\^2 = d/dt sigma\(t\)\^2 - 2 f\(t\) sigma\(t\)\^2"):
        check_sde(Root())


def test_a_class_instead_of_an_instance_is_named() -> None:
    with pytest.raises(TypeError, match=r"needs an instance of a subclass of SDE.*Pass MySDE\(\), not MySDE"):
        check_sde(VPSDE)  # type: ignore[arg-type]


def test_convergence_order_of_known_methods() -> None:
    def euler(steps: int) -> Tensor:
        return torch.tensor((1 - 1 / steps) ** steps, dtype=torch.float64)

    def midpoint(steps: int) -> Tensor:
        return torch.tensor((1 - 1 / steps + 0.5 / steps**2) ** steps, dtype=torch.float64)

    exact = torch.tensor(-1.0, dtype=torch.float64).exp()
    assert convergence_order(euler, exact) == pytest.approx(1, abs=0.02)
    assert convergence_order(midpoint, exact, steps=(20, 40)) == pytest.approx(2, abs=0.05)
    assert convergence_order(lambda n: exact + 3 / n**4, exact) == pytest.approx(4, abs=1e-3)


def test_convergence_order_names_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match=r"two or more different step counts, got \(10,\)"):
        convergence_order(lambda n: torch.zeros(()), 1.0, steps=(10,))
    with pytest.raises(ValueError, match=r"positive finite error at every step count, got 0.0 with 40 steps"):
        convergence_order(lambda n: torch.ones(()), 1.0)
