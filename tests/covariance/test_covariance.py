"""E‖ε̂‖²/d by Monte Carlo, the analytic variance, and the Jacobian's diagonal by probing, against exact covariances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, mixture, name
from torch import Tensor, nn

from scoresde import (
    DDPM,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    DiscreteVPSDE,
    Epsilon,
    GaussianDenoiser,
    NetworkDenoiser,
    StraightSDE,
    Velocity,
    linear_betas,
    uniform_grid,
)
from scoresde.covariance import AnalyticVariance, HessianDiagonal, SecondMoment, jacobian_diagonal, second_moment
from scoresde.sde import expand
from scoresde.training import load_checkpoint, save_checkpoint

STDS = torch.tensor([0.3, 0.7, 1.2, 2.0], dtype=torch.float64)


def exact_second(sde: SDE, t: Tensor) -> Tensor:
    """E‖ε̂‖²/d of Gaussian data with standard deviations STDS: the mean of σ²/(α² v + σ²)."""
    alpha2, sigma2 = sde.alpha(t).square()[:, None], sde.sigma(t).square()[:, None]
    return (sigma2 / (alpha2 * STDS.square() + sigma2)).mean(1)


def data(n: int) -> Tensor:
    return MEAN + STDS * torch.randn(n, 4, dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_second_moment_is_exact_within_its_error_bar_at_every_level(sde: SDE) -> None:
    denoiser = GaussianDenoiser(sde, MEAN, STDS)
    times = torch.linspace(sde.t_min, 1, 25, dtype=torch.float64)
    table = second_moment(denoiser, [data(1500), data(500)], levels=times)
    exact = exact_second(sde, times)
    z = (table.value - exact) / table.std_error
    assert table.samples == 2000 and float(z.abs().max()) < 4.5 and 0.5 < float(z.square().mean()) < 2.2
    torch.testing.assert_close(table.error, 1 - exact, rtol=0.12, atol=0)
    # the control variate leaves 2 √((1 − E‖ε̂‖²/d)/(d M)) of √(2/(d M)) where there is much noise
    noisy = 1 - exact < 0.1
    assert bool(noisy.any()) or float(1 - exact[-1]) > 0.1
    expected = 2 * ((1 - exact) / 8000).sqrt()
    torch.testing.assert_close(table.std_error[noisy], expected[noisy], rtol=0.15, atol=0)


def test_the_error_bar_is_the_scatter_of_repeated_estimates() -> None:
    denoiser, times = GaussianDenoiser(VPSDE(), MEAN, STDS), torch.tensor([0.05, 0.3, 0.9])
    tables = [second_moment(denoiser, [data(50)], levels=times) for _ in range(300)]
    scatter = torch.stack([table.value for table in tables]).std(0)
    claimed = torch.stack([table.std_error for table in tables]).mean(0)
    torch.testing.assert_close(claimed, scatter, rtol=0.15, atol=0)


def test_levels_are_the_tables_states_or_equally_spaced_in_logsnr() -> None:
    table = second_moment(GaussianDenoiser(DiscreteVPSDE(linear_betas(20, 0.01, 0.2)), MEAN, STDS), [data(9)])
    sde = DiscreteVPSDE(linear_betas(20, 0.01, 0.2))
    torch.testing.assert_close(table.logsnr, sde.logsnr(torch.arange(1, 21, dtype=torch.float64) / 20))
    even = second_moment(GaussianDenoiser(VPSDE(), MEAN, STDS), [data(9)], levels=30).logsnr
    ends = VPSDE().logsnr(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(even, torch.linspace(ends[0], ends[1], 30, dtype=torch.float64), rtol=1e-9, atol=1e-6)
    assert len(second_moment(GaussianDenoiser(VPSDE(), MEAN, STDS), [data(9)]).logsnr) == 200


class Shifted(Denoiser):
    """Of the exact ε̂ plus what the condition says."""

    def __init__(self, exact: Denoiser) -> None:
        super().__init__()
        self.exact, self.sde = exact, exact.sde

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        shift = cond["shift"] * expand(self.sde.sigma(t) / self.sde.alpha(t), x)
        return self.exact(x, t) - shift


def test_conditions_and_sample_limits_reach_the_estimate() -> None:
    denoiser, x0 = Shifted(GaussianDenoiser(VPSDE(), 0.0, STDS)), data(300) - MEAN
    batches = [(part, {"shift": torch.full((100, 1), 0.5, dtype=torch.float64)}) for part in x0.split(100)]
    times = torch.tensor([0.2, 0.5], dtype=torch.float64)

    table = second_moment(denoiser, batches, levels=times, samples=250, generator=torch.Generator().manual_seed(1))
    again = second_moment(denoiser, batches, levels=times, samples=250, generator=torch.Generator().manual_seed(1))
    plain = second_moment(denoiser.exact, [x0], levels=times)
    assert table.samples == 250
    torch.testing.assert_close(table.value, again.value, rtol=0, atol=0)
    torch.testing.assert_close(table.error - plain.error, torch.full((2,), 0.25).double(), rtol=0.3, atol=0)
    torch.testing.assert_close(table.value - plain.value, torch.full((2,), 0.25).double(), rtol=0.3, atol=0)


@pytest.mark.parametrize("n", [0, 2])
def test_too_little_data_for_an_error_bar_is_one_sentence(n: int) -> None:
    with pytest.raises(ValueError, match=rf"needs at least 3 examples .* got {n}: give it more data"):
        second_moment(GaussianDenoiser(VPSDE(), MEAN, STDS), [data(n)], levels=5)


@pytest.mark.parametrize("clock", SDES, ids=name)
def test_the_analytic_variance_is_the_mean_covariance_on_any_sde(clock: SDE) -> None:
    """A table made on VP serves every other process."""
    levels = VPSDE().logsnr(torch.linspace(1e-4, 1, 400, dtype=torch.float64))
    value = exact_second(VPSDE(), VPSDE().time(levels))
    table = SecondMoment(logsnr=levels, value=value, std_error=0 * value, error=3 * (1 - value), samples=1)
    denoiser, x = GaussianDenoiser(clock, MEAN, STDS), torch.randn(3, 4)
    scalar = AnalyticVariance(denoiser, table)
    inside = clock.time(levels[5:-5:40])
    for t in inside[(inside > 0) & (inside < 1)]:
        exact = denoiser.covariance_diag(x, t).double().mean()
        torch.testing.assert_close(scalar.covariance_diag(x, t), exact, rtol=2e-2, atol=0)
        torch.testing.assert_close(scalar.mean_and_covariance(x, t)[0], denoiser(x, t), rtol=0, atol=0)
        corrected = AnalyticVariance(denoiser, table, corrected=True)
        torch.testing.assert_close(corrected.covariance_diag(x, t), 3 * exact, rtol=2e-2, atol=0)
        bounded = AnalyticVariance(denoiser, table, (-0.4, 0.8))
        torch.testing.assert_close(bounded.covariance_diag(x, t), exact.clamp(max=0.36), rtol=2e-2, atol=0)


def test_the_table_is_interpolated_in_logsnr_and_constant_beyond() -> None:
    value = torch.tensor([0.1, 0.5, 0.6], dtype=torch.float64)
    logsnr = torch.tensor([4.0, 2.0, -2.0], dtype=torch.float64)
    table = SecondMoment(logsnr=logsnr, value=value, std_error=value, error=value, samples=5)
    asked = torch.tensor([[4.0, 3.5], [2.0, -1.0]])
    expected = torch.tensor([[0.1, 0.2], [0.5, 0.575]], dtype=torch.float64)
    torch.testing.assert_close(table.at(asked), expected)
    torch.testing.assert_close(table.at(torch.tensor([9.0, -9.0, torch.inf])), value[[0, 2, 0]])
    with pytest.raises(ValueError, match=r"two or more levels with decreasing logsnr"):
        SecondMoment(logsnr=logsnr.flip(0), value=value, std_error=value, error=value, samples=5)


def test_a_table_survives_a_safe_file(tmp_path: Path) -> None:
    table = second_moment(GaussianDenoiser(VPSDE(), MEAN, STDS), [data(9)], levels=4)
    save_checkpoint(tmp_path / "variance.pt", table.state())
    again = SecondMoment.from_state(load_checkpoint(tmp_path / "variance.pt"))
    for key, kept in table.state().items():
        assert torch.equal(torch.as_tensor(kept), torch.as_tensor(again.state()[key]))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_jacobians_diagonal_is_the_covariance(sde: SDE) -> None:
    exact, x = mixture(sde), 2 * torch.randn(20, 2, dtype=torch.float64)
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.1, 0.9, 20, dtype=torch.float64)):
        for denoiser in (HessianDiagonal(exact, None), HessianDiagonal(exact, None, (-100.0, 100.0))):
            x0_hat, covariance = denoiser.mean_and_covariance(x, t)
            torch.testing.assert_close(covariance, exact.covariance_diag(x, t), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(x0_hat, exact(x, t), rtol=1e-12, atol=1e-12)
        isotropic = HessianDiagonal(exact, None, isotropic=True).covariance_diag(x, t)
        torch.testing.assert_close(isotropic, exact.covariance_diag(x, t).mean(1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_one_probe_is_exact_for_a_diagonal_jacobian_and_many_are_unbiased() -> None:
    diagonal, t = GaussianDenoiser(VPSDE(), MEAN, STDS), torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = diagonal.covariance_diag(x, t).expand_as(x)
    torch.testing.assert_close(HessianDiagonal(diagonal).covariance_diag(x, t), expected, rtol=1e-9, atol=0)

    exact, x = mixture(VPSDE()), torch.tensor([[0.3, -0.2], [1.0, 1.5]], dtype=torch.float64)
    truth = jacobian_diagonal(exact, x, t, probes=None)[1]
    runs = torch.stack([jacobian_diagonal(exact, x, t, probes=2, seed=seed)[1] for seed in range(400)])
    z = (runs.mean(0) - truth) / (runs.std(0) / 20)
    assert float(runs.std(0).min()) > 1e-3 and float(z.abs().max()) < 4

    # entry i of one probe has variance Σ_{j≠i} J_ij², so K probes have 1/K of it
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: exact(row[None], t)[0]))(x)
    torch.testing.assert_close(runs.var(0), jacobian[:, [0, 1], [1, 0]].square() / 2, rtol=0.3, atol=0)


class Pair(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        return torch.tanh(x + x.flip(1) / 2) * (1 + cond.get("label", 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrappers_keep_dtype_pass_conditions_on_and_split_batches(dtype: torch.dtype) -> None:
    net = NetworkDenoiser(Pair(), VESDE(), Epsilon())
    levels = torch.tensor([5.0, -5.0])
    table = SecondMoment(
        logsnr=levels, value=levels.sigmoid().flip(0), std_error=levels * 0, error=levels.sigmoid(), samples=9
    )
    x, t = torch.randn(4, 2, dtype=dtype), torch.tensor(0.5)
    label = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=dtype)
    for denoiser in (HessianDiagonal(net, None), AnalyticVariance(net, table)):
        with torch.no_grad():
            x0_hat, covariance = denoiser.mean_and_covariance(x, t, label=label)
        assert x0_hat.dtype == dtype and not x0_hat.requires_grad and not covariance.requires_grad
        torch.testing.assert_close(x0_hat, net(x, t, label=label))
        torch.testing.assert_close(denoiser.eps(x, t, label=label), net.eps(x, t, label=label))
        bound = denoiser.given(label=label)
        torch.testing.assert_close(bound.mean_and_covariance(x, t)[1], covariance)
        torch.testing.assert_close(bound.covariance_diag(x, t), covariance)
        part = bound.select(torch.tensor([1, 3]), 4)
        assert part is not None
        few = part.mean_and_covariance(x[[1, 3]], t)
        torch.testing.assert_close(few[0], x0_hat[[1, 3]])
        torch.testing.assert_close(few[1], covariance[[1, 3]] if covariance.ndim else covariance)


class TestNoSignal:
    """α = 0 at t = 1: what is known of x0 is its own covariance there."""

    sde = StraightSDE()

    def table(self, count: int) -> tuple[GaussianDenoiser, SecondMoment]:
        denoiser = GaussianDenoiser(self.sde, MEAN, STDS)
        return denoiser, second_moment(denoiser, [data(count)], levels=40, generator=torch.Generator().manual_seed(0))

    def test_a_table_reaches_it(self) -> None:
        """The error of the variance is its own scatter, not that of E‖ε̂‖²/d over the SNR, which grows without end."""
        denoiser, table = self.table(4000)
        t = torch.tensor([1.0, 1 - 1e-9, 0.95, 0.7, 0.2], dtype=torch.float64)
        exact = torch.stack([denoiser.covariance_diag(data(1), at).mean() for at in t])
        for corrected in (False, True):
            covariance = AnalyticVariance(denoiser, table, corrected=corrected)
            torch.testing.assert_close(covariance.at(t), exact, rtol=0.06, atol=0)
        snr = table.logsnr.exp()
        mean = (snr[:, None] * STDS.square() / (1 + snr[:, None] * STDS.square())).mean(1)
        noisy = snr < 1
        z = ((1 - table.value) - mean)[noisy] / table.std_error[noisy]
        assert float(z.abs().max()) < 4.5 and float((table.std_error / mean)[noisy].max()) < 0.06
        assert table.logsnr.isfinite().all()

    def test_given_levels_without_signal_are_left_out(self) -> None:
        times = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
        table = second_moment(GaussianDenoiser(self.sde, MEAN, STDS), [data(30)], levels=times)
        torch.testing.assert_close(table.logsnr, self.sde.logsnr(times[:2]))

    def test_few_steps_from_it_have_the_spread_of_the_data(self) -> None:
        denoiser, table = self.table(2000)
        x = torch.randn(4000, 4, dtype=torch.float64)
        for model in (AnalyticVariance(denoiser, table, corrected=True), HessianDiagonal(denoiser), denoiser):
            spread = DDPM(steps=4, variance="optimal", grid=uniform_grid)(model, x).var(0)
            expected, slack = STDS.square(), 0.1 if model is denoiser else 1.0
            assert float((spread - expected).abs().max()) < slack * float(expected.max()), model
            assert float(spread.mean()) == pytest.approx(float(expected.mean()), rel=0.25)

    def test_the_jacobian_is_asked_at_a_level_with_signal(self) -> None:
        denoiser = GaussianDenoiser(self.sde, MEAN, STDS)
        t = torch.tensor([1.0, 1 - 1e-6, 0.9, 0.1], dtype=torch.float64)
        x = torch.randn(4, 4, dtype=torch.float64)
        mean, covariance = HessianDiagonal(denoiser, probes=None).mean_and_covariance(x, t)
        torch.testing.assert_close(covariance, denoiser.covariance_diag(x, t), rtol=1e-5, atol=0)
        torch.testing.assert_close(mean[:2], denoiser(x, t)[:2], rtol=0, atol=0.02)
        torch.testing.assert_close(mean[2:], denoiser(x, t)[2:])
        assert HessianDiagonal(denoiser).covariance_diag(x.float(), torch.ones(())).isfinite().all()

    def test_wrappers_pass_a_velocity_on(self) -> None:
        net = NetworkDenoiser(MLP(shape=(4,)), self.sde, Velocity())
        x, t = torch.randn(3, 4), torch.tensor([1.0, 0.5, 1e-5])
        assert torch.equal(HessianDiagonal(net).v(x, t), net.v(x, t))
