"""Several likelihoods of one model side by side, each with the distribution that it is about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.decoder import Decoder, gaussian_decoder
from scoresde.likelihood.elbo import elbo
from scoresde.likelihood.flow_density import log_prob
from scoresde.likelihood.summary import Summary, summarize
from scoresde.likelihood.vlb import vlb

PROBABILITY_FLOW = "probability-flow ODE: its own density"
REVERSE_SDE = "reverse SDE: upper bound of −log p_SDE"
NOT_IN_THE_BAR = "standard errors hold the choice of examples and the estimator's draws, not the model's own error"


def discrete_chain(steps: int) -> str:
    """The distribution of ancestral sampling in so many steps."""
    return f"discrete chain of {steps} steps: upper bound of −log p_chain"


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One estimate of −log p over a test set.

    Args:
        name: Of the estimate.
        distribution: The one whose −log p it is or bounds. Three share one score network, and none bounds another:
            the probability flow may well have a larger −log p than a bound on the reverse SDE's.
        summary: Mean of −log p, its standard error, and the estimator's part of that.
        nfe: Network evaluations per example, or NaN.
    """

    name: str
    distribution: str
    summary: Summary
    nfe: float = math.nan

    @classmethod
    def of(
        cls,
        name: str,
        distribution: str,
        nll: Tensor,
        std_error: Tensor | None = None,
        nfe: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> ReportRow:
        """From values per example, each (N,): −log p in any unit, and as for `summarize`; network evaluations."""
        mean_nfe = math.nan if nfe is None else float(nfe.double().mean())
        return cls(name=name, distribution=distribution, summary=summarize(nll, std_error, draws), nfe=mean_nfe)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rows of one model on one test set; `str` draws an aligned table, and says what its errors do not hold.

    Args:
        rows: One per estimate.
        unit: Of the values.
    """

    rows: tuple[ReportRow, ...]
    unit: str = "nats"

    def __str__(self) -> str:
        heads = f"−log p, {self.unit}", "std. error", "of which estimator", "NFE", "examples"
        cells = [("", *heads, "what it is about")]
        for row in self.rows:
            s = row.summary
            failed = f" ({s.failed} failed)" if s.failed else ""
            nfe = "" if math.isnan(row.nfe) else f"{row.nfe:.0f}"
            own = "unknown" if math.isnan(s.estimator_error) else f"{s.estimator_error:.4f}"
            numbers = f"{s.mean:.4f}", f"{s.std_error:.4f}", own
            cells.append((row.name, *numbers, nfe, f"{s.n}{failed}", row.distribution))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for line in cells:
            middle = [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
            lines.append("  ".join([line[0].ljust(widths[0]), *middle, line[-1]]).rstrip())
        return "\n".join([*lines, f"({NOT_IN_THE_BAR})"])


def likelihood_report(
    denoiser: Denoiser,
    x: Tensor,
    *,
    decoder: Decoder = gaussian_decoder,
    ode: Mapping[str, Any] | None = None,
    sde: Mapping[str, Any] | None = None,
    chain: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    """−log p of data under the three distributions of one denoiser: its probability flow, reverse SDE, and a chain.

    All three are about x0 and end in the same decoder, so that the rows are comparable.

    Args:
        denoiser: The model.
        x: Data in the model's own scaling, (B, *).
        decoder: p(x0 | x_ε) of all rows; with `DiscretizedGaussian` or `CategoricalDecoder` the values are −log P.
        ode, sde, chain: Options of `log_prob`, `elbo` and `vlb`, in place of theirs; with `below="density"` in `ode` or
            `sde` that row is about x_ε instead. With a decoder the flow draws x_ε once, so that the estimator's part
            of its error is unknown.
        generator: For all random numbers, on x's device.
    """
    ode = {"below": "decoder", "decoder": decoder, "generator": generator, **(ode or {})}
    sde = {"below": "decoder", "decoder": decoder, "generator": generator, "samples": 64, **(sde or {})}
    chain = {"decoder": decoder, "generator": generator, **(chain or {})}
    flow, bound, discrete = log_prob(denoiser, x, **ode), elbo(denoiser, x, **sde), vlb(denoiser, x, **chain)
    steps = discrete.terms["transitions"].shape[1] + 1
    return Report(
        rows=(
            ReportRow.of("ODE", PROBABILITY_FLOW, -flow.log_prob, flow.std_error, flow.nfe),
            ReportRow.of("SDE bound", REVERSE_SDE, -bound.log_prob, bound.mean_error, bound.nfe),
            ReportRow.of("VLB", discrete_chain(steps), -discrete.log_prob, discrete.mean_error, discrete.nfe),
        )
    )
