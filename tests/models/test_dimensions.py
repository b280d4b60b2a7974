"""One U-Net for series, images and volumes of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde import VPSDE, NCSNpp, NetworkDenoiser, log_prob
from scoresde.models.resample import ConvDown, ConvUp, Down, Up, from_patches, to_patches
from scoresde.parameterization import EDM
from scoresde.training.update import put_channels_last

TAPS = (1, 3, 3, 1)
SHAPES = [(7,), (16,), (5, 12), (6, 6), (4, 5, 6)]


def net_for(shape: tuple[int, ...], **options: Any) -> NCSNpp:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "channels": 2, "image_size": list(shape), "width": 4, "channel_mults": [1, 2], "num_res_blocks": 1,
        "attention_resolutions": [], "dropout": 0.0, "embedding": "fourier", "fourier_scale": 1.0, "init_scale": 1.0,
    }  # fmt: skip
    return NCSNpp(**given | options).eval()


def outer(*factors: Tensor) -> Tensor:
    """Product of one-dimensional signals (L,), as (1, 1, L, L, ...)."""
    product = torch.ones(())
    for factor in factors:
        product = product[..., None] * factor
    return product[None, None]


@pytest.mark.parametrize("taps", [None, TAPS, (1, 2, 1)], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_resampling_acts_along_each_axis(taps: tuple[int, ...] | None, dims: int) -> None:
    signals = [torch.randn(6, generator=torch.Generator().manual_seed(k)) for k in range(dims)]
    for step in (Up, Down):
        single = step(taps, 1)
        expected = outer(*(single(signal[None, None])[0, 0] for signal in signals))
        torch.testing.assert_close(step(taps, dims)(outer(*signals)), expected)


@pytest.mark.parametrize("taps", [None, TAPS], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_between_stages_act_along_each_axis(taps: tuple[int, ...] | None, dims: int) -> None:
    signals = [torch.randn(6, generator=torch.Generator().manual_seed(k)) for k in range(dims)]
    kernels = [torch.randn(3, generator=torch.Generator().manual_seed(9 + k)) for k in range(dims)]

    def with_kernel(layer: Any, kernel: Tensor) -> Any:
        (layer.Conv_0 if taps is None else layer.Conv2d_0).weight.data = kernel
        return layer

    for kind in (ConvUp, ConvDown):
        single = [
            with_kernel(kind(1, 1, taps, 1), kernel[None, None])(signal[None, None])[0, 0]
            for kernel, signal in zip(kernels, signals, strict=True)
        ]
        layer = with_kernel(kind(1, 1, taps, dims), outer(*kernels))
        torch.testing.assert_close(layer(outer(*signals)), outer(*single))


@pytest.mark.parametrize("options", [{}, {"fir": False}, {"block": "ddpm"}, {"progressive_input": "residual"},
                                     {"progressive_input": "input_skip", "progressive_output": "output_skip"},
                                     {"progressive_output": "residual", "concat_channels": 1}])  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size_has_an_output_of_its_own_size(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    net = net_for(shape, **options)
    x = torch.randn(3, 2, *shape)
    out = net(x, torch.tensor([0.1, -0.3, 0.5]))
    assert out.shape == x.shape and bool(out.isfinite().all()) and out.std() > 0
    torch.testing.assert_close(net(x[1:2], -0.3), out[1:2], atol=1e-5, rtol=1e-4)


def test_a_size_that_the_stages_do_not_divide_is_continued_by_its_last_entries() -> None:
    x = torch.randn(2, 2, 5, 7)
    net = net_for((5, 7), channel_mults=[1, 1, 2])
    continued = F.pad(x, (0, 1, 0, 3), mode="replicate")
    torch.testing.assert_close(net(x, 0.2), net(continued, 0.2)[:, :, :5, :7])


def test_a_square_image_is_named_by_one_number_or_two() -> None:
    one, two = net_for((8, 8), image_size=8, attention_resolutions=[8]), net_for((8, 8), attention_resolutions=[8])
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(one(x, 0.1), two(x, 0.1))


def test_attention_is_at_the_length_of_the_longest_axis() -> None:
    net = net_for((9, 30), attention_resolutions=[15])
    assert [stage.blocks[0].attention is not None for stage in net.down] == [False, True]
    assert net(torch.randn(1, 2, 9, 30), 0.1).shape == (1, 2, 9, 30)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)], ids=str)
def test_all_orthogonal_probes_give_the_exact_divergence(shape: tuple[int, ...]) -> None:
    denoiser = NetworkDenoiser(net_for(shape), VPSDE(), EDM(sigma_data=1.0)).double()
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    fixed: dict[str, Any] = {"method": "rk4", "steps": 2}
    exact = log_prob(denoiser, x, divergence="exact", **fixed)
    probed = log_prob(denoiser, x, probes=x[0].numel(), probe="orthogonal", seeds=0, **fixed)
    torch.testing.assert_close(probed.log_prob, exact.log_prob)


@pytest.mark.parametrize("shape", [(7,), (6, 6), (4, 4, 4)], ids=str)
def test_channels_last_changes_no_number(shape: tuple[int, ...]) -> None:
    net, x = net_for(shape), torch.randn(2, 2, *shape)
    before = net(x, 0.1)
    put_channels_last(net)
    torch.testing.assert_close(net(x, 0.1), before, atol=1e-5, rtol=1e-4)


def test_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs x of shape \(B, 2, L\), got \(3, 2, 8, 8\)"):
        net_for((8,))(torch.randn(3, 2, 8, 8), 0.1)


@pytest.mark.parametrize("sizes", [(6,), (4, 6), (2, 4, 6)], ids=str)
def test_patches_are_pixel_unshuffling_and_back(sizes: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *sizes)
    assert torch.equal(from_patches(to_patches(x, 2), 2), x)
    assert torch.equal(to_patches(x, 2)[:, 0], x[:, 0][(..., *[slice(None, None, 2)] * len(sizes))])
    if len(sizes) == 2:
        assert torch.equal(to_patches(x, 2), F.pixel_unshuffle(x, 2))


def test_a_network_of_patches_is_a_network_of_the_unshuffled_image() -> None:
    options: dict[str, Any] = {"channel_mults": [1, 2], "attention_resolutions": [2]}
    whole, inside = net_for((8, 8), patch=2, **options), net_for((4, 4), channels=8, **options)
    inside.load_state_dict(whole.state_dict())
    x, c = torch.randn(2, 2, 8, 8), torch.tensor([0.1, -0.4])
    torch.testing.assert_close(whole(x, c), F.pixel_shuffle(inside(F.pixel_unshuffle(x, 2), c), 2))
    assert net_for((7, 9), patch=2, **options)(torch.randn(1, 2, 7, 9), c[:1]).shape == (1, 2, 7, 9)
