"""LearnedVPSDE: its formulas, its inverse, its gradients, and its use wherever a process is used."""

import copy
import io
import math

import pytest
import torch
from closed_forms import MEAN, STD, chain_moments, exact_flow, moments
from torch import Tensor, nn

from scoresde import (
    DDIM,
    DDPM,
    MLP,
    Epsilon,
    ExponentialAdams,
    GaussianDenoiser,
    Heun,
    NetworkDenoiser,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReverseSDE,
    karras_grid,
    log_prob,
    logsnr_grid,
    uniform_grid,
    vp_grid,
)
from scoresde.sde.learned_vpsde import LearnedVPSDE, MonotoneNetwork
from scoresde.testing import check_sde, convergence_order
from scoresde.training import EMA


def uneven(seed: int = 0, steeper: float = 1.0) -> LearnedVPSDE:
    """A schedule far from its start, in float64."""
    sde = LearnedVPSDE(width=8).double()
    generator = torch.Generator().manual_seed(seed)
    assert sde.interior is not None
    with torch.no_grad():
        for parameter in sde.interior.parameters():
            parameter += 2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        sde.interior.steepness *= steeper
        sde.interior.shift *= steeper
        sde.interior.slope -= math.log(steeper)
        sde.gamma_0 += 0.7
        sde.gamma_1 -= 0.4
    return sde


PROCESSES = {
    "linear": LearnedVPSDE(schedule="linear"),
    "network": LearnedVPSDE(),
    "moved": uneven(),
    "steep": uneven(1, steeper=20.0),
}
processes = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES.keys())
T = torch.cat([torch.logspace(-5, -1, 40, dtype=torch.float64), torch.linspace(0.1, 1, 60, dtype=torch.float64)[1:]])


@processes
def test_it_is_a_consistent_process(sde: LearnedVPSDE) -> None:
    check_sde(sde)
    copied = copy.deepcopy(sde)
    check_sde(copied.double())


@processes
def test_variance_is_preserved_and_the_ends_are_met(sde: LearnedVPSDE) -> None:
    torch.testing.assert_close(sde.alpha(T).square() + sde.sigma(T).square(), torch.ones_like(T), rtol=0, atol=1e-15)
    torch.testing.assert_close(sde.logsnr(T), 2 * (sde.alpha(T) / sde.sigma(T)).log(), rtol=1e-12, atol=1e-12)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(sde.progress(ends)[0], ends)  # to the last digit
    assert sde.logsnr(ends).tolist() == [-float(sde.gamma_0.double().detach()), -float(sde.gamma_1.double().detach())]


def test_published_ends_and_a_line_without_a_network() -> None:
    sde = LearnedVPSDE(schedule="linear")
    torch.testing.assert_close(sde.logsnr(T), 13.3 - 18.3 * T, rtol=1e-7, atol=1e-6)
    assert sorted(sde.state_dict()) == ["gamma_0", "gamma_1"]
    network = LearnedVPSDE(width=7)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2 + 1 + 3 * 7
    torch.testing.assert_close(network.progress(T)[0], T, rtol=0, atol=0.02)  # nearly a line at the start


@processes
def test_time_inverts_logsnr_to_rounding_and_stays_inside(sde: LearnedVPSDE) -> None:
    again = sde.time(sde.logsnr(T))
    torch.testing.assert_close(again, T, rtol=1e-10, atol=2e-15)
    outside = torch.tensor([math.inf, 60.0, -60.0, -math.inf], dtype=torch.float64)
    assert sde.time(outside).tolist() == [0, 0, 1, 1]
    assert sde.time(torch.tensor([[0.0], [1.0]])).dtype == torch.float32


@processes
def test_float32_and_any_shape_are_rounded_float64(sde: LearnedVPSDE) -> None:
    t = T.float()
    for method in (sde.alpha, sde.sigma, sde.f, sde.g, sde.logsnr):
        exact = method(t.double())
        assert torch.equal(method(t), exact.float())
        assert method(t.reshape(3, -1)).shape == (3, 33)
        assert method(t[0]).shape == ()


@pytest.mark.parametrize("sde", [PROCESSES["linear"], PROCESSES["moved"]], ids=["linear", "moved"])
def test_gradients_by_parameters_are_those_of_differences(sde: LearnedVPSDE) -> None:
    sde = copy.deepcopy(sde).double()
    t, levels = T[::9], torch.linspace(-4, 12, 11, dtype=torch.float64)
    names = [name for name, _ in sde.named_parameters()]
    direction = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        for name, p in sde.named_parameters()
    }

    def values(step: float) -> Tensor:
        moved = copy.deepcopy(sde)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter += step * direction[name]
            return _everything(moved, t, levels)

    rows = _everything(sde, t, levels)
    weights = torch.linspace(1, 2, len(rows), dtype=torch.float64)
    gradients = torch.autograd.grad((weights * rows).sum(), [dict(sde.named_parameters())[name] for name in names])
    slope = sum((g * direction[name]).sum() for name, g in zip(names, gradients, strict=True))
    h = 1e-5
    expected = (weights * (values(h) - values(-h))).sum() / (2 * h)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-7)


def _everything(sde: LearnedVPSDE, t: Tensor, levels: Tensor) -> Tensor:
    return torch.cat([sde.alpha(t), sde.sigma(t), sde.f(t), sde.g(t), sde.logsnr(t), sde.time(levels)])


def test_time_is_differentiable_by_its_argument() -> None:
    sde = PROCESSES["moved"]
    levels = torch.linspace(-4, 12, 9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sde.time(levels).sum(), levels)
    rate = -(sde.g(sde.time(levels)) / sde.sigma(sde.time(levels))).square()  # d logsnr/dt
    torch.testing.assert_close(slope, 1 / rate, rtol=1e-9, atol=0)
    (outside,) = torch.autograd.grad(sde.time(far := torch.tensor(50.0, requires_grad=True)), far)
    assert outside == 0


@processes
def test_solvers_reach_the_exact_flow(sde: LearnedVPSDE) -> None:
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = torch.tensor([[-1.2], [0.3], [1.9]], dtype=torch.float64)
    exact = exact_flow(sde, x, 1.0, sde.t_min).detach()

    def error(solver: object) -> float:
        assert callable(solver)
        return float((solver(denoiser, x) - exact).abs().max())

    assert error(ProbabilityFlowODE(rtol=1e-9, atol=1e-9, denoise=False)) < 1e-7
    assert error(ExponentialAdams(steps=80, grid=logsnr_grid, denoise=False)) < 1e-5
    order = convergence_order(
        lambda steps: DDIM(steps=steps, grid=logsnr_grid, denoise=False)(denoiser, x), exact, steps=(100, 200, 400)
    )
    assert 0.9 < order < 1.1
    second = convergence_order(
        lambda steps: Heun(steps=steps, grid=karras_grid, denoise=False)(denoiser, x), exact, steps=(60, 120, 240)
    )
    assert 1.8 < second < 2.3


@processes
def test_ancestral_sampling_converges_to_the_data(sde: LearnedVPSDE) -> None:
    def spread(steps: int) -> Tensor:
        solver = DDPM(steps=steps, grid=vp_grid, denoise=False, t_end=0.01)
        with torch.no_grad():
            mean, std = chain_moments(solver, GaussianDenoiser(sde, MEAN, STD), *moments(sde, 1.0))
        torch.testing.assert_close(mean, moments(sde, 0.01)[0].detach(), rtol=1e-9, atol=1e-9)
        return std

    assert 0.8 < convergence_order(spread, moments(sde, 0.01)[1].detach(), steps=(100, 200, 400)) < 1.2


def test_every_other_kind_of_solver_runs_and_encoding_returns() -> None:
    sde = PROCESSES["moved"]
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    for solver in (
        ReverseSDE(steps=40),
        PredictorCorrector(steps=40, grid=logsnr_grid),
        DDIM(steps=40, eta=1.0, grid=uniform_grid),
    ):
        y = solver(denoiser, x)
        assert abs(float(y.mean()) - MEAN) < 0.1 and abs(float(y.std()) - STD) < 0.2, type(solver).__name__
    solver = ExponentialAdams(steps=200, grid=logsnr_grid, denoise=False)
    torch.testing.assert_close(solver.encode(denoiser, solver(denoiser, x)), x, rtol=0, atol=1e-3)


@processes
def test_log_prob_is_the_density_of_the_flow(sde: LearnedVPSDE) -> None:
    x = torch.tensor([[-0.5], [1.4], [2.2]], dtype=torch.float64)
    with torch.no_grad():
        result = log_prob(GaussianDenoiser(sde, MEAN, STD), x, divergence="exact", rtol=1e-8, atol=1e-8)
        latent = exact_flow(sde, x, sde.t_min, 1.0)
        stretch = (moments(sde, 1.0)[1] / moments(sde, sde.t_min)[1]).log()
        exact = -0.5 * latent[:, 0].square() - 0.5 * math.log(2 * math.pi) + stretch
    torch.testing.assert_close(result.log_prob.detach(), exact, rtol=0, atol=1e-5)


def test_a_changed_parameter_changes_every_result_at_once() -> None:
    sde = copy.deepcopy(PROCESSES["moved"])
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = torch.tensor([[-1.2], [0.3]], dtype=torch.float64)
    solvers = [
        ExponentialAdams(steps=80, grid=logsnr_grid, denoise=False),
        ProbabilityFlowODE(rtol=1e-9, atol=1e-9, denoise=False),
    ]
    for _ in range(2):
        for solver in solvers:
            torch.testing.assert_close(solver(denoiser, x), exact_flow(sde, x, 1.0, sde.t_min), rtol=0, atol=1e-5)
        with torch.no_grad():
            sde.gamma_1 -= 1.5
            sde.gamma_0 += 2.0
            assert sde.interior is not None
            sde.interior.height.mul_(-1)


def test_it_is_part_of_the_denoiser() -> None:
    net = MLP(shape=(2,), width=8, depth=1)
    denoiser = NetworkDenoiser(net, LearnedVPSDE(width=5), Epsilon())
    names = [name for name, _ in denoiser.named_parameters() if name.startswith("sde.")]
    assert names == [
        "sde.gamma_0", "sde.gamma_1", "sde.interior.slope", "sde.interior.steepness", "sde.interior.shift",
        "sde.interior.height",
    ]  # fmt: skip
    ema = EMA(denoiser, decay=0.5, ramp=False)
    sde = denoiser.sde
    assert isinstance(sde, LearnedVPSDE)
    with torch.no_grad():
        sde.gamma_0 += 1.0
    ema.update(denoiser)
    with ema.applied(denoiser):
        assert abs(sde.gamma_0.item() + 12.8) < 1e-5
    assert abs(sde.gamma_0.item() + 12.3) < 1e-5

    fresh = NetworkDenoiser(MLP(shape=(2,), width=8, depth=1), LearnedVPSDE(width=5), Epsilon())
    fresh.load_state_dict(denoiser.state_dict())
    copied = copy.deepcopy(denoiser)
    stream = io.BytesIO()
    torch.save(denoiser, stream)
    stream.seek(0)
    pickled = torch.load(stream, weights_only=False)
    x, t = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.9])
    for other in (fresh, copied, pickled):
        assert torch.equal(other(x, t), denoiser(x, t))
    with torch.no_grad():
        sde.gamma_0 += 1.0
    assert not torch.equal(copied.sde.sigma(t), sde.sigma(t))
    assert hash(copied.sde) != hash(sde) and copied.sde != sde
    bound = denoiser.given()
    assert {id(p) for p in bound.parameters()} == {id(p) for p in denoiser.parameters()}


def test_building_one_draws_nothing_at_random() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    LearnedVPSDE()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_frozen_ends_leave_the_interior_to_train() -> None:
    sde = LearnedVPSDE(learn_ends=False, width=3)
    trained = [name for name, p in sde.named_parameters() if p.requires_grad]
    assert trained == ["interior.slope", "interior.steepness", "interior.shift", "interior.height"]
    assert not any(p.requires_grad for p in LearnedVPSDE(learn_ends=False, schedule="linear").parameters())
    assert "gamma_0" in sde.state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_and_parameters_may_be_on_different_devices() -> None:
    sde = copy.deepcopy(PROCESSES["moved"]).cuda()
    assert isinstance(sde, nn.Module)
    for t in (T, T.cuda()):
        assert sde.sigma(t).device == t.device and sde.time(sde.logsnr(t)).device == t.device
        torch.testing.assert_close(sde.sigma(t).cpu(), PROCESSES["moved"].sigma(T), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "LearnedVPSDE needs schedule linear or network, got 'cosine'"),
        ({"logsnr_max": -6.0}, "logsnr_min < logsnr_max"),
        ({"width": 0}, "width >= 1"),
        ({"t_min": 0.0}, "LearnedVPSDE needs 0 < t_min < 1, got t_min=0.0"),
    ],
)
def test_errors_name_what_is_wrong(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedVPSDE(**options)  # type: ignore[arg-type]


def test_the_inverse_finds_its_way_in_a_step_far_narrower_than_its_table() -> None:
    network = MonotoneNetwork(1).double()
    with torch.no_grad():
        network.slope.fill_(-6.0)
        network.steepness.fill_(4000.0)
        network.shift.fill_(4000.0 * 0.4012)
        network.height.fill_(1.0)
        r = torch.linspace(0, 1, 2001, dtype=torch.float64)
        t = network.inverse(r)
        assert bool((t.diff() > 0).all())
        torch.testing.assert_close(network(t)[0], r, rtol=0, atol=1e-12)
