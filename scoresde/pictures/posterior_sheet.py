"""Posteriors side by side: truth, observation, samples, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scoresde.pictures.canvas import DATA, GREY, INK, SAMPLES, Canvas, Colour, Panel, limits, pale
from scoresde.pictures.sheets import middle_slices, tile

SIDE, HEAD, GAP = 88, 30, 4
SHOWN = 6  # samples
UNSEEN: Colour = (150, 170, 200)  # what was not observed
PANEL = (560.0, 190.0)
LINES = 24  # samples of a series


class Seen(NamedTuple):
    """J observations with K samples each.

    Attributes:
        samples: (J, K, C, *), or (J, K, C) of rows of a table.
        truth: (J, C, *), NaN where it is not known; None: it is not.
        observation: (J, C', *), of a size of its own; None: it cannot be shown.
        hidden: True where nothing was observed, (J, C, *); None: the observation is no part of an event.
    """

    samples: NDArray[Any]
    truth: NDArray[Any] | None
    observation: NDArray[Any] | None
    hidden: NDArray[Any] | None


def image_sheet(seen: Seen, span: tuple[float, float] | None) -> Image.Image:
    """A row of images, or of middle slices of volumes, for each observation.

    Args:
        seen: What is shown.
        span: The values that are black and white; None: found from the samples.
    """
    samples = seen.samples
    span = span or limits(samples if seen.truth is None else seen.truth, samples)
    mean, std = samples.mean(1), samples.std(1)
    top = float(np.nanmax(std)) or 1.0
    heads: list[tuple[str, Colour]] = [("truth", DATA)] if seen.truth is not None else []
    heads += [("observation", DATA)] if seen.observation is not None else []
    shown = min(SHOWN, samples.shape[1])
    heads += [("samples" if k == 0 else "", SAMPLES) for k in range(shown)]
    heads += [("mean", INK), (f"std, to {top:.3g}", INK)]
    grids = [_row(seen, j, span, mean[j], std[j], top, shown) for j in range(len(samples))]
    step, down = SIDE + GAP, max(pixels.shape[0] for row in grids for pixels in row) + GAP
    canvas = Canvas(len(heads) * step + 2 * GAP + 8, HEAD + len(grids) * down + GAP, scale=1)
    for column, (words, colour) in enumerate(heads):
        room = SIDE if words != "samples" else shown * step
        canvas.text(GAP + column * step, 10, words, size=13, fill=colour, room=room)
        for row, grid in enumerate(grids):
            canvas.paste(grid[column], GAP + column * step, HEAD + row * down)
    return canvas.image()


def _row(
    seen: Seen, j: int, span: tuple[float, float], mean: NDArray[Any], std: NDArray[Any], top: float, shown: int
) -> list[NDArray[np.uint8]]:  # fmt: skip
    tiles = []
    if seen.truth is not None:
        tiles.append(_thumbnail(seen.truth[j], span))
    if seen.observation is not None:
        hidden = None if seen.hidden is None else seen.hidden[j]
        tiles.append(_thumbnail(seen.observation[j], span, hidden))
    tiles += [_thumbnail(sample, span) for sample in seen.samples[j, :shown]]
    return [*tiles, _thumbnail(mean, span), _thumbnail(std, (0.0, top))]


def _thumbnail(
    image: NDArray[Any], span: tuple[float, float], hidden: NDArray[Any] | None = None
) -> NDArray[np.uint8]:  # fmt: skip
    """An image (C, H, W), or the middle slice of a volume, SIDE pixels wide; what is hidden in a colour of its own."""
    if image.ndim > 3:
        image = middle_slices(image[0])[0][None]
        hidden = None if hidden is None else middle_slices(hidden[0])[0][None]
    pixels = tile(image, span)
    if hidden is not None and len(image) in (1, 3):
        pixels = np.where(np.all(hidden, axis=0, keepdims=True).transpose(1, 2, 0), np.array(UNSEEN, np.uint8), pixels)
    height, width = pixels.shape[:2]
    size = SIDE / max(height, width)
    sizes = (max(1, round(width * size)), max(1, round(height * size)))
    how = Image.Resampling.NEAREST if size >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(sizes, how))


def curves_sheet(seen: Seen, names: Sequence[str] | None = None) -> Image.Image:
    """A panel for each observation: bands of 90 % and 50 % of the samples, their mean, the truth, what was observed.

    Of series the first channel, over time; of a table the columns side by side, as dots with bars.
    """
    table = seen.samples.ndim == 3
    samples = seen.samples if table else seen.samples[:, :, 0]
    truth = None if seen.truth is None else seen.truth if table else seen.truth[:, 0]
    hidden = None if seen.hidden is None else seen.hidden if table else seen.hidden[:, 0]
    observation = seen.observation if seen.observation is None or table else seen.observation[:, 0]
    rows = math.ceil(len(samples) / 2) if len(samples) > 1 else 1
    columns = 2 if len(samples) > 1 else 1
    canvas = Canvas(columns * (PANEL[0] + 70) + 10, HEAD + 8 + rows * (PANEL[1] + 46))
    x = 60.0
    for words, colour in (("truth", DATA), ("observed", INK), ("samples, 50 and 90 %", SAMPLES)):
        if words != "truth" or truth is not None:
            canvas.text(x, 10, words, size=13, fill=colour)
            x += 90
    for j, drawn in enumerate(samples):
        box = (60.0 + j % 2 * (PANEL[0] + 70), HEAD + 8.0 + j // 2 * (PANEL[1] + 46), *PANEL)
        length = drawn.shape[1]
        low, high = limits(drawn, *([] if truth is None else [truth[j]]))
        panel = Panel(canvas, box, (-0.5, length - 0.5) if table else (0, max(length - 1, 1)), (low, high))
        _bars(panel, drawn) if table else _bands(panel, drawn)
        _known(panel, None if truth is None else truth[j], observation, None if hidden is None else hidden[j], j, table)
        panel.frame()
        panel.ticks_up()
        few = names is not None and len(names) <= 12
        panel.ticks_across(names if few else None, count=5)
    return canvas.image()


def _bands(panel: Panel, drawn: NDArray[Any]) -> None:
    at = panel.x(np.arange(drawn.shape[1]))
    for share, shade in ((0.9, 0.8), (0.5, 0.55)):
        low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2], axis=0)
        panel.canvas.area(at, panel.inside(low), panel.inside(high), pale(SAMPLES, shade))
    panel.canvas.line(at, panel.inside(drawn.mean(0)), SAMPLES, 1.5)


def _bars(panel: Panel, drawn: NDArray[Any]) -> None:
    for column in range(drawn.shape[1]):
        at = float(panel.x(column))
        for share, width in ((0.9, 2.0), (0.5, 6.0)):
            ends = np.quantile(drawn[:, column], [(1 - share) / 2, (1 + share) / 2])
            panel.canvas.line([at, at], panel.inside(ends), pale(SAMPLES, 0.3), width)


def _known(
    panel: Panel, truth: NDArray[Any] | None, observation: NDArray[Any] | None, hidden: NDArray[Any] | None, j: int,
    table: bool,
) -> None:  # fmt: skip
    """The truth as a line, or as dots of a table, and what was observed as dots."""
    if truth is not None:
        places = np.arange(len(truth))
        if table:
            _dots(panel, places + 0.15, truth, DATA)
        else:
            panel.canvas.line(panel.x(places), panel.inside(truth), DATA, 1.5)
    if observation is None:
        return
    values = observation[j]
    at = np.arange(len(values)) if table else np.linspace(*panel.across, len(values))
    if hidden is not None:
        at, values = at[~hidden], values[~hidden]
    _dots(panel, at, values, INK)


def _dots(panel: Panel, places: NDArray[Any], values: NDArray[Any], colour: Colour) -> None:
    for at, value in zip(panel.x(places), panel.inside(values), strict=True):
        if math.isfinite(value):
            panel.canvas.box(at - 2.5, value - 2.5, 5, 5, fill=colour, outline=GREY)
