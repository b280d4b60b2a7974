import pytest
import torch
from torch import Tensor

from scoresde.data import Dataset, Quantized, Split, Standardized, batch_indices, digits, random_crop, random_flip, toy


def levels_split(n: int = 4, top: int = 16, labels: list[int] | None = None) -> Split:
    x = torch.arange(n * 4).reshape(n, 1, 2, 2) % (top + 1)
    return Split(x=x.to(torch.uint8), label=None if labels is None else torch.tensor(labels))


def stream(n: int, batch_size: int, steps: int, seed: int = 0) -> Tensor:
    return torch.cat([batch_indices(n, batch_size, step, seed) for step in range(steps)])


@pytest.mark.parametrize("n, batch_size", [(10, 10), (10, 3), (7, 4), (12, 4), (5, 1)])
def test_every_epoch_uses_every_example_once_even_when_batches_straddle(n: int, batch_size: int) -> None:
    epochs = stream(n, batch_size, steps=6 * n)[: 6 * batch_size * n].reshape(-1, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand_as(epochs))


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = [*stream(50, 50, steps=4), *stream(50, 50, steps=4, seed=1)]
    epochs = torch.stack(orders).reshape(8, 50)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 8


def test_a_step_depends_on_its_arguments_alone() -> None:
    expected = stream(60, 7, steps=30)
    backwards = torch.cat([batch_indices(60, 7, step, 0) for step in reversed(range(30))])
    assert torch.equal(backwards.reshape(30, 7).flip(0).flatten(), expected)
    batch_indices(60, 7, 0, 0).zero_()  # the caller owns what it gets
    assert torch.equal(stream(60, 7, steps=30), expected)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 11 with 10 examples"):
        batch_indices(10, 11, 0, 0)
    with pytest.raises(ValueError, match="batch of 0 with 10 examples"):
        batch_indices(10, 0, 0, 0)


def test_random_flip_mirrors_half_of_the_images_and_nothing_else() -> None:
    x = torch.arange(1000 * 6).reshape(1000, 1, 2, 3)
    y = random_flip(x, torch.Generator().manual_seed(0))
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert (mirrored | (y == x).flatten(1).all(1)).all()
    assert 430 < int(mirrored.sum()) < 570
    assert torch.equal(y, random_flip(x, torch.Generator().manual_seed(0)))


def test_random_crop_is_a_window_of_each_image_at_its_own_place() -> None:
    """Of a ramp along each axis the window is a ramp of smaller slope: 1 − share u, the same along both."""
    ramps = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")).expand(500, 2, 32, 32)
    y = random_crop(ramps, 0.25, torch.Generator().manual_seed(0))
    down, across = y[:, 0, 16, 16] - y[:, 0, 15, 16], y[:, 1, 16, 16] - y[:, 1, 16, 15]
    torch.testing.assert_close(down, across, atol=1e-4, rtol=0)
    assert 0.75 <= down.min() < 0.76
    assert 0.99 < down.max() <= 1.0001
    room = 16 * (1 - down)  # of the middle, to either side
    middle = y[:, :, 15:17, 15:17].mean((2, 3)) - 15.5
    assert (middle.abs() <= room[:, None] + 1e-3).all()
    assert ((middle / room[:, None]).std(0) - 3**-0.5).abs().max() < 0.05, "uniform in its room, along both axes"
    assert torch.equal(random_crop(ramps, 0.0), ramps)
    levels = random_crop(torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8), 0.3)
    assert levels.dtype == torch.uint8


def test_properties_of_images_and_of_continuous_data() -> None:
    images, points = digits(), toy(size=50)
    assert (images.shape, images.is_image, images.levels, images.num_classes) == ((1, 8, 8), True, 17, 10)
    assert (points.shape, points.is_image, points.levels, points.num_classes) == ((2,), False, None, 2)


CONTINUOUS = Standardized(mean=torch.tensor(0.0), std=torch.tensor(1.0), shape=(3,))


def build(train: Split, test: Split, codec: Quantized | Standardized, num_classes: int | None) -> Dataset:
    return Dataset(name="mine", train=train, test=test, codec=codec, num_classes=num_classes)


def test_levels_outside_the_codec_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'mine' with levels=15 needs integers in 0..14, got 0..15 in the train"):
        build(levels_split(), levels_split(), Quantized(levels=15), None)
    negative = Split(x=torch.full((2, 1, 2, 2), -1))
    with pytest.raises(ValueError, match=r"got -1..-1 in the test split"):
        build(levels_split(), negative, Quantized(levels=17), None)
    with pytest.raises(ValueError, match=r"17 levels and needs integers, got torch.float32"):
        build(Split(x=torch.rand(2, 3)), Split(x=torch.rand(2, 3)), Quantized(levels=17), None)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_refused(label: int) -> None:
    good, bad = levels_split(labels=[0, 1, 2, 9]), levels_split(labels=[0, 1, label, 9])
    with pytest.raises(ValueError, match=rf"labels in 0..9, got {label} in the test split \(index 2; 1 such"):
        build(good, bad, Quantized(levels=17), 10)


def test_labels_and_num_classes_belong_together() -> None:
    plain, labelled = levels_split(), levels_split(labels=[0, 0, 1, 1])
    with pytest.raises(ValueError, match="labels in its training split and needs num_classes"):
        build(labelled, labelled, Quantized(levels=17), None)
    with pytest.raises(ValueError, match="its test split has no labels"):
        build(labelled, plain, Quantized(levels=17), 2)


def test_splits_must_agree_and_training_must_not_be_empty() -> None:
    empty, three, two = Split(x=torch.rand(0, 3)), Split(x=torch.rand(4, 3)), Split(x=torch.rand(4, 2))
    with pytest.raises(ValueError, match="no training examples"):
        build(empty, three, CONTINUOUS, None)
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(2,\)"):
        build(three, two, CONTINUOUS, None)
    conditioned = Split(x=three.x, condition=torch.rand(4, 5))
    with pytest.raises(ValueError, match="conditions of one shape, got None and "):
        build(three, conditioned, CONTINUOUS, None)
    assert len(build(three, empty, CONTINUOUS, None).test) == 0


def test_rows_that_are_not_finite_are_counted() -> None:
    x = torch.rand(6, 3)
    x[2, 1], x[4, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"training split: 2 of 6 rows hold NaN or infinity \(first at index 2\)"):
        build(Split(x=x), Split(x=torch.rand(2, 3)), CONTINUOUS, None)


def test_a_split_checks_its_shapes() -> None:
    with pytest.raises(ValueError, match=r"at least two axes, got \(4,\)"):
        Split(x=torch.rand(4))
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got \(3,\)"):
        Split(x=torch.rand(4, 2), label=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="one condition per example: 4, got 3"):
        Split(x=torch.rand(4, 2), condition=torch.rand(3, 1))
