from __future__ import annotations

import math

import pytest
import torch
from closed_forms import SDES, chain_moments, golden, moments, name, predicted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Data,
    DiscreteVPSDE,
    Epsilon,
    GaussianDenoiser,
    NetworkDenoiser,
    Parameterization,
    SubVPSDE,
    Velocity,
    VPrediction,
    cosine_betas,
    expand,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
)
from scoresde.sde import rescale_zero_terminal_snr

T = torch.cat([torch.logspace(-5, -2, 40, dtype=torch.float64), torch.linspace(0.011, 1, 100, dtype=torch.float64)])


class Given(SDE):
    """A process by f and g alone, borrowed from another."""

    def __init__(self, sde: SDE, sigma_start: float = 0.0) -> None:
        self.sde, self.sigma_start = sde, sigma_start

    def f(self, t: Tensor) -> Tensor:
        return self.sde.f(t)

    def g(self, t: Tensor) -> Tensor:
        return self.sde.g(t)


class Marginal(SDE):
    """A process by α and σ alone, borrowed from another."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def alpha(self, t: Tensor) -> Tensor:
        return self.sde.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sde.sigma(t)


def close(actual: Tensor, expected: Tensor, rtol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-300)


@pytest.mark.parametrize(
    "sde, start", [(VPSDE(), 0.0), (SubVPSDE(), 0.0), (VESDE(), 0.01), (EDMSDE(), 0.002)], ids=name
)
def test_f_and_g_alone_give_alpha_and_sigma_by_quadrature(sde: SDE, start: float) -> None:
    mine = Given(sde, start)

    close(mine.alpha(T), sde.alpha(T), 1e-10)
    close(mine.sigma(T), sde.sigma(T), 1e-10)
    close(mine.time(sde.logsnr(T)), T, 1e-7 if sde.alpha(T[:1]) == 1 else 1e-10)  # VE's logsnr is flat near 0


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_alpha_and_sigma_alone_give_f_and_g_by_differentiation(sde: SDE) -> None:
    t = T + 1e-7  # off the nodes of the table
    torch.testing.assert_close(Marginal(sde).f(t), sde.f(t), rtol=1e-10, atol=1e-12)
    close(Marginal(sde).g(t), sde.g(t), 1e-9)


def test_derived_f_and_g_keep_float32_for_a_scalar_time() -> None:
    class Exponential(SDE):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.exp(-2.5 * t)

        def sigma(self, t: Tensor) -> Tensor:
            return torch.sqrt(-torch.expm1(-5 * t))

    t = torch.tensor(0.3)
    assert Exponential().f(t).dtype == Exponential().g(t).dtype == torch.float32
    torch.testing.assert_close(Exponential().f(t), torch.tensor(-2.5))
    torch.testing.assert_close(Exponential().g(t), torch.tensor(5.0).sqrt())


def test_derived_coefficients_reach_a_learned_schedule() -> None:
    class Learned(torch.nn.Module, SDE):
        def __init__(self) -> None:
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def alpha(self, t: Tensor) -> Tensor:
            return torch.exp(-self.rate * t)

        def sigma(self, t: Tensor) -> Tensor:
            return torch.sqrt(-torch.expm1(-2 * self.rate * t))

    sde = Learned()
    (gradient,) = torch.autograd.grad(sde.g(torch.tensor(0.4, dtype=torch.float64)).square(), sde.rate)
    assert gradient.item() == pytest.approx(2.0)  # g² = 2 rate


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), CosineSDE()], ids=name)
def test_float32_keeps_its_digits_near_the_data(sde: SDE) -> None:
    t = torch.tensor([1e-5, 1e-4, 1e-3, 0.1, 1.0])
    for method in (sde.alpha, sde.sigma, sde.g):
        close(method(t).double(), method(t.double()), 1e-6 if method == sde.sigma else 5e-6)


@pytest.mark.parametrize("sde", SDES, ids=name)
@settings(deadline=None, max_examples=20, database=None)
@given(st.floats(1e-5, 1.0), st.floats(1e-5, 1.0), st.floats(1e-5, 1.0))
def test_transitions_compose_and_time_inverts_logsnr(sde: SDE, a: float, b: float, c: float) -> None:
    t, s, u = torch.tensor(sorted([a, b, c]), dtype=torch.float64)
    first, second, both = sde.transition(t, s), sde.transition(s, u), sde.transition(t, u)

    close(first.scale * second.scale, both.scale, 1e-10)
    variance = (second.scale * first.std).square() + second.std.square()
    torch.testing.assert_close(variance, both.std.square(), rtol=1e-9, atol=1e-12 * float(sde.sigma(u)) ** 2)
    torch.testing.assert_close(sde.time(sde.logsnr(t)), t, rtol=1e-9, atol=1e-12)


def test_time_of_a_foreign_logsnr_is_an_end_of_the_clock() -> None:
    sde = Marginal(VPSDE())
    assert sde.time(torch.tensor([-1e3, 1e3])).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_perturb_and_drift_take_one_time_per_sample_of_any_shape() -> None:
    sde, t = SubVPSDE(), torch.tensor([0.2, 0.7])
    for shape in ((2,), (2, 3), (2, 3, 4, 4), (2, 1, 2, 2, 2)):
        x0, noise = torch.randn(shape), torch.randn(shape)
        for k in range(2):
            torch.testing.assert_close(
                sde.perturb(x0, t, noise)[k], sde.alpha(t[k]) * x0[k] + sde.sigma(t[k]) * noise[k]
            )
            torch.testing.assert_close(sde.drift(x0, t)[k], sde.f(t[k]) * x0[k])


def test_prior_draws_follow_the_generator_and_prior_log_prob_is_their_density() -> None:
    sde = VESDE(sigma_max=20.0)
    x = sde.prior_sample((5, 3, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, torch.tensor(20.0, dtype=torch.float64)).log_prob(x).flatten(1).sum(1)

    assert torch.equal(x, sde.prior_sample((5, 3, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    torch.testing.assert_close(sde.prior_log_prob(x), expected, rtol=1e-12, atol=0)


# Tables


def test_discrete_table_is_read_at_its_own_index_in_both_precisions() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    sde, k = DiscreteVPSDE(linear_betas()), torch.arange(1, 1001, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)

    close(sde.alpha(k / 1000).square(), abar, 1e-12)
    close(sde.sigma(k / 1000).square(), 1 - abar, 1e-10)
    close(sde.g(k / 1000).square(), -1000 * torch.log1p(-betas), 1e-12)  # the node belongs to the cell below it
    close(sde.g((k / 1000).float()).double(), sde.g(k / 1000), 1e-6)
    step = sde.transition((k - 1) / 1000, k / 1000)
    close(step.scale, (1 - betas).sqrt(), 1e-12)
    close(step.std, betas.sqrt(), 1e-10)
    assert sde.t_min == 1e-3


def test_discrete_table_interpolates_in_double_between_nodes() -> None:
    betas = (0.1, 0.2, 0.3)
    sde = DiscreteVPSDE(betas)
    t = torch.tensor([0.25 / 3, 1 / 3 + 0.5 / 3, 2 / 3 + 0.9 / 3], dtype=torch.float64)
    kept = [0.9**0.25, 0.9 * 0.8**0.5, 0.9 * 0.8 * 0.7**0.9]

    close(sde.alpha(t).square(), torch.tensor(kept, dtype=torch.float64), 1e-14)
    close(sde.time(sde.logsnr(t)), t, 1e-14)


def test_published_end_points_of_the_tables() -> None:
    def abar(betas: tuple[float, ...]) -> float:
        return float(DiscreteVPSDE(betas).alpha(torch.ones((), dtype=torch.float64))) ** 2

    cosine = cosine_betas()
    assert abar(linear_betas()) == pytest.approx(4.0358e-5, rel=1e-4)
    assert abar(cosine) == pytest.approx(2.43e-9, rel=2e-3)
    assert cosine[998] == pytest.approx(0.75, abs=2e-5) and cosine[999] == 0.999
    assert quadratic_betas()[499] == pytest.approx((0.01 + (math.sqrt(0.02) - 0.01) * 499 / 999) ** 2)
    assert scaled_linear_betas()[0] == pytest.approx(0.00085) and scaled_linear_betas()[-1] == pytest.approx(0.012)
    sigmoid = sigmoid_betas()
    assert sigmoid[0] == pytest.approx(1e-4 + 0.0199 / (1 + math.exp(6))) and sigmoid[200] < sigmoid[500] < sigmoid[800]
    assert sum(sigmoid) == pytest.approx(1000 * 0.01005)  # symmetric about the middle


def test_a_table_rescaled_to_zero_terminal_snr_is_algorithm_1_and_ends_in_pure_noise() -> None:
    """Lin et al. 2024, Algorithm 1, line by line; in the last cell α falls linearly, elsewhere nothing is new."""
    root = (1 - torch.tensor(linear_betas(), dtype=torch.float64)).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    kept = root.square()
    betas = 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])
    table = rescale_zero_terminal_snr(linear_betas())
    close(torch.tensor(table, dtype=torch.float64), betas, 1e-9)
    assert table[-1] == 1 and table[0] == pytest.approx(1e-4, rel=1e-9)

    sde, k = DiscreteVPSDE(table), torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(sde.alpha(k).square(), kept, rtol=1e-9, atol=1e-300)
    assert sde.ends_silent and sde.logsnr(k)[-1] == -math.inf and sde.sigma(k)[-1] == 1 and sde.alpha(k)[-1] == 0
    inside = torch.tensor([0.9991, 0.9995, 0.9999], dtype=torch.float64)
    close(sde.alpha(inside), root[-2] * 1000 * (1 - inside), 1e-9)
    close(sde.rates(torch.tensor([0.9991, 1.0], dtype=torch.float64))[0], -1000 * root[-2].expand(2), 1e-9)
    close(sde.time(sde.logsnr(inside)), inside, 1e-14)
    assert sde.time(torch.tensor(-math.inf)) == 1
    # a table that ends just before differs from it only in the last cell
    near = DiscreteVPSDE((*table[:-1], 1 - 1e-9))
    early = torch.tensor([1e-3, 0.4, 0.998, 0.999], dtype=torch.float64)
    for method in ("alpha", "sigma", "f", "g", "logsnr"):
        assert torch.equal(getattr(sde, method)(early), getattr(near, method)(early))


@pytest.mark.parametrize("rule", [VPrediction(), Data(), Velocity()], ids=str)
def test_a_chain_from_pure_noise_keeps_the_moments_of_gaussian_data(rule: Parameterization) -> None:
    """DDPM and DDIM by every step of the table, with a network that predicts v, x0 or the velocity of N(m, s²)."""
    mean, std = 1.5, 0.7
    sde = DiscreteVPSDE(rescale_zero_terminal_snr(linear_betas(50, 2e-3, 0.3)))
    exact = GaussianDenoiser(sde, mean, std)

    class Perfect(torch.nn.Module):
        def forward(self, scaled: Tensor, label: Tensor) -> Tensor:
            t = (
                sde.time(-8 * label.double())
                if not isinstance(rule, Velocity)
                else sde.time(2 * ((1 - label) / label).log())
            )
            alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            x = scaled / rule.c_in(alpha, sigma)
            return predicted(rule, exact(x, t), exact.eps(x, t), alpha, sigma)

    denoiser, start = NetworkDenoiser(Perfect(), sde, rule), torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64)
    y = DDIM(steps=50, t_end=sde.t_min, denoise=False)(denoiser, start)
    known = DDIM(steps=50, t_end=sde.t_min, denoise=False)(exact, start)
    torch.testing.assert_close(y, known, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.flatten()[1:] - y[0], (y[1] - y[0]) * torch.tensor([1.0, -2.0]).double())  # affine
    chain = chain_moments(DDPM(steps=50, t_end=sde.t_min, denoise=False), exact, torch.zeros(()), torch.ones(()))
    expected = moments(sde, sde.t_min, mean, std)
    assert float(chain[0]) == pytest.approx(float(expected[0]), rel=1e-6) and 0.9 < float(chain[1] / expected[1]) < 1.1


def test_a_network_that_predicts_noise_is_refused_on_a_table_that_ends_in_pure_noise() -> None:
    sde, x = DiscreteVPSDE(rescale_zero_terminal_snr(linear_betas(20))), torch.randn(2, 1)
    net = type("Net", (torch.nn.Module,), {"forward": lambda self, x, c: x})()
    with pytest.raises(ValueError, match=r"Epsilon says nothing .* alpha is 0 at t = 1 of DiscreteVPSDE: train with"):
        DDIM(steps=5)(NetworkDenoiser(net, sde, Epsilon()), x)


def test_cosine_is_the_published_formula_on_a_clock_moved_by_3e_5() -> None:
    sde, s = CosineSDE(), 0.008
    theta_0 = s / (1 + s) * math.pi / 2
    ratio = (math.acos(math.sqrt(1 / (1 + math.exp(20))) * math.cos(theta_0)) - theta_0) / (math.pi / 2 - theta_0)
    published = torch.cos((T * ratio + s) / (1 + s) * math.pi / 2).square() / math.cos(theta_0) ** 2

    assert 2e-5 < 1 - ratio < 4e-5
    torch.testing.assert_close(sde.alpha(T).square(), published, rtol=1e-10, atol=1e-18)
    torch.testing.assert_close(sde.sigma(T).square(), 1 - published, rtol=1e-10, atol=1e-15)
    assert float(sde.logsnr(torch.ones((), dtype=torch.float64))) == pytest.approx(-20, abs=1e-9)


def test_edm_clock_makes_their_sampling_steps_uniform() -> None:
    ramp = torch.linspace(1, 0, 19, dtype=torch.float64)
    sigmas = (80 ** (1 / 7) + (1 - ramp) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    close(EDMSDE().sigma(ramp), sigmas, 1e-12)


# Sentences


def test_a_log_snr_alone_is_no_process() -> None:
    with pytest.raises(TypeError, match=r"got logsnr\. Write one whole pair .* alpha = sigmoid\(logsnr\)\^0\.5"):

        class Half(SDE):
            def logsnr(self, t: Tensor) -> Tensor:
                return 2 * torch.log((1 - t) / t)


def test_expand_reshapes_and_names_the_offending_shape() -> None:
    assert expand(torch.rand(4), torch.randn(4, 3, 8, 8)).shape == (4, 1, 1, 1)
    assert expand(torch.rand(4, dtype=torch.float64), torch.randn(4, 3)).dtype == torch.float32
    assert expand(torch.tensor(0.3), torch.randn(4, 3)).shape == ()
    with pytest.raises(ValueError, match=r"expected shape \(\) or \(4,\).*got \(4, 1\).*t\.flatten\(\)"):
        expand(torch.rand(4, 1), torch.randn(4, 3, 8, 8))
    with pytest.raises(ValueError, match=r"expected shape \(\) or \(4,\).*got \(3,\)"):
        expand(torch.rand(3), torch.randn(4, 3))


def test_an_sde_needs_a_whole_pair_of_formulas() -> None:
    with pytest.raises(TypeError, match=r"Half needs two formulas, alpha and sigma or f and g, got alpha, g"):

        class Half(SDE):
            def alpha(self, t: Tensor) -> Tensor:
                return t

            def g(self, t: Tensor) -> Tensor:
                return t


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: VPSDE(beta_min=20.0, beta_max=0.1),
            "0 < beta_min < beta_max <= 1000, got beta_min=20.0, beta_max=0.1",
        ),
        (lambda: SubVPSDE(beta_min=0.0), "SubVPSDE needs 0 < beta_min < beta_max"),
        (lambda: VESDE(sigma_min=0.0), "VESDE needs 0 < sigma_min < sigma_max"),
        (lambda: EDMSDE(sigma_max=math.inf), "EDMSDE needs 0 < sigma_min < sigma_max"),
        (lambda: EDMSDE(rho=0.0), "EDMSDE needs 0 < rho <= 1000, got rho=0.0"),
        (lambda: CosineSDE(s=1.5), "CosineSDE needs 0 < s < 1, got s=1.5"),
        (lambda: CosineSDE(logsnr_min=3.0), "CosineSDE needs -60 < logsnr_min < 0"),
        (lambda: VPSDE(t_min=0.0), "VPSDE needs 0 < t_min < 1, got t_min=0.0"),
        (
            lambda: DiscreteVPSDE([0.1, 1.5]),
            "strictly between 0 and 1, got 1.5; the last of several may be 1. To sample",
        ),
        (lambda: DiscreteVPSDE([0.1, 1.0, 0.5]), "strictly between 0 and 1, got 1.0; the last of several may be 1"),
        (lambda: DiscreteVPSDE([1.0]), "strictly between 0 and 1, got 1.0; the last of several may be 1"),
        (lambda: rescale_zero_terminal_snr([0.5]), "betas to be two or more numbers .* got the one value"),
        (lambda: rescale_zero_terminal_snr([0.5, 1.0]), "betas to be two or more numbers .* got a last one of 1"),
        (lambda: DiscreteVPSDE([]), "strictly between 0 and 1, got no values"),
        (lambda: DiscreteVPSDE([0.1, 0.2], t_min=2.0), "DiscreteVPSDE needs 0 < t_min < 1, got t_min=2.0"),
    ],
)
def test_wrong_arguments_are_named(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_coefficients_of_the_tables_are_floats_that_compare_and_hash() -> None:
    betas = golden("score_sde_coefficients_vp.npz")["discrete_betas"]
    assert DiscreteVPSDE(betas) == DiscreteVPSDE(tuple(betas.tolist()))
    assert hash(DiscreteVPSDE(betas)) == hash(DiscreteVPSDE(list(betas)))
