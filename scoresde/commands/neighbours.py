"""`neighbours=...` of `sample.py`: training examples next to the samples: was one learned by heart?"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.commands.load import TrainedModel
from scoresde.commands.looks import kind_of, model_values, save_image, stored_values
from scoresde.data import Dataset, Quantized
from scoresde.files import write_atomically
from scoresde.noise import stream_generator
from scoresde.pictures.neighbours_sheet import neighbours_picture
from scoresde.progress import Progress

MOST = 256  # samples, and test examples, whose neighbours are looked for
AT_ONCE = 2**24  # entries of training examples
RARE = 0.01  # share of test examples that are nearer to a training example than the bound


class Nearest(NamedTuple):
    """The k training examples next to each of n points: distances, least first, and rows; both (n, k)."""

    distance: Tensor
    row: Tensor

    def merged(self, other: Nearest) -> Nearest:
        """The nearest of both, as many as there are in one."""
        both, rows = torch.cat([self.distance, other.distance], 1), torch.cat([self.row, other.row], 1)
        distance, order = both.topk(self.distance.shape[1], largest=False)
        return Nearest(distance, rows.gather(1, order))


def nearest(points: Tensor, parts: Iterator[Tensor], k: int, *, skip: Tensor | None = None) -> Nearest:
    """Of points (n, d), among the rows of parts (m, d), by root mean square difference.

    Args:
        points: Whose neighbours.
        parts: The training examples, in order.
        k: How many.
        skip: (n,): a row that is not to be found, for points that are training examples themselves.
    """
    distance, row = points.new_full((len(points), 0), math.inf), torch.zeros(len(points), 0, dtype=torch.long)
    first = 0
    for part in parts:
        between = torch.cdist(points, part, compute_mode="donot_use_mm_for_euclid_dist") / part.shape[1] ** 0.5
        number = torch.arange(first, first + len(part)).expand(len(points), -1)
        if skip is not None:
            between = between.masked_fill(number == skip[:, None], math.inf)
        both, numbers = torch.cat([distance, between], 1), torch.cat([row, number], 1)
        distance, order = both.topk(min(k, both.shape[1]), largest=False)
        row, first = numbers.gather(1, order), first + len(part)
    return Nearest(distance, row)


def look_for_neighbours(
    trained: TrainedModel, data: Dataset, x: Tensor, k: int, out: Path, seed: int
) -> tuple[dict[str, Any], str]:
    """neighbours.png and neighbours.npz; returns what metrics.json says of them, and one sentence.

    Args:
        trained: The run.
        data: Its data.
        x: Samples in the model's scaling.
        k: Neighbours of each.
        out: Where to.
        seed: Of the choice of examples to compare with.
    """
    k = min(k, len(data.train) - 1)
    points = _exactly(data, x[:MOST])
    tests, name, skip = _compared(data, seed)
    with Progress("neighbours", (2 + data.flip) * len(data.train), "examples") as progress:
        found = nearest(points.flatten(1), _parts(data, progress), k)
        if data.flip:  # the model has seen its examples mirrored too
            found = found.merged(nearest(points.flip(-1).flatten(1), _parts(data, progress), k))
        others = nearest(_flat(data, tests), _parts(data, progress), 1, skip=skip).distance[:, 0]
    closest = found.distance[:, 0]
    bound = float(others.quantile(RARE)) if len(others) * RARE >= 1 else float(others.min())
    nearer, chance = int((closest < bound).sum()), max(RARE, 1 / (len(others) + 1)) * len(points)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, row=found.row.numpy(), distance=found.distance.numpy(), compared_distance=others.numpy()
    )
    write_atomically(out / "neighbours.npz", buffer.getvalue())
    order = closest.argsort()
    picture = neighbours_picture(
        kind_of(trained.shape), model_values(trained.codec, x[:MOST])[order.numpy()],
        stored_values(data.codec, data.train.x[found.row[order][:8].flatten()]), found.distance[order].numpy(),
        others.numpy(), name, bound,
    )  # fmt: skip
    save_image(out / "neighbours.png", picture)
    many = nearer > chance + 3 * chance**0.5 + 1
    verdict = "more than chance: training examples are repeated" if many else "no more than chance"
    few = f"1 % of {name}" if len(others) * RARE >= 1 else f"none of {len(others)} {name}"
    middle, usual = float(closest.median()), float(others.median())
    sentence = (
        f"next training example: {middle:.3g} away from samples and {usual:.3g} from {name} (medians, in the model's "
        f"scaling); {nearer} of {len(points)} samples are nearer than {bound:.3g}, as {few} are, {verdict}: "
        f"{out / 'neighbours.png'} and neighbours.npz\n"
    )
    numbers = {"median": middle, "compared_median": usual, "bound": bound, "nearer": nearer, "of": len(points)}
    return {"neighbours": numbers}, sentence


def _compared(data: Dataset, seed: int) -> tuple[Tensor, str, Tensor | None]:
    """Examples that samples are compared with: of the test split, or of the training split, which do not find
    themselves."""
    generator = stream_generator(seed, "order")
    if len(data.test) > 1:
        return data.test.x[torch.randperm(len(data.test), generator=generator)[:MOST]], "test examples", None
    rows = torch.randperm(len(data.train), generator=generator)[:MOST]
    return data.train.x[rows], "other training examples", rows


def _exactly(data: Dataset, x: Tensor) -> Tensor:
    """Samples in the middle of the cells of quantised data, where examples are put as well."""
    return data.codec.encode(data.codec.decode(x), dequantize=False) if isinstance(data.codec, Quantized) else x


def _flat(data: Dataset, x: Tensor) -> Tensor:
    """In the model's scaling, (n, d), with zeros in gaps."""
    return data.codec.encode(x, dequantize=False).float().flatten(1).nan_to_num(0.0)


def _parts(data: Dataset, progress: Progress) -> Iterator[Tensor]:
    size = max(1, AT_ONCE // data.train.x[0].numel())
    for part in data.train.x.split(min(size, 4096)):
        yield _flat(data, part)
        progress.advance(len(part))
