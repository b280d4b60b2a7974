"""Embeddings of noise levels and conditions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import EPS, assert_rounded, dtype_of

from scoresde.models.embedding import ConditionEmbedding, GaussianFourier, noise_levels, sinusoidal_embedding

DATA = Path(__file__).parents[1] / "data"


def test_embeddings_equal_the_original() -> None:
    with np.load(DATA / "score_sde_layers.npz") as arrays:
        golden = {key: torch.from_numpy(value) for key, value in arrays.items()}
    for dim in (128, 33):
        t = golden["emb_t"]
        value = sinusoidal_embedding(t.double(), dim)
        for rounded in (sinusoidal_embedding(t.float(), dim), golden[f"emb_pos_{dim}"]):
            assert ((rounded - value).abs() <= 4 * EPS * (1 + t[:, None])).all()  # phases up to t
    fourier = GaussianFourier(32, 16.0)
    fourier.W.data = golden["emb_W"]
    sigma, expected = golden["emb_sigma"], golden["emb_fourier_of_log_sigma"].double()
    assert_rounded(lambda net: (net(sigma.to(dtype_of(net)).log()),), fourier, (expected,))


def test_fourier_frequencies_are_not_trained() -> None:
    assert not GaussianFourier(4, 1.0).W.requires_grad


def test_noise_levels_broadcast_and_name_the_offending_shape() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    assert noise_levels(0.5, x).tolist() == [0.5] * 4
    assert noise_levels(torch.arange(4), x).dtype == torch.float64
    assert noise_levels(torch.tensor(0.5, dtype=torch.float64), x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"expected shape \(\) or \(4,\).*got \(4, 1\)"):
        noise_levels(torch.zeros(4, 1), x)


def test_no_label_is_one_row_and_no_condition_is_zero() -> None:
    x = torch.zeros(3, 2)
    embed = ConditionEmbedding("Net", 8, num_classes=5, condition_dim=4)
    no_label, zeros = torch.full((3,), -1), torch.zeros(3, 4)
    torch.testing.assert_close(embed(x, None, None), embed(x, no_label, zeros), atol=0, rtol=0)
    rows = embed(x, torch.tensor([-1, 0, 4]), None)
    assert (torch.pdist(rows) > 0.1).all()


def test_a_network_without_conditions_has_no_parameters_for_them() -> None:
    embed = ConditionEmbedding("Net", 8, None, None)
    assert embed(torch.zeros(3, 2), None, None) is None
    assert not embed.state_dict()


@pytest.mark.parametrize(
    ("label", "condition", "message"),
    [
        (torch.tensor([0, 1, 5]), None, r"labels from 0 to 4, or -1 for no label, got values from 0 to 5"),
        (torch.tensor([0, -2, 1]), None, r"got values from -2 to 1"),
        (torch.tensor([0.0, 1.0, 2.0]), None, r"integer labels .* got torch.float32"),
        (torch.tensor([0, 1]), None, r"shape \(\) or \(3,\) .* of shape \(2,\)"),
        (None, torch.zeros(3, 5), r"condition of shape \(3, 4\) .* got \(3, 5\)"),
    ],
)
def test_a_wrong_condition_raises_one_sentence(
    label: torch.Tensor | None, condition: torch.Tensor | None, message: str
) -> None:
    embed = ConditionEmbedding("Net", 8, num_classes=5, condition_dim=4)
    with pytest.raises(ValueError, match=message):
        embed(torch.zeros(3, 2), label, condition)


def test_an_unexpected_condition_says_which_option_is_missing() -> None:
    embed = ConditionEmbedding("Net", 8, None, None)
    with pytest.raises(ValueError, match="without num_classes, so it takes no label"):
        embed(torch.zeros(3, 2), torch.tensor(0), None)
    with pytest.raises(ValueError, match="without condition_dim, so it takes no condition"):
        embed(torch.zeros(3, 2), None, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="Net needs num_classes >= 1, a whole number, or null, got num_classes=0"):
        ConditionEmbedding("Net", 8, 0, None)
