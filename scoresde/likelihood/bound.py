"""What a bound on a likelihood returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Bound(NamedTuple):
    """A lower bound of log p(x), estimated per example.

    Attributes:
        log_prob: The bound in nats, (B,); minus the sum of all terms.
        std_error: Standard error of log_prob from the random times and noises, (B,): 0 if nothing was random, NaN
            for one draw, whose error cannot be estimated.
        terms: Costs in nats by name, (B,) or (B, K) for a chain with K terms of a kind: "prior",
            KL(q(x_1 | x) ‖ π); "diffusion"; "reconstruction", −log p(x | x_t) at the data end.
        nfe: Network evaluations of each example, (B,).
    """

    log_prob: Tensor
    std_error: Tensor
    terms: dict[str, Tensor]
    nfe: Tensor
