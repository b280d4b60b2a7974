"""Diagnostics against closed forms: optima of known laws, exact scores with no defect, and defects of known size."""

import math
from typing import Any

import pytest
import torch
from closed_forms import SDES, FromScore, mixture, name
from torch import Tensor
from torch.autograd.functional import jacobian

from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    EulerMaruyama,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    StraightSDE,
    SubVPSDE,
    expand,
)
from scoresde.diagnostics import (
    asymmetry_by_noise,
    fokker_planck_by_noise,
    fokker_planck_residual,
    gaussian_loss,
    jacobian_asymmetry,
    logsnr_edges,
    loss_by_noise,
    marginal_gap,
    optimal_loss,
    sliced_wasserstein,
)

COV = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, -0.2], [0.0, -0.2, 0.1]], dtype=torch.float64)
FEW = [VPSDE(), SubVPSDE(), VESDE()]


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(sde: SDE) -> GaussianDenoiser:
    return GaussianDenoiser(sde, torch.tensor([0.5, -1.0, 2.0]), cov=COV)


def inside(sde: SDE, n: int) -> Tensor:
    """Times from little to much noise, away from the ends."""
    low, high = sde.logsnr(torch.tensor([1.0, sde.t_min], dtype=torch.float64)).tolist()
    return sde.time(torch.linspace(max(low, -9) + 0.5, min(high, 9) - 0.5, n, dtype=torch.float64))


class Changed(Denoiser):
    """ε̂ of another denoiser plus a function of (x, t)."""

    def __init__(self, denoiser: Denoiser, change: Any) -> None:
        super().__init__()
        self.denoiser, self.sde, self.change = denoiser, denoiser.sde, change

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return (x - expand(self.sde.sigma(t), x) * self.eps(x, t)) / expand(self.sde.alpha(t), x)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser.eps(x, t) + self.change(x, t)


class Scaled(Changed):
    """ε̂ times a number: the score of a tempered law."""

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.change * self.denoiser.eps(x, t)


# loss


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_gaussian_loss_is_the_closed_form(sde: SDE) -> None:
    law = gaussian(sde)
    x0 = law.sample(1500, generator=generator())
    result = loss_by_noise(law, x0.split(500), bins=6, reference=law, generator=generator(2))
    expected = gaussian_loss(torch.linalg.eigvalsh(COV), logsnr_edges(sde, 6))

    assert result.optimum is not None and result.excess is not None and result.entries == 3
    z = (result.loss.value - expected) / result.loss.std_error
    assert z.abs().max() < 3.5
    assert (result.loss.std_error / expected).max() < 0.07
    # for Gaussians the optimum is a function of t alone, and strata leave little of its scatter
    torch.testing.assert_close(result.optimum.value, expected, rtol=2e-3, atol=1e-6)
    assert result.excess.value.max() < 1e-20


def test_gaussian_loss_integrates_to_the_information() -> None:
    """½ ∫ d · loss dlogsnr = ½ log det(I + SNR Σ): the mutual information of x0 and x_t (Guo et al. 2005)."""
    edges = torch.linspace(-40, 4, 12, dtype=torch.float64)
    nats = 0.5 * 3 * (gaussian_loss(torch.linalg.eigvalsh(COV), edges) * edges.diff()).sum()
    exact = 0.5 * torch.logdet(torch.eye(3, dtype=torch.float64) + math.exp(4) * COV)
    torch.testing.assert_close(nats, exact, rtol=1e-12, atol=1e-12)
    assert gaussian_loss(torch.zeros(2), edges).abs().max() == 0


def test_nats_are_half_the_width_times_entries_times_loss() -> None:
    law = gaussian(VPSDE())
    result = loss_by_noise(law, [law.sample(50)], bins=torch.tensor([-2.0, 1.0, 2.0]), generator=generator())
    for value in ("value", "std_error"):
        expected = torch.tensor([1.5 * 3, 0.5 * 3]) * getattr(result.loss, value)
        torch.testing.assert_close(getattr(result.nats, value), expected.double())
    assert result.optimum is None and result.excess is None


def test_loss_is_optimum_plus_excess() -> None:
    sde = VPSDE()
    law = mixture(sde)
    model = Changed(law, lambda x, t: 0.3 * torch.sin(2 * x))
    examples = [law.sample(2000, generator=generator())]
    result = loss_by_noise(model, examples, bins=5, reference=law, generator=generator(3))

    assert result.optimum is not None and result.excess is not None
    z = (result.loss.value - result.optimum.value - result.excess.value) / result.loss.std_error
    assert z.abs().max() < 3.5
    squares = [0.09 * torch.sin(2 * x).square().mean() for x in _noisy_mixture(law)]
    torch.testing.assert_close(result.excess.value[[0, -1]], torch.stack(squares), rtol=0.1, atol=0)


def _noisy_mixture(law: GaussianMixtureDenoiser) -> list[Tensor]:
    x0 = law.sample(20_000, generator=generator(5))
    return [torch.randn_like(x0), x0]  # nearly the first and the last bin of VP


def test_standard_errors_are_those_of_repetitions() -> None:
    law = mixture(VPSDE())
    x0 = law.sample(64 * 60, generator=generator())
    edges = torch.tensor([-3.0, 0.0, 0.5, 3.0])
    runs = [loss_by_noise(law, [x0[64 * k : 64 * (k + 1)]], bins=edges, generator=generator(k)).loss for k in range(60)]
    scatter = torch.stack([run.value for run in runs]).std(0)
    claimed = torch.stack([run.std_error for run in runs]).mean(0)
    assert ((scatter / claimed > 0.6) & (scatter / claimed < 1.25)).all()


def test_levels_fill_their_bins_evenly() -> None:
    from scoresde.diagnostics.noise_bins import noisy_examples

    sde, edges, done = VESDE(), torch.tensor([-3.0, -1.0, 4.0], dtype=torch.float64), []
    x0 = torch.randn(100, 2)
    for at in noisy_examples(sde, [x0], edges, generator=generator(), progress=done.append):
        logsnr = sde.logsnr(at.t).sort().values
        cells = edges[at.bin] + (edges[at.bin + 1] - edges[at.bin]) * torch.linspace(0, 1, 101, dtype=torch.float64)
        assert (logsnr >= cells[:-1] - 1e-9).all() and (logsnr <= cells[1:] + 1e-9).all()
        order = sde.logsnr(at.t).argsort().double()
        assert abs(torch.corrcoef(torch.stack([order, torch.arange(100).double()]))[0, 1]) < 0.4
        torch.testing.assert_close(at.x, sde.perturb(at.x0, at.t, at.noise))
    assert done == [100, 100]


def test_optimal_loss_is_the_posterior_variance_of_the_noise() -> None:
    law = mixture(VPSDE())
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64)
    trace = law.covariance(x, t).diagonal(dim1=1, dim2=2).sum(1)
    expected = (law.sde.alpha(t) / law.sde.sigma(t)).square() * trace / 2
    torch.testing.assert_close(optimal_loss(law, x, t), expected)


# Fokker-Planck


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("law", [gaussian, mixture])
def test_exact_scores_obey_fokker_planck(law: Any, sde: SDE) -> None:
    exact = law(sde)
    t = inside(sde, 9)
    x0 = exact.sample(9, generator=generator())
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=generator(2), dtype=torch.float64))
    result = fokker_planck_residual(exact, x, t)
    assert result.residual.abs().max() < 2e-4  # h⁴/30 of the fifth derivative
    finer = fokker_planck_residual(exact, x, t, spacing=0.0125)
    assert finer.residual.abs().max() < 2e-6


def literal_residual(sde: SDE, score: Any, x: Tensor, t: Tensor) -> Tensor:
    """∂_t s − ∇[½ g² (div s + ‖s‖²) − ⟨f x, s⟩ − div(f x)] of one x (d,), by autograd, as in the paper."""

    def potential(x: Tensor) -> Tensor:
        s, f = score(x, t), sde.f(t)
        divergence = jacobian(lambda x: score(x, t), x, create_graph=True).trace()
        return 0.5 * sde.g(t).square() * (divergence + s @ s) - f * x @ s - f * len(x)

    return jacobian(lambda u: score(x, u), t) - jacobian(potential, x)


@pytest.mark.parametrize("sde", FEW, ids=name)
def test_the_residual_is_that_of_the_paper(sde: SDE) -> None:
    """A gradient field that is no diffusion, in two clocks: −2σ³/g² times the residual in t at constant x."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        y = x / sde.sigma(t)
        return -(torch.tanh(y) + 0.4 * t * torch.cos(y.sum(-1, keepdim=True)) + x) / (1 + t)

    t = inside(sde, 4)
    x = sde.sigma(t)[:, None] * torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    model = FromScore(sde, lambda x, t: score(x, t if t.ndim == 0 else t[:, None]))
    literal = torch.stack([literal_residual(sde, score, x[k], t[k]) for k in range(4)])
    expected = (-2 * sde.sigma(t) ** 3 / sde.g(t).square())[:, None] * literal

    assert expected.abs().max() > 0.3
    result = fokker_planck_residual(model, x, t, spacing=0.01)
    torch.testing.assert_close(result.residual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.mean_square, expected.square().mean(1), rtol=1e-4, atol=1e-6)


def test_a_scaled_gaussian_score_has_the_residual_of_the_formula() -> None:
    """c ε̂ of N(0, 1): r = 2 c (c − 1) s³ y / (1 + s²)², with y = x/α and s = σ/α."""
    sde, c = VPSDE(), 0.7
    model = Scaled(GaussianDenoiser(sde), c)
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    s, y = (sde.sigma(t) / sde.alpha(t))[:, None], x / sde.alpha(t)[:, None]
    expected = 2 * c * (c - 1) * s**3 * y / (1 + s**2) ** 2
    torch.testing.assert_close(fokker_planck_residual(model, x, t).residual, expected, rtol=1e-4, atol=1e-6)


def test_random_probes_are_unbiased() -> None:
    sde = VPSDE()
    model = Changed(gaussian(sde), lambda x, t: torch.sin(x * x.sum(1, keepdim=True)))
    x = torch.randn(1, 3, dtype=torch.float64, generator=generator())
    t = torch.tensor(0.3, dtype=torch.float64)
    exact = fokker_planck_residual(model, x, t)
    many = fokker_planck_residual(model, x.expand(4000, 3), t, probes=2, generator=generator(1))

    for estimate, truth in ((many.residual, exact.residual[0]), (many.mean_square, exact.mean_square[0])):
        error = estimate.std(0) / math.sqrt(4000)
        assert error.max() > 0.003
        assert ((estimate.mean(0) - truth) / error).abs().max() < 3.5
    assert fokker_planck_residual(model, x, t, probes=1).mean_square.isnan().all()


def test_fokker_planck_by_noise() -> None:
    sde = VPSDE()
    law = mixture(sde)
    examples = [law.sample(24, generator=generator())]
    exact = fokker_planck_by_noise(law, examples, bins=5, generator=generator())
    assert exact.value.max() < 1e-4 and exact.edges.shape == (6,)
    model = Scaled(GaussianDenoiser(sde), 0.7)
    data = [torch.randn(400, 4, dtype=torch.float64, generator=generator())]
    for probes in (None, 2):
        curve = fokker_planck_by_noise(
            model, data, bins=torch.tensor([-0.01, 0.01]), probes=probes, generator=generator()
        )
        # at s = 1 y has variance 2, and r = 2 · 0.7 · 0.3 y / 4
        assert curve.value.item() == pytest.approx(2 * 0.7 * 0.3 * math.sqrt(2) / 4, abs=3 * curve.std_error.item())
        assert 0 < curve.std_error.item() < 0.01


# symmetry


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("law", [gaussian, mixture])
def test_exact_scores_have_symmetric_jacobians(law: Any, sde: SDE) -> None:
    exact = law(sde)
    t = inside(sde, 6)
    x0 = exact.sample(6, generator=generator())
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=generator(2), dtype=torch.float64))
    result = jacobian_asymmetry(exact, x, t)
    rows = [jacobian(lambda x, t=t: exact.eps(x[None], t)[0], x) for x, t in zip(x, t, strict=True)]
    scaled = sde.sigma(t)[:, None, None] * torch.stack(rows)
    expected = (scaled + scaled.mT).square().sum((1, 2))
    torch.testing.assert_close(result.symmetric, expected)
    assert result.ratio.max() < 1e-7


@pytest.mark.parametrize("sde", FEW, ids=name)
def test_a_turned_score_has_the_tangent_of_its_angle(sde: SDE) -> None:
    angle = 0.4
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    model = FromScore(sde, lambda x, t: -x @ turn.T / expand(sde.sigma(t), x).square())
    t = inside(sde, 5)
    for probes in (None, 1):  # every sign vector is exact for a multiple of a rotation
        result = jacobian_asymmetry(model, torch.randn(5, 2, dtype=torch.float64), t, probes=probes)
        torch.testing.assert_close(result.ratio, torch.full_like(t, math.tan(angle)))
        torch.testing.assert_close(result.antisymmetric, torch.full_like(t, 8 * math.sin(angle) ** 2))


def test_probes_of_the_asymmetry_are_unbiased() -> None:
    sde, matrix = VPSDE(), torch.randn(4, 4, dtype=torch.float64, generator=generator())
    model = FromScore(sde, lambda x, t: x @ matrix.T)
    x, t = torch.randn(4000, 4, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    result = jacobian_asymmetry(model, x, t, probes=2, generator=generator(2))
    for estimate, sign in ((result.antisymmetric, -1), (result.symmetric, 1)):
        exact = (matrix + sign * matrix.T).square().sum() * sde.sigma(t) ** 4
        assert abs(estimate.mean() - exact) < 3.5 * estimate.std() / math.sqrt(4000)


def test_asymmetry_by_noise() -> None:
    sde = VPSDE()
    law = mixture(sde)
    examples = [law.sample(100, generator=generator())]
    assert asymmetry_by_noise(law, examples, bins=4, generator=generator()).value.max() < 1e-7
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    model = Changed(GaussianDenoiser(sde), lambda x, t: 0.1 * x @ turn / expand(sde.sigma(t), x))
    curve = asymmetry_by_noise(model, examples, bins=4, probes=2, generator=generator())
    # σ J = σ² I + 0.1 K where α² + σ² = 1: the ratio is 0.1 / σ²
    edges = curve.edges.exp()
    assert ((curve.value > 0.1 * (1 + edges[:-1])) & (curve.value < 0.1 * (1 + edges[1:]))).all()
    assert ((curve.std_error > 0) & (curve.std_error < curve.value)).all()


# marginals


def test_sliced_wasserstein_of_known_laws() -> None:
    unit = torch.randn(3, 400, dtype=torch.float64, generator=generator())
    unit = unit / unit.norm(dim=0)
    x = torch.randn(2000, 3, dtype=torch.float64, generator=generator())
    shift = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    # a shift of length 5 has the squared length 25/3 along a random direction
    assert float(sliced_wasserstein(x, x + shift, unit)) == pytest.approx(5 / math.sqrt(3), rel=0.1)
    assert float(sliced_wasserstein(x, x[torch.randperm(2000)], unit)) == 0
    torch.testing.assert_close(sliced_wasserstein(x, 3 * x, unit), ((2 * x) @ unit).square().mean().sqrt())
    with pytest.raises(ValueError, match=r"as many samples of each, got \(2000, 3\) and \(10, 3\)"):
        sliced_wasserstein(x, x[:10], unit)


@pytest.mark.parametrize("sde", FEW, ids=name)
def test_the_marginals_of_exact_scores_agree(sde: SDE) -> None:
    gap = marginal_gap(mixture(sde), (2,), samples=400, steps=40, levels=2, generator=generator(4), dtype=torch.float64)
    assert (gap.sliced < gap.sliced_floor + 3 * gap.sliced_floor_std).all()
    assert (gap.mean < 4 * gap.mean_floor).all() and (gap.log_std_ratio.abs() < 4 * gap.log_std_ratio_floor).all()
    assert (gap.logsnr.diff() > 0).all()
    torch.testing.assert_close(gap.logsnr[-1], sde.logsnr(torch.tensor(sde.t_min, dtype=torch.float64)))


def test_a_wrong_score_moves_the_marginals_apart() -> None:
    """ε̂ = c E[ε | x_t] of N(0, 1) data under VP: both variances V have closed forms in the clock −log α² = B.

    ODE: dV/dB = −V (1 − c) ... → V = e^(−(c−1) B) at the end;   SDE: dV/dB (backwards) = V − 2 c V + 1.
    """
    c, sde = 1.5, VPSDE()
    model = Scaled(GaussianDenoiser(sde), c)
    gap = marginal_gap(model, (2,), samples=800, steps=60, levels=2, generator=generator(), dtype=torch.float64)

    B = -2 * sde.alpha(sde.time(gap.logsnr)).log()
    length = float(-2 * sde.alpha(torch.ones((), dtype=torch.float64)).log()) - B
    ode = torch.exp((1 - c) * length)
    rest = 1 / (2 * c - 1)
    noisy = rest + (1 - rest) * torch.exp((1 - 2 * c) * length)
    expected = 0.5 * (ode / noisy).log()
    torch.testing.assert_close(gap.log_std_ratio, expected, rtol=0, atol=0.05)
    assert (gap.sliced[1:] > 3 * gap.sliced_floor[1:]).all()
    widths = (ode.sqrt() - noisy.sqrt()).abs() / noisy.sqrt()
    torch.testing.assert_close(gap.sliced, widths, rtol=0.05, atol=0.03)


def test_conditions_and_batches_reach_the_solvers() -> None:
    seen: list[Tensor] = []

    class Known(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.append(cond["place"])
            return cond["place"][:, None].expand_as(x)

    place, done = torch.linspace(-1, 1, 50), []
    gap = marginal_gap(
        Known(), (3,), samples=50, steps=12, levels=1, batch_size=20, cond={"place": place}, generator=generator(),
        progress=done.append, ode=EulerMaruyama(),
    )  # fmt: skip
    assert done == [20, 20, 10] * 3
    assert len(seen) == 12 * 9
    for number, part in enumerate(seen):
        assert torch.equal(part, place.split(20)[number // 12 % 3])
    assert gap.sliced.item() < 0.02, "all three sets have the same conditions, which are all there is"


# mistakes


def test_mistakes_get_one_sentence() -> None:
    law = gaussian(VPSDE())
    x0 = [law.sample(1)]
    with pytest.raises(ValueError, match="loss_by_noise needs at least two examples"):
        loss_by_noise(law, x0, bins=2)
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        loss_by_noise(law, x0, bins=0)
    with pytest.raises(ValueError, match="at least 2 probes, or None"):
        fokker_planck_by_noise(law, x0, probes=1)
    with pytest.raises(ValueError, match="needs room for a difference over logsnr ± 0.2"):
        fokker_planck_residual(law, torch.randn(2, 3), torch.tensor(1.0))
    with pytest.raises(ValueError, match="1 <= levels <= steps, got samples=10, levels=9, steps=8"):
        marginal_gap(law, (3,), samples=10, levels=9, steps=8)
    with pytest.raises(ValueError, match="Use a larger t_min"):
        logsnr_edges(VPSDE(t_min=1e-323), 4)


class TestNoSignal:
    """α = 0 at t = 1: bins begin at α/σ = 10⁻³."""

    sde = StraightSDE()

    def test_losses_are_the_optimum_and_sum_to_the_bound(self) -> None:
        exact, x0 = gaussian(self.sde), gaussian(self.sde).sample(800, generator=generator())
        result = loss_by_noise(exact, [x0], reference=exact, generator=generator())
        edges = result.loss.edges
        assert edges.isfinite().all() and float(edges[0]) == pytest.approx(2 * math.log(1e-3))
        variances = torch.linalg.eigvalsh(COV)
        expected = gaussian_loss(variances, edges)
        assert float(((result.loss.value - expected).abs() / result.loss.std_error).max()) < 4.5
        whole = 0.5 * float(torch.log1p(variances * edges[-1].exp()).sum())
        assert abs(result.total - whole) < 4 * result.total_std_error
        assert result.excess is not None and float(result.excess.value.abs().max()) < 1e-20

    def test_exact_scores_have_no_defects(self) -> None:
        exact, x0 = mixture(self.sde), mixture(self.sde).sample(12, generator=generator())
        assert float(fokker_planck_by_noise(exact, [x0], bins=5, generator=generator()).value.max()) < 3e-3
        assert float(asymmetry_by_noise(exact, [x0], bins=5, generator=generator()).value.max()) < 1e-9
        one = torch.ones((), dtype=torch.float64)
        assert float(jacobian_asymmetry(exact, x0, one).antisymmetric.max()) < 1e-12
        with pytest.raises(ValueError, match="needs room for a difference"):
            fokker_planck_residual(exact, x0, one)

    def test_flow_and_reverse_process_have_one_law(self) -> None:
        exact = gaussian(self.sde)
        options = {"samples": 300, "steps": 40, "levels": 3, "dtype": torch.float64, "generator": generator()}
        gap = marginal_gap(exact, (3,), **options)
        assert gap.logsnr.isfinite().all()
        assert ((gap.sliced - gap.sliced_floor).abs() < 6 * gap.sliced_floor_std).all()
