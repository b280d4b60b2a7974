"""What is written of posteriors: arrays, a table of missing values, errors where the truth is known, one picture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.commands.conditions import Conditions
from scoresde.commands.load import TrainedModel
from scoresde.commands.looks import save_image
from scoresde.commands.observations import Observations, own_values, real_values
from scoresde.commands.posterior_picture import posterior_picture
from scoresde.commands.saved_samples import laid_out, sample_values
from scoresde.files import write_atomically

LEVEL = 0.9  # of intervals
MOST_ROWS = 1_000_000  # of a table of missing values


def write_results(
    out: Path, x: Tensor, observations: Observations, conditions: Conditions, trained: TrainedModel
) -> tuple[dict[str, Any], str]:
    """posterior.npz, posterior.png and, of masks, posterior.csv; returns errors for metrics.json, and words.

    Args:
        out: The folder.
        x: Samples (J, K, *) in the model's scaling.
        observations, conditions: Of what.
        trained: The run.
    """
    out.mkdir(parents=True, exist_ok=True)
    count, each = x.shape[:2]
    values = real_values(x.flatten(0, 1), trained.codec).reshape(count, each, *trained.shape)
    mean, std = values.mean(1), values.std(1, ddof=1) if each > 1 else np.full_like(values[:, 0], np.nan)
    arrays: dict[str, Any] = {
        "samples": sample_values(x.flatten(0, 1), trained),
        "mean": laid_out(mean, trained),
        "std": laid_out(std, trained),
        "index": observations.index.numpy(),
        **_observation(observations, trained),
    }
    arrays["samples"] = arrays["samples"].reshape(count, each, *arrays["samples"].shape[1:])
    truth = None
    if observations.truth is not None:
        truth = real_values(observations.truth, trained.codec)
        arrays["truth"] = laid_out(truth, trained)
    for name, rows in (("y", conditions.label), *conditions.beside.items()):
        if rows is not None:
            arrays[name] = rows.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(out / "posterior.npz", buffer.getvalue())
    hidden = None if observations.observed is None else ~observations.observed.cpu().numpy()
    words = ""
    if hidden is not None and 0 < hidden.sum() <= MOST_ROWS:
        write_atomically(out / "posterior.csv", _table(values, hidden, truth, observations, trained))
        words = f"{int(hidden.sum()):,} values that were not observed, with errors: {out / 'posterior.csv'}\n"
    save_image(out / "posterior.png", posterior_picture(x, observations, trained))
    found = errors(x, observations)
    if found:
        words += _said(found)
    return found, words


def errors(x: Tensor, observations: Observations) -> dict[str, Any]:
    """How far the posteriors are from the truth, in the model's scaling, over what was not observed of a mask.

    rmse: of the posterior mean; std: root mean square of the posterior's standard deviation, which a calibrated
    posterior has equal to rmse on average; coverage90: share of true values within the 90 % interval of their own
    posterior, whose ends are order statistics such that it is 90 % on average for any number of samples.
    """
    truth, seen = observations.truth, observations.observed
    if truth is None:
        return {}
    counts = ~truth.isnan()
    if seen is not None:
        counts &= ~seen.cpu()
    if not bool(counts.any()) or x.shape[1] < 2:
        return {}
    x, truth = x.double(), truth.double()
    error, std = (x.mean(1) - truth)[counts], x.std(1)[counts]
    found = {"rmse": float(error.square().mean().sqrt()), "std": float(std.square().mean().sqrt())}
    if x.shape[1] + 1 >= round(2 / (1 - LEVEL)):
        low, high = np.quantile(x.numpy(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1, method="weibull")
        inside = (torch.from_numpy(low) <= truth) & (truth <= torch.from_numpy(high))
        found["coverage90"] = float(inside[counts].double().mean())
    return found


def _said(found: dict[str, Any]) -> str:
    words = (
        f"root mean square error of the mean {found['rmse']:.3g}, standard deviation of the samples {found['std']:.3g}"
    )
    if "coverage90" in found:
        words += f"; {100 * found['coverage90']:.0f} % of the true values lie in their 90 % intervals"
    return f"{words} (in the model's scaling)\n"


def _observation(observations: Observations, trained: TrainedModel) -> dict[str, NDArray[Any]]:
    """y in the data's own units where it has them, NaN where nothing was observed, and the mask."""
    measurement = observations.measurement
    y, operator, seen = measurement.y.cpu(), measurement.operator.cpu(), observations.observed
    if seen is not None:
        own = np.where(seen.cpu().numpy(), real_values(y, trained.codec), math.nan)
        return {"observation": laid_out(own, trained), "mask": laid_out(seen.cpu().numpy(), trained)}
    own_y = own_values(y, operator, trained.codec)
    if own_y is None:
        return {"observation": y.numpy()}
    values = own_y.numpy()
    return {"observation": laid_out(values, trained) if values.ndim == len(trained.shape) + 1 else values}


def _table(
    values: NDArray[Any], hidden: NDArray[Any], truth: NDArray[Any] | None, observations: Observations,
    trained: TrainedModel,
) -> bytes:  # fmt: skip
    """A line for each value that was not observed: where, mean, std, 5 and 95 %, and the truth where it is known."""
    names, shape = trained.names.columns, trained.shape
    named = names is not None and len(shape) == 1 and len(names) == shape[0]
    axes = ["column"] if len(shape) == 1 else ["channel", *"zyx"[-(len(shape) - 1) :]]
    axes = ["channel", "time"] if len(shape) == 2 else axes
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *axes, "mean", "std", "q05", "q95", *([] if truth is None else ["truth"])])
    index = observations.index.tolist()
    each = values.shape[1]
    for j, *place in np.argwhere(hidden):
        one = values[(j, slice(None), *place)]
        low, high = np.quantile(one, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="weibull")
        where = [names[place[0]].name] if named and names is not None else place
        std = one.std(ddof=1) if each > 1 else math.nan
        cells = [one.mean(), std, low, high, *([] if truth is None else [truth[(j, *place)]])]
        writer.writerow([index[j], *where, *(f"{value:.6g}" for value in cells)])
    return text.getvalue().encode()
