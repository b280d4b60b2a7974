"""Calibration of posteriors: exact ones pass at the rate they should, and errors have their closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde.diagnostics import c2st, coverage, ecdf_band, posterior_calibration, sbc_ranks, tarp, uniformity
from scoresde.diagnostics.posterior.bands import band_p_value, kolmogorov_smirnov, stay_probability
from scoresde.diagnostics.posterior.coverage import covered
from scoresde.pictures import calibration_picture


def phi(z: Any) -> Tensor:
    return torch.special.ndtr(torch.as_tensor(z, dtype=torch.float64))


def gaussian(n: int, draws: int, *, wider: float = 1.0, shift: float = 0.0, d: int = 2) -> tuple[Tensor, Tensor]:
    """θ ~ N(0, I), x = θ + n: draws of N(x/2, ½ wider²) + shift, and the truths."""
    truth = torch.randn(n, d, dtype=torch.float64)
    x = truth + torch.randn(n, d, dtype=torch.float64)
    noise = torch.randn(draws, n, d, dtype=torch.float64)
    return x / 2 + (shift + wider * noise) * math.sqrt(0.5), truth


def test_the_band_holds_by_counting_all_outcomes() -> None:
    """Three uniform numbers in cells of four: all 64 ways, by hand and by the recursion."""
    places, cells = np.array([0.25, 0.5, 0.75]), np.stack(np.meshgrid(*[range(4)] * 3), -1).reshape(-1, 3)
    counts = np.stack([(cells <= k).sum(1) for k in range(3)], 1)
    low, high = np.array([0, 1, 1]), np.array([1, 2, 3])
    stay = ((counts >= low) & (counts <= high)).all(1).mean()
    assert stay_probability(low, high, places, 3) == pytest.approx(stay, rel=1e-12)

    distances = np.abs(counts / 3 - places).max(1)
    for row in np.unique(counts, axis=0):
        distance, p = kolmogorov_smirnov(row, places, 3)
        assert distance == pytest.approx(np.abs(row / 3 - places).max())
        assert p == pytest.approx((distances >= distance - 1e-12).mean(), abs=1e-12)


def test_p_values_of_the_band_are_exact() -> None:
    places, cells = np.array([0.25, 0.5, 0.75]), np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)
    counts = np.stack([(cells <= k).sum(1) for k in range(3)], 1)

    def smallest(row: Any) -> float:
        weights = [[math.comb(4, j) * z**j * (1 - z) ** (4 - j) for j in range(5)] for z in places]
        return min(min(sum(w[: c + 1]), sum(w[c:])) for w, c in zip(weights, row, strict=True))

    all_smallest = np.array([smallest(row) for row in counts])
    for row in np.unique(counts, axis=0):
        expected = (all_smallest <= smallest(row) * (1 + 1e-9)).mean()
        assert band_p_value(row, places, 4) == pytest.approx(expected, abs=1e-12)


def test_the_band_has_its_level_and_is_as_narrow_as_that_allows() -> None:
    places = [k / 20 for k in range(1, 20)]
    low, high = ecdf_band(100, places, 0.9)
    u = torch.rand(8000, 100).sort().values
    values = torch.stack([(u < z).double().mean(1) for z in places], 1)
    inside = ((values >= low - 1e-9) & (values <= high + 1e-9)).all(1).double().mean()
    assert 0.89 < inside < 0.93
    torch.testing.assert_close(low + high.flip(0), torch.ones_like(low))


def test_exact_posteriors_pass_as_often_as_they_should() -> None:
    ranks = sbc_ranks(*gaussian(200, 19, d=80))
    found = uniformity(ranks, 19)
    for p in (found.chi_square_p, found.distance_p, found.band_p):
        assert (p < 0.2).double().mean().item() == pytest.approx(0.2, abs=4 * 0.045)
    torch.testing.assert_close(found.counts.sum(0), torch.full((80,), 200.0).double())
    shares = coverage(*gaussian(200, 19, d=1500)).value[9]  # of 50 % intervals, with a known variance at most
    assert shares.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / (200 * 1500) ** 0.5)
    assert shares.std().item() < 1.05 * 0.5 / 200**0.5


def test_coverage_is_exact_for_any_number_of_draws() -> None:
    """Averaged over all equally likely ranks it is the level, even of 2 draws and levels between."""
    for draws in (1, 2, 7):
        level = torch.tensor([0.03, 0.5, 0.9]).double()
        inside = covered(torch.arange(draws + 1), draws, (1 - level) / 2, (1 + level) / 2)
        torch.testing.assert_close(inside.mean(1), level)


@pytest.mark.parametrize("k", [0.7, 1.5])
def test_a_wrong_width_has_its_closed_form(k: float) -> None:
    """Central intervals and balls around the mean: 2 Φ(k z) − 1; around a point far away: Φ(k Φ⁻¹(level))."""
    samples, truth = gaussian(3000, 300, wider=k, d=1)
    found = coverage(samples, truth)
    z = torch.special.ndtri((1 + found.levels) / 2)
    expected = 2 * phi(k * z) - 1
    assert ((found.value[:, 0] - expected).abs() < 4 * found.std_error[:, 0] + 0.003).all()
    torch.testing.assert_close(found.mean, found.value[:, 0])

    balls = tarp(samples, truth, samples.mean(0))
    assert ((balls.value - expected).abs() < 4 * balls.std_error + 0.006).all()
    far = tarp(samples, truth, torch.tensor([-1e4]))
    assert ((far.value - phi(k * torch.special.ndtri(far.levels))).abs() < 4 * far.std_error + 0.003).all()


@pytest.mark.parametrize(("wider", "shift"), [(1.4, 0.0), (0.7, 0.0), (1.0, 0.3)])
def test_errors_are_noticed(wider: float, shift: float) -> None:
    samples, truth = gaussian(400, 99, wider=wider, shift=shift)
    generator = torch.Generator().manual_seed(0)
    found = posterior_calibration(samples, truth, generator=generator)
    assert found.uniformity.p < 1e-3 and (found.uniformity.chi_square_p < 1e-3).all()
    assert found.draws == 99 and found.ranks.shape == (400, 2)
    right = posterior_calibration(*gaussian(400, 99), generator=generator)
    assert right.uniformity.p > 0.01 and right.tarp_p > 0.01
    ranks = found.ranks.double() / 99
    if shift:
        assert ranks.mean() == pytest.approx(float(phi(-shift / math.sqrt(2))), abs=0.03)
    else:
        assert (ranks.var(0) < 1 / 12).all() == (wider > 1)
        assert found.tarp_p < 1e-3


def test_tarp_sees_that_the_prior_is_no_posterior() -> None:
    """The prior has uniform ranks; references near the observation tell it apart."""
    truth = torch.randn(500, 2).double()
    x, prior = truth + 0.3 * torch.randn(500, 2), torch.randn(199, 500, 2).double()
    assert posterior_calibration(prior, truth).uniformity.p > 0.01
    assert posterior_calibration(prior, truth, x).tarp_p < 1e-6


def test_ranks_of_any_shape_and_of_equal_values() -> None:
    samples, truth = torch.randn(9, 5, 2, 3), torch.randn(5, 2, 3)
    by_hand = (samples < truth).sum(0)
    assert torch.equal(sbc_ranks(samples, truth), by_hand)
    assert torch.equal(
        sbc_ranks(samples.numpy(), truth.numpy())[:, 1, 2], sbc_ranks(samples[..., 1, 2], truth[:, 1, 2])
    )
    assert uniformity(by_hand, 9).band_p.shape == (2, 3)
    assert tarp(samples, truth).ranks.shape == (5,) and coverage(samples, truth, [0.5]).value.shape == (1, 2, 3)
    same = sbc_ranks(torch.zeros(3, 4000), torch.zeros(4000), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(same) / 4000, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_c2st_has_the_accuracy_of_the_best_classifier() -> None:
    first, second = torch.randn(2, 400, 1)
    assert c2st(first, second + 2) == pytest.approx(float(phi(1.0)), abs=0.05)
    assert c2st(first, second) == pytest.approx(0.5, abs=0.07)


def test_the_picture_shows_what_leaves_the_band() -> None:
    levels = np.linspace(0.1, 0.9, 9)
    band = tuple(end.numpy() for end in ecdf_band(50, levels.tolist()))
    options: dict[str, Any] = {
        "counts_band": (np.full(5, 6.0), np.full(5, 14.0)), "levels": levels, "coverage_band": band, "tarp_band": band,
        "title": "ranks",
    }  # fmt: skip
    good = calibration_picture(
        counts=np.full((5, 2), 10.0), coverage=np.stack([levels] * 2, 1), tarp=levels, names=["mass", "age"], **options
    )
    bad = calibration_picture(
        counts=np.array([[30.0] * 9, *[[5.0] * 9] * 4]),
        coverage=np.stack([levels**2] * 9, 1),
        tarp=levels**2,
        **options,
    )
    assert good.size == bad.size and min(good.size) > 400
    assert good.tobytes() != bad.tobytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sbc_ranks(torch.zeros(5, 9), torch.zeros(5)), r"sbc_ranks needs samples of shape \(S, n, \*\)"),
        (lambda: sbc_ranks(torch.zeros(5, 1), torch.zeros(1)), "n >= 2 posteriors"),
        (lambda: coverage(torch.full((3, 4), math.nan), torch.zeros(4)), "finite samples, got 12 of 12"),
        (lambda: coverage(torch.zeros(3, 4), torch.zeros(4), [1.0]), r"levels between 0 and 1, got \[1.0\]"),
        (lambda: tarp(torch.zeros(3, 4, 2), torch.zeros(4, 2), torch.zeros(3)), "references of shape"),
        (lambda: uniformity(torch.tensor([0, 7]), 5), "ranks in 0..draws=5, got 0 to 7"),
        (lambda: uniformity(torch.tensor([0.0, 1.0]), 5), "needs whole ranks"),
        (lambda: uniformity(torch.tensor([0, 1]), 5, bins=9), "2 <= bins <= most"),
        (lambda: ecdf_band(10, [0.5, 0.2]), "places that increase"),
        (lambda: ecdf_band(10, [0.5], 1.0), "0 < level < 1"),
        (lambda: c2st(torch.zeros(20, 2), torch.zeros(30, 2)), "as many samples"),
    ],
)
def test_bad_input_gets_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
