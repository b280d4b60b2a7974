"""Folders of pictures: classes, splits, formats, levels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.commands.batches import Batches
from scoresde.data import image_folder

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def save(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def as_set(x: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def test_sub_folders_are_classes_by_sorted_name_at_any_depth(tmp_path: Path) -> None:
    for name, value in (("b/1.png", 10), ("b/deep/er/2.bmp", 20), ("a/3.PNG", 30), ("c/4.png", 40)):
        save(tmp_path / name, np.full((4, 4, 3), value, dtype=np.uint8))
    (tmp_path / "b" / ".hidden.png").write_bytes(b"not a picture")
    for name in ("b/notes.txt", "c/a.npy", "c/b.npy", "c/deep/x.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not a picture")
    with pytest.warns(UserWarning, match=r"^4 files are passed over in .*: b/notes.txt, c/a.npy, c/b.npy, ...$"):
        data = image_folder(tmp_path, test_fraction=0.25)
    assert data.names.classes == ("a", "b", "c") and data.class_counts is not None
    assert (len(data.train), len(data.test), data.num_classes, data.shape) == (3, 1, 3, (3, 4, 4))
    assert data.train.label is not None and data.test.label is not None
    x, label = torch.cat([data.train.x, data.test.x]), torch.cat([data.train.label, data.test.label])
    assert dict(zip(x[:, 0, 0, 0].tolist(), label.tolist(), strict=True)) == {10: 1, 20: 1, 30: 0, 40: 2}


def test_a_flat_folder_has_no_labels_and_the_split_is_fixed_by_its_seed(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / f"{i}.png", pixels(4, 5))
    first, again, other = (image_folder(tmp_path, channels=1, seed=seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.test), first.num_classes, first.shape) == (18, 2, None, (1, 4, 5))
    assert torch.equal(first.test.x, again.test.x)
    assert not torch.equal(first.test.x, other.test.x)
    assert len(as_set(first.train.x) | as_set(first.test.x)) == 20


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"train/cat/{i}.png", pixels(4, 4, 3))
        save(tmp_path / f"train/dog/{i}.png", pixels(4, 4, 3))
    held = save(tmp_path / "test/dog/0.png", pixels(4, 4, 3))
    data = image_folder(tmp_path)
    assert (len(data.train), len(data.test), data.num_classes) == (6, 1, 2)
    np.testing.assert_array_equal(data.test.x[0].numpy(), held.transpose(2, 0, 1))
    assert data.test.label is not None and data.test.label.tolist() == [1]

    save(tmp_path / "test/cow/0.png", pixels(4, 4, 3))
    with pytest.raises(ValueError, match="cow is not one of the training classes cat, dog"):
        image_folder(tmp_path)


def test_size_scales_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    save(tmp_path / "wide.png", wide)
    save(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    data = image_folder(tmp_path, size=4, test_fraction=0)
    assert data.shape == (3, 4, 4)
    assert (data.train.x[..., 1:3, 1:3] > 190).all()
    assert image_folder(tmp_path, size=16, test_fraction=0).shape == (3, 16, 16)


def test_fewer_levels_keep_the_leading_bits_and_transparency_is_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    data = image_folder(tmp_path, channels=1, levels=32, test_fraction=0)
    assert data.levels == 32
    assert torch.equal(data.train.x.flatten(), (torch.arange(256) // 8).to(torch.uint8))

    save(tmp_path / "clear" / "a.png", np.zeros((4, 4, 4), dtype=np.uint8))
    assert (image_folder(tmp_path / "clear", test_fraction=0).train.x == 255).all()


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", pixels(32, 32, 3))
    bad = tmp_path / "zbad.png"
    for content in (b"", b"not a picture", png(pixels(32, 32, 3))[:-500]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"the picture .*zbad.png cannot be read"):
            image_folder(tmp_path)
    bad = bad.rename(tmp_path / "zbad.tiff")
    Image.fromarray(np.zeros((32, 32), dtype=np.float32)).save(bad)
    with pytest.raises(ValueError, match=r"zbad.tiff has 32 bits per channel \(F\).*data=array"):
        image_folder(tmp_path)


def test_image_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder of pictures; set data.path to it; none was given"):
        image_folder()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"found no picture \(.png, .jpg"):
        image_folder(tmp_path)
    save(tmp_path / "a.png", pixels(4, 4, 3))
    with pytest.raises(ValueError, match="is a file"):
        image_folder(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 example is too little"):
        image_folder(tmp_path)
    save(tmp_path / "b.png", pixels(4, 6, 3))
    with pytest.raises(ValueError, match=r"one size: .*\.png has \d×4 pixels, the first \d×4; set data.size"):
        image_folder(tmp_path)
    save(tmp_path / "class" / "c.png", pixels(4, 4, 3))
    with pytest.raises(ValueError, match="2 pictures lie beside them"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"channels": 2}, "data=image_folder needs channels 1 or 3, got 2"),
        ({"size": 0}, "data=image_folder needs 1 <= size <= 65536, a whole number, or null, got size=0"),
        ({"size": "big"}, "data=image_folder needs 1 <= size <= 65536, a whole number, or null, got size='big'"),
        (
            {"levels": 10**6},
            "data=image_folder needs 2 <= levels <= 65536, a whole number, or null, got levels=1000000",
        ),
        ({"test_fraction": 1.0}, "data=image_folder needs 0 <= test_fraction < 1, got test_fraction=1.0"),
        ({"seed": -1}, "data=image_folder needs seed >= 0, a whole number, got seed=-1"),
    ],
)
def test_image_folder_rejects_impossible_options(tmp_path: Path, option: dict[str, object], message: str) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", pixels(4, 4, 3))
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path, **option)  # type: ignore[arg-type]


def made(root: Path, *folders: str, grey: int = 50) -> Path:
    for number, folder in enumerate(folders):
        for k in range(3):
            save(root / folder / f"{k}.png", np.full((4, 4), grey + number, dtype=np.uint8))
    return root


@pytest.mark.parametrize(
    "folders, classes",
    [
        ([str(k) for k in range(12)], [str(k) for k in range(12)]),
        (["-1", "10", "9"], ["-1", "10", "9"]),  # not numbers alone
        (["08", "9", "10"], ["08", "9", "10"]),
        (["b", "a10", "a9"], ["a10", "a9", "b"]),
    ],
)
def test_classes_are_named_and_numbers_are_in_their_order(
    tmp_path: Path, folders: list[str], classes: list[str]
) -> None:
    data = image_folder(made(tmp_path, *folders), channels=1, test_fraction=0)
    assert data.names.classes == tuple(classes)
    greys = [int(data.train.x[data.train.label == label].unique()) - 50 for label in range(len(classes))]
    assert [folders[grey] for grey in greys] == classes


@pytest.mark.parametrize("others", [["bus", "car"], ["test2"]])
def test_a_class_called_train_is_not_taken_for_a_split_in_silence(tmp_path: Path, others: list[str]) -> None:
    root = made(tmp_path, *others, "Train")
    with pytest.raises(ValueError, match=rf"whether Train in .* are splits or classes, as {others[0]} lies beside"):
        image_folder(root)
    assert image_folder(root, splits=False, test_fraction=0).names.classes == tuple(sorted([*others, "Train"]))
    with pytest.warns(UserWarning, match=f"{3 * len(others)} files are passed over in .*: {others[0]}/0.png"):
        assert len(image_folder(root, splits=True, test_fraction=0).train) == 3


@pytest.mark.parametrize(
    "train, held, passed", [("TRAIN", "Test", []), ("training", "Val", []), ("train", "test", ["validation"])]
)
def test_splits_are_known_in_any_letters_and_val_is_used_or_spoken_of(
    tmp_path: Path, train: str, held: str, passed: list[str]
) -> None:
    root = made(tmp_path, *(f"{split}/{name}" for split in (train, held, *passed) for name in ("cat", "train")))
    if passed:
        with pytest.warns(UserWarning, match="6 files are passed over in .*: validation/cat/0.png"):
            data = image_folder(root, channels=1)
    else:
        data = image_folder(root, channels=1)
    assert (len(data.train), len(data.test), data.names.classes) == (6, 6, ("cat", "train"))
    assert sorted(set(data.test.x.flatten().tolist())) == [52, 53]


def test_splits_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whether test, val .* or classes, as no train lies beside"):
        image_folder(made(tmp_path / "a", "test", "val"))
    with pytest.raises(ValueError, match="which of .*train and .*training is the train split"):
        image_folder(made(tmp_path / "b", "train", "training"))
    with pytest.raises(ValueError, match="splits=true needs a folder"):
        image_folder(made(tmp_path / "c", "cat"), splits=True)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_pictures_of_16_bits_stay(tmp_path: Path, suffix: str) -> None:
    x = RNG.integers(0, 65536, (3, 6, 5)).astype(np.uint16)
    for k, image in enumerate(x):
        save(tmp_path / f"{k}{suffix}", image)
    data = image_folder(tmp_path, channels=1, test_fraction=0)
    assert data.levels == 65536
    assert {bytes(image) for image in data.train.x[:, 0].numpy().astype(np.uint16)} == {bytes(image) for image in x}
    assert torch.equal(image_folder(tmp_path, levels=256, channels=1, test_fraction=0).train.x, data.train.x // 256)
    assert image_folder(tmp_path, size=4, test_fraction=0).train.x.max() > 30000

    save(tmp_path / f"a{suffix}", np.full((6, 5), 255, dtype=np.uint8))  # white
    mixed = image_folder(tmp_path, channels=1, test_fraction=0)
    assert mixed.levels == 65536 and int(mixed.train.x.flatten(1).amin(1).max()) == 65535


def test_colour_of_16_bits_is_not_cut_in_silence(tmp_path: Path) -> None:
    content = bytearray(png(pixels(4, 4, 3)))
    content[24] = 16  # the depth that IHDR says
    raw = zlib.compress(b"".join(b"\0" + bytes(range(24)) for _ in range(4)))
    chunks = [(b"IHDR", bytes(content[16:29])), (b"IDAT", raw), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
             for kind, body in chunks]  # fmt: skip
    (tmp_path / "a.png").write_bytes(bytes(content[:8]) + b"".join(parts))
    with pytest.raises(ValueError, match=r"a.png has 16 bits per channel in colour, of which 8 .*data.levels=256"):
        image_folder(tmp_path)
    data = image_folder(tmp_path, levels=256, test_fraction=0)
    assert data.train.x[0, :, 0, 0].tolist() == [0, 2, 4]


def test_the_first_frame_is_read_and_said(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    for name in ("a.gif", "b.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    save(tmp_path / "c.png", np.full((4, 4), 10, dtype=np.uint8))
    with pytest.warns(UserWarning, match="^2 of the pictures in .* have several frames, of which the first is read$"):
        data = image_folder(tmp_path, channels=1, test_fraction=0)
    assert data.train.x.unique().tolist() == [10]


def test_a_second_folder_holds_what_pictures_are_given_and_moves_with_them(tmp_path: Path) -> None:
    for k in range(12):
        picture = save(tmp_path / f"x/{k % 2}/{k}.png", pixels(8, 8))
        save(tmp_path / f"same/{k % 2}/{k}.bmp", picture)
        save(tmp_path / f"small/{k % 2}/{k}.png", picture[::2, ::2])
    same = image_folder(tmp_path / "x", channels=1, flip=True, crop=0.5, image_path=tmp_path / "same")
    x, cond = Batches(same, 10, 0, labelled=True, dequantize=False)(0)
    torch.testing.assert_close(x, same.codec.encode(cond["image"], dequantize=False))
    assert (x != same.codec.encode(same.train.x[:10], dequantize=False)).any() and len(cond["label"]) == 10
    small = image_folder(tmp_path / "x", channels=1, image_path=tmp_path / "small", image_size=4)
    for split in (small.train, small.test):
        assert split.image is not None and torch.equal(split.image, split.x[:, :, ::2, ::2])
    (tmp_path / "small/0/4.png").unlink()
    with pytest.raises(ValueError, match="small has no picture for 1 of 12, as .*4.png: it needs one of"):
        image_folder(tmp_path / "x", channels=1, image_path=tmp_path / "small")
    with pytest.raises(ValueError, match="without image_path has no use for image_size"):
        image_folder(tmp_path / "x", image_size=4)
