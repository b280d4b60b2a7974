"""Fourier features of the input, and networks that take them."""

import math

import pytest
import torch
from torch import Tensor, nn

from scoresde import EDM, MLP, VPSDE, NCSNpp, NetworkDenoiser
from scoresde.models.fourier_features import FourierFeatures, level_exponents


class Keep(nn.Module):
    """A network that returns its input, and what else it was given."""

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.seen = (c_noise, cond)
        return x


@pytest.mark.parametrize("shape", [(3,), (2, 5), (3, 4, 4), (1, 2, 3, 2)], ids=str)
def test_features_follow_the_input_along_its_first_axis(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape, dtype=torch.float64)
    keep = Keep()
    out = FourierFeatures(keep, exponents=[1, 2.5], scale=0.5)(x, torch.zeros(2), label=torch.ones(2))
    channels = shape[0]
    assert out.shape == (2, 5 * channels, *shape[1:])
    parts = out.split(channels, 1)
    for part, expected in zip(
        parts,
        [
            x, torch.sin(math.pi * x), torch.sin(2**1.5 * math.pi * x),
            torch.cos(math.pi * x), torch.cos(2**1.5 * math.pi * x),
        ],
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-14)
    assert torch.equal(keep.seen[1]["label"], torch.ones(2))


@pytest.mark.parametrize(
    ("levels", "value_range"), [(256, (-1.0, 1.0)), (17, (-1.0, 1.0)), (256, (0.0, 1.0)), (5, (-2.0, 3.0))]
)
def test_one_frequency_repeats_at_every_level_and_one_at_every_other(
    levels: int, value_range: tuple[float, float]
) -> None:
    coarse, fine = level_exponents(levels, value_range)
    low, high = value_range
    centres = low + (torch.arange(levels, dtype=torch.float64) + 0.5) * (high - low) / levels
    for exponent, turn in ((fine, 1.0), (coarse, -1.0)):
        wave = torch.polar(torch.ones_like(centres), 2**exponent * math.pi * centres)
        torch.testing.assert_close(
            wave, wave[0] * turn ** torch.arange(levels, dtype=torch.float64), rtol=0, atol=1e-10
        )
    if (levels, value_range) == (256, (-1.0, 1.0)):
        assert (coarse, fine) == (7, 8)  # the published ones


def test_scale_turns_the_network_input_back_into_data_where_noise_is_small() -> None:
    spread, x0 = 0.4, torch.rand(50, 3) * 2 - 1
    keep = Keep()
    features = FourierFeatures(keep, exponents=level_exponents(256), scale=spread)
    wanted = FourierFeatures(keep, exponents=level_exponents(256)).features(x0)[:, 3:]
    rule, sde, t = EDM(sigma_data=spread), VPSDE(), torch.tensor(2e-5, dtype=torch.float64)
    c_in = rule.c_in(sde.alpha(t), sde.sigma(t)).float()
    torch.testing.assert_close(features.features(c_in * x0)[:, 3:], wanted, rtol=0, atol=5e-3)
    assert (
        float((FourierFeatures(keep, exponents=level_exponents(256)).features(c_in * x0)[:, 3:] - wanted).abs().max())
        > 1
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_take_them(dtype: torch.dtype) -> None:
    x = torch.randn(2, 1, 8, 8, dtype=dtype)
    unet = NCSNpp(
        channels=5, out_channels=1, image_size=8, width=8, channel_mults=(1,), num_res_blocks=2,
        attention_resolutions=(), fir=False, embedding="fourier", num_classes=3,
    ).to(dtype)  # fmt: skip
    mlp = MLP(shape=(10,), out_channels=2, width=8, depth=1).to(dtype)
    for net, state in ((unet, x), (mlp, x[:, 0, 0, :2])):
        wrapped = FourierFeatures(net, exponents=level_exponents(17))
        denoiser = NetworkDenoiser(wrapped, VPSDE(), EDM())
        cond = {"label": torch.tensor([0, 2])} if net is unet else {}
        out = denoiser(state, torch.tensor(0.3), **cond)
        assert out.shape == state.shape and out.dtype == dtype
        assert not [name for name in wrapped.state_dict() if not name.startswith("net.")]


@pytest.mark.parametrize("attention", [(), (8,)], ids=["middle", "every"])
def test_the_unet_of_vdm_is_one_of_one_stage(attention: tuple[int, ...]) -> None:
    """No resampling: 2n + 1 blocks besides the two in the middle, and one attention layer unless asked for more."""
    torch.manual_seed(0)
    net = NCSNpp(
        channels=2, image_size=8, width=8, channel_mults=(1,), num_res_blocks=3, attention_resolutions=attention,
        fir=False, embedding="fourier", init_scale=1.0, dropout=0.0,
    )  # fmt: skip
    kinds = [type(module).__name__ for module in net.modules()]
    assert kinds.count("ResidualBlock") == 3 + 2 + 4
    assert kinds.count("AttentionBlock") == (1 if not attention else 1 + 3 + 1)
    assert not any(kind in kinds for kind in ("Down", "Up", "ConvDown", "ConvUp"))
    x = torch.randn(2, 2, 7, 9)  # and so any size will do
    net.train()
    out = net(x, torch.zeros(2))
    assert out.shape == x.shape
    out.square().mean().backward()
    used = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not used
    with torch.no_grad():  # attention sees the whole image
        far = x.clone()
        far[:, :, 0, 0] += 1
        assert (net.eval()(far, torch.zeros(2)) - net(x, torch.zeros(2)))[:, :, -1, -1].abs().max() > 0


def test_features_let_a_network_see_the_finest_levels() -> None:
    """Which of two neighbouring levels a value is near cannot be seen from the value by a small network."""

    def error(net: nn.Module) -> float:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(100):
            k = torch.randint(0, 256, (256, 1), generator=generator)
            x = (k + 0.5) / 128 - 1 + 1e-4 * torch.randn(256, 1, generator=generator)
            loss = (net(x, torch.zeros(())) - (k % 2 * 2 - 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    torch.manual_seed(0)
    assert error(MLP(shape=(1,), width=16, depth=1)) > 0.9
    assert error(FourierFeatures(MLP(shape=(5,), out_channels=1, width=16, depth=1))) < 0.05


def test_errors_name_what_is_wrong() -> None:
    for options in ({"exponents": ()}, {"exponents": (math.inf,)}):
        with pytest.raises(ValueError, match="FourierFeatures needs .*exponents"):
            FourierFeatures(Keep(), **options)
    with pytest.raises(ValueError, match="FourierFeatures needs 0 < scale <= 1e9, got scale=0.0"):
        FourierFeatures(Keep(), scale=0.0)
    with pytest.raises(ValueError, match="levels >= 2"):
        level_exponents(1)
