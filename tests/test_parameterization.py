from __future__ import annotations

import pytest
import torch

from scoresde import EDM, Data, Epsilon, Parameterization, Score, VPrediction

ALPHA = torch.tensor([1.0, 0.8, 0.3, 0.01], dtype=torch.float64)
SIGMA = torch.tensor([0.02, 0.6, 1.7, 40.0], dtype=torch.float64)  # not variance preserving


def target(parameterization: Parameterization, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the field says the network predicts, given the clean data and the noise."""
    if isinstance(parameterization, Epsilon):
        return noise
    if isinstance(parameterization, Data):
        return x0
    if isinstance(parameterization, VPrediction):
        return ALPHA * noise - SIGMA * x0
    return -noise / SIGMA  # score


@pytest.mark.parametrize(
    "parameterization", [Epsilon(), Data(), VPrediction(), Score()], ids=lambda p: type(p).__name__
)
def test_a_perfect_network_gives_back_the_data(parameterization: Parameterization) -> None:
    x0, noise = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    c_skip, c_out = parameterization.skip_out(ALPHA, SIGMA)
    x0_hat = c_skip * (ALPHA * x0 + SIGMA * noise) + c_out * target(parameterization, x0, noise)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-10, atol=1e-10)


def test_edm_is_table_1_of_karras_in_the_coordinates_x_over_alpha() -> None:
    s, ratio = 0.5, SIGMA / ALPHA
    c_skip, c_out = EDM().skip_out(ALPHA, SIGMA)

    torch.testing.assert_close(c_skip * ALPHA, s**2 / (ratio.square() + s**2))
    torch.testing.assert_close(c_out, ratio * s / (ratio.square() + s**2).sqrt())
    torch.testing.assert_close(EDM().c_in(ALPHA, SIGMA) * ALPHA, 1 / (ratio.square() + s**2).sqrt())
    torch.testing.assert_close(EDM().c_noise(ALPHA, SIGMA), ratio.log() / 4)


def test_edm_input_and_target_have_unit_variance() -> None:
    for s in (0.5, 1.3):
        parameterization = EDM(sigma_data=s)
        c_skip, c_out = parameterization.skip_out(ALPHA, SIGMA)
        input_variance = parameterization.c_in(ALPHA, SIGMA).square() * ((ALPHA * s).square() + SIGMA.square())
        # target (x0 − c_skip x) / c_out with x0 of standard deviation s and unit noise
        target_variance = (((1 - c_skip * ALPHA) * s).square() + (c_skip * SIGMA).square()) / c_out.square()
        torch.testing.assert_close(input_variance, torch.ones_like(ALPHA), rtol=1e-12, atol=0)
        torch.testing.assert_close(target_variance, torch.ones_like(ALPHA), rtol=1e-10, atol=0)


def test_sigma_data_must_be_positive() -> None:
    with pytest.raises(ValueError, match="VPrediction needs 0 < sigma_data <= 1e9, got sigma_data=0.0"):
        VPrediction(sigma_data=0.0)
