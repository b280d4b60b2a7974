"""Images and sequences that examples are conditioned on: how they are kept, and what a network is told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.data.conditions import LOST

PADDING = -1
CHUNK = 4096  # examples at a time
PLACES = {1: "length", 2: "height, width", 3: "depth, height, width"}


class Sequences(NamedTuple):
    """Sequences as they are kept, tokens (N, L) or vectors (N, L, C), and the letters that tokens stand for."""

    tokens: Tensor
    letters: tuple[str, ...] | None


def stored_image(
    where: str, values: NDArray[np.generic], shape: Sequence[int], count: int, *, channels_last: bool
) -> Tensor:
    """Images (N, C, *) as they are kept, in their own units: bytes as such, other numbers in float32 unless that loses.

    Args:
        where: What holds them, for messages.
        values: (N, C, *), (N, *) for one channel, or (N, *, C) with channels_last; of any resolution.
        shape: Event shape of x, (C, *), which has as many axes.
        count: Number N of examples.
        channels_last: Whether the last axis holds channels.
    Raises:
        ValueError: If they are not one image of finite numbers for each example.
    """
    axes = len(shape) - 1
    if axes not in PLACES:
        raise ValueError(f"{where} needs x on a grid for an image as condition, got events of shape {tuple(shape)}: "
                         f"call the images condition.")  # fmt: skip
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{where} needs real numbers in image, got {values.dtype}")
    if values.shape[:1] != (count,) or values.ndim not in (axes + 1, axes + 2) or values.size == 0:
        raise ValueError(
            f"{where} needs one image per example: {count} of shape (channels, {PLACES[axes]}), got {values.shape}"
        )
    values = values[:, None] if values.ndim == axes + 1 else np.moveaxis(values, -1, 1) if channels_last else values
    if values.dtype == np.uint8:
        return torch.from_numpy(np.array(values, order="C"))
    single = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    kept = single if values.dtype.itemsize <= 4 and values.dtype.kind == "f" else torch.from_numpy(
        np.array(values, dtype=np.float64, order="C")
    )  # fmt: skip
    bad = ~kept.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{where}: {int(bad.sum())} of {count} images hold NaN or infinity "
                         f"(first at index {int(bad.nonzero()[0])}); remove or repair them")  # fmt: skip
    exact = kept.dtype == torch.float32 or float((kept - single).abs().max()) <= LOST * float(kept.std(correction=0))
    return single if exact else kept


def stored_sequence(
    where: str, values: NDArray[np.generic], count: int, letters: Sequence[str] | None = None
) -> Sequences:
    """Sequences as they are kept, padded to one length: numbers of tokens with −1, vectors with NaN.

    Args:
        where: What holds them, for messages.
        values: Text (N,), whose tokens are its letters; whole numbers (N, L); or numbers (N, L, C), (N, L) too if they
            are no whole numbers.
        count: Number N of examples.
        letters: Those of text that are known; None: those that it holds, in their order.
    Raises:
        ValueError: If they are not one sequence for each example, with a token at least.
    """
    if values.shape[:1] != (count,) or values.size == 0:
        raise ValueError(f"{where} needs one sequence per example: {count}, got shape {values.shape}")
    if values.dtype.kind == "U":
        if values.ndim != 1:
            raise ValueError(f"{where} needs one text per example in sequence, got shape {values.shape}")
        words = [str(word) for word in values.tolist()]
        known = tuple(sorted(set("".join(words)))) if letters is None else tuple(letters)
        return Sequences(_with_tokens(where, spelt(where, words, known)), known)
    if values.dtype.kind not in "biuf" or values.ndim > 3:
        raise ValueError(
            f"{where} needs text (N,), whole numbers (N, L) or numbers (N, L, C) in sequence, got {values.dtype} of "
            f"shape {values.shape}"
        )
    values = values[:, None] if values.ndim == 1 else values
    if values.dtype.kind in "biu" and values.ndim == 2:
        tokens = torch.from_numpy(np.array(values, dtype=np.int64, order="C"))
        if int(tokens.min()) < PADDING or int(tokens.max()) >= 2**24:
            raise ValueError(
                f"{where} needs tokens that are whole numbers from 0, with -1 for padding, got values from "
                f"{int(tokens.min())} to {int(tokens.max())}"
            )
        return Sequences(_with_tokens(where, tokens.to(torch.int32)), None)
    vectors = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    vectors = vectors[:, :, None] if vectors.ndim == 2 else vectors
    bad = (~vectors.isfinite().all(2) & ~vectors.isnan().all(2)).any(1)
    if bad.any():
        raise ValueError(
            f"{where}: {int(bad.sum())} of {count} sequences hold infinity, or NaN in a part of a vector (first at "
            f"index {int(bad.nonzero()[0])}); padding is NaN in all of it"
        )
    return Sequences(_with_tokens(where, vectors), None)


def spelt(where: str, words: Sequence[str], letters: Sequence[str]) -> Tensor:
    """Texts as numbers of letters, (N, L), padded.

    Raises:
        ValueError: For a letter that is not known.
    """
    number = {letter: k for k, letter in enumerate(letters)}
    for word in words:
        if unknown := [letter for letter in word if letter not in number]:
            raise ValueError(
                f"{where} has the letter {unknown[0]!r} in {word!r}, which the training examples have not: there is "
                f"{''.join(letters)}"
            )
    return padded([[number[letter] for letter in word] for word in words])


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of whole numbers as one tensor (N, L), with −1 where a row is shorter."""
    tokens = torch.full((len(rows), max(1, *map(len, rows), 1)), PADDING, dtype=torch.int32)
    for k, row in enumerate(rows):
        tokens[k, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return tokens


def together(a: Tensor, b: Tensor) -> Tensor:
    """Conditions of two sets of examples as one; sequences of different lengths are padded."""
    if a.shape[1:] != b.shape[1:] and a.ndim == b.ndim:
        length = max(a.shape[1], b.shape[1])
        none = math.nan if a.is_floating_point() else PADDING
        a, b = (
            torch.cat([part, part.new_full((len(part), length - part.shape[1], *part.shape[2:]), none)], 1)
            for part in (a, b)
        )
    return torch.cat([a, b])


def present(sequence: Tensor) -> Tensor:
    """Which places hold a token, (N, L)."""
    return ~sequence.isnan().all(2) if sequence.is_floating_point() else sequence >= 0


def image_options(image: Tensor, categories: int | None, *, optional: bool) -> dict[str, Any]:
    """What a network is told of its images, (N, C, *): options of `ImageCondition`; mean and std to four digits."""
    channels = image.shape[1]
    if categories is not None:
        return {"channels": channels, "categories": [categories] * channels, "optional": optional}
    mean, std = _scales(image.movedim(1, -1))
    return {"channels": channels, "mean": mean, "std": std, "optional": optional}


def sequence_options(sequence: Tensor, vocabulary: int | None, *, optional: bool) -> dict[str, Any]:
    """What a network is told of its sequences: options of `SequenceCondition`.

    Args:
        sequence: Numbers of tokens (N, L), or vectors (N, L, C).
        vocabulary: Number of tokens that there are, of numbers.
        optional: Whether there may be none.
    """
    if not sequence.is_floating_point():
        return {"vocabulary": vocabulary, "optional": optional}
    mean, std = _scales(sequence)
    return {"dim": sequence.shape[2], "mean": mean, "std": std, "optional": optional}


def _scales(values: Tensor) -> tuple[list[float], list[float]]:
    """Mean and std over all but the last axis, of what is not NaN; what never changes has its own size as std."""
    parts = [part.double().flatten(0, -2) for part in values.split(CHUNK)]
    count = sum((~part.isnan()).sum(0) for part in parts)
    mean = sum(part.nansum(0) for part in parts) / count
    std = (sum((part - mean).square().nansum(0) for part in parts) / count).sqrt()
    return [float(f"{m:.6g}") for m in mean.tolist()], [
        float(f"{s:.4g}") if s > 1e-12 * abs(m) else abs(m) or 1.0
        for m, s in zip(mean.tolist(), std.tolist(), strict=True)
    ]


def _with_tokens(where: str, sequence: Tensor) -> Tensor:
    """The sequences, without places that no example has.

    Raises:
        ValueError: If one has no token.
    """
    has = present(sequence)
    if not bool(has.any(1).all()):
        rows = (~has.any(1)).nonzero().flatten()
        raise ValueError(
            f"{where}: {len(rows)} of {len(sequence)} sequences have no token (first at index {int(rows[0])}): give "
            f"what stands for nothing a token of its own"
        )
    return sequence[:, : int(has.any(0).nonzero().max()) + 1].contiguous()
