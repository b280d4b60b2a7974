"""The loss of a run, step by step."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from scoresde.pictures.canvas import DATA, GREY, Canvas, Panel, Values, fence, pale, ticks

MOST_POINTS = 4000
WINDOW = 0.05  # share of the rows that the dark line is the mean of


def loss_curve(steps: Values, losses: Values, title: str = "loss") -> Image.Image:
    """Loss against step: every row pale, their running mean dark; a logarithmic axis where it says more.

    Args:
        steps, losses: (N,); rows with a loss that is not finite are left out.
        title: Above the picture.
    """
    keep = np.isfinite(losses) & np.isfinite(steps)
    steps, losses = steps[keep], losses[keep]
    thin = max(1, len(steps) // MOST_POINTS)
    canvas = Canvas(720, 400)
    canvas.text(72, 10, title, size=14, room=630)
    if len(steps) == 0:
        return canvas.image()
    smooth = running_mean(losses, max(1, round(WINDOW * len(losses))))
    steps, losses, smooth = steps[::thin], losses[::thin], smooth[::thin]
    low, high = fence(losses) if len(losses) > 10 else (float(losses.min()), float(losses.max()))
    low, high = min(low, float(smooth.min())), max(high, float(smooth.max()))
    logarithmic = low > 0 and high / low > 5
    height = np.log10 if logarithmic else np.asarray
    span = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    pad = 0.05 * (span[1] - span[0]) or 0.5 * abs(span[0]) or 0.5
    across = (min(0.0, float(steps[0])), float(steps[-1]) or 1.0)
    panel = Panel(canvas, (72, 36, 632, 304), across, (span[0] - pad, span[1] + pad))
    safe = np.maximum(losses, low / 2) if logarithmic else losses
    canvas.line(panel.x(steps), panel.inside(height(safe)), pale(DATA, 0.55))
    canvas.line(panel.x(steps), panel.inside(height(smooth)), DATA, 2)
    panel.frame()
    panel.ticks_across(count=6)
    if logarithmic:
        for value, words in _powers(low, high):
            at = float(panel.y(math.log10(value)))
            canvas.line([68, 72], [at, at], GREY)
            canvas.text(66, at, words, size=10, anchor="rm")
    else:
        panel.ticks_up(count=5)
    canvas.text(388, 380, "step", anchor="mm")
    canvas.text(12, 188, "loss, log axis" if logarithmic else "loss", upright=True)
    canvas.text(704, 380, f"last: {smooth[-1]:.4g}", anchor="rm", fill=DATA)
    return canvas.image()


def running_mean(values: Values, window: int) -> Values:
    """The mean of each value and as many before it as there are in a window."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((sums[end] - sums[start]) / (end - start))


def _powers(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2, 5, 10, ... within a range, or round numbers if there are too few of these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first < 4 else (1,)
    values = [10.0**power * factor for power in range(first, last + 1) for factor in factors]
    marks = [(value, f"{value:g}") for value in values if low * 0.99 <= value <= high * 1.01]
    return marks if len(marks) > 2 else [mark for mark in ticks(low, high, 4) if mark[0] > 0]
