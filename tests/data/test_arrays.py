import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.data import Standardized, array

RNG = np.random.default_rng(0)


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.npz"


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 50), (3, 4, 5, 6), (40, 40)])
def test_any_shape_is_standardised_and_comes_back_in_its_own_units(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = 100 + 5 * RNG.standard_normal((200, *shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    data = array(tmp_path / "x.npy")
    assert data.shape == (shape or (1,))
    assert (len(data.train), len(data.test), data.num_classes, data.is_image) == (180, 20, None, False)

    z = data.codec.encode(data.train.x)
    assert z.mean().item() == pytest.approx(0, abs=1e-4)
    assert z.std().item() == pytest.approx(1, abs=1e-2)
    torch.testing.assert_close(data.codec.decode(z), data.train.x)
    rows = {row.tobytes() for row in torch.cat([data.train.x, data.test.x]).numpy()}
    assert rows == {row.tobytes() for row in x}


def test_statistics_come_from_the_training_split_alone(file: Path, tmp_path: Path) -> None:
    train = RNG.standard_normal((100, 2))
    test = write(tmp_path / "test.npz", x=1000 + RNG.standard_normal((10, 2)))
    data = array(write(file, x=train), test_path=test)
    assert isinstance(data.codec, Standardized)
    np.testing.assert_allclose(data.codec.mean.numpy(), train.mean(0))
    np.testing.assert_allclose(data.codec.std.numpy(), train.std(0))
    assert (len(data.train), len(data.test)) == (100, 10)


def test_without_standardisation_values_stay(file: Path) -> None:
    data = array(write(file, x=RNG.standard_normal((10, 2)).astype(np.float32)), standardize=False)
    assert isinstance(data.codec, Standardized) and data.codec.log_det == 0
    assert torch.equal(data.codec.encode(data.train.x), data.train.x)


@pytest.mark.parametrize(
    "stored, expected",
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int16", "float32"),
        (">f8", "float64"),
    ],
)
def test_the_precision_of_the_data_is_kept(file: Path, stored: str, expected: str) -> None:
    data = array(write(file, x=RNG.integers(0, 9, (20, 3)).astype(stored)))
    assert data.train.x.dtype == getattr(torch, expected)


def test_labels_and_conditions_stay_with_their_examples(file: Path) -> None:
    n = np.arange(30)
    data = array(write(file, x=n[:, None] + 0.5, y=n % 3, condition=n * 2.0))
    assert data.num_classes == 3
    for split in (data.train, data.test):
        assert split.label is not None and split.condition is not None
        index = split.x[:, 0] - 0.5
        assert torch.equal(split.label, index.long() % 3)
        torch.testing.assert_close(split.condition[:, 0], 2 * index.float())


def test_a_share_is_refused_where_there_is_a_test_file(file: Path) -> None:
    write(file, x=RNG.standard_normal((10, 2)))
    assert len(array(file, file).test) == 10
    with pytest.raises(ValueError, match=r"data=array with a test_path has no use for test_fraction=0.3"):
        array(file, file, test_fraction=0.3)


def test_names_of_the_arrays(file: Path) -> None:
    x, labels = RNG.standard_normal((10, 2)), np.zeros(10, dtype=np.int32)
    assert array(write(file, samples=x, y=labels)).num_classes == 1
    assert array(write(file, x=x, digit=labels), label_key="digit").num_classes == 1
    assert array(write(file, x=x, y=labels), label_key=None).num_classes is None
    with pytest.raises(ValueError, match="has no array digits, which data.label_key names: there is x"):
        array(write(file, x=x, y=labels), label_key="digits")
    with pytest.raises(ValueError, match="under the name x, got the arrays a, b"):
        array(write(file, a=x, b=x))
    with pytest.raises(ValueError, match=r"got the arrays \(none\)"):
        array(write(file))


def test_levels_make_quantised_data_and_channels_can_be_last(file: Path) -> None:
    x = RNG.integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    data = array(write(file, x=x), levels=256, channels_last=True, test_fraction=0)
    assert (data.shape, data.is_image, data.levels, data.train.x.dtype) == ((3, 4, 5), True, 256, torch.uint8)
    assert sorted(row.tobytes() for row in data.train.x.permute(0, 2, 3, 1).contiguous().numpy()) == sorted(
        row.tobytes() for row in x
    )
    wide = array(write(file, x=np.array([[0.0, 999.0], [3.0, 4.0]])), levels=1000)
    assert wide.train.x.dtype == torch.int32


@pytest.mark.parametrize(
    "x, message",
    [
        (np.array([[0, 17]]), r"levels=17 needs integers in 0..16, got 0..17"),
        (np.array([[-1, 3]]), r"needs integers in 0..16, got -1..3"),
        (np.array([[0.5, 3]]), r"not integers, which levels=17 needs"),
        (np.array([[np.nan, 3]]), r"not integers, which levels=17 needs"),
    ],
)
def test_values_that_are_not_levels_are_refused(file: Path, x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        array(write(file, x=x), levels=17)


def test_rows_that_are_not_finite_are_counted_in_the_order_of_the_file(file: Path) -> None:
    x = RNG.standard_normal((50, 2, 3))
    x[7, 0, 1], x[30, 1, 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"mine.npz: 2 of 50 rows hold NaN or infinity \(first at index 7\)"):
        array(write(file, x=x))
    with pytest.raises(ValueError, match=r"mine.npz, condition: 2 of 50 rows"):
        array(write(file, x=np.arange(50.0), condition=x))


def test_constant_data_are_refused_and_a_constant_feature_is_announced(file: Path) -> None:
    with pytest.raises(ValueError, match="all 18 training rows are equal"):
        array(write(file, x=np.full((20, 4), 3.3)))
    x = RNG.standard_normal((20, 4))
    x[:, 2] = 3.3
    with pytest.warns(UserWarning, match="1 of 4 columns are constant"):
        array(write(file, x=x))


@pytest.mark.parametrize(
    "y, message",
    [
        (np.full(20, -1), "labels that are not negative, got -1 at index 0"),
        (np.arange(20) * 1.0, r"one integer label per example in y: expected shape \(20,\), got float64"),
        (np.arange(19), r"got int64 of shape \(19,\)"),
        (np.arange(20) * 1000, r"labels up to \d+ for 18 training examples, which look like identifiers"),
    ],
)
def test_wrong_labels_are_refused(file: Path, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        array(write(file, x=RNG.standard_normal((20, 2)), y=y))


def test_labels_beyond_num_classes_are_refused(file: Path) -> None:
    write(file, x=RNG.standard_normal((20, 2)), y=np.arange(20) % 4)
    assert array(file, num_classes=7).num_classes == 7
    with pytest.raises(ValueError, match=r"labels in 0..2, got 3 in the training split"):
        array(file, num_classes=3)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_pickles_objects_and_damaged_files_are_refused_and_nothing_runs(file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    refused = r"mine.npz is not a whole .npy, .npz or HDF5 file of plain numbers \(object arrays and pickles"
    file.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(ValueError, match=refused):
        array(file)
    with pytest.raises(ValueError, match=refused):
        array(write(file, x=np.array([Malicious(trace)], dtype=object)))
    assert not trace.exists()

    content = write(file, x=RNG.standard_normal((20, 2))).read_bytes()
    for damaged in (b"", b"1,2,3\n", content[:200], content[:100] + b"\xff" * 20 + content[120:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=refused):
            array(file)


def test_missing_or_impossible_input_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a .npy, .npz or HDF5 file; set data.path to it; none was given"):
        array()
    with pytest.raises(FileNotFoundError, match="mine.npz does not exist"):
        array(file)
    with pytest.raises(FileNotFoundError, match="data.test_path; .*nowhere.npy does not exist"):
        array(write(file, x=np.arange(9.0)), test_path=tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match=r"one shape, got \(1,\) and \(2,\)"):
        array(file, test_path=write(tmp_path / "test.npz", x=np.ones((3, 2))))
    for x in (np.float64(3.0), np.zeros((0, 2)), np.zeros((5, 0))):
        with pytest.raises(ValueError, match=r"at least one entry, got shape"):
            array(write(file, x=x))
    for x in (np.array(["a", "b"]), np.array([1j, 2j])):
        with pytest.raises(ValueError, match="needs real numbers in x, got"):
            array(write(file, x=x))
    with pytest.raises(ValueError, match="one condition per example: 9, got shape"):
        array(write(file, x=np.arange(9.0), condition=np.arange(3.0)))


def test_hdf5_is_read_by_name_and_in_bounds(file: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    x, path = RNG.standard_normal((40, 2, 5)).astype(np.float32), tmp_path / "x.h5"
    with h5py.File(path, "w") as stored:
        stored["run1/x"], stored["x"], stored["y"] = x, x[:, 0] + 1, np.arange(40) % 3
        stored["condition"] = np.arange(40.0)
        stored["zeros"] = h5py.ExternalLink("other.h5", "x")
        stored.create_dataset("bomb", (10**9, 1), "f8", chunks=(10**6, 1), compression="gzip")
    data = array(path, key="run1/x", test_fraction=0)
    assert (data.shape, data.num_classes) == ((2, 5), 3) and data.train.condition is not None
    order = data.train.condition.flatten().long()
    np.testing.assert_array_equal(data.train.x, x[order])
    assert array(path).shape == (5,)
    with pytest.raises(ValueError, match="no array run2/x, which data.key names: there is bomb, condition"):
        array(path, key="run2/x")
    with pytest.raises(ValueError, match="would unpack from"):
        array(path, key="bomb")
    (tmp_path / "x.h5").write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="not a whole .npy, .npz or HDF5 file"):
        array(path)


def test_the_name_of_the_examples_in_npz(file: Path) -> None:
    write(file, x=np.zeros((9, 1)), other=RNG.standard_normal((20, 3)), y=np.arange(20) % 2)
    assert array(file, key="other").shape == (3,)
