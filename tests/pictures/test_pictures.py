"""Pictures show what they are of: data beside samples, in their own places and colours, whatever one value does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scoresde.pictures import Shown, loss_curve, picture
from scoresde.pictures.canvas import DATA, SAMPLES, limits, ticks
from scoresde.pictures.loss_curve import running_mean
from scoresde.pictures.sheets import HEAD

RNG = np.random.default_rng(0)


def pixels(shown: Shown) -> NDArray[np.int64]:
    return np.asarray(picture(shown)).astype(np.int64)


def tinted(part: NDArray[np.int64], colour: tuple[int, int, int]) -> int:
    """Pixels of a colour, pale or not: further from white in the direction of the colour than of others."""
    red, blue = part[..., 0], part[..., 2]
    return int(((blue - red) * np.sign(colour[2] - colour[0]) > 25).sum())


def halves(part: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    middle = part.shape[1] // 2
    return part[:, :middle], part[:, middle:]


@pytest.mark.parametrize("count", [25, 300, 5000])
def test_a_far_value_does_not_squash_an_axis(count: int) -> None:
    values = RNG.normal(size=count)
    low, high = limits(values)
    assert low <= values.min() and high >= values.max()  # nothing ordinary is left out
    far = np.append(values, [1e6, np.nan])
    assert limits(far) == pytest.approx((low, high), rel=0.1)


def test_samples_widen_an_axis_but_not_beyond_three_times() -> None:
    data = np.linspace(0, 1, 100)
    assert limits(data, np.array([1.5]))[1] == pytest.approx(1.5, abs=0.1)
    low, high = limits(data, np.array([-1e9, 1e9]))
    assert low > -1.5 and high < 2.5


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [np.nan], [0] * 99 + [5.0], [1e-30, 2e-30]], ids=str)
def test_every_axis_has_a_width(values: list[float]) -> None:
    low, high = limits(np.array(values, float))
    assert np.isfinite([low, high]).all() and low < high
    assert 1 <= len(ticks(low, high)) <= 12


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-3.1, 3.2, ["-2.5", "0", "2.5"]),
        (0.0, 1.1e8, ["0", "5e7", "1e8"]),
        (-1e-6, 7e-6, ["0", "5e-6"]),
        (0, 2000, ["0", "1000", "2000"]),
        (99.2, 110.4, ["100", "105", "110"]),
    ],
)
def test_numbers_at_axes_are_round_and_short(low: float, high: float, words: list[str]) -> None:
    assert [word for _, word in ticks(low, high)] == words


@pytest.mark.parametrize("columns", [1, 2, 5, 12])
def test_tables_have_the_data_on_the_left_and_the_samples_on_the_right(columns: int) -> None:
    data, samples = RNG.normal(size=(300, columns)), RNG.normal(size=(64, columns))
    found = pixels(Shown(kind="table", data=data, samples=samples))
    if columns == 1:
        assert tinted(found, DATA) > 1000 and tinted(found, SAMPLES) > 500
        return
    height = 34 + min(columns, 8) * {2: 258, 5: 132}.get(columns, 98)
    left, right = halves(found[:height])
    assert tinted(left, SAMPLES) == 0 < tinted(right, SAMPLES) and tinted(left, DATA) > 2000
    alone = pixels(Shown(kind="table", samples=samples))
    assert alone.shape[1] * 2 == found.shape[1] and tinted(alone, DATA) == 0


def test_the_data_s_panel_is_of_the_data() -> None:
    """Data that rise and samples that fall."""
    ends = np.linspace(-1, 1, 400)
    rising, falling = np.stack([ends, ends], 1), np.stack([ends, -ends], 1)
    found = pixels(Shown(kind="table", data=rising, samples=falling))
    left, right = (half[-302:-60, 68:310] for half in halves(found))
    dark = [np.argwhere(half.min(-1) < 200) for half in (left, right)]
    slopes = [np.corrcoef(-points[:, 0], points[:, 1])[0, 1] for points in dark]
    assert slopes[0] > 0.9 and slopes[1] < -0.9


def test_an_outlier_leaves_the_picture_of_the_others_as_it_is() -> None:
    data, samples = RNG.normal(size=(500, 3)), RNG.normal(size=(200, 3))
    without = tinted(halves(pixels(Shown(kind="table", data=data, samples=samples)))[0], DATA)
    data[7] = 1e7
    assert tinted(halves(pixels(Shown(kind="table", data=data, samples=samples)))[0], DATA) > 0.9 * without


def test_names_and_categories_are_written() -> None:
    plain: dict[str, Any] = {
        "kind": "table", "data": RNG.integers(0, 3, (200, 3)).astype(float),
        "samples": RNG.integers(0, 3, (50, 3)).astype(float),
    }  # fmt: skip
    found = [
        pixels(Shown(**plain, **more))
        for more in ({}, {"names": ["a", "b", "c"]}, {"categories": {1: ["red", "green", "blue"]}})
    ]
    assert (found[0] != found[1]).any() and (found[0] != found[2]).any()


def test_series_have_a_row_for_each_channel_and_bands() -> None:
    def waves(count: int) -> NDArray[np.float64]:
        return np.sin(np.linspace(0, 6, 40) + RNG.normal(size=(count, 1, 1))) * np.array([[[1.0], [50.0]]])

    data, samples = waves(200), waves(50)
    one, two = (pixels(Shown(kind="series", data=data[:, :c], samples=samples[:, :c])) for c in (1, 2))
    assert two.shape[0] - one.shape[0] == 198
    left, right = halves(two[34:])
    assert tinted(left, SAMPLES) == 0 < tinted(right, SAMPLES)
    assert tinted(left, DATA) > 20_000  # bands, and not curves alone
    data[3, 0, 5] = 1e8
    assert tinted(halves(pixels(Shown(kind="series", data=data, samples=samples))[34:])[0], DATA) > 0.9 * tinted(
        left, DATA
    )


@pytest.mark.parametrize("kind", ["table", "series", "image", "volume"])
def test_gaps_and_single_examples_are_drawn(kind: str) -> None:
    shape = {"table": (3,), "series": (2, 7), "image": (1, 5, 4), "volume": (1, 3, 4, 5)}[kind]
    samples = RNG.normal(size=(1, *shape))
    data = RNG.normal(size=(2, *shape))
    data[0, 0] = np.nan
    assert pixels(Shown(kind=kind, data=data, samples=samples)).std() > 0


def test_images_of_a_class_are_in_its_row() -> None:
    def images(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.broadcast_to((20 * labels + 30).astype(np.uint8)[:, None, None, None], (len(labels), 1, 8, 8)).copy()

    labels, data_labels = np.arange(20) % 5, np.arange(50) % 10
    shown = Shown(
        kind="image", samples=images(labels), labels=labels, data=images(data_labels), data_labels=data_labels,
        classes=["zero", "one", "two", "three", "four"],
    )  # fmt: skip
    found = pixels(shown)
    size = 560 // (4 * 10)
    step = 8 * size + 2
    for row in range(5):
        for left in (84, 84 + 4 * step + 24):  # the data's block, the samples'
            for column in range(4):
                middle = found[HEAD + row * step + 4 * size, left + column * step + 4 * size]
                assert middle.tolist() == 3 * [20 * row + 30]
    assert found.shape[0] == HEAD + 5 * step + 12


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_are_shown_pixel_by_pixel(channels: int) -> None:
    samples = RNG.integers(0, 256, (9, channels, 6, 5)).astype(np.uint8)
    found = pixels(Shown(kind="image", samples=samples))
    wide = 5 if channels != 2 else 10  # two channels are beside each other
    size = 560 // (3 * (wide + 2))
    third = found[HEAD : HEAD + 6 * size : size, 12 + 2 * (wide * size + 2) :: size][:, :wide]
    expected = samples[2].transpose(1, 2, 0) if channels != 2 else np.concatenate([*samples[2]], 1)[..., None]
    np.testing.assert_array_equal(third, np.broadcast_to(expected, (6, wide, 3)))


def test_large_images_are_made_smaller() -> None:
    samples = np.full((16, 3, 400, 300), 77, np.uint8)
    found = picture(Shown(kind="image", samples=samples, data=samples))
    assert found.width < 2200 and np.asarray(found)[HEAD + 10, 20].tolist() == [77, 77, 77]


def test_volumes_are_shown_by_their_middle_slices() -> None:
    volumes = np.zeros((2, 1, 4, 6, 8), np.uint8)
    volumes[:, :, 2], volumes[:, :, :, 3], volumes[:, :, :, :, 4] = 50, 100, 150
    found = pixels(Shown(kind="volume", samples=volumes))
    step = 8 * 12 + 4
    corners = [found[HEAD + 22, 12 + place * step + 2].tolist() for place in range(3)]
    assert corners == [3 * [50], 3 * [100], 3 * [150]]


def test_a_picture_is_drawn_from_a_part_of_large_data() -> None:
    data = np.arange(100_000.0)[:, None]
    shown = Shown(kind="table", data=data, samples=data).limited()
    assert shown.data is not None and len(shown.data) == len(shown.samples) == 4000
    assert shown.data.mean() == pytest.approx(data.mean(), rel=0.01)  # from all over them


def test_the_loss_curve_falls_where_the_loss_falls() -> None:
    steps = np.arange(10.0, 1010, 10)
    for losses in (10 / steps, 2 - steps / 500, np.where(steps == 500, np.nan, 10 / steps)):
        found = np.asarray(loss_curve(steps, losses)).astype(int)[37:339, 73:703]
        dark = (np.abs(found - np.array(DATA)).sum(-1) < 90).astype(float)
        heights = [np.argwhere(part).mean(0)[0] for part in np.array_split(dark, 5, axis=1)]
        assert all(np.diff(heights) > 5), heights
    assert isinstance(loss_curve(np.array([]), np.array([])), Image.Image)
    assert isinstance(loss_curve(np.array([1.0]), np.array([-1.0])), Image.Image)


def test_running_means() -> None:
    np.testing.assert_allclose(running_mean(np.array([1.0, 2, 3, 4]), 2), [1, 1.5, 2.5, 3.5])
