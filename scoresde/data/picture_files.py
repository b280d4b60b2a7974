"""Pictures in files: formats, bits per channel, frames, transparency."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from scoresde.data.bounded import open_picture
from scoresde.files import open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
DEEP = 2**16  # levels of pictures of 16 bits
BITS_PER_SAMPLE = 258  # tag of TIFF


class Picture(NamedTuple):
    """Pixels of a file: uint8 or uint16, (C, H, W); whether it has more frames than the first."""

    pixels: NDArray[Any]
    more_frames: bool


class Pictures(NamedTuple):
    """Pixels of many files as levels, and how many files have frames that were left out."""

    x: Tensor
    levels: int
    with_frames: int


def read_pictures(names: list[Path], size: int | None, channels: int, levels: int | None) -> Pictures:
    """All pictures as levels: floor(value · levels / number of values), with values of 8 or 16 bits.

    Args:
        names: Files, at least one.
        size: Shorter side in pixels, with the centre cropped; None: pictures of one size as they are.
        channels: 1 or 3.
        levels: Levels per entry; None: as many as the pictures have, 256, or 65536 if one of them has 16 bits.
    """
    first = _read(names[0], size, channels, levels)
    kind: Any = np.uint8 if levels is None or levels <= 256 else np.uint16
    x, frames = np.empty((len(names), *first.pixels.shape), dtype=kind), 0
    for i, name in enumerate(tqdm(names, desc="reading pictures", disable=len(names) <= 1000)):
        picture = first if i == 0 else _read(name, size, channels, levels)
        if picture.pixels.shape != first.pixels.shape:
            raise ValueError(
                f"data=image_folder without a size needs pictures of one size: {name} has {_size(picture)} pixels, "
                f"the first {_size(first)}; set data.size"
            )
        frames += picture.more_frames
        if levels is None and picture.pixels.dtype == np.uint16 and x.dtype == np.uint8:
            x = _levelled(x, DEEP)
        x[i] = picture.pixels if x.dtype == picture.pixels.dtype and levels is None else _levelled(
            picture.pixels, levels or DEEP
        )  # fmt: skip
    found = levels or (256 if x.dtype == np.uint8 else DEEP)
    return Pictures(torch.from_numpy(x if found <= 256 else x.astype(np.int32)), found, frames)


def as_read(pictures: Pictures, levels: int) -> Tensor:
    """Levels as those of other pictures that have as many or more."""
    if levels == pictures.levels:
        return pictures.x
    return torch.from_numpy(_levelled(pictures.x.numpy(), levels).astype(np.int32))


def _levelled(pixels: NDArray[Any], levels: int) -> NDArray[Any]:
    """Values of 8 or 16 bits as levels."""
    depth = 256 if pixels.dtype == np.uint8 else DEEP
    if depth == levels:
        return pixels
    if depth == 256 and levels > 256:  # 255 is to be white among 16 bits too
        pixels, depth = pixels.astype(np.uint16) * 257, DEEP
    found: NDArray[Any] = pixels.astype(np.uint32) * levels // depth
    return found.astype(np.uint8 if levels <= 256 else np.uint16)


def _size(picture: Picture) -> str:
    return f"{picture.pixels.shape[2]}×{picture.pixels.shape[1]}"


def _read(name: Path, size: int | None, channels: int, levels: int | None) -> Picture:
    """One file.

    Raises:
        ValueError: If it cannot be read, or has bits that would be lost without a word.
    """
    try:
        with open_regular(name) as file, open_picture(file, name, FORMATS) as image:
            bits, mode = _bits(file, image), image.mode
            grey = mode.startswith("I")
            if bits <= 8 or (bits == 16 and (grey or (levels is not None and levels <= 256))):
                picture = _upright(image, channels)
                return Picture(_pixels(picture, size, channels), _has_more(image))
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(f"the picture {name} cannot be read: {error}") from error
    if bits == 16:
        raise ValueError(
            f"the picture {name} has 16 bits per channel in colour, of which 8 would be left: set data.levels=256 if "
            f"they do, or write all as one array (N, {channels}, H, W) for data=array data.levels=65536"
        )
    raise ValueError(
        f"the picture {name} has {bits} bits per channel ({mode}): convert it to 16 or 8 bits, or write all as one "
        f"array (N, {channels}, H, W) for data=array"
    )


def _bits(file: IO[bytes], image: Image.Image) -> int:
    """Bits per channel in the file, which may be more than those of the mode that Pillow gives it."""
    if image.format == "PNG":
        file.seek(24)  # the depth in IHDR, after 8 bytes of signature, 8 of the chunk's head and 8 of the size
        return file.read(1)[0]
    if image.format == "TIFF":
        of_tag = image.tag_v2.get(BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        return max(of_tag) if isinstance(of_tag, tuple) else int(of_tag)
    return 8


def _upright(image: Image.Image, channels: int) -> Image.Image:
    """The first frame as its owner sees it: turned as it says, over white where it is transparent; grey of 16 bits."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return upright
    if upright.has_transparency_data:
        above = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return upright.convert("L" if channels == 1 else "RGB")


def _pixels(picture: Image.Image, size: int | None, channels: int) -> NDArray[Any]:
    deep = picture.mode.startswith("I")
    if deep and (np.asarray(picture).min() < 0 or np.asarray(picture).max() >= DEEP):
        raise ValueError("it holds values outside 0..65535")
    if size is not None and picture.size != (size, size):
        picture = picture.convert("I").convert("F") if deep else picture
        picture = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    if deep:
        pixels = np.rint(pixels.astype(np.float64)).clip(0, DEEP - 1).astype(np.uint16)
        return np.repeat(pixels[None], channels, 0)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _has_more(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True
