"""What a bound on a likelihood returns."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from scoresde.likelihood.intervals import interval


class Bound(NamedTuple):
    """A lower bound of log p(x), estimated per example.

    Attributes:
        log_prob: The bound in nats, (B,); minus the sum of all terms.
        std_error: Standard error of log_prob from the random times and noises, (B,); its square is unbiased. 0 if
            nothing was random, NaN for one draw, whose error cannot be estimated.
        terms: Costs in nats by name, (B,) or (B, K) for a chain with K terms of a kind: "prior",
            KL(q(x_1 | x) ‖ π); "diffusion"; "reconstruction", −log p(x | x_t) at the data end.
        nfe: Network evaluations of each example, (B,).
        freedom: Degrees of freedom of std_error, (B,) or one number: how much told it.
        mean_error: What `summarize` needs, (B,): Σ mean_error² / B² is the squared standard error of the batch's mean.
            Below std_error where the examples of a batch share out the noise levels, as in `elbo`; None: std_error.
    """

    log_prob: Tensor
    std_error: Tensor
    terms: dict[str, Tensor]
    nfe: Tensor
    freedom: float | Tensor = math.inf
    mean_error: Tensor | None = None

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (B,) of the interval that holds the bound's expectation in a share `level` of cases."""
        return interval(self.log_prob, self.std_error, self.freedom, level)
