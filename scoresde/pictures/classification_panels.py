"""A classifier in two panels: the confusion matrix, and how often it is right at each confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from scoresde.pictures.canvas import DATA, GREY, INK, SAMPLES, Canvas, Panel, pale

SIDE, EDGE, TOP = 320, 64, 62


def classification_picture(
    *, confusion: Any, confidence: Any, right: Any, counts: Any, names: Sequence[str] | None = None, title: str = ""
) -> Image.Image:
    """Whom a classifier confuses, and how often it is right when it says that it is.

    Args:
        confusion: Examples of class i that are taken for class j, (K, K).
        confidence, right: Mean confidence and share that is right in each bin of the confidence, (bins,).
        counts: Examples in each bin.
        names: Of the classes; None: their numbers.
        title: Above the picture.
    """
    confusion, confidence, right, counts = (
        np.asarray(value, float) for value in (confusion, confidence, right, counts)
    )
    canvas = Canvas(2 * (SIDE + EDGE) + 24, TOP + SIDE + 56)
    canvas.text(EDGE, 8, title, size=14, room=2 * SIDE + EDGE)
    names = [str(k) for k in range(len(confusion))] if names is None else names
    _matrix(canvas, confusion, names)
    _reliability(canvas, confidence, right, counts)
    return canvas.image()


def _matrix(canvas: Canvas, confusion: Any, names: Sequence[str]) -> None:
    classes = len(confusion)
    side, total = SIDE / classes, np.maximum(confusion.sum(1, keepdims=True), 1)
    canvas.text(EDGE, TOP - 24, "class (down) taken for (across), in examples", size=12, room=SIDE)
    for i in range(classes):
        for j in range(classes):
            x, y, share = EDGE + j * side, TOP + i * side, float(confusion[i, j] / total[i, 0])
            canvas.box(x, y, side, side, fill=pale(DATA if i == j else SAMPLES, 1 - 0.85 * share))
            if confusion[i, j] and side >= 14:
                fill = INK if share < 0.6 else (255, 255, 255)
                canvas.text(x + side / 2, y + side / 2, f"{confusion[i, j]:.0f}", size=10, anchor="mm", fill=fill)
        if side >= 10:
            canvas.text(EDGE - 6, TOP + (i + 0.5) * side, names[i], size=10, anchor="rm", room=EDGE - 10)
            canvas.text(EDGE + (i + 0.5) * side, TOP + SIDE + 6, names[i], size=10, anchor="ma", room=side)
    canvas.box(EDGE, TOP, SIDE, SIDE, outline=GREY)


def _reliability(canvas: Canvas, confidence: Any, right: Any, counts: Any) -> None:
    left = 2 * EDGE + SIDE
    panel = Panel(canvas, (left, TOP, SIDE, SIDE), (0, 1), (0, 1))
    canvas.text(left, TOP - 24, "share that is right at each confidence", size=12, room=SIDE)
    edges = np.linspace(0, 1, len(counts) + 1)
    for k in np.flatnonzero(counts > 0):
        x, y = float(panel.x(edges[k])), float(panel.y(right[k]))
        width = float(panel.x(edges[k + 1])) - x
        canvas.box(x + 1, min(y, TOP + SIDE - 1), width - 2, max(TOP + SIDE - y, 1), fill=pale(DATA, 0.6))
        canvas.text(x + width / 2, TOP + SIDE - 6, f"{counts[k]:.0f}", size=9, anchor="mb", fill=GREY)
    canvas.line(panel.x([0, 1]), panel.y([0, 1]), INK, 0.7)
    canvas.line(panel.x(confidence), panel.y(right), DATA, 1.5)
    panel.frame()
    panel.ticks_across(count=5)
    panel.ticks_up(count=5)
    canvas.text(left + SIDE / 2, TOP + SIDE + 34, "confidence; numbers: examples", size=11, anchor="mm")
