"""Second-order denoising score matching on Gaussian data: values, minimiser, and how an inexact mean enters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor, nn

from scoresde import SDE, VPSDE, CosineSDE, Denoiser, DenoisingLoss, Epsilon, GaussianDenoiser, NetworkDenoiser
from scoresde.losses.second_order import SecondOrderLoss
from scoresde.losses.times import logsnr_times
from scoresde.losses.weightings import importance_weighting, velocity_weighting
from scoresde.models import NCSNpp
from scoresde.sde import expand

STDS = torch.tensor([0.3, 0.8, 1.7], dtype=torch.float64)
T = 0.4


class Linear(Denoiser):
    """ε̂ = W (x − α μ) + δ: on Gaussian data exact for δ = 0 and a diagonal W."""

    def __init__(self, sde: SDE, mean: float, t: Tensor, shift: float = 0.0) -> None:
        super().__init__()
        self.sde, self.mean = sde, mean
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        self.matrix = nn.Parameter(torch.diag(sigma / ((alpha * STDS).square() + sigma.square())))
        self.shift = nn.Parameter(torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64) * shift)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return (x - expand(self.sde.sigma(t), x) * self.eps(x, t)) / expand(self.sde.alpha(t), x)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return (x - expand(self.sde.alpha(t), x) * self.mean) @ self.matrix.T + self.shift


def draws(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 ~ N(0.5, diag STDS²), t, noise and four probes; the second half mirrors the first."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n // 2, 3, dtype=torch.float64, generator=generator)
    v = torch.randint(0, 2, (4, n, 3), generator=generator).double() * 2 - 1
    x0, noise = 0.5 + STDS * torch.cat([z[0], -z[0]]), torch.cat([z[1], -z[1]])
    return x0, torch.full((n,), T, dtype=torch.float64), noise, v


def residual_variances(sde: SDE) -> Tensor:
    """Cov[ε | x_t], diagonal: α² v/(α² v + σ²)."""
    t = torch.tensor(T, dtype=torch.float64)
    signal = (sde.alpha(t) * STDS).square()
    return signal / (signal + sde.sigma(t).square())


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(("order2", "expected"), [("jacobian", "frobenius"), ("trace", "trace"), ("both", "both")])
def test_the_exact_denoisers_loss_is_the_spread_of_the_target(sde: SDE, order2: str, expected: str) -> None:
    """A = C − r rᵀ with r ~ N(0, C): E‖A‖²_F = (tr C)² + ‖C‖²_F, E (tr A)² = 2 ‖C‖²_F."""
    n = 20_000
    x0, t, noise, _ = draws(n)
    C = residual_variances(sde)
    size, trace = C.square().sum(), C.sum().square()
    wanted = {"frobenius": trace + size, "trace": 2 * size, "both": trace + 3 * size}[expected] / 3
    values = SecondOrderLoss(order2=order2, weight=1.0).at(Linear(sde, 0.5, t[0]), x0, t, noise)
    second = (values - DenoisingLoss().at(Linear(sde, 0.5, t[0]), x0, t, noise)).detach()
    assert abs(float(second.mean() - wanted)) < 4.5 * float(second.std()) / (n / 2) ** 0.5


@pytest.mark.parametrize("order2", ["jacobian", "trace", "both"])
def test_values_are_the_matrix_formula_and_weights_apply_to_both_terms(order2: str) -> None:
    """σ²∇s + I − r rᵀ built from the score's Jacobian, entry by entry."""
    sde = CosineSDE()

    class Bent(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde = sde

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return torch.tanh(x + x.roll(1, 1).square() / 3)

    denoiser, (x0, _, noise, _) = Bent(), draws(4)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    loss = SecondOrderLoss(order2=order2, weight=0.7, weighting=velocity_weighting)
    values = loss.at(denoiser, x0, t, noise)
    for i in range(4):
        x, s = sde.perturb(x0, t, noise)[i : i + 1], sde.sigma(t[i])
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: denoiser.score(x, t[i]).sum(0), x)[:, 0]
        r = (noise[i] + s * denoiser.score(x, t[i])[0]).detach()
        A = s.square() * jacobian + torch.eye(3).double() - torch.outer(r, r)
        second = {"jacobian": A.square().sum(), "trace": A.trace().square()}
        second["both"] = second["jacobian"] + second["trace"]
        weight = 1 / sde.alpha(t[i]).square()
        torch.testing.assert_close(values[i], weight * (r.square().mean() + 0.7 * second[order2] / 3))


def test_probes_average_to_the_exact_term() -> None:
    """Over all 2³ sign vectors: E‖Aᵀv‖² = ‖A‖²_F, and the mean of vᵀ A v is the trace."""
    sde = VPSDE()
    denoiser, (x0, t, noise, _) = Linear(sde, 0.5, torch.tensor(T).double(), shift=0.3), draws(6)
    with torch.no_grad():
        denoiser.matrix += 0.3 * torch.randn(3, 3, dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    every = signs[:, None].expand(8, 6, 3)
    for order2 in ("jacobian", "trace", "both"):
        loss = SecondOrderLoss(order2=order2)
        torch.testing.assert_close(loss.at(denoiser, x0, t, noise, every), loss.at(denoiser, x0, t, noise))


def matrix_gradient(loss: SecondOrderLoss, denoiser: Linear, n: int, *, probes: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard error of ∂L₂/∂W: the second-order term alone, weight 1."""
    x0, t, noise, v = draws(n)
    vectors = v[:probes] if probes else None
    jacobian = []
    for part in range(20):  # as independent halves of mirrored pairs
        rows = torch.arange(part, n, 20)
        chosen = None if vectors is None else vectors[:, rows]
        total = loss.at(denoiser, x0[rows], t[rows], noise[rows], chosen)
        first = DenoisingLoss().at(denoiser, x0[rows], t[rows], noise[rows])
        jacobian.append(torch.autograd.grad((total - first).mean(), denoiser.matrix)[0])
    stacked = torch.stack(jacobian)
    return stacked.mean(0), stacked.std(0) / 20**0.5


@pytest.mark.parametrize("order2", ["jacobian", "trace", "both"])
@pytest.mark.parametrize("probes", [0, 1, 3])
def test_the_exact_jacobian_is_the_minimiser(order2: str, probes: int) -> None:
    sde = VPSDE()
    loss, exact = SecondOrderLoss(order2=order2, weight=1.0), Linear(sde, 0.5, torch.tensor(T).double())
    gradient, error = matrix_gradient(loss, exact, 20_000, probes=probes)
    if order2 == "trace" and not probes:
        gradient, error = gradient.diagonal(), error.diagonal()  # nothing else has a gradient
    assert float((gradient / error).abs().max()) < 4.5

    with torch.no_grad():
        exact.matrix *= 1.3
    away, error = matrix_gradient(loss, exact, 20_000, probes=probes)
    assert float((away.diagonal() / error.diagonal()).min()) > 5


def test_an_inexact_mean_enters_at_second_order() -> None:
    """With ε̂ off by δ, E[A] = −δ δᵀ: the gradient is 2σ/d δ δᵀ ("jacobian"), 2σ/d ‖δ‖² I ("trace")."""
    sde, t = VPSDE(), torch.tensor(T, dtype=torch.float64)
    for order2 in ("jacobian", "trace"):
        loss = SecondOrderLoss(order2=order2, weight=1.0)
        exact = matrix_gradient(loss, Linear(sde, 0.5, t), 400)[0]
        for shift in (0.1, 0.2, -0.2):
            denoiser = Linear(sde, 0.5, t, shift)
            delta = denoiser.shift.detach()
            outer = torch.outer(delta, delta) if order2 == "jacobian" else delta.square().sum() * torch.eye(3).double()
            change = matrix_gradient(loss, denoiser, 400)[0] - exact
            torch.testing.assert_close(change, 2 * sde.sigma(t) / 3 * outer, rtol=1e-9, atol=1e-10)


def test_residuals_are_detached_and_the_first_order_term_is_the_denoising_loss() -> None:
    sde, (x0, t, noise, _) = VPSDE(), draws(50)
    denoiser = Linear(sde, 0.2, t[0], shift=0.4)
    for order2 in ("jacobian", "trace"):
        loss = SecondOrderLoss(order2=order2, weight=5.0).at(denoiser, x0, t, noise).mean()
        plain = DenoisingLoss().at(denoiser, x0, t, noise).mean()
        ours, theirs = (torch.autograd.grad(value, denoiser.shift)[0] for value in (loss, plain))
        torch.testing.assert_close(ours, theirs)
    zero = SecondOrderLoss(weight=0.0).at(denoiser, x0, t, noise)
    torch.testing.assert_close(zero, DenoisingLoss().at(denoiser, x0, t, noise))


def test_the_trace_with_velocity_weighting_is_the_velocity_form() -> None:
    """[σ div F − α (d − ‖F − F*‖²)]²/d for F = (ε̂ − σ x)/α, F* = α ε − σ x0 on VP."""
    sde, (x0, t, noise, _) = VPSDE(), draws(30)
    denoiser = GaussianDenoiser(sde, 0.1, 0.6)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    x = sde.perturb(x0, t, noise)
    velocity = lambda x: (denoiser.eps(x, t) - sigma * x) / alpha  # noqa: E731
    divergence = torch.autograd.functional.jacobian(lambda x: velocity(x).sum(0), x).diagonal(dim1=0, dim2=2).sum(1)
    squared = (velocity(x) - (alpha * noise - sigma * x0)).square().sum(1)
    alpha, sigma = alpha[:, 0], sigma[:, 0]
    expected = squared / 3 + 0.1 * (sigma * divergence - alpha * (3 - squared)).square() / 3
    loss = SecondOrderLoss(weighting=velocity_weighting, weight=0.1, order2="trace")
    torch.testing.assert_close(loss.at(denoiser, x0, t, noise), expected)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_a_training_step_draws_from_the_generator_alone(probe: str) -> None:
    denoiser, x0 = GaussianDenoiser(VPSDE(), 0.1, 0.6), torch.randn(20_000, 3)
    loss = SecondOrderLoss(
        weighting=importance_weighting, time=logsnr_times, probes=2, probe=probe, order2="both", sampling="antithetic"
    )
    first, again, other = (loss(denoiser, x0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (20_000,) and torch.equal(first, again) and not torch.equal(first, other)
    t, noise = loss.draw(denoiser.sde, x0, torch.Generator().manual_seed(1))
    assert t.shape == (20_000,) and noise.shape == x0.shape
    v = loss._vectors(x0, torch.Generator().manual_seed(3))
    assert v is not None and v.shape == (2, 20_000, 3)
    assert abs(float(v.mean())) < 0.02 and float(v.var()) == pytest.approx(1, abs=0.02)
    assert float(v.square().var()) == pytest.approx(0 if probe == "rademacher" else 2, abs=0.1)


def test_labels_are_dropped_as_in_the_denoising_loss() -> None:
    seen: list[Tensor] = []

    class Spy(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, *, label: Tensor, **cond: Any) -> Tensor:
            seen.append(label)
            return x

    SecondOrderLoss(label_dropout=0.3)(Spy(), torch.zeros(4000, 1), label=torch.arange(4000))
    assert len(seen) == 1
    dropped = seen[0] == -1
    assert abs(float(dropped.double().mean()) - 0.3) < 4 * (0.21 / 4000) ** 0.5
    assert torch.equal(seen[0][~dropped], torch.arange(4000)[~dropped])


@pytest.mark.parametrize("order2", ["jacobian", "trace", "both"])
def test_networks_train_on_it_and_without_gradients_the_value_is_the_same(order2: str) -> None:
    torch.manual_seed(0)
    net = NCSNpp(
        channels=1, image_size=8, width=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
        init_scale=1.0, dropout=0.0, num_classes=2,
    )  # fmt: skip
    denoiser, x0 = NetworkDenoiser(net, VPSDE(), Epsilon()), torch.randn(3, 1, 8, 8)
    loss, label = SecondOrderLoss(order2=order2, label_dropout=0.5), torch.tensor([0, 1, 1])
    losses = loss(denoiser, x0, generator=torch.Generator().manual_seed(0), label=label)
    losses.mean().backward()
    used = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in used) and len(used) > 50
    with torch.no_grad():
        again = loss(denoiser, x0, generator=torch.Generator().manual_seed(0), label=label)
    assert not again.requires_grad
    torch.testing.assert_close(again, losses.detach())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order2": "hessian"}, "SecondOrderLoss needs order2 jacobian, trace or both, got 'hessian'"),
        ({"probe": "sobol"}, "probe rademacher or gaussian, got 'sobol'"),
        ({"probes": 0}, "SecondOrderLoss needs probes >= 1, a whole number, or null, got probes=0"),
        ({"weight": -1.0}, "SecondOrderLoss needs 0 <= weight <= 1e9, got weight=-1.0"),
        ({"weight": math.nan}, "SecondOrderLoss needs 0 <= weight <= 1e9, got weight=nan"),
        ({"sampling": "sobol"}, "SecondOrderLoss needs sampling independent, stratified or antithetic, got 'sobol'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SecondOrderLoss(**options)
