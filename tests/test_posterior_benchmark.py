"""benchmarks/posteriors.py: its exact posterior, its scores, and a run on a file of problems."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from scoresde import VPSDE, GaussianMixtureDenoiser

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/posterior_problems.py; its neighbours are imported as when the script runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import posterior_problems  # type: ignore[import-not-found]

    return posterior_problems


def test_posterior_is_bayes_rule(problems: ModuleType) -> None:
    """log p(x0 | y) + log p(y) = log p(x0) + log p(y | x0), at any x0."""
    (problem,) = problems.family(8, 2, 1)
    weights, means, cov = problem.posterior()
    x = means[weights.topk(3).indices] + torch.linspace(-0.1, 0.1, 8, dtype=torch.float64)

    def mixture(w: torch.Tensor, mu: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
        return (w.log() + torch.distributions.MultivariateNormal(mu, cov).log_prob(x[:, None])).logsumexp(1)

    prior = mixture(problem.w, problem.mu, problem.var * torch.eye(8, dtype=torch.float64))
    likelihood = torch.distributions.Normal(x @ problem.A.T, problem.sigma_y).log_prob(problem.y).sum(1)
    posterior = mixture(weights, means, cov)
    torch.testing.assert_close(posterior + problem.log_evidence(), prior + likelihood, rtol=1e-8, atol=1e-8)


def test_denoiser_is_that_of_the_library(problems: ModuleType) -> None:
    (problem,) = problems.family(8, 1, 1)
    sde, t = VPSDE(), torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    exact = GaussianMixtureDenoiser(sde, problem.w, problem.mu, torch.full((25, 8), problem.var))
    x = problem.mu[3:6] + 0.2
    ours = problem.denoised(x, sde.alpha(t)[:, None], sde.sigma(t)[:, None])
    torch.testing.assert_close(ours, exact(x, t), rtol=1e-9, atol=1e-9)


def test_exact_samples_are_at_the_floor_with_right_coverage(problems: ModuleType) -> None:
    judges = [problems.Judge(problem, directions=100) for problem in problems.family(8, 2, 8)]
    scores = [judge(judge.other) for judge in judges]
    assert sum(score["coverage90"] for score in scores) / 8 == pytest.approx(0.9, abs=0.01)
    assert all(score["mmse_gap"] < 0.02 for score in scores)
    shifted = [judge(judge.exact + 0.3 * torch.ones(8, dtype=torch.float64)) for judge in judges]
    for judge, score in zip(judges, shifted, strict=True):  # a shift moves each projection: E (shift · u)² = |shift|²/d
        assert score["sliced_w2"] == pytest.approx(0.3 * math.sqrt(float(judge.slices.sum(0).square().mean())))


def test_runs_on_a_file(problems: ModuleType, tmp_path: Path) -> None:
    import posteriors  # type: ignore[import-not-found]

    made = list(problems.family(8, 2, 2))
    stacked = {name: np.stack([np.asarray(getattr(p, name)) for p in made]) for name in problems.FIELDS}
    np.savez(tmp_path / "p.npz", **stacked)
    arguments = ["--problems", str(tmp_path / "p.npz"), "--steps", "3", "--methods", "Reconstruction"]
    posteriors.main([*arguments, "--samples", "20", "--json", str(tmp_path / "out.json")])
    row = json.loads((tmp_path / "out.json").read_text())["results"][0]
    expected = {"library", "method", "solver", "steps", "exact_in_the_limit", "sliced_w2", "floor", "coverage90"}
    assert expected | {"mmse_gap", "network_calls"} <= set(row)
    assert (row["library"], row["steps"], row["network_calls"]) == ("scoresde", 3, 4)
    del stacked["y"]
    np.savez(tmp_path / "p.npz", **stacked)
    with pytest.raises(SystemExit, match="y missing"):
        posteriors.main(arguments)
