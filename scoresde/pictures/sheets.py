"""Images side by side, and slices through volumes, the data beside the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scoresde.pictures.canvas import DATA, GREY, SAMPLES, Canvas, Colour, limits
from scoresde.pictures.shown import Shown

Pixels = NDArray[np.uint8]  # (H, W, 3)

WIDTH = 560  # pixels of a block that small images are enlarged to
LARGE = 1024  # pixels of a block that large images are made smaller for
MOST_ROWS, MOST_IN_ROW = 20, 10  # of classes, and of images of a class
SLICES, VOLUMES = 96, 6  # pixels of a slice, and volumes
HEAD, CAPTION = 34, 14


def image_picture(shown: Shown) -> Canvas:
    """A grid, or a row for each class where samples have one."""
    span = _span(shown)
    samples = [tile(image, span) for image in shown.samples]
    data = None if shown.data is None else [tile(image, span) for image in shown.data]
    if shown.labels is not None:
        return _rows_of_classes(shown, samples, data)
    columns = math.ceil(math.sqrt(len(samples)))
    parts = [("samples" + (f": {shown.note}" if shown.note else ""), samples, SAMPLES, shown.captions)]
    if data is not None:
        most = columns * math.ceil(len(samples) / columns)
        parts.insert(0, ("data", data[:most], DATA, shown.data_captions))
    height, width = samples[0].shape[:2]
    size = _size(columns, width)
    step, down = math.ceil(width * size) + 2, math.ceil(height * size) + 2 + (CAPTION if shown.captions else 0)
    block = max(columns * step + 24, 150)
    canvas = Canvas(block * len(parts) + 12, HEAD + math.ceil(len(samples) / columns) * down + 12, scale=1)
    for place, (words, tiles, colour, captions) in enumerate(parts):
        left = place * block + 12
        canvas.text(left, 10, words, size=15, fill=colour, room=block - 12)
        for index, pixels in enumerate(tiles):
            x, y = left + index % columns * step, HEAD + index // columns * down
            canvas.paste(resized(pixels, size), x, y)
            if captions is not None:
                canvas.text(x + step / 2, y + down - CAPTION, captions[index], size=10, anchor="ma", room=step)
    return canvas


def _rows_of_classes(shown: Shown, samples: list[Pixels], data: list[Pixels] | None) -> Canvas:
    assert shown.labels is not None
    present = [int(label) for label in np.unique(shown.labels)][:MOST_ROWS]
    sides: list[tuple[str, list[Pixels], Any, Colour]] = [("samples", samples, shown.labels, SAMPLES)]
    if data is not None and shown.data_labels is not None:
        sides.insert(0, ("data", data, shown.data_labels, DATA))
    columns = min(max(int((shown.labels == label).sum()) for label in present), MOST_IN_ROW)
    height, width = samples[0].shape[:2]
    size = _size(columns, width)
    step, down, names = math.ceil(width * size) + 2, max(math.ceil(height * size) + 2, 16), 84
    block = max(columns * step + 24, 100)
    canvas = Canvas(names + block * len(sides) + 12, HEAD + len(present) * down + 12, scale=1)
    for row, label in enumerate(present):
        canvas.text(
            names - 8, HEAD + (row + 0.5) * down, shown.class_name(label), size=14, anchor="rm", room=names - 12
        )
    for place, (words, tiles, labels, colour) in enumerate(sides):
        left = names + place * block
        canvas.text(left, 10, words, size=15, fill=colour, room=block)
        for row, label in enumerate(present):
            for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
                canvas.paste(resized(tiles[index], size), left + column * step, HEAD + row * down)
    return canvas


def volume_picture(shown: Shown) -> Canvas:
    """A row for each volume: its middle slices in three directions."""
    span = _span(shown)
    channels = min(shown.samples.shape[1], 4)
    count = max(1, min(VOLUMES, 8 // channels))
    parts: list[tuple[str, NDArray[Any], Colour]] = [
        (f"samples: {shown.note or 'middle slices'}", shown.samples, SAMPLES)
    ]
    if shown.data is not None:
        parts.insert(0, ("data: middle slices", shown.data, DATA))
    size = SLICES / max(shown.samples.shape[2:])
    size = max(1, math.floor(size)) if size > 1 else size
    step = math.ceil(max(shown.samples.shape[2:]) * size) + 4
    names = 76 if channels > 1 else 12
    down = math.ceil(max(shown.samples.shape[2:4]) * size) + 4
    block, rows = names + 3 * step + 12, min(count, max(len(part) for _, part, _ in parts)) * channels
    canvas = Canvas(max(block, 260) * len(parts), HEAD + 20 + rows * down + 8, scale=1)
    for place, (words, volumes, colour) in enumerate(parts):
        left = place * max(block, 260) + names
        canvas.text(left, 8, words, size=15, fill=colour, room=block)
        for column, direction in enumerate(("across depth", "across height", "across width")):
            canvas.text(left + column * step, HEAD, direction, size=11, fill=GREY, room=step - 2)
        for row in range(min(count, len(volumes)) * channels):
            volume = volumes[row // channels][row % channels]
            top = HEAD + 20 + row * down
            if channels > 1:
                canvas.text(left - 6, top + down / 2, f"channel {row % channels}", size=11, anchor="rm", room=names)
            for column, part in enumerate(middle_slices(volume)):
                canvas.paste(resized(tile(part[None], span), size), left + column * step, top)
    return canvas


def middle_slices(volume: NDArray[Any]) -> Sequence[NDArray[Any]]:
    """Of (D, H, W): one at right angles to each axis."""
    depth, height, width = (length // 2 for length in volume.shape)
    return volume[depth], volume[:, height], volume[:, :, width]


def tile(image: NDArray[Any], span: tuple[float, float] | None) -> Pixels:
    """One image (C, H, W) in colours: grey, red-green-blue, or each channel in grey beside the next.

    Args:
        image: uint8, or other values.
        span: Those that are black and white; None: 0 and 255.
    """
    low, high = (0.0, 255.0) if span is None else span
    scaled = (np.nan_to_num(np.asarray(image, float), nan=low) - low) * (255 / (high - low))
    levels = np.clip(scaled.round(), 0, 255).astype(np.uint8)
    if len(levels) not in (1, 3):
        levels = np.concatenate([*levels[:4]], axis=1)[None]
    return np.ascontiguousarray(np.broadcast_to(levels.transpose(1, 2, 0), (*levels.shape[1:], 3)))


def resized(pixels: Pixels, size: float) -> Pixels:
    """Enlarged by a whole factor as it is, or made smaller smoothly."""
    if size == 1:
        return pixels
    height, width = (max(1, round(length * size)) for length in pixels.shape[:2])
    how = Image.Resampling.NEAREST if size > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _size(columns: int, width: int) -> float:
    """The factor by which images of a grid are enlarged."""
    whole = WIDTH // (columns * (width + 2))
    return max(1, whole) if columns * width <= LARGE else LARGE / (columns * width)


def _span(shown: Shown) -> tuple[float, float] | None:
    """The values that are drawn black and white; None: those of bytes."""
    if shown.samples.dtype == np.uint8:
        return None
    return limits(*(np.asarray(part, float) for part in (shown.data, shown.ranged) if part is not None))
