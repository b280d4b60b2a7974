from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from closed_forms import MEAN, SDES, STD, mixture, name
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from scoresde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    StraightSDE,
    SubVPSDE,
)
from scoresde.analytic import AnalyticDenoiser, EmpiricalDenoiser
from scoresde.analytic import mixture as mixture_file

TIMES = torch.tensor([1e-5, 0.02, 0.3, 1.0], dtype=torch.float64)
LAWS = ["gaussian", "full gaussian", "mixture", "full mixture", "empirical"]
METHODS = ["forward", "eps", "score", "covariance", "covariance_diag", "log_prob"]


def law(kind: str, sde: SDE) -> AnalyticDenoiser:
    return build(kind, sde)[0]


def build(kind: str, sde: SDE) -> tuple[AnalyticDenoiser, Tensor, Tensor, Tensor]:
    """A law in three dimensions, and it as a mixture: weights (K,), means (K, 3), covariances (K, 3, 3)."""
    generator, one = torch.Generator().manual_seed(1), torch.ones(1, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means, factors = torch.randn(2, 3, 3, 3, dtype=torch.float64, generator=generator)
    means, covs = means[0], 0.1 * (factors @ factors.mT) + 0.02 * torch.eye(3)
    diagonals = torch.diag_embed(covs.diagonal(dim1=1, dim2=2))
    if kind == "gaussian":
        return GaussianDenoiser(sde, means[0], diagonals[0].diagonal().sqrt()), one, means[:1], diagonals[:1]
    if kind == "full gaussian":
        return GaussianDenoiser(sde, means[0], cov=covs[0]), one, means[:1], covs[:1]
    if kind == "mixture":
        variances = diagonals.diagonal(dim1=1, dim2=2)
        return GaussianMixtureDenoiser(sde, 4 * weights, means, variances), weights, means, diagonals
    if kind == "full mixture":
        return GaussianMixtureDenoiser(sde, weights, means, covs), weights, means, covs
    points = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    return EmpiricalDenoiser(sde, points, weights=weights, chunk=3), weights / 28, points, torch.zeros(7, 3, 3).double()


def noisy(denoiser: AnalyticDenoiser, t: Tensor, *, seed: int = 0) -> Tensor:
    """One draw of x_t for each time."""
    generator = torch.Generator().manual_seed(seed)
    x0 = denoiser.sample(len(t), generator=generator)
    return denoiser.sde.perturb(x0, t, torch.randn(x0.shape, dtype=torch.float64, generator=generator))


def at_noise(sde: SDE, s: float) -> Tensor:
    """The time at which σ/α = s."""
    return sde.time(torch.tensor(-2 * math.log(s), dtype=torch.float64))


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("kind", LAWS)
def test_scores_are_the_gradients_of_log_prob(kind: str, sde: SDE) -> None:
    denoiser = law(kind, sde)
    x = noisy(denoiser, TIMES).requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.log_prob(x, TIMES).sum(), x)
    torch.testing.assert_close(denoiser.score(x, TIMES), gradient, rtol=1e-8, atol=1e-10 * float(gradient.abs().max()))
    torch.testing.assert_close(-denoiser.eps(x, TIMES) / sde.sigma(TIMES)[:, None], denoiser.score(x, TIMES))
    tweedie = (x + sde.sigma(TIMES)[:, None].square() * gradient) / sde.alpha(TIMES)[:, None]
    torch.testing.assert_close(denoiser(x, TIMES), tweedie, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("kind", LAWS)
def test_covariance_is_the_derivative_of_the_mean(kind: str, sde: SDE) -> None:
    denoiser, times = law(kind, sde), torch.stack([at_noise(sde, s) for s in (0.02, 0.2, 1.0, 20.0)])
    x = noisy(denoiser, times)
    jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x, times).sum(0), x).permute(1, 0, 2)
    expected = (sde.sigma(times).square() / sde.alpha(times))[:, None, None] * jacobian
    cov = denoiser.covariance(x, times)
    torch.testing.assert_close(cov, expected, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(cov, cov.mT, rtol=0, atol=1e-14)
    torch.testing.assert_close(denoiser.covariance_diag(x, times), cov.diagonal(dim1=1, dim2=2), rtol=1e-9, atol=1e-14)
    mean, variance = denoiser.mean_and_covariance(x, times)
    torch.testing.assert_close(mean, denoiser(x, times), rtol=1e-13, atol=1e-14)
    assert torch.equal(variance, denoiser.covariance_diag(x, times))


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("kind", LAWS)
def test_density_and_posterior_are_those_of_jointly_gaussian_components(kind: str, sde: SDE) -> None:
    denoiser, weights, means, covs = build(kind, sde)
    t = at_noise(sde, 0.4)
    alpha, variance = sde.alpha(t), sde.sigma(t).square() * torch.eye(3, dtype=torch.float64)
    x = noisy(denoiser, t.expand(20))
    components = MultivariateNormal(alpha * means, alpha.square() * covs + variance)
    family = MixtureSameFamily(Categorical(weights), components)
    torch.testing.assert_close(denoiser.log_prob(x, t), family.log_prob(x), rtol=1e-11, atol=1e-11)

    gains = alpha * covs @ torch.linalg.inv(components.covariance_matrix)  # Cov[x0, x_t] Cov[x_t]⁻¹, (K, 3, 3)
    posterior = means + torch.einsum("kij,bkj->bki", gains, x[:, None] - alpha * means)
    share = (components.log_prob(x[:, None]) + weights.log()).softmax(1)
    mean = torch.einsum("bk,bki->bi", share, posterior)
    second = covs - alpha * gains @ covs + torch.einsum("bki,bkj->bkij", posterior, posterior)
    cov = torch.einsum("bk,bkij->bij", share, second) - torch.einsum("bi,bj->bij", mean, mean)
    torch.testing.assert_close(denoiser(x, t), mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(denoiser.covariance(x, t), cov, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", LAWS)
def test_posterior_moments_are_those_of_weighted_draws(kind: str) -> None:
    sde = VPSDE()
    denoiser, t = law(kind, sde), at_noise(sde, 0.7)
    x0 = denoiser.sample(100_000, generator=torch.Generator().manual_seed(2))
    for x in noisy(denoiser, t.expand(3)):
        weights = (-0.5 * ((x - sde.alpha(t) * x0) / sde.sigma(t)).square().sum(1)).softmax(0)[:, None]
        mean, cov = denoiser(x[None], t)[0], denoiser.covariance(x[None], t)[0]
        offset = x0 - mean
        products = torch.einsum("ni,nj->nij", offset, offset).flatten(1)
        for values, expected in ((offset, torch.zeros(3)), (products, cov.flatten())):
            se = (weights.square() * (values - expected).square()).sum(0).sqrt()
            assert float((((weights * values).sum(0) - expected) / se).abs().max()) < 4


@pytest.mark.parametrize("kind", LAWS)
def test_samples_have_the_laws_moments_and_rms(kind: str) -> None:
    denoiser, weights, means, covs = build(kind, VPSDE())
    x = denoiser.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    mean = torch.einsum("k,ki->i", weights, means)
    offset = means - mean
    cov = torch.einsum("k,kij->ij", weights, covs + torch.einsum("ki,kj->kij", offset, offset))
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    for values, expected in ((x, mean), (products, cov)):
        assert float(((values.mean(0) - expected) / (values.std(0) / len(x) ** 0.5)).abs().max()) < 4
    assert denoiser.rms() == pytest.approx(math.sqrt(float(mean.square().sum() + cov.trace()) / 3), rel=1e-12)


@pytest.mark.parametrize("kind", LAWS)
def test_total_variance_is_the_mean_variance_and_the_variance_of_means(kind: str) -> None:
    sde = EDMSDE()
    denoiser, weights, means, covs = build(kind, sde)
    t = at_noise(sde, 0.5)
    x = noisy(denoiser, t.expand(20_000), seed=3)
    mean = torch.einsum("k,ki->i", weights, means)
    offset, spread = means - mean, denoiser(x, t) - mean
    total = torch.einsum("k,kij->ij", weights, covs + torch.einsum("ki,kj->kij", offset, offset))
    values = denoiser.covariance(x, t) + torch.einsum("ni,nj->nij", spread, spread)
    assert float(((values.mean(0) - total) / (values.std(0) / len(x) ** 0.5)).abs().max()) < 4


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_densities_on_the_line_integrate_to_one(sde: SDE) -> None:
    points = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    t = at_noise(sde, 0.3)
    x = sde.alpha(t) * torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    for denoiser in (
        GaussianDenoiser(sde, MEAN, STD),
        GaussianDenoiser(sde, MEAN, cov=torch.tensor([[STD**2]])),
        GaussianMixtureDenoiser(sde, torch.tensor([1.0, 2.0, 3.0]), points, torch.full((3, 1), 0.04)),
        EmpiricalDenoiser(sde, points),
    ):
        mass = torch.trapezoid(denoiser.log_prob(x, t).exp(), x[:, 0])
        assert float(mass) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("kind", LAWS)
def test_every_sample_is_for_itself_at_its_own_time_and_in_any_shape(kind: str) -> None:
    for sde in SDES:
        denoiser, times = law(kind, sde), TIMES[1:]
        x = noisy(denoiser, times)
        for method in (getattr(denoiser, key) for key in METHODS):
            together = method(x, times)
            alone = torch.cat([method(x[i : i + 1], t) for i, t in enumerate(times)])
            torch.testing.assert_close(alone, together, rtol=1e-11, atol=1e-13)
            shaped = method(x.reshape(3, 1, 3, 1), times)
            torch.testing.assert_close(shaped.reshape(together.shape), together, rtol=1e-13, atol=1e-14)
        for key in ("forward", "eps", "score", "covariance_diag"):
            assert getattr(denoiser, key)(x.reshape(3, 1, 3, 1), times).shape == (3, 1, 3, 1)
        assert denoiser.covariance(x[:0], torch.tensor(0.5)).shape == (0, 3, 3)
        assert denoiser.sample(5, shape=(3, 1)).shape == (5, 3, 1)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", LAWS)
def test_float32_states_keep_their_dtype_and_digits(kind: str, batched: bool) -> None:
    for sde in SDES:
        denoiser = law(kind, sde)
        t = TIMES[:3] if batched else torch.tensor(1e-5, dtype=torch.float64)  # σ = 1e-6 for sub-VP
        x = noisy(denoiser, t.expand(3)).float()
        for key in METHODS:
            value = getattr(denoiser, key)(x, t)
            assert value.dtype == torch.float32
            wide = getattr(denoiser, key)(x.double(), t)
            torch.testing.assert_close(value.double(), wide, rtol=1e-6, atol=1e-30)


def test_mixture_eps_has_ten_digits_at_tiny_noise() -> None:
    getcontext().prec = 60
    sde, std, s = VESDE(sigma_min=1e-8), 0.01, 1e-6
    generator = torch.Generator().manual_seed(0)
    means = 0.02 * torch.randn(3, 4, generator=generator, dtype=torch.float64) + 1  # overlapping, off the origin
    denoiser = GaussianMixtureDenoiser(
        sde, torch.ones(3), means, std**2 * (1 + torch.rand(3, 4, generator=generator, dtype=torch.float64))
    )
    t = at_noise(sde, s)
    x = noisy(denoiser, t.expand(8))
    exact = []
    for row in x.tolist():
        joint, pulls = [], []
        for mean, variances in zip(denoiser.means.tolist(), denoiser.variances.tolist(), strict=True):
            widths = [Decimal(v) + Decimal(float(sde.sigma(t))) ** 2 for v in variances]
            z = [Decimal(a) - Decimal(m) for a, m in zip(row, mean, strict=True)]
            log = sum(-a * a / w / 2 - w.ln() / 2 for a, w in zip(z, widths, strict=True))
            joint.append(log.exp())
            pulls.append([a / w for a, w in zip(z, widths, strict=True)])
        exact.append(
            [float(sum(j * p[i] for j, p in zip(joint, pulls, strict=True)) / sum(joint)) for i in range(len(row))]
        )
    expected = sde.sigma(t) * torch.tensor(exact, dtype=torch.float64)
    error = (denoiser.eps(x, t) - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < 1e-11


def test_a_diagonal_full_covariance_a_mixture_of_one_and_a_diagonal_agree() -> None:
    mean, std = torch.randn(1, 2, 2, dtype=torch.float64), torch.rand(1, 2, 2, dtype=torch.float64) + 0.3
    variances = std.flatten().square()
    for sde in SDES:
        diagonal = GaussianDenoiser(sde, mean, std)
        others = (
            GaussianDenoiser(sde, mean, cov=torch.diag(variances)),
            GaussianMixtureDenoiser(sde, torch.ones(1), mean.flatten()[None], variances[None]),
            GaussianMixtureDenoiser(sde, torch.ones(1), mean.flatten()[None], torch.diag(variances)[None]),
        )
        x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
        for key in METHODS:
            expected = getattr(diagonal, key)(x, TIMES)
            for other in others:
                torch.testing.assert_close(getattr(other, key)(x, TIMES), expected, rtol=1e-9, atol=1e-12)
        for other in others:
            assert other.rms() == pytest.approx(diagonal.rms())
            assert other.finest_scale() == pytest.approx(diagonal.finest_scale())


def test_parameters_of_a_gaussian_broadcast_to_events() -> None:
    sde, x = VPSDE(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    std = torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1)
    narrow, wide = GaussianDenoiser(sde, 0.3, std), GaussianDenoiser(sde, 0.3, std.expand(3, 2, 2))
    for key in METHODS:
        torch.testing.assert_close(getattr(narrow, key)(x, TIMES), getattr(wide, key)(x, TIMES))
    assert narrow.sample(6).shape == (6, 3, 1, 1)
    assert narrow.sample(6, shape=(3, 5, 5)).shape == (6, 3, 5, 5)
    assert GaussianDenoiser(sde).sample(6).shape == (6, 1)
    drawn = GaussianDenoiser(sde, torch.tensor([[1.0, 2.0]]), cov=0.01 * torch.eye(2)).sample(500)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([[1.0, 2.0]], dtype=torch.float64), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", LAWS)
def test_a_law_on_another_sde_is_the_same_function_of_alpha_and_sigma(kind: str) -> None:
    class Learned(nn.Module, SDE):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return self.rate * t

    vp, learned = law(kind, VPSDE()), Learned()
    t = torch.tensor(0.3, dtype=torch.float64)
    x = noisy(vp, t.expand(5))
    y, s = x / vp.sde.alpha(t), float(vp.sde.sigma(t) / vp.sde.alpha(t))
    for sde in (VESDE(), SubVPSDE(), learned):
        other = vp.on(sde)
        assert type(other) is type(vp) and other.sde is sde and isinstance(vp.sde, VPSDE)
        level = at_noise(sde, s)
        states = sde.alpha(level) * y
        for key in ("forward", "eps", "covariance"):
            torch.testing.assert_close(getattr(other, key)(states, level), getattr(vp, key)(x, t), rtol=1e-7, atol=0)
    taught = vp.on(learned)
    again = taught.on(VPSDE())
    assert [*taught.parameters()] == [learned.rate] and not [*vp.parameters()]
    assert not [*again.parameters()] and torch.equal(again(x, t), vp(x, t))


@pytest.mark.parametrize("kind", LAWS)
def test_lower_precision_is_not_lent_to_the_law(kind: str) -> None:
    denoiser, x = law(kind, VPSDE()), torch.randn(4, 3)
    expected = denoiser(x, torch.tensor(0.1))
    assert torch.equal(denoiser.half()(x, torch.tensor(0.1)), expected)
    assert all(buffer.dtype == torch.float64 for buffer in denoiser.buffers())


@pytest.mark.parametrize("kind", LAWS)
def test_a_time_on_the_processor_serves_states_on_another_device(kind: str) -> None:
    denoiser, x = law(kind, CosineSDE()).to("meta"), torch.empty(4, 3, device="meta")
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.empty((), device="meta"), torch.empty(4, device="meta")):
        for key in METHODS:
            assert getattr(denoiser, key)(x, t).device.type == "meta"


def test_mixtures_in_blocks_are_mixtures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("mixture", "full mixture"):
        denoiser, t = law(kind, VPSDE()), torch.linspace(0.01, 1, 50, dtype=torch.float64)
        x = noisy(denoiser, t)
        monkeypatch.setattr(mixture_file, "BLOCK_ENTRIES", 10**9)
        whole = [getattr(denoiser, key)(x, level) for key in METHODS for level in (t, t[20])]
        monkeypatch.setattr(mixture_file, "BLOCK_ENTRIES", 7 * denoiser.means.numel())
        parts = [getattr(denoiser, key)(x, level) for key in METHODS for level in (t, t[20])]
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_scores_exist_without_noise() -> None:
    zero = torch.tensor(0.0, dtype=torch.float64)
    for kind in LAWS[:-1]:
        denoiser = law(kind, VPSDE())
        x = denoiser.sample(4).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_prob(x, zero).sum(), x)
        torch.testing.assert_close(denoiser.score(x, zero), gradient, rtol=1e-10, atol=1e-10)
        x = x.detach()
        torch.testing.assert_close(denoiser(x, zero), x)
        assert float(denoiser.eps(x, zero).abs().max()) == 0
        assert float(denoiser.covariance(x, zero).abs().max()) < 1e-30


def test_random_mixtures_have_a_ladder_of_scales() -> None:
    first, again = (
        GaussianMixtureDenoiser.random(VPSDE(), 64, 10, std=(0.02, 0.5), generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert first.means.shape == first.variances.shape == (10, 64) and first.axes is None
    ladder = first.variances.sqrt().flatten().sort().values
    torch.testing.assert_close(ladder.log().diff(), torch.full((639,), math.log(25) / 639, dtype=torch.float64))
    assert first.finest_scale() == pytest.approx(0.02) and float(ladder[-1]) == pytest.approx(0.5)
    assert not torch.equal(first.variances.flatten().sort().values, first.variances.flatten())
    assert float(first.weights.max() / first.weights.min()) > 1.2
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_score_sdes_mixture_is_sampled_with_its_moments() -> None:
    denoiser = mixture(VPSDE())
    x = denoiser.sample(40_000, generator=torch.Generator().manual_seed(0))
    mean = denoiser.weights @ denoiser.means
    assert float(((x.mean(0) - mean) / (x.std(0) / 200)).abs().max()) < 4


def test_wrong_arguments_are_named() -> None:
    sde, eye = VPSDE(), torch.eye(2)
    with pytest.raises(ValueError, match=r"GaussianDenoiser needs std > 0, got 0"):
        GaussianDenoiser(sde, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"GaussianDenoiser needs std or cov, got both"):
        GaussianDenoiser(sde, 0.0, 1.0, cov=eye)
    with pytest.raises(ValueError, match=r"square covariances \(d, d\), got shape \(2,\)"):
        GaussianDenoiser(sde, 0.0, cov=torch.ones(2))
    with pytest.raises(ValueError, match=r"one entry for each row of cov.*shape \(3,\).*shape \(2, 2\)"):
        GaussianDenoiser(sde, torch.zeros(3), cov=eye)
    with pytest.raises(ValueError, match=r"needs symmetric covariances"):
        GaussianDenoiser(sde, cov=torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"GaussianDenoiser needs .*positive-definite covariances, got .* -1"):
        GaussianDenoiser(sde, cov=-eye)
    with pytest.raises(ValueError, match=r"needs weights \(K,\), means \(K, d\).*got \(2,\), \(3, 2\), \(3, 2\)"):
        GaussianMixtureDenoiser(sde, torch.ones(2), torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"positive weights and positive-definite covariances"):
        GaussianMixtureDenoiser(sde, torch.ones(2), torch.zeros(2, 2), -torch.ones(2, 2))
    t = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"GaussianMixtureDenoiser needs events with 3 entries.*\(2, 2\) with 4"):
        law("mixture", sde)(torch.zeros(5, 2, 2), t)
    with pytest.raises(ValueError, match=r"GaussianDenoiser needs events with 3 entries"):
        law("full gaussian", sde)(torch.zeros(5, 2), t)
    with pytest.raises(ValueError, match=r"events that its mean and std broadcast to.*\(4,\).*\(3,\)"):
        law("gaussian", sde).log_prob(torch.zeros(5, 4), t)
    with pytest.raises(ValueError, match=r"t must be a scalar or one time per sample"):
        law("mixture", sde)(torch.zeros(5, 3), torch.rand(4))


@pytest.mark.parametrize("kind", LAWS)
def test_where_there_is_no_signal_the_law_is_that_before_any_observation(kind: str) -> None:
    """x̂0 = E[x0], ε̂ = x/σ, Cov[x0 | x] = Cov[x0], p = N(0, σ²), at α = 0 and near it; each time by itself."""
    denoiser, weights, means, covs = build(kind, StraightSDE())
    weights = weights / weights.sum()
    mean = weights @ means
    cov = (weights[:, None, None] * (covs + (means - mean)[:, :, None] * (means - mean)[:, None])).sum(0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    normal = torch.distributions.Normal(torch.zeros(3).double(), 1.0).log_prob(x).sum(1)
    for t in torch.tensor([1.0, 1 - 1e-12, 1 - 1e-10], dtype=torch.float64):
        expected = {
            "forward": mean.expand(5, 3), "eps": x, "score": -x, "v": -mean.expand(5, 3), "velocity": x - mean,
            "covariance": cov.expand(5, 3, 3), "covariance_diag": cov.diagonal().expand(5, 3), "log_prob": normal,
        }  # fmt: skip
        for method, value in expected.items():
            torch.testing.assert_close(getattr(denoiser, method)(x, t), value, rtol=0, atol=1e-9)
    t = torch.tensor([1.0, 0.5, 1.0, 1e-5, 0.99], dtype=torch.float64)
    for method in expected:
        together = getattr(denoiser, method)(x, t)
        alone = torch.cat([getattr(denoiser, method)(x[row : row + 1], t[row]) for row in range(5)])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
        single = getattr(denoiser, method)(x.float(), t.float())
        rounded = getattr(denoiser, method)(x.float().double(), t.float().double())
        torch.testing.assert_close(single, rounded.float(), rtol=1e-6, atol=1e-6)
    alpha, sigma = (1 - t)[:, None], t[:, None]
    torch.testing.assert_close(denoiser.v(x, t), alpha * denoiser.eps(x, t) - sigma * denoiser(x, t), rtol=0, atol=1e-9)
