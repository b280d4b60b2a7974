"""Drawing with Pillow: text, lines, dots and axes that one far value does not squash."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Values = NDArray[np.floating[Any]]
Colour = tuple[int, int, int]

DATA, SAMPLES = (31, 95, 168), (194, 87, 26)
INK, GREY, PALE = (35, 35, 35), (125, 125, 125), (225, 225, 225)
ENOUGH = 20_000  # values by which a range is found
FENCE = 3.0  # ranges between the outer tenths by which a value may lie beyond them


class Canvas:
    """A picture in the making, in pixels; drawn larger and made smaller at the end, which smooths lines.

    Args:
        width, height: In pixels.
        scale: How much larger it is drawn; 1 for pictures of pixels.
    """

    def __init__(self, width: float, height: float, scale: int = 2) -> None:
        self.scale = scale
        self._image = Image.new("RGB", (math.ceil(width) * scale, math.ceil(height) * scale), (255, 255, 255))
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, x: float, y: float, words: str, *, size: float = 12, anchor: str = "la", fill: Colour = INK,
        upright: bool = False, room: float | None = None,
    ) -> None:  # fmt: skip
        """Words at a point, cut to `room` pixels; `upright`: from below to above."""
        font = _font(size * self.scale)
        words = fitted(words, None if room is None else room * self.scale, font)
        if not upright:
            self._draw.text((x * self.scale, y * self.scale), words, font=font, anchor=_anchor(font, anchor), fill=fill)
            return
        *_, right, bottom = self._draw.textbbox((0, 0), words, font=font)
        turned = Image.new("RGB", (int(right) + 2, int(bottom) + 2), (255, 255, 255))
        ImageDraw.Draw(turned).text((0, 0), words, font=font, fill=fill)
        turned = turned.rotate(90, expand=True)
        self._image.paste(turned, (int(x * self.scale - turned.width / 2), int(y * self.scale - turned.height / 2)))

    def line(self, x: Any, y: Any, fill: Colour, width: float = 1.0) -> None:
        """Through points, broken where one is not finite."""
        points = np.column_stack([np.asarray(x, float), np.asarray(y, float)]) * self.scale
        points = np.clip(points, -1e6, 1e6, where=np.isfinite(points), out=points)
        gaps = np.flatnonzero(~np.isfinite(points).all(1))
        for part in np.split(points, gaps):
            part = part[np.isfinite(part).all(1)]
            if len(part) > 1:
                thick = max(1, round(width * self.scale))
                self._draw.line([*map(tuple, part.tolist())], fill=fill, width=thick, joint="curve")

    def area(self, x: Any, low: Any, high: Any, fill: Colour) -> None:
        """Between two lines."""
        upper, lower = np.column_stack([x, high]), np.column_stack([x, low])[::-1]
        points = np.concatenate([upper, lower]) * self.scale
        points = points[np.isfinite(points).all(1)]
        if len(points) > 2:
            self._draw.polygon([*map(tuple, points.tolist())], fill=fill)

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: Colour | None = None,
        outline: Colour | None = None,
    ) -> None:  # fmt: skip
        left, top = x * self.scale, y * self.scale
        right, bottom = (x + width) * self.scale - 1, (y + height) * self.scale - 1
        self._draw.rectangle((left, top, max(left, right), max(top, bottom)), fill=fill, outline=outline)

    def paste(self, pixels: NDArray[np.uint8], x: float, y: float) -> None:
        """An array (H, W, 3) of the canvas's own, larger pixels."""
        self._image.paste(Image.fromarray(pixels), (round(x * self.scale), round(y * self.scale)))

    def image(self) -> Image.Image:
        """The picture in its final size."""
        return self._image if self.scale == 1 else self._image.reduce(self.scale)


class Panel:
    """Axes in a canvas.

    Args:
        canvas: Where.
        box: (x, y, width, height) in pixels.
        across, up: Ranges of the two axes.
    """

    def __init__(
        self, canvas: Canvas, box: tuple[float, float, float, float], across: tuple[float, float],
        up: tuple[float, float],
    ) -> None:  # fmt: skip
        self.canvas, self.box, self.across, self.up = canvas, box, across, up

    def x(self, values: Any) -> Any:
        left, _, width, _ = self.box
        return left + width * (np.asarray(values, float) - self.across[0]) / (self.across[1] - self.across[0])

    def y(self, values: Any) -> Any:
        _, top, _, height = self.box
        return top + height * (self.up[1] - np.asarray(values, float)) / (self.up[1] - self.up[0])

    def inside(self, values: Any) -> Any:
        """Heights in pixels, those beyond the panel at its edge."""
        _, top, _, height = self.box
        return np.clip(self.y(values), top, top + height)

    def frame(self) -> None:
        self.canvas.box(*self.box, outline=GREY)

    def ticks_across(self, names: Sequence[str] | None = None, count: int = 3) -> None:
        _, top, width, height = self.box
        marks = _marks(self.across, names, count)
        for value, words in marks:
            at = float(self.x(value))
            self.canvas.line([at, at], [top + height, top + height + 4], GREY)
            self.canvas.text(at, top + height + 6, words, size=10, anchor="ma", room=width / max(1, len(marks)) * 1.1)

    def ticks_up(self, names: Sequence[str] | None = None, count: int = 3) -> None:
        left, _, _, _ = self.box
        for value, words in _marks(self.up, names, count):
            at = float(self.y(value))
            self.canvas.line([left - 4, left], [at, at], GREY)
            self.canvas.text(left - 6, at, words, size=10, anchor="rm", room=46)

    def dots(self, x: Values, y: Values, fill: Colour) -> None:
        """Points, darker where there are more of them."""
        canvas, (left, top, width, height) = self.canvas, self.box
        columns, rows = round(width * canvas.scale), round(height * canvas.scale)
        column, row = (self.x(x) - left) * canvas.scale, (self.y(y) - top) * canvas.scale
        seen = np.isfinite(column) & np.isfinite(row)
        seen &= (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        cells = row[seen].astype(int) * columns + column[seen].astype(int)
        counts = np.bincount(cells, minlength=rows * columns).reshape(rows, columns).astype(float)
        radius = 3 if len(x) <= 200 else 2 if len(x) <= 5000 else 1
        strength = min(0.85, 10 / math.sqrt(max(len(x), 1)))
        cover = 1 - (1 - strength) ** _spread_dots(counts, radius)
        pixels = 255 + cover[..., None] * (np.asarray(fill, float) - 255)
        canvas.paste(pixels.round().astype(np.uint8), left, top)

    def bars(self, values: Values, bins: int) -> Values:
        """The density of values over the bins of the horizontal axis."""
        finite = values[np.isfinite(values)]
        counts, _ = np.histogram(finite, bins=bins, range=self.across)
        return counts / max(len(finite), 1) * bins / (self.across[1] - self.across[0])

    def steps(self, density: Values, *, fill: Colour | None = None, line: Colour | None = None) -> None:
        """A histogram, as an area or as a line."""
        edges = np.repeat(self.x(np.linspace(*self.across, len(density) + 1)), 2)
        heights = np.concatenate([[0], np.repeat(density, 2), [0]])
        if fill is not None:
            self.canvas.area(edges, self.y(0 * heights), self.inside(heights), fill)
        if line is not None:
            self.canvas.line(edges, self.inside(heights), line, 1.5)


def limits(first: Values, *others: Values) -> tuple[float, float]:
    """The range of an axis: of what is not far out among the first values; others widen it to three times at most."""
    low, high = fence(first)
    width = high - low
    for values in others:
        if values.size:
            other_low, other_high = fence(values)
            low = min(low, max(other_low, low - width))
            high = max(high, min(other_high, high + width))
    pad = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
    return low - pad, high + pad


def fence(values: Values) -> tuple[float, float]:
    """The least and the largest of the values that are not far from the middle eight tenths of them."""
    flat = np.asarray(values, float).ravel()
    flat = flat[:: max(1, len(flat) // ENOUGH)]
    flat = flat[np.isfinite(flat)]
    if len(flat) == 0:
        return 0.0, 1.0
    low, middle, high = np.quantile(flat, [0.1, 0.5, 0.9])
    if low == high:  # most are equal: what counts is how the others lie
        rest = np.append(flat[flat != middle], middle)
        low, high = np.quantile(rest, [0.1, 0.9])
        low, high = min(low, middle), max(high, middle)
    room = FENCE * (high - low)
    near = flat[(flat >= low - room) & (flat <= high + room)]
    return float(near.min()), float(near.max())


def pale(colour: Colour, share: float = 0.75) -> Colour:
    """A colour with more white in it."""
    red, green, blue = (round(value + share * (255 - value)) for value in colour)
    return red, green, blue


def ticks(low: float, high: float, count: int = 3) -> list[tuple[float, str]]:
    """Round numbers in a range, about `count` of them, as numbers and as words."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * factor for factor in (10, 5, 2.5, 2, 1, 0.5) if power * factor <= 2.2 * rough]
    for step in steps:
        marks = [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(marks) >= max(2, count - 1):
            break
    return [(mark, number(mark, step)) for mark in marks]


def number(value: float, step: float) -> str:
    """A value as short as a step between values allows."""
    if abs(value) < step / 1e3:
        return "0"
    digits = max(1, math.ceil(math.log10(abs(value) / step) - 1e-9) + 2)
    if 1e-3 <= abs(value) < 1e5:
        words = f"{value:.{max(0, math.ceil(-math.log10(step)) + 1)}f}"
        return words.rstrip("0").rstrip(".") if "." in words else words
    words = f"{value:.{min(digits, 12)}g}"
    return words.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def fitted(words: str, room: float | None, font: Any) -> str:
    """Words, or as much of them as there is room for."""
    if isinstance(font, ImageFont.ImageFont):  # without FreeType there are only the letters of Latin-1
        words = words.encode("latin-1", "replace").decode("latin-1")
    if room is None or font.getlength(words) <= room:
        return words
    while len(words) > 1 and font.getlength(words + "..") > room:
        words = words[:-1]
    return words + ".."


@lru_cache
def _font(size: float) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()


def _anchor(font: Any, anchor: str) -> str | None:
    return None if isinstance(font, ImageFont.ImageFont) else anchor


def _marks(span: tuple[float, float], names: Sequence[str] | None, count: int) -> list[tuple[float, str]]:
    if names is not None:
        return [(float(k), name) for k, name in enumerate(names) if span[0] <= k <= span[1]]
    return ticks(*span, count)


def _spread_dots(counts: Values, radius: int) -> Values:
    """Every count at all places within a radius, in pixels."""
    out = counts.copy()
    rows, columns = counts.shape
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            if (down or right) and down**2 + right**2 <= radius**2:
                to = slice(max(down, 0), rows + min(down, 0)), slice(max(right, 0), columns + min(right, 0))
                of = slice(max(-down, 0), rows + min(-down, 0)), slice(max(-right, 0), columns + min(-right, 0))
                out[to] += counts[of]
    return out
