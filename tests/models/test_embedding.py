"""Embeddings of noise levels and conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounding import EPS, assert_rounded, dtype_of

from scoresde.models.condition_features import ConditionFeatures
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


def test_no_label_is_one_row_and_no_condition_a_learned_one() -> None:
    x = torch.zeros(3, 2)
    embed = ConditionEmbedding("Net", 8, num_classes=5, condition_dim=4, condition_optional=True)
    torch.nn.init.normal_(embed.none)  # type: ignore[arg-type]
    no_label, none = torch.full((3,), -1), torch.full((3, 4), torch.nan)
    torch.testing.assert_close(embed(x, None, None), embed(x, no_label, none), atol=0, rtol=0)
    rows = embed(x, torch.tensor([-1, 0, 4]), None)
    assert (torch.pdist(rows) > 0.1).all()
    some = torch.stack([torch.ones(4), none[0], 2 * torch.ones(4)])
    given = embed(x, None, some)
    torch.testing.assert_close(given[1], embed(x, None, None)[1], atol=0, rtol=0)
    assert (torch.pdist(given) > 0.1).all()
    given.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in embed.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_unit_of_a_condition_does_not_matter(dtype: torch.dtype) -> None:
    """c and c·s + m, each with its own mean and std, are one condition, whatever dtype the network has."""
    z = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor([1e-8, 1e3, 1.0]).double(), torch.tensor([0.0, 5e4, 1e8]).double()
    plain = ConditionEmbedding("Net", 8, None, 3, condition_width=16)
    unit = ConditionEmbedding(
        "Net", 8, None, 3, condition_width=16, condition_mean=shift.tolist(), condition_std=scale.tolist()
    )
    unit.load_state_dict(plain.state_dict())
    x = torch.zeros(16, 2, dtype=dtype)
    expected, given = plain.to(dtype)(x, None, z), unit.to(dtype)(x, None, z * scale + shift)
    assert expected is not None and given is not None
    assert given.dtype == dtype
    assert (given - expected).abs().max() <= 8 * torch.finfo(dtype).eps


def test_categories_are_one_hot_beside_standardised_numbers() -> None:
    features = ConditionFeatures("Net", 3, [0.0, 10.0, 0.0], [1.0, 2.0, 1.0], [2, 0, 3])
    given = features(torch.tensor([[1.0, 14.0, 0.0], [0.0, 9.0, 2.0]]))
    assert given.tolist() == [[2.0, 0.0, 1.0, 1.0, 0.0, 0.0], [-0.5, 1.0, 0.0, 0.0, 0.0, 1.0]]
    assert features(torch.tensor([[1, 14, 0]])).tolist() == given[:1].tolist()
    assert not features.state_dict()


def test_one_condition_stands_for_all_and_one_with_more_axes_is_flattened() -> None:
    x, embed = torch.zeros(3, 2), ConditionEmbedding("Net", 8, None, 4, condition_mean=[0.5])
    rows = torch.arange(12.0).reshape(3, 4)
    torch.testing.assert_close(embed(x, None, rows[1]), embed(x, None, rows[1:2].expand(3, 4)))
    torch.testing.assert_close(embed(x, None, rows.reshape(3, 2, 2)), embed(x, None, rows))


def test_a_condition_is_needed_unless_the_network_was_trained_without_it() -> None:
    with pytest.raises(ValueError, match=r"Net was trained with a condition of 4 numbers and never without: give it"):
        ConditionEmbedding("Net", 8, None, 4)(torch.zeros(3, 2), None, None)


@pytest.mark.parametrize(
    ("options", "condition", "message"),
    [
        ({}, [[0.0, 1.0], [2.0, torch.nan]], "conditions that are finite numbers, got nan in row 1, column 1"),
        ({}, [[torch.inf, 1.0], [2.0, 1.0]], "got inf in row 0, column 0"),
        ({"condition_optional": True}, [[torch.nan] * 2, [2.0, torch.nan]], "got nan in row 1, column 1"),
        ({"condition_categories": [0, 3]}, [[0.5, 2.0], [9.0, 3.0]], "numbered from 0 .* got 3 in row 1, column 1"),
        ({"condition_categories": [0, 3]}, [[0.5, 1.5], [9.0, 0.0]], "numbered from 0 .* got 1.5 in row 0, column 1"),
    ],
)
def test_values_that_are_no_condition_are_named(options: dict[str, Any], condition: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionEmbedding("Net", 8, None, 2, **options)(torch.zeros(2, 2), None, torch.tensor(condition))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_mean": [0.0, 1.0, 2.0]}, "condition_mean to be one number for each of condition_dim=2, .* got 3"),
        ({"condition_std": [1.0, 0.0]}, "0 < condition_std < inf"),
        ({"condition_std": [1.0, torch.nan]}, "condition_std to be a list of finite numbers"),
        ({"condition_categories": [3]}, "condition_categories to be a whole number for each of condition_dim=2"),
        ({"condition_categories": [3, 0.5]}, "condition_categories to be a whole number"),
        ({"condition_width": -1}, "condition_width >= 0"),
        ({"condition_optional": "yes"}, "condition_optional to be true, false or null"),
    ],
)
def test_what_is_said_of_columns_has_to_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionEmbedding("Net", 8, None, 2, **options)


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
        (torch.tensor([0, 1, 2]), torch.zeros(3, 5), r"condition of shape \(3, 4\) .* got \(3, 5\)"),
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
