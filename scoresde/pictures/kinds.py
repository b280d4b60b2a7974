"""The picture of each kind of data."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from scoresde.pictures.canvas import Canvas
from scoresde.pictures.curves import series_picture
from scoresde.pictures.pair_plot import table_picture
from scoresde.pictures.sheets import image_picture, volume_picture
from scoresde.pictures.shown import Shown

OF: dict[str, Callable[[Shown], Canvas]] = {
    "table": table_picture, "series": series_picture, "image": image_picture, "volume": volume_picture,
}  # fmt: skip


def picture(shown: Shown) -> Image.Image:
    """Samples with data beside them: pairs of columns, curves with bands, a grid of images, or slices of volumes."""
    return OF.get(shown.kind, table_picture)(shown.limited()).image()
