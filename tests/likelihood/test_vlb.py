"""The bound of a discrete chain against Improved DDPM's formulas, the chain's own steps, and unbiased sub-sampling."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from closed_forms import SDES, mixture, name
from torch import Tensor

from scoresde import (
    DDPM,
    EDM,
    MLP,
    SDE,
    VPSDE,
    Denoiser,
    DiscreteVPSDE,
    GaussianDenoiser,
    Interval,
    NetworkDenoiser,
    cosine_betas,
    expand,
    linear_betas,
    logsnr_grid,
    subsequence_grid,
)
from scoresde.likelihood import DiscretizedGaussian
from scoresde.likelihood.chain import (
    chain_term,
    chain_times,
    decoder_nll,
    posterior_kl,
    predict,
    prior_kl,
    reconstruction,
    transition_kl,
)
from scoresde.likelihood.vlb import vlb

VARIANCES = ["small", "large", "learned", "optimal", "full"]
TABLES = {"linear": linear_betas(), "cosine": cosine_betas()}


class Crooked(Denoiser):
    """A nonlinear network of no particular law, with everything that a variance may ask for."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        level = expand(self.sde.sigma(t), x)
        return torch.tanh(x) * (1 - 0.5 * level) + 0.1 * torch.cos(x.flip(-1) + level)

    def mean_and_range(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self(x, t), 0.5 + 0.7 * torch.sin(3 * x)

    def covariance_diag(self, x: Tensor, t: Tensor) -> Tensor:
        level = expand(self.sde.sigma(t), x)
        return 0.3 * level.square() * (1.2 + torch.sin(x))

    def covariance(self, x: Tensor, t: Tensor) -> Tensor:
        diagonal = self.covariance_diag(x, t).flatten(1)
        return torch.diag_embed(0.5 * diagonal) + 0.5 * diagonal[:, :, None].sqrt() * diagonal[:, None].sqrt()


class Published:
    """Improved DDPM's quantities, 0-based labels, from the table of β in float64."""

    def __init__(self, betas: tuple[float, ...]) -> None:
        self.betas = torch.tensor(betas, dtype=torch.float64)
        self.bar = torch.cumprod(1 - self.betas, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.bar[:-1]])
        self.posterior_variance = self.betas * (1 - previous) / (1 - self.bar)
        self.posterior_log_variance_clipped = torch.cat(
            [self.posterior_variance[1:2], self.posterior_variance[1:]]
        ).log()
        self.coef1 = self.betas * previous.sqrt() / (1 - self.bar)
        self.coef2 = (1 - previous) * (1 - self.betas).sqrt() / (1 - self.bar)

    def log_variance(self, label: int, variance: str, share: Tensor | None) -> Tensor:
        small = self.posterior_log_variance_clipped[label]
        if variance == "small":
            return small
        if variance == "large":
            return torch.cat([self.posterior_variance[1:2], self.betas[1:]]).log()[label]
        return share * self.betas[label].log() + (1 - share) * small

    def term(self, label: int, x0: Tensor, x_t: Tensor, x0_hat: Tensor, variance: str, share: Tensor | None) -> Tensor:
        """Nats of label 0: −log p(x0 | x_1) by the discretised Gaussian; else the KL."""
        log_variance = self.log_variance(label, variance, share).expand_as(x0)
        mean = self.coef1[label] * x0_hat + self.coef2[label] * x_t
        if label == 0:
            decoder = DiscretizedGaussian(levels=256, value_range=(-256 / 255, 256 / 255), cdf="tanh")
            return -decoder(x0, mean, (0.5 * log_variance).exp())
        true = self.coef1[label] * x0 + self.coef2[label] * x_t
        true_log = self.posterior_log_variance_clipped[label]
        kl = -1 + log_variance - true_log + (true_log - log_variance).exp() + (true - mean) ** 2 * (-log_variance).exp()
        return 0.5 * kl.flatten(1).sum(1)

    def prior(self, x0: Tensor) -> Tensor:
        mean, variance = self.bar[-1].sqrt() * x0, 1 - self.bar[-1]
        return 0.5 * (-1 - variance.log() + variance + mean.square()).flatten(1).sum(1)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("table", TABLES)
def test_every_term_is_improved_ddpms(table: str, variance: str) -> None:
    sde, published = DiscreteVPSDE(TABLES[table]), Published(TABLES[table])
    denoiser, times = Crooked(sde), chain_times(sde, 1000)
    torch.testing.assert_close(times, torch.arange(1000, 0, -1, dtype=torch.float64) / 1000, rtol=0, atol=1e-15)
    torch.testing.assert_close(sde.alpha(times.flip(0)).square(), published.bar, rtol=1e-11, atol=0)

    decoder = DiscretizedGaussian(value_range=(-256 / 255, 256 / 255), cdf="tanh")
    x0 = 2 * torch.randint(0, 256, (3, 2, 2)).double() / 255 - 1
    for label in (0, 1, 2, 10, 399, 998, 999):
        noise = torch.randn_like(x0)
        x_t = published.bar[label].sqrt() * x0 + (1 - published.bar[label]).sqrt() * noise
        t = times[999 - label].expand(3)
        x0_hat, share = denoiser.mean_and_range(x_t, t)
        expected = published.term(label, x0, x_t, x0_hat, variance, share)
        k = torch.full((3,), label + 1)
        prediction = predict(denoiser, x_t, t, variance)
        term = chain_term(sde, x0, prediction, k, times, variance=variance, decoder=decoder)
        torch.testing.assert_close(term, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prior_kl(sde, x0, times[0]), published.prior(x0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_bound_is_the_sum_of_the_published_terms(variance: str) -> None:
    """The same noises, in the order in which the bound draws them."""
    betas = linear_betas(40, 1e-3, 0.3)
    sde, published = DiscreteVPSDE(betas), Published(betas)
    denoiser = Crooked(sde)
    decoder = DiscretizedGaussian(value_range=(-256 / 255, 256 / 255), cdf="tanh")
    x0 = 2 * torch.randint(0, 256, (3, 5)).double() / 255 - 1
    bound = vlb(denoiser, x0, steps=40, variance=variance, decoder=decoder, generator=torch.Generator().manual_seed(7))

    generator, expected = torch.Generator().manual_seed(7), []
    for label in range(39, -1, -1):
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        x_t = published.bar[label].sqrt() * x0 + (1 - published.bar[label]).sqrt() * noise
        x0_hat, share = denoiser.mean_and_range(x_t, torch.tensor((label + 1) / 40, dtype=torch.float64))
        expected.insert(0, published.term(label, x0, x_t, x0_hat, variance, share))
    torch.testing.assert_close(bound.terms["reconstruction"], expected[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bound.terms["transitions"], torch.stack(expected[1:], 1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bound.terms["prior"], published.prior(x0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(-bound.log_prob, sum(expected, published.prior(x0)), rtol=1e-8, atol=1e-8)
    assert bound.nfe.tolist() == [40] * 3 and bound.std_error.isnan().all()


@pytest.mark.parametrize("variance", ["small", "large", "learned", "optimal"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_transition_is_the_gaussian_that_ddpm_samples(sde: SDE, variance: str) -> None:
    denoiser, (t, s) = Crooked(sde), torch.tensor([0.6, 0.45], dtype=torch.float64)
    x0, x_t = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    solver = DDPM(variance=variance)
    interval = Interval.between(denoiser, t, s, x_t)
    mean = solver.step(denoiser, x_t, interval, lambda t, s: torch.zeros_like(x_t), None)[0]
    std = solver.step(denoiser, x_t, interval, lambda t, s: torch.ones_like(x_t), None)[0] - mean

    # q(x_s | x_t, x0) by Bayes' rule
    forward = sde.transition(s, t)
    precision = (forward.scale / forward.std).square() + 1 / sde.sigma(s).square()
    true = (forward.scale / forward.std.square() * x_t + sde.alpha(s) / sde.sigma(s).square() * x0) / precision
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(true, precision.rsqrt().expand_as(true)), normal(mean, std))
    for times in ((t, s), (t.expand(4), s.expand(4))):
        kl = transition_kl(denoiser, x0, x_t, *times, variance=variance)
        torch.testing.assert_close(kl, expected.sum(1), rtol=1e-8, atol=1e-8)


def test_full_covariance_is_the_kl_of_multivariate_gaussians() -> None:
    sde, (t, s) = VPSDE(), torch.tensor([0.6, 0.45], dtype=torch.float64)
    denoiser, x0, x_t = Crooked(sde), *torch.randn(2, 4, 1, 3, dtype=torch.float64)
    shrink = -torch.expm1(sde.logsnr(t) - sde.logsnr(s))
    small, gain, eye = sde.sigma(s).square() * shrink, sde.alpha(s) * shrink, torch.eye(3, dtype=torch.float64)
    covariance = denoiser.covariance(x_t, t)
    gaussian = torch.distributions.MultivariateNormal
    true = gaussian((gain * x0).flatten(1), small * eye)
    model = gaussian((gain * denoiser(x_t, t)).flatten(1), small * eye + gain**2 * covariance)
    expected = torch.distributions.kl_divergence(true, model)
    for times in ((t, s), (t.expand(4), s.expand(4))):
        kl = transition_kl(denoiser, x0, x_t, *times, variance="full")
        torch.testing.assert_close(kl, expected, rtol=1e-9, atol=1e-9)
    decoded = gaussian(denoiser(x_t, t).flatten(1), covariance).log_prob(x0.flatten(1))
    nll = reconstruction(denoiser, x0, x_t, t, before=s, variance="full")
    torch.testing.assert_close(-nll, decoded, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "variance, choice, expected",
    [
        ("small", None, "small"),
        ("large", None, "small"),
        ("optimal", None, "covariance"),
        ("optimal", "posterior", "table"),
        ("learned", "posterior", "table"),
        ("small", 0.04, "number"),
    ],
)
def test_decoder_variance(variance: str, choice: float | str | None, expected: str) -> None:
    sde = DiscreteVPSDE(linear_betas())
    denoiser, (t, before) = Crooked(sde), torch.tensor([0.001, 0.021], dtype=torch.float64)
    seen = []

    def decoder(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        seen.append(std)
        return x0.sum(1)

    x0, x_t = torch.randn(2, 4, 3, dtype=torch.float64)
    reconstruction(denoiser, x0, x_t, t, before=before, variance=variance, decoder=decoder, decoder_variance=choice)
    bar = torch.cumprod(1 - torch.tensor(linear_betas(), dtype=torch.float64), 0)
    variances = {
        "small": (1 - bar[20] / bar[0]) * (1 - bar[0]) / (1 - bar[20]),  # of the sub-sequence 21 → 1
        "table": (1 - bar[1] / bar[0]) * (1 - bar[0]) / (1 - bar[1]),
        "covariance": denoiser.covariance_diag(x_t, t),
        "number": torch.tensor(0.04, dtype=torch.float64),
    }
    torch.testing.assert_close(seen[0].square(), variances[expected], rtol=1e-9, atol=0)


def test_a_bound_from_a_few_transitions_is_unbiased_and_its_errors_cover() -> None:
    denoiser, x = mixture(VPSDE()), mixture(VPSDE()).sample(1, generator=torch.Generator().manual_seed(3))
    options = {"steps": 33, "grid": logsnr_grid, "variance": "optimal"}
    x = x.expand(4000, 2)
    every = vlb(denoiser, x, **options, samples=6)
    truth, precision = every.log_prob.mean(), every.log_prob.std() / math.sqrt(4000)
    assert every.nfe[0] == 6 * 33
    low, high = every.interval()
    assert float(every.std_error.square().mean().sqrt()) == pytest.approx(float(every.log_prob.std()), rel=0.05)
    assert 0.93 < ((low < truth) & (truth < high)).double().mean() < 0.975

    share = torch.linspace(1, 3, 32)
    for probabilities in (None, share):
        some = vlb(denoiser, x, **options, draws=8, samples=4, probabilities=probabilities)
        error = math.hypot(some.log_prob.std() / math.sqrt(4000), precision)
        assert abs(some.log_prob.mean() - truth) < 4 * error
        assert float(some.std_error.square().mean().sqrt()) == pytest.approx(float(some.log_prob.std()), rel=0.06)
        assert some.nfe[0] == 4 * 9
        terms, each = some.terms["transitions"], every.terms["transitions"]
        error = torch.hypot(terms.std(0), each.std(0)) / math.sqrt(4000)
        assert ((terms.mean(0) - each.mean(0)).abs() < 4.5 * error).all()
        total = -(some.terms["prior"] + terms.sum(1) + some.terms["reconstruction"])
        torch.testing.assert_close(some.log_prob, total)


def test_draws_cover_the_chain_evenly() -> None:
    """As many draws as transitions: each transition once, so that only the noises differ from the whole bound."""
    asked = []

    class Asked(Crooked):
        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            asked.append(t.expand(len(x)))
            return super().forward(x, t)

    vlb(Asked(VPSDE()), torch.randn(5, 2, dtype=torch.float64), steps=13, draws=12)
    times = chain_times(VPSDE(), 13)
    torch.testing.assert_close(torch.stack(asked), times[:, None].expand(13, 5))


def test_terms_are_differentiable_and_the_mean_can_be_detached() -> None:
    sde, (t, s) = VPSDE(), torch.tensor([0.5, 0.4], dtype=torch.float64)
    scale = torch.tensor([0.9, 0.6], dtype=torch.float64, requires_grad=True)
    x0, x_t = torch.randn(2, 4, 3, dtype=torch.float64)

    class Scaled(Crooked):
        def mean_and_range(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return scale[0] * self(x, t), scale[1] * torch.sin(3 * x)

    for detach in (False, True):
        prediction = predict(Scaled(sde), x_t, t, "learned")
        prediction = prediction.detached_mean() if detach else prediction
        for value in (
            posterior_kl(sde, x0, prediction, t, s, "learned"),
            decoder_nll(sde, x0, prediction, s, t, "learned"),
        ):
            (gradient,) = torch.autograd.grad(value.sum(), scale, retain_graph=True)
            assert (gradient[0] == 0) == detach and gradient[1] != 0


def test_one_call_serves_a_batch_of_different_states() -> None:
    sde = DiscreteVPSDE(linear_betas(10, 1e-3, 0.3))
    denoiser, times, k = Crooked(sde), chain_times(sde, 10), torch.tensor([1, 7, 1, 10, 2])
    x0, x_t = torch.randn(2, 5, 3, dtype=torch.float64)
    for variance in VARIANCES:
        prediction = predict(denoiser, x_t, times[-k], variance)
        together = chain_term(sde, x0, prediction, k, times, variance=variance)
        for row, number in enumerate(k.tolist()):
            one = slice(row, row + 1)
            options = {"variance": variance}
            if number == 1:
                alone = reconstruction(denoiser, x0[one], x_t[one], times[-1], before=times[-2], **options)
            else:
                alone = transition_kl(denoiser, x0[one], x_t[one], times[-number], times[-number + 1], **options)
            torch.testing.assert_close(together[one], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spacing", ["even", "even_1", "uniform"])
def test_sub_sequences_have_as_many_states_as_steps(spacing: str) -> None:
    sde = DiscreteVPSDE(linear_betas())
    grid = partial(subsequence_grid, length=1000, spacing=spacing)
    times = chain_times(sde, 25, grid)
    torch.testing.assert_close(times, grid(sde, 25, 0.0)[:-1], rtol=0, atol=1e-15)
    assert len(times) == 25 and float(times[-1]) == pytest.approx(1 / 1000, abs=1e-15)
    bound = vlb(GaussianDenoiser(sde), torch.randn(2, 3), steps=25, grid=grid, variance="optimal")
    assert bound.terms["transitions"].shape == (2, 24) and bound.log_prob.isfinite().all()


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("variance", ["small", "large", "optimal", "full"])
def test_single_precision_keeps_its_digits(variance: str, shape: tuple[int, ...]) -> None:
    sde, x0 = VPSDE(), 0.5 * torch.randn(4, *shape, dtype=torch.float64)
    denoiser, noise = GaussianDenoiser(sde, 0.0, 0.5), torch.randn_like(x0)
    times = chain_times(sde, 1000)
    for place in (0, 500, 990, 998):
        t, s = times[place].expand(4), times[place + 1].expand(4)
        x_t = sde.perturb(x0, t, noise)
        wide = transition_kl(denoiser, x0, x_t, t, s, variance=variance)
        single = transition_kl(denoiser, x0.float(), x_t.float(), t, s, variance=variance)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), wide, rtol=2e-3, atol=1e-5)
    bound = vlb(denoiser, x0.float(), steps=5, variance=variance)
    assert bound.log_prob.dtype == torch.float32 and all(v.dtype == torch.float32 for v in bound.terms.values())


@pytest.mark.parametrize("variance", ["small", "optimal", "full"])
def test_an_example_with_nan_leaves_the_others_alone(variance: str) -> None:
    denoiser, x = Crooked(VPSDE()), torch.randn(3, 2, dtype=torch.float64)
    options = {"steps": 4, "variance": variance}
    whole = vlb(denoiser, x, **options, generator=torch.Generator().manual_seed(0)).log_prob
    x[1, 0] = math.nan
    part = vlb(denoiser, x, **options, generator=torch.Generator().manual_seed(0)).log_prob
    assert part.isnan().tolist() == [False, True, False] and torch.equal(part[[0, 2]], whole[[0, 2]])


def test_arguments() -> None:
    exact, x = GaussianDenoiser(VPSDE()), torch.randn(2, 3)
    bare = NetworkDenoiser(MLP(shape=(3,)), VPSDE(), EDM())
    for options, message in [
        ({"variance": "tiny"}, "vlb needs variance small, large, learned, optimal or full, got 'tiny'"),
        ({"decoder_variance": -1.0}, "needs decoder_variance 'posterior', a number > 0, or None .* got -1.0"),
        ({"decoder_variance": "beta"}, "needs decoder_variance 'posterior', a number > 0"),
        ({"steps": 1}, "vlb needs 2 <= steps <= 1000000, a whole number, got steps=1"),
        ({"samples": 0}, "samples >= 1, a whole number, got samples=0"),
        ({"t_start": 0.0}, "vlb needs t_min <= t_start < 1, got t_min=1e-05, t_start=0.0"),
        ({"probabilities": torch.ones(4)}, "takes probabilities of transitions only with draws"),
        ({"draws": 2, "probabilities": torch.ones(4)}, "one positive probability for each of the 9 transitions"),
    ]:
        with pytest.raises(ValueError, match=message):
            vlb(exact, x, **{"steps": 10, **options})
    with pytest.raises(TypeError, match="variance='learned' needs a network that predicts it"):
        vlb(exact, x, variance="learned")
    with pytest.raises(TypeError, match="variance='full' needs a denoiser with a method covariance"):
        vlb(bare.given(label=None), x, variance="full")
