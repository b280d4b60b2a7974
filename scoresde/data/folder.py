"""Any folder of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_flag, check_numbers, check_text, check_whole
from scoresde.data.codec import Quantized
from scoresde.data.columns import Names
from scoresde.data.dataset import TEST_FRACTION, Dataset, Split, check_no_split, check_split, find, split_indices, take
from scoresde.data.picture_files import SUFFIXES, as_read, read_pictures

SPLIT_WORDS = {  # what people call the folders of splits, in small letters
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
NAMED = 3  # passed-over files
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


def image_folder(
    path: str | Path | None = None, size: int | None = None, channels: int = 3, test_fraction: float = TEST_FRACTION,
    seed: int = 0, flip: bool = False, levels: int | None = None, splits: bool | None = None,
    crop: float = 0.0, image_path: str | Path | None = None, image_size: int | None = None,
    image_channels: int | None = None,
) -> Dataset:  # fmt: skip
    """Pictures (png, jpg, bmp, webp, tiff, gif) in a folder, at any depth; names that start with a dot are passed over.

    Folders directly under `path` are classes, in the order of their names, or of their numbers if all are numbers; a
    folder without sub-folders is unlabelled. If the folders are called train, val (or valid, validation) and test, in
    any letters, they are splits and the classes lie under them: val is the test split where there is no test, and is
    passed over where there is. Other files are passed over with a word. Of several frames the first is read.

    Args:
        path: The folder.
        size: Scale the shorter side to this many pixels and crop the centre. None: keep the pixels, which
            needs pictures of one size.
        channels: 3 for RGB, 1 for grey. Transparent pixels are laid over white.
        test_fraction: Share of the pictures kept for the test split, when there is no test folder.
        seed: Seed of that split and of the order.
        flip: Mirror training images at random.
        levels: Levels per entry, 2 to 65536: floor(value · levels / 256). None: those of the pictures, 256, or 65536 if
            one has 16 bits.
        crop: Cut up to this share of the side off training images at random, and scale the rest back; 0: nothing.
        image_path: A second folder, with the picture that each one of the first is conditioned on, under the same name
            and in the same sub-folder, whatever its kind. It is flipped and cropped as the first. None: nothing.
        image_size, image_channels: Of those, as size and channels, which None stands for. Their levels are 0..255.
        splits: Whether the folders train, val and test are splits rather than classes; None: as their names say, if all
            or none are such names.
    """
    check_choice("data=image_folder", "channels", channels, (1, 3))
    check_choice("data=image_folder", "image_channels", image_channels, (1, 3, None))
    check_text("data=image_folder", "image_path", image_path)
    sizes = {"size": size, "levels": levels, "image_size": image_size}
    limits = ("1 <= size <= 65536 or null", "2 <= levels <= 65536 or null", "1 <= image_size <= 65536 or null")
    check_whole("data=image_folder", *limits, **sizes)
    if image_path is None and (image_size or image_channels):
        raise ValueError("data=image_folder without image_path has no use for image_size and image_channels.")
    check_split("data=image_folder", test_fraction, seed)
    check_flag("data=image_folder", "flip", flip)
    check_numbers("data=image_folder", "0 <= crop < 1", crop=crop)
    check_flag("data=image_folder", "splits", splits, optional=True)
    root = find(path, "data=image_folder needs a folder of pictures; set data.path to it")
    if not root.is_dir():
        raise ValueError(f"data=image_folder needs a folder, but {root} is a file")

    top, held, passed_over = _layout(root, splits)
    files = _list_images(top, seed)
    names = files.pictures
    classes = _class_names(top, names)
    passed_over += files.others
    pictures = read_pictures(names, size, channels, levels)
    label, frames = _labels(top, names, classes), pictures.with_frames

    def given(of: list[Path]) -> Tensor | None:
        return None if image_path is None else read_pictures(
            _counterparts(root, of, image_path), image_size or size, image_channels or channels, 256
        ).x  # fmt: skip

    if held is None:
        whole = Split(x=pictures.x, label=label, image=given(names))
        train, test = (take(whole, index) for index in split_indices(len(whole), test_fraction, seed))
    else:
        check_no_split(f"data=image_folder with the folder {held}", test_fraction)
        files = _list_images(held, seed)
        passed_over += files.others
        others = read_pictures(files.pictures, size, channels, levels)
        frames += others.with_frames
        most = max(pictures.levels, others.levels)
        train = Split(x=as_read(pictures, most), label=label, image=given(names))
        of_test = _labels(held, files.pictures, classes)
        test = Split(x=as_read(others, most), label=of_test, image=given(files.pictures))
        pictures = pictures._replace(levels=most)
    _say(root, passed_over, frames)
    return Dataset(
        name=root.resolve().name or "image_folder", train=train, test=test, codec=Quantized(levels=pictures.levels),
        num_classes=len(classes) or None, flip=flip, crop=crop, names=Names(classes=tuple(classes) or None),
    )  # fmt: skip


def _counterparts(root: Path, names: list[Path], image_path: str | Path) -> list[Path]:
    """The pictures of a second folder that belong to those of the first, by name.

    Raises:
        ValueError: If one has none, or there are two.
    """
    folder = find(image_path, "data=image_folder needs the folder of data.image_path")
    found: dict[Path, Path] = {}
    for file in _files(folder).pictures:
        key = file.relative_to(folder).with_suffix("")
        if key in found:
            raise ValueError(f"data.image_path has two pictures for one: {found[key]} and {file}")
        found[key] = file
    wanted = [name.relative_to(root).with_suffix("") for name in names]
    if missing := [name for name, key in zip(names, wanted, strict=True) if key not in found]:
        raise ValueError(
            f"data.image_path={folder} has no picture for {len(missing)} of {len(names)}, as {missing[0]}: it needs "
            f"one of the same name for each"
        )
    return [found[key] for key in wanted]


class Files(NamedTuple):
    """Pictures, and other files that do not start with a dot."""

    pictures: list[Path]
    others: list[Path]


def _layout(root: Path, splits: bool | None) -> tuple[Path, Path | None, list[Path]]:
    """The folders of training and of test pictures (None: a share is to be taken), and files that neither holds."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found: dict[str, Path] = {}
    for folder in folders if splits is not False else []:
        word = SPLIT_WORDS.get(folder.name.lower())
        if word is not None and _files(folder).pictures:
            if word in found:
                raise ValueError(
                    f"data=image_folder cannot tell which of {found[word]} and {folder} is the {word} split"
                )
            found[word] = folder
    if not found and splits:
        raise ValueError(f"data=image_folder with splits=true needs a folder {root / 'train'}, beside it val or test")
    others = [folder for folder in folders if folder not in found.values() and _files(folder).pictures]
    if not found:
        return root, None, []
    called = ", ".join(folder.name for folder in found.values())
    if splits is None and (others or "train" not in found):
        beside = f"{others[0].name} lies beside" if others else "no train lies beside"
        raise ValueError(
            f"data=image_folder does not know whether {called} in {root} are splits or classes, as {beside}: set "
            f"data.splits=false if they are classes, or data.splits=true and have a folder train if they are splits"
        )
    if "train" not in found:
        raise ValueError(f"data=image_folder with splits=true needs a folder {root / 'train'} beside {called}")
    held = found.get("test", found.get("val"))
    rest = [file for file in root.iterdir() if file.is_file() and not file.name.startswith(".")]
    for folder in [*others, *([found["val"]] if "val" in found and held != found["val"] else [])]:
        rest += _files(folder).pictures
    return found["train"], held, rest


def _say(root: Path, passed_over: list[Path], frames: int) -> None:
    """Count and name what was not read."""
    if passed_over:
        named = ", ".join(str(file.relative_to(root)) for file in sorted(passed_over)[:NAMED])
        more = ", ..." if len(passed_over) > NAMED else ""
        noun = "1 file is" if len(passed_over) == 1 else f"{len(passed_over)} files are"
        warn(f"{noun} passed over in {root}: {named}{more}", stacklevel=3)
    if frames:
        warn(f"{frames} of the pictures in {root} have several frames, of which the first is read", stacklevel=3)


def _list_images(folder: Path, seed: int) -> Files:
    """All pictures in the folder, shuffled, so that any first part holds all classes."""
    found = _files(folder)
    if not found.pictures:
        raise FileNotFoundError(f"data=image_folder found no picture ({', '.join(SUFFIXES)}) in {folder}")
    order = split_indices(len(found.pictures), 0, seed)[0]
    return Files([found.pictures[i] for i in order], found.others)


def _files(folder: Path) -> Files:
    found = Files([], [])
    for name in sorted(_walk(folder)):
        found[0 if name.name.lower().endswith(SUFFIXES) else 1].append(name)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (Path(place, name) for name in names if not name.startswith("."))
        seen.add(real)


def _class_names(top: Path, names: list[Path]) -> list[str]:
    loose = [name for name in names if name.parent == top]
    if loose and len(loose) < len(names):
        raise ValueError(
            f"data=image_folder reads the folders under {top} as classes, but {len(loose)} pictures lie "
            f"beside them (first: {loose[0].name}); move them into a folder"
        )
    found = {name.relative_to(top).parts[0] for name in names if not loose}
    return sorted(found, key=_number) if all(_NUMBER.fullmatch(name) for name in found) else sorted(found)


def _number(name: str) -> tuple[int, str]:
    return int(name), name


def _labels(top: Path, names: list[Path], classes: list[str]) -> Tensor | None:
    if not classes:
        return None
    number = {name: i for i, name in enumerate(classes)}
    own = [name.relative_to(top).parts[0] for name in names]
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise ValueError(f"{top / unknown[0]} is not one of the training classes {', '.join(classes)}")
    return torch.tensor([number[name] for name in own])
