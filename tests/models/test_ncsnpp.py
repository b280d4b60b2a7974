"""NCSN++: keys and counts of the published networks, and what a score network must be able to do."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import assert_rounded, dtype_of
from torch import Tensor

from scoresde.interop import score_sde_keys
from scoresde.models import DDPMUNet, NCSNpp

torch.set_num_threads(1)
DATA = Path(__file__).parents[1] / "data"
VE = {"embedding": "log_fourier", "scale_by_sigma": True, "centered": False}
HIGH_RESOLUTION = {"progressive_output": "output_skip", "progressive_input": "input_skip", **VE}
PUBLISHED: dict[str, Callable[[], NCSNpp]] = {
    "ve_cifar10_ncsnpp_continuous": lambda: NCSNpp(progressive_input="residual", **VE),
    "ve_ffhq_256_ncsnpp_continuous": lambda: NCSNpp(
        image_size=256,
        channel_mults=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        num_scales=2000,
        **HIGH_RESOLUTION,
    ),
    "vp_cifar10_ddpmpp_continuous": lambda: NCSNpp(fir=False),
    "vp_cifar10_ddpmpp_deep_continuous": lambda: NCSNpp(fir=False, num_res_blocks=8),
    "vp_ddpm_cifar10_continuous": lambda: DDPMUNet(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_order_and_counts_of_the_published_networks(name: str) -> None:
    expected = json.loads(gzip.decompress((DATA / "score_sde_keys.json.gz").read_bytes()))[name]
    with torch.device("meta"):
        net = PUBLISHED[name]()

    trainable = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
    state, keys = net.state_dict(), score_sde_keys(net)
    assert list(keys) == list(state)
    actual = [[keys[k], list(v.shape), str(v.dtype).removeprefix("torch."), k in trainable] for k, v in state.items()]
    assert actual == expected["state_dict"]
    assert [key for key, _ in net.named_parameters()] == [key for key in state if key != "sigmas"]
    assert sum(p.numel() for p in net.parameters()) == expected["total_params"]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected["trainable_params"]


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: NCSNpp(progressive_input="residual"), 62_693_251),
        (lambda: NCSNpp(progressive_input="residual", num_res_blocks=8), 107_521_411),
        (lambda: NCSNpp(progressive_input="residual", num_res_blocks=8, **VE), 107_587_075),
        (lambda: DDPMUNet(image_size=256, channel_mults=(1, 1, 2, 2, 4, 4)), 111_569_923),
        (
            lambda: NCSNpp(
                image_size=1024,
                width=16,
                channel_mults=(1, 2, 4, 8, 16, 32, 32, 32),
                num_res_blocks=1,
                **HIGH_RESOLUTION,
            ),
            105_785_896,
        ),
    ],
    ids=["ncsnpp", "ncsnpp deep", "ncsnpp deep ve", "ddpm 256", "1024"],
)
def test_counts_of_other_published_networks(build: Callable[[], NCSNpp], count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


def tiny(**options: Any) -> NCSNpp:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "channels": 2,
        "image_size": 8,
        "width": 8,
        "channel_mults": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": [4],
        "progressive_input": "residual",
        "embedding": "fourier",
        "fourier_scale": 1.0,
        "init_scale": 1.0,
    }
    return NCSNpp(**{**defaults, **options}).eval()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 30.13062),
        ({"block": "ddpm", "progressive_output": "residual", "num_classes": 3, "condition_dim": 2}, 26.70476),
        (
            {"progressive_input": "input_skip", "progressive_combine": "cat", "progressive_output": "output_skip"},
            19.77437,
        ),
        ({"channel_mults": (1, 2, 1), "num_res_blocks": 2, "attention_resolutions": [8, 2]}, 48.92967),
        ({"time_conditional": False, "fir": False, "block": "ddpm", "resample_with_conv": False}, -15.28296),
    ],
)
def test_a_seed_draws_the_same_network_as_ever(options: dict[str, Any], expected: float) -> None:
    """Σ_k cos(k) w_k over all initial weights in order: another order of drawing or listing them changes it."""
    w = torch.cat([parameter.detach().flatten() for parameter in tiny(**options).parameters()]).double()
    actual = torch.arange(len(w), dtype=torch.float64).cos() @ w
    assert actual.item() == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def c_noise() -> Tensor:
    return torch.tensor([-1.0, 0.0, 0.5, 2.0])


def test_starts_at_zero_by_default(x: Tensor) -> None:
    assert tiny(init_scale=0.0)(x, 0.3).abs().max() < 1e-4


@pytest.mark.parametrize("progressive_output", ["none", "output_skip", "residual"])
@pytest.mark.parametrize("scaled", [False, True])
def test_out_channels_widen_only_the_output(x: Tensor, c_noise: Tensor, progressive_output: str, scaled: bool) -> None:
    """Equal weights in the first half give the network with the data's own channels; only that half is over σ."""
    options: dict[str, Any] = {"progressive_output": progressive_output, "progressive_input": "input_skip"}
    options |= {"embedding": "log_fourier", "scale_by_sigma": scaled}
    net, wide, x = tiny(**options).double(), tiny(**options, out_channels=4).double(), x.double()
    plain, widened = net.state_dict(), wide.state_dict()
    assert plain.keys() == widened.keys()
    for key, value in widened.items():
        if value.shape == plain[key].shape:
            value.copy_(plain[key])
        else:
            assert value.shape[0] == 4 and value.shape[1:] == plain[key].shape[1:]
            value.copy_(torch.cat([plain[key], 3 * plain[key]]))
    sigma = c_noise.double().exp()
    with torch.no_grad():
        narrow, both = net(x, sigma), wide(x, sigma)
    factor = 3 * sigma[:, None, None, None] if scaled else 3.0
    torch.testing.assert_close(both[:, :2], narrow, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(both[:, 2:], factor * narrow, rtol=1e-10, atol=1e-10)
    assert float(narrow.abs().max()) > 0.1
    with pytest.raises(ValueError, match="NCSNpp needs out_channels >= 1"):
        tiny(out_channels=0)


def test_ddpms_network_takes_out_channels(x: Tensor) -> None:
    net = DDPMUNet(
        channels=2, out_channels=4, image_size=8, width=32, channel_mults=(1,), num_res_blocks=1,
        attention_resolutions=(),
    )  # fmt: skip
    assert net(x, 3.0).shape == (4, 4, 8, 8)


def test_samples_do_not_see_each_other_and_scalar_noise_is_broadcast(x: Tensor, c_noise: Tensor) -> None:
    net, x, c_noise = tiny().double(), x.double(), c_noise.double()
    together = net(x, c_noise)
    apart = torch.cat([net(x[i : i + 1], c_noise[i]) for i in range(4)])
    torch.testing.assert_close(together, apart, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(net(x, 0.5), net(x, torch.full((4,), 0.5)), atol=0, rtol=0)


def test_every_condition_acts_and_null_is_its_absence(x: Tensor, c_noise: Tensor) -> None:
    net = tiny(num_classes=3, condition_dim=5, condition_optional=True, concat_channels=1)
    plain = net(x, c_noise)
    nothing = {
        "label": torch.full((4,), -1),
        "condition": torch.full((4, 5), torch.nan),
        "concat": torch.zeros(4, 1, 8, 8),
    }
    torch.testing.assert_close(net(x, c_noise, **nothing), plain, atol=0, rtol=0)
    something = {
        "label": torch.tensor([0, 1, 2, 0]),
        "condition": torch.ones(4, 5),
        "concat": torch.ones(4, 1, 8, 8),
    }
    for name, value in something.items():
        change = (net(x, c_noise, **{name: value}) - plain).flatten(1).norm(dim=1)
        assert (change > 1e-2).all(), name


def test_unknown_and_unexpected_conditions_are_refused(x: Tensor) -> None:
    net = tiny()
    with pytest.raises(TypeError, match="unexpected keyword argument 'text'"):
        net(x, 0.0, text=torch.zeros(4))
    with pytest.raises(ValueError, match="without num_classes"):
        net(x, 0.0, label=torch.tensor(0))
    with pytest.raises(ValueError, match="concat_channels=0 needs concat"):
        net(x, 0.0, concat=torch.zeros(4, 1, 8, 8))


def test_checkpoint_of_a_conditional_network_extends_the_plain_one() -> None:
    plain, conditional = tiny().state_dict(), tiny(num_classes=3, condition_dim=5).state_dict()
    added = set(conditional) - set(plain)
    assert set(plain) < set(conditional)
    assert all(key.startswith("conditions.") for key in added)


# PyTorch itself scripts the decompositions of forward-mode derivatives
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_function_transforms_agree_with_the_network(x: Tensor, c_noise: Tensor) -> None:
    net, x, c_noise = tiny(num_classes=3).double(), x.double(), c_noise.double()
    label = torch.tensor([0, 1, 2, -1])

    def single(x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        return net(x[None], c_noise[None], label=label[None])[0]

    mapped = torch.func.vmap(single)(x, c_noise, label)
    torch.testing.assert_close(mapped, net(x, c_noise, label=label), atol=1e-10, rtol=1e-10)

    tangent = torch.randn_like(x)
    _, forward_mode = torch.func.jvp(lambda x: net(x, c_noise), (x,), (tangent,))
    step = 1e-5 * tangent
    difference = (net(x + step, c_noise) - net(x - step, c_noise)) / 2e-5
    torch.testing.assert_close(forward_mode, difference, atol=1e-6, rtol=1e-6)

    cotangent = torch.randn_like(x)
    _, pull_back = torch.func.vjp(lambda x: net(x, c_noise), x)
    inner = (pull_back(cotangent)[0] * tangent).sum()
    torch.testing.assert_close(inner, (forward_mode * cotangent).sum())


def test_second_derivatives_exist(x: Tensor, c_noise: Tensor) -> None:
    net, x = tiny(), x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, c_noise).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.abs().max() > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block": "ddpm", "progressive_output": "residual"},
        {"fir": False, "progressive_output": "output_skip", "progressive_input": "input_skip"},
    ],
)
def test_precision_and_memory_format_do_not_change_the_function(
    x: Tensor, c_noise: Tensor, options: dict[str, Any]
) -> None:
    net = tiny(**options)
    y = net(x, c_noise)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), c_noise)
    assert_rounded(lambda net: (net(x.to(dtype_of(net)), c_noise),), net, (last.double(),))
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, c_noise)
    assert half.dtype == x.dtype
    assert (half - y).std() < 0.05 * y.std()


def test_checkpointing_gives_the_same_gradients(x: Tensor, c_noise: Tensor) -> None:
    def gradients(net: NCSNpp) -> list[Tensor]:
        parameters = [p for p in net.parameters() if p.requires_grad]
        return list(torch.autograd.grad(net(x, c_noise).square().sum(), parameters))

    for plain, recomputed in zip(gradients(tiny()), gradients(tiny(checkpoint=True)), strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_compiles_in_one_graph(x: Tensor, c_noise: Tensor) -> None:
    net = tiny(num_classes=3)
    explanation = torch._dynamo.explain(net)(x, c_noise, label=torch.tensor([0, 1, 2, -1]))
    assert explanation.graph_break_count == 0


def test_scaling_by_sigma_divides_by_the_level(x: Tensor) -> None:
    sigma = torch.tensor([0.02, 0.5, 3.0, 45.0])
    given, plain = tiny(**VE), tiny(**VE | {"scale_by_sigma": False})
    torch.testing.assert_close(given(x, sigma) * sigma[:, None, None, None], plain(x, sigma))

    index = torch.tensor([0, 10, 500, 999])
    options = {"embedding": "positional", "sigma_min": 0.01, "sigma_max": 50.0}
    given, plain = tiny(scale_by_sigma=True, **options), tiny(**options)
    level = 50.0 * (0.01 / 50.0) ** (index / 999)
    torch.testing.assert_close(given(x, index) * level[:, None, None, None], plain(x, index))


def test_uncentred_data_are_mapped_to_minus_one_and_one(x: Tensor) -> None:
    net, x = tiny().double(), x.double()
    torch.testing.assert_close(tiny(centered=False).double()((x + 1) / 2, 0.3), net(x, 0.3), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("size", "stages"), [(28, 3), (8, 3), (12, 2), (1, 1)])
@pytest.mark.parametrize("width", [4, 12, 6])
def test_small_and_odd_sizes_work(size: int, stages: int, width: int) -> None:
    net = tiny(channels=1, image_size=size, channel_mults=[1, 2, 3][:stages], width=width)
    assert net(torch.randn(2, 1, size, size), 0.1).shape == (2, 1, size, size)


def test_attention_is_placed_by_stage_so_other_sizes_work() -> None:
    net = tiny()
    assert net(torch.randn(1, 2, 16, 12), 0.1).shape == (1, 2, 16, 12)
    with pytest.raises(ValueError, match=r"needs x of shape \(B, 2, H, W\), got \(4, 3, 8, 8\)"):
        net(torch.randn(4, 3, 8, 8), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "resnet"}, "NCSNpp needs block biggan or ddpm, got 'resnet'"),
        ({"embedding": "linear"}, "NCSNpp needs embedding positional, fourier or log_fourier, got 'linear'"),
        (
            {"progressive_output": "input_skip"},
            "NCSNpp needs progressive_output none, output_skip or residual, got 'input_skip'",
        ),
        (
            {"progressive_input": "output_skip"},
            "NCSNpp needs progressive_input none, input_skip or residual, got 'output_skip'",
        ),
        ({"progressive_combine": "mean"}, "NCSNpp needs progressive_combine sum or cat, got 'mean'"),
        ({"width": 0}, "NCSNpp needs width >= 1, a whole number, got width=0"),
        (
            {"channel_mults": ()},
            r"NCSNpp needs channel_mults to be a list of one or more whole numbers from 1, got \(\)",
        ),
        ({"image_size": 0}, "NCSNpp needs image_size to be a whole number from 1, or a list of one to three, got 0"),
        ({"image_size": [8, 8, 8, 8]}, r"a list of one to three, got \[8, 8, 8, 8\]"),
        ({"image_size": []}, r"a list of one to three, got \[\]"),
        (
            {"sigma_min": 1.0, "sigma_max": 0.5},
            "NCSNpp needs 0 < sigma_min < sigma_max <= 1e9, got sigma_min=1.0, sigma_max=0.5",
        ),
        ({"scale_by_sigma": True}, "needs embedding log_fourier or positional, got fourier"),
        ({"time_conditional": False, "num_classes": 3}, "they need time_conditional=True"),
        ({"norm_groups": 32}, "norm_groups=32 must divide the channels of every layer, got a layer of 8"),
        ({"fir_kernel": (1,)}, "two or more taps"),
    ],
)
def test_bad_options_raise_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
