"""One picture of an animation."""

from __future__ import annotations

from PIL import Image

from scoresde.pictures.curves import series_picture
from scoresde.pictures.kinds import picture
from scoresde.pictures.pair_plot import table_picture
from scoresde.pictures.shown import Shown

COLUMNS = 3  # of a table, and channels of a series


def frame(shown: Shown, most: int) -> Image.Image:
    """As `picture`, with less in it; its axes are those of `shown.ranges`."""
    if shown.kind == "series":
        return series_picture(shown, COLUMNS).image()
    if shown.kind in ("image", "volume"):
        return picture(shown.limited(most))
    return table_picture(shown, COLUMNS, rest=False).image()
