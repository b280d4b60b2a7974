"""VDMLoss: its value in closed form, its invariances, its two gradients, and a small training run."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import MEAN, STD
from torch import Tensor

from scoresde import MLP, SDE, VPSDE, CosineSDE, Denoiser, Epsilon, GaussianDenoiser, NetworkDenoiser
from scoresde.likelihood import CategoricalDecoder, DiscretizedGaussian, gaussian_decoder
from scoresde.likelihood.chain import chain_times, transition_kl
from scoresde.losses.vdm import VDMLoss
from scoresde.sde.learned_vpsde import LearnedVPSDE
from scoresde.testing import convergence_order
from scoresde.training import RunDirectory, Trainer


def learned(seed: int | None = None, **options: Any) -> LearnedVPSDE:
    """A schedule in float64, after its start if a seed is given."""
    sde = LearnedVPSDE(**{"width": 6} | options).double()
    if sde.interior is not None and seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in sde.interior.parameters():
                parameter += 3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sde


def corners(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u four times, with x0 and noise at mean ± std: what is quadratic in both has its exact expectation."""
    sign = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    both = sign.repeat(len(u), 1)
    return u.repeat_interleave(4), MEAN + STD * both[:, :1], both[:, 1:]


def expected(loss: VDMLoss, sde: SDE, cells: int = 60) -> dict[str, float]:
    """E of the terms for N(MEAN, STD²) data and the exact denoiser, by Gauss-Legendre quadrature in u; nats."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    start = torch.arange(cells, dtype=torch.float64)[:, None] / cells
    u = (start + torch.from_numpy(0.5 * (nodes + 1)) / cells).flatten()
    mass = (torch.from_numpy(0.5 * weights) / cells).repeat(cells)
    u, x0, noise = corners(u)
    with torch.no_grad():
        terms = loss.terms(GaussianDenoiser(sde, MEAN, STD), x0, u, noise, noise)
    return {name: float((value.reshape(-1, 4).mean(1) * mass).sum()) * math.log(2) for name, value in terms.items()}


def gammas(sde: SDE) -> tuple[float, float]:
    with torch.no_grad():
        low, high = (-sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64))).tolist()
    return low, high


def diffusion(low: float, high: float) -> float:
    """½ ∫ E(ε − ε̂)² dγ = ½ ∫ s²/(s² + e^γ) dγ."""
    return 0.5 * (math.log1p(STD**2 * math.exp(-low)) - math.log1p(STD**2 * math.exp(-high)))


CASES: list[tuple[SDE, str]] = [
    (learned(schedule="linear"), "own"),
    (learned(), "own"),
    (learned(0), "own"),
    (learned(1, logsnr_max=9.0), "own"),
    (learned(0), "logsnr"),
    (VPSDE(), "logsnr"),
    (CosineSDE(), "logsnr"),
]


@pytest.mark.parametrize(("sde", "clock"), CASES)
def test_terms_equal_their_closed_forms(sde: SDE, clock: str) -> None:
    terms = expected(VDMLoss(decoder=gaussian_decoder, clock=clock), sde)
    low, high = gammas(sde)
    alpha2, sigma2 = 1 / (1 + math.exp(high)), 1 / (1 + math.exp(-high))
    assert terms["diffusion"] == pytest.approx(diffusion(low, high), abs=1e-9)
    assert terms["prior"] == pytest.approx(
        0.5 * (alpha2 * (MEAN**2 + STD**2) + sigma2 - 1 - math.log(sigma2)), abs=1e-12
    )
    assert terms["reconstruction"] == pytest.approx(0.5 * (math.log(2 * math.pi) + low + 1), abs=1e-12)
    entropy = 0.5 * math.log(2 * math.pi * math.e * STD**2)
    gap = terms["prior"] + 0.5 * math.log1p(math.exp(low) / STD**2) - 0.5 * math.log1p(STD**2 * math.exp(-high))
    assert sum(terms.values()) - entropy == pytest.approx(gap, abs=1e-9) and gap > 0


def test_the_continuous_bound_does_not_see_the_interior() -> None:
    schedules = [learned(schedule="linear", t_min=1e-9), *(learned(seed, t_min=1e-9) for seed in (None, 0, 5, 6))]
    progress = torch.stack([sde.progress(torch.tensor(0.3))[0].detach() for sde in schedules])
    assert float(progress.std()) > 0.05
    terms = [expected(VDMLoss(decoder=gaussian_decoder), sde) for sde in schedules]
    values = [sum(each.values()) for each in terms]
    assert max(values) - min(values) < 1e-6


@pytest.mark.parametrize("sde", [learned(schedule="linear"), learned(2)], ids=["linear", "network"])
def test_a_finite_chain_costs_more_and_converges_at_first_order(sde: LearnedVPSDE) -> None:
    exact = diffusion(*gammas(sde))

    def chain(steps: int) -> Tensor:
        u, x0, noise = corners((torch.arange(steps, dtype=torch.float64) + 0.5) / steps)
        loss = VDMLoss(decoder=gaussian_decoder, steps=steps)
        with torch.no_grad():
            terms = loss.terms(GaussianDenoiser(sde, MEAN, STD), x0, u, noise, noise)
        return terms["diffusion"].mean() * math.log(2)

    costs = [float(chain(steps)) for steps in (10, 100, 1000)]
    assert costs[0] > costs[1] > costs[2] > exact
    assert convergence_order(chain, exact, steps=(200, 400, 800)) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("clock", ["own", "logsnr"])
@pytest.mark.parametrize("sde", [learned(2), VPSDE()], ids=["learned", "vp"])
def test_a_finite_chain_is_the_bound_with_the_small_variance_term_by_term(sde: SDE, clock: str) -> None:
    steps, generator = 7, torch.Generator().manual_seed(0)
    x0 = torch.randn(steps, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(steps, 3, generator=generator, dtype=torch.float64)
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    loss = VDMLoss(decoder=gaussian_decoder, steps=steps, clock=clock)
    u = torch.arange(steps, dtype=torch.float64) / steps + 0.3 / steps
    with torch.no_grad():
        terms = loss.terms(denoiser, x0, u, noise, noise)["diffusion"] * 3 * math.log(2) / steps
        if clock == "own":
            times = chain_times(sde, steps + 1).flip(0)
        else:
            low, high = gammas(sde)
            times = sde.time(-torch.linspace(low, high, steps + 1, dtype=torch.float64))
        x = sde.perturb(x0, times[1:], noise)
        kl = transition_kl(denoiser, x0, x, times[1:], times[:-1], variance="small")
    torch.testing.assert_close(terms, kl, rtol=1e-9, atol=1e-12)


class Reference:
    """The loss of an example by the paper's formulas, with plain autograd."""

    def __init__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, noise: Tensor, end_noise: Tensor) -> None:
        sde = denoiser.sde
        assert isinstance(sde, LearnedVPSDE)
        t = sde.t_min + (1 - sde.t_min) * u
        r, slope = sde.progress(t)
        gamma = sde.gamma_0 + (sde.gamma_1 - sde.gamma_0) * r
        z = torch.sigmoid(-gamma).sqrt()[:, None] * x0 + torch.sigmoid(gamma).sqrt()[:, None] * noise
        rate = (1 - sde.t_min) * (sde.gamma_1 - sde.gamma_0) * slope
        bits = x0.shape[1] * math.log(2)
        self.diffusion = 0.5 * rate * (denoiser.eps(z, t) - noise).square().sum(1) / bits
        start = sde.gamma_0 + (sde.gamma_1 - sde.gamma_0) * sde.progress(torch.tensor(sde.t_min))[0]
        std = torch.exp(0.5 * start)
        end = 0.5 * (torch.sigmoid(-sde.gamma_1) * x0**2 + torch.sigmoid(sde.gamma_1) - 1)
        prior = (end - 0.5 * torch.nn.functional.logsigmoid(sde.gamma_1)).sum(1)
        self.rest = (prior - gaussian_decoder(x0, x0 + std * end_noise, std)) / bits


def network_denoiser(**options: Any) -> NetworkDenoiser:
    torch.manual_seed(1)
    net = MLP(shape=(3,), width=16, depth=1).double()
    torch.nn.init.normal_(net.output.weight, std=0.3)
    return NetworkDenoiser(net, learned(3, **options), Epsilon())


def draws(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise, end_noise = torch.randn(3, batch, 3, generator=generator, dtype=torch.float64)
    return 0.5 * x0, torch.rand(batch, generator=generator, dtype=torch.float64), noise, end_noise


def total(loss: VDMLoss, denoiser: Denoiser, at: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(list(loss.terms(denoiser, *at).values())).sum(0)


def test_one_backward_pass_gives_both_gradients() -> None:
    denoiser, at = network_denoiser(), draws(32)
    assert isinstance(denoiser.sde, LearnedVPSDE) and denoiser.sde.interior is not None
    value = total(VDMLoss(decoder=gaussian_decoder), denoiser, at)
    reference = Reference(denoiser, *at)
    torch.testing.assert_close(value, reference.diffusion + reference.rest, rtol=1e-9, atol=0)
    value.mean().backward()

    of_bound = [*denoiser.net.parameters(), denoiser.sde.gamma_0, denoiser.sde.gamma_1]
    of_bound = [parameter for parameter in of_bound if parameter.requires_grad]
    plain = torch.autograd.grad((reference.diffusion + reference.rest).mean(), of_bound, retain_graph=True)
    for parameter, gradient in zip(of_bound, plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-11)

    others = (reference.diffusion.sum() - reference.diffusion).detach() / 31
    square = (reference.diffusion.square() / others).mean() + reference.rest.mean()
    interior = list(denoiser.sde.interior.parameters())
    for parameter, gradient in zip(interior, torch.autograd.grad(square, interior), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-11)
        assert gradient.abs().max() > 1e-5


def test_gradients_of_two_batches_add_up_and_of_a_batch_alike() -> None:
    """The direction is that of E[ℓ²]: it does not depend on how a loss is averaged afterwards."""
    denoiser, at = network_denoiser(), draws(4096, seed=4)
    assert isinstance(denoiser.sde, LearnedVPSDE) and denoiser.sde.interior is not None
    interior = list(denoiser.sde.interior.parameters())
    total(VDMLoss(decoder=gaussian_decoder), denoiser, at).mean().backward()
    given = torch.cat([parameter.grad.flatten() for parameter in interior if parameter.grad is not None])
    square = Reference(denoiser, *at).diffusion.square().mean()
    exact = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(square, interior)])
    assert torch.nn.functional.cosine_similarity(given, exact, dim=0) > 0.99999


@pytest.mark.parametrize("options", [{"steps": 20}, {"clock": "logsnr"}])
def test_elsewhere_the_gradient_is_that_of_the_loss(options: dict[str, Any]) -> None:
    denoiser, at = network_denoiser(), draws(8)
    loss, parameters = VDMLoss(decoder=gaussian_decoder, **options), list(denoiser.sde.parameters())  # type: ignore[attr-defined]
    gradients = torch.autograd.grad(total(loss, denoiser, at).mean(), parameters)
    generator = torch.Generator().manual_seed(7)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def value(step: float) -> float:
        moved = copy.deepcopy(denoiser)
        with torch.no_grad():
            for parameter, change in zip(moved.sde.parameters(), direction, strict=True):  # type: ignore[attr-defined]
                parameter += step * change
            return float(total(loss, moved, at).mean())

    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-6)
    if options == {"clock": "logsnr"}:  # what is uniform in log-SNR does not see the interior
        assert max(float(g.abs().max()) for g in gradients[2:]) < 1e-4


def test_the_interior_finds_the_schedule_of_least_variance() -> None:
    """For d Gaussian entries ‖ε − ε̂‖² is e(γ) χ²_d, so that the best dt/dγ is proportional to e(γ)."""
    sde = learned(logsnr_min=-2.0, logsnr_max=6.0, learn_ends=False, width=32)
    data = GaussianDenoiser(sde, MEAN, STD)
    loss = VDMLoss(decoder=gaussian_decoder, sampling="stratified")
    low, high = gammas(sde)
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)

    def second_moment() -> float:
        """E[ℓ²] without its factor E[(χ²_d)²]."""
        u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        with torch.no_grad():
            gamma, rate = -sde.logsnr(u), (sde.g(u) / sde.sigma(u)).square()
            return float((0.5 * rate * STD**2 / (STD**2 + gamma.exp())).square().mean())

    before, mean_before = second_moment(), expected(loss, sde)["diffusion"]
    optimizer = torch.optim.Adam(sde.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 300)
        x0 = MEAN + STD * torch.randn(256, 2, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss(data, x0, generator=generator).mean().backward()
        optimizer.step()
    after, best = second_moment(), diffusion(low, high) ** 2
    assert before > 1.2 * best
    assert best <= after < 1.02 * best
    # t is the share of ½ ∫ e dγ spent so far
    optimum = torch.tensor([diffusion(low, -float(level)) for level in sde.logsnr(t).detach()]) / diffusion(low, high)
    torch.testing.assert_close(t, optimum.double(), rtol=0, atol=0.03)
    assert expected(loss, sde)["diffusion"] == pytest.approx(mean_before, abs=1e-4)
    # the drift of the mean is that of σ at t_min alone
    assert expected(loss, sde)["diffusion"] == pytest.approx(diffusion(*gammas(sde)), abs=1e-9)


def test_quantised_data_are_taken_at_the_centres_of_their_cells() -> None:
    decoder = CategoricalDecoder(levels=17)
    loss, denoiser = VDMLoss(decoder=decoder), network_denoiser()
    k = torch.tensor([[0, 8, 16], [3, 5, 7]])
    centre = decoder.centre(k, torch.float64)
    u, noise = torch.tensor([0.2, 0.7], dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        exact = loss.terms(denoiser, centre, u, noise, noise)
        spread = loss.terms(denoiser, centre + 0.4 * decoder.width, u, noise, noise)
        noisier = loss.terms(NetworkDenoiser(denoiser.net, learned(logsnr_max=2.0), Epsilon()), centre, u, noise, noise)
    for name, value in exact.items():
        assert torch.equal(value, spread[name])
    std = torch.exp(-0.5 * learned(logsnr_max=2.0).logsnr(torch.tensor(1e-5, dtype=torch.float64)).detach())
    z = (centre + std * noise)[..., None]
    places = -1 + (2 * torch.arange(17, dtype=torch.float64) + 1) / 17
    log_probs = (-0.5 * ((z - places) / std).square()).log_softmax(-1).gather(-1, k[..., None])[..., 0]
    torch.testing.assert_close(noisier["reconstruction"], -log_probs.sum(1) / (3 * math.log(2)), rtol=1e-9, atol=0)
    assert exact["reconstruction"].abs().max() < 1e-9  # 17 levels are far apart for e^(−13.3/2)
    assert not loss.dequantize and VDMLoss(decoder=gaussian_decoder).dequantize
    assert not VDMLoss(decoder=DiscretizedGaussian(levels=17)).dequantize


def test_draws_are_antithetic_reproducible_and_name_their_times() -> None:
    denoiser, x0 = network_denoiser(), torch.randn(8, 3, dtype=torch.float64)
    loss = VDMLoss(decoder=gaussian_decoder)
    t, noise = loss.draw(denoiser.sde, x0, torch.Generator().manual_seed(5))
    u = ((t - 1e-5) / (1 - 1e-5)).sort().values
    torch.testing.assert_close(u.diff(), torch.full((7,), 1 / 8, dtype=torch.float64), rtol=0, atol=1e-12)
    value = loss(denoiser, x0, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    loss.draw(denoiser.sde, x0, generator)
    end_noise = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    again = total(loss, denoiser, (x0, (t - 1e-5) / (1 - 1e-5), noise, end_noise))
    torch.testing.assert_close(value, again, rtol=1e-9, atol=0)
    assert value.shape == (8,) and loss(denoiser, x0[:1]).isfinite().all()
    chain = VDMLoss(decoder=gaussian_decoder, steps=4).draw(denoiser.sde, x0, generator)[0]
    assert set(((chain - 1e-5) / (1 - 1e-5) * 4).round(decimals=9).tolist()) == {1, 2, 3, 4}


def test_labels_are_dropped_and_float32_is_kept() -> None:
    seen: list[Tensor] = []

    class Spy(GaussianDenoiser):
        def _mean(self, y: Tensor, s: Tensor) -> Tensor:
            return super()._mean(y, s)

        def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.append(cond["label"])
            return super().eps(x, t)

    x0 = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    label = torch.arange(4000) % 10
    value = VDMLoss(decoder=gaussian_decoder, label_dropout=0.3)(Spy(LearnedVPSDE(), MEAN, STD), x0, label=label)
    assert value.dtype == torch.float32
    assert float((seen[0] == -1).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert label.min() == 0


def quantised(k: int, *, shape: tuple[int, ...] = (2,), levels: int = 16) -> Tensor:
    """Batch k of levels around a ring."""
    generator = torch.Generator().manual_seed(k)
    angle = 2 * math.pi * torch.rand(64, generator=generator)
    ring = torch.stack([angle.cos(), angle.sin()], 1) * 5 + 7.5
    return (ring + 0.5 * torch.randn(64, 2, generator=generator)).round().clamp(0, levels - 1).reshape(64, *shape)


def train(folder: Path, steps: int, stop: int | None = None) -> tuple[NetworkDenoiser, dict[str, float]]:
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MLP(shape=(2,), width=32, depth=1), LearnedVPSDE(width=16), Epsilon())
    assert isinstance(denoiser.sde, LearnedVPSDE)
    decoder = CategoricalDecoder(levels=16)
    groups = [{"params": denoiser.net.parameters()}, {"params": denoiser.sde.parameters(), "weight_decay": 0.0}]
    trainer = Trainer(
        denoiser=denoiser,
        loss=VDMLoss(decoder=decoder),
        optimizer=torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.01),
        batch=lambda k: (decoder.centre(quantised(k).long()), {}),
        run=RunDirectory.create(folder, "toy: true\n"),
        steps=stop or steps,
        decay="constant",
        log_every=20,
        checkpoint_every=50,
        progress=False,
    )
    return denoiser, trainer.fit()


def test_a_toy_learns_its_schedule_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    denoiser, metrics = train(tmp_path / "whole", 150)
    rows = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()
    first = float(rows[1].split(",")[rows[0].split(",").index("loss")])
    assert metrics["loss"] < 0.75 * first and math.isfinite(metrics["loss_std"])
    sde = denoiser.sde
    assert isinstance(sde, LearnedVPSDE) and sde.interior is not None
    assert sde.gamma_0.item() > -13.2  # levels 1/8 apart need less precision than e^(−13.3/2)
    assert abs(sde.gamma_1.item() - 5) > 0.05
    r = sde.progress(torch.linspace(0, 1, 21))[0].detach()
    assert float((r - LearnedVPSDE(width=16).progress(torch.linspace(0, 1, 21))[0].detach()).abs().max()) > 0.01

    train(tmp_path / "parts", 150, stop=90)
    resumed, _ = train(tmp_path / "parts", 150)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "cosine"}, "VDMLoss needs clock own or logsnr, got 'cosine'"),
        ({"steps": 0}, "VDMLoss needs 1 <= steps <= 1000000, a whole number, or null, got steps=0"),
        ({"sampling": "qmc"}, "sampling"),
        ({"label_dropout": 1.0}, "label_dropout"),
    ],
)
def test_errors_name_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VDMLoss(**options)
