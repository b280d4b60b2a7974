"""The gradient of a log-probability with respect to the noisy data, as guidance takes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def smallest(std: Tensor) -> float | None:
    """The smallest of those that are positive and finite, if there are any."""
    known = std[(std > 0) & torch.isfinite(std)]
    return float(known.min()) if len(known) else None


def gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor, owner: str, graph: bool | None = None) -> Tensor:
    """∇ₓ Σ_b log_prob(x)_b, (B, *); keeps the graph only if the caller differentiates through x.

    Args:
        log_prob: Called as log_prob(x) -> (B,).
        x: Where, (B, *).
        owner: Whose gradient it is, for messages.
        graph: Whether to keep the graph from x on, which then requires a gradient; None: if the caller asks for it.
    Raises:
        ValueError: If there is not one value per sample.
    """
    through = torch.is_grad_enabled() and x.requires_grad if graph is None else graph
    with torch.enable_grad():
        x = x if through or graph is not None else x.detach().requires_grad_()
        values = log_prob(x)
        if values.shape != x.shape[:1]:
            raise ValueError(
                f"{owner} needs one log-probability per sample: expected shape ({x.shape[0]},), "
                f"got {tuple(values.shape)}."
            )
        return torch.autograd.grad(values.sum(), x, create_graph=through, retain_graph=through or None)[0]
