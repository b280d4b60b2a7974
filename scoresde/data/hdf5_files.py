"""HDF5 files, as collections of arrays."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoresde.data.bounded import check_unpacked
from scoresde.files import check_regular, open_regular

MARK = b"\x89HDF\r\n\x1a\n"  # the first bytes of a file


def is_hdf5(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(MARK)) == MARK


def hdf5_names(path: Path) -> list[str]:
    """Paths of the arrays of numbers in a file, as group/x."""
    h5py = _h5py(path)
    names: list[str] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            names.append(name)

    with h5py.File(path, "r") as file:
        file.visititems(look)  # follows no links to other files
    return names


def read_hdf5(path: Path, wanted: Collection[str]) -> dict[str, NDArray[np.generic]]:
    """Arrays of numbers by path, those that are wanted and there.

    Raises:
        ValueError: If an array lies in another file, or would unpack to far more than this one.
    """
    h5py = _h5py(path)
    found: dict[str, NDArray[np.generic]] = {}
    with h5py.File(path, "r") as file:
        for name in wanted:
            item = file.get(name)
            if not isinstance(item, h5py.Dataset):
                continue
            if item.file.filename != file.filename or item.external or item.is_virtual:
                raise ValueError(f"its array {name} lies in another file")
            check_unpacked(path, item.nbytes, min(item.id.get_storage_size(), path.stat().st_size))
            found[name] = np.asarray(item[()])
    return found


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} needs h5py, which is not installed: pip install 'scoresde[data]'") from error
    check_regular(path)
    return h5py
