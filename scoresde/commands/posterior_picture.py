"""One picture of posteriors: truth, observation, samples, mean and standard deviation, a row for each observation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scoresde.commands.load import TrainedModel
from scoresde.commands.looks import kind_of
from scoresde.commands.observations import Observations, own_values, real_values
from scoresde.data import Quantized
from scoresde.inverse import LinearOperator
from scoresde.pictures.posterior_sheet import Seen, curves_sheet, image_sheet

MOST = 8  # observations


def posterior_picture(x: Tensor, observations: Observations, trained: TrainedModel) -> Image.Image:
    """Of samples (J, K, *) in the model's scaling; images in the data's own units, rows of a table standardised."""
    kind, rows = kind_of(trained.shape), min(MOST, len(x))
    samples, truth = x[:rows], observations.truth
    measured = _measured(observations, trained, rows)
    hidden = None if observations.observed is None else ~observations.observed[:rows].cpu().numpy()
    truth = None if truth is None else truth[:rows]
    if kind == "table":  # columns have units of their own
        arrays = samples.double().numpy(), None if truth is None else truth.double().numpy()
        seen = observations.measurement.y[:rows].cpu().double().numpy() if hidden is not None else None
    else:
        flat = real_values(samples.flatten(0, 1), trained.codec).reshape(samples.shape)
        arrays = flat, None if truth is None else real_values(truth, trained.codec)
        seen = measured
    shown = Seen(samples=arrays[0], truth=arrays[1], observation=seen, hidden=hidden)
    if kind in ("image", "volume"):
        span = (0.0, trained.codec.levels - 1.0) if isinstance(trained.codec, Quantized) else None
        return image_sheet(shown, span)
    columns = trained.names.columns
    return curves_sheet(shown, None if columns is None or kind != "table" else [column.name for column in columns])


def _measured(observations: Observations, trained: TrainedModel, rows: int) -> NDArray[np.float64] | None:
    """y as something that can be shown beside an event: in own units, or A⁺ y if it is of another kind."""
    measurement = observations.measurement
    y, operator = measurement.y.cpu(), measurement.operator.cpu()
    if observations.observed is not None:
        return real_values(y[:rows], trained.codec)  # type: ignore[no-any-return]
    if y.ndim == len(trained.shape) + 1 and y.ndim > 2:
        own = own_values(y[:rows], operator, trained.codec)
        return (y[:rows].double() if own is None else own).numpy()
    if isinstance(operator, LinearOperator):
        with torch.no_grad():
            return real_values(operator.pseudo_inverse(y)[:rows], trained.codec)  # type: ignore[no-any-return]
    return None
