"""Tables: histograms of the columns and scatter plots of pairs of them, the data beside the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoresde.pictures.canvas import DATA, GREY, INK, SAMPLES, Canvas, Colour, Panel, Values, limits, pale
from scoresde.pictures.shown import Shown

MOST_COLUMNS = 8
EDGE, GAP = 64, 8  # pixels for the numbers at the axes, and between panels
Block = tuple[str, Values, Colour]


def table_picture(shown: Shown, most: int = MOST_COLUMNS, *, rest: bool = True) -> Canvas:
    """One column: a histogram. Two: a scatter plot. More: all pairs, and beyond the first eight the range of each."""
    count = shown.columns.shape[1]
    if count == 1:
        return _histogram(shown)
    return _pairs(shown, min(count, most), count if rest else min(count, most))


def blocks(shown: Shown) -> list[Block]:
    """What is drawn beside each other."""
    data = shown.data_columns
    before: list[Block] = [] if data is None else [(f"data: {len(data):,} examples", data, DATA)]
    note = shown.note or f"{len(shown.columns):,}"
    return [*before, (f"samples: {note}", shown.columns, SAMPLES)]


def _span(shown: Shown, column: int) -> tuple[float, float]:
    """The range of a column's axis, by the data if there are any."""
    if column in (shown.categories or {}):
        return -0.6, len((shown.categories or {})[column]) - 0.4
    ranged = np.asarray(shown.ranged, float).reshape(len(shown.ranged), -1)
    parts = [part[:, column] for part in (shown.data_columns, ranged) if part is not None]
    return limits(*parts)


def _histogram(shown: Shown) -> Canvas:
    canvas, found = Canvas(640, 400), blocks(shown)
    panel = Panel(canvas, (EDGE, 40, 640 - EDGE - 16, 400 - 40 - 52), _span(shown, 0), (0, 1))
    _columns_of(panel, shown, 0, found, overlaid=True)
    names = (shown.categories or {}).get(0)
    panel.ticks_across(names, 6)
    canvas.text(EDGE + 280, 394, shown.name(0), anchor="md", room=500)
    for place, (words, _, colour) in enumerate(found):
        canvas.text(EDGE + 280 * place, 14, words, size=14, fill=colour, room=280)
    return canvas


def _columns_of(panel: Panel, shown: Shown, column: int, found: list[Block], *, overlaid: bool = False) -> None:
    """The histogram of a column: the last block's as an area, those before it as lines."""
    categories = (shown.categories or {}).get(column)
    least = min(len(values) for _, values, _ in found)
    bins = 6 * len(categories) if categories else 40 if least > 500 else 20
    densities = [panel.bars(_jittered(values[:, column], categories, 0), bins) for _, values, _ in found]
    panel.up = (0.0, 1.08 * max(max(float(density.max()) for density in densities), 1e-300))
    filled = densities[0] if overlaid else densities[-1]
    panel.steps(filled, fill=pale(found[0 if overlaid else -1][2], 0.6))
    for density, (_, _, colour) in zip(densities, found, strict=True):
        panel.steps(density, line=colour)
    panel.frame()


def _pairs(shown: Shown, chosen: int, count: int) -> Canvas:
    found = blocks(shown)
    side = {2: 250, 3: 170, 4: 140, 5: 124, 6: 108, 7: 98}.get(chosen, 90)
    width = EDGE + chosen * (side + GAP) + 12
    top, extra = 34, 200 if count > chosen else 0
    height = top + chosen * (side + GAP) + 48
    canvas = Canvas(width * len(found), height + extra)
    spans = [_span(shown, column) for column in range(chosen)]
    for place, (words, values, colour) in enumerate(found):
        left = place * width + EDGE
        canvas.text(left, 10, words, size=14, fill=colour, room=width - EDGE)
        _block(canvas, shown, found[: place + 1], values, colour, spans, (left, top, side))
    if place := len(found) - 1:
        left, room = place * width + EDGE + side + GAP, (chosen - 1) * (side + GAP)
        canvas.text(left, top + 2, "blue line: the data", size=12, fill=DATA, room=room)
    if extra:
        _ranges(canvas, shown, (EDGE, height + 30, width * len(found) - EDGE - 16, extra - 74))
        words = f"all {count} columns, each in units of its own range: median and 5 % to 95 % of the samples (lines)"
        canvas.text(EDGE, height + 8, words + ("" if shown.data is None else " and of the data (area)"), size=12)
    return canvas


def _block(
    canvas: Canvas, shown: Shown, found: list[Block], values: Values, colour: Colour,
    spans: list[tuple[float, float]], place: tuple[int, int, int],
) -> None:  # fmt: skip
    left, top, side = place
    chosen, categories = len(spans), shown.categories or {}
    for row in range(chosen):
        for column in range(row + 1):
            box = (left + column * (side + GAP), top + row * (side + GAP), side, side)
            panel = Panel(canvas, box, spans[column], spans[row])
            if row == column:
                _columns_of(panel, shown, row, found)
            else:
                across, up = (_jittered(values[:, c], categories.get(c), c + 1) for c in (column, row))
                panel.dots(across, up, colour)
                panel.frame()
            if row == chosen - 1:
                panel.ticks_across(categories.get(column), 2)
                canvas.text(box[0] + side / 2, box[1] + side + 34, shown.name(column), anchor="mm", room=side)
            if column == 0 and row > 0:
                panel.ticks_up(categories.get(row), 3)
            if column == 0:
                canvas.text(left - EDGE + 8, box[1] + side / 2, shown.name(row), upright=True, room=side)


def _jittered(values: Values, categories: Any, seed: int) -> Values:
    """Categories beside each other rather than on top."""
    if categories is None:
        return values
    return values + 0.5 * (np.random.default_rng(seed).random(len(values)) - 0.5)


def _ranges(canvas: Canvas, shown: Shown, box: tuple[float, float, float, float]) -> None:
    """Quantiles of all columns, by number."""
    data = shown.columns if shown.data_columns is None else shown.data_columns
    low, middle, high = _quantiles(data)
    unit = np.where(high > low, (high - low) / 2, 1.0)
    panel = Panel(canvas, box, (-0.5, len(low) - 0.5), (-2.2, 2.2))
    place = np.arange(len(low))
    at = panel.x(place)
    if shown.data is not None:
        canvas.area(at, panel.inside((low - middle) / unit), panel.inside((high - middle) / unit), pale(DATA))
        canvas.line(at, panel.y(0 * place), DATA)
    for line in _quantiles(shown.columns):
        canvas.line(at, panel.inside((line - middle) / unit), SAMPLES)
    panel.frame()
    panel.ticks_across(count=8)
    canvas.text(box[0] + box[2] / 2, box[1] + box[3] + 34, "column", anchor="mm", fill=INK)
    canvas.line([box[0], box[0] + box[2]], [float(panel.y(0))] * 2, GREY, 0.5)


def _quantiles(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.nanquantile(values, [0.05, 0.5, 0.95], axis=0))
