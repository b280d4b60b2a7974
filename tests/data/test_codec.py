import io
import math

import pytest
import torch
from torch import Tensor

from scoresde.data import Quantized, Standardized, codec, codec_from_state, codec_state

CODECS = [
    Quantized(levels=2),
    Quantized(levels=17),
    Quantized(levels=17, value_range=(0.0, 1.0)),
    Quantized(levels=256),
    Quantized(levels=256, value_range=(-0.3, 7.7)),
    Quantized(levels=65536),
]
UNIFORMS = [0.0, 2.0**-24, 2.0**-10, 0.5, 1 - 2.0**-10, 1 - 2.0**-24]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def all_levels(quantized: Quantized) -> Tensor:
    return torch.arange(quantized.levels)


@pytest.mark.parametrize("quantized", CODECS, ids=str)
def test_decoding_undoes_encoding_for_every_level(quantized: Quantized) -> None:
    k = all_levels(quantized)
    for draws in (quantized.encode(k, dequantize=False), quantized.encode(k, generator=generator())):
        assert draws.dtype == torch.float32
        assert torch.equal(quantized.decode(draws), k)


@pytest.mark.parametrize("u", UNIFORMS)
@pytest.mark.parametrize("quantized", CODECS, ids=str)
def test_no_draw_is_rounded_into_the_next_cell(quantized: Quantized, u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_uniform", lambda k, generator: torch.full(k.shape, u))
    k = all_levels(quantized)
    x = quantized.encode(k)
    assert torch.equal(quantized.decode(x), k)
    assert torch.equal(quantized.decode(x.double()), k)
    lo, hi = quantized.value_range
    assert ((x >= torch.tensor(lo)) & (x < torch.tensor(hi))).all()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_centres_are_those_of_the_cells(levels: int) -> None:
    quantized = Quantized(levels=levels)
    k = all_levels(quantized)
    expected = -1 + (2 * k.double() + 1) / levels
    torch.testing.assert_close(quantized.encode(k, dequantize=False).double(), expected, rtol=0, atol=1e-7)


def test_dequantisation_noise_is_uniform_within_the_cell_and_independent_of_the_level() -> None:
    quantized = Quantized(levels=17)
    k = torch.arange(17).repeat(20_000)
    u = (quantized.encode(k, generator=generator()).double() + 1) * 17 / 2 - k
    tolerance = 4 / math.sqrt(len(u))
    assert u.mean().item() == pytest.approx(1 / 2, abs=tolerance * math.sqrt(1 / 12))
    assert u.square().mean().item() == pytest.approx(1 / 3, abs=tolerance * math.sqrt(4 / 45))
    deviation = (u.sort().values - (torch.arange(len(u)) + 0.5) / len(u)).abs().max().item()
    assert deviation < 1.95 / math.sqrt(len(u))  # Kolmogorov-Smirnov, p = 0.001
    per_level = u.reshape(-1, 17).mean(0)
    assert (per_level - 0.5).abs().max().item() < 4.5 * math.sqrt(1 / 12 / 20_000)


def test_encoding_follows_the_generator_and_any_integer_dtype() -> None:
    quantized = Quantized()
    k = torch.arange(256, dtype=torch.uint8).reshape(2, 1, 8, 16)
    first, second = (quantized.encode(k, generator=generator()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, quantized.encode(k.int(), generator=generator()))
    assert not torch.equal(first, quantized.encode(k, generator=torch.Generator().manual_seed(1)))


def test_decode_clamps_values_outside_the_range() -> None:
    quantized = Quantized(levels=4)
    x = torch.tensor([-math.inf, -3.0, -1.0, 0.99, 1.0, 3.0, math.inf])
    assert quantized.decode(x).tolist() == [0, 0, 0, 3, 3, 3, 3]
    assert quantized.decode(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [1, 2, 3]
    assert quantized.decode(torch.tensor([-0.5, 0.0], dtype=torch.bfloat16)).tolist() == [1, 2]


def test_pictures_use_the_whole_range_of_bytes() -> None:
    for levels, expected in ((2, [0, 255]), (4, [0, 85, 170, 255]), (256, list(range(256)))):
        quantized = Quantized(levels=levels)
        pictures = quantized.to_uint8(quantized.encode(all_levels(quantized), generator=generator()))
        assert pictures.dtype == torch.uint8
        assert pictures.tolist() == expected


def test_quantized_rejects_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"levels from 2 to 65536, got 1"):
        Quantized(levels=1)
    with pytest.raises(ValueError, match=r"got '256'"):
        Quantized(levels="256")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lo < hi, got \(1.0, -1.0\)"):
        Quantized(value_range=(1.0, -1.0))
    with pytest.raises(ValueError, match="apart in float32"):
        Quantized(value_range=(1e6, 1e6 + 1))
    with pytest.raises(TypeError, match=r"integer levels, got torch\.float32"):
        Quantized().encode(torch.rand(3))


@pytest.mark.parametrize("shape", [(3,), (3, 700), (2, 5, 4), (2, 3, 5, 4)], ids=["table", "series", "image", "volume"])
def test_each_column_or_channel_has_mean_zero_and_variance_one(shape: tuple[int, ...]) -> None:
    unit = torch.logspace(-4, 5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    x = unit * (torch.randn(500, *shape, generator=generator()) + 2)
    fitted = Standardized.fit(x)
    z = fitted.encode(x).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(shape[0]).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(shape[0]).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(fitted.decode(fitted.encode(x)) / unit, x / unit, rtol=0, atol=1e-5)


def test_a_pixel_that_is_lit_once_is_not_far_away() -> None:
    x = torch.rand(500, 1, 8, 8, generator=generator())
    x[:, :, 0, 0] = 0
    x[7, :, 0, 0] = 1
    assert Standardized.fit(x).encode(x).abs().max() < 2.5  # 22 by the mean and std of that pixel


@pytest.mark.parametrize("shape", [(6,), (3, 20, 20)], ids=["columns", "channels"])
def test_log_det_turns_a_model_density_into_one_in_data_units(shape: tuple[int, ...]) -> None:
    unit = torch.logspace(-3, 2, shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    x = unit * (3 + torch.randn(200, *shape, dtype=torch.float64, generator=generator()))
    fitted = Standardized.fit(x)

    in_data_units = torch.distributions.Normal(fitted.mean, fitted.std).log_prob(x).flatten(1).sum(1)
    in_model_units = torch.distributions.Normal(0.0, 1.0).log_prob(fitted.encode(x).double()).flatten(1).sum(1)
    torch.testing.assert_close(in_model_units - fitted.log_det, in_data_units, rtol=1e-5, atol=1e-4)


def test_float64_data_come_back_in_float64() -> None:
    x = 1e9 + torch.randn(100, 2, dtype=torch.float64, generator=generator())
    fitted = Standardized.fit(x)
    z = fitted.encode(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(fitted.decode(z), x, rtol=0, atol=1e-6)


def test_a_constant_feature_is_kept_with_a_warning_and_constant_data_are_refused() -> None:
    x = torch.randn(50, 3, generator=generator())
    x[:, 1] = 0.1
    with pytest.warns(UserWarning, match=r"1 of 3 columns are constant.*first: 1"):
        fitted = Standardized.fit(x)
    assert fitted.std[1] == 1
    assert fitted.encode(x)[:, 1].abs().max() < 1e-6
    for shape in ((50, 3), (50, 2000)):
        with pytest.raises(ValueError, match="all 50 training rows are equal"):
            Standardized.fit(torch.full(shape, 0.1))


def test_standardized_rejects_an_impossible_std_or_shape() -> None:
    with pytest.raises(ValueError, match="positive std"):
        Standardized(mean=torch.zeros(2), std=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"events of shape \(2,\).*got \(3,\) and \(\)"):
        Standardized(mean=torch.zeros(3), std=torch.tensor(1.0), shape=(2,))


@pytest.mark.parametrize(
    "original",
    [
        Quantized(levels=17, value_range=(0.0, 2.0)),
        Standardized(mean=torch.tensor([1.0, 2.0]), std=torch.tensor([0.5, 3.0])),
        Standardized(mean=torch.tensor(1.0), std=torch.tensor(0.5), shape=(3, 4)),
    ],
    ids=["quantized", "per feature", "scalar"],
)
def test_a_codec_survives_a_file_of_tensors_and_numbers(original: Quantized | Standardized) -> None:
    file = io.BytesIO()
    torch.save(codec_state(original), file)
    file.seek(0)
    restored = codec_from_state(torch.load(file, weights_only=True))

    x = torch.randn(3, 4, 2) if isinstance(original, Quantized) else torch.randn(5, *original.shape or ())
    assert type(restored) is type(original)
    assert torch.equal(restored.decode(x), original.decode(x))
    if isinstance(restored, Standardized) and isinstance(original, Standardized):
        assert restored.log_det == original.log_det


def test_a_damaged_codec_state_is_named() -> None:
    with pytest.raises(ValueError, match="unknown codec 'jpeg'"):
        codec_from_state({"codec": "jpeg"})
    with pytest.raises(ValueError, match="cannot be read: KeyError"):
        codec_from_state({"codec": "quantized", "levels": 3})
