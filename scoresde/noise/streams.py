"""The one place that derives random streams: a stream is a function of (seed, purpose, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str, *index: int) -> int:
    """The 63-bit seed of one of many independent random streams, such as (seed, "batch", step).

    A hash of all its arguments: streams of other seeds, purposes or indices are unrelated, and none is reached twice.

    Args:
        seed: Any whole number.
        purpose: What the stream is for, one word.
        index: Which one of them: a step, a sample, a rank.
    """
    stream = (int(seed), purpose, *map(int, index))
    return int.from_bytes(hashlib.sha256(repr(stream).encode()).digest()[:8], "little") >> 1


def stream_generator(seed: int, purpose: str, *index: int, device: torch.device | str | None = None) -> torch.Generator:
    """A generator at the start of the stream `stream_seed` names; `device` is the CPU if it is None."""
    return torch.Generator("cpu" if device is None else device).manual_seed(stream_seed(seed, purpose, *index))


def sample_seeds(seeds: int | Sequence[int] | Tensor, count: int, owner: str) -> list[int]:
    """One seed per sample: those given, or, from a single one, sample k's is the same in every batch.

    Raises:
        ValueError: If there is neither one seed nor one per sample.
    """
    if isinstance(seeds, int):
        return [stream_seed(seeds, "sample", k) for k in range(count)]
    if len(seeds) != count:
        raise ValueError(
            f"{owner} needs one seed per sample: expected {count}, got {len(seeds)}. "
            f"Pass a single whole number to have them derived."
        )
    return [int(seed) for seed in seeds]
