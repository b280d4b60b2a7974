"""Batches of training examples, a function of their number, and what models of them are conditioned on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scoresde.data import Dataset, Split, batch_indices, random_crop, random_flip
from scoresde.noise import stream_generator


class Batches:
    """Batch k of an infinite, reproducible stream: a function of (seed, k), so resuming needs no state.

    Args:
        data: Where from.
        batch_size: Examples per batch.
        seed: Of the order, flips, crops and dequantisation.
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
        cond = conditions_at(split, rows, labelled=self.labelled)
        for wanted, change in (
            (self.data.flip, random_flip),
            (self.data.crop, partial(random_crop, share=self.data.crop)),
        ):
            if wanted:  # of the image that x is given, in the same way
                before = generator.get_state()
                x = change(x, generator=generator)
                if "image" in cond:
                    cond["image"] = change(cond["image"], generator=torch.Generator().set_state(before))
        x = self.data.codec.encode(x, generator=generator, dequantize=self.dequantize)
        if self.data.missing:
            x, cond["concat"] = without_gaps(x)
        return x, cond


def without_gaps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Examples in model space with 0 in place of NaN, and which entries these are, as `MissingEntries` takes them."""
    gaps = x.isnan()
    return x.masked_fill(gaps, 0.0), gaps.to(x.dtype)


def own_conditions(data: Dataset, count: int, *, labelled: bool, training: bool = False) -> dict[str, Tensor]:
    """Labels and conditions of the test split in its order, from the first again where there are fewer.

    Args:
        data: Whose; of the training split if there is no test split.
        count: Number of rows.
        labelled: Whether to give labels.
        training: Take the training split.
    """
    split = data.train if training or len(data.test) == 0 else data.test
    return conditions_at(split, torch.arange(count) % len(split), labelled=labelled)


def conditions_at(split: Split, rows: Tensor, *, labelled: bool) -> dict[str, Tensor]:
    """Labels and conditions of some examples, those that there are."""
    label = {"label": split.label} if labelled and split.label is not None else {}
    return {key: value[rows] for key, value in {**label, **split.given}.items()}
