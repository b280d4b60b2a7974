"""Normal numbers that are a function of a key, and sums of them: no state travels from draw to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.noise.streams import sample_seeds

Words: TypeAlias = NDArray[np.uint64]

WORD = 2**64 - 1
FEW = 64  # entries per sample below which hashing all samples at once beats seeding a generator for each
_BLOCK = 2**18  # normals hashed at a time
_FRESH = 0x6672657368  # sets the ids of fresh draws apart from those of nodes


def mix(word: Any) -> Any:
    """A bijection of 64-bit words that scatters neighbours: one step of SplitMix64.

    Args:
        word: An int, a uint64 array, or an int64 tensor, whose bits are the word's.

    References:
        Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    golden, first, second, mask = _SIGNED if isinstance(word, Tensor) else _UNSIGNED
    word = (word + golden) & mask
    word = ((word ^ (word >> 30 & WORD >> 30)) * first) & mask
    word = ((word ^ (word >> 27 & WORD >> 27)) * second) & mask
    return word ^ (word >> 31 & WORD >> 31)


_UNSIGNED = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, WORD)
_SIGNED = tuple((number + 2**63) % 2**64 - 2**63 for number in _UNSIGNED)  # the same bits as int64


def sample_keys(seeds: int | Sequence[int] | Tensor, count: int, owner: str) -> list[int]:
    """One 64-bit key per sample, from seeds as for `sample_seeds`."""
    return [mix(seed & WORD) for seed in sample_seeds(seeds, count, owner)]


def hashed_signs(t: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """±1 for every place of an event, int64, (1, *shape) or (B, *shape) like t: a hash of (63-bit seed, t, place)."""
    place = torch.arange(1, math.prod(shape) + 1, device=t.device)
    words = mix(t.detach().double().reshape(-1, 1).contiguous().view(torch.int64) ^ seed)
    return (1 - 2 * (mix(words ^ place) & 1)).reshape(-1, *shape)


def keyed_normals(keys: Sequence[int], entries: int, generator: torch.Generator) -> Tensor:
    """A row of N(0, 1) entries per key, float32 on the CPU, shape (len(keys), entries).

    A row is a function of its key and of `entries`. Rows of `FEW` entries or more are what torch's Mersenne Twister
    gives when seeded with the key, of which it uses 32 bits.

    Args:
        keys: 64-bit words.
        entries: Length of a row.
        generator: On the CPU; reseeded for every row.
    """
    if entries < FEW:
        return torch.from_numpy(hashed_normals(np.array(keys, dtype=np.uint64), entries))
    return fill_normals(torch.empty(len(keys), entries), keys, generator)


def fill_normals(rows: Tensor, keys: Sequence[int], generator: torch.Generator) -> Tensor:
    """The rows, filled with what torch draws after seeding the generator with the key of each."""
    for row, key in zip(rows if len(keys) != 1 else (rows,), keys, strict=True):
        row.normal_(generator=generator.manual_seed(key))
    return rows


def hashed_normals(keys: Words, entries: int) -> NDArray[np.float32]:
    """N(0, 1) entries by hashing (key, pair number) and the Box-Muller transform, shape (*keys.shape, entries)."""
    pairs = np.arange(1, (entries + 1) // 2 + 1, dtype=np.uint64)
    words = mix(mix(keys[..., None]) ^ pairs)
    radius = np.sqrt(-2 * np.log(((words >> 32) + 0.5) * 2.0**-32))
    angle = (words & 0xFFFFFFFF) * (2 * np.pi * 2.0**-32)
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normals.reshape(*keys.shape, 2 * len(pairs))[..., :entries].astype(np.float32)


class KeyedSums:
    """Weighted sums of the draws that nodes of a tree hold for every sample, Σ_i w_i ξ(key, id_i).

    Draws are float32; sums are float64 if `dtype` is, else float32. The draws of the last sum are kept, as the next
    one shares most of them; results do not depend on what is kept.

    Args:
        keys: One 64-bit word per sample.
        entries: Of one sample.
        dtype: Of the data.
    """

    def __init__(self, keys: Sequence[int], entries: int, dtype: torch.dtype) -> None:
        self.keys, self.entries = list(keys), entries
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._words = np.array(self.keys, dtype=np.uint64)
        self._generator = torch.Generator()
        self._kept: dict[int, Tensor] = {}
        self._spare: list[Tensor] = []
        self._places = np.arange(len(self.keys))  # in the batch that this one was selected from, which owns these two:
        self._fresh = np.zeros(len(self.keys), dtype=np.uint64)
        self._singles: dict[int, KeyedSums] = {}

    def select(self, rows: NDArray[np.int64]) -> KeyedSums:
        """The same for some of the samples, which go on sharing what they keep and count."""
        chosen = KeyedSums([self.keys[row] for row in rows.tolist()], self.entries, self.dtype)
        chosen._places, chosen._fresh, chosen._singles = self._places[rows], self._fresh, self._singles
        return chosen

    def fresh(self) -> Tensor:
        """For each sample the next of its own sequence of independent draws, (B, entries)."""
        words = mix(self._words ^ mix(_FRESH + self._fresh[self._places]))
        self._fresh[self._places] += np.uint64(1)
        return keyed_normals(words.tolist(), self.entries, self._generator).to(self.dtype)

    def sums(self, ids: Words, *weights: NDArray[np.float64]) -> tuple[Tensor, ...]:
        """One sum (B, entries) per argument after ids.

        Args:
            ids: Nodes (B, L), or (1, L) if all samples have the same.
            weights: Of the nodes, in the shape of ids.
        """
        if self.entries < FEW or not self.keys:
            return self._hashed_sums(ids, weights)
        if len(ids) == 1:
            return self.shared_sums(*nonzero(ids[0], [weight[0] for weight in weights]))
        rows = [
            self._single(k).shared_sums(*nonzero(ids[k], [weight[k] for weight in weights])) for k in range(len(ids))
        ]
        return tuple(torch.cat(column) for column in zip(*rows, strict=True))

    def shared_sums(self, ids: Sequence[int], *weights: Sequence[float]) -> tuple[Tensor, ...]:
        """`sums` for nodes and weights that all samples share, as plain numbers; for many entries."""
        needed, kept = set(ids), self._kept
        for node in [node for node in kept if node not in needed]:
            self._spare.append(kept.pop(node))
        totals: list[Tensor] = []
        for node, *coefficients in zip(ids, *weights, strict=True):
            draw = kept.get(node)
            if draw is None:
                draw = kept[node] = self._draw(node)
            if totals:
                for total, coefficient in zip(totals, coefficients, strict=True):
                    total.add_(draw, alpha=coefficient)
            else:
                totals = [draw * coefficient for coefficient in coefficients]
        return tuple(totals) or tuple(torch.zeros(len(self.keys), self.entries, dtype=self.dtype) for _ in weights)

    def _draw(self, node: int) -> Tensor:
        words = [mix(key ^ node) for key in self.keys]
        if self.dtype == torch.float64:
            return keyed_normals(words, self.entries, self._generator).double()
        # memory that was just written is several times faster than what the allocator would have to ask for
        spare = self._spare.pop() if self._spare else torch.empty(len(words), self.entries)
        return fill_normals(spare, words, self._generator)

    def _single(self, row: int) -> KeyedSums:
        place = int(self._places[row])
        if place not in self._singles:
            self._singles[place] = KeyedSums([self.keys[row]], self.entries, self.dtype)
        return self._singles[place]

    def _hashed_sums(self, ids: Words, weights: Sequence[NDArray[np.float64]]) -> tuple[Tensor, ...]:
        used = np.any([weight.any(0) for weight in weights], axis=0)
        ids, weights = ids[:, used], [weight[:, used] for weight in weights]
        totals = np.zeros((len(weights), len(self.keys), self.entries))
        block = max(1, _BLOCK // max(1, len(self.keys) * self.entries))
        for start in range(0, ids.shape[1], block):
            nodes = ids[:, start : start + block]
            draws = hashed_normals(mix(self._words[:, None] ^ nodes), self.entries)
            for column in range(nodes.shape[1]):
                for total, weight in zip(totals, weights, strict=True):
                    total += weight[:, start + column, None] * draws[:, column]
        return tuple(torch.from_numpy(total).to(self.dtype) for total in totals)


def nonzero(ids: Words, weights: Sequence[NDArray[np.float64]]) -> list[Any]:
    """Lists of the nodes (L,) that have a weight, and of their weights."""
    used = np.any(weights, axis=0)
    return [ids[used].tolist(), *(weight[used].tolist() for weight in weights)]


def deliver(rows: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows drawn on the CPU as a tensor of the caller's shape, dtype and device; the copy to a GPU does not wait."""
    rows = rows.view(shape)
    if rows.dtype != dtype:
        rows = rows.to(dtype)
    if device.type == "cpu":
        return rows
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)
