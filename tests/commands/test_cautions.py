"""What is said of data before a model is trained on them."""

import torch

from scoresde import EDMSDE, VPSDE
from scoresde.commands.cautions import cautions
from scoresde.data import Dataset, Names, Split, Standardized


def dataset(x: torch.Tensor, label: torch.Tensor | None = None, num_classes: int | None = None) -> Dataset:
    names = Names(classes=("cat", "dog", "eel")[:num_classes]) if num_classes else Names()
    split = Split(x=x, label=label)
    return Dataset(
        name="own", train=split, test=split, codec=Standardized.fit(x), num_classes=num_classes, names=names
    )  # fmt: skip


def test_a_wiggle_below_the_noise_at_t_min_is_said() -> None:
    """std 2e-4 between examples around a profile of std 0.70, against σ/α = 1e-3 at t_min = 1e-5."""
    generator = torch.Generator().manual_seed(0)
    wiggle = torch.randn(300, 2, 64, generator=generator)
    profile = torch.stack([torch.zeros(64), torch.linspace(0, 6.28, 64).sin()])
    x = profile + wiggle * torch.tensor([1.0, 2e-4])[:, None]
    assert VPSDE().sigma(torch.tensor(1e-5, dtype=torch.float64)).item() > 9e-4
    (said,) = cautions(dataset(x), VPSDE(), labelled=False)
    assert "channel 1 of data=own varies by 0.00029" in said and "t_min=1e-05 is 0.001:" in said
    assert list(cautions(dataset(x), VPSDE(t_min=1e-7), labelled=False)) == []
    (said,) = cautions(dataset(profile + wiggle * torch.tensor([1.0, 1e-3])[:, None]), EDMSDE(), labelled=False)
    assert "channel 1" in said and "0.002" in said


def test_classes_without_an_example_are_named() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    data = dataset(x, torch.arange(20) % 2 * 2, 3)
    assert data.class_counts == [10, 0, 10] and data.unseen_classes == ["dog"]
    assert list(cautions(data, VPSDE(), labelled=True)) == [
        "1 class has no example in data=own, and cannot be drawn: dog."
    ]
    assert list(cautions(data, VPSDE(), labelled=False)) == []
