from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from closed_forms import mixture
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, CosineSDE, Denoiser, GaussianDenoiser
from scoresde.likelihood import Cells
from scoresde.likelihood.dequantization import TruncatedNormalDequantization, UniformDequantization
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.losses.dequantization_loss import DequantizationLoss, DequantizedDenoiser

SDES = [VPSDE(), VESDE(), CosineSDE()]
RANGES = [(256, (-1.0, 1.0)), (17, (-1.0, 1.0)), (5, (0.0, 3.0)), (65536, (-2.0, 2.0))]


def midpoints(n: int) -> Tensor:
    """Nodes of the midpoint rule on (0, 1), as draws of one level's only entry, (n, 1)."""
    return ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def disturbed(dequantization: VariationalDequantization, scale: float = 0.5) -> VariationalDequantization:
    """As training might leave it: far from the identity."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in dequantization.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    return dequantization


class TestUniform:
    @pytest.mark.parametrize("levels, value_range", RANGES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("end", [0.0, 1 - 2**-53, None])
    def test_states_stay_in_their_cells(
        self, levels: int, value_range: tuple[float, float], dtype: torch.dtype, end: float | None
    ) -> None:
        law = UniformDequantization(levels=levels, value_range=value_range)
        k = torch.arange(levels).reshape(-1, 1)
        u = None if end is None else torch.full(k.shape, end, dtype=torch.float64)
        x, log_q, t = law(k, VPSDE(), u=u, dtype=dtype)
        assert x.dtype == dtype and x.shape == k.shape and t is None
        assert torch.equal(law.level(x), k) and value_range[0] <= x.min() and x.max() < value_range[1]
        torch.testing.assert_close(log_q, torch.full((levels,), -math.log(law.width), dtype=torch.float64))

    def test_density_is_that_of_uniform_noise_on_cubes(self) -> None:
        law = UniformDequantization(levels=4, value_range=(-1.0, 1.0))
        k = torch.randint(0, 4, (20_000, 2, 3), generator=torch.Generator().manual_seed(0))
        x, log_q, _ = law(k, VPSDE(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        place = (x - law.centre(k, torch.float64)) / law.width
        assert abs(place.mean()) < 4 / math.sqrt(12 * place.numel())
        assert float(place.square().mean()) == pytest.approx(1 / 12, rel=0.01)
        assert float(log_q[0]) == pytest.approx(6 * math.log(2))  # six entries in cells of width ½
        again = law(k, VPSDE(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert torch.equal(x, again.x)


class TestTruncatedNormal:
    def test_numbers_of_the_paper(self) -> None:
        """At logsnr 13.3 with 256 levels τ = 3.019, Z = 0.9975, and the entropy has a closed form."""
        sde = VPSDE()
        t = float(sde.time(torch.tensor(13.3, dtype=torch.float64)))
        sigma = float(sde.sigma(torch.tensor(t, dtype=torch.float64)))
        law = TruncatedNormalDequantization(t=t)
        u = midpoints(400_000)
        x, log_q, time = law(torch.full(u.shape, 200), sde, u=u, dtype=torch.float64)
        assert time == t

        alpha = math.sqrt(1 - sigma**2)
        eps = (x - alpha * law.centre(torch.tensor(200), torch.float64)) / sigma
        tau, z = 3.0188, 0.99746
        assert float(eps.abs().max()) == pytest.approx(tau, abs=1e-3)
        density = torch.exp(-0.5 * tau**2 * torch.ones(())) / math.sqrt(2 * math.pi)
        entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2) + math.log(z) - tau * float(density) / z
        assert float(-log_q.mean()) == pytest.approx(entropy, abs=2e-5)

    @pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
    @pytest.mark.parametrize("t", [None, 1e-3, 0.2])
    def test_draws_are_quantiles_of_the_density(self, sde: SDE, t: float | None) -> None:
        law = TruncatedNormalDequantization(levels=17, t=t)
        u = midpoints(20_000)
        x, log_q, _ = law(torch.full(u.shape, 3), sde, u=u, dtype=torch.float64)
        time = torch.tensor(sde.t_min if t is None else t, dtype=torch.float64)
        alpha, sigma = sde.alpha(time), sde.sigma(time)
        centre = alpha * (-1 + 3.5 * law.width)
        normal = torch.distributions.Normal(centre, sigma)
        low, high = (normal.cdf(centre + side * alpha * law.width / 2) for side in (-1, 1))
        torch.testing.assert_close(((normal.cdf(x) - low) / (high - low))[:, 0], u[:, 0], rtol=0, atol=1e-9)
        torch.testing.assert_close(log_q, (normal.log_prob(x) - (high - low).log())[:, 0], rtol=1e-9, atol=1e-9)

    def test_two_entries_add_up_and_much_noise_is_uniform(self) -> None:
        sde = VESDE()
        law = TruncatedNormalDequantization(levels=256, t=0.9)
        k = torch.tensor([[0, 255], [7, 7]])
        x, log_q, _ = law(k, sde, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(log_q, torch.full((2,), -2 * math.log(law.width), dtype=torch.float64))
        assert torch.equal(law.level(x), k)  # α = 1

    def test_no_noise_is_refused(self) -> None:
        sde = replace(VPSDE(), t_min=1e-5)
        with pytest.raises(ValueError, match=r"needs σ > 0 at t=0, where VPSDE has σ=0: raise t"):
            TruncatedNormalDequantization(t=0.0)(torch.zeros(1, 1, dtype=torch.long), sde)


class TestLevels:
    laws = (
        UniformDequantization(levels=4),
        TruncatedNormalDequantization(levels=4),
        VariationalDequantization(shape=(3,), levels=4, width=4),
    )

    @pytest.mark.parametrize("law", laws, ids=lambda law: type(law).__name__)
    def test_what_is_refused(self, law: UniformDequantization) -> None:
        name = type(law).__name__
        with pytest.raises(TypeError, match=f"{name} needs integers from 0 to 3, got continuous data .* count of 4"):
            law(torch.rand(2, 3), VPSDE())
        with pytest.raises(ValueError, match=r"integers outside the range: the first is 4 at index \(1, 0\)"):
            law(torch.tensor([[0, 1, 2], [4, -1, 0]]), VPSDE())
        with pytest.raises(ValueError, match=r"integers outside the range: the first is -1 at index \(0, 2\)"):
            law(torch.tensor([[0, 1, -1]]), VPSDE())
        with pytest.raises(ValueError, match=r"needs levels of shape \(B, \*\), got \(3,\)"):
            law(torch.tensor([0, 1, 2]), VPSDE())

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
    def test_any_integers_are_taken(self, dtype: torch.dtype) -> None:
        law = UniformDequantization(levels=2)
        k = torch.tensor([[0, 1]], dtype=dtype)
        assert torch.equal(law.level(law(k, VPSDE()).x), k.long())


class TestVariational:
    @pytest.mark.parametrize("shape", [(1,), (2,), (9,), (4, 5), (3, 4, 4), (1, 8, 8), (2, 2, 2, 2)], ids=str)
    def test_starts_uniform_for_every_shape(self, shape: tuple[int, ...]) -> None:
        law = VariationalDequantization(shape=shape, levels=17, value_range=(0.0, 1.0), width=8)
        k = torch.randint(0, 17, (5, *shape), generator=torch.Generator().manual_seed(0))
        x, log_q, t = law(k, VPSDE(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        uniform = UniformDequantization(levels=17, value_range=(0.0, 1.0))
        expected = uniform(k, VPSDE(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(x, expected.x, rtol=0, atol=1e-6)
        torch.testing.assert_close(log_q, expected.log_q, rtol=0, atol=1e-5)  # the KL to uniform is 0
        assert t is None

    @pytest.mark.parametrize("shape", [(1,), (6,), (2, 3, 3)], ids=str)
    def test_log_q_is_the_jacobian(self, shape: tuple[int, ...]) -> None:
        law = disturbed(VariationalDequantization(shape=shape, levels=8, width=8, layers=3, bins=5)).double()
        k = torch.randint(0, 8, (3, *shape), generator=torch.Generator().manual_seed(0))
        v = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        log_q = law(k, VPSDE(), u=v, dtype=torch.float64).log_q
        for row in range(3):
            jacobian = torch.autograd.functional.jacobian(
                lambda z, row=row: law(k[row : row + 1], VPSDE(), u=z[None], dtype=torch.float64).x[0], v[row]
            )
            matrix = jacobian.reshape(v[row].numel(), -1)
            torch.testing.assert_close(log_q[row], -torch.linalg.slogdet(matrix).logabsdet, rtol=1e-8, atol=1e-8)
            if len(matrix) > 1:  # every entry depends on others
                assert (matrix - matrix.diag().diag()).abs().amax(1).min() > 0
        assert abs(float((log_q[0] - log_q[1]).detach())) > 1e-3  # q depends on k

    def test_density_in_one_dimension_integrates_to_one(self) -> None:
        law = disturbed(VariationalDequantization(shape=(1,), levels=3, value_range=(0.0, 6.0), width=8), 0.3).double()
        v = midpoints(20_000)
        with torch.no_grad():
            x, log_q, _ = law(torch.ones(v.shape, dtype=torch.long), VPSDE(), u=v, dtype=torch.float64)
        x, order = x[:, 0].sort()
        assert torch.equal(order, torch.arange(len(v)))  # monotone
        assert 2 < x[0] < 2.1 and 3.9 < x[-1] < 4
        density = log_q.exp()
        assert density.max() > 2 * density.min()
        assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-3)

    def test_density_in_two_dimensions_integrates_to_one(self) -> None:
        """Over the quadrilaterals into which the flow turns a square grid, by their areas alone."""
        law = disturbed(VariationalDequantization(shape=(2,), levels=3, value_range=(0.0, 3.0), width=8), 0.3).double()
        n = 301
        axis = torch.linspace(0, 1, n, dtype=torch.float64)
        v = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            x, log_q, _ = law(torch.ones(v.shape, dtype=torch.long), VPSDE(), u=v, dtype=torch.float64)
        x, density = x.reshape(n, n, 2), log_q.exp().reshape(n, n)
        diagonal, other = x[1:, 1:] - x[:-1, :-1], x[:-1, 1:] - x[1:, :-1]
        areas = 0.5 * (diagonal[..., 0] * other[..., 1] - diagonal[..., 1] * other[..., 0])
        corners = 0.25 * (density[1:, 1:] + density[:-1, 1:] + density[1:, :-1] + density[:-1, :-1])
        assert float((areas * corners).sum()) == pytest.approx(1, abs=2e-3)
        assert float(areas.sum()) == pytest.approx(1, abs=1e-6)  # it fills the cell

    @pytest.mark.parametrize("shape", [(7,), (3, 4, 4)], ids=str)
    def test_extreme_draws_stay_inside_in_single_precision(self, shape: tuple[int, ...]) -> None:
        law = disturbed(VariationalDequantization(shape=shape, width=8), 8.0)
        for v in (0.0, 1 - 2**-53, 2**-53, 0.5):
            k = torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(0))
            x, log_q, _ = law(k, VPSDE(), u=torch.full(k.shape, v, dtype=torch.float64))
            assert x.dtype == torch.float32 and torch.equal(law.cells.level(x), k) and x.max() < 1
            assert bool(log_q.isfinite().all())

    def test_single_and_double_precision_agree(self) -> None:
        single = disturbed(VariationalDequantization(shape=(3, 4, 4), levels=17, width=8))
        double = copy.deepcopy(single).double()
        k = torch.randint(0, 17, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        for a, b in zip(
            single(k, VPSDE(), generator=torch.Generator().manual_seed(1))[:2],
            double(k, VPSDE(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)[:2],
            strict=True,
        ):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)

    def test_every_parameter_learns(self) -> None:
        law = disturbed(VariationalDequantization(shape=(1, 4, 4), levels=8, width=8, depth=1, layers=2))
        k = torch.randint(0, 8, (16, 1, 4, 4), generator=torch.Generator().manual_seed(0))
        x, log_q, _ = law(k, VPSDE())
        (x.square().flatten(1).sum(1) + log_q).mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in law.parameters())

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="VariationalDequantization needs layers >= 1"):
            VariationalDequantization(shape=(2,), layers=0)
        with pytest.raises(ValueError, match=r"events of shape \(2,\), got \(3,\): build it with the shape"):
            VariationalDequantization(shape=(2,), levels=4)(torch.zeros(1, 3, dtype=torch.long), VPSDE())


class Scaled(Denoiser):
    """A denoiser with something to learn, of which 1 is right."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.exact = sde, GaussianDenoiser(sde, 0.2, 0.5)
        self.factor = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        return self.factor * self.exact(x, t)


class TestLoss:
    @pytest.mark.parametrize("sde", [VPSDE(), CosineSDE(), VESDE(sigma_max=1.5)], ids=lambda sde: type(sde).__name__)
    def test_its_mean_is_the_bound_on_levels(self, sde: SDE) -> None:
        """With the exact score, E L = E [log q(x | k) − log p(x) + E log p_1(x_1)/π(x_1)], up to noise below t_min."""
        denoiser = GaussianDenoiser(sde, 0.2, 0.5)
        law = disturbed(VariationalDequantization(shape=(2,), levels=6, value_range=(-2.0, 2.0), width=8)).double()
        module = DequantizedDenoiser(denoiser, law)
        x0 = law.cells.centre(torch.tensor([[1, 4]]).expand(4096, 2), torch.float64)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            means = torch.stack([DequantizationLoss()(module, x0, generator=generator).mean() for _ in range(24)])
            x, log_q, _ = law(law.cells.level(x0).repeat(8, 1), sde, generator=generator, dtype=torch.float64)
        one = torch.ones((), dtype=torch.float64)
        alpha, sigma, prior = float(sde.alpha(one)), float(sde.sigma(one)), sde.prior_std
        spread = (0.5 * alpha) ** 2 + sigma**2
        log_data = torch.distributions.Normal(0.2, 0.5).log_prob(x)
        log_end = -0.5 * math.log(spread) - (sigma**2 + (alpha * (x - 0.2)).square()) / (2 * spread)
        log_prior = -math.log(prior) - (sigma**2 + (alpha * x).square()) / (2 * prior**2)
        exact = (log_q - (log_data - log_end + log_prior).sum(1)).mean() / (2 * math.log(2))
        error = float(means.std()) / math.sqrt(24)
        assert error < 0.03
        assert abs(float(means.mean() - exact)) < 3.5 * error + 0.01

    def test_places_have_the_weight_of_the_reconstruction_at_the_data_end(self) -> None:
        sde = VPSDE()
        t, noise = DequantizationLoss().draw(sde, torch.zeros(24_864, 3))
        assert noise.shape == (24_864, 3)
        assert int((t == sde.t_min).sum()) == pytest.approx(1000, abs=3)  # one unit of logsnr of Z + 1 = 24.864
        logsnr = sde.logsnr(t.double()).sort(descending=True).values[1003:]
        torch.testing.assert_close(logsnr.diff(), torch.full_like(logsnr[1:], -1e-3), rtol=0, atol=1.2e-3)

    def test_training_approaches_the_exact_probability(self) -> None:
        """A frozen exact model: the mean loss over what the flow learns ends near −log P(k)."""
        sde = VPSDE()
        denoiser = mixture(sde)
        torch.manual_seed(0)
        cells = Cells(levels=5, value_range=(-10.0, 10.0))
        law = VariationalDequantization(shape=(2,), levels=5, value_range=(-10.0, 10.0), width=32, depth=1, layers=3)
        data = cells.centre(cells.level(denoiser.sample(2000, generator=torch.Generator().manual_seed(0))))
        module, loss = DequantizedDenoiser(denoiser, law).train(), DequantizationLoss()
        optimizer = torch.optim.Adam(law.parameters(), lr=5e-3)

        def gap() -> float:
            """Mean KL(q(x | k) ‖ p(x | k)) in bits/dim, from the variance-free part log q + const."""
            with torch.no_grad():
                k = cells.level(data).repeat(4, 1)
                x, log_q, _ = law(k, sde, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
                time = torch.tensor(sde.t_min, dtype=torch.float64)
                return float((log_q - denoiser.log_prob(x, time)).mean() / (2 * math.log(2)))

        before = gap()
        for _ in range(150):
            batch = data[torch.randint(len(data), (256,))]
            optimizer.zero_grad()
            loss(module, batch).mean().backward()
            optimizer.step()
        assert gap() < before - 0.1

    def test_a_frozen_denoiser_stays_and_a_joint_one_learns(self) -> None:
        sde = VPSDE()
        law = VariationalDequantization(shape=(2,), levels=6, width=8)
        x0 = law.cells.centre(torch.randint(0, 6, (64, 2)))
        frozen = DequantizedDenoiser(Scaled(sde), law)
        frozen.train()
        assert not frozen.denoiser.training and frozen.dequantization.training
        DequantizationLoss()(frozen, x0).mean().backward()
        assert frozen.denoiser.factor.grad is None
        assert all(p.grad is not None for p in law.networks[0].output.parameters())

        joint = DequantizedDenoiser(Scaled(sde), law, joint=True)
        assert joint.train().denoiser.training
        loss = DequantizationLoss(sampling="antithetic")
        value = loss(joint, x0, generator=torch.Generator().manual_seed(0))
        assert value.shape == (64,) and value.dtype == torch.float32
        assert torch.equal(value, loss(joint, x0, generator=torch.Generator().manual_seed(0)))
        value.mean().backward()
        assert joint.denoiser.factor.grad < 0  # towards 1

    def test_as_a_denoiser_it_is_the_one_it_holds(self) -> None:
        denoiser = GaussianDenoiser(VPSDE(), 0.2, 0.5)
        module = DequantizedDenoiser(denoiser, VariationalDequantization(shape=(2,), levels=6, width=8))
        x, t = torch.randn(3, 2), torch.tensor(0.3)
        assert torch.equal(module(x, t), denoiser(x, t)) and torch.equal(module.eps(x, t), denoiser.eps(x, t))
        assert module.select(torch.tensor([0]), 3) is denoiser

    def test_labels_are_dropped(self) -> None:
        seen: list[Tensor] = []

        class Labelled(Scaled):
            def forward(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
                assert isinstance(cond["label"], Tensor)
                seen.append(cond["label"])
                return super().forward(x, t)

        module = DequantizedDenoiser(Labelled(VPSDE()), VariationalDequantization(shape=(2,), levels=6, width=8))
        DequantizationLoss(label_dropout=0.5)(module, torch.zeros(64, 2), label=torch.ones(64, dtype=torch.long))
        assert set(seen[0].tolist()) == {1, -1}

    def test_what_is_refused(self) -> None:
        denoiser = GaussianDenoiser(VPSDE())
        with pytest.raises(TypeError, match="trains a DequantizedDenoiser, got GaussianDenoiser"):
            DequantizationLoss()(denoiser, torch.zeros(2, 2))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needs a VariationalDequantization, .* got UniformDequantization"):
            DequantizedDenoiser(denoiser, UniformDequantization())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="sampling"):
            DequantizationLoss(sampling="sorted")
