"""Reported errors of a mean against its scatter over 200 seeds, on an exact mixture; intervals against Student's t."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixtureDenoiser, log_prob
from scoresde.commands import FlowLikelihood, NoVariance
from scoresde.commands.interfaces import DRAWS, StoredBatch
from scoresde.commands.likelihood_words import Unit, _sentence
from scoresde.data import Quantized, Standardized
from scoresde.likelihood import Summary, coverage_factor, elbo, summarize, vlb
from scoresde.noise import stream_seed

SEEDS, EXAMPLES, DIM = 200, 24, 4
FIXED = {"method": "rk4", "steps": 4}


@cache
def denoiser() -> GaussianMixtureDenoiser:
    generator = torch.Generator().manual_seed(3)
    return GaussianMixtureDenoiser.random(VPSDE(), dim=DIM, components=4, generator=generator)


def rms(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


@cache
def examples() -> tuple[Tensor, Tensor]:
    """Another draw of the examples for every seed, (SEEDS · EXAMPLES, DIM), and their values by the exact trace."""
    x = denoiser().sample(SEEDS * EXAMPLES, generator=torch.Generator().manual_seed(1))
    return x, log_prob(denoiser(), x, divergence="exact", **FIXED).log_prob  # type: ignore[arg-type]


def evaluated(x: Tensor, codec: Any, **options: Any) -> tuple[Tensor, list[Summary]]:
    """Values (SEEDS, EXAMPLES) as the command line finds them, and the summary for every seed."""
    trained: Any = SimpleNamespace(denoiser=denoiser(), codec=codec, dequantize=True)
    seeds = [stream_seed(seed, "example", row) for seed in range(SEEDS) for row in range(EXAMPLES)]
    scores = FlowLikelihood(**FIXED, **options).prepare(trained, NoVariance())(StoredBatch(x, {}, seeds))
    columns = [part.reshape(SEEDS, EXAMPLES) for part in (scores.nats, scores.std_error, scores.terms[DRAWS])]
    return columns[0], [summarize(*rows) for rows in zip(*columns, strict=True)]


def check_total(values: Tensor, summaries: list[Summary]) -> None:
    scatter = float(values.mean(1).std())
    assert rms([summary.std_error for summary in summaries]) == pytest.approx(scatter, rel=0.15)


def check_estimator(noise: Tensor, summaries: list[Summary]) -> None:
    """`noise` (SEEDS, EXAMPLES) is what the estimator adds to values of its expectation."""
    known = [summary.estimator_error for summary in summaries if not math.isnan(summary.estimator_error)]
    assert len(known) > 0.98 * SEEDS
    assert rms(known) == pytest.approx(float(noise.mean(1).std()), rel=0.15)


PLAIN = {"mean": torch.zeros(DIM, dtype=torch.float64), "std": torch.ones(DIM, dtype=torch.float64)}


@pytest.mark.parametrize("probes, repeat", [(1, 0.5), (1, 1.0), (2, 0.0), (4, 0.5), (16, 0.0)])
@pytest.mark.parametrize("probe", ["rademacher", "orthogonal"])
def test_the_flow_s_errors_are_the_scatter_over_seeds(probe: str, probes: int, repeat: float) -> None:
    x, exact = examples()
    values, summaries = evaluated(x, Standardized(**PLAIN), probe=probe, probes=probes, repeat=repeat)
    check_total(values, summaries)
    if probe == "orthogonal" and probes >= DIM:
        assert all(summary.estimator_error == 0 for summary in summaries)
    else:
        check_estimator(values - exact.reshape(values.shape), summaries)


def test_one_probe_without_repeats_does_not_know_its_part() -> None:
    values, summaries = evaluated(examples()[0], Standardized(**PLAIN), repeat=0.0)
    check_total(values, summaries)
    assert all(math.isnan(summary.estimator_error) and math.isnan(summary.data_error) for summary in summaries)


@pytest.mark.parametrize("options", [{"divergence": "exact"}, {"probes": 4}], ids=str)
def test_a_draw_at_the_data_end_counts_as_the_estimator_s(options: dict[str, Any]) -> None:
    x, repeated = examples()[0][:EXAMPLES], {"below": "decoder", "t_start": 1e-2, **options}
    values, summaries = evaluated(x.repeat(SEEDS, 1), Standardized(**PLAIN), repeat=0.5, **repeated)
    check_estimator(values - values.mean(0), summaries)
    assert log_prob(denoiser(), x, **repeated, **FIXED).std_error.isnan().all()


@pytest.mark.parametrize("samples, repeat", [(1, 0.3), (2, 0.0)])
def test_a_draw_of_the_dequantisation_counts_as_the_estimator_s(samples: int, repeat: float) -> None:
    levels = Quantized(levels=8, value_range=(-3.0, 3.0))
    k = ((examples()[0][:EXAMPLES] + 3) / levels.cells.width).long().clamp(0, 7)
    values, summaries = evaluated(k.repeat(SEEDS, 1), levels, samples=samples, repeat=repeat, t_start=1e-2)
    check_estimator(values - values.mean(0), summaries)


@pytest.mark.parametrize("sampling, samples", [("stratified", 2), ("stratified", 8), ("antithetic", 2)])
def test_the_sde_bound_s_error_is_the_scatter_of_the_batch_s_mean(sampling: str, samples: int) -> None:
    """The examples of a batch share out their noise levels, so that its mean is surer than they are by themselves."""
    x, means, errors, alone = examples()[0][:EXAMPLES], [], [], []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        bound = elbo(denoiser(), x, samples=samples, sampling=sampling, generator=generator)
        means.append(float(bound.log_prob.mean()))
        errors.append(summarize(bound.log_prob, bound.mean_error).estimator_error)
        alone.append(summarize(bound.log_prob, bound.std_error).estimator_error)
    assert rms(errors) == pytest.approx(float(torch.tensor(means).std()), rel=0.15)
    assert rms(alone) > (1.3 if samples == 2 else 1.0) * rms(errors)


@pytest.mark.parametrize("options", [{}, {"draws": 4}], ids=str)
@pytest.mark.parametrize("samples", [2, 4, 16])
def test_the_chain_s_error_is_the_scatter_of_the_batch_s_mean(samples: int, options: dict[str, Any]) -> None:
    x = examples()[0][:EXAMPLES].repeat(SEEDS, 1)
    bound = vlb(denoiser(), x, steps=8, samples=samples, generator=torch.Generator().manual_seed(0), **options)
    values, errors = bound.log_prob.reshape(SEEDS, EXAMPLES), bound.std_error.reshape(SEEDS, EXAMPLES)
    assert bound.mean_error is not None and torch.equal(bound.mean_error, bound.std_error)
    check_estimator(values - values.mean(0), [summarize(*rows) for rows in zip(values, errors, strict=True)])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_small_batches_have_an_error_too(batch: int) -> None:
    bound = elbo(denoiser(), examples()[0][:batch], samples=5, generator=torch.Generator().manual_seed(0))
    assert bound.mean_error is not None and bool((bound.mean_error > 0).all())
    if batch == 1:
        torch.testing.assert_close(bound.mean_error, bound.std_error)


def test_more_draws_are_advised_where_the_estimator_matters() -> None:
    generator = torch.Generator().manual_seed(0)

    def advised(share: float, n: int) -> float:
        """How often, for an estimator that makes such a share of the variance, known from two draws each."""
        found = []
        for _ in range(200):
            data, first, second = torch.randn(3, n, generator=generator, dtype=torch.float64)
            pair = torch.stack([first, second]) * math.sqrt(2 * share)
            values = math.sqrt(1 - share) * data + pair.mean(0)
            found.append(summarize(values, pair.std(0) / math.sqrt(2)).more_draws_help)
        return sum(found) / len(found)

    assert advised(0.7, 400) > 0.95 and advised(0.1, 400) < 0.05
    assert advised(0.1, 8) < 0.05 and advised(0.2, 40) < 0.05  # what a few draws say may be chance
    assert not summarize(torch.randn(5)).more_draws_help
    assert not summarize(torch.tensor([1.0]), torch.tensor([2.0])).more_draws_help


def test_coverage_factors_are_student_s_quantiles() -> None:
    freedom = torch.tensor([1.0, 2.0, 3.0, 10.0, 30.0, 1000.0, math.inf])
    tables = {
        0.95: [12.7062, 4.30265, 3.18245, 2.22814, 2.04227, 1.96234, 1.959964],
        0.99: [63.6567, 9.92484, 5.84091, 3.16927, 2.75000, 2.58075, 2.575829],
    }
    for level, expected in tables.items():
        torch.testing.assert_close(
            coverage_factor(freedom, level), torch.tensor(expected, dtype=torch.float64), rtol=3e-6, atol=0
        )
    with pytest.raises(ValueError, match="level between 0 and 1"):
        coverage_factor(3, 95)
    low, high = summarize(torch.tensor([1.0, 2.0, 3.0])).interval()
    assert (low, high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), rel=1e-5)


def test_single_draws_take_the_variance_of_the_repeated() -> None:
    errors, draws = torch.tensor([math.nan, math.nan, 0.3, 0.5]), torch.tensor([1.0, 3.0, 2.0, 2.0])
    per_draw = (2 * 0.3**2 + 2 * 0.5**2) / 2
    expected = math.sqrt(0.3**2 + 0.5**2 + per_draw + per_draw / 3) / 4
    assert summarize(torch.arange(4.0), errors, draws).estimator_error == pytest.approx(expected)
    endless = torch.tensor([1.0, 1.0, math.inf, math.inf])  # exact: they tell nothing of one draw
    assert math.isnan(summarize(torch.arange(4.0), torch.tensor([math.nan, math.nan, 0, 0]), endless).estimator_error)
    with pytest.raises(ValueError, match="one draws for each value, got 2 for 4"):
        summarize(torch.arange(4.0), errors, torch.ones(2))


def test_a_part_that_looks_larger_than_the_whole_is_said_to_be_about_all_of_it() -> None:
    summary = Summary(2.0, 0.04, 0.05, 0.0, 32, 0)
    assert "the estimator's part of it: about all, ± 0.0500 by itself" in _sentence(summary, Unit(True, -1.0), "rows")
    smaller = summary._replace(estimator_error=0.01)
    assert "the estimator's part of it: ± 0.0100" in _sentence(smaller, Unit(True, -1.0), "rows")
