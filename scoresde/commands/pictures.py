"""Grids of images and scatter plots as PNG files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scoresde.files import write_atomically

TARGET_WIDTH = 640  # pixels; small images are enlarged to about this


def save_picture(path: Path, images: Tensor, columns: int | None = None) -> None:
    """Write a grid of images, row by row, enlarged by whole factors if they are small.

    Args:
        path: PNG file.
        images: uint8, (N, C, H, W) with 1 or 3 channels.
        columns: Images per row; None makes the grid about square.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows, gap = math.ceil(n / columns), max(1, width // 16)
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 96, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        sheet[:, top : top + height, left : left + width] = image
    array = sheet.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    factor = max(1, TARGET_WIDTH // picture.width)
    _write(path, picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST))


def save_scatter(path: Path, points: Tensor, reference: Tensor | None = None, size: int = 640) -> None:
    """Write a density picture of two-dimensional points: dark where they are dense; `reference` beside them.

    Args:
        path: PNG file.
        points, reference: (N, 2).
        size: Height of the picture in pixels.
    """
    panels = [points] if reference is None else [reference, points]
    everything = torch.cat(panels).double()
    low, high = everything.amin(0), everything.amax(0)
    centre, half = (low + high) / 2, ((high - low).max() / 2 * 1.05).clamp_min(1e-12)
    bins = 160
    images = []
    for panel in panels:
        cell = ((panel.double() - centre) / half * 0.5 + 0.5).mul(bins).long().clamp(0, bins - 1)
        counts = torch.zeros(bins * bins).index_add_(
            0, (bins - 1 - cell[:, 1]) * bins + cell[:, 0], torch.ones(len(cell))
        )
        shade = (counts / counts[counts > 0].quantile(0.95)).clamp(0, 1).sqrt()
        images.append((255 * (1 - shade)).to(torch.uint8).reshape(bins, bins))
    picture = Image.fromarray(torch.cat(images, 1).numpy())
    _write(path, picture.resize((size * len(panels), size), Image.Resampling.NEAREST))


def _write(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
