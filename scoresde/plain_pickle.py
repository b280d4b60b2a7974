"""Pickles of tensors, arrays and plain values: nothing in them runs, and they take no more memory than their files."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_DTYPE = re.compile(r"[|<>=]?([?bhilqBHILQefd]|b1|[iu][1248]|f[248])")


class NotPlain(pickle.UnpicklingError):
    """A pickle asks for something else than plain values, tensors and arrays."""


def read_tensors(file: BinaryIO, known: Mapping[tuple[str, str], Any] = {}) -> Any:
    """What `torch.save` wrote: tensors in plain containers.

    Args:
        file: The zip archive.
        known: More classes and functions that may be called, by module and name.
    Raises:
        NotPlain: If it holds anything else.
        Exception: Of many types, if it is damaged; its members have checksums.
    """
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > size:
            raise ValueError("the members of the archive are not stored as they are")
        return _TensorReader(archive, known).load()


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that calls nothing but what it knows, after a look at the whole pickle."""

    allowed = "tensors"

    def __init__(self, content: bytes, known: Mapping[tuple[str, str], Any], encoding: str = "ASCII") -> None:
        check_pickle(io.BytesIO(content), len(content))
        super().__init__(io.BytesIO(content), encoding=encoding)
        self._known = {**known, ("collections", "OrderedDict"): OrderedDict}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise NotPlain(f"it asks for {module}.{name}, and only {self.allowed} are allowed") from None


def check_pickle(file: BinaryIO, size: int) -> None:
    """Raise ValueError if what a pickle of so many bytes says of lengths and places is not true; runs nothing."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name.endswith("PUT") and not 0 <= int(str(argument)) <= size:  # for which memory would be set aside
            raise ValueError("it numbers more objects than it can hold")
        if opcode.name == "GLOBAL" and str(argument).endswith(" bytearray"):  # of any number of zeros
            raise NotPlain("it asks for bytearray")


class _TensorReader(_PlainUnpickler):
    def __init__(self, archive: zipfile.ZipFile, known: Mapping[tuple[str, str], Any]) -> None:
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        self._archive, self._root = archive, name.removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
            raise ValueError("it was written on a machine with another order of bytes")
        self._storages: dict[str, Tensor] = {}
        types: dict[tuple[str, str], Any] = {("torch", name): dtype for name, dtype in _STORAGES.items()}
        super().__init__(archive.read(name), {**known, **types, ("torch._utils", "_rebuild_tensor_v2"): _tensor})

    def persistent_load(self, pid: Any) -> Tensor:
        """All entries of a storage, (n,)."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise NotPlain("it refers to something else than storages")
        if key not in self._storages:
            member = self._archive.getinfo(f"{self._root}data/{key}")
            if member.file_size != count * dtype.itemsize:
                raise ValueError("a storage has another size than it says")
            content = bytearray(member.file_size)
            with self._archive.open(member) as file:
                if file.readinto(content) != len(content) or file.read(1):  # type: ignore[attr-defined]
                    raise ValueError("a storage is incomplete")
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if self._storages[key].dtype != dtype:
            raise ValueError("a storage has two types")
        return self._storages[key]


def _tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any) -> Tensor:
    """A tensor that lies in its storage, and is no larger."""
    numbers = (offset, *size, *stride)
    whole = len(size) == len(stride) and all(type(number) is int and number >= 0 for number in numbers)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if not whole or not isinstance(flat, Tensor) or math.prod(size) > len(flat):
        raise ValueError("a tensor is larger than its storage")
    if math.prod(size) > 0 and last >= len(flat):
        raise ValueError("a tensor lies outside its storage")
    return flat.as_strided(size, stride, offset)


class ArrayUnpickler(_PlainUnpickler):
    """Reads a mapping of numpy arrays, numbers, texts and containers, of any version of numpy and of Python."""

    allowed = "numpy arrays"

    def __init__(self, file: BinaryIO, *, encoding: str = "latin1") -> None:
        super().__init__(file.read(), NUMPY, encoding)

    def load(self) -> Any:
        """What was pickled.

        Raises:
            NotPlain: If it holds anything else.
            Exception: Of many types, if it is damaged.
        """
        value = super().load()
        items = value.items() if isinstance(value, dict) else []
        return {key: item.value if isinstance(item, _Array) else item for key, item in items}


class _Dtype:
    """Stands for numpy's dtype while an array is read."""

    def __init__(self, code: Any, *unused: Any) -> None:
        text = code.decode() if isinstance(code, bytes) else str(code)
        if not _DTYPE.fullmatch(text):
            raise NotPlain(f"it holds arrays of {text[:20]}")
        self.value = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.value = self.value.newbyteorder(">" if order == ">" else "<" if order == "<" else "=")


class _Array:
    """Stands for numpy's array while it is read: numpy would set aside any memory that it is asked for."""

    def __init__(self, *unused: Any) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, content = state
        self.value = _filled(content, dtype, shape, "F" if fortran else "C").value


def _filled(content: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    made = _Array()
    if not isinstance(content, str | bytes | bytearray | pickle.PickleBuffer):
        raise ValueError("an array has no content")
    buffer = content.encode("latin1") if isinstance(content, str) else bytes(content)
    made.value = np.frombuffer(buffer, dtype.value).reshape(tuple(shape), order=order)
    return made


def _number(dtype: Any, content: Any) -> Any:
    return _filled(content, dtype, ()).value[()]


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


NUMPY: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype} | {
    ("_codecs", "encode"): _latin1
}
for _core in ("numpy.core", "numpy._core"):  # which moved between versions
    NUMPY |= {(f"{_core}.multiarray", "_reconstruct"): _Array, (f"{_core}.multiarray", "scalar"): _number}
    NUMPY |= {(f"{_core}.numeric", "_frombuffer"): _filled}
