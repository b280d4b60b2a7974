"""A network with a learned range of variances as a denoiser: its mean, its noise estimate, its fast path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor, nn

from scoresde import (
    EDM,
    SDE,
    VPSDE,
    Data,
    Epsilon,
    NetworkDenoiser,
    Parameterization,
    VPrediction,
)
from scoresde.covariance import LearnedRange
from scoresde.models import MLP, NCSNpp


class TwoHalves(nn.Module):
    """F = tanh(x) cos(c_noise) and r = x/3 + c_noise, with a record of the labels it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.dtypes: list[torch.dtype] = []

    def mean(self, x: Tensor, c_noise: Tensor, shift: float | Tensor = 0.0) -> Tensor:
        return self.gain * torch.tanh(x) * c_noise.cos()[:, None] + shift

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        self.dtypes.append(x.dtype)
        return torch.cat([self.mean(x, c_noise, **cond), x / 3 + c_noise[:, None]], 1)


class MeanOnly(nn.Module):
    def __init__(self, net: TwoHalves) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        return self.net.mean(x, c_noise, **cond)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("parameterization", [Epsilon(), Data(), VPrediction(), EDM()], ids=str)
def test_mean_and_noise_are_those_of_the_network_denoiser(sde: SDE, parameterization: Parameterization) -> None:
    net = TwoHalves()
    learned, plain = LearnedRange(net, sde, parameterization), NetworkDenoiser(MeanOnly(net), sde, parameterization)
    x = torch.randn(5, 2, dtype=torch.float64)
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.01, 1, 5, dtype=torch.float64)):
        shift = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
        assert torch.equal(learned(x, t, shift=shift), plain(x, t, shift=shift))
        assert torch.equal(learned.eps(x, t, shift=shift), plain.eps(x, t, shift=shift))
        assert torch.equal(learned.score(x, t), plain.score(x, t))
        assert torch.equal(learned.velocity(x, t), plain.velocity(x, t))
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        c_in = parameterization.c_in(alpha, sigma).reshape(-1, 1)
        v = (1 + c_in * x / 3 + parameterization.c_noise(alpha, sigma).reshape(-1, 1)) / 2
        torch.testing.assert_close(learned.mean_and_range(x, t)[1], v)
        torch.testing.assert_close(learned.eps_and_range(x, t)[1], v)
        assert torch.equal(learned.mean_and_range(x, t)[0], plain(x, t))
        assert torch.equal(learned.eps_and_range(x, t)[0], plain.eps(x, t))


def test_the_noise_estimate_has_no_cancellation_in_float32() -> None:
    sde, net = VPSDE(), TwoHalves()
    x, t = torch.randn(4, 2), torch.tensor(1e-5)
    net.gain.data = net.gain.data.float()
    eps = LearnedRange(net, sde, Epsilon()).eps(x, t)
    wide = LearnedRange(TwoHalves(), sde, Epsilon()).eps(x.double(), t.double())
    assert eps.dtype == torch.float32
    torch.testing.assert_close(eps.double(), wide, rtol=1e-6, atol=1e-6)  # (x − α x̂0)/σ would be off by 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_the_networks_inside_and_the_datas_outside(dtype: torch.dtype) -> None:
    net = TwoHalves()
    outputs = LearnedRange(net, VPSDE(), Epsilon()).mean_and_range(torch.randn(3, 2, dtype=dtype), torch.tensor(0.4))
    assert [output.dtype for output in outputs] == [dtype, dtype] and net.dtypes == [torch.float64]


def test_bound_and_selected_are_the_same_denoiser() -> None:
    learned = LearnedRange(TwoHalves(), VPSDE(), VPrediction(), steps=50)
    x = torch.randn(4, 2, dtype=torch.float64)
    shift = torch.randn(4, 2, dtype=torch.float64)
    known = torch.tensor(0.6, dtype=torch.float64)
    bound = learned.given(shift=shift)
    for method in ("__call__", "eps", "mean_and_range", "eps_and_range", "mean_and_covariance", "covariance_diag"):
        torch.testing.assert_close(
            getattr(bound, method)(x, known), getattr(learned, method)(x, known, shift=shift), rtol=1e-12, atol=1e-12
        )
    part = bound.select(torch.tensor([2, 0]), 4)
    assert part is not None
    torch.testing.assert_close(part.mean_and_range(x[[2, 0]], known)[0], bound(x, known)[[2, 0]])


def test_no_graph_is_held_and_parameters_are_the_networks_alone() -> None:
    net = TwoHalves()
    learned = LearnedRange(net, VPSDE(), Epsilon())
    assert list(learned.state_dict()) == ["net.gain"]
    learned(torch.randn(2, 2, dtype=torch.float64), torch.tensor(0.5))
    assert all(value.grad_fn is None for module in learned.modules() for value in vars(module).values() if isinstance(
        value, Tensor))  # fmt: skip
    x0_hat, v = learned.mean_and_range(torch.randn(2, 2, dtype=torch.float64), torch.tensor(0.5))
    assert x0_hat.requires_grad and v.shape == (2, 2)


# PyTorch itself scripts the decompositions of forward-mode derivatives
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_function_transforms_work() -> None:
    learned, x = LearnedRange(TwoHalves(), VPSDE(), Epsilon()), torch.randn(4, 2, dtype=torch.float64)
    t = torch.tensor(0.5, dtype=torch.float64)
    rows = torch.func.vmap(lambda row: torch.cat(learned.eps_and_range(row[None], t)))(x)
    torch.testing.assert_close(rows[:, 1], learned.mean_and_range(x, t)[1])
    reverse = torch.func.vmap(torch.func.jacrev(lambda row: learned.eps(row[None], t)[0]))(x)
    forward = torch.func.vmap(torch.func.jacfwd(lambda row: learned.eps(row[None], t)[0]))(x)
    torch.testing.assert_close(reverse, forward)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: MLP(shape=(2,), out_channels=4, width=16, depth=1), (2,)),
        (lambda: MLP(shape=(3, 5), out_channels=6, width=16, depth=1), (3, 5)),
        (
            lambda: NCSNpp(
                channels=2, out_channels=4, image_size=8, width=8, channel_mults=(1, 2), num_res_blocks=1,
                attention_resolutions=(4,),
            ),
            (2, 8, 8),
        ),
    ],
)  # fmt: skip
def test_the_networks_of_models_predict_a_range(net: Any, shape: tuple[int, ...]) -> None:
    learned, x = LearnedRange(net(), VPSDE(), Epsilon(), steps=100), torch.randn(3, *shape)
    x0_hat, v = learned.mean_and_range(x, torch.tensor(0.4))
    assert x0_hat.shape == v.shape == x.shape
    torch.testing.assert_close(v, torch.full_like(x, 0.5), rtol=0, atol=1e-4)  # they start at F = r = 0
    assert learned.covariance_diag(x, torch.tensor(0.4)).shape == x.shape
    with pytest.raises(ValueError, match=r"LearnedRange needs a network that returns twice the channels"):
        LearnedRange(MLP(shape=shape, width=16, depth=1), VPSDE(), Epsilon())(x, torch.tensor(0.4))
