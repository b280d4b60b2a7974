from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import EDMSDE, VESDE, VPSDE, GaussianMixtureDenoiser, SubVPSDE
from scoresde.analytic import EmpiricalDenoiser
from scoresde.analytic import empirical as empirical_file
from scoresde.analytic.empirical import _SquaredDistance

METHODS = ["forward", "eps", "score", "covariance", "covariance_diag", "log_prob"]


def points(n: int = 50, d: int = 4) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Widest(TorchDispatchMode):
    """The most entries that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.entries = max(self.entries, out.numel())
        return out


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_streamed_sums_are_whole_sums(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.rand(50, dtype=torch.float64) + 0.1
    t = torch.tensor([1e-5, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    for sde in (VPSDE(), EDMSDE()):
        whole = EmpiricalDenoiser(sde, points(), weights=weights, chunk=1000)
        x = sde.perturb(points()[:5], t, points(5, 4))
        expected = [getattr(whole, key)(x, level) for key in METHODS for level in (t, t[2])]
        part = EmpiricalDenoiser(sde, points(), weights=weights, chunk=chunk)
        torch.testing.assert_close(
            [getattr(part, key)(x, level) for key in METHODS for level in (t, t[2])], expected, rtol=1e-12, atol=1e-12
        )
        monkeypatch.setattr(empirical_file, "BLOCK_ENTRIES", 2 * chunk)  # two samples at a time
        torch.testing.assert_close(
            [getattr(part, key)(x, level) for key in METHODS for level in (t, t[2])], expected, rtol=1e-12, atol=1e-12
        )


def test_memory_grows_with_neither_points_nor_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(empirical_file, "BLOCK_ENTRIES", 20_000)
    denoiser, x = EmpiricalDenoiser(VPSDE(), points(500, 6), chunk=100), points(400, 6)
    with Widest() as widest:
        for key in METHODS:
            getattr(denoiser, key)(x, torch.tensor(0.3))
    assert widest.entries <= 20_000  # (400, 500) in one piece, (400, 100) without blocks


def test_a_mixture_of_tiny_variance_agrees() -> None:
    sde, t = VPSDE(), torch.tensor([0.05, 0.2, 0.7, 1.0], dtype=torch.float64)
    weights = torch.rand(50, dtype=torch.float64) + 0.1
    limit = GaussianMixtureDenoiser(sde, weights, points(), torch.full((50, 4), 1e-12))
    denoiser = EmpiricalDenoiser(sde, points(), weights=weights)
    x = sde.perturb(points()[:4], t, points(4, 4))
    for key in METHODS:
        torch.testing.assert_close(getattr(denoiser, key)(x, t), getattr(limit, key)(x, t), rtol=1e-8, atol=1e-9)


def test_weights_are_repetitions() -> None:
    t = torch.tensor(0.3)
    once = EmpiricalDenoiser(VPSDE(), points(4), weights=torch.tensor([1.0, 3.0, 1.0, 2.0]))
    often = EmpiricalDenoiser(VPSDE(), points(4)[[0, 1, 1, 1, 2, 3, 3]])
    for key in METHODS:
        torch.testing.assert_close(getattr(once, key)(points(), t), getattr(often, key)(points(), t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_tiny_noise_it_knows_the_point_and_the_noise(dtype: torch.dtype) -> None:
    sde, t = SubVPSDE(), torch.tensor(1e-5, dtype=torch.float64)  # σ = 1e-6
    denoiser = EmpiricalDenoiser(sde, points(), chunk=7)
    noise = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = sde.perturb(points(), t, noise).to(dtype)
    assert torch.equal(denoiser(x, t), points().to(dtype))
    exact = ((x.double() - sde.alpha(t) * points()) / sde.sigma(t)).to(dtype)
    rounding = {torch.float32: 1e-7, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(denoiser.eps(x, t), exact, rtol=rounding, atol=rounding)
    assert torch.equal(denoiser.covariance_diag(x, t), torch.zeros_like(x))


def test_without_noise_it_is_the_nearest_point() -> None:
    denoiser = EmpiricalDenoiser(VPSDE(), points(), chunk=7)
    x = 2 * points(200, 4).roll(3, 0)
    nearest = (x[:, None] - points()).square().sum(-1).argmin(1)
    for t in (0.0, 1e-12):
        assert torch.equal(denoiser(x, torch.tensor(t, dtype=torch.float64)), points()[nearest])


def test_close_points_far_from_the_origin_keep_their_digits() -> None:
    sde, t = VESDE(sigma_min=1e-6), torch.tensor(0.0, dtype=torch.float64)
    near = EmpiricalDenoiser(sde, 1e-6 * points())
    shift = 2.0**10  # exact in float64: 1024 + 1e-6 z keeps 1e-13
    x = 1e-6 * (points() + points().roll(1, 1))
    moved = EmpiricalDenoiser(sde, near.data + shift)
    torch.testing.assert_close(moved(x + shift, t) - shift, near(x, t), rtol=1e-6, atol=1e-11)
    torch.testing.assert_close(moved.covariance_diag(x + shift, t), near.covariance_diag(x, t), rtol=1e-5, atol=1e-18)


@pytest.mark.parametrize("distance", [1e3, 1e6])
def test_states_far_from_all_points_are_well_behaved(distance: float) -> None:
    denoiser, t = EmpiricalDenoiser(EDMSDE(), points(), chunk=7), torch.tensor(0.3, dtype=torch.float64)
    direction = torch.nn.functional.normalize(points(6, 4).flip(0), dim=1)
    x = distance * direction
    nearest = (distance * points() @ direction.T - 0.5 * points().square().sum(1, keepdim=True)).argmax(0)
    torch.testing.assert_close(denoiser(x, t), points()[nearest], rtol=0, atol=1e-3)
    for key in METHODS:
        for dtype in (torch.float32, torch.float64):
            assert bool(getattr(denoiser, key)(x.to(dtype), t).isfinite().all())


def test_samples_are_the_points_with_their_weights() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0])
    x = EmpiricalDenoiser(VPSDE(), points(3).reshape(3, 2, 2), weights=weights).sample(8000)
    assert x.shape == (8000, 2, 2)
    counts = (x.flatten(1)[:, None] == points(3)).all(-1).double().mean(0)
    se = (weights / 8 * (1 - weights / 8) / 8000).sqrt()
    assert float(((counts - weights / 8) / se).abs().max()) < 4.5


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # raised by torch's own forward mode
def test_distances_have_derivatives_of_every_kind() -> None:
    y, tangent = points(3).requires_grad_(), points(6)[3:]
    data = points(5).roll(1, 1)
    assert torch.autograd.gradcheck(lambda y: _SquaredDistance.apply(y, data), y)
    assert torch.autograd.gradgradcheck(lambda y: _SquaredDistance.apply(y, data), y)
    direct = torch.func.jvp(lambda y: (y[:, None] - data).square().sum(-1), (y.detach(),), (tangent,))
    own = torch.func.jvp(lambda y: _SquaredDistance.apply(y, data), (y.detach(),), (tangent,))
    torch.testing.assert_close(own, direct)
    denoiser, t = EmpiricalDenoiser(VPSDE(), data, chunk=2), torch.tensor(0.3, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: denoiser(x[None], t)[0]))(y.detach())
    scale = VPSDE().sigma(t).square() / VPSDE().alpha(t)
    torch.testing.assert_close(scale * jacobians, denoiser.covariance(y, t).detach())


def test_finest_scale_is_the_least_distance_of_different_points() -> None:
    data = points()
    data[7] = data[3] + torch.tensor([0, 3e-3, 0, 4e-3], dtype=torch.float64)
    data[9] = data[8]
    assert EmpiricalDenoiser(VPSDE(), data).finest_scale() == pytest.approx(5e-3)
    assert EmpiricalDenoiser(VPSDE(), data[8:10]).finest_scale() > 0.1


def test_wrong_arguments_are_named() -> None:
    for data, weights in ((points()[:, 0], None), (points()[:0], None), (points(), torch.ones(3))):
        with pytest.raises(ValueError, match=r"EmpiricalDenoiser needs data \(N, \*\) and one weight for each point"):
            EmpiricalDenoiser(VPSDE(), data, weights=weights)
    with pytest.raises(ValueError, match=r"positive weights and chunk.*weight of 0"):
        EmpiricalDenoiser(VPSDE(), points(), weights=torch.zeros(50))
    with pytest.raises(ValueError, match=r"chunk=0"):
        EmpiricalDenoiser(VPSDE(), points(), chunk=0)
