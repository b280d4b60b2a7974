"""The learning rate and the random streams of a step: functions of the step alone."""

from __future__ import annotations

import hashlib
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


def stream_seed(seed: int, *stream: int | str) -> int:
    """A 63-bit seed for one of many independent random streams, such as (seed, "noise", step)."""
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
