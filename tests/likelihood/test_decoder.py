"""p(x0 | x_t) of quantised and continuous data, against literal transcriptions and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde.likelihood import CategoricalDecoder, Cells, DiscretizedGaussian, gaussian_decoder

DDPM_RANGE = (-256 / 255, 256 / 255)
K = torch.arange(256)


def published_log_likelihood(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Improved DDPM's decoder for places 2k/255 − 1, entry by entry, written from its formulas."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    above = cdf(torch.exp(-log_scales) * (x - means + 1 / 255))
    below = cdf(torch.exp(-log_scales) * (x - means - 1 / 255))
    inside = (above - below).clamp(min=1e-12).log()
    left, right = above.clamp(min=1e-12).log(), (1 - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, left, torch.where(x > 0.999, right, inside))


@pytest.mark.parametrize("std", [0.3, 0.01, 1e-3])
def test_tanh_is_the_published_decoder(std: float) -> None:
    x = (2 * K.double() / 255 - 1)[:, None]
    mean = x + std * torch.randn(256, 1, dtype=torch.float64) * torch.linspace(0, 4, 256, dtype=torch.float64)[:, None]
    scale = torch.full((256, 1), std, dtype=torch.float64)
    value = DiscretizedGaussian(value_range=DDPM_RANGE, cdf="tanh")(x, mean, scale)
    expected = published_log_likelihood(x, mean, scale.log())[:, 0]
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    assert (expected < math.log(2e-12)).any()  # the clamp is met where bins are far away


@pytest.mark.parametrize("cdf, tolerance", [("exact", 1e-12), ("tanh", 1e-9)])
@pytest.mark.parametrize("cells", [Cells(), Cells(levels=17, value_range=(0.0, 16.0)), Cells(value_range=DDPM_RANGE)])
@pytest.mark.parametrize("std", [0.002, 0.1, 3.0])
def test_probabilities_of_all_levels_add_up_to_one(cells: Cells, std: float, cdf: str, tolerance: float) -> None:
    centres = cells.centre(torch.arange(cells.levels), torch.float64)[:, None]
    width = (cells.value_range[1] - cells.value_range[0]) / 2
    scale = torch.full_like(centres, std * width)
    for share in (0.1, 0.503, 1.2):
        mean = torch.full_like(centres, cells.value_range[0] + 2 * share * width)
        gaussian = DiscretizedGaussian(levels=cells.levels, value_range=cells.value_range, cdf=cdf)
        assert float(gaussian(centres, mean, scale).exp().sum()) == pytest.approx(1, abs=256 * 1e-12 + tolerance)
        categorical = CategoricalDecoder(levels=cells.levels, value_range=cells.value_range)
        assert float(categorical(centres, mean, scale).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_exact_probabilities_are_integrals_of_the_density() -> None:
    decoder = DiscretizedGaussian(levels=5, value_range=(-1.0, 1.5))
    normal = torch.distributions.Normal(torch.tensor(0.13, dtype=torch.float64), 0.4)
    edges = torch.tensor([-math.inf, -0.5, 0.0, 0.5, 1.0, math.inf], dtype=torch.float64)
    expected = (normal.cdf(edges[1:]) - normal.cdf(edges[:-1])).log()
    x = torch.tensor([-0.75, -0.25, 0.25, 0.75, 1.25], dtype=torch.float64)[:, None]
    value = decoder(x, torch.full_like(x, 0.13), torch.tensor(0.4, dtype=torch.float64))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    away = decoder(torch.tensor([[-40.0], [77.0]], dtype=torch.float64), torch.full((2, 1), 0.13), torch.tensor(0.4))
    torch.testing.assert_close(away, expected[[0, -1]], rtol=1e-6, atol=1e-6)  # outside: the outermost cells


def test_far_tails_keep_their_digits_and_gradients() -> None:
    decoder, std = DiscretizedGaussian(levels=256), torch.tensor(1e-3, dtype=torch.float64)
    x = Cells().centre(torch.tensor([[0], [100], [255]]), torch.float64)
    mean = torch.tensor([[0.9], [0.9], [-0.9]], dtype=torch.float64, requires_grad=True)
    value = decoder(x, mean, std)
    # log Φ(−z) → −z²/2 − log(z √(2π)): the nearest edge decides
    z = (torch.tensor([1.9 - 2 / 256, 0.9 - float(x[1]) - 1 / 256, 1.9 - 2 / 256], dtype=torch.float64)) / std
    torch.testing.assert_close(value, -0.5 * z.square() - (z * math.sqrt(2 * math.pi)).log(), rtol=1e-6, atol=0)
    value.sum().backward()
    expected = torch.stack([-z[0], -z[1], z[2]]) / std
    torch.testing.assert_close(mean.grad[:, 0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("decoder", [DiscretizedGaussian(), DiscretizedGaussian(cdf="tanh"), CategoricalDecoder()])
def test_gradients_are_those_of_finite_differences(decoder: DiscretizedGaussian) -> None:
    x = Cells().centre(torch.tensor([[0, 3, 128], [255, 77, 254]]), torch.float64)
    mean = (x + 0.004 * torch.randn(2, 3, dtype=torch.float64)).requires_grad_()
    log_std = torch.full((2, 1), math.log(0.006), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda mean, log_std: decoder(x, mean, log_std.exp()), (mean, log_std))


def test_narrow_cells_are_density_times_width() -> None:
    cells = Cells(levels=4096, value_range=(-2.0, 2.0))
    k = torch.randint(1500, 2500, (6, 2, 3))
    x = cells.centre(k, torch.float64)
    mean, std = x + 0.05 * torch.randn_like(x), torch.tensor(0.1, dtype=torch.float64)
    density = gaussian_decoder(x, mean, std) + 6 * math.log(cells.width)
    options = {"levels": cells.levels, "value_range": cells.value_range}
    torch.testing.assert_close(DiscretizedGaussian(**options)(x, mean, std), density, rtol=0, atol=1e-3)
    torch.testing.assert_close(CategoricalDecoder(**options)(x, mean, std), density, rtol=0, atol=1e-3)


def test_gaussian_decoder_is_the_sum_of_log_densities_and_broadcasts() -> None:
    x, mean = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    std = torch.rand(4, 1, 1, dtype=torch.float64) + 0.5
    expected = torch.distributions.Normal(mean, std.expand_as(x)).log_prob(x).sum((1, 2))
    torch.testing.assert_close(gaussian_decoder(x, mean, std), expected)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="needs cdf exact or tanh, got 'erf'"):
        DiscretizedGaussian(cdf="erf")
    with pytest.raises(ValueError, match="CategoricalDecoder needs levels >= 2, a whole number"):
        CategoricalDecoder(levels=1)
