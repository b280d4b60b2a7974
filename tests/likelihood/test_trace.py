"""Traces: exact in chunks, unbiased estimates with the variance that theory gives them, and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from closed_forms import mixture
from torch import Tensor

from scoresde import VPSDE, GaussianDenoiser, log_prob
from scoresde.likelihood import trace as trace_module
from scoresde.likelihood.intervals import coverage_factor, interval
from scoresde.likelihood.trace import PROBES, Trace, draw_probes, mean_and_error, trace_of

DIM = 6


def matrix(rank: int = DIM) -> Tensor:
    """A matrix far from symmetric."""
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(2, DIM, rank, generator=generator, dtype=torch.float64)
    return left @ right.T


def linear(a: Tensor, batch: int, shape: tuple[int, ...] = (DIM,)) -> tuple[Tensor, Tensor]:
    x = torch.zeros(batch, *shape, dtype=torch.float64, requires_grad=True)
    return (x.flatten(1) @ a.T).reshape(x.shape), x


def values(divergence: str, a: Tensor, batch: int, probes: int, probe: str) -> tuple[Tensor, Trace]:
    output, x = linear(a, batch)
    estimate = trace_of(divergence, x, probes, probe, range(batch))
    return estimate(output, x), estimate


def symmetric(a: Tensor) -> Tensor:
    return 0.5 * (a + a.T)


VARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "rademacher": lambda s: 2 * (s.square().sum() - s.diagonal().square().sum()),
    "gaussian": lambda s: 2 * s.square().sum(),
    # x uniform on the sphere of radius √d: E (xᵀSx)² = d/(d+2) ((tr S)² + 2‖S‖²)
    "orthogonal": lambda s: DIM / (DIM + 2) * (s.trace() ** 2 + 2 * s.square().sum()) - s.trace() ** 2,
}


@pytest.mark.parametrize("probe", PROBES)
def test_one_probe_is_unbiased_with_the_variance_of_theory(probe: str) -> None:
    a, batch = matrix(), 40_000
    found = values("hutchinson", a, batch, 1, probe)[0][:, 0]
    variance = VARIANCES[probe](symmetric(a))
    assert abs(float((found.mean() - a.trace()) / (variance / batch).sqrt())) < 4
    torch.testing.assert_close(found.var(), variance, rtol=0.03, atol=0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_orthogonal_probes_vary_as_draws_without_replacement(count: int) -> None:
    """Var of the mean of K is Var/K (d − K)/(d − 1), and the squared standard error estimates it."""
    a, batch = matrix(), 20_000
    found, estimate = values("hutchinson", a, batch, count, "orthogonal")
    mean, error = mean_and_error(found, estimate, DIM)
    variance = VARIANCES["orthogonal"](symmetric(a)) / count * (DIM - count) / (DIM - 1)
    torch.testing.assert_close(mean.var(), variance, rtol=0.05, atol=0)
    torch.testing.assert_close(error.square().mean(), variance, rtol=0.05, atol=0)
    vectors = estimate.probes
    assert vectors is not None
    torch.testing.assert_close(vectors @ vectors.mT, (DIM * torch.eye(count)).double().expand(batch, -1, -1))


@pytest.mark.parametrize("count", [DIM, DIM + 3])
def test_as_many_orthogonal_probes_as_entries_are_exact(count: int) -> None:
    a = matrix()
    found, estimate = values("hutchinson", a, 5, count, "orthogonal")
    mean, error = mean_and_error(found, estimate, DIM)
    torch.testing.assert_close(mean, a.trace().expand(5), rtol=1e-12, atol=1e-12)
    assert torch.equal(error, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("probe", PROBES)
def test_hutch_plus_plus_is_exact_for_ranks_up_to_its_sketch(probe: str) -> None:
    probes = 8  # 2 for the sketch
    for rank in (1, 2):
        a = matrix(rank)
        torch.testing.assert_close(
            values("hutch++", a, 20, probes, probe)[0], a.trace().expand(20, 4), rtol=1e-10, atol=1e-10
        )
    wide = values("hutch++", matrix(3), 20, probes, probe)[0]
    assert float((wide - matrix(3).trace()).abs().max()) > 1e-2


def test_hutch_plus_plus_is_unbiased_and_varies_less_where_few_directions_matter() -> None:
    a, batch = matrix(2) + 0.02 * matrix(), 20_000
    found, estimate = values("hutch++", a, batch, 8, "gaussian")
    assert estimate.values == 4 and estimate.sketch is not None and estimate.sketch.shape[1] == 2
    mean, error = mean_and_error(found, estimate, DIM)
    assert abs(float((mean.mean() - a.trace()) / (mean.std() / math.sqrt(batch)))) < 4
    plain = values("hutchinson", a, batch, 8, "gaussian")[0].mean(1)
    assert float(mean.var()) < 0.05 * float(plain.var())
    half = coverage_factor(estimate.values - 1) * error
    assert 0.90 <= float(((mean - a.trace()).abs() < half).double().mean()) <= 0.98


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10, 20])
def test_squared_errors_are_unbiased_and_intervals_cover_for_few_probes(count: int) -> None:
    normals = torch.randn(40_000, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    mean, error = mean_and_error(normals, Trace(normals), 10**6)
    assert float(error.square().mean()) == pytest.approx(1 / count, rel=0.03)
    for level in (0.5, 0.95):
        low, high = interval(mean, error, count - 1, level)
        assert float(((low < 0) & (high > 0)).double().mean()) == pytest.approx(level, abs=0.008)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "hutch++"])
def test_chunks_of_any_size_agree(divergence: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a = matrix()
    output, x = linear(a, 5, (2, 3))
    estimate = trace_of(divergence, x, 7, "gaussian", range(5))
    whole = estimate(output, x)
    monkeypatch.setattr(trace_module, "TRACE_CHUNK_ENTRIES", chunk * x.numel())
    output, x = linear(a, 5, (2, 3))
    torch.testing.assert_close(estimate(output, x), whole, rtol=1e-12, atol=1e-12)
    if divergence == "exact":
        torch.testing.assert_close(whole[:, 0], a.trace().expand(5), rtol=1e-12, atol=1e-12)
    assert output.grad_fn is not None
    with pytest.raises(RuntimeError, match="second time"):  # nothing of the graph is kept
        torch.autograd.grad(torch.nn.functional.silu(output).sum(), x)
        trace_of("exact", x, 1, "gaussian", range(5))(output, x)
        torch.autograd.grad(output.sum(), x)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("shape", [(3,), (4, 25)], ids=str)
def test_probes_of_a_sample_follow_from_its_seed_alone(probe: str, shape: tuple[int, ...]) -> None:
    x, seeds = torch.zeros(4, *shape), [11, 5, 7, 12345678901234567890]
    together = draw_probes(probe, x, 2, seeds)
    assert together.shape == (4, 2, *shape) and together.dtype == torch.float32
    for k, seed in enumerate(seeds):
        torch.testing.assert_close(draw_probes(probe, x[:1], 2, [seed])[0], together[k], rtol=0, atol=0)
    if probe != "orthogonal":
        assert torch.equal(draw_probes(probe, x, 1, seeds), together[:, :1])  # more probes keep the first ones
    if probe == "rademacher":
        assert torch.equal(together.abs(), torch.ones_like(together))


@pytest.mark.parametrize(
    "probe, options",
    [
        ("rademacher", {"probes": 6}),
        ("gaussian", {"probes": 5}),
        ("orthogonal", {"probes": 4}),
        ("gaussian", {"probes": 9, "divergence": "hutch++"}),
        ("orthogonal", {"probes": 9, "divergence": "hutch++"}),
    ],
    ids=str,
)
def test_intervals_cover_the_exact_log_prob(probe: str, options: dict[str, object]) -> None:
    """On a full-covariance Gaussian, whose divergence along any path is tr of one matrix."""
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    denoiser = GaussianDenoiser(VPSDE(), 0.0, cov=a @ a.T / 8 + 0.05 * torch.eye(8, dtype=torch.float64))
    x = denoiser.sample(1000, generator=torch.Generator().manual_seed(4))
    loose = {"rtol": 1e-4, "atol": 1e-4}
    exact = log_prob(denoiser, x, divergence="exact", **loose).log_prob  # type: ignore[arg-type]
    found = log_prob(denoiser, x, probe=probe, seeds=5, **loose, **options)  # type: ignore[arg-type]
    low, high = found.interval()
    assert 0.92 <= float(((low < exact) & (exact < high)).double().mean()) <= 0.98
    assert abs(float((found.log_prob - exact).mean() / found.std_error.square().mean().sqrt())) < 0.1


def test_intervals_cover_on_a_mixture() -> None:
    denoiser = mixture(VPSDE())
    x = denoiser.sample(1000, generator=torch.Generator().manual_seed(2))
    loose = {"rtol": 1e-4, "atol": 1e-4}
    exact = log_prob(denoiser, x, divergence="exact", **loose).log_prob  # type: ignore[arg-type]
    for probe in ("rademacher", "gaussian"):
        found = log_prob(denoiser, x, probes=12, probe=probe, seeds=3, **loose)  # type: ignore[arg-type]
        low, high = found._replace(std_error=found.std_error.clamp(min=1e-3)).interval()  # the steps have errors too
        assert 0.90 <= float(((low < exact) & (exact < high)).double().mean()) <= 0.985
    both = log_prob(denoiser, x, probes=2, probe="orthogonal", seeds=3, **loose)  # type: ignore[arg-type]
    torch.testing.assert_close(both.log_prob, exact, rtol=0, atol=1e-2)
    assert torch.equal(both.std_error, torch.zeros_like(exact))
