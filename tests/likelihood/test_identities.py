"""What ODE likelihood, SDE bound and discrete bound must have to do with each other, and with the data's entropy."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import FromScore, name
from torch import Tensor

from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    DiscreteVPSDE,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    SubVPSDE,
    linear_betas,
    log_prob,
    logsnr_grid,
)
from scoresde.likelihood import CategoricalDecoder, DiscretizedGaussian
from scoresde.likelihood.chain import chain_times, predict, prior_kl, reconstruction, transition_kl
from scoresde.likelihood.elbo import elbo
from scoresde.likelihood.report import Report, ReportRow, likelihood_report
from scoresde.likelihood.vlb import vlb

# processes that end far from their prior, so that KL(q_T ‖ π) counts
SHORT = [VPSDE(beta_max=3.0), SubVPSDE(beta_max=3.0), VESDE(sigma_max=2.0), CosineSDE(logsnr_min=-1.0)]
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)
COV = torch.tensor([[0.8, 0.5, 0.1], [0.5, 0.6, -0.1], [0.1, -0.1, 0.3]], dtype=torch.float64)


def correlated(sde: SDE) -> GaussianDenoiser:
    return GaussianDenoiser(sde, MEAN, cov=COV)


def entropy(cov: Tensor) -> float:
    return float(0.5 * torch.logdet(2 * math.pi * math.e * cov))


def prior_gap(sde: SDE) -> float:
    """KL(q_T ‖ π) of `correlated` data."""
    alpha, sigma, pi = sde.alpha(ENDS[1]), sde.sigma(ENDS[1]), sde.prior_std
    cov, mean = (alpha**2 * COV + sigma**2 * torch.eye(3)) / pi**2, alpha * MEAN / pi
    return float(0.5 * (cov.trace() + mean @ mean - 3 - torch.logdet(cov)))


def points(mean: Tensor, cov: Tensor) -> Tensor:
    """2d points whose mean and covariance are these: averages of quadratic functions over them are expectations."""
    axes = torch.linalg.cholesky(cov).mT * math.sqrt(len(mean))
    return torch.cat([mean + axes, mean - axes])


def line(sde: SDE) -> GaussianMixtureDenoiser:
    """Two unequal bumps on the line."""
    return GaussianMixtureDenoiser(
        sde, torch.tensor([1.0, 2.0]), torch.tensor([[-0.9], [0.7]]), torch.tensor([[0.04], [0.09]])
    )


def on_the_line(denoiser: GaussianMixtureDenoiser, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A grid (n, 1), the weights of expectations under q_t, and log q_t."""
    reach = 10 * math.hypot(float(denoiser.sde.alpha(t)), float(denoiser.sde.sigma(t)))
    x = torch.linspace(-reach, reach, 4001, dtype=torch.float64)[:, None]
    log_density = denoiser.log_prob(x, t)
    return x, log_density.exp() * float(x[1] - x[0]), log_density


@pytest.mark.parametrize("sde", SHORT, ids=name)
def test_ode_and_sde_bound_of_gaussian_data_are_entropy_plus_prior_gap(sde: SDE) -> None:
    denoiser, start = correlated(sde), torch.tensor(sde.t_min, dtype=torch.float64)
    cov = sde.alpha(start) ** 2 * COV + sde.sigma(start) ** 2 * torch.eye(3)
    x, gap = points(sde.alpha(start) * MEAN, cov), prior_gap(sde)
    assert gap > 0.01
    value = -log_prob(denoiser, x, divergence="exact", rtol=1e-8, atol=1e-8).log_prob.mean()
    assert float(value) == pytest.approx(entropy(cov) + gap, abs=1e-6)

    repeated = x.repeat(300, 1)
    for form in ("dsm", "ssm"):
        bound = -elbo(denoiser, repeated, form=form, below="density", samples=64).log_prob.reshape(300, -1).mean(1)
        error = float(bound.std() / math.sqrt(300))
        assert abs(float(bound.mean()) - entropy(cov) - gap) < 4 * error < 0.1


@pytest.mark.parametrize("sde", [VPSDE(beta_max=3.0), VESDE(sigma_max=2.0)], ids=name)
def test_ode_and_sde_bound_of_a_mixture_are_entropy_plus_prior_gap(sde: SDE) -> None:
    denoiser, start = line(sde), torch.tensor(sde.t_min, dtype=torch.float64)
    x, weight, log_density = on_the_line(denoiser, start)
    end, end_weight, end_log_density = on_the_line(denoiser, ENDS[1])
    cross = -float(weight @ log_density) + float(end_weight @ (end_log_density - sde.prior_log_prob(end)))
    kept = weight > 1e-12
    some = kept.nonzero()[::4, 0]  # a sparser trapezoidal rule
    values = -log_prob(denoiser, x[some], divergence="exact", rtol=1e-8, atol=1e-8).log_prob
    assert float(4 * weight[some] @ values) == pytest.approx(cross, abs=1e-5)

    drawn = x[torch.multinomial(weight[kept], 6000, replacement=True) + int(kept.nonzero()[0, 0])]
    bound = -elbo(denoiser, drawn, form="ssm", below="density", samples=16).log_prob
    control = -denoiser.log_prob(drawn, start) + float(weight @ log_density)  # mean 0: takes out the draw of x
    error = float((bound - control).std() / math.sqrt(6000))
    assert abs(float((bound - control).mean()) - cross) < 4 * error < 0.1


@pytest.mark.parametrize("steps", [2, 5, 50])
@pytest.mark.parametrize("sde", [*SHORT, DiscreteVPSDE(linear_betas(50, 1e-3, 0.05))], ids=name)
def test_bound_with_the_optimal_covariance_is_entropy_plus_prior_gap(sde: SDE, steps: int) -> None:
    """Every step is then the true reverse law, in any number of steps; all terms are quadratic in (x0, ε)."""
    denoiser, times = correlated(sde), chain_times(sde, steps)
    both = points(torch.cat([MEAN, torch.zeros(3)]), torch.block_diag(COV, torch.eye(3, dtype=torch.float64)))
    x0, noise = both.split(3, dim=1)
    total = prior_kl(sde, x0, times[0]).mean()
    for t, s in pairwise(times):
        total += transition_kl(denoiser, x0, sde.perturb(x0, t, noise), t, s, variance="full").mean()
    x_1 = sde.perturb(x0, times[-1], noise)
    total += reconstruction(denoiser, x0, x_1, times[-1], before=times[-2], variance="full").mean()
    assert float(total) == pytest.approx(entropy(COV) + prior_gap(sde), abs=1e-7)

    if steps == 5:
        bound = -vlb(denoiser, points(MEAN, COV).repeat(500, 1), steps=5, variance="full").log_prob
        means = bound.reshape(500, -1).mean(1)
        error = float(means.std() / math.sqrt(500))
        assert abs(float(means.mean() - total)) < 4 * error < 0.2


def test_more_steps_come_closer_to_the_likelihood_and_never_below_the_entropy() -> None:
    sde = VPSDE(beta_max=1.0, t_min=1e-3)
    denoiser = line(sde)
    x, weight, log_density = on_the_line(denoiser, ENDS[0])
    end, end_weight, end_log_density = on_the_line(denoiser, ENDS[1])
    data_entropy = -float(weight @ log_density)
    nll = data_entropy + float(end_weight @ (end_log_density - sde.prior_log_prob(end)))  # of the exact reverse process
    drawn = x[torch.multinomial(weight, 4000, replacement=True)]
    control = -denoiser.log_prob(drawn, ENDS[0]) - data_entropy

    def mean(log_prob: Tensor) -> tuple[float, float]:
        values = -log_prob - control
        return float(values.mean()), float(values.std() / math.sqrt(len(drawn)))

    options: dict[str, Any] = {"grid": logsnr_grid, "variance": "optimal", "samples": 4}
    chains = [mean(vlb(denoiser, drawn, steps=steps, **options).log_prob) for steps in (4, 12, 48)]
    bound, error = mean(elbo(denoiser, drawn, samples=64).log_prob)
    assert chains[0][0] > chains[1][0] + 0.05 > chains[2][0] + 0.06
    assert chains[2][0] > nll - 4 * chains[2][1] and chains[2][0] - nll < 0.02 + 4 * chains[2][1]
    assert abs(bound - nll) < 4 * error + 1e-3 and error < 0.06
    assert nll > data_entropy + 0.005


def test_optimal_variance_is_the_best_for_the_bound() -> None:
    denoiser = GaussianMixtureDenoiser.random(VPSDE(), 8, 4, std=(0.1, 0.5), generator=torch.Generator().manual_seed(0))
    x = denoiser.sample(300, generator=torch.Generator().manual_seed(1))
    for steps in (5, 25):
        nll = {}
        for variance in ("small", "large", "optimal", "full"):
            draw = torch.Generator().manual_seed(2)  # the same noises
            bound = vlb(
                denoiser,
                x,
                steps=steps,
                grid=logsnr_grid,
                variance=variance,
                decoder_variance="posterior",
                generator=draw,
            )
            nll[variance] = float(bound.terms["transitions"].sum(1).mean())
        assert nll["full"] < nll["optimal"] < min(nll["small"], nll["large"])


def test_the_probability_flow_may_do_worse_than_a_bound_on_the_reverse_sde() -> None:
    """A score 1.5 times too large on N(0, 1) data: every number in closed form.

    ODE   x_0 = x_1 e^(−¼ B): too narrow by far
    SDE   variance ½ + ½ e^(−2B); bound  H + ½ ∫ β ¼ dt
    """
    sde = VPSDE(t_min=1e-5)
    denoiser = FromScore(sde, lambda x, t: -1.5 * x)
    start = torch.tensor(sde.t_min, dtype=torch.float64)
    B = float(2 * (sde.alpha(start).log() - sde.alpha(ENDS[1]).log()))
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # E x² = 1

    def cross_entropy(variance: float) -> float:
        return 0.5 * (1 / variance + math.log(2 * math.pi * variance))

    ode = -log_prob(denoiser, x, divergence="exact", rtol=1e-8, atol=1e-8).log_prob.mean()
    assert float(ode) == pytest.approx(cross_entropy(math.exp(-0.5 * B)), rel=1e-5)
    bounds = -elbo(denoiser, x.repeat(3000, 1), form="ssm", below="density", samples=64).log_prob
    error = float(bounds.std() / math.sqrt(6000))
    value = 0.5 * math.log(2 * math.pi * math.e) + B / 8
    assert abs(float(bounds.mean()) - value) < 4 * error < 0.1
    assert float(ode) > value + 10 and cross_entropy(0.5 + 0.5 * math.exp(-2 * B)) < value - 0.5


@pytest.mark.parametrize("decoder", [DiscretizedGaussian(levels=6), CategoricalDecoder(levels=6)])
@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
def test_discrete_bound_is_above_the_chains_own_likelihood(decoder: DiscretizedGaussian, variance: str) -> None:
    """P(k) of a short chain on the line by quadrature over all its states."""
    sde = VPSDE(beta_max=6.0, t_min=0.02)
    denoiser: Denoiser = line(sde)
    times = chain_times(sde, 4)
    x = torch.linspace(-9, 9, 1201, dtype=torch.float64)[:, None]
    width = float(x[1] - x[0])
    density = sde.prior_log_prob(x).exp()
    for t, s in pairwise(times):
        shrink = -torch.expm1(sde.logsnr(t) - sde.logsnr(s))
        prediction = predict(denoiser, x, t, variance)
        mean = (
            sde.alpha(s) * shrink * prediction.mean
            + sde.alpha(t) / sde.alpha(s) * (sde.sigma(s) / sde.sigma(t)) ** 2 * x
        )
        spread = {"small": sde.sigma(s), "large": sde.sigma(t)}.get(variance, sde.sigma(s)).square() * shrink
        if prediction.uncertainty is not None:
            spread = spread + (sde.alpha(s) * shrink).square() * prediction.uncertainty[:, 0]
        step = torch.distributions.Normal(mean, spread.sqrt().expand(len(x))[:, None]).log_prob(x[:, 0]).exp()
        density = width * density @ step
    centres = decoder.centre(torch.arange(6), torch.float64)[:, None]
    options: dict[str, Any] = {"variance": variance, "decoder": decoder}
    options["before"] = times[-2]
    nll = [reconstruction(denoiser, centre.expand_as(x), x, times[-1], **options) for centre in centres]
    probabilities = width * torch.exp(-torch.stack(nll)) @ density
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)

    bound = vlb(denoiser, centres.repeat(4000, 1), steps=4, variance=variance, decoder=decoder).log_prob.reshape(
        4000, 6
    )
    error = bound.std(0) / math.sqrt(4000)
    assert (bound.mean(0) < probabilities.log() + 4 * error).all()
    gap = probabilities.log() - bound.mean(0)
    assert gap.max() > 0.01 and (variance == "small" or gap.min() < 3)


def test_report_puts_the_three_laws_side_by_side() -> None:
    denoiser = correlated(VPSDE())
    x = denoiser.sample(200)
    report = likelihood_report(
        denoiser,
        x,
        ode={"divergence": "exact", "below": "density"},
        sde={"below": "density", "form": "ssm"},
        chain={"steps": 20, "grid": logsnr_grid, "variance": "full", "samples": 2},
        generator=torch.Generator().manual_seed(0),
    )
    ode, sde, chain = report.rows
    for row in report.rows:
        assert row.summary.mean == pytest.approx(entropy(COV), abs=4 * row.summary.std_error)
        assert row.summary.n == 200 and row.summary.failed == 0
    assert ode.summary.estimator_error == 0 < sde.summary.estimator_error < sde.summary.std_error
    assert (sde.nfe, chain.nfe) == (64, 40)
    *table, last = str(report).splitlines()
    assert last.endswith("not the model's own error)")
    assert len(table) == 4 and len({line.rindex(line.split("  ")[-1]) for line in table}) == 1  # aligned
    assert table[1].endswith("probability-flow ODE: its own density")
    assert table[2].endswith("reverse SDE: upper bound of −log p_SDE")
    assert table[3].endswith("discrete chain of 20 steps: upper bound of −log p_chain")


def test_report_of_given_values() -> None:
    values = torch.tensor([3.0, 4.0, math.nan, 5.0])
    report = Report(rows=(ReportRow.of("NLL", "some law", values, torch.full((4,), 0.3)),), unit="bits/dim")
    header, row, _ = str(report).splitlines()
    assert "bits/dim" in header and row.split() == [
        "NLL",
        "4.0000",
        "0.5774",
        "0.1732",
        "3",
        "(1",
        "failed)",
        "some",
        "law",
    ]
