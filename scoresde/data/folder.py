"""Any folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from scoresde.checks import check_choice, check_flag, check_whole
from scoresde.data.bounded import open_picture
from scoresde.data.codec import Quantized
from scoresde.data.dataset import TEST_FRACTION, Dataset, Split, check_no_split, check_split, find, split_indices, take
from scoresde.files import open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


def image_folder(
    path: str | Path | None = None, size: int | None = None, channels: int = 3, test_fraction: float = TEST_FRACTION,
    seed: int = 0, flip: bool = False, levels: int = 256,
) -> Dataset:  # fmt: skip
    """Pictures (png, jpg, bmp, webp) in a folder, at any depth; names that start with a dot are passed over.

    Folders directly under `path` are classes, numbered by their sorted names; a folder without sub-folders is
    unlabelled. With `path/train` and `path/test`, those are the splits and the classes lie under them; with
    `path/train` alone, only that is read.

    Args:
        path: The folder.
        size: Scale the shorter side to this many pixels and crop the centre. None: keep the pixels, which
            needs pictures of one size.
        channels: 3 for RGB, 1 for grey. Transparent pixels are laid over white.
        test_fraction: Share of the pictures kept for the test split, when there is no test folder.
        seed: Seed of that split and of the order.
        flip: Mirror training images at random.
        levels: Levels per entry, 2 to 256; fewer than 256 keeps floor(value · levels / 256).
    """
    check_choice("data=image_folder", "channels", channels, (1, 3))
    check_whole("data=image_folder", "1 <= size <= 65536 or null", "2 <= levels <= 256", size=size, levels=levels)
    check_split("data=image_folder", test_fraction, seed)
    check_flag("data=image_folder", "flip", flip)
    root = find(path, "data=image_folder needs a folder of pictures; set data.path to it")
    if not root.is_dir():
        raise ValueError(f"data=image_folder needs a folder, but {root} is a file")

    top = root / "train" if (root / "train").is_dir() else root
    names = _list_images(top, seed)
    classes = _class_names(top, names)

    def read(folder: Path, names: list[Path]) -> Split:
        return Split(x=_load(names, size, channels, levels), label=_labels(folder, names, classes))

    train = read(top, names)
    if top != root and (root / "test").is_dir():
        check_no_split(f"data=image_folder with the folder {root / 'test'}", test_fraction)
        test = read(root / "test", _list_images(root / "test", seed))
    else:
        train, test = (take(train, index) for index in split_indices(len(train), test_fraction, seed))
    return Dataset(
        name=root.resolve().name or "image_folder", train=train, test=test, codec=Quantized(levels=levels),
        num_classes=len(classes) or None, flip=flip,
    )  # fmt: skip


def _list_images(folder: Path, seed: int) -> list[Path]:
    """All pictures in the folder, shuffled, so that any first part holds all classes."""
    names = sorted(_walk(folder))
    if not names:
        raise FileNotFoundError(f"data=image_folder found no picture ({', '.join(SUFFIXES)}) in {folder}")
    return [names[i] for i in split_indices(len(names), 0, seed)[0]]


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (Path(place, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))
        seen.add(real)


def _class_names(top: Path, names: list[Path]) -> list[str]:
    loose = [name for name in names if name.parent == top]
    if loose and len(loose) < len(names):
        raise ValueError(
            f"data=image_folder reads the folders under {top} as classes, but {len(loose)} pictures lie "
            f"beside them (first: {loose[0].name}); move them into a folder"
        )
    return [] if loose else sorted({name.relative_to(top).parts[0] for name in names})


def _labels(top: Path, names: list[Path], classes: list[str]) -> Tensor | None:
    if not classes:
        return None
    number = {name: i for i, name in enumerate(classes)}
    own = [name.relative_to(top).parts[0] for name in names]
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise ValueError(f"{top / unknown[0]} is not one of the training classes {', '.join(classes)}")
    return torch.tensor([number[name] for name in own])


def _load(names: list[Path], size: int | None, channels: int, levels: int) -> Tensor:
    first = _read(names[0], size, channels)
    x = np.empty((len(names), *first.shape), dtype=np.uint8)
    for i, name in enumerate(tqdm(names, desc="reading pictures", disable=len(names) <= 1000)):
        pixels = _read(name, size, channels)
        if pixels.shape != first.shape:
            raise ValueError(
                f"data=image_folder without a size needs pictures of one size: {name} has "
                f"{pixels.shape[2]}×{pixels.shape[1]} pixels, the first {first.shape[2]}×{first.shape[1]}; "
                f"set data.size"
            )
        x[i] = pixels
    if levels < 256:
        x = (x.astype(np.uint16) * levels // 256).astype(np.uint8)
    return torch.from_numpy(x)


def _read(name: Path, size: int | None, channels: int) -> np.ndarray:
    try:
        with open_regular(name) as file, open_picture(file, name, FORMATS) as image:
            deep = image.mode.startswith(("I", "F"))
            picture = image.copy() if deep else _convert(image, channels)
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(f"the picture {name} cannot be read: {error}") from error
    if deep:
        raise ValueError(f"the picture {name} has more than 8 bits per channel ({picture.mode}); convert it to 8 bits")
    if size is not None and picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        above = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return upright.convert("L" if channels == 1 else "RGB")
