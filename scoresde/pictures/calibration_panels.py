"""Calibration of posteriors in three panels: ranks, coverage of central intervals, and TARP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from scoresde.pictures.canvas import DATA, GREY, INK, PALE, SAMPLES, Canvas, Colour, Panel, pale

SIDE, EDGE, TOP = 300, 56, 62
COLOURS: tuple[Colour, ...] = (
    DATA, SAMPLES, (44, 130, 80), (140, 80, 160), (170, 140, 30), (60, 150, 170), (190, 70, 110), (110, 110, 110),
)  # fmt: skip
Band = tuple[Any, Any]  # low and high, arrays


def calibration_picture(
    *, counts: Any, counts_band: Band, levels: Any, coverage: Any, coverage_band: Band, tarp: Any, tarp_band: Band,
    names: Sequence[str] | None = None, notes: Sequence[str] = ("", "", ""), title: str = "",
) -> Image.Image:  # fmt: skip
    """Ranks, coverage and TARP of exact posteriors stay inside the grey bands.

    Args:
        counts: Histograms of ranks, (bins, d).
        counts_band: Low and high counts of exact posteriors, (bins,).
        levels: Credibility, (L,).
        coverage: Of central intervals, (L, d).
        coverage_band, tarp_band: Low and high of exact posteriors, (L,).
        tarp: Expected coverage of balls around random references, (L,).
        names: Of the d entries; None: their numbers.
        notes: Below each panel.
        title: Above the picture.
    """
    counts, levels, coverage, tarp = (np.asarray(value, float) for value in (counts, levels, coverage, tarp))
    canvas = Canvas(3 * (SIDE + EDGE) + 16, TOP + SIDE + 66)
    canvas.text(EDGE, 8, title, size=14, room=3 * (SIDE + EDGE) - EDGE)
    boxes = [(EDGE + k * (SIDE + EDGE), TOP, SIDE, SIDE) for k in range(3)]
    _histogram(canvas, boxes[0], counts, counts_band)
    for box, curves, band in ((boxes[1], coverage, coverage_band), (boxes[2], tarp[:, None], tarp_band)):
        _curves(canvas, box, levels, curves, band)
    heads = ("ranks of the truth among the draws", "coverage of central intervals", "TARP: balls around random points")
    across = ("rank / draws", "credible level", "credible level")
    for (left, top, _, _), head, below, note in zip(boxes, heads, across, notes, strict=True):
        canvas.text(left, top - 24, head, size=12, room=SIDE)
        canvas.text(left + SIDE / 2, top + SIDE + 30, below, size=11, anchor="mm")
        canvas.text(left, top + SIDE + 44, note, size=10, fill=GREY, room=SIDE)
    if counts.shape[1] <= len(COLOURS):
        for k in range(counts.shape[1]):
            name = f"x{k}" if names is None else names[k]
            canvas.text(EDGE + SIDE - 8, TOP + 8 + 15 * k, name, size=11, anchor="ra", fill=_colour(k, counts.shape[1]))
    return canvas.image()


def _histogram(canvas: Canvas, box: tuple[int, int, int, int], counts: Any, band: Band) -> None:
    low, high = (np.asarray(end, float) for end in band)
    top = 1.15 * max(float(counts.max()), float(high.max()), 1.0)
    panel = Panel(canvas, box, (0, 1), (0, top))
    edges = np.repeat(panel.x(np.linspace(0, 1, len(counts) + 1)), 2)[1:-1]
    canvas.area(edges, panel.y(np.repeat(low, 2)), panel.y(np.repeat(high, 2)), PALE)
    for k in range(counts.shape[1]):
        canvas.line(edges, panel.inside(np.repeat(counts[:, k], 2)), _colour(k, counts.shape[1]), 1.5)
    _axes(panel)


def _curves(canvas: Canvas, box: tuple[int, int, int, int], levels: Any, curves: Any, band: Band) -> None:
    panel = Panel(canvas, box, (0, 1), (0, 1))
    ends = [np.concatenate([[0], np.asarray(end, float), [1]]) for end in band]
    at = np.concatenate([[0], levels, [1]])
    canvas.area(panel.x(at), panel.y(ends[0]), panel.y(ends[1]), PALE)
    canvas.line(panel.x([0, 1]), panel.y([0, 1]), INK, 0.7)
    for k in range(curves.shape[1]):
        values = np.concatenate([[0], curves[:, k], [1]])
        canvas.line(panel.x(at), panel.inside(values), _colour(k, curves.shape[1]), 1.5)
    _axes(panel)


def _axes(panel: Panel) -> None:
    panel.frame()
    panel.ticks_across(count=5)
    panel.ticks_up(count=5)


def _colour(k: int, count: int) -> Colour:
    """One for each of a few; one pale colour for many."""
    return COLOURS[k] if count <= len(COLOURS) else pale(DATA, 0.4)
