"""Series: some of them as curves, and bands that hold most of them, the data beside the samples."""

from __future__ import annotations

import warnings

import numpy as np

from scoresde.pictures.canvas import DATA, GREY, SAMPLES, Canvas, Colour, Panel, Values, limits, pale
from scoresde.pictures.shown import Shown

MOST_CHANNELS, CURVES = 6, 4
WIDTH, HEIGHT, EDGE = 520, 190, 72


def series_picture(shown: Shown, most: int = MOST_CHANNELS) -> Canvas:
    """A row for each channel."""
    samples = np.asarray(shown.samples, float)
    parts: list[tuple[str, Values, Colour]] = []
    if shown.data is not None:
        parts.append((f"data: {len(shown.data):,} examples", np.asarray(shown.data, float), DATA))
    parts.append((f"samples: {shown.note or f'{len(samples):,}'}", samples, SAMPLES))
    channels = min(samples.shape[1], most)
    below = f"{CURVES} curves of each; dark: median; bands: middle half and nine tenths"
    if samples.shape[1] > channels:
        below += f"; channels 0 to {channels - 1} of {samples.shape[1]}"
    if shown.data is not None:
        below += "; blue lines beside samples: the data's nine tenths"
    canvas = Canvas((EDGE + WIDTH) * len(parts) + 12, 34 + channels * (HEIGHT + 8) + 52)
    for channel in range(channels):
        before = [values[:, channel] for _, values, _ in parts[:-1]]
        span = limits(*before, np.asarray(shown.ranged, float)[:, channel])
        for place, (words, values, colour) in enumerate(parts):
            left, top = place * (EDGE + WIDTH) + EDGE, 34 + channel * (HEIGHT + 8)
            panel = Panel(canvas, (left, top, WIDTH, HEIGHT), (0, max(values.shape[2] - 1, 1)), span)
            _curves(panel, values[:, channel], colour, parts[0][1][:, channel] if place else None)
            panel.ticks_up()
            if channel == 0:
                canvas.text(left, 10, words, size=14, fill=colour, room=WIDTH)
            if samples.shape[1] > 1:
                canvas.text(left - EDGE + 8, top + HEIGHT / 2, f"channel {channel}", upright=True)
            if channel == channels - 1:
                panel.ticks_across(count=6)
    canvas.text(EDGE, 34 + channels * (HEIGHT + 8) + 24, below, size=11, fill=GREY)
    return canvas


def _curves(panel: Panel, values: Values, colour: Colour, data: Values | None) -> None:
    canvas, at = panel.canvas, panel.x(np.arange(values.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # places where there are only gaps
        bands = np.nanquantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        edges = None if data is None else np.nanquantile(data, [0.05, 0.95], axis=0)
    for low, high, share in ((bands[0], bands[4], 0.85), (bands[1], bands[3], 0.7)):
        canvas.area(at, panel.inside(low), panel.inside(high), pale(colour, share))
    for place, curve in enumerate(values[:CURVES]):
        canvas.line(at, panel.inside(curve), _shade(colour, place), 0.8)
    canvas.line(at, panel.inside(bands[2]), _shade(colour, -1), 2)
    for line in [] if edges is None else edges:
        canvas.line(at, panel.inside(line), DATA, 0.8)
    panel.frame()


def _shade(colour: Colour, place: int) -> Colour:
    """Of a curve, so that neighbours can be told apart; −1 is the darkest."""
    if place < 0:
        red, green, blue = (round(0.45 * value) for value in colour)
        return red, green, blue
    return pale(colour, (0.0, 0.25, 0.4, 0.12)[place % 4])
