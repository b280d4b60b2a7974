"""How good a classifier is: whom it confuses, and whether its probabilities are what they say."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_whole


class Classification(NamedTuple):
    """Result of `classification`, for B examples and K classes.

    Attributes:
        confusion: Examples of class i that are taken for class j, (K, K), whole numbers.
        accuracy, accuracy_std_error: Share that is right.
        nats: Mean of −log p(label | x); log K for one who knows nothing.
        ece: Expected calibration error: mean of |accuracy − confidence| over bins of the confidence max p(y | x),
            weighted by their examples.
        counts: Examples in each bin of the confidence, (bins,); bins are of equal width from 0 to 1.
        confidence, right: Mean confidence and share that is right in each bin; NaN in empty ones.
    """

    confusion: Tensor
    accuracy: float
    accuracy_std_error: float
    nats: float
    ece: float
    counts: Tensor
    confidence: Tensor
    right: Tensor


def classification(log_prob: Tensor, label: Tensor, *, bins: int = 10) -> Classification:
    """Confusion, accuracy and calibration of class probabilities.

    Args:
        log_prob: log p(y | x), (B, K).
        label: True classes, (B,) whole numbers.
        bins: Of the confidence.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
    """
    check_whole("classification", "bins >= 1", bins=bins)
    if log_prob.ndim != 2 or label.shape != log_prob.shape[:1] or label.is_floating_point() or len(label) == 0:
        raise ValueError(
            f"classification needs log_prob (B, K) and a label (B,) of whole numbers, got shapes "
            f"{tuple(log_prob.shape)} and {tuple(label.shape)} of {label.dtype}."
        )
    count, classes = log_prob.shape
    if int(label.min()) < 0 or int(label.max()) >= classes:
        raise ValueError(
            f"classification needs labels in 0..{classes - 1}, got {int(label.min())} to {int(label.max())}."
        )
    log_prob, label = log_prob.double().cpu().log_softmax(1), label.long().cpu()
    top, taken = log_prob.max(1)
    confidence, right = top.exp(), (taken == label).double()
    confusion = torch.bincount(label * classes + taken, minlength=classes**2).reshape(classes, classes)
    place = (confidence * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=values, minlength=bins) for values in (confidence, right)]
    accuracy = float(right.mean())
    return Classification(
        confusion, accuracy, math.sqrt(accuracy * (1 - accuracy) / count),
        float(-log_prob.gather(1, label[:, None]).mean()), float((sums[0] - sums[1]).abs().sum() / count), counts,
        sums[0] / counts, sums[1] / counts,
    )  # fmt: skip
