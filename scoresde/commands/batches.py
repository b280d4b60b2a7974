"""Batches of training examples, a function of their number."""

from __future__ import annotations

from torch import Tensor

from scoresde.data import Dataset, batch_indices, random_flip
from scoresde.noise import stream_generator


class Batches:
    """Batch k of an infinite, reproducible stream: a function of (seed, k), so resuming needs no state.

    Args:
        data: Where from.
        batch_size: Examples per batch.
        seed: Of the order, flips and dequantisation.
        labelled: Whether to hand on labels.
        dequantize: Whether levels are spread over their cells; otherwise they lie at the centres.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, *, labelled: bool, dequantize: bool = True) -> None:
        self.data, self.batch_size, self.seed, self.labelled = data, batch_size, seed, labelled
        self.dequantize = dequantize

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        split = self.data.train
        rows = batch_indices(len(split), self.batch_size, step, self.seed)
        generator = stream_generator(self.seed, "batch", step)
        x = split.x[rows]
        if self.data.flip:
            x = random_flip(x, generator)
        cond = {}
        if self.labelled and split.label is not None:
            cond["label"] = split.label[rows]
        if split.condition is not None:
            cond["condition"] = split.condition[rows]
        return self.data.codec.encode(x, generator=generator, dequantize=self.dequantize), cond
