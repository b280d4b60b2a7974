"""Images and sequences as conditions of networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import EDM, MLP, VPSDE, DDPMUNet, DenoisingLoss, DPMSolverPP2M, NCSNpp, NetworkDenoiser, edm_weighting
from scoresde.denoiser import without
from scoresde.models.image_condition import ImageCondition
from scoresde.models.sequence_condition import SequenceCondition

IMAGE, NUMBERS, VECTORS = {"channels": 2, "mean": [1.0], "std": [2.0]}, {"vocabulary": 7}, {"dim": 3}


def unet(**options: Any) -> NCSNpp:
    return DDPMUNet(
        channels=1, image_size=4, width=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(2,),
        norm_groups=2, dropout=0.0, **options,
    )  # fmt: skip


def mlp(**options: Any) -> MLP:
    return MLP(shape=(1, 4, 4), width=16, depth=1, **options)


NETWORKS: list[Callable[..., nn.Module]] = [unet, mlp]


def random_weights(net: nn.Module) -> nn.Module:
    """In float64, with no layer silent."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_coarser_image_is_repeated_and_a_finer_one_averaged() -> None:
    for dims in (1, 2, 3):
        part, x = ImageCondition("Net", dims, channels=1, mean=[3.0], std=[0.5]), torch.zeros(2, 5, *[4] * dims)
        coarse, fine = torch.randn(2, 1, *[2] * dims), torch.randn(2, 1, *[8] * dims)
        repeated, averaged = coarse, fine
        for axis in range(2, 2 + dims):
            repeated = repeated.repeat_interleave(2, axis)
            averaged = averaged.unflatten(axis, (4, 2)).mean(axis + 1)
        torch.testing.assert_close(part(x, coarse), (repeated - 3) / 0.5)
        torch.testing.assert_close(part(x, fine), (averaged - 3) / 0.5)
        torch.testing.assert_close(part(x, coarse[:1]), part(x, coarse[:1].expand(2, *coarse.shape[1:])))
    maps = ImageCondition("Net", 2, channels=2, categories=[0, 3])(
        torch.zeros(1, 1, 1, 2), torch.tensor([[[[5, 6]], [[0, 2]]]])
    )
    assert maps[0, :, 0].tolist() == [[5, 6], [1, 0], [0, 0], [0, 1]]  # values first, then one channel per category


@pytest.mark.parametrize("network", NETWORKS, ids=["unet", "mlp"])
@pytest.mark.parametrize("sequence", [NUMBERS, VECTORS], ids=["numbers", "vectors"])
def test_no_condition_is_one_branch_however_it_is_said(
    network: Callable[..., nn.Module], sequence: dict[str, Any]
) -> None:
    """None, and what conditions look like when they are dropped; in a batch each example has its own."""
    optional = {"optional": True}
    net = random_weights(
        network(
            num_classes=3,
            condition_dim=2,
            condition_optional=True,
            image=IMAGE | optional,
            sequence=sequence | optional,
        )
    )
    x, t = normal(4, 1, 4, 4), torch.full((4,), 0.3, dtype=torch.float64)
    cond = {
        "label": torch.tensor([0, 1, 2, 0]), "condition": normal(4, 2, seed=1), "image": normal(4, 2, 2, 2, seed=2),
        "sequence": torch.arange(12).reshape(4, 3) % 7 if sequence is NUMBERS else normal(4, 3, 3, seed=3),
    }  # fmt: skip
    rows = torch.tensor([True, False, True, False])
    given, free = net(x, t, **cond), net(x, t)
    mixed = net(x, t, **{key: without(key, value, rows) for key, value in cond.items()})
    torch.testing.assert_close(mixed, torch.where(rows.reshape(4, 1, 1, 1), free, given), rtol=1e-12, atol=1e-12)
    assert ((given - free).flatten(1).abs().amax(1) > 1e-3).all()
    for key in cond:  # each of them reaches the output
        left = net(x, t, **{other: None if other == key else value for other, value in cond.items()})
        assert ((left - given).flatten(1).abs().amax(1) > 1e-6).all(), key


@pytest.mark.parametrize("network", NETWORKS, ids=["unet", "mlp"])
@pytest.mark.parametrize("sequence", [NUMBERS, VECTORS], ids=["numbers", "vectors"])
def test_padding_changes_nothing_and_order_only_with_positions(
    network: Callable[..., nn.Module], sequence: dict[str, Any]
) -> None:
    x, t = normal(2, 1, 4, 4), torch.tensor([0.1, 0.9], dtype=torch.float64)
    tokens = torch.tensor([[0, 3, 6], [5, 5, 1]]) if sequence is NUMBERS else normal(2, 3, 3)
    none = torch.full_like(tokens[:, :2], -1 if sequence is NUMBERS else torch.nan)
    for positions in (True, False):
        net = random_weights(network(sequence=sequence | {"positions": positions}))
        out = net(x, t, sequence=tokens)
        torch.testing.assert_close(net(x, t, sequence=torch.cat([tokens, none], 1)), out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(net(x, t, sequence=tokens[:1])[:1], out[:1], rtol=1e-12, atol=1e-12)
        moved = (net(x, t, sequence=tokens[:, [2, 0, 1]]) - out).abs().amax()
        assert moved > 1e-6 if positions else moved < 1e-12
        assert (net(x, t, sequence=tokens.roll(1, 0)) - out).abs().amax() > 1e-6


def test_a_network_learns_the_mean_given_an_image() -> None:
    """x0 = c + s ε, c ~ N(0, 1):  E[x0 | x_t, c] = c + α s² (x − α c)/(α² s² + σ²)."""
    torch.manual_seed(0)
    sde, s = VPSDE(), 0.3
    net = MLP(shape=(1, 2), width=48, depth=1, image={"channels": 1, "optional": True})
    denoiser, loss = (
        NetworkDenoiser(net, sde, EDM(sigma_data=1.0)),
        DenoisingLoss(weighting=partial(edm_weighting, sigma_data=1.0), image_dropout=0.2),
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)

    def examples(n: int) -> tuple[Tensor, Tensor]:
        c = torch.randn(n, 1, 2)
        return c + s * torch.randn(n, 1, 2), c

    for step in range(120):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 120)
        x0, c = examples(256)
        loss(denoiser, x0, image=c).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    (x0, c), t = examples(4000), torch.full((4000,), 0.5)
    alpha, sigma = sde.alpha(t[:1]), sde.sigma(t[:1])
    x = sde.perturb(x0, t, torch.randn_like(x0))
    given = c + alpha * s**2 * (x - alpha * c) / (alpha**2 * s**2 + sigma**2)
    free = alpha * (1 + s**2) * x / (alpha**2 * (1 + s**2) + sigma**2)
    with torch.no_grad():
        found, without_c = denoiser(x, t, image=c), denoiser(x, t)
    assert (found - given).square().mean().sqrt() < 0.15
    assert (without_c - free).square().mean().sqrt() < 0.2
    assert (free - given).square().mean().sqrt() > 0.7  # what is gained by knowing c


class Exact(nn.Module):
    """F of EDM for x0 = c + s ε at the condition's places, from the channels that `ImageCondition` appends."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s, self.part = s, ImageCondition("Exact", 2, channels=1, mean=[2.0], std=[4.0])

    def forward(self, x: Tensor, c_noise: Tensor, *, image: Tensor) -> Tensor:
        c, ratio = 4 * self.part(x, image) + 2, (4 * c_noise).exp().reshape(-1, 1, 1, 1)  # σ/α
        y = x * (1 + ratio**2).sqrt()
        mean = c + self.s**2 * (y - c) / (self.s**2 + ratio**2)
        return (mean - y / (1 + ratio**2)) * (1 + ratio**2).sqrt() / ratio


def test_samples_given_an_image_have_the_law_of_the_formula() -> None:
    sde, s, c = VPSDE(), 0.1, 5 * normal(3, 1, 2, 2)
    denoiser = NetworkDenoiser(Exact(s), sde, EDM(sigma_data=1.0)).given(image=c)
    x = sde.prior_sample((3, 1, 4, 4), generator=torch.Generator().manual_seed(1)).double()
    found, grid = DPMSolverPP2M(steps=100)(denoiser, x), c.repeat_interleave(2, 2).repeat_interleave(2, 3)
    alpha, sigma = (value(torch.ones((), dtype=torch.float64)) for value in (sde.alpha, sde.sigma))
    exact = grid + s * (x - alpha * grid) / (alpha**2 * s**2 + sigma**2) ** 0.5
    assert (found - exact).abs().max() < 0.02 * s
    part = denoiser.select(torch.tensor([2, 0]), 3)
    assert part is not None
    torch.testing.assert_close(part(x[[2, 0]], 0.5), denoiser(x, 0.5)[[2, 0]])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_series_images_and_volumes_take_both(dims: int) -> None:
    net = NCSNpp(
        channels=1, image_size=[4] * dims, width=4, channel_mults=(1, 1), num_res_blocks=1, image={"channels": 2},
        sequence=NUMBERS, attention_resolutions=(), fir=False, embedding="fourier", progressive_input="residual",
    )  # fmt: skip
    x = torch.randn(2, 1, *[4] * dims)
    assert net(x, 0.1, image=torch.randn(2, 2, *[3] * dims), sequence=torch.tensor([[1, 2]])).shape == x.shape


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({"image": torch.zeros(2, 3, 4, 4)}, r"image of shape \(2, 2, H, W\) as condition .* got \(2, 3, 4, 4\)"),
        ({"image": torch.zeros(2, 4, 4)}, r"needs an image of shape \(2, 2, H, W\) as condition .* got \(2, 4, 4\)"),
        ({"image": torch.full((2, 2, 4, 4), torch.nan)}, "images that are finite numbers, got nan in row 0, channel 0"),
        ({"image": None}, "image of 2 channels as condition and never without: give it one"),
        ({"sequence": torch.tensor([[0, 7]])}, "tokens from 0 to 6, or -1 for padding, got values from 0 to 7"),
        ({"sequence": torch.tensor([[0, -2]])}, "got values from -2 to 0"),
        ({"sequence": torch.tensor([[0], [-1]])}, "never without, and row 1 holds padding alone"),
        ({"sequence": torch.zeros(2, 3)}, r"whole numbers of shape \(2, L\) .* got torch.float32 of shape \(2, 3\)"),
        ({"sequence": torch.zeros(3, 2, dtype=torch.int64)}, r"shape \(2, L\) .* of shape \(3, 2\)"),
        ({"sequence": None}, "with a sequence as condition and never without: give it one"),
    ],
)  # fmt: skip
def test_what_is_no_condition_of_a_network_is_named(cond: dict[str, Any], words: str) -> None:
    good = {"image": torch.zeros(2, 2, 2, 2), "sequence": torch.tensor([[1, 2]])}
    for network in NETWORKS:
        with pytest.raises(ValueError, match=words):
            network(image=IMAGE, sequence=NUMBERS)(torch.zeros(2, 1, 4, 4), 0.1, **{**good, **cond})
    for key, value in good.items():
        with pytest.raises(ValueError, match=f"was built without {key}, so it takes no {key} as condition; set {key}"):
            unet()(torch.zeros(2, 1, 4, 4), 0.1, **{key: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": {"chanels": 1}}, "has no option image.chanels: there is channels, mean"),
        ({"image": {}}, "needs image.channels"),
        ({"image": 3}, "needs image to be options, channels, mean, .* got 3"),
        ({"image": {"channels": 0}}, "image.channels, a whole number from 1"),
        ({"image": {"channels": 2, "std": [1.0, 0.0]}}, "0 < image.std < inf"),
        ({"image": {"channels": 2, "mean": [1, 2, 3]}}, "image.mean to be one number for each of image.channels=2"),
        ({"image": {"channels": 2, "categories": [1]}}, "image.categories to be a whole number for each"),
        ({"image": {"channels": 2, "optional": "yes"}}, "image.optional to be true or false"),
        ({"sequence": {}}, "sequence.vocabulary for whole numbers as tokens, or sequence.dim for vectors"),
        ({"sequence": {"vocabulary": 3, "dim": 2}}, "one of the two"),
        ({"sequence": {"vocabulary": 0}}, "1 <= vocabulary"),
        ({"sequence": {"vocabulary": 3, "mean": [0.0]}}, "no use for sequence.mean"),
        ({"sequence": {"dim": 3, "std": [1.0, 2.0]}}, "sequence.std to be one number for each of sequence.dim=3"),
        ({"sequence": {"dim": 3, "positions": 2}}, "sequence.positions to be true or false"),
    ],
)  # fmt: skip
def test_options_of_conditions_have_to_fit(options: dict[str, Any], words: str) -> None:
    for network in NETWORKS:
        with pytest.raises(ValueError, match=words):
            network(**options)


def test_what_a_network_cannot_use_is_said() -> None:
    with pytest.raises(
        ValueError, match=r"shape=\(4,\) has no grid that an image could lie on: give the image as cond"
    ):
        MLP(shape=(4,), image=IMAGE)
    with pytest.raises(ValueError, match="label, condition and sequence .* need time_conditional=True"):
        NCSNpp(time_conditional=False, sequence=NUMBERS)


def test_networks_without_these_conditions_are_what_they_were() -> None:
    assert not [key for key in mlp().state_dict() if key.startswith(("image", "sequence"))]
    assert not [key for key in unet().state_dict() if "cross" in key or key.startswith(("image", "sequence"))]
    part = SequenceCondition("Net", 6, vocabulary=3, optional=True)
    assert part(torch.zeros(5, 2), None).pooled.shape == (5, 6)  # 4 queries do not divide 6: one does
