"""Gradients through sampling: against finite differences, the same in every mode, and what each mode keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from closed_forms import mixture
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import (
    DDIM,
    DDPM,
    VESDE,
    VPSDE,
    Denoiser,
    DPMSolverPP2M,
    Epsilon,
    EulerMaruyama,
    Guided,
    Heun,
    NetworkDenoiser,
    PredictorCorrector,
    StepSolver,
    gaussian_noise,
    karras_grid,
    per_sample_noise,
)
from scoresde.solvers.obelm import OBELM
from scoresde.solvers.reversible import Reversible, ReversibleState

DETERMINISTIC = [DDIM(steps=5), Heun(steps=4), DPMSolverPP2M(steps=5)]
STOCHASTIC = [DDPM(steps=5), EulerMaruyama(steps=6), DDIM(steps=5, eta=0.7), PredictorCorrector(steps=4)]
REVERSIBLE = [Reversible(steps=4), Reversible(steps=3, solver=Heun(), coupling=0.9), OBELM(steps=5)]
EVERY = [*DETERMINISTIC, *STOCHASTIC, *REVERSIBLE]
kind = lambda solver: f"{type(solver).__name__}{getattr(solver, 'coupling', '')}"  # noqa: E731


class Net(nn.Module):
    """A small network with a condition."""

    def __init__(self, width: int = 8, dim: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim + 1, width), nn.Linear(width, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c_noise: Tensor, *, shift: Tensor | float = 0.0) -> Tensor:
        hidden = torch.tanh(self.inner(torch.cat([x, c_noise[:, None].tanh()], 1)) + shift)
        return self.outer(self.dropout(hidden))


def network(dtype: torch.dtype = torch.float64, **kwargs: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(Net(**kwargs).to(dtype), VPSDE(t_min=1e-3), Epsilon())


def start(rows: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)


def loss(sample: Tensor) -> Tensor:
    return (sample.sin() + 0.1 * sample.square()).sum()


def gradients(solver: StepSolver, mode: str, **options: Any) -> list[Tensor]:
    """By x_T, by every parameter, and by a bound condition that is itself computed from a leaf."""
    denoiser, x = network(), start().requires_grad_()
    leaf = torch.full((8,), 0.3, dtype=torch.float64, requires_grad=True)
    given = denoiser.given(shift=leaf.exp() - 1)
    sample = solver(given, x, noise=per_sample_noise(x, range(4)), gradient=mode, **options)
    return list(torch.autograd.grad(loss(sample), [x, leaf, *denoiser.parameters()]))


@pytest.mark.parametrize("solver", EVERY, ids=kind)
def test_gradients_are_those_of_finite_differences(solver: StepSolver) -> None:
    denoiser, x = network(), start().requires_grad_()
    weight = denoiser.net.inner.weight

    def run() -> Tensor:
        return loss(solver(denoiser, x, noise=per_sample_noise(x, range(4)), gradient="full"))

    by_x, by_weight = torch.autograd.grad(run(), [x, weight])
    for tensor, gradient, entry in ((x, by_x, (2, 1)), (weight, by_weight, (3, 2)), (weight, by_weight, (0, 3))):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[entry] += sign * 1e-5
                values.append(float(run().detach()))
                tensor[entry] -= sign * 1e-5
        assert float(gradient[entry]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("steps", [None, 1, 2])
@pytest.mark.parametrize("solver", EVERY, ids=kind)
def test_checkpointed_gradients_are_the_full_ones(solver: StepSolver, steps: int | None) -> None:
    options: dict[str, Any] = {} if steps is None else {"gradient_steps": steps}
    if steps is not None:
        full, checkpoint = (parameter_gradients(solver, mode, **options) for mode in ("full", "checkpoint"))
    else:
        full, checkpoint = gradients(solver, "full"), gradients(solver, "checkpoint")
    for expected, got in zip(full, checkpoint, strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("steps", [None, 1, 2])
@pytest.mark.parametrize("solver", REVERSIBLE, ids=kind)
def test_reversible_gradients_are_the_full_ones(solver: StepSolver, steps: int | None) -> None:
    if steps is None:
        full, reversible = gradients(solver, "full"), gradients(solver, "reversible")
    else:
        full, reversible = (
            parameter_gradients(solver, mode, gradient_steps=steps) for mode in ("full", "reversible")
        )  # fmt: skip
    for expected, got in zip(full, reversible, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def parameter_gradients(solver: StepSolver, mode: str, **options: Any) -> list[Tensor]:
    denoiser, x = network(), start()
    sample = solver(denoiser, x, noise=per_sample_noise(x, range(4)), gradient=mode, **options)
    return list(torch.autograd.grad(loss(sample), list(denoiser.parameters())))


def test_truncated_gradients_are_those_of_the_last_steps_alone() -> None:
    denoiser, x = network(), start()
    solver = DDIM(steps=6, grid=karras_grid, denoise=False)
    by_name = parameter_gradients(solver, "full", gradient_steps=2)

    step = list(solver.trajectory(denoiser, x))[4]
    times = solver.grid(denoiser.sde, 6, denoiser.sde.t_min)[4:]
    rest = DDIM(steps=2, grid=lambda sde, steps, t_end: times, denoise=False)
    expected = torch.autograd.grad(loss(rest(denoiser, step.x, gradient="full")), list(denoiser.parameters()))
    for a, b in zip(by_name, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    whole = parameter_gradients(solver, "full")
    assert all(
        torch.equal(a, b) for a, b in zip(whole, parameter_gradients(solver, "full", gradient_steps=9), strict=True)
    )
    assert not torch.allclose(whole[0], by_name[0])


@pytest.mark.parametrize("solver", [DDIM(steps=3), DDPM(steps=3), OBELM(steps=3)], ids=kind)
def test_no_graph_unless_asked_for_and_the_sample_does_not_depend_on_the_mode(solver: StepSolver) -> None:
    denoiser, x = network(), start().requires_grad_()
    plain = solver(denoiser, x, noise=per_sample_noise(x, range(4)))
    assert not plain.requires_grad and not solver(denoiser, x, gradient=False).requires_grad
    for mode in ("full", "checkpoint", True, *(("reversible",) if isinstance(solver, OBELM) else ())):
        sample = solver(denoiser, x, noise=per_sample_noise(x, range(4)), gradient=mode)
        assert sample.requires_grad and torch.equal(sample, plain)


def test_a_stateful_source_of_noise_is_asked_as_often_as_without_gradients() -> None:
    denoiser, x, asked = network(), start(), []

    def noise(t: Tensor, s: Tensor) -> Tensor:
        asked.append((float(t), float(s)))
        return torch.randn_like(x)

    loss(PredictorCorrector(steps=5)(denoiser, x, noise=noise, gradient="checkpoint")).backward()
    times, asked[:] = list(asked), []
    PredictorCorrector(steps=5)(denoiser, x, noise=noise)
    assert times == asked and len(times) == 10


def test_torchs_own_generator_and_dropout_are_replayed() -> None:
    found = []
    for mode in ("full", "checkpoint"):
        denoiser, x = network(dropout=0.5), start().requires_grad_()
        torch.manual_seed(3)
        found.append(torch.autograd.grad(loss(DDPM(steps=5)(denoiser, x, gradient=mode)), x)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("mode", ["checkpoint", "reversible"])
def test_a_second_backward_pass_over_the_same_run(mode: str) -> None:
    denoiser, x = network(), start().requires_grad_()
    sample = OBELM(steps=5)(denoiser, x, gradient=mode)
    first, second = (torch.autograd.grad(loss(sample), x, retain_graph=keep)[0] for keep in (True, False))
    assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["checkpoint", "reversible"])
def test_gradients_reach_both_sides_of_guidance_and_the_residual(mode: str) -> None:
    found = []
    for which in ("full", mode):
        denoiser, x = network(), start().requires_grad_()
        a, b = (torch.full((8,), value, dtype=torch.float64, requires_grad=True) for value in (0.4, -0.2))
        residual = (0.1 * start()).requires_grad_()
        guided = Guided(denoiser.given(shift=a), denoiser.given(shift=b), 2.0)
        sample = Reversible(steps=3)(guided, ReversibleState(x, residual), gradient=which)
        found.append(torch.autograd.grad(loss(sample), [x, residual, a, b]))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["checkpoint", "reversible"])
def test_second_derivatives(mode: str) -> None:
    found = []
    for which in ("full", mode):
        denoiser, x = network(), start(2).requires_grad_()
        first = torch.autograd.grad(loss(OBELM(steps=3)(denoiser, x, gradient=which)), x, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"gradient_steps": 2}], ids=str)
@pytest.mark.parametrize("mode", ["full", "checkpoint", "reversible"])
def test_under_autocast_every_step_reaches_the_weights(mode: str, options: dict[str, Any]) -> None:
    """Autocast keeps weights that it has cast, also those cast without a graph: they must not serve later steps."""
    found = []
    for which in ("full", mode):
        denoiser, x = network(torch.float32), start(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=which != "full" or mode == "full"):
            sample = OBELM(steps=4)(denoiser, x, gradient=which, **options)
        found.append(torch.autograd.grad(loss(sample.float()), denoiser.net.inner.weight)[0])
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-2 * float(found[0].abs().max()))


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {key: pair for key, pair in self.storages.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return out


@contextmanager
def live_bytes() -> Iterator[Callable[[], int]]:
    with LiveBytes() as counted:
        yield lambda: counted.peak


def peak(solver: StepSolver, mode: str) -> int:
    """Of a run and its backward pass; 64 × 3 states, a network with hidden layers of 64 × 256."""
    denoiser, x = network(width=256), start(64).requires_grad_()
    with live_bytes() as read:
        loss(solver(denoiser, x, noise=gaussian_noise(x), gradient=mode)).backward()
        return read()


def test_memory() -> None:
    state = 64 * 3 * 8
    full, checkpoint, reversible = (
        [peak(OBELM(steps=count), mode) for count in (8, 64)] for mode in ("full", "checkpoint", "reversible")
    )
    assert full[1] > 6 * full[0]
    assert checkpoint[1] - checkpoint[0] < 56 * 1.5 * state  # one state per step, and no activations
    assert reversible[1] - reversible[0] < 2 * state  # nothing per step
    assert reversible[1] < 0.06 * full[1]


@pytest.mark.parametrize("mode", ["full", "checkpoint", "reversible"])
def test_a_latent_is_found_by_descent_whose_sample_hits_a_target(mode: str) -> None:
    denoiser: Denoiser = mixture(VESDE())
    target = denoiser.means[[0, 1, 2, 3]] + 0.2
    solver = OBELM(steps=8, t_end=1e-2)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    descent, losses = torch.optim.Adam([z], lr=0.3), []
    for _ in range(60):
        descent.zero_grad()
        error = (solver(denoiser, denoiser.sde.prior_std * z, gradient=mode) - target).square().sum()
        error.backward()
        descent.step()
        losses.append(float(error.detach()))
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize(
    "solver, options, words",
    [
        (DDIM(), {"gradient": "reversible"}, "DDIM cannot compute its states back.*gradient='checkpoint'"),
        (DDIM(), {"gradient": "adjoint"}, "needs gradient none, full, checkpoint or reversible, got 'adjoint'"),
        (DDIM(), {"gradient_steps": 3}, "gradient to truncate, got gradient_steps=3 with gradient='none'"),
        (DDIM(), {"gradient": "full", "gradient_steps": 0}, "gradient_steps of at least 1"),
    ],
)
def test_wrong_requests_are_named(solver: StepSolver, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        solver(network(), start(), **options)
