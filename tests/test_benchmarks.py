"""The sampler benchmarks: their exact answers, their counting, and a small run of each script."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixtureDenoiser

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/error_vs_nfe.py; its neighbours are imported as when the script runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import error_vs_nfe  # type: ignore[import-not-found]

    return error_vs_nfe


def gaussian(bench: ModuleType, d: int = 3) -> Any:
    mu = torch.linspace(-1, 1, d, dtype=torch.float64)[None]
    return bench.Mixture("gaussian", torch.ones(1, dtype=torch.float64), mu, torch.full((1, d), 0.04).double())


def test_model_equals_the_library_s_mixture_denoiser(bench: ModuleType) -> None:
    import ours  # type: ignore[import-not-found]

    sde, one = VPSDE(), torch.ones((), dtype=torch.float64)
    for problem in bench.built_in():
        library = GaussianMixtureDenoiser(sde, problem.w, problem.mu, problem.var)
        model = bench.CountedModel(problem)
        exact = ours.ExactDenoiser(model, sde)
        for t in (1e-4 * one, 0.05 * one, 0.4 * one, one):
            x = sde.alpha(t) * problem.sample(50, seed=1) + sde.sigma(t) * torch.randn(50, problem.mu.shape[1]).double()
            torch.testing.assert_close(exact(x, t), library(x, t), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(exact.eps(x, t), library.eps(x, t), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(exact.eps(x, t.expand(50)), library.eps(x, t), rtol=1e-9, atol=1e-9)
        assert model.calls == 12


def test_spread_is_the_jacobian_s_diagonal(bench: ModuleType) -> None:
    problem, alpha, sigma = bench.built_in()[0], 0.8, 0.3
    x = problem.sample(5, seed=3) * alpha
    model = bench.CountedModel(problem)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slopes = [(model.denoised(x + row, alpha, sigma) - model.denoised(x - row, alpha, sigma)) / 2e-5 for row in step]
    expected = sigma**2 / alpha * torch.stack([slope[:, i] for i, slope in enumerate(slopes)], 1)
    torch.testing.assert_close(problem.spread(x, alpha, sigma), expected, rtol=1e-6, atol=1e-8)


def test_exact_flow_of_a_gaussian(bench: ModuleType) -> None:
    problem = gaussian(bench)
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = 0.3, 2.4
    std = math.hypot(alpha * 0.2, sigma)
    expected = problem.mu + 0.2 * (sigma * z - alpha * problem.mu) / std
    torch.testing.assert_close(bench.flow_end(problem, sigma * z, alpha, sigma), expected, rtol=1e-8, atol=1e-8)


def test_error_is_relative_to_the_data_and_per_sample(bench: ModuleType) -> None:
    problem = gaussian(bench)
    setup = bench.Bench(problem, 40)
    candidate = next(bench.our_candidates())
    shift = torch.zeros(40, 3, dtype=torch.float64)
    shift[:10, 0] = 1.0

    def almost_exact(model: Any, x: Tensor, nfe: int) -> Tensor:
        model.eps(x, 1.0, 1.0)
        return setup.answer(candidate) + 0.1 + shift

    candidate.run = almost_exact
    row = setup.run(candidate, 5, None)
    near, far = 0.1, math.sqrt((1.1**2 + 2 * 0.1**2) / 3)
    assert problem.rms == pytest.approx(math.sqrt(2 / 3 + 0.04))
    assert row["nfe"] == 1 and row["budget"] == 5
    assert row["median"] == pytest.approx(near / problem.rms)
    assert row["rms"] == pytest.approx(math.sqrt(0.75 * near**2 + 0.25 * far**2) / problem.rms)


def test_a_run_above_its_budget_is_refused(bench: ModuleType) -> None:
    candidate = next(bench.our_candidates())
    candidate.run = lambda model, x, nfe: [model.eps(x, 1.0, 1.0) for _ in range(nfe + 1)][-1]
    with pytest.raises(RuntimeError, match="took 6 calls, 5 allowed"):
        bench.Bench(gaussian(bench), 4).run(candidate, 5, None)


def test_our_candidates_spend_their_budget_and_converge(bench: ModuleType) -> None:
    setup = bench.Bench(bench.built_in()[0], 40)
    chosen = ("DDIM", "Heun", "DPMSolverPP2M", "ExponentialAdams(v, 2)")
    for candidate in bench.our_candidates():
        if candidate.solver not in chosen:
            continue
        rows = [setup.run(candidate, nfe, None) for nfe in (5, 20, 60)]
        assert rows[0]["nfe"] >= 3  # of 5: steps that are too long for Heun are of first order
        assert all(row["nfe"] >= row["budget"] - 1 for row in rows[1:])
        assert rows[2]["median"] < 0.7 * rows[1]["median"] < 0.7 * rows[0]["median"], (candidate.solver, candidate.grid)
    assert min(row["median"] for row in rows) < 0.05


def test_a_fit_is_reported_with_its_cost_and_pays(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import fitted  # type: ignore[import-not-found]

    for name, value in {"PATHS": 200, "PATH_STEPS": 40, "ITERATIONS": (40, 10), "BATCHES": (64, 32)}.items():
        monkeypatch.setattr(fitted, name, value)
    setup = bench.Bench(bench.built_in()[0], 200)
    fits = {c.grid: c for c in bench.our_candidates() if c.family == "vp" and hasattr(c, "fit_nfe")}
    plain = next(c for c in bench.our_candidates() if c.solver == "DPMSolverPP2M" and c.grid == "karras")
    for kind in ("calibrated", "optimised"):
        row = setup.run(fits[kind], 8, None)
        assert row["nfe"] == 8 and row["fit_nfe"] == 200 * 42 + 40 * 64 * 8
        assert row["median"] < 0.5 * setup.run(plain, 8, None)["median"]


def test_a_start_up_of_more_calls_takes_fewer_steps(bench: ModuleType) -> None:
    class Eager:
        def __init__(self, steps: int, **options: Any) -> None:
            self.steps = steps

        def __call__(self, denoiser: Any, x: Tensor) -> Tensor:
            for _ in range(self.steps + 3):
                x = denoiser(x, torch.ones((), dtype=torch.float64))
            return x

    import ours  # type: ignore[import-not-found]

    x = torch.zeros(4, 3, dtype=torch.float64)
    model = bench.CountedModel(gaussian(bench))
    ours.OurCandidate(ours.Ours("Eager", Eager), "vp", "uniform", None, False).run(model, x, 10)
    assert model.calls == 10


def test_distances_tell_the_truth_from_a_wrong_width(bench: ModuleType) -> None:
    problem = bench.built_in()[0]
    judge = bench.Judge(problem, 4000)
    true = judge(problem.sample(3000, seed=5))
    wide = judge(problem.mu.mean(0) + 1.5 * (problem.sample(3000, seed=5) - problem.mu.mean(0)))
    assert true["sw2"] < 0.1 and abs(true["energy"]) < 0.004 and true["within_logvar"] < 0.08
    assert wide["sw2"] > 2 * true["sw2"] and wide["energy"] > 0.02

    shifted = judge(problem.sample(3000, seed=5) + 0.3 * problem.rms)
    assert shifted["sw2"] == pytest.approx(0.3 / math.sqrt(2) * math.sqrt(2), rel=0.1)

    one = bench.Mixture("one", torch.ones(1).double(), torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    narrow = bench.Judge(one, 2000)(0.5 * one.sample(2000, seed=5))
    assert narrow["within_logvar"] == pytest.approx(math.log(4), rel=0.05)
    assert narrow["sw2"] == pytest.approx(0.5, rel=0.05)


def test_script_writes_rows_for_a_problem_file(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, out = tmp_path / "tiny.npz", tmp_path / "rows.json"
    np.savez(problem, w=[1.0, 3.0], mu=[[0.0, 1.0], [1.0, -1.0]], var=[[0.01, 0.04], [0.02, 0.01]])
    options = ["--problem", str(problem), "--libraries", "scoresde", "--samples", "50", "--json", str(out)]
    bench.main([*options, "--nfe", "4,8", "--solvers", "DDIM,DPMSolverPP2M,UniPC"])
    report = json.loads(out.read_text())
    assert report["problem"] == "tiny"
    assert {"family", "library", "solver", "grid", "nfe", "median", "rms"} <= report["results"][0].keys()
    assert {row["family"] for row in report["results"]} == {"vp", "edm"}
    found = {(entry["family"], entry["nfe"]): entry["ours"] for entry in report["best"] if entry["by"] == "median"}
    eligible = [row["median"] for row in report["results"] if row["family"] == "vp" and row["nfe"] <= 4]
    assert found["vp", 4]["median"] == min(eligible)
    assert found["vp", 8]["median"] <= found["vp", 4]["median"]
    assert "tiny, edm" in capsys.readouterr().out

    bench.main([*options, "--nfe", "6", "--stochastic", "--solvers", "DDPM"])
    rows = json.loads(out.read_text())["results"]
    assert {"sw2", "energy", "within_logvar"} <= rows[0].keys() and rows[-1]["library"] == "exact"


def test_overhead_script_times_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import overhead  # type: ignore[import-not-found]

    out = tmp_path / "overhead.json"
    overhead.main(["--libraries", "scoresde", "--steps", "5", "--seconds", "0", "--json", str(out)])
    rows = json.loads(out.read_text())["results"]
    assert {row["nfe"] for row in rows if row["library"] == "scoresde" and "Heun" not in row["solver"]} == {5}
    assert all(row["us_per_call"] > 0 for row in rows)
    assert "by hand" in capsys.readouterr().out


def test_the_prior_of_the_inpainting_benchmark_and_its_posterior_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import inpainting  # type: ignore[import-not-found]

    prior, x = inpainting.KernelDensity(VPSDE()), torch.randn(2, 1, 8, 8).double()
    centers = inpainting.scaled(inpainting.DATA.train.x).flatten(1).double()
    variances = torch.full_like(centers, inpainting.WIDTH**2)
    library = GaussianMixtureDenoiser(VPSDE(), torch.ones(len(centers)), centers, variances)
    torch.testing.assert_close(prior(x, 0.3), library(x, 0.3), rtol=1e-9, atol=1e-9)

    torch.manual_seed(0)
    mask = inpainting.masks()["left"]
    truth = library.sample(300, shape=(1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    draws = torch.stack([prior.posterior(truth * mask, mask) for _ in range(9)], 1)
    place = ((draws < truth[:, None]).sum(1) + torch.rand(truth.shape)) / 10
    assert float(((place - 0.5).abs() <= 0.45)[:, mask == 0].float().mean()) == pytest.approx(0.9, abs=0.01)
