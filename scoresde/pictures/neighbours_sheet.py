"""Samples and the training examples next to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scoresde.pictures.canvas import DATA, GREY, SAMPLES, Canvas, Panel, Values, limits, pale
from scoresde.pictures.sheets import middle_slices, resized, tile

ROWS, COLUMNS, SIDE = 8, 6, 88  # samples, neighbours of each, and pixels of one
HEAD, LINE = 62, 16
PANEL = (420, 260)


def neighbours_picture(
    kind: str, samples: NDArray[Any], neighbours: NDArray[Any], distances: Values, compared: Values, name: str,
    bound: float,
) -> Image.Image:  # fmt: skip
    """The samples that lie nearest to a training example, each beside its neighbours, and how far all of them lie.

    Args:
        kind: Of the data.
        samples: (n, *), in the order of `distances`.
        neighbours: (rows · k, *): those of the first rows.
        distances: (n, k), least first in both directions.
        compared: Distances of the examples that samples are compared with.
        name: Of these examples.
        bound: The distance that hardly one of them falls below.
    """
    k = distances.shape[1]
    rows, columns = min(ROWS, len(samples), len(neighbours) // k), min(COLUMNS, k)
    pictured = kind in ("series", "image", "volume")
    left = 24 + (columns + 1) * (SIDE + 8) + 40 if pictured else 64
    height = max(HEAD + rows * (SIDE + LINE + 6), 400) if pictured else 400
    canvas = Canvas(left + PANEL[0] + 24, height)
    if pictured:
        canvas.text(16, 12, "nearest first; numbers: root mean square", size=12, fill=GREY, room=left - 20)
        canvas.text(16, 36, "sample", fill=SAMPLES, size=14)
        canvas.text(16 + SIDE + 8, 36, "training examples", fill=DATA, size=14)
    for row in range(rows if pictured else 0):
        group = neighbours[row * k : row * k + columns]
        for column, example in enumerate([samples[row], *group]):
            at = (16 + column * (SIDE + 8), HEAD + row * (SIDE + LINE + 6))
            _thumbnail(canvas, kind, example, [samples[row], *group], at, SAMPLES if column == 0 else DATA)
            if column:
                words = f"{distances[row, column - 1]:.3g}"
                canvas.text(at[0] + SIDE / 2, at[1] + SIDE + 2, words, size=11, anchor="ma", fill=GREY)
    _histogram(canvas, (left, HEAD, *PANEL), distances[:, 0], compared, name, bound)
    return canvas.image()


def _thumbnail(
    canvas: Canvas, kind: str, example: NDArray[Any], group: list[NDArray[Any]], at: tuple[float, float], colour: Any
) -> None:  # fmt: skip
    together = np.stack([np.asarray(one, float) for one in group])
    span = None if example.dtype == np.uint8 else limits(together)
    if kind == "series":
        box = (*at, SIDE, SIDE)
        panel = Panel(canvas, box, (0, max(example.shape[-1] - 1, 1)), limits(together))
        for channel in example[:3]:
            canvas.line(panel.x(np.arange(len(channel))), panel.inside(channel), colour)
        panel.frame()
        return
    image = example if kind == "image" else middle_slices(example[0])[0][None]
    pixels = tile(image, span)
    size = SIDE * canvas.scale / max(pixels.shape[:2])
    canvas.paste(resized(pixels, math.floor(size) if size > 1 else size), *at)


def _histogram(
    canvas: Canvas, box: tuple[float, float, float, float], found: Values, compared: Values, name: str, bound: float
) -> None:
    span = limits(compared, found)
    panel = Panel(canvas, box, (min(span[0], 0.0), span[1]), (0, 1))
    densities = [panel.bars(values, 30) for values in (compared, found)]
    panel.up = (0.0, 1.1 * max(float(density.max()) for density in densities) or 1.0)
    panel.steps(densities[0], fill=pale(DATA, 0.6), line=DATA)
    panel.steps(densities[1], line=SAMPLES)
    panel.frame()
    panel.ticks_across(count=5)
    x, y, width, height = box
    at = float(panel.x(bound))
    canvas.line([at, at], [y, y + height], GREY)
    canvas.text(x, y - 40, name, fill=DATA, size=13, room=width / 2)
    canvas.text(x + width / 2, y - 40, "samples", fill=SAMPLES, size=13)
    share = (compared < bound).mean()
    canvas.text(x, y - 18, f"grey line: {100 * share:.0f} % of {name} are nearer", size=11, fill=GREY, room=width)
    canvas.text(x + width / 2, y + height + 34, "distance to the next training example", anchor="mm", room=width)
