"""The learning rate, a function of the step alone."""

from __future__ import annotations

import math

DECAYS = ("constant", "cosine", "linear")


def learning_rate_factor(step: int, *, steps: int, warmup: int = 0, decay: str = "constant") -> float:
    """Factor of the learning rate at update `step`, counted from 0.

        step / warmup                           while step < warmup: 0 at the first update, as in score_sde
        h((step − warmup) / (steps − warmup))   afterwards
        h(p) = 1 (constant),   1 − p (linear),   (1 + cos πp) / 2 (cosine)

    Args:
        step: Update, 0 to steps − 1.
        steps: Number of updates.
        warmup: Updates over which the learning rate grows.
        decay: "constant", "linear" or "cosine".
    """
    if step < warmup:
        return step / warmup
    p = (step - warmup) / max(steps - warmup, 1)
    return {"constant": 1.0, "linear": 1 - p, "cosine": 0.5 * (1 + math.cos(math.pi * p))}[decay]
