"""Several observations of one θ: exact for Gaussians, one network call, and what the factorised scores do instead."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    VESDE,
    VPSDE,
    ExponentialAdams,
    GaussianDenoiser,
    PredictorCorrector,
    ProbabilityFlowODE,
    StraightSDE,
)
from scoresde.denoiser import Denoiser
from scoresde.inverse import FactorisedPosterior, ProductPosterior
from scoresde.inverse.observations import Batched
from scoresde.likelihood import log_prob
from scoresde.sde import SDE
from scoresde.sde.levels import Level

NOISE = 0.5  # variance of the noise of `Conditional`


def random_cov(d: int) -> Tensor:
    factor = torch.randn(d, d, dtype=torch.float64)
    return factor @ factor.T / d + 0.2 * torch.eye(d, dtype=torch.float64)


class Problem:
    """θ ~ N(m, P), x_j ~ N(θ, S_j): posteriors of any of the observations by adding precisions."""

    def __init__(self, n: int, d: int) -> None:
        self.mean, self.prior = torch.randn(d).double(), random_cov(d)
        self.noises, self.x = [random_cov(d) for _ in range(n)], torch.randn(n, d).double()

    def posterior(self, which: list[int]) -> tuple[Tensor, Tensor]:
        precision = torch.linalg.inv(self.prior)
        pull = precision @ self.mean
        for j in which:
            more = torch.linalg.inv(self.noises[j])
            precision, pull = precision + more, pull + more @ self.x[j]
        cov = torch.linalg.inv(precision)
        return cov @ pull, cov

    def law(self, sde: SDE, which: list[int]) -> GaussianDenoiser:
        mean, cov = self.posterior(which)
        return GaussianDenoiser(sde, mean, cov=0.5 * (cov + cov.T))


class Conditional(Denoiser):
    """The exact conditional denoiser of θ ~ N(0, I), x ~ N(θ, NOISE I), as a network would be: NaN is no condition."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.calls = sde, 0

    def x0(self, x: Tensor, level: Level, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        given = torch.full_like(x, math.nan) if condition is None else condition.to(x)
        absent = given.isnan()
        mean = torch.where(absent, 0, given / (1 + NOISE))
        var = torch.where(absent, 1.0, torch.full_like(x, NOISE / (1 + NOISE)))
        return mean + level.alpha * var / (level.alpha**2 * var + level.sigma**2) * (x - level.alpha * mean)

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self


def product(problem: Problem, sde: SDE) -> ProductPosterior:
    n = len(problem.x)
    covs = torch.stack([problem.posterior([j])[1] for j in range(n)])
    parts = [problem.law(sde, [j]) for j in range(n)]
    return ProductPosterior(problem.law(sde, []), parts, problem.prior, covs)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
def test_the_product_of_gaussians_is_the_exact_posterior(sde: SDE) -> None:
    problem = Problem(5, 3)
    found, exact = product(problem, sde), problem.law(sde, list(range(5)))
    x = torch.randn(7, 3).double()
    for t in (torch.tensor(1e-3), torch.tensor(1.0), torch.rand(7)):
        torch.testing.assert_close(found(x, t), exact(x, t), rtol=1e-9, atol=1e-9)
    start = x[:2] * sde.sigma(torch.tensor(1.0).double())
    ode = ProbabilityFlowODE(rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ode(found, start), ode(exact, start), rtol=1e-6, atol=1e-6)


def test_log_prob_is_that_of_the_exact_posterior() -> None:
    problem = Problem(4, 2)
    found, (mean, cov) = product(problem, VPSDE()), problem.posterior(list(range(4)))
    theta = mean + 0.3 * torch.randn(5, 2).double()
    exact = torch.distributions.MultivariateNormal(mean, cov).log_prob(theta)
    density = log_prob(found, theta, divergence="exact", rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(density.log_prob, exact, rtol=1e-3, atol=1e-3)


def test_one_conditional_model_is_asked_once_for_all_observations() -> None:
    model, x_obs = Conditional(VPSDE()), torch.randn(20, 2).double()
    shrunk = NOISE / (1 + NOISE)
    batched = Batched(model, x_obs)
    eye = torch.eye(2).double()
    found = ProductPosterior(batched, batched.parts, eye, shrunk * eye)
    apart = ProductPosterior(model.given(condition=None), batched.parts, eye, shrunk * eye)
    var = 1 / (1 + 20 / NOISE)
    exact = GaussianDenoiser(VPSDE(), var / NOISE * x_obs.sum(0), var**0.5)
    x = torch.randn(6, 2).double()
    for t in (torch.tensor(0.4), torch.rand(6)):
        model.calls = 0
        torch.testing.assert_close(found(x, t), exact(x, t), rtol=1e-8, atol=1e-8)
        assert model.calls == 1
        torch.testing.assert_close(apart(x, t), exact(x, t), rtol=1e-8, atol=1e-8)
    chosen = found.select(torch.tensor([1, 4]), 6), apart.select(torch.tensor([1, 4]), 6)
    for part in chosen:
        assert part is not None
        torch.testing.assert_close(part(x[[1, 4]], torch.tensor(0.4)), exact(x[[1, 4]], torch.tensor(0.4)))


def test_covariances_from_samples() -> None:
    """Those of 4,000 draws are right to a few percent, and so is the posterior of 8 observations."""
    model, x_obs = Conditional(VPSDE()), 0.7 + 0.7 * torch.randn(8, 2).double()
    generator = torch.Generator().manual_seed(0)
    found = ProductPosterior.of(model, x_obs.float(), (2,), samples=4000, generator=generator)
    var = 1 / (1 + 8 / NOISE)
    theta = ExponentialAdams(steps=15)(found, torch.randn(4000, 2))
    torch.testing.assert_close(theta.mean(0).double(), var / NOISE * x_obs.sum(0), atol=0.05, rtol=0)
    torch.testing.assert_close(theta.std(0), torch.full((2,), var**0.5), atol=0, rtol=0.07)


def test_a_posterior_wider_than_its_prior_counts_as_the_prior() -> None:
    """Of many observations with one that is too wide, Λ stays positive; along that axis it adds nothing."""
    sde, eye = VPSDE(), torch.eye(2).double()
    wide = torch.diag(torch.tensor([4.0, 0.5])).double()
    prior, part = GaussianDenoiser(sde, torch.zeros(2), cov=eye), GaussianDenoiser(sde, torch.zeros(2), cov=wide)
    found = ProductPosterior(prior, [part] * 9, eye, wide)
    torch.testing.assert_close(found.variances.sort().values, torch.tensor([1.0, 10.0]).double())
    assert found(torch.randn(3, 2).double(), torch.tensor(0.9)).isfinite().all()


def factorised(n: int, sde: SDE) -> tuple[FactorisedPosterior, Tensor]:
    x_obs = torch.randn(n, 1).double() + 1
    return FactorisedPosterior.of(Conditional(sde), x_obs), x_obs


def coefficients(sde: SDE, x_obs: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """P and h of the factorised score h − P x, from the diffused Gaussians."""
    alpha, sigma, n = sde.alpha(t), sde.sigma(t), len(x_obs)
    one = 1 / (alpha**2 * NOISE / (1 + NOISE) + sigma**2)
    prior = (1 - n) * (1 - t) / (alpha**2 + sigma**2)
    return n * one + prior, one * alpha * x_obs.sum() / (1 + NOISE)


def test_factorised_scores_are_geffner_s() -> None:
    sde = VPSDE()
    found, x_obs = factorised(5, sde)
    x = torch.randn(4, 1).double()
    for t in (0.0001, 0.3, 1.0):
        t = torch.tensor(t).double()
        precision, pull = coefficients(sde, x_obs, t)
        torch.testing.assert_close(found.score(x, t), pull - precision * x, rtol=1e-8, atol=1e-8)

    def score(theta: Tensor) -> Tensor:
        return -theta

    clean = FactorisedPosterior(score, Batched(Conditional(sde), x_obs).parts)
    t = torch.tensor(0.3).double()
    prior = -4 * (1 - 0.3)
    noised, published = found.score(x, t), clean.score(x, t)
    norm = sde.alpha(t) ** 2 + sde.sigma(t) ** 2
    torch.testing.assert_close(published - noised, prior * (-x + x / norm), rtol=1e-6, atol=1e-8)


def test_the_flow_of_factorised_scores_misses_the_posterior_as_it_must() -> None:
    """dx/dt = f x − ½ g² (h − P x) is linear: its map from t = 1, by RK4, is not that of the posterior."""
    sde = VPSDE()
    found, x_obs = factorised(5, sde)

    def rate(t: Tensor, y: Tensor) -> Tensor:
        precision, pull = coefficients(sde, x_obs, t)
        half = 0.5 * sde.g(t) ** 2
        return (sde.f(t) + half * precision) * y - half * pull * torch.tensor([0.0, 1.0]).double()

    y, end, steps = torch.tensor([1.0, 0.0]).double(), 0.02, 300  # slope and intercept
    h = (end - 1) / steps
    for k in range(steps):
        t = torch.tensor(1 + k * h).double()
        a = rate(t, y)
        b = rate(t + h / 2, y + h / 2 * a)
        c = rate(t + h / 2, y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + rate(t + h, y + h * c))
    start = torch.tensor([[0.0], [1.0]]).double()
    ode = ProbabilityFlowODE(rtol=1e-7, atol=1e-7, t_end=end, denoise=False)
    landed = ode(found, start)[:, 0]
    torch.testing.assert_close(landed, torch.stack([y[1], y.sum()]), rtol=1e-4, atol=1e-5)
    std = (1 / (1 + 5 / NOISE)) ** 0.5
    assert float(y[0]) / std < 0.5


def test_langevin_dynamics_on_factorised_scores_reach_the_posterior() -> None:
    found, x_obs = factorised(5, VPSDE())
    var = 1 / (1 + 5 / NOISE)
    theta = PredictorCorrector(steps=100)(found, torch.randn(1000, 1).double())
    assert theta.mean().item() == pytest.approx(float(var / NOISE * x_obs.sum()), abs=0.15 * var**0.5)
    assert theta.std().item() == pytest.approx(var**0.5, rel=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, g: ProductPosterior(p, [], torch.eye(2), torch.eye(2)), "one denoiser or more"),
        (lambda p, g: FactorisedPosterior(p, []), "FactorisedPosterior needs one denoiser or more"),
        (lambda p, g: FactorisedPosterior(p, [p, GaussianDenoiser(VESDE())]), "need the same SDE"),
        (lambda p, g: ProductPosterior(p, [p], torch.eye(2), torch.zeros(3, 2, 2)), "covs to be positive definite"),
        (lambda p, g: ProductPosterior(p, [p], torch.eye(2), torch.eye(2).expand(3, 2, 2)), "covs of shape"),
        (lambda p, g: ProductPosterior(p, [p], torch.ones(2, 3), torch.eye(2)), "prior_cov to be symmetric"),
        (lambda p, g: Batched(g, torch.zeros(3)), r"of shape \(n, C\), one row each, got \(3,\)"),
        (lambda p, g: Batched(g, torch.tensor([[math.nan]])), "need to be finite"),
        (lambda p, g: ProductPosterior.of(g, torch.zeros(1, 2), (2,), samples=3), "least <= samples"),
        (lambda p, g: FactorisedPosterior.of(g, torch.zeros(1, 2))(torch.zeros(1, 2), 0.5, condition=torch.zeros(1, 2)),
         "observations are bound already, .* got condition"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call: Any, message: str) -> None:
    prior = GaussianDenoiser(VPSDE(), torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=message) as error:
        call(prior, Conditional(VPSDE()))
    assert "\n" not in str(error.value)
