"""Conditional denoisers against posteriors and guided flows that are known in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    AnnealedLangevin,
    ClassifierGuided,
    Composed,
    CosineSDE,
    Denoiser,
    DPMSolverPP2M,
    EulerMaruyama,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Guided,
    Heun,
    Interval,
    NetworkDenoiser,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReconstructionGuided,
    ReverseDiffusion,
    ReverseSDE,
    Solver,
    StraightSDE,
    SubVPSDE,
    Velocity,
    log_prob,
    logsnr_grid,
)

SDES = [VPSDE(), SubVPSDE(), VESDE(sigma_max=20.0), EDMSDE(), CosineSDE()]
MEAN, STD, NOISE = 0.4, 0.8, 0.5  # x0 ~ N(MEAN, STD²), y = x0 + N(0, NOISE²)


def posterior(y: float) -> tuple[float, float]:
    """Mean and standard deviation of x0 given y, by Bayes' rule for two Gaussians."""
    variance = 1 / (1 / STD**2 + 1 / NOISE**2)
    return variance * (MEAN / STD**2 + y / NOISE**2), math.sqrt(variance)


class ExactPotential:
    """log p(y | x_t) of the Gaussian observation: y | x_t ~ N(E[x0 | x_t], Var[x0 | x_t] + NOISE²), per entry."""

    def __init__(self, sde: SDE, y: float) -> None:
        self.prior, self.y = GaussianDenoiser(sde, MEAN, STD), y

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        sde = self.prior.sde
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2) + NOISE**2
        variance = variance if variance.ndim == 0 else variance.reshape(-1, *[1] * (x.ndim - 1))
        return (-0.5 * (self.y - self.prior(x, t)).square() / variance).flatten(1).sum(1)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_exact_potential_gives_the_exact_posterior_denoiser(sde: SDE) -> None:
    guided = ClassifierGuided(GaussianDenoiser(sde, MEAN, STD), ExactPotential(sde, 1.3))
    exact = GaussianDenoiser(sde, *posterior(1.3))
    x = sde.prior_std * torch.randn(6, 2, 3, dtype=torch.float64)

    for t in (torch.tensor(0.9, dtype=torch.float64), torch.linspace(0.01, 1, 6, dtype=torch.float64)):
        torch.testing.assert_close(guided(x, t), exact(x, t), atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(guided.score(x, t), exact.score(x, t), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    "solver",
    [
        DDPM(steps=150, grid=logsnr_grid),
        DDIM(steps=150, grid=logsnr_grid),
        EulerMaruyama(steps=400, grid=logsnr_grid),
        ReverseDiffusion(steps=400, grid=logsnr_grid),
        PredictorCorrector(steps=200, grid=logsnr_grid, corrector=AnnealedLangevin()),
        Heun(steps=40),
        DPMSolverPP2M(steps=60),
        ProbabilityFlowODE(),
        ReverseSDE(),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0)], ids=lambda sde: type(sde).__name__)
def test_every_solver_samples_the_posterior(solver: Solver, sde: SDE) -> None:
    guided = ClassifierGuided(GaussianDenoiser(sde, MEAN, STD), ExactPotential(sde, 1.3))
    x = sde.prior_sample((4000, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    samples = solver(guided, x)

    mean, std = posterior(
        1.3
    )  # standard errors with 8,000 numbers: 0.005 and 0.003; the rest is step size and VE's prior
    assert samples.mean().item() == pytest.approx(mean, abs=0.04)
    assert samples.std().item() == pytest.approx(std, rel=0.06)


def test_likelihood_differentiates_through_the_guidance() -> None:
    sde = VPSDE()
    guided = ClassifierGuided(GaussianDenoiser(sde, MEAN, STD), ExactPotential(sde, 1.3))
    x = torch.randn(8, 2, dtype=torch.float64)

    ours = log_prob(guided, x, divergence="exact", rtol=1e-7, atol=1e-7)
    exact = log_prob(GaussianDenoiser(sde, *posterior(1.3)), x, divergence="exact", rtol=1e-7, atol=1e-7)

    torch.testing.assert_close(ours.log_prob, exact.log_prob, atol=1e-5, rtol=0)


def test_guidance_scale_is_linear_between_reference_and_denoiser() -> None:
    sde, x, t = VPSDE(), torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    good, bad = GaussianDenoiser(sde, 1.0, 0.5), GaussianDenoiser(sde, 0.0, 1.0)

    torch.testing.assert_close(Guided(good, bad, 1.0)(x, t), good(x, t))
    torch.testing.assert_close(Guided(good, bad, 0.0)(x, t), bad(x, t))
    torch.testing.assert_close(Guided(good, bad, 2.5)(x, t), 2.5 * good(x, t) - 1.5 * bad(x, t))
    torch.testing.assert_close(Guided(good, bad, 2.5).score(x, t), 2.5 * good.score(x, t) - 1.5 * bad.score(x, t))
    torch.testing.assert_close(Composed(bad, [good], [2.5])(x, t), Guided(good, bad, 2.5)(x, t))


def test_guidance_interval_leaves_other_noise_levels_alone() -> None:
    sde, x = VESDE(sigma_max=20.0), torch.randn(3, 2, dtype=torch.float64)
    good, bad = GaussianDenoiser(sde, 1.0, 0.5), GaussianDenoiser(sde, 0.0, 1.0)
    guided, always = Guided(good, bad, 3.0, interval=(0.5, 2.0)), Guided(good, bad, 3.0)

    level = torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64)
    t = sde.time(-2 * level.log())

    expected = torch.stack([good(x, t)[0], always(x, t)[1], good(x, t)[2]])
    torch.testing.assert_close(guided(x, t), expected)


def test_reconstruction_guidance_is_the_likelihood_at_the_mean() -> None:
    """For a Gaussian prior dx̂0/dx is a known constant k, so the gradient is k (y − x̂0)/NOISE²."""
    sde, y = VPSDE(), 1.3
    prior, x = GaussianDenoiser(sde, MEAN, STD), torch.randn(5, 3, dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    guided = ReconstructionGuided(
        prior, lambda x0: (-0.5 * ((y - x0) / NOISE).square()).sum(1), scale=0.7, plug_in=True
    )

    k = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    expected = prior(x, t) + 0.7 * sigma**2 / alpha * k * (y - prior(x, t)) / NOISE**2
    torch.testing.assert_close(guided(x, t), expected)


def test_composition_multiplies_the_densities_of_gaussians_at_every_level() -> None:
    sde, x, t = VPSDE(), torch.randn(4, 2, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    base, parts = GaussianDenoiser(sde, 0.0, 1.0), [GaussianDenoiser(sde, 1.0, 0.5), GaussianDenoiser(sde, -1.0, 0.7)]

    score = Composed(base, parts, [0.6, 0.9]).score(x, t)

    expected = base.score(x, t) + 0.6 * (parts[0].score(x, t) - base.score(x, t))
    expected = expected + 0.9 * (parts[1].score(x, t) - base.score(x, t))
    torch.testing.assert_close(score, expected)


class Labelled(Denoiser):
    """A Gaussian whose mean is the label; no label is the mean 0."""

    def __init__(self) -> None:
        super().__init__()
        self.sde = VPSDE()

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        label = cond.get("label")
        shift = torch.zeros(len(x)) if label is None else label
        return GaussianDenoiser(self.sde, 0.0, 1.0)(x, t) + shift.to(x.dtype)[:, None]


def test_bound_conditions_stay_and_free_ones_reach_the_model() -> None:
    model, x, t = Labelled(), torch.randn(3, 2), torch.tensor(0.5)
    label = torch.tensor([1, 2, 3])

    torch.testing.assert_close(model.given(label=label)(x, t), model(x, t, label=label))
    torch.testing.assert_close(model.given(label=None)(x, t, label=label), model(x, t))
    guided = Guided(model, model.given(label=None), 2.0)
    torch.testing.assert_close(guided(x, t, label=label), 2 * model(x, t, label=label) - model(x, t))


def test_guidance_leaves_no_graph_when_sampling_and_none_of_the_inputs_changed() -> None:
    sde = VPSDE()
    guided = ClassifierGuided(GaussianDenoiser(sde, MEAN, STD), ExactPotential(sde, 1.3))
    x = torch.randn(4, 2)
    with torch.no_grad():
        assert not guided(x, torch.tensor(0.5)).requires_grad
    assert not x.requires_grad


def test_bad_arguments_are_named() -> None:
    vp, ve = GaussianDenoiser(VPSDE()), GaussianDenoiser(VESDE())
    with pytest.raises(ValueError, match="Guided combines denoisers at equal"):
        Guided(vp, ve, 2.0)
    with pytest.raises(ValueError, match="interval"):
        Guided(vp, vp, 2.0, interval=(2.0, 1.0))
    with pytest.raises(ValueError, match="one weight per part, got 1 parts and 2 weights"):
        Composed(vp, [vp], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got \(4, 2\)"):
        ClassifierGuided(vp, lambda x, t: -x)(torch.randn(4, 2), torch.tensor(0.5))


def test_classifier_guidance_on_a_mixture_gives_the_component() -> None:
    """log p(component | x_t) of a mixture, added to the mixture's score, is the component's score."""
    sde = VPSDE()
    weights, means, covs = torch.tensor([0.3, 0.7]), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.full((2, 2), 0.09)
    mixture = GaussianMixtureDenoiser(sde, weights, means, covs)
    component = GaussianMixtureDenoiser(sde, weights[:1], means[:1], covs[:1])

    guided = ClassifierGuided(mixture, lambda x, t: component.log_prob(x, t) - mixture.log_prob(x, t))

    x, t = torch.randn(7, 2, dtype=torch.float64), torch.linspace(0.05, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(guided(x, t), component(x, t), atol=1e-8, rtol=1e-8)


class TestNoSignal:
    """α = 0 at t = 1: σ²/α times a gradient that vanishes there has a limit, which is that of nearby levels."""

    sde = StraightSDE()

    def mixture(self) -> tuple[GaussianMixtureDenoiser, ClassifierGuided, GaussianDenoiser]:
        """Data of three components, what log p(k = 1 | x_t) makes of them, and the component."""
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        means, stds = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        stds = 0.2 + 0.3 * stds.abs()
        prior = GaussianMixtureDenoiser(self.sde, weights, means, stds.square())
        part = GaussianDenoiser(self.sde, means[1], stds[1])
        return prior, ClassifierGuided(prior, lambda x, t: part.log_prob(x, t) - prior.log_prob(x, t)), part

    def test_an_exact_classifier_gives_the_exact_posterior(self) -> None:
        _, guided, part = self.mixture()
        x = torch.randn(6, 2, dtype=torch.float64)
        t = torch.tensor([1.0, 1 - 1e-12, 1 - 1e-4, 0.998, 0.5, 1e-3], dtype=torch.float64)
        for method in ("forward", "v", "velocity"):
            together, exact = getattr(guided, method)(x, t), getattr(part, method)(x, t)
            torch.testing.assert_close(together[:3], exact[:3], rtol=0, atol=1e-2)
            torch.testing.assert_close(together[3:], exact[3:], rtol=1e-9, atol=1e-9)
            alone = torch.cat([getattr(guided, method)(x[row : row + 1], t[row]) for row in range(6)])
            torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
        levels = Interval.between(self.sde, torch.tensor(1.0), torch.tensor(0.5))  # as in a run: plain numbers
        torch.testing.assert_close(guided.x0(x, levels.t), part.x0(x, levels.t), rtol=0, atol=1e-2)
        assert guided(x.float(), torch.ones(())).dtype == torch.float32

    def test_the_flow_from_no_signal_ends_in_the_component(self) -> None:
        _, guided, part = self.mixture()
        x = torch.randn(5, 2, dtype=torch.float64)
        solver = ProbabilityFlowODE(rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(solver(guided, x), solver(part, x), rtol=0, atol=2e-3)

    def test_a_measurement_of_the_reconstruction(self) -> None:
        """log N(y; x̂0, NOISE²): x̂0 + α Cov ∇(...) σ²/α → E[x0] + Cov[x0] (y − E[x0])/NOISE²."""
        prior = GaussianDenoiser(self.sde, MEAN, STD)
        guided = ReconstructionGuided(prior, lambda x0: -0.5 * ((x0 - 1.3) / NOISE).square().sum(1), plug_in=True)
        x, expected = torch.randn(4, 2, dtype=torch.float64), MEAN + STD**2 * (1.3 - MEAN) / NOISE**2
        for t in (torch.ones(()), torch.tensor([1.0, 1.0, 1 - 1e-9, 1 - 1e-5], dtype=torch.float64)):
            torch.testing.assert_close(guided(x, t), torch.full_like(x, expected), rtol=0, atol=6e-3)

    @pytest.mark.parametrize("interval", [None, (0.5, math.inf), (0.0, 2.0)])
    def test_combinations_are_linear_in_v(self, interval: tuple[float, float] | None) -> None:
        prior, _, part = self.mixture()
        guided = Guided(part, prior, 3.0, interval)
        composed = Composed(prior, [part, part], [0.7, -0.2])
        x = torch.randn(3, 2, dtype=torch.float64)
        t = torch.tensor([1.0, 0.4, 0.1], dtype=torch.float64)
        alpha, sigma = (1 - t)[:, None], t[:, None]
        for denoiser in (guided, composed):
            expected = (alpha * x - (alpha**2 + sigma**2) * denoiser(x, t)) / sigma
            torch.testing.assert_close(denoiser.v(x, t), expected, rtol=1e-9, atol=1e-9)
        level = Interval.between(self.sde, torch.tensor(1.0), torch.tensor(0.5)).t
        scale = 1.0 if interval == (0.0, 2.0) else 3.0  # σ/α is infinite
        expected = prior(x, t[0]) + scale * (part(x, t[0]) - prior(x, t[0]))
        torch.testing.assert_close(guided.x0(x, level), expected)
        torch.testing.assert_close(guided(x, torch.ones(())), expected)

    def test_a_networks_own_velocity_keeps_its_digits(self) -> None:
        """From x̂0, v has an error of 1e-7/σ near the data."""
        net = NetworkDenoiser(MLP(shape=(2,)), self.sde, Velocity())
        guided = Guided(net, net, 2.0)
        x, t = torch.randn(8, 2), torch.tensor(1e-5)
        torch.testing.assert_close(guided.v(x, t), net.v(x, t), rtol=1e-5, atol=1e-6)
        shift = ClassifierGuided(net, lambda x, t: 0.0 * x.sum(1))
        torch.testing.assert_close(shift.v(x, t), net.v(x, t), rtol=1e-5, atol=1e-6)
