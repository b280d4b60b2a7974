"""The bound on the reverse SDE: exact where it must be tight, the same in both forms, with errors that cover."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import SDES, FromScore, mixture, name
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, Denoiser, GaussianDenoiser, SubVPSDE, expand
from scoresde.likelihood import Bound, DiscretizedGaussian
from scoresde.likelihood.elbo import elbo

ZERO = torch.tensor(0.0, dtype=torch.float64)
KINDS = [(form, below) for below in ("density", "decoder") for form in ("dsm", "ssm")]


def at_start(sde: SDE, x0: Tensor) -> tuple[Tensor, Tensor]:
    """A draw of x_ε, and ε."""
    start = torch.tensor(sde.t_min, dtype=torch.float64)
    return sde.perturb(x0, start, torch.randn_like(x0)), start


def mean_and_error(bound: Bound, reference: Tensor | float) -> tuple[float, float]:
    gap = bound.log_prob - reference
    return float(gap.mean()), float(gap.std() / math.sqrt(len(gap)))


def gap_to_the_prior(denoiser: GaussianDenoiser, x: Tensor, start: Tensor) -> Tensor:
    """E[log q(x_1) − log π(x_1)] given x at `start`, for diagonal data: what the bound loses for the exact score."""
    sde, one = denoiser.sde, torch.ones((), dtype=torch.float64)
    scale, std = (sde.alpha(one), sde.sigma(one)) if start == 0 else sde.transition(start, one)
    mean, spread = sde.alpha(one) * denoiser.mean, torch.hypot(sde.alpha(one) * denoiser.std, sde.sigma(one))

    def energy(mean: Tensor | float, spread: Tensor | float) -> Tensor:
        spread = torch.as_tensor(spread, dtype=torch.float64)
        return (((scale * x - mean).square() + std**2) / (2 * spread**2) + spread.log()).sum(1)

    return energy(0.0, sde.prior_std) - energy(mean, spread)


@pytest.mark.parametrize("form, below", [("dsm", "density"), ("ssm", "density"), ("ssm", "decoder")])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_unit_gaussian_data_leave_nothing_to_estimate(sde: SDE, form: str, below: str) -> None:
    denoiser, x0 = GaussianDenoiser(sde), torch.randn(5, 3, dtype=torch.float64)
    x, start = at_start(sde, x0) if below == "density" else (x0, ZERO)
    bound = elbo(denoiser, x, form=form, below=below, samples=4, probe="gaussian")
    if below == "density":
        expected = denoiser.log_prob(x, start) - gap_to_the_prior(denoiser, x, start)
        torch.testing.assert_close(bound.log_prob, expected, rtol=0, atol=1e-9)
        assert (bound.std_error < 1e-9).all()
    else:  # ½ ∫ E‖ε − ε̂‖² d logsnr, by the trapezoidal rule
        ends = sde.logsnr(torch.tensor([1.0, sde.t_min], dtype=torch.float64)).tolist()
        logsnr = torch.linspace(*ends, 20001, dtype=torch.float64)[:, None]
        share = torch.sigmoid(logsnr)
        errors = 3 * share.square() + share * (1 - share) * x.square().sum(1)
        expected = 0.5 * torch.trapezoid(errors, logsnr, dim=0)
        torch.testing.assert_close(bound.terms["diffusion"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form, below", KINDS)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_tight_for_the_exact_score(sde: SDE, form: str, below: str) -> None:
    std = torch.tensor([0.5, 1.4, 0.8], dtype=torch.float64)
    denoiser = GaussianDenoiser(sde, torch.tensor([0.3, -0.5, 0.0], dtype=torch.float64), std)
    x0 = denoiser.sample(1500)
    x, start = at_start(sde, x0) if below == "density" else (x0, ZERO)
    bound = elbo(denoiser, x, form=form, below=below, samples=24)
    reference = denoiser.log_prob(x, start) - gap_to_the_prior(denoiser, x, start)
    gap, error = mean_and_error(bound, reference)
    assert abs(gap) < 4 * error and error < (0.25 if (form, below) == ("dsm", "decoder") else 0.09)
    total = -sum(bound.terms.values())
    torch.testing.assert_close(bound.log_prob, total)
    per_draw = 2 if (form, below) == ("dsm", "density") or below == "decoder" else 1
    assert bound.nfe.tolist() == [24 * per_draw] * 1500


@pytest.mark.parametrize("below", ["density", "decoder"])
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_max=5.0)], ids=name)
def test_both_forms_agree_for_a_score_of_no_law(sde: SDE, below: str) -> None:
    turn = torch.tensor([[0.0, 0.4], [-0.4, 0.0]], dtype=torch.float64)

    class Crooked(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.exact = sde, mixture(sde)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return 0.9 * self.exact(x, t) + 0.1 * torch.sin(2 * x) @ turn

    denoiser = Crooked()
    x = denoiser.exact.sample(1, generator=torch.Generator().manual_seed(4)).expand(3000, 2)
    results = [
        mean_and_error(elbo(denoiser, x, form=form, below=below, samples=24, sampling=sampling), 0.0)
        for form in ("dsm", "ssm")
        for sampling in ("stratified", "antithetic")
    ]
    for value, error in results[1:]:
        assert abs(value - results[0][0]) < 4 * math.hypot(error, results[0][1])
        assert error < 0.02 * abs(value) + 0.1


@pytest.mark.parametrize("form, below", KINDS)
@pytest.mark.parametrize("samples", [2, 3, 17, 32, 64])
def test_standard_errors_cover(form: str, below: str, samples: int) -> None:
    """One point many times: the spread of the estimates is what each of them says of itself."""
    denoiser = GaussianDenoiser(VPSDE(), 0.2, torch.linspace(0.3, 1.2, 24, dtype=torch.float64))
    x = denoiser.sample(1, generator=torch.Generator().manual_seed(1)).expand(3000, 24)
    bound = elbo(denoiser, x, form=form, below=below, samples=samples)
    assert float(bound.std_error.square().mean().sqrt()) == pytest.approx(float(bound.log_prob.std()), rel=0.06)
    if samples >= 4:
        low, high = bound.interval()
        cover = ((low < bound.log_prob.mean()) & (bound.log_prob.mean() < high)).double().mean()
        assert (0.9 if samples >= 32 else 0.87) < cover < 0.98
    assert elbo(denoiser, x[:2], form=form, below=below, samples=1).std_error.isnan().all()


def test_antithetic_times_never_claim_too_little() -> None:
    denoiser = GaussianDenoiser(VPSDE(), 0.2, torch.linspace(0.3, 1.2, 24, dtype=torch.float64))
    x = denoiser.sample(1).expand(1500, 24)
    bound = elbo(denoiser, x, samples=8, sampling="antithetic")
    assert float(bound.std_error.square().mean().sqrt()) > float(bound.log_prob.std())


def test_times_are_stratified_over_the_batch() -> None:
    sde, asked = VPSDE(), []

    class Asked(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde = sde

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            if t.ndim:
                asked.append(t)
            return x

    ends = sde.logsnr(torch.tensor([1.0, sde.t_min], dtype=torch.float64))
    for sampling in ("stratified", "antithetic"):
        asked.clear()
        elbo(Asked(), torch.randn(50, 2, dtype=torch.float64), samples=6, sampling=sampling)
        u = ((sde.logsnr(torch.stack(asked)) - ends[0]) / (ends[1] - ends[0])).clamp(0, 1 - 1e-12)
        if sampling == "stratified":  # two draws of every example in each third of the range, 50 cells in each
            assert ((3 * u).floor().long() == torch.tensor([0, 0, 1, 1, 2, 2])[:, None]).all()
            for row in u:
                assert (row * 150).floor().long().unique().numel() == 50
        else:
            torch.testing.assert_close(u, u[:1] + torch.arange(6)[:, None] / 6, rtol=0, atol=1e-6)
            assert (u[0] * 300).floor().long().unique().numel() == 50


def test_decoder_of_levels_gives_probabilities() -> None:
    """log P(k) of wide cells is far from log p(x0) + log w, and never positive."""
    denoiser = GaussianDenoiser(VPSDE(), 0.0, 0.02)
    decoder = DiscretizedGaussian(levels=2, value_range=(-1.0, 1.0))
    x = decoder.centre(torch.tensor([[1], [0]]).expand(2, 4), torch.float64)
    bound = elbo(denoiser, x, decoder=decoder, form="ssm", samples=8)
    assert (bound.terms["reconstruction"].abs() < 1e-6).all()  # both cells are a hundred noises away from their edge


@pytest.mark.parametrize("form, below", KINDS)
def test_single_precision(form: str, below: str) -> None:
    denoiser, x = GaussianDenoiser(VPSDE(), 0.1, 0.5), 0.1 + 0.5 * torch.randn(64, 3, 4, 4, dtype=torch.float64)
    options = {"form": form, "below": below, "samples": 64}
    single = elbo(denoiser, x.float(), **options)
    assert single.log_prob.dtype == single.std_error.dtype == torch.float32
    wide = elbo(denoiser, x, **options)
    error = torch.hypot(single.std_error.double(), wide.std_error)
    assert ((single.log_prob.double() - wide.log_prob).abs() < 6 * error).all()


@pytest.mark.parametrize("form", ["dsm", "ssm"])
@pytest.mark.parametrize("sde", [VPSDE(beta_max=6.0), SubVPSDE(), VESDE(sigma_max=4.0)], ids=name)
def test_from_a_noisy_state_the_path_starts_there(sde: SDE, form: str) -> None:
    denoiser = GaussianDenoiser(sde, 0.2, torch.tensor([0.6, 1.3], dtype=torch.float64))
    start = torch.tensor(0.4, dtype=torch.float64)
    x = sde.perturb(denoiser.sample(1500), start, torch.randn(1500, 2, dtype=torch.float64))
    bound = elbo(denoiser, x, form=form, below="density", t_start=0.4, samples=16)
    reference = denoiser.log_prob(x, start) - gap_to_the_prior(denoiser, x, start)
    gap, error = mean_and_error(bound, reference)
    assert abs(gap) < 4 * error < 0.04


def test_decoder_gets_the_noise_at_the_end_in_units_of_the_data() -> None:
    sde, seen = VPSDE(), []

    def decoder(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        seen.append((mean, std))
        return x0.sum(1)

    x, start = torch.randn(4, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    elbo(FromScore(sde, lambda x, t: 0 * x), x, decoder=decoder, t_start=0.3, samples=400)
    assert len(seen) == 400 and float(seen[0][1]) == pytest.approx(float(sde.sigma(start) / sde.alpha(start)), rel=1e-9)
    noise = (torch.stack([mean for mean, _ in seen]) - x) / seen[0][1]  # x̂0 = x/α without a score
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.1) and abs(float(noise.mean())) < 0.08


def test_dimensions_of_conditions_reach_the_network() -> None:
    class Shifted(GaussianDenoiser):
        def eps(self, x: Tensor, t: Tensor, *, label: Tensor | None = None, **cond: Any) -> Tensor:
            assert label is not None
            return super().eps(x - expand(label.to(x), x), t)

    x = torch.randn(4, 2, dtype=torch.float64)
    label = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    bound = elbo(Shifted(VPSDE()).given(label=label), x, form="ssm", below="density", samples=4)
    plain = elbo(GaussianDenoiser(VPSDE()), x, form="ssm", below="density", samples=4)
    same = (bound.log_prob - plain.log_prob).abs() < 1e-9
    assert same.tolist() == [True, False, True, False]


def test_arguments() -> None:
    denoiser, x = GaussianDenoiser(VPSDE()), torch.randn(2, 3)
    for options, message in [
        ({"form": "esm"}, "elbo needs form dsm or ssm, got 'esm'"),
        ({"below": "data"}, "elbo needs below decoder or density, got 'data'"),
        ({"sampling": "sobol"}, "elbo needs sampling stratified or antithetic, got 'sobol'"),
        ({"probe": "sphere"}, "elbo needs probe rademacher or gaussian"),
        ({"samples": 0}, "elbo needs samples >= 1, a whole number, got samples=0"),
        ({"t_start": 0.0}, "elbo needs t_min <= t_start < 1, got t_min=1e-05, t_start=0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            elbo(denoiser, x, **options)
