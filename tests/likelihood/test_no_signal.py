"""Likelihoods, bounds and the losses that train for them, of processes that end without signal: the prior is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import name
from torch import Tensor, nn

from scoresde import (
    MLP,
    SDE,
    VPSDE,
    DenoisingLoss,
    Epsilon,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    StraightSDE,
    Velocity,
    VPrediction,
    discrete_log_prob,
    log_prob,
    logsnr_grid,
)
from scoresde.covariance import LearnedRange, VarianceHead
from scoresde.likelihood import UniformDequantization, likelihood_report
from scoresde.likelihood.chain import chain_times, posterior_kl, predict, prior_kl
from scoresde.likelihood.decoder import gaussian_decoder
from scoresde.likelihood.elbo import elbo
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.likelihood.vlb import vlb
from scoresde.losses import SecondOrderLoss
from scoresde.losses.dequantization_loss import DequantizationLoss, DequantizedDenoiser
from scoresde.losses.second_moment import SecondMomentLoss
from scoresde.losses.times import logsnr_times, uniform_times
from scoresde.losses.vdm import VDMLoss
from scoresde.losses.vlb_loss import VLBLoss
from scoresde.losses.weightings import importance_weighting, velocity_weighting
from scoresde.sde.clock import SignalClock


class Turn(SDE):
    """A user's own: α = cos, σ = sin, written as two formulas."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)


SILENT = [StraightSDE(), Turn()]
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
STDS = torch.linspace(0.3, 3.0, 64, dtype=torch.float64)


def points(sde: SDE, dim: int, n: int) -> tuple[GaussianMixtureDenoiser, Tensor, Tensor]:
    """A mixture of many scales, points of it at t_min, and their exact log-densities there."""
    law = GaussianMixtureDenoiser.random(sde, dim, 5, generator=torch.Generator().manual_seed(0))
    start, generator = torch.tensor(sde.t_min, dtype=torch.float64), torch.Generator().manual_seed(1)
    x0 = law.sample(n, generator=generator)
    x = sde.perturb(x0, start, torch.randn(x0.shape, generator=generator, dtype=torch.float64))
    return law, x, law.log_prob(x, start)


def signs(*shape: int) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(2)).double() - 1


class TestDensity:
    @pytest.mark.parametrize(
        "sde, method",
        [(SILENT[1], "adams"), *((SILENT[0], method) for method in ("adams", "dopri5", "dopri8"))],
        ids=name,
    )
    def test_exact_at_default_tolerances(self, sde: SDE, method: str) -> None:
        law, x, expected = points(sde, 2, 2 if sde == SILENT[0] else 1)
        result = log_prob(law, x, divergence="exact", method=method)
        torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=2e-4)
        assert ((result.log_prob - expected).abs() < 3 * result.solver_error).all()

    def test_exact_in_64_dimensions(self) -> None:
        law, x, expected = points(StraightSDE(), 64, 2)
        result = log_prob(law, x, divergence="exact")
        torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=1e-3)
        assert int(result.nfe.max()) < 200
        close = log_prob(law, x[:1], divergence="exact", rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(close.log_prob, expected[:1], rtol=0, atol=1e-5)

    def test_fixed_steps_single_precision_and_rows_alone(self) -> None:
        law, x, expected = points(StraightSDE(), 2, 3)
        fixed = log_prob(law, x, divergence="exact", method="rk4", steps=30)
        torch.testing.assert_close(fixed.log_prob, expected, rtol=0, atol=0.05)
        single = log_prob(law, x.float(), divergence="exact")
        exact = law.log_prob(x.float().double(), torch.tensor(law.sde.t_min, dtype=torch.float64))
        torch.testing.assert_close(single.log_prob.double(), exact, rtol=0, atol=1e-3)
        alone = log_prob(law, x[2:].float(), divergence="exact")
        torch.testing.assert_close(alone.log_prob, single.log_prob[2:], rtol=0, atol=1e-5)

    def test_the_gradient_is_the_score(self) -> None:
        law, x, _ = points(StraightSDE(), 2, 2)
        x.requires_grad_()
        result = log_prob(law, x, divergence="exact", create_graph=True)
        (gradient,) = torch.autograd.grad(result.log_prob.sum(), x)
        expected = law.score(x.detach(), torch.tensor(law.sde.t_min, dtype=torch.float64))
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("divergence, probes", [("hutchinson", 16), ("hutch++", 15)])
    def test_error_bars_hold_the_exact_value(self, divergence: str, probes: int) -> None:
        law = GaussianDenoiser(StraightSDE(), 0.2, cov=torch.eye(8).double() + 0.9 * signs(8, 1) @ signs(8, 1).mT)
        x = law.sample(60, generator=torch.Generator().manual_seed(3))
        result = log_prob(law, x, divergence=divergence, probes=probes, seeds=1, rtol=1e-4, atol=1e-4)
        low, high = result.interval()
        expected = law.log_prob(x, torch.tensor(law.sde.t_min, dtype=torch.float64))
        slack = 1e-3
        assert float(((low - slack < expected) & (expected < high + slack)).double().mean()) > 0.85

    def test_below_t_min_the_decoder_gives_a_bound_of_x0_itself(self) -> None:
        law = GaussianDenoiser(StraightSDE(t_min=1e-3), 0.3, STDS[:8])
        x0 = law.sample(300, generator=torch.Generator().manual_seed(1))
        gap = log_prob(law, x0, below="decoder", divergence="exact", seeds=0).log_prob - law.log_prob(x0, ZERO)
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / 300**0.5 + 1e-3 and float(gap.std()) < 0.1

    def test_a_network_that_predicts_noise_is_refused(self) -> None:
        denoiser = NetworkDenoiser(MLP(shape=(2,)), StraightSDE(), Epsilon())
        for call in (lambda x: log_prob(denoiser, x), lambda x: elbo(denoiser, x), lambda x: vlb(denoiser, x, steps=3)):
            with pytest.raises(ValueError, match="predicts Epsilon says nothing about the data where there is no sig"):
                call(torch.randn(2, 2))


class TestBounds:
    @pytest.mark.parametrize("form, below", [("dsm", "density"), ("ssm", "decoder"), ("ssm", "density")])
    def test_tight_for_the_exact_score(self, form: str, below: str) -> None:
        """A clock without its weight 1 + c σ/α would be off by ½ π c Σ (std − 1) = 0.047 nats."""
        n, sde = 24_000 if form == "dsm" else 8_000, StraightSDE()
        law = GaussianDenoiser(sde, 0.3, torch.tensor([2.0, 3.0], dtype=torch.float64))
        x0, start = law.sample(n), torch.tensor(sde.t_min, dtype=torch.float64)
        x, at = (x0, ZERO) if below == "decoder" else (sde.perturb(x0, start, torch.randn_like(x0)), start)
        bound = elbo(law, x, form=form, below=below, samples=48)
        gap = bound.log_prob - law.log_prob(x, at)
        error = float(gap.std()) / n**0.5
        assert abs(float(gap.mean())) < 4 * error < (0.03 if form == "dsm" else 0.08)

    @pytest.mark.parametrize("form", ["dsm", "ssm"])
    @pytest.mark.parametrize("sde", SILENT, ids=name)
    def test_unit_gaussian_data_leave_nothing_to_estimate(self, sde: SDE, form: str) -> None:
        """The closed form at logsnr = −∞: −log N(x; 0, α² + σ²) + E[log N(x_1; 0, 1) − log π(x_1)]."""
        law, start = GaussianDenoiser(sde), torch.tensor(sde.t_min, dtype=torch.float64)
        x = sde.perturb(torch.randn(4, 3).double(), start, torch.randn(4, 3).double())
        bound = elbo(law, x, form=form, below="density", samples=2)
        torch.testing.assert_close(bound.log_prob, law.log_prob(x, start), rtol=0, atol=1e-9)
        assert (bound.std_error < 1e-9).all()

    @pytest.mark.parametrize("form, below", [("dsm", "decoder"), ("ssm", "decoder"), ("dsm", "density")])
    def test_a_process_of_ones_own_in_single_precision(self, form: str, below: str) -> None:
        law = GaussianDenoiser(Turn(), 0.3, STDS)
        x = law.sample(300)
        bound = elbo(law, x.float(), form=form, below=below, samples=32)
        gap = bound.log_prob.double() - law.log_prob(x, ZERO)
        assert bound.log_prob.dtype == torch.float32 and abs(float(gap.mean())) < 4 * float(gap.std()) / 300**0.5
        assert below == "density" or bound.terms["prior"].abs().max() < 1e-5

    @pytest.mark.parametrize("form", ["dsm", "ssm"])
    def test_a_network_has_one_bound_in_both_forms(self, form: str) -> None:
        """Below the exact density, which its own law bounds from above: of shifted data, by ½ ∫ E‖δε̂‖² d logsnr."""
        sde, shift = StraightSDE(t_min=1e-2), 0.3

        class Shifted(GaussianDenoiser):
            def x0(self, x: Tensor, level: Any, **cond: Any) -> Tensor:
                return super().x0(x, level) + shift

            def v_at(self, x: Tensor, level: Any, **cond: Any) -> Tensor:
                return super().v_at(x, level) - (level.alpha**2 + level.sigma**2) / level.sigma * shift

        law, wrong = GaussianDenoiser(sde, 0.0, STDS[:4]), Shifted(sde, 0.0, STDS[:4])
        x = law.sample(600).repeat(2, 1)
        bounds = elbo(law, x, form=form, samples=64), elbo(wrong, x, form=form, samples=64)
        lost = bounds[0].terms["diffusion"] - bounds[1].terms["diffusion"]
        expected = 0.5 * 4 * shift**2 * float(sde.logsnr(torch.tensor(sde.t_min, dtype=torch.float64)).exp())
        ratio = float(lost.mean()) / -expected
        assert ratio == pytest.approx(1, abs=0.12)

    def test_standard_errors_cover(self) -> None:
        law = GaussianDenoiser(StraightSDE(), 0.2, torch.linspace(0.3, 1.2, 12, dtype=torch.float64))
        x = law.sample(1, generator=torch.Generator().manual_seed(1)).expand(1500, 12)
        bound = elbo(law, x, samples=32)
        assert float(bound.std_error.square().mean().sqrt()) == pytest.approx(float(bound.log_prob.std()), rel=0.08)

    def test_prior_and_first_transition_have_their_limits(self) -> None:
        """KL(q(x_1 | x0) ‖ π) = 0, and β̃ = σ_s², SNR_s E‖x0 − x̂0‖²/2 of the step from no signal."""
        law, x0 = GaussianDenoiser(StraightSDE(), 0.3, STDS[:5]), torch.randn(4, 5, dtype=torch.float64)
        assert float(prior_kl(law.sde, x0, ONE).abs().max()) == 0
        s, x = torch.tensor(0.8, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
        snr, error = (0.2 / 0.8) ** 2, (x0 - 0.3).square()
        kl = posterior_kl(law.sde, x0, predict(law, x, ONE, "small"), ONE, s, "small")
        torch.testing.assert_close(kl, 0.5 * snr * error.sum(1), rtol=1e-9, atol=0)
        ratio = 1 + snr * STDS[:5].square()
        expected = 0.5 * (ratio.log() + 1 / ratio - 1 + snr * error / ratio).sum(1)
        for variance in ("optimal", "full"):
            kl = posterior_kl(law.sde, x0, predict(law, x, ONE, variance), ONE, s, variance)
            torch.testing.assert_close(kl, expected, rtol=1e-9, atol=0)

    def test_the_states_of_a_chain_are_those_of_ddpm(self) -> None:
        """k/T; another grid, or a start, is taken as it is. With σ = t, "small" would pay ½ d/(T t_min)² nats more."""
        sde, fifths = StraightSDE(), torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
        torch.testing.assert_close(chain_times(sde, 5), fifths)
        assert float(chain_times(sde, 5, logsnr_grid)[-1]) == pytest.approx(sde.t_min)
        assert float(chain_times(sde, 5, t_start=0.01)[-1]) == pytest.approx(0.01)
        assert float(chain_times(VPSDE(), 5)[-1]) == pytest.approx(VPSDE().t_min)
        law = GaussianDenoiser(sde, 0.3, STDS[:6])
        x0 = law.sample(100, generator=torch.Generator().manual_seed(4))
        gap = (vlb(law, x0, steps=200).log_prob - law.log_prob(x0, ZERO)).mean()
        assert -60 < float(gap) < 0

    @pytest.mark.parametrize("variance", ["large", "optimal", "full"])
    @pytest.mark.parametrize("sde", SILENT, ids=name)
    def test_a_chain_of_gaussian_data_is_tight(self, sde: SDE, variance: str) -> None:
        law = GaussianDenoiser(sde, 0.3, STDS[:6])
        x0 = law.sample(400, generator=torch.Generator().manual_seed(4))
        bound = vlb(law, x0, steps=25 if variance != "large" else 150, variance=variance, samples=2)
        gap = bound.log_prob - law.log_prob(x0, ZERO)
        lost = 0.3 if variance == "large" else 0.0
        assert abs(float(gap.mean()) + lost) < 4 * float(gap.std()) / 400**0.5 + lost
        assert vlb(law, x0[:3].float(), steps=4, variance=variance).log_prob.isfinite().all()

    def test_a_report_and_levels(self) -> None:
        law = GaussianDenoiser(StraightSDE(t_min=1e-3), 0.0, 0.5)
        x, options = 0.5 * torch.randn(6, 2), {"steps": 30, "variance": "large"}
        rows = likelihood_report(law, x, chain=options, sde={"samples": 8}, ode={"divergence": "exact"}).rows
        assert all(math.isfinite(row.summary.mean) for row in rows)
        levels = UniformDequantization(levels=64, value_range=(-4.0, 4.0))
        k = torch.randint(20, 44, (6, 1), generator=torch.Generator().manual_seed(0))
        options = {"divergence": "exact", "rtol": 1e-3, "atol": 1e-3, "batch": 48}
        result = discrete_log_prob(law, k, levels, samples=8, importance=True, seeds=0, **options)
        edges = (torch.cat([k, k + 1], 1).double() / 8 - 4) / math.hypot(0.5, 1e-3)
        expected = (torch.special.ndtr(edges[:, 1]) - torch.special.ndtr(edges[:, 0])).log()
        assert ((result.log_prob - expected).abs() < 5 * result.std_error + 0.01).all() and result.std_error.max() < 0.1


class TestLosses:
    """Errors of a Gaussian's denoiser are linear in x0 and ε: pairs of signs as draws leave no scatter."""

    N, D = 20_000, 4

    def draws(self, sde: SDE) -> tuple[GaussianDenoiser, Tensor, Tensor, Tensor, float]:
        """A law, x0, ε, u, and ½ ∫ E‖ε − ε̂‖² d logsnr = ½ Σ log(1 + SNR v) at t_min."""
        std = STDS[-self.D :]
        law = GaussianDenoiser(sde, 0.3, std)
        u = ((torch.arange(self.N // 2, dtype=torch.float64) + 0.5) / (self.N // 2)).repeat(2)
        x0, noise = (part.repeat(2, 1) for part in signs(self.N, self.D).chunk(2))
        noise[self.N // 2 :] *= -1
        snr = sde.logsnr(torch.tensor(sde.t_min, dtype=torch.float64)).exp()
        return law, 0.3 + std * x0, noise, u, 0.5 * float(torch.log1p(snr * std.square()).sum())

    @pytest.mark.parametrize("sde", SILENT, ids=name)
    def test_likelihood_weighted_times_have_the_integral_as_expectation(self, sde: SDE) -> None:
        law, x0, noise, u, expected = self.draws(sde)
        loss = DenoisingLoss(weighting=importance_weighting, time=logsnr_times, reduction="half_sum")
        mean = float(loss.at(law, x0, logsnr_times(sde, u), noise).mean()) * (1 - sde.t_min)
        assert mean == pytest.approx(expected, rel=1e-5)
        single = loss.at(law, x0[-9:].float(), torch.ones(9), noise[-9:].float())
        assert (single < 1e-6).all() and importance_weighting(sde, torch.ones(2)).isfinite().all()

    @pytest.mark.parametrize(
        "options",
        [{"clock": "logsnr"}, {"clock": "own"}, {"clock": "logsnr", "steps": 400}, {"clock": "own", "steps": 400}],
        ids=str,
    )
    def test_the_bound_of_variational_diffusion_models(self, options: dict[str, Any]) -> None:
        sde = StraightSDE(t_min=1e-2)
        law, x0, noise, u, expected = self.draws(sde)
        terms = VDMLoss(decoder=gaussian_decoder, **options).terms(law, x0, u, noise, noise)
        nats = {key: float(value.mean()) * self.D * math.log(2) for key, value in terms.items()}
        if steps := options.get("steps"):
            clock = logsnr_times if options["clock"] == "logsnr" else uniform_times
            snr = sde.logsnr(clock(sde, torch.arange(1, steps + 1, dtype=torch.float64) / steps)).exp()
            before = torch.cat([sde.logsnr(torch.tensor([sde.t_min], dtype=torch.float64)).exp(), snr[:-1]])
            expected = 0.5 * float(((before - snr)[:, None] / (STDS[-self.D :].square() ** -1 + snr[:, None])).sum())
        assert nats["prior"] == pytest.approx(0, abs=1e-9) and nats["diffusion"] == pytest.approx(expected, rel=1e-4)
        single = VDMLoss(decoder=gaussian_decoder, **options)(law, x0[:64].float())
        assert single.isfinite().all()

    def test_terms_of_a_chain(self) -> None:
        """L_vlb over all states is the bound, t = 1 included; L_hybrid trains a learned variance there."""
        sde = StraightSDE(t_min=1e-2)
        law, x0, noise, *_ = self.draws(sde)
        loss = VLBLoss(objective="vlb", variance="large", steps=20)
        x0, noise = x0[:200].repeat(20, 1), noise[:4000]
        k = torch.arange(20).repeat_interleave(200)
        values = loss.at(law, x0, chain_times(sde, 20)[k], noise)
        bound = vlb(law, x0[:200], steps=20, variance="large", samples=20)
        bits = bound.log_prob.mean() / (-self.D * math.log(2))
        assert float(values.mean()) == pytest.approx(float(bits), rel=0.02)

    def test_a_learned_variance_at_no_signal(self) -> None:
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 6)

            def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
                return self.linear(x) + c_noise[:, None]

        denoiser = LearnedRange(Both(), StraightSDE(), VPrediction(), steps=10)
        x0, noise, t = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([1.0, 0.9, 0.5, 0.2, 0.1, 1e-5])
        loss = VLBLoss(steps=10)
        values = loss.at(denoiser, x0, t, noise)
        values.sum().backward()
        assert values.isfinite().all() and denoiser.net.linear.weight.grad.isfinite().all()
        x = denoiser.sde.perturb(x0, t, noise)
        (v, share), alpha, sigma = denoiser.v_and_range(x, t), 1 - t[:, None], t[:, None]
        eps = (sigma * x + alpha * v) / (alpha**2 + sigma**2)
        torch.testing.assert_close(eps, denoiser.eps_and_range(x, t)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(share, denoiser.mean_and_range(x, t)[1])
        torch.testing.assert_close(v, denoiser.v(x, t))
        assert denoiser.covariance_diag(x, t).isfinite().all()

    @pytest.mark.parametrize("order2", ["trace", "jacobian"])
    def test_second_order(self, order2: str) -> None:
        """Finite at every level; where weights of ε̂ grow without end, the last level with signal is taken."""
        law, x0, noise, u, _ = self.draws(StraightSDE())
        loss = SecondOrderLoss(
            weighting=importance_weighting, time=logsnr_times, order2=order2, probes=None, weight=1.0
        )
        t = torch.cat([ONE[None], logsnr_times(law.sde, u[::500])])
        values = loss.at(law, x0[:41], t, noise[:41])
        assert values.isfinite().all() and float(values[0].detach()) < 0.01
        plain = SecondOrderLoss(weighting=velocity_weighting, order2=order2, probes=None)
        single = plain.at(law, x0[:2].float(), torch.tensor([1.0, 1 - 2**-24]), noise[:2].float())
        near = plain.at(law, x0[:2], torch.full((2,), 1 / 1.001, dtype=torch.float64), noise[:2])
        torch.testing.assert_close(single.double(), near, rtol=1e-3, atol=0)

    @pytest.mark.parametrize("kind", ["npr", "sn"])
    @pytest.mark.parametrize("relative", [True, False])
    def test_regression_of_a_variance(self, kind: str, relative: bool) -> None:
        """Where there is no signal a perfect head, 1 for unit data, has the loss of the last level with some."""
        law = GaussianDenoiser(StraightSDE())
        head = VarianceHead(law, MLP(shape=(6,)), kind=kind)
        x0, noise = torch.randn(2, 5, 3)
        loss = SecondMomentLoss(relative=relative)
        near = loss.at(head, x0, torch.full((5,), 1 / 1.001, dtype=torch.float64), noise)
        torch.testing.assert_close(loss.at(head, x0, torch.ones(5), noise), near, rtol=1e-2, atol=1e-12)
        covariance = head.covariance_diag(noise, torch.tensor([1.0, 1.0, 0.9, 0.5, 0.1]))
        assert covariance.isfinite().all() and (covariance[:2] > 0.1).all()

    def test_dequantization_has_the_bound_of_other_processes(self) -> None:
        means = []
        for sde in (VPSDE(), StraightSDE(t_min=1e-3)):
            torch.manual_seed(0)
            law = VariationalDequantization(levels=8, value_range=(-2.0, 2.0), shape=(2,))
            module = DequantizedDenoiser(GaussianDenoiser(sde, 0.1, 0.8), law)
            _, x0, noise, u, _ = self.draws(sde)
            x0, noise = 0 * x0[:, :2], noise[:, :2]
            loss = DequantizationLoss()
            t, generator = loss.times(sde, u), torch.Generator().manual_seed(1)
            means.append(float(loss.at(module, x0, t, noise, generator=generator).mean().detach()))
        assert means[1] == pytest.approx(means[0], abs=3e-3)

    def test_direct_velocities_reach_the_bound(self) -> None:
        """A network's own v is used: its u = ε − x0 is asked once per level, and never divided by α."""
        asked = []

        class Net(nn.Module):
            def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
                asked.append(c_noise)
                return torch.zeros_like(x)

        denoiser = NetworkDenoiser(Net(), StraightSDE(), Velocity())
        bound = elbo(denoiser, torch.randn(3, 2), samples=8, below="density")
        assert len(asked) == 16 and bound.log_prob.isfinite().all()


@pytest.mark.parametrize("sde", SILENT, ids=name)
def test_the_clock(sde: SDE) -> None:
    """Finite, decreasing, with its rate as the derivative of logsnr, and log-SNR itself for the others."""
    clock = SignalClock(sde)
    t = torch.tensor([1e-5, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=torch.float64)
    torch.testing.assert_close(clock.time(clock.at(t)), t, rtol=0, atol=1e-9)
    assert (clock.at(torch.cat([t, ONE[None]])).diff() < 0).all() and clock.at(ONE).isfinite()
    h = 1e-6
    inner = t[1:-2]
    slope = (sde.logsnr(inner + h) - sde.logsnr(inner - h)) / (clock.at(inner + h) - clock.at(inner - h))
    torch.testing.assert_close(clock.rate(inner), slope, rtol=1e-6, atol=0)
    plain = SignalClock(VPSDE())
    assert torch.equal(plain.at(t), VPSDE().logsnr(t)) and bool((plain.rate(t) == 1).all())
