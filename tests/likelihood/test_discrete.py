from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, Denoiser, GaussianDenoiser, GaussianMixtureDenoiser, expand
from scoresde.likelihood import Bound, Cells, LogProb, bits_per_dim, log_prob
from scoresde.likelihood.bits import check_dequantized
from scoresde.likelihood.dequantization import TruncatedNormalDequantization, UniformDequantization
from scoresde.likelihood.discrete_log_prob import DiscreteLogProb, discrete_log_prob
from scoresde.likelihood.summary import RunningMean, summarize
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.losses.dequantization_loss import DequantizationLoss, DequantizedDenoiser

SDE = VPSDE()
LEVELS: dict[str, Any] = {"levels": 6, "value_range": (-3.3, 3.3)}
CELLS = Cells(**LEVELS)
UNIFORM = UniformDequantization(**LEVELS)
K1 = torch.arange(6)[:, None]  # every level of one entry
DOUBLE = {"dtype": torch.float64}
COV = [[0.4, 0.28], [0.28, 0.5]]


def mixture_1d() -> GaussianMixtureDenoiser:
    weights = torch.tensor([0.6, 0.4])
    return GaussianMixtureDenoiser(SDE, weights, torch.tensor([[-0.8], [1.1]]), torch.tensor([[0.15], [0.3]]))


def gaussian_2d() -> GaussianDenoiser:
    return GaussianDenoiser(SDE, torch.tensor([0.2, -0.1], dtype=torch.float64), cov=torch.tensor(COV))


def density(denoiser: Any, x: Tensor, *, t_start: float | None, **randomness: Any) -> Any:
    """The exact density of x_t, for free."""
    t = torch.tensor(denoiser.sde.t_min if t_start is None else t_start, dtype=torch.float64)
    return known(denoiser.log_prob(x, t))


def known(log_prob: Tensor) -> Bound:
    """Without an error, from one call."""
    return Bound(log_prob, torch.zeros(len(log_prob)), {}, torch.ones(len(log_prob)))


def nodes(dimensions: int, count: int = 200) -> Tensor:
    """The midpoint rule on the unit cube, (count^dimensions, dimensions)."""
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)


def on_cells(denoiser: Any, k: Tensor, t: float | None = None) -> tuple[Tensor, Tensor]:
    """log p_t + d log(α w) at nodes of every cell, (B, n), and log P(k) by quadrature, (B,)."""
    time = torch.tensor(SDE.t_min if t is None else t, dtype=torch.float64)
    alpha = 1.0 if t is None else SDE.alpha(time)
    u = nodes(k.shape[1], 2000 if k.shape[1] == 1 else 60)
    x = alpha * (CELLS.value_range[0] + (k[:, None] + u) * CELLS.width)
    values = denoiser.log_prob(x.reshape(-1, k.shape[1]), time).reshape(len(k), -1)
    values = values + k.shape[1] * torch.log(torch.as_tensor(alpha * CELLS.width, dtype=torch.float64))
    return values, values.logsumexp(1) - math.log(len(u))


class TestBounds:
    def test_uniform_noise_costs_the_jensen_gap(self) -> None:
        denoiser = mixture_1d()
        values, exact = on_cells(denoiser, K1)
        bound = values.mean(1)
        assert bool((bound < exact - 1e-3).all())
        result = discrete_log_prob(
            denoiser, K1, UNIFORM, samples=4000, batch=24_000, log_prob=density,
            generator=torch.Generator().manual_seed(0), **DOUBLE,
        )  # fmt: skip
        scores = (result.log_prob - bound) / result.std_error
        assert scores.abs().max() < 3.5
        assert bool((result.std_error < 0.1 * (exact - bound)).all())  # so that the gap itself is seen

    def test_total_probability_is_one(self) -> None:
        _, exact = on_cells(mixture_1d(), K1)
        assert float(exact.exp().sum()) == pytest.approx(1, abs=2e-4)  # the oracle of these tests

    @pytest.mark.parametrize("samples", [2, 3])
    def test_importance_weights_are_averaged(self, samples: int) -> None:
        """E log[(w_1 + ... + w_K)/K] by quadrature over all K draws, which a lost log K would miss by 0.7 nats."""
        denoiser = mixture_1d()
        coarse = on_cells(denoiser, K1)[0][:, 10::20]  # 100 nodes
        grids = torch.meshgrid(*[torch.arange(100)] * samples, indexing="ij")
        expected = torch.stack([coarse[:, grid] for grid in grids]).logsumexp(0).flatten(1).mean(1) - math.log(samples)
        result = discrete_log_prob(
            denoiser, K1.repeat(3000, 1), UNIFORM, samples=samples, importance=True, log_prob=density,
            generator=torch.Generator().manual_seed(0), **DOUBLE,
        ).log_prob.reshape(3000, 6)  # fmt: skip
        scores = (result.mean(0) - expected) / (result.std(0) / math.sqrt(3000))
        assert scores.abs().max() < 3.5

    def test_importance_weighted_bounds_grow_to_the_exact_value(self) -> None:
        denoiser = gaussian_2d()
        k = torch.tensor([[2, 2], [3, 3], [3, 2], [4, 3]])
        exact = on_cells(denoiser, k)[1]
        generator = torch.Generator().manual_seed(0)
        means = []
        for samples, repeats in ((1, 6000), (4, 6000), (16, 6000)):
            result = discrete_log_prob(
                denoiser, k.repeat(repeats, 1), UNIFORM, samples=samples, importance=True, log_prob=density,
                generator=generator, **DOUBLE,
            )  # fmt: skip
            means.append(result.log_prob.reshape(repeats, 4).mean(0))
        gaps = (exact - torch.stack(means)).mean(1)
        assert gaps[0] > 2.5 * gaps[1] > 6 * gaps[2] > 0  # like 1/K at last
        many = discrete_log_prob(
            denoiser, k, UNIFORM, samples=4000, batch=16_000, importance=True, log_prob=density,
            generator=generator, **DOUBLE,
        )  # fmt: skip
        assert bool(((many.log_prob - exact).abs() < 3.5 * many.std_error).all())
        assert many.std_error.max() < 0.03

    @pytest.mark.parametrize("t", [1e-2, 0.2])
    def test_truncated_normal_bounds_the_probability_of_the_shrunken_cells(self, t: float) -> None:
        denoiser = mixture_1d()
        law = TruncatedNormalDequantization(**LEVELS, t=t)
        exact = on_cells(denoiser, K1, t)[1]
        options: dict[str, Any] = {"log_prob": density, "generator": torch.Generator().manual_seed(0), **DOUBLE}
        once = discrete_log_prob(denoiser, K1, law, samples=2000, batch=12_000, **options)
        assert bool((once.log_prob < exact + 3 * once.std_error).all())
        if t == 0.2:  # at 1e-2 the noise misses most of these wide cells, and weights cannot mend it
            many = discrete_log_prob(denoiser, K1, law, samples=2000, batch=12_000, importance=True, **options)
            assert bool(((many.log_prob - exact).abs() < 3.5 * many.std_error).all()) and many.std_error.max() < 0.05

    def test_truncated_normal_in_cells_as_small_as_the_noise(self) -> None:
        """Where it is meant for, it loses the KL to uniform noise against P(k) itself, and that is little."""
        denoiser = mixture_1d()
        cells = TruncatedNormalDequantization(levels=4096, value_range=(-3.0, 3.0), t=1e-5)
        sigma = float(SDE.sigma(torch.tensor(1e-5, dtype=torch.float64)))
        tau = cells.width / (2 * sigma)
        z, peak = math.erf(tau / math.sqrt(2)), math.exp(-0.5 * tau**2) / math.sqrt(2 * math.pi)
        loss = math.log(cells.width / (sigma * z)) - 0.5 * math.log(2 * math.pi * math.e) + tau * peak / z
        assert 0 < loss < 5e-3
        k = torch.arange(900, 3200, 100)[:, None]
        result = discrete_log_prob(denoiser, k, cells, samples=500, batch=20_000, log_prob=density, **DOUBLE)
        edges = -3 + k * cells.width
        parts = torch.zeros_like(edges, dtype=torch.float64)
        for weight, mean, variance in ((0.6, -0.8, 0.15), (0.4, 1.1, 0.3)):
            normal = torch.distributions.Normal(
                torch.tensor(mean, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64).sqrt()
            )
            parts += weight * (normal.cdf(edges + cells.width) - normal.cdf(edges))
        scores = (result.log_prob - (parts.log()[:, 0] - loss)) / result.std_error
        assert scores.abs().max() < 4 and result.std_error.max() < 5e-3

    def test_a_trained_flow_beats_uniform_noise_and_closes_most_of_the_gap(self) -> None:
        denoiser = gaussian_2d()
        k = CELLS.level(denoiser.sample(1500, generator=torch.Generator().manual_seed(0)))
        exact = on_cells(denoiser, k)[1].mean()
        torch.manual_seed(1)
        law = VariationalDequantization(shape=(2,), **LEVELS, width=32, depth=1, layers=3, bins=6)
        module, loss = DequantizedDenoiser(denoiser, law), DequantizationLoss()
        optimizer = torch.optim.Adam(law.parameters(), lr=5e-3)
        for _ in range(200):
            optimizer.zero_grad()
            loss(module, CELLS.centre(k[torch.randint(len(k), (256,))])).mean().backward()
            optimizer.step()
        generator = torch.Generator().manual_seed(2)
        uniform, trained = (
            discrete_log_prob(denoiser, k, q, samples=8, batch=12_000, log_prob=density, generator=generator)
            for q in (UNIFORM, law)
        )
        error = 3 * float(summarize(trained.log_prob, trained.std_error).estimator_error)
        gap = float(exact - trained.log_prob.mean())
        assert -error < gap < 0.35 * float(exact - uniform.log_prob.mean())
        assert trained.std_error.mean() < 0.6 * uniform.std_error.mean()


class TestEstimate:
    @pytest.mark.parametrize("importance", [False, True])
    def test_error_bars_cover(self, importance: bool) -> None:
        denoiser = mixture_1d()
        k = torch.full((1500, 1), 2)
        values, exact = on_cells(denoiser, k[:1])
        result = discrete_log_prob(
            denoiser, k, UNIFORM, samples=100, importance=importance, log_prob=density,
            generator=torch.Generator().manual_seed(0), **DOUBLE,
        )  # fmt: skip
        scores = (result.log_prob - (exact if importance else values.mean(1))) / result.std_error
        assert 0.92 < float((scores.abs() < 2).double().mean()) < 0.98
        assert float(result.std_error.mean()) == pytest.approx(float(result.log_prob.std()), rel=0.1)
        assert torch.equal(result.nfe, torch.full((1500,), 100))
        assert result.log_prob.dtype == torch.float64

    def test_fields_of_the_density_are_combined(self) -> None:
        def noisy(denoiser: Denoiser, x: Tensor, *, t_start: float | None, generator: Any) -> Any:
            zero = 0 * x[:, 0]
            return LogProb(x[:, 0], 3 + zero, x, torch.arange(len(x)), 0.5 + zero, zero, {1: "no step"})

        denoiser, k = mixture_1d(), torch.tensor([[0], [3]])
        result = discrete_log_prob(denoiser, k, UNIFORM, samples=9, log_prob=noisy)
        torch.testing.assert_close(result.probe_error, torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(result.solver_error, torch.full((2,), 0.5, dtype=torch.float64))
        assert result.nfe.tolist() == [0, 9] and result.failures == {1: "no step"}

        weighted = discrete_log_prob(
            denoiser, k, UNIFORM, samples=9, importance=True, log_prob=noisy, generator=torch.Generator().manual_seed(0)
        )
        u = torch.rand(9, 2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[..., 0]
        share = (u * CELLS.width).softmax(0)
        torch.testing.assert_close(weighted.probe_error, 3 * share.square().sum(0).sqrt(), rtol=1e-5, atol=0)
        torch.testing.assert_close(weighted.solver_error, torch.full((2,), 0.5, dtype=torch.float64))

        folded = discrete_log_prob(denoiser, k, UNIFORM, samples=9, batch=8, log_prob=noisy)
        assert folded.nfe.tolist() == [2 * (0 + 2 + 4 + 6) + 0, 2 * (1 + 3 + 5 + 7) + 1]

    def test_one_draw_has_no_error_bar_and_unknown_fields_are_nan(self) -> None:
        def plain(denoiser: Denoiser, x: Tensor, *, t_start: float | None, generator: Any) -> Any:
            return Bound(x[:, 0], torch.full((len(x),), math.nan), {}, torch.full((len(x),), 4))

        for importance in (False, True):
            result = discrete_log_prob(mixture_1d(), K1, UNIFORM, importance=importance, log_prob=plain)
            assert isinstance(result, DiscreteLogProb) and result.nfe.tolist() == [4] * 6
            assert all(bool(v.isnan().all()) for v in (result.std_error, result.probe_error, result.solver_error))
            assert bool(result.log_prob.isfinite().all()) and result.failures == {}

    def test_a_failed_row_does_not_touch_the_others(self) -> None:
        def broken(denoiser: Denoiser, x: Tensor, **options: Any) -> Any:
            return known(torch.where(x[:, 0] > 2, math.nan, 0.0))

        for importance in (False, True):
            result = discrete_log_prob(
                mixture_1d(), K1, UNIFORM, samples=3, importance=importance, log_prob=broken, **DOUBLE
            )
            assert result.log_prob.isnan().tolist() == [False] * 5 + [True]

    def test_the_probability_flow_is_the_default_density(self) -> None:
        denoiser = GaussianDenoiser(SDE, cov=torch.tensor(COV))  # p_1 is π to 1e-4
        k = torch.tensor([[2, 2], [3, 3], [1, 4]])
        options: dict[str, Any] = {"samples": 4, "importance": True, "seeds": 5, **DOUBLE}
        flow = discrete_log_prob(denoiser, k, UNIFORM, divergence="exact", batch=12, **options)
        exact = discrete_log_prob(denoiser, k, UNIFORM, log_prob=density, **options)
        torch.testing.assert_close(flow.log_prob, exact.log_prob, rtol=0, atol=1e-3)
        torch.testing.assert_close(flow.std_error, exact.std_error, rtol=1e-3, atol=1e-4)
        assert bool((flow.probe_error == 0).all()) and bool((flow.nfe >= 4 * 10).all())

        law = TruncatedNormalDequantization(**LEVELS, t=0.1)  # has a time of its own
        flow = discrete_log_prob(denoiser, k, law, divergence="exact", seeds=1, **DOUBLE)
        exact = discrete_log_prob(denoiser, k, law, log_prob=density, seeds=1, **DOUBLE)
        torch.testing.assert_close(flow.log_prob, exact.log_prob, rtol=0, atol=1e-3)

    def test_probes_are_part_of_the_error(self) -> None:
        result = discrete_log_prob(
            gaussian_2d(), torch.tensor([[2, 2], [3, 3]]), UNIFORM, samples=3, probes=2, probe="gaussian"
        )
        assert bool((result.probe_error > 0).all()) and bool((result.std_error > 0).all())


class Shifted(Denoiser):
    """Data whose mean is a condition of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.sde, self.law = SDE, GaussianDenoiser(SDE, 0.0, 0.6)

    def forward(self, x: Tensor, t: Tensor, *, mean: Tensor, **cond: Any) -> Tensor:
        return mean + self.law(x - expand(SDE.alpha(t), x) * mean, t)

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self


class TestBatches:
    @pytest.mark.parametrize("importance", [False, True])
    def test_an_example_follows_from_its_seed_alone(self, importance: bool) -> None:
        denoiser, k = gaussian_2d(), torch.tensor([[2, 2], [3, 3], [1, 4], [0, 5]])
        law = VariationalDequantization(shape=(2,), **LEVELS, width=8)
        options: dict[str, Any] = {"samples": 5, "importance": importance, "probes": 2, "rtol": 1e-4, "atol": 1e-4}
        whole = discrete_log_prob(denoiser, k, law, seeds=[7, 8, 9, 10], **options)
        part = discrete_log_prob(denoiser, k[2:3], law, seeds=[9], **options)
        folded = discrete_log_prob(denoiser, k, law, seeds=torch.tensor([7, 8, 9, 10]), batch=9, **options)
        for other, rows in ((part, slice(2, 3)), (folded, slice(0, 4))):
            for name in ("log_prob", "std_error", "probe_error"):
                torch.testing.assert_close(getattr(other, name), getattr(whole, name)[rows], rtol=0, atol=1e-4)
            assert torch.equal(other.nfe, whole.nfe[rows])
        assert not torch.allclose(
            whole.log_prob, discrete_log_prob(denoiser, k, law, seeds=[1, 2, 3, 4], **options).log_prob, atol=1e-3
        )

    def test_draws_differ_from_each_other_and_between_examples(self) -> None:
        seen: list[Tensor] = []
        keys: list[int] = []

        def spy(denoiser: Denoiser, x: Tensor, *, t_start: float | None, seeds: list[int]) -> Any:
            seen.append(x)
            keys.extend(seeds)
            return known(x[:, 0])

        k = torch.full((500, 1), 2)
        discrete_log_prob(mixture_1d(), k, UNIFORM, samples=6, batch=1000, seeds=0, log_prob=spy, **DOUBLE)
        places = (torch.cat(seen) - CELLS.value_range[0]) / CELLS.width - 2
        assert [len(x) for x in seen] == [1000] * 3 and len(set(keys)) == 3000
        assert len(places.unique()) == 3000
        assert abs(float(places.mean()) - 0.5) < 4 / math.sqrt(12 * 3000)
        assert float(places.var()) == pytest.approx(1 / 12, rel=0.06)
        assert float(places.sort(0).values.diff(dim=0).max()) < 0.006  # uniform, not normal

    def test_conditions_go_with_their_examples(self) -> None:
        """Draws put together with conditions give what each example gives alone."""
        k, mean = torch.tensor([[1], [4], [3]]), torch.tensor([[-1.5], [1.2], [0.0]])
        options: dict[str, Any] = {"samples": 4, "divergence": "exact", "rtol": 1e-4, "atol": 1e-4}
        together = discrete_log_prob(Shifted().given(mean=mean), k, UNIFORM, batch=6, seeds=[1, 2, 3], **options)
        for row in range(3):
            model = Shifted().given(mean=mean[row : row + 1])
            alone = discrete_log_prob(model, k[row : row + 1], UNIFORM, seeds=[row + 1], **options)
            torch.testing.assert_close(together.log_prob[row], alone.log_prob[0], rtol=0, atol=1e-4)

    def test_a_denoiser_that_cannot_be_split_gets_one_draw_at_a_time(self) -> None:
        rows: list[int] = []

        def spy(denoiser: Denoiser, x: Tensor, **options: Any) -> Any:
            rows.append(len(x))
            return known(x[:, 0])

        model = Shifted().given(mean=[0.0])  # a list, which could be anything
        discrete_log_prob(model, K1, UNIFORM, samples=3, batch=100, log_prob=spy)
        assert rows == [6, 6, 6]

    def test_gradients_reach_the_dequantisation(self) -> None:
        law = VariationalDequantization(shape=(2,), **LEVELS, width=8)
        k = torch.tensor([[2, 2], [3, 3]])
        options: dict[str, Any] = {"divergence": "exact", "rtol": 1e-2, "atol": 1e-2}
        plain = discrete_log_prob(gaussian_2d(), k, law, log_prob=density)
        assert not plain.log_prob.requires_grad
        result = discrete_log_prob(gaussian_2d(), k, law, create_graph=True, **options)
        result.log_prob.sum().backward()
        assert all(p.grad is not None for p in law.networks[-1].output.parameters())

    def test_what_is_refused(self) -> None:
        for options in ({"samples": 0}, {"batch": 0}):
            with pytest.raises(ValueError, match="discrete_log_prob needs (samples|batch) >= 1"):
                discrete_log_prob(mixture_1d(), K1, UNIFORM, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="discrete_log_prob needs one seed per sample: expected 6, got 2"):
            discrete_log_prob(mixture_1d(), K1, UNIFORM, seeds=[1, 2])
        with pytest.raises(TypeError, match="got continuous data"):
            discrete_log_prob(mixture_1d(), K1.double(), UNIFORM)
        with pytest.raises(ValueError, match="integers outside the range"):
            discrete_log_prob(mixture_1d(), K1 + 1, UNIFORM)


class TestBits:
    @pytest.mark.parametrize(
        "levels, value_range, offset",
        [(256, (-1.0, 1.0), 7), (256, (0.0, 1.0), 8), (256, (-2.0, 2.0), 6), (2, (0.0, 1.0), 1), (17, (0.0, 17.0), 0)],
    )
    def test_offset(self, levels: int, value_range: tuple[float, float], offset: float) -> None:
        bits = bits_per_dim(torch.zeros(2), (3, 2), levels=levels, value_range=value_range)
        torch.testing.assert_close(bits, torch.full((2,), float(offset)))
        log_q = UniformDequantization(levels=levels, value_range=value_range)(torch.zeros(1, 3, 2).long(), SDE).log_q
        assert float(bits_per_dim(-log_q, (3, 2), levels=None)[0]) == pytest.approx(offset, abs=1e-12)

    def test_of_a_probability_of_levels(self) -> None:
        assert float(bits_per_dim(torch.tensor(-12 * math.log(2)), (2, 3), levels=None)) == pytest.approx(2)

    @pytest.mark.parametrize("levels, value_range", [(256, (-1.0, 1.0)), (17, (0.0, 1.0)), (65536, (-1.0, 1.0))])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_data_without_dequantisation_are_recognised(
        self, levels: int, value_range: tuple[float, float], dtype: torch.dtype
    ) -> None:
        cells = UniformDequantization(levels=levels, value_range=value_range)
        k = torch.randint(0, levels, (6, 5), generator=torch.Generator().manual_seed(0))
        low, high = value_range
        for words, x in (
            ("centres", cells.centre(k, torch.float64)),
            ("edges", low + k * cells.width),
            ("places", low + k.double() * (high - low) / (levels - 1)),
        ):
            message = check_dequantized(x.to(dtype), cells)
            assert message is not None and f"lies on the {words} of {levels} levels" in message
            assert "bits/dim below 0" in message
        noisy = cells(k, SDE, generator=torch.Generator().manual_seed(1), dtype=dtype).x
        assert check_dequantized(noisy, cells) is None
        almost = cells.centre(k, dtype)
        almost[3, 2] += 0.3 * cells.width
        assert check_dequantized(almost, cells) is None
        assert check_dequantized(torch.full((3, 2), math.nan), cells) is None


class TestSummary:
    def test_errors_of_known_variances(self) -> None:
        """Values = truth + data scatter 2 + estimator scatter s_i: every error is a known number, and it covers."""
        generator = torch.Generator().manual_seed(0)
        n, repeats = 400, 500
        std = torch.linspace(0.5, 2.5, n, dtype=torch.float64)
        normal = torch.randn(2, repeats, n, generator=generator, dtype=torch.float64)
        values = 1.3 + 2 * normal[0] + std * normal[1]
        summaries = [summarize(row, std) for row in values]
        estimator = math.sqrt(float(std.square().sum())) / n
        data = 2 / math.sqrt(n)
        assert all(s.estimator_error == pytest.approx(estimator, rel=1e-12) for s in summaries)
        assert sum(s.data_error for s in summaries) / repeats == pytest.approx(data, rel=0.01)
        total = math.hypot(data, estimator)
        assert sum(s.std_error for s in summaries) / repeats == pytest.approx(total, rel=0.01)
        assert float(torch.tensor([s.mean for s in summaries]).std()) == pytest.approx(total, rel=0.1)
        covered = sum(abs(s.mean - 1.3) < 2 * s.std_error for s in summaries) / repeats
        assert 0.92 < covered < 0.98
        assert all(s.std_error**2 == pytest.approx(s.estimator_error**2 + s.data_error**2) for s in summaries)
        # a second run on the same examples differs by the estimator's error alone
        other = values[0] + std * (torch.randn(repeats, n, generator=generator, dtype=torch.float64) - normal[1, 0])
        assert float(other.mean(1).std()) == pytest.approx(estimator, rel=0.1)

    def test_failed_examples_are_counted_and_left_out(self) -> None:
        values = torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf])
        result = summarize(values, torch.tensor([0.3, math.nan, 0.4, 9.0, 9.0]))
        assert (result.mean, result.n, result.failed) == (2.0, 2, 3)
        assert result.std_error == pytest.approx(1.0)
        assert result.estimator_error == pytest.approx(0.25)

    def test_what_cannot_be_known_is_nan(self) -> None:
        assert math.isnan(summarize(torch.tensor([1.0])).std_error)
        nothing = summarize(torch.tensor([math.nan]))
        assert math.isnan(nothing.mean) and (nothing.n, nothing.failed) == (0, 1)
        for unknown in (None, torch.full((3,), math.nan)):
            result = summarize(torch.tensor([1.0, 2.0, 3.0]), unknown)
            assert math.isnan(result.estimator_error) and math.isnan(result.data_error)
            assert result.std_error == pytest.approx(1 / math.sqrt(3))
        exact = summarize(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
        assert exact.estimator_error == 0 and exact.data_error == pytest.approx(exact.std_error)
        assert summarize(torch.tensor([1.0, 1.1]), torch.tensor([5.0, 5.0])).data_error == 0

    def test_errors_known_for_some_examples_stand_for_all(self) -> None:
        std = torch.tensor([0.2, math.nan, 0.2, math.nan])
        assert summarize(torch.arange(4.0), std).estimator_error == pytest.approx(0.1)

    @pytest.mark.parametrize("offset", [0.0, 1e8])
    def test_parts_give_the_whole(self, offset: float) -> None:
        generator = torch.Generator().manual_seed(0)
        values = offset + torch.randn(57, generator=generator, dtype=torch.float64)
        std = torch.rand(57, generator=generator)
        whole, running = summarize(values, std), RunningMean()
        for part, error in zip(values.split(13), std.split(13), strict=True):
            running.update(part, error)
        running.update(torch.empty(0))
        assert running.summary() == pytest.approx(whole, rel=1e-7)
        assert whole.mean == pytest.approx(float(values.mean()), rel=1e-14)
        assert whole.std_error == pytest.approx(float(values.std()) / math.sqrt(57), rel=1e-7)

    def test_errors_must_match_values(self) -> None:
        with pytest.raises(ValueError, match="one std_error for each value, got 2 for 3"):
            summarize(torch.zeros(3), torch.zeros(2))


def test_the_density_is_not_a_special_function() -> None:
    """`scoresde.log_prob` given by hand is the default."""
    k = torch.tensor([[2, 2], [3, 3]])
    first = discrete_log_prob(gaussian_2d(), k, UNIFORM, seeds=3, rtol=1e-3)
    second = discrete_log_prob(gaussian_2d(), k, UNIFORM, seeds=3, rtol=1e-3, log_prob=log_prob)
    assert torch.equal(first.log_prob, second.log_prob)
