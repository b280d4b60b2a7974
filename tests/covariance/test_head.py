"""SN and NPR heads: the loss at its known minimum, and trained heads against exact conditional moments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor, nn

from scoresde import (
    DDPM,
    MLP,
    SDE,
    VPSDE,
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NCSNpp,
    NetworkDenoiser,
    VPrediction,
)
from scoresde.covariance import VarianceHead
from scoresde.losses import SecondMomentLoss
from scoresde.sde import expand
from scoresde.training import Trainer

STD = 0.7


class Zero(nn.Module):
    def forward(self, z: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(z)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("kind", ["npr", "sn"])
def test_the_loss_at_its_minimum_is_the_scatter_of_its_target(sde: SDE, kind: str, relative: bool) -> None:
    """For N(0, STD²) data the start F = 0 is exact, ε | x ~ N(ε̂, g), and Var (ε − ε̂)² = 2g², Var ε² = 2g² + 4gε̂²."""
    head = VarianceHead(GaussianDenoiser(sde, 0.0, STD), Zero(), kind=kind, sigma_data=STD)
    x0, t = STD * torch.randn(60000, 1, dtype=torch.float64), torch.tensor(0.35, dtype=torch.float64)
    alpha2, sigma2 = sde.alpha(t) ** 2 * STD**2, sde.sigma(t) ** 2
    g = alpha2 / (alpha2 + sigma2)  # and E ε̂² = 1 − g
    torch.testing.assert_close(
        head.covariance_diag(x0[:3], t), head.denoiser.covariance_diag(x0[:3], t).expand(3, 1), rtol=1e-9, atol=0
    )
    scatter = 2 * g**2 if kind == "npr" else 2 * g**2 + 4 * g * (1 - g)
    expected = scatter / (g**2 if kind == "npr" else g) if relative else scatter

    loss = SecondMomentLoss(relative=relative)
    at_minimum = loss.at(head, x0, t, torch.randn_like(x0)).mean()
    assert float(at_minimum / expected) == pytest.approx(1, abs=0.08)


class Off(Denoiser):
    """The exact ε̂ plus a constant, as a network that has not learned it all."""

    def __init__(self, exact: Denoiser, shift: float) -> None:
        super().__init__()
        self.exact, self.sde, self.shift = exact, exact.sde, shift

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.exact(x, t) - self.shift * expand(self.sde.sigma(t) / self.sde.alpha(t), x)


def trained(denoiser: Denoiser, law: GaussianMixtureDenoiser, kind: str, steps: int = 400) -> VarianceHead:
    head = VarianceHead(denoiser, MLP(shape=(2,), width=32, depth=2), kind=kind, sigma_data=1.0)
    optimizer = torch.optim.Adam(head.net.parameters(), lr=8e-3)
    x0 = law.sample(200_000).float()
    metrics = Trainer(
        denoiser=head, loss=SecondMomentLoss(time=lambda sde, u: 0.1 + 0.4 * u), optimizer=optimizer,
        batch=lambda k: (x0[torch.randint(len(x0), (512,), generator=torch.Generator().manual_seed(k))], {}),
        steps=steps, decay="cosine", ema_decay=0.0, progress=False, log_every=None, checkpoint_every=None,
    ).fit()  # fmt: skip
    assert metrics["step"] == steps
    return head.eval()


LAW = GaussianMixtureDenoiser(
    VPSDE(), torch.tensor([0.6, 0.4]), torch.tensor([[-1.0], [1.2]]), torch.tensor([[0.04], [0.16]])
)


@pytest.mark.parametrize("kind, shift", [("npr", 0.0), ("sn", 0.0), ("npr", 0.4)])
def test_a_trained_head_is_the_exact_conditional_moment(kind: str, shift: float) -> None:
    """NPR around a wrong ε̂ is the covariance plus its squared error."""
    sde = LAW.sde
    head = trained(Off(LAW, shift), LAW, kind)
    for t in (torch.tensor(0.2), torch.tensor(0.4)):
        x = sde.perturb(LAW.sample(4000).float(), t, torch.randn(4000, 1))
        level = (sde.sigma(t) / sde.alpha(t)).square()
        expected = LAW.covariance_diag(x, t) + level * shift**2
        learned = head.covariance_diag(x, t).detach()
        off = float((learned - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        constant = float(expected.std() / expected.square().mean().sqrt())
        assert off < 0.12 and constant > 0.15  # a head without x would be off by `constant`
        assert float(learned.mean() / expected.mean()) == pytest.approx(1, abs=0.05)


def test_only_the_head_is_trained_and_the_frozen_network_stays_in_evaluation_mode() -> None:
    trunk = NetworkDenoiser(MLP(shape=(2,), width=16, depth=1, dropout=0.5), VPSDE(), VPrediction())
    head = VarianceHead(trunk, MLP(shape=(4,), width=16, depth=1, dropout=0.5))
    before = copy.deepcopy(trunk.state_dict())
    batch = torch.randn(64, 2)
    Trainer(
        denoiser=head, loss=SecondMomentLoss(), optimizer=torch.optim.Adam(head.parameters(), lr=1e-2),
        batch=lambda k: (batch, {}), steps=3, progress=False, log_every=None, checkpoint_every=None,
    ).fit()  # fmt: skip
    head.train()
    assert not trunk.training and not trunk.net.training and head.net.training
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in trunk.parameters()) and bool(
        (head.net.output.weight != 0).any()
    )


def test_images_use_a_u_net_of_twice_the_channels() -> None:
    net = NCSNpp(
        channels=6, image_size=8, width=8, channel_mults=[1, 2], num_res_blocks=1, attention_resolutions=[], fir=False
    )
    trunk = NetworkDenoiser(Same(), VPSDE(), VPrediction())
    head = VarianceHead(trunk, net, sigma_data=0.5, data_range=(-1.0, 1.0)).eval()
    x = torch.randn(2, 3, 8, 8)
    _, covariance = head.mean_and_covariance(x, torch.tensor(0.9))
    assert (
        covariance.shape == x.shape and 0 <= float(covariance.detach().min()) <= float(covariance.detach().max()) <= 1
    )
    assert SecondMomentLoss()(head, x).shape == (2,)
    assert DDPM(variance="optimal", steps=3)(head, x).shape == x.shape


class Same(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        return torch.zeros_like(x)


def test_wrong_networks_and_losses_are_named() -> None:
    trunk = NetworkDenoiser(Same(), VPSDE(), VPrediction())

    class Half(nn.Module):
        def forward(self, z: Tensor, c_noise: Tensor) -> Tensor:
            return z[:, :2]

    with pytest.raises(ValueError, match=r"returns the shape of its input \(5, 4\), x and ε̂ .* got \(5, 2\)"):
        VarianceHead(trunk, Half()).covariance_diag(torch.randn(5, 2), torch.tensor(0.5))
    with pytest.raises(TypeError, match=r"SecondMomentLoss trains a VarianceHead around a denoiser, got Net"):
        SecondMomentLoss()(trunk, torch.randn(5, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sigma_data > 0, got 0"):
        VarianceHead(trunk, Half(), sigma_data=0)
    with pytest.raises(ValueError, match="DenoisingLoss needs sampling independent, stratified or"):
        SecondMomentLoss(sampling="no")
