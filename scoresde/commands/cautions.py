"""What is said of data before a model is trained on them: what it cannot learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from scoresde.data import Dataset
from scoresde.sde import SDE

LOOKED_AT = 4096  # examples
NAMED = 5  # classes
RARELY = 0.05  # of the examples


def cautions(data: Dataset, sde: object, *, labelled: bool) -> Iterator[str]:
    """A sentence for each thing that a model of these data cannot learn.

    Args:
        data: The data.
        sde: The model's process; anything else is passed over.
        labelled: Whether it is a model of classes.
    """
    if labelled and (unseen := data.unseen_classes):
        named = ", ".join(unseen[:NAMED]) + (", ..." if len(unseen) > NAMED else "")
        noun = "classes have" if len(unseen) > 1 else "class has"
        yield f"{len(unseen)} {noun} no example in data={data.name}, and cannot be drawn: {named}."
    if isinstance(sde, SDE) and (lost := unresolved(data, sde)):
        yield lost


def rarely_without_all(loss: Mapping[str, Any], data: Dataset, *, labelled: bool) -> Iterator[str]:
    """A sentence if all conditions are hardly ever dropped together, which guidance away from all of them asks for.

    Args:
        loss: Its configuration.
        data: The data.
        labelled: Whether labels are a condition.
    """
    names = [*(["label"] if labelled else []), *data.train.given]
    rates = [loss.get(f"{name}_dropout") or 0 for name in names]
    joint, both = loss.get("joint_dropout") or 0, math.prod(rates)
    if len(names) > 1 and 0 < both < RARELY and joint < RARELY:
        yield (
            f"{' and '.join(names)} are dropped independently, together in {100 * both:.2g} % of the examples, and "
            f"guidance=cfg drops all: add loss.joint_dropout=0.1 to train for that."
        )


def unresolved(data: Dataset, sde: SDE) -> str | None:
    """What varies too little between examples, in one sentence; None if nothing does.

        std over examples of a column, or of a channel at one place (root mean square over places)  <  σ/α at t_min

    in the model's scaling. What does not vary at all has no density, and is passed over here.
    """
    x = data.codec.encode(data.train.x[:LOOKED_AT], dequantize=False).double()
    variance = (x - x.nanmean(0)).square().nanmean(0).nan_to_num(0.0)
    std = (variance if variance.ndim == 1 else variance.flatten(1).mean(1)).sqrt()
    end = torch.tensor(sde.t_min, dtype=torch.float64)
    with torch.no_grad():
        noise = float((sde.sigma(end) / sde.alpha(end)).cpu())
    lost = ((std > 0) & (std < noise)).nonzero().flatten().tolist()
    if not lost:
        return None
    noun = "column" if x.ndim == 2 else "channel"
    columns = data.names.columns
    name = columns[lost[0]].name if columns is not None and x.ndim == 2 else lost[0]
    more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
    return (
        f"{noun} {name}{more} of data={data.name} varies by {float(std[lost[0]]):.2g} between examples in the model's "
        f"scaling, and the noise at sde.t_min={sde.t_min:g} is {noise:.2g}: it can be neither drawn nor scored; give "
        f"the difference from what is common to all examples, keep data.standardize=true, or set a smaller sde.t_min."
    )
