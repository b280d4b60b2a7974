"""Which data these are: numbers by which a run knows its own data again, wherever they lie."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.data.dataset import Dataset, Split

CHUNK = 1 << 20  # entries at a time, so that sums in double precision need no copy of the data


def fingerprint(data: Dataset) -> dict[str, Any]:
    """Plain values that tell these data from others: of each split the count, mean and std of x, and a hash.

    The hash is SHA-256 over every byte of x, labels and all conditions, with their types and shapes, as they are in
    memory: a second or two per gigabyte of numbers, four of pixels. Mean and std say in words how two data sets differ.
    """
    return {"shape": list(data.shape), "train": _of_split(data.train), "test": _of_split(data.test)}


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How data differ from earlier ones, by their fingerprints, in words; None if they are the same."""
    if list(before["shape"]) != list(now["shape"]):
        return f"events of shape {tuple(now['shape'])}, where there were events of shape {tuple(before['shape'])}"
    for part, noun in (("train", "training examples"), ("test", "test examples")):
        was, new = before[part], now[part]
        if was["hash"] == new["hash"]:
            continue
        if all(was[key] == new[key] for key in ("count", "mean", "std")):
            return f"{noun} of the same count, mean and std as before, but other values, labels or conditions"
        return f"{new['count']} {noun} {_moments(new)}, where there were {was['count']} {_moments(was)}"
    return None


def _of_split(split: Split) -> dict[str, Any]:
    digest = hashlib.sha256()
    later = [part for part in (split.image, split.sequence) if part is not None]  # which earlier versions had not
    for part in (split.x, split.label, split.condition, *later):
        digest.update(f"{None if part is None else (part.dtype, tuple(part.shape))};".encode())
        if part is not None:
            digest.update(part.contiguous().numpy().data)
    mean, std = _mean_and_std(split.x)
    return {"count": len(split), "mean": mean, "std": std, "hash": digest.hexdigest()[:32]}


def _mean_and_std(x: Tensor) -> tuple[float, float]:
    """To six digits; two passes, one number for all entries."""
    flat = x.flatten()
    if x.is_floating_point() and bool(x.isnan().any()):
        flat = flat[~flat.isnan()]  # gaps
    chunks, count = flat.split(CHUNK), max(flat.numel(), 1)
    mean = math.fsum(float(chunk.sum(dtype=torch.float64)) for chunk in chunks) / count
    square = math.fsum(float((chunk.double() - mean).square().sum()) for chunk in chunks) / count
    return float(f"{mean:.6g}"), float(f"{math.sqrt(square):.6g}")


def _moments(part: Mapping[str, Any]) -> str:
    return f"of mean {part['mean']:.4g} and std {part['std']:.4g}"
