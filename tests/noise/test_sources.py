from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import gaussian_noise, per_sample_noise
from scoresde.noise import NoiseSource, brownian_noise, sample_seeds
from scoresde.noise.keyed import FEW, hashed_normals, hashed_signs, keyed_normals, mix

SOURCES: dict[str, Callable[[Tensor], NoiseSource]] = {
    "gaussian": lambda x: gaussian_noise(x, torch.Generator().manual_seed(0)),
    "per_sample": lambda x: per_sample_noise(x, 0),
    "brownian": lambda x: brownian_noise(x, 0),
    "brownian on its grid": lambda x: brownian_noise(x, 0, times=torch.tensor([1.0, 0.6, 0.59, 0.1])),
}


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("shape", [(40_000, 1), (4, 10, 1000)], ids=str)
def test_draws_are_independent_standard_normals(
    source: Callable[[Tensor], NoiseSource], shape: tuple[int, ...]
) -> None:
    """40 000 draws: the standard errors are 1/200 (mean, correlation), √2/200 (variance) and √24/200 (kurtosis)."""
    noise = source(torch.zeros(shape))
    draws = [noise(t(a), t(b)).double().flatten() for a, b in [(1.0, 0.6), (0.6, 0.59), (0.59, 0.59), (0.59, 0.59)]]
    for z in draws:
        assert abs(float(z.mean())) < 4 / 200
        assert abs(float(z.square().mean()) - 1) < 4 * 2**0.5 / 200
        assert abs(float((z**3).mean())) < 4 * 15**0.5 / 200
        assert abs(float((z**4).mean()) - 3) < 4 * 96**0.5 / 200
        assert abs(float((z[1:] * z[:-1]).mean())) < 4 / 200
    for one, two in [(0, 1), (0, 2), (1, 2), (2, 3)]:
        assert abs(float((draws[one] * draws[two]).mean())) < 4 / 200


@pytest.mark.parametrize("entries", [1, 7, FEW - 1, FEW, 1003])
def test_a_sample_has_its_own_sequence(entries: int) -> None:
    """It depends on its seed and on how many draws went before; not on the batch, the precision or the times."""
    x = torch.zeros(3, entries)
    batch, alone = per_sample_noise(x, [4, 5, 6]), per_sample_noise(x[:1].double(), [5])
    times = [1.0, 0.5, 0.5, 0.2]
    together = [batch(t(a), t(b)) for a, b in pairwise(times)]
    single = [alone(t(a / 2), t(b / 3)) for a, b in pairwise(times)]
    for one, two in zip(together, single, strict=True):
        assert one.dtype == torch.float32 and two.dtype == torch.float64
        assert torch.equal(one[1:2].double(), two)
    assert not torch.equal(together[0], together[1]) and not torch.equal(together[0][0], together[0][1])


def test_one_seed_stands_for_one_per_sample() -> None:
    x = torch.zeros(3, 2, 4)
    for source in (per_sample_noise, brownian_noise):
        seeds = sample_seeds(7, 3, "test")
        assert torch.equal(source(x, 7)(t(1.0), t(0.5)), source(x, seeds)(t(1.0), t(0.5)))
        assert torch.equal(source(x, 7)(t(1.0), t(0.5)), source(x, torch.tensor(seeds))(t(1.0), t(0.5)))
        assert torch.equal(source(x, 7)(t(1.0), t(0.5))[:2], source(x[:2], 7)(t(1.0), t(0.5)))
    assert sample_seeds(torch.tensor([4, 5]), 2, "test") == [4, 5]


def test_gaussian_noise_follows_its_generator() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    one, two = (gaussian_noise(x, torch.Generator().manual_seed(1)) for _ in "ab")
    first = one(t(1.0), t(0.5))
    assert first.dtype == torch.float64 and torch.equal(first, two(t(1.0), t(0.5)))
    assert not torch.equal(first, one(t(1.0), t(0.5)))


def test_words_mix_alike_as_numbers_arrays_and_tensors() -> None:
    words = [0, 1, 2**63, 2**64 - 1, 123456789]
    assert mix(np.array(words, dtype=np.uint64)).tolist() == [mix(word) for word in words]
    tensor = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
    assert mix(tensor).numpy().view(np.uint64).tolist() == [mix(word) for word in words]
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0


def test_neighbouring_keys_give_unrelated_rows() -> None:
    """Hashed numbers over 10 000 consecutive keys: correlations of rows, moments and tails as of a normal law."""
    z = hashed_normals(np.arange(10_000, dtype=np.uint64), 4).astype(np.float64)
    flat = z.reshape(-1)
    n = len(flat)
    assert abs(flat.mean()) < 4 / n**0.5 and abs((flat**2).mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((flat**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for product in (z[1:] * z[:-1], z[1:, :2] * z[:-1, 2:], z[:, :-1] * z[:, 1:], z[:, :-1] ** 2 * z[:, 1:] ** 2 - 1):
        assert abs(product.mean()) < 4 * product.std() / product.size**0.5
    tail = (np.abs(flat) > 3).mean()
    assert abs(tail - 0.0027) < 4 * (0.0027 / n) ** 0.5
    rows = keyed_normals([mix(k) for k in range(500)], 200, torch.Generator())
    assert abs(float((rows[1:] * rows[:-1]).mean())) < 4 / 1e5**0.5


def test_signs_are_fair_independent_and_a_function_of_seed_time_and_place() -> None:
    t = torch.linspace(0, 1, 2000, dtype=torch.float64)
    table = hashed_signs(t, (4, 5), 3).double().flatten(1)
    assert set(table.unique().tolist()) == {-1.0, 1.0}
    correlations = table.T @ table / 2000 - torch.eye(20).double()
    assert float(table.mean(0).abs().max()) * 2000**0.5 < 4 and float(correlations.abs().max()) * 2000**0.5 < 4.5
    assert abs(float((table[1:] * table[:-1]).mean())) * 40000**0.5 < 4  # neighbouring times
    other = hashed_signs(t, (4, 5), 4).double().flatten(1)
    assert abs(float((table * other).mean())) * 40000**0.5 < 4
    torch.testing.assert_close(hashed_signs(t[7], (4, 5), 3)[0].double().flatten(), table[7], rtol=0, atol=0)
    torch.testing.assert_close(hashed_signs(t.float()[:1], (4, 5), 3), hashed_signs(t[:1], (4, 5), 3), rtol=0, atol=0)


def test_wrong_seeds_are_named() -> None:
    for name, source in (("per_sample_noise", per_sample_noise), ("brownian_noise", brownian_noise)):
        with pytest.raises(ValueError, match=rf"{name} needs one seed per sample: expected 3, got 2\. Pass a single"):
            source(torch.zeros(3, 2), [1, 2])
