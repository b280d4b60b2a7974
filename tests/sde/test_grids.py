from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from closed_forms import SDES, name

from scoresde import (
    DDIM,
    EDMSDE,
    SDE,
    VPSDE,
    BalancedGrid,
    DiscreteVPSDE,
    DPMSolverPP3S,
    GaussianDenoiser,
    Heun,
    StepSolver,
    StraightSDE,
    balanced_grid,
    karras_grid,
    linear_betas,
    logsnr_grid,
    long_step_grid,
    quadratic_grid,
    subsequence_grid,
    uniform_grid,
    vp_grid,
)
from scoresde.solvers import RungeKutta


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_grids_fall_from_one_to_t_end_in_their_own_coordinate(sde: SDE, steps: int) -> None:
    coordinates = {
        uniform_grid: lambda t: t,
        quadratic_grid: lambda t: t.sqrt(),
        logsnr_grid: lambda t: sde.logsnr(t),
        karras_grid: lambda t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
        partial(karras_grid, rho=3.0): lambda t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 3),
    }
    for grid, coordinate in coordinates.items():
        times = grid(sde, steps, 0.01)  # type: ignore[operator]
        gaps = coordinate(times).diff()
        assert times.shape == (steps + 1,) and times.dtype == torch.float64
        assert times[0] == 1 and times[-1] == 0.01 and bool((times.diff() < 0).all())
        torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=0)


def test_karras_times_on_edm_are_the_published_sigmas() -> None:
    sigmas = EDMSDE().sigma(karras_grid(EDMSDE(), 17, 0.0))
    ramp = torch.arange(18, dtype=torch.float64) / 17
    published = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigmas, published, rtol=1e-12, atol=0)


def test_sub_sequences_are_the_published_labels() -> None:
    sde = VPSDE()

    def labels(spacing: str, steps: int) -> list[int]:
        times = subsequence_grid(sde, steps, 0.0, spacing=spacing)
        assert times[-1] == 0
        return [round(float(t) * 1000) - 1 for t in times[:-1].flip(0)]

    assert labels("uniform", 5) == [0, 200, 400, 600, 800]
    assert labels("uniform", 8) == list(range(0, 1000, 125)) and labels("uniform", 501) == labels("even", 501)
    assert labels("uniform", 4) == [0, 333, 666, 999]  # every 250th would start at 750
    assert labels("quadratic", 5) == [0, 62, 249, 561, 999]
    assert labels("quadratic", 50)[:5] == [0, 1, 2, 3, 6]  # ⌊(√999 i/49)²⌋ is 0, 0, 1, 3, 6
    assert labels("even", 5) == [0, 250, 500, 749, 999]
    assert labels("even", 1000) == list(range(1000))
    assert float(subsequence_grid(sde, 10, 0.3, spacing="even")[-1]) == 0.3


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "even", "even_1"])
def test_every_sub_sequence_has_its_steps_and_the_noisiest_label(spacing: str) -> None:
    """Whatever the table's length and the number of steps; DDIM's own every L/S-th label ends L/S below the last."""
    for length in (*range(1, 41), 100, 1000):
        for steps in range(1, length + 1) if length <= 100 else (1, 2, 3, 7, 20, 300, 334, 500, 501, 600, 999, 1000):
            times = subsequence_grid(VPSDE(), steps, 0.0, length=length, spacing=spacing)
            labels = (times[:-1] * length).round().long() - 1
            assert times.shape == (steps + 1,) and bool((times.diff() < 0).all())
            torch.testing.assert_close(times[:-1], (labels.double() + 1) / length, rtol=1e-15, atol=0)
            published = spacing == "uniform" and length % steps == 0 and steps >= 5
            assert int(labels[0]) == length - (length // steps if published else 1)
            if steps > 1:
                assert int(labels[-1]) == 0


def test_states_below_t_end_are_no_part_of_a_sub_sequence() -> None:
    """Twelve states from t = 0.5 on; t_end between two states is one time more, at a state it is that state."""
    for spacing in ("uniform", "quadratic", "even", "even_1"):
        at_state = subsequence_grid(VPSDE(), 7, 0.5, length=23, spacing=spacing)
        assert len(at_state) == 8 and float(at_state[-1]) == 0.5 and float(at_state[-2]) == 12 / 23
        assert len(subsequence_grid(VPSDE(), 7, 12 / 23, length=23, spacing=spacing)) == 7
    with pytest.raises(ValueError, match=r"steps <= 12, the states of 23 from t_end=0.5 on, got steps=13"):
        subsequence_grid(VPSDE(), 13, 0.5, length=23)


@pytest.mark.parametrize("grid", [logsnr_grid, karras_grid])
def test_log_snr_needs_noise_at_both_ends(grid: object) -> None:
    with pytest.raises(
        ValueError, match=r"needs noise at both ends: σ is 0 at t_end=0.0 of VPSDE. Use t_end > 0.*1e-05"
    ):
        grid(VPSDE(), 10, 0.0)  # type: ignore[operator]


def test_wrong_sub_sequences_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"1 <= steps <= length <= 1000000, a whole number, got steps=1001, length=1000"
    ):
        subsequence_grid(VPSDE(), 1001, 0.0)
    with pytest.raises(ValueError, match=r"spacing uniform, quadratic, even or even_1, got 'cubic'"):
        subsequence_grid(VPSDE(), 10, 0.0, spacing="cubic")


def test_the_two_published_even_spacings_differ_at_ties_alone() -> None:
    """25 of 1000: labels 832.5, 499.5 and 166.5 are ties, rounded to even from 0 and from 1."""

    def labels(spacing: str, steps: int) -> list[int]:
        times = subsequence_grid(DiscreteVPSDE(linear_betas()), steps, 0.0, spacing=spacing)[:-1]
        return [round(float(t) * 1000) - 1 for t in times]

    first, second = labels("even", 25), labels("even_1", 25)
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert differing == [(832, 833), (500, 499), (166, 167)]
    assert labels("even", 10) == labels("even_1", 10) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_vp_grid_visits_the_same_noise_levels_on_every_process(sde: SDE) -> None:
    t_end = 0.05
    times = vp_grid(sde, 8, t_end)
    vp = VPSDE()
    on_vp = vp.time(sde.logsnr(times))
    torch.testing.assert_close(on_vp.sqrt().diff(), on_vp.sqrt().diff().mean().expand(8), rtol=1e-5, atol=1e-7)
    assert float(times[0]) == 1 and float(times[-1]) == t_end
    if isinstance(sde, VPSDE):
        torch.testing.assert_close(times, quadratic_grid(sde, 8, t_end))


@pytest.mark.parametrize("sde", [*SDES, StraightSDE()], ids=name)
@pytest.mark.parametrize("grid", [balanced_grid, long_step_grid], ids=["balanced", "long_step"])
def test_the_balanced_clock_has_equal_steps_from_one_to_the_end(sde: SDE, grid: BalancedGrid) -> None:
    times = grid(sde, 7, 0.01)
    share = sde.sigma(times) / (sde.sigma(times) + grid.scale * sde.alpha(times))
    gaps = (share**0.25).diff()
    assert times[0] == 1 and times[-1] == 0.01 and times.dtype == torch.float64
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=0)


def test_without_signal_the_clock_starts_at_one() -> None:
    """On the straight path with s = 1 the clock is t^(1/power) itself: r = σ/(α + σ) = t."""
    times = BalancedGrid(scale=1, power=2)(StraightSDE(), 9, 1e-5)
    torch.testing.assert_close(times, quadratic_grid(StraightSDE(), 9, 1e-5), rtol=1e-9, atol=0)
    for other in (logsnr_grid, karras_grid, vp_grid):
        assert bool((other(StraightSDE(), 9, 1e-3).diff() < 0).all())


@pytest.mark.parametrize(
    "solver, end",
    [
        (DDIM(steps=10), 2 / 10**2), (Heun(steps=10), 4 / 20**2), (DPMSolverPP3S(steps=5), 4 / 15**2),
        (RungeKutta(steps=5), 2 / 10**2), (DDIM(steps=10, grid=BalancedGrid(end=3)), 3 / 10**2),
        (DDIM(steps=10, t_end=1e-3), None), (DDIM(steps=10, denoise=False), None),
        (DDIM(steps=10, grid=BalancedGrid(end=0)), None),
    ],
    ids=repr,
)  # fmt: skip
def test_a_run_to_noise_0_leaves_the_least_noise_to_its_last_step(solver: StepSolver, end: float | None) -> None:
    """Its times stop at σ/α = end/calls²; without that step, or with an end that is given, they go on to it."""
    for sde in (VPSDE(), StraightSDE()):
        last = solver.plan(GaussianDenoiser(sde, 0.0, 1.0)).times[-1]
        expected = solver.end(sde) if end is None else sde.time(torch.tensor(-2 * math.log(end)).double())
        assert float(last) == pytest.approx(float(expected), rel=1e-6)


def test_encoding_starts_at_t_end() -> None:
    denoiser = GaussianDenoiser(StraightSDE(), 0.0, 1.0)
    assert float(DDIM(steps=5).plan(denoiser, backward=True).times[0]) == 1e-5
