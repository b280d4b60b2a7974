"""The loop, the last call, and independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from closed_forms import SDES, mixture, name
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    EDM,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    AnnealedLangevin,
    Denoiser,
    DiscreteVPSDE,
    DPMSolverPP2M,
    EulerMaruyama,
    GaussianDenoiser,
    Heun,
    Langevin,
    NetworkDenoiser,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReverseDiffusion,
    ReverseSDE,
    Solver,
    StepSolver,
    linear_betas,
    per_sample_noise,
    reference_paths,
    subsequence_grid,
    uniform_grid,
)
from scoresde.sde.levels import Level
from scoresde.solvers import AdaptiveSDE, Reversible

ALL = [
    EulerMaruyama(), ReverseDiffusion(), DDPM(), DDIM(), DDIM(eta=0.5), Heun(), DPMSolverPP2M(), Langevin(),
    AnnealedLangevin(), PredictorCorrector(),
]  # fmt: skip


class Recording(Denoiser):
    """Another denoiser, and the times at which it was asked."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.times = denoiser, denoiser.sde, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.times.append(float(t))
        return self.inner(x, t, **cond)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("solver", ALL, ids=lambda solver: type(solver).__name__)
def test_a_sample_alone_is_the_sample_in_a_batch(sde: SDE, solver: StepSolver) -> None:
    solver = replace(solver, steps=12)
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(5, 2, dtype=torch.float64)
    together = solver(denoiser, x, noise=per_sample_noise(x, range(5)))
    for k in (0, 3):
        alone = solver(denoiser, x[k : k + 1], noise=per_sample_noise(x[k : k + 1], [k]))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=1e-9)


def test_the_trajectory_has_every_time_of_the_grid_and_then_the_denoised_state() -> None:
    sde = VPSDE()
    denoiser, x = Recording(mixture(sde)), torch.randn(3, 2)
    steps = list(DDIM(steps=4, grid=uniform_grid, t_end=0.2).trajectory(denoiser, x))

    assert [step.index for step in steps] == [0, 1, 2, 3, 4, 5]
    assert [float(step.t) for step in steps] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert steps[0].x is x and steps[0].t.dtype == torch.float64
    torch.testing.assert_close(steps[5].x, denoiser.inner(steps[4].x, steps[4].t))
    assert denoiser.times[:5] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert len(list(DDIM(steps=4, denoise=False).trajectory(denoiser, x))) == 5


def test_the_default_end_is_the_processes_own_and_no_noise_needs_no_denoising() -> None:
    denoiser = Recording(mixture(VPSDE(t_min=0.03)))
    DDIM(steps=2, grid=uniform_grid)(denoiser, torch.randn(3, 2))
    assert denoiser.times[-1] == pytest.approx(0.03)
    denoiser = Recording(mixture(DiscreteVPSDE(linear_betas())))
    DDIM(steps=2, grid=uniform_grid, t_end=0.0)(denoiser, torch.randn(3, 2))
    assert denoiser.times == pytest.approx([1.0, 0.5])  # σ(0) = 0: no call at 0


@pytest.mark.parametrize(
    "solver, nfe", [(Heun(steps=7), 15), (DPMSolverPP2M(steps=7), 8), (DDPM(steps=7), 8)], ids=["Heun", "2M", "DDPM"]
)
def test_network_calls_per_run(solver: StepSolver, nfe: int) -> None:
    denoiser = Recording(mixture(VESDE()))
    solver(denoiser, torch.randn(2, 2))
    assert len(denoiser.times) == nfe


def test_solvers_run_without_gradients_and_from_torchs_generator() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(3, 2, requires_grad=True)
    torch.manual_seed(7)
    first = EulerMaruyama(steps=5)(denoiser, x)
    torch.manual_seed(7)
    assert not first.requires_grad and torch.equal(first, EulerMaruyama(steps=5)(denoiser, x))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DDIM(steps=0), "DDIM needs 1 <= steps <= 1000000, a whole number, got steps=0"),
        (lambda: DDIM(steps=2.5), "a whole number, got steps=2.5"),
        (lambda: DDIM(steps=True), "a whole number, got steps=True"),
        (lambda: DDIM(t_end=1.0), r"DDIM needs 0 <= t_end < 1, or null, got t_end=1.0"),
        (lambda: DDIM(t_end=-0.1), "0 <= t_end < 1"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0], [1.0, 0.5, 0.5, 0.0], [1.5, 0.0], [[1.0, 0.0]], [1.0, -0.1]])
def test_a_grid_of_ones_own_is_checked(times: Any) -> None:
    solver = DDIM(grid=lambda sde, steps, t_end: torch.tensor(times, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"A grid must be a strictly decreasing 1-d tensor of times between 1 and 0, got"
    ):
        solver(mixture(VPSDE()), torch.randn(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_half_precision_states_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"DDIM needs a float32 or float64 state, got .* Use autocast"):
        DDIM()(mixture(VPSDE()), torch.zeros(2, 2, dtype=dtype))


def test_a_sub_sequence_starts_below_one() -> None:
    denoiser = Recording(mixture(DiscreteVPSDE(linear_betas())))
    DDIM(steps=10, grid=subsequence_grid, t_end=0.0, denoise=False)(denoiser, torch.randn(2, 2))
    assert denoiser.times == pytest.approx([0.901 - 0.1 * k for k in range(10)])


@pytest.mark.parametrize(
    "solver",
    [DDIM(steps=2), Reversible(steps=2), ProbabilityFlowODE(), AdaptiveSDE(), ReverseSDE(steps=2)],
    ids=lambda solver: type(solver).__name__,
)
def test_a_network_on_another_device_is_named(solver: Solver) -> None:
    denoiser, x = NetworkDenoiser(MLP(width=8, depth=1), VPSDE(), EDM()), torch.randn(4, 2)
    with pytest.raises(ValueError, match="needs all on one device, got x on meta but the network on cpu: move one"):
        solver(denoiser, x.to("meta"))
    with pytest.raises(ValueError, match="needs all on one device, got x on cpu but the network on meta: move one"):
        solver(denoiser.to("meta"), x)


def test_reference_paths_on_another_device_are_named() -> None:
    denoiser = NetworkDenoiser(MLP(width=8, depth=1), VPSDE(), EDM())
    with pytest.raises(ValueError, match="reference_paths needs .*, got paths on meta but the network on cpu: move"):
        reference_paths(denoiser, (2,), 4, device="meta")
    with pytest.raises(ValueError, match="reference_paths needs .*, got paths on cpu but the network on meta: move"):
        reference_paths(denoiser.to("meta"), (2,), 4)
    with pytest.raises(ValueError, match=r"reference_paths needs dtype .* got torch.float16"):
        reference_paths(denoiser, (2,), 4, dtype=torch.float16)


def test_another_error_of_a_network_is_left_as_it_is() -> None:
    class Broken(GaussianDenoiser):
        def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="^broken$"):
        DDIM(steps=2)(Broken(VPSDE(), 0.0, 1.0), torch.randn(4, 2))


def test_a_grid_may_be_of_any_dtype_but_must_be_a_tensor() -> None:
    denoiser, x = GaussianDenoiser(VPSDE(), 0.0, 1.0), torch.randn(4, 2)
    whole = DDIM(steps=1, grid=lambda sde, steps, t_end: torch.tensor([1, 0]))(denoiser, x)
    torch.testing.assert_close(whole, DDIM(steps=1, grid=uniform_grid, t_end=0.0)(denoiser, x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"DDIM needs grid to return a tensor of times, got \[1, 0\]"):
        DDIM(steps=1, grid=lambda sde, steps, t_end: [1, 0])(denoiser, x)
