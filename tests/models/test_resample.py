"""Resampling against the original's outputs, and against its definition by zero insertion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.models.resample import ConvDown, ConvUp, Down, FIRFilter, Up

DATA = Path(__file__).parents[1] / "data"
TAPS = {"1331": (1, 3, 3, 1), "11": (1, 1), "121": (1, 2, 1)}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "score_sde_layers.npz") as arrays:
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


@pytest.mark.parametrize("name", TAPS)
def test_fir_resampling_equals_the_original(golden: dict[str, Tensor], name: str) -> None:
    torch.testing.assert_close(Up(TAPS[name])(golden["x"]), golden[f"fir_up_{name}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(Down(TAPS[name])(golden["x"]), golden[f"fir_down_{name}"], atol=1e-5, rtol=0)


def test_odd_sizes_and_plain_resampling_equal_the_original(golden: dict[str, Tensor]) -> None:
    odd, taps = golden["x_odd"], TAPS["1331"]
    torch.testing.assert_close(Up(taps)(odd), golden["fir_up_odd_1331"], atol=1e-5, rtol=0)
    torch.testing.assert_close(Down(taps)(odd), golden["fir_down_odd_1331"], atol=1e-5, rtol=0)
    torch.testing.assert_close(Up(None)(golden["x"]), golden["naive_up"])
    torch.testing.assert_close(Down(None)(golden["x"]), golden["naive_down"])


def test_convolutions_with_fir_equal_the_original(golden: dict[str, Tensor]) -> None:
    down, up = ConvDown(3, 5, TAPS["1331"]), ConvUp(3, 5, TAPS["1331"])
    for layer in (down, up):
        layer.Conv2d_0.weight.data = golden["w"]
    torch.testing.assert_close(down(golden["x"]), golden["fir_conv_down_1331"], atol=1e-5, rtol=0)
    torch.testing.assert_close(up(golden["x"]), golden["fir_up_conv_1331_patched"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2), (3, 1, 2), (1, 5, 10, 10, 5, 1), (1, 2, 3, 4, 5)], ids=str)
def test_fir_is_a_true_convolution_of_any_kernel(taps: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    excess = len(taps) - 2

    def convolve(signal: Tensor, before: int, after: int) -> Tensor:
        padded = F.pad(signal, (before, after, before, after))
        height, width = padded.shape[2] - len(taps) + 1, padded.shape[3] - len(taps) + 1
        out = torch.zeros(2, 3, height, width, dtype=torch.float64)
        for i in range(len(taps)):
            for j in range(len(taps)):
                top, left = len(taps) - 1 - i, len(taps) - 1 - j
                out += k[i] * k[j] * padded[:, :, top : top + height, left : left + width]
        return out

    zeros = torch.zeros(2, 3, 12, 8, dtype=torch.float64)
    zeros[:, :, ::2, ::2] = x
    expected_up = 4 * convolve(zeros, (excess + 1) // 2 + 1, excess // 2)
    expected_down = convolve(x, (excess + 1) // 2, excess // 2)[:, :, ::2, ::2]
    torch.testing.assert_close(Up(taps).double()(x), expected_up, atol=1e-6, rtol=0)
    torch.testing.assert_close(Down(taps).double()(x), expected_down, atol=1e-6, rtol=0)


def test_fir_keeps_constants_in_the_interior_and_its_kernel_out_of_checkpoints() -> None:
    ones = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(Up((1, 3, 3, 1))(ones)[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    torch.testing.assert_close(Down((1, 3, 3, 1))(ones)[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert not Up((1, 3, 3, 1)).state_dict()


def test_fir_under_autocast_keeps_float32_sums() -> None:
    x, down = torch.randn(1, 2, 8, 8), Down((1, 3, 3, 1))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(down(x), Down((1, 3, 3, 1))(x), atol=0, rtol=0)
        assert down(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(down(x.bfloat16()).float(), down(x.bfloat16().float()), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("taps", [(1,), (1, -1)])
def test_fir_refuses_a_kernel_that_is_no_filter(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"two or more taps and a sum other than 0, got"):
        FIRFilter(taps)
