"""L_simple, L_vlb and L_hybrid against the published code written out, the bound itself, and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import MEAN, STD
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    CosineSDE,
    Data,
    Denoiser,
    DenoisingLoss,
    DiscreteVPSDE,
    Epsilon,
    GaussianDenoiser,
    SubVPSDE,
    discrete_times,
    linear_betas,
)
from scoresde.covariance import LearnedRange
from scoresde.likelihood.vlb import vlb
from scoresde.losses.resampling import LossSecondMoment
from scoresde.losses.vlb_loss import VLBLoss

TABLE = DiscreteVPSDE(linear_betas())
PLACES = {"levels": 256, "value_range": (-256 / 255, 256 / 255)}  # of data at 2k/255 − 1


class TwoHeads(nn.Module):
    """A mean and a range with parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.mean, self.range = (nn.Linear(4, 3, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        features = torch.cat([torch.tanh(x), c_noise[:, None]], 1)
        return torch.cat([self.mean(features), 1.5 * torch.tanh(self.range(features))], 1)


class Published:
    """training_losses of Improved DDPM's GaussianDiffusion, for an ε-network with LEARNED_RANGE or a fixed variance."""

    def __init__(self, net: nn.Module, variance: str) -> None:
        self.net, self.variance = net, variance
        self.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, 0)
        previous = torch.cat([torch.ones(1).double(), self.alphas_cumprod[:-1]])
        self.posterior_variance = self.betas * (1 - previous) / (1 - self.alphas_cumprod)
        self.log_variance_clipped = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()
        self.coef1 = self.betas * previous.sqrt() / (1 - self.alphas_cumprod)
        self.coef2 = (1 - previous) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    def losses(self, kind: str, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        bar = self.alphas_cumprod[t][:, None]
        x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * noise
        label = 0.25 * torch.log((1 - bar).sqrt() / bar.sqrt())[:, 0]  # the label that our parameterization hands on
        output = self.net(x_t, label)
        eps, values = output.chunk(2, 1)
        if kind in ("KL", "RESCALED_KL"):
            loss = self.vb_terms_bpd(eps, values, x0, x_t, t)
            return loss * 1000 if kind == "RESCALED_KL" else loss
        mse = (noise - eps).square().mean(1)
        vb = self.vb_terms_bpd(eps.detach(), values, x0, x_t, t)
        return mse + (vb * 1000 / 1000.0 if kind == "RESCALED_MSE" else vb)

    def vb_terms_bpd(self, eps: Tensor, values: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        at = lambda table: table[t][:, None]  # noqa: E731
        bar, true_log_variance = at(self.alphas_cumprod), at(self.log_variance_clipped)
        true_mean = at(self.coef1) * x0 + at(self.coef2) * x_t
        if self.variance == "learned":
            fraction = (values + 1) / 2
            log_variance = fraction * at(self.betas.log()) + (1 - fraction) * true_log_variance
        elif self.variance == "large":
            log_variance = at(torch.cat([self.posterior_variance[1:2], self.betas[1:]]).log()).expand_as(x0)
        else:
            log_variance = true_log_variance.expand_as(x0)
        pred_xstart = (1 / bar).sqrt() * x_t - (1 / bar - 1).sqrt() * eps
        mean = at(self.coef1) * pred_xstart + at(self.coef2) * x_t
        kl = 0.5 * (
            -1.0
            + log_variance
            - true_log_variance
            + torch.exp(true_log_variance - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )
        nll = -self.discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where(t == 0, nll.mean(1), kl.mean(1)) / math.log(2.0)

    @staticmethod
    def discretized_log_likelihood(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        def cdf(z: Tensor) -> Tensor:
            return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

        plus = cdf(torch.exp(-log_scales) * (x - means + 1.0 / 255.0))
        minus = cdf(torch.exp(-log_scales) * (x - means - 1.0 / 255.0))
        inside = torch.log((plus - minus).clamp(min=1e-12))
        upper = torch.log((1.0 - minus).clamp(min=1e-12))
        return torch.where(x < -0.999, torch.log(plus.clamp(min=1e-12)), torch.where(x > 0.999, upper, inside))


def batch(places: tuple[int, ...] = (0, 0, 0, 1, 2, 17, 500, 998, 999)) -> tuple[Tensor, Tensor, Tensor]:
    """Data at 2k/255 − 1 with both ends among them, 0-based indices and noise."""
    generator, n = torch.Generator().manual_seed(1), len(places)
    k = torch.randint(0, 256, (n, 3), generator=generator)
    k[0, 0], k[1, 0] = 0, 255
    return 2 * k.double() / 255.0 - 1, torch.tensor(places), torch.randn(n, 3, dtype=torch.float64, generator=generator)


def gradients(losses: Tensor, net: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(losses.sum(), list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, net.parameters(), strict=True)]


@pytest.mark.parametrize(
    ("kind", "variance", "options"),
    [
        ("RESCALED_MSE", "learned", {"objective": "hybrid"}),
        ("MSE", "learned", {"objective": "hybrid", "vlb_weight": 1 / 1000}),
        ("RESCALED_KL", "learned", {"objective": "vlb"}),
        ("RESCALED_KL", "small", {"objective": "vlb"}),
        ("RESCALED_KL", "large", {"objective": "vlb"}),
    ],
)
def test_losses_and_gradients_are_the_published_ones(kind: str, variance: str, options: dict[str, Any]) -> None:
    net = TwoHeads()
    x0, t, noise = batch()
    expected = Published(net, variance).losses(kind, x0, t, noise)
    loss = VLBLoss(variance=variance, cdf="tanh", **PLACES, **options)
    values = loss.at(LearnedRange(net, TABLE, Epsilon()), x0, (t + 1) / 1000, noise)

    torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-9)
    for actual, wanted in zip(gradients(values, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-8)


def test_without_rescaling_the_kl_loss_is_one_over_t_of_ours() -> None:
    net, (x0, t, noise) = TwoHeads(), batch()
    expected = Published(net, "learned").losses("KL", x0, t, noise)
    values = VLBLoss(objective="vlb", cdf="tanh", **PLACES).at(
        LearnedRange(net, TABLE, Epsilon()), x0, (t + 1) / 1000, noise
    )
    torch.testing.assert_close(values / 1000, expected, rtol=1e-8, atol=1e-12)


def test_the_bound_in_l_hybrid_teaches_only_the_variance() -> None:
    net, (x0, t, noise) = TwoHeads(), batch()
    denoiser, places = LearnedRange(net, TABLE, Epsilon()), (t + 1) / 1000
    simple = VLBLoss(objective="simple").at(denoiser, x0, places, noise)
    hybrid = VLBLoss(vlb_weight=7.0, **PLACES).at(denoiser, x0, places, noise)
    bound = VLBLoss(objective="vlb", **PLACES).at(denoiser, x0, places, noise)
    torch.testing.assert_close(hybrid, simple + 7 * bound, rtol=1e-9, atol=1e-9)

    names = [key for key, _ in net.named_parameters()]
    for key, s, h, b in zip(names, *(gradients(loss, net) for loss in (simple, hybrid, bound)), strict=True):
        expected = s if key.startswith("mean") else 7 * b
        torch.testing.assert_close(h, expected, rtol=1e-9, atol=1e-9)
        assert float(h.abs().min()) > 0, key


def test_l_simple_is_the_denoising_loss_at_the_tables_states() -> None:
    denoiser, x0 = LearnedRange(TwoHeads(), TABLE, Epsilon()), torch.randn(40, 3, dtype=torch.float64)
    ours, theirs = VLBLoss(objective="simple"), DenoisingLoss(time=discrete_times)
    first, second = (loss.draw(TABLE, x0, torch.Generator().manual_seed(4)) for loss in (ours, theirs))
    torch.testing.assert_close(first[0], second[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ours(denoiser, x0, generator=torch.Generator().manual_seed(4)),
        theirs(denoiser, x0, generator=torch.Generator().manual_seed(4)),
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize("sde", [VPSDE(t_min=0.05), SubVPSDE(t_min=0.05), DiscreteVPSDE(linear_betas(9, 0.01, 0.3))])
@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
@pytest.mark.parametrize("quantised", [False, True])
def test_the_expectation_is_the_variational_bound_in_bits_per_dim(sde: Any, variance: str, quantised: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x0 = 0.1 + 0.3 * torch.randn(2500, 2, dtype=torch.float64, generator=generator)
    options: dict[str, Any] = {"levels": 32, "value_range": (-1.0, 1.0)} if quantised else {}
    loss = VLBLoss(objective="vlb", variance=variance, steps=9, prior=True, sampling="independent", **options)
    denoiser = GaussianDenoiser(sde, 0.2, 0.4)
    many = torch.cat([loss(denoiser, x0, generator=generator) for _ in range(8)])
    bound = vlb(denoiser, x0, steps=9, variance=variance, decoder=loss.decoder, samples=2, generator=generator)
    expected = -bound.log_prob / (2 * math.log(2))
    error = float(many.std()) / len(many) ** 0.5 + 2 * float(expected.std()) / 2500**0.5
    assert abs(float(many.mean() - expected.mean())) < 4 * error
    noise = torch.randn(2500, 2, dtype=torch.float64, generator=generator)
    times = torch.linspace(1, sde.t_min, 9, dtype=torch.float64)
    terms = torch.stack([loss.at(denoiser, x0, t.expand(2500), noise) for t in times])
    per_term = (torch.cat([bound.terms["reconstruction"][:, None], bound.terms["transitions"]], 1)).mean(0).flip(0)
    prior = bound.terms["prior"].mean()
    spread = terms.std(1) / 2500**0.5
    z = (terms.mean(1) - (9 * per_term + prior) / (2 * math.log(2))) / spread
    assert float(z.abs().max()) < 6, z  # the two routes have the same data and independent noise


class ExactMean(Denoiser):
    """The exact x̂0 of N(0.2, 0.4²), and the best variance, (β/β̃)^v = 1 + w Cov[x0 | x_t], with v off by `shift`."""

    def __init__(self, sde: DiscreteVPSDE, shift: float) -> None:
        super().__init__()
        self.sde, self.exact = sde, GaussianDenoiser(sde, 0.2, 0.4)
        self.shift = nn.Parameter(torch.full((len(sde.betas) + 1,), shift, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.exact(x, t)

    def mean_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        N, bar = len(self.sde.betas), lambda t: self.sde.alpha(t).square()
        k = (t * N).round().long()
        s = t - 1 / N
        w = bar(s) / (1 - bar(s)) - bar(t) / (1 - bar(t))
        spread = self.exact.covariance_diag(x, t).expand_as(x)[:, 0]
        v = torch.log1p(w * spread) / ((1 - bar(t)) / (1 - bar(s))).log()
        return self.exact(x, t), (v + self.shift[k])[:, None].expand_as(x)


def test_l_hybrid_is_least_for_the_optimal_variance_of_every_step() -> None:
    sde, generator = DiscreteVPSDE(linear_betas(8, 0.01, 0.4)), torch.Generator().manual_seed(3)
    x0 = 0.2 + 0.4 * torch.randn(30_000, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(30_000, 2, dtype=torch.float64, generator=generator)
    t = (torch.arange(30_000) % 7 + 2).double() / 8  # the transitions
    for shift, low, high in ((0.0, 0.0, 4.0), (0.3, 8.0, math.inf), (-0.3, -math.inf, -8.0)):
        parts = []
        for rows in torch.arange(30_000).view(50, 600).unbind():
            denoiser = ExactMean(sde, shift)
            VLBLoss(steps=8).at(denoiser, x0[rows], t[rows], noise[rows]).mean().backward()
            assert denoiser.shift.grad is not None
            parts.append(denoiser.shift.grad[2:])
        z = torch.stack(parts).mean(0) / (torch.stack(parts).std(0) / 50**0.5)
        assert float(z.abs().max()) < high if shift == 0 else bool(((z > low) & (z < high)).all()), z


def test_every_state_is_drawn_alike_and_times_are_rounded_to_states() -> None:
    loss, x0 = VLBLoss(objective="simple", steps=7), torch.zeros(7 * 300, 1)
    t, _ = loss.draw(VPSDE(), x0, torch.Generator().manual_seed(0))
    states = torch.linspace(1e-5, 1, 7, dtype=torch.float64)
    assert torch.equal(t.unique(return_counts=True)[1], torch.full((7,), 300))
    torch.testing.assert_close(t.unique(), states, rtol=1e-12, atol=1e-15)
    denoiser, noise = GaussianDenoiser(VPSDE(), MEAN, STD), torch.randn(7, 1)
    data = torch.randn(7, 1)
    torch.testing.assert_close(
        loss.at(denoiser, data, (states + 0.07).float(), noise), loss.at(denoiser, data, states, noise)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objective", ["simple", "vlb", "hybrid"])
def test_values_and_gradients_are_finite_at_both_ends_of_chain_and_levels(dtype: torch.dtype, objective: str) -> None:
    net = TwoHeads().to(dtype)
    denoiser = LearnedRange(net, DiscreteVPSDE(linear_betas()), Epsilon())
    x0 = torch.tensor([-1.0, 0.0, 1.0]).expand(4, 3).to(dtype)
    t = torch.tensor([1.0, 0.002, 0.001, 0.001], dtype=torch.float64)
    losses = VLBLoss(objective=objective, **PLACES).at(denoiser, x0, t, torch.zeros_like(x0))
    assert losses.dtype == dtype and bool(losses.isfinite().all())
    assert all(bool(g.isfinite().all()) for g in gradients(losses, net))


def test_float32_agrees_with_float64() -> None:
    x0, t, noise = batch()
    values = []
    for dtype in (torch.float32, torch.float64):
        denoiser = LearnedRange(TwoHeads().to(dtype), TABLE, Epsilon())
        loss = VLBLoss(objective="vlb", **PLACES)
        values.append(loss.at(denoiser, x0.to(dtype), (t + 1) / 1000, noise.to(dtype)).double())
    torch.testing.assert_close(values[0], values[1], rtol=2e-4, atol=2e-4)


def test_one_call_of_the_network_for_every_objective() -> None:
    calls = []

    class Counting(TwoHeads):
        def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
            calls.append(cond)
            return super().forward(x, c_noise)

    x0, label = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    for parameterization in (Epsilon(), Data()):
        denoiser = LearnedRange(Counting(), TABLE, parameterization)
        for objective in ("simple", "vlb", "hybrid"):
            calls.clear()
            VLBLoss(objective=objective, label_dropout=0.9999999)(denoiser, x0, label=label)
            assert len(calls) == 1 and calls[0]["label"].tolist() == [-1] * 4


def test_hybrid_takes_any_denoiser_that_predicts_a_range() -> None:
    net, (x0, t, noise) = TwoHeads(), batch()
    whole, places = LearnedRange(net, TABLE, Epsilon()), (t + 1) / 1000

    class OnlyTheMean(Denoiser):
        sde = TABLE

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return whole(x, t)

        def mean_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            return whole.mean_and_range(x, t)

    loss = VLBLoss(**PLACES)
    values = [loss.at(denoiser, x0, places, noise) for denoiser in (whole, OnlyTheMean(), whole.given())]
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(values[2], values[0], rtol=1e-9, atol=1e-9)


def test_levels_are_seen_at_the_centres_of_their_cells() -> None:
    assert not VLBLoss(**PLACES).dequantize and VLBLoss().dequantize


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "KL"}, "VLBLoss needs objective simple, vlb or hybrid, got 'KL'"),
        ({"variance": "small"}, "objective='hybrid' trains only the variance by the bound, so it needs"),
        ({"levels": 256}, "levels and value_range of quantised data, or neither for continuous data"),
        ({"value_range": (-1.0, 1.0)}, "levels and value_range of quantised data, or neither"),
        ({"levels": 1, "value_range": (-1.0, 1.0)}, "VLBLoss needs levels >= 2, a whole number, or null, got levels=1"),
        ({"steps": 1}, "VLBLoss needs 2 <= steps <= 1000000, a whole number, got steps=1"),
        ({"sampling": "sobol"}, "VLBLoss needs sampling independent, stratified or antithetic, got 'sobol'"),
        ({"label_dropout": 1.0}, "0 <= label_dropout < 1"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VLBLoss(**options)


def test_denoisers_without_the_variance_are_refused() -> None:
    denoiser, x0 = GaussianDenoiser(CosineSDE(), MEAN, STD), torch.randn(3, 2)
    with pytest.raises(TypeError, match="variance='learned' needs a network that predicts it"):
        VLBLoss()(denoiser, x0)
    with pytest.raises(ValueError, match="VLBLoss needs variance small, large"):
        VLBLoss(objective="vlb", variance="medium")(denoiser, x0)


def test_the_state_is_that_of_the_resampler() -> None:
    assert VLBLoss().state_dict() == {}
    VLBLoss().load_state_dict({})
    loss, again = (VLBLoss(objective="vlb", resampling=LossSecondMoment(), steps=4, variance="small") for _ in "ab")
    x0 = torch.randn(50, 2, dtype=torch.float64)
    loss(GaussianDenoiser(VPSDE(), MEAN, STD), x0)
    again.load_state_dict(loss.state_dict())
    assert int(again.state_dict()["counts"].sum()) == 50
