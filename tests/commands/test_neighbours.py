"""Nearest training examples: found exactly, and told from what chance gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.commands.neighbours import look_for_neighbours, nearest
from scoresde.data import Dataset, Quantized, Split, Standardized


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_rows_are_those_of_a_search_through_all() -> None:
    points, rows = random(7, 5), random(40, 5, seed=1)
    found = nearest(points, iter(rows.split(11)), 3)
    every = (points[:, None] - rows).square().mean(2).sqrt()
    distance, order = every.topk(3, largest=False)
    torch.testing.assert_close(found.distance, distance)
    assert torch.equal(found.row, order)
    own = nearest(rows[:4], iter(rows.split(11)), 1, skip=torch.arange(4))
    assert (own.distance > 0).all() and (own.row[:, 0] != torch.arange(4)).all()


def dataset(shape: tuple[int, ...], *, flip: bool = False, tests: int = 200) -> Dataset:
    codec = Standardized(mean=torch.zeros(shape), std=torch.ones(shape))
    train, test = Split(x=random(300, *shape)), Split(x=random(tests, *shape, seed=1))
    return Dataset(name="rows", train=train, test=test, codec=codec, flip=flip)


def looked_at(data: Dataset, x: torch.Tensor, out: Path) -> tuple[dict[str, Any], str]:
    trained: Any = SimpleNamespace(codec=data.codec, shape=data.shape)
    return look_for_neighbours(trained, data, x, 2, out, 0)


@pytest.mark.parametrize("tests", [200, 0], ids=["test split", "no test split"])
def test_copies_of_training_examples_are_told_from_new_ones(tests: int, tmp_path: Path) -> None:
    data = dataset((4,), tests=tests)
    fresh, words = looked_at(data, random(100, 4, seed=2), tmp_path)
    assert "no more than chance" in words and fresh["neighbours"]["of"] == 100
    copied = torch.cat([random(80, 4, seed=2), data.train.x[50:70] + 1e-4])
    learned, words = looked_at(data, copied, tmp_path)
    assert "more than chance: training examples are repeated" in words and "no more" not in words
    assert learned["neighbours"]["nearer"] >= 20
    arrays = np.load(tmp_path / "neighbours.npz")
    assert arrays["row"][80:, 0].tolist() == [*range(50, 70)]  # in the order of the samples
    assert arrays["distance"].shape == (100, 2) and (arrays["distance"][80:, 0] < 2e-4).all()


def test_mirrored_copies_count_where_training_mirrors(tmp_path: Path) -> None:
    for flip in (True, False):
        data = dataset((1, 3, 4), flip=flip)
        looked_at(data, data.train.x[:10].flip(-1), tmp_path)
        assert bool((np.load(tmp_path / "neighbours.npz")["distance"][:, 0] < 1e-6).all()) == flip


@pytest.mark.parametrize("shape", [(2, 9), (1, 6, 6), (1, 4, 4, 4)], ids=["series", "image", "volume"])
def test_neighbours_are_drawn_beside_their_samples(shape: tuple[int, ...], tmp_path: Path) -> None:
    data = dataset(shape)
    looked_at(data, data.train.x[:5], tmp_path)
    with Image.open(tmp_path / "neighbours.png") as picture:
        pixels = np.asarray(picture).astype(int)
    sample, first, second = (pixels[62 : 62 + 88, 16 + 96 * k : 16 + 96 * k + 88] for k in range(3))
    assert sample.min() < 250
    if len(shape) > 2:  # a copy looks like its example; a series has the colours of its side
        assert np.array_equal(sample, first) and not np.array_equal(first, second)


def test_samples_of_quantised_data_are_compared_as_levels(tmp_path: Path) -> None:
    codec = Quantized(levels=4)
    levels = torch.randint(0, 4, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    data = Dataset(name="levels", train=Split(x=levels[:40]), test=Split(x=levels[40:]), codec=codec)
    x = codec.encode(levels[:5], generator=torch.Generator().manual_seed(1))  # anywhere in their cells
    looked_at(data, x, tmp_path)
    assert np.load(tmp_path / "neighbours.npz")["distance"][:, 0].tolist() == [0.0] * 5
