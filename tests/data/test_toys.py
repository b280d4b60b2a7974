import math

import pytest
import torch

from scoresde.data import Standardized, toy

NAMES = ("moons", "checkerboard", "spirals", "eight_gaussians", "swiss_roll")


@pytest.mark.parametrize("name", NAMES)
def test_toys_are_standardised_reproducible_and_split(name: str) -> None:
    first, again, other = toy(name, size=2000), toy(name, size=2000), toy(name, size=2000, seed=1)
    assert (first.shape, len(first.train), len(first.test)) == ((2,), 2000, 2000)
    assert torch.equal(first.train.x, again.train.x) and torch.equal(first.test.x, again.test.x)
    assert not torch.equal(first.train.x, other.train.x) and not torch.equal(first.train.x, first.test.x)
    assert isinstance(first.codec, Standardized)
    z = first.codec.encode(first.train.x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-5)


def test_noiseless_moons_lie_on_their_circles() -> None:
    data = toy("moons", noise=0.0)
    centre = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[data.train.label]
    torch.testing.assert_close((data.train.x - centre).norm(dim=1), torch.ones(10_000))
    assert ((data.train.x - centre)[:, 1] * (1 - 2 * data.train.label) >= -1e-6).all()  # type: ignore[operator]


def test_checkerboard_fills_its_eight_squares_evenly() -> None:
    x = toy("checkerboard", size=16_000).train.x
    cell = x.floor().long()
    assert ((cell.sum(1) % 2) == 0).all() and (cell.min(), cell.max()) == (-2, 1)
    counts = (4 * (cell[:, 0] + 2) + cell[:, 1] + 2).bincount()
    assert (counts[counts > 0] - 2000).abs().max() < 5 * math.sqrt(2000)
    torch.testing.assert_close((x - cell).mean(0), torch.full((2,), 0.5), rtol=0, atol=0.02)


def test_eight_gaussians_have_their_means_and_width() -> None:
    data = toy("eight_gaussians", size=40_000, noise=0.1)
    assert data.num_classes == 8 and data.train.label is not None
    for k in range(8):
        x = data.train.x[data.train.label == k]
        centre = torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)])
        torch.testing.assert_close(x.mean(0), centre, rtol=0, atol=0.01)
        torch.testing.assert_close(x.std(0), torch.full((2,), 0.1), rtol=0, atol=0.005)


def test_noiseless_spirals_satisfy_their_equation() -> None:
    data = toy("spirals", noise=0.0)
    radius = data.train.x.norm(dim=1)
    angle = 3 * math.pi * radius + math.pi * data.train.label  # type: ignore[operator]
    expected = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(data.train.x, expected, rtol=0, atol=1e-5)


def test_noiseless_swiss_roll_satisfies_its_equation() -> None:
    x = toy("swiss_roll", noise=0.0).train.x
    angle = 10 * x.norm(dim=1)
    torch.testing.assert_close(x, angle[:, None] / 10 * torch.stack([angle.cos(), angle.sin()], 1), rtol=0, atol=1e-4)
    assert 1.5 * math.pi <= angle.min() and angle.max() <= 4.5 * math.pi + 1e-4


def test_toy_rejects_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="needs name moons, checkerboard, spirals, .* or swiss_roll, got 'moon'"):
        toy("moon")
    with pytest.raises(ValueError, match="data=toy needs 2 <= size <= 100000000, a whole number, got size=1"):
        toy(size=1)
    with pytest.raises(ValueError, match="data=toy needs 0 <= noise <= 1e9, or null, got noise=-1"):
        toy(noise=-1)
    with pytest.raises(ValueError, match="data=toy needs seed >= 0, a whole number, got seed=-1"):
        toy(seed=-1)
