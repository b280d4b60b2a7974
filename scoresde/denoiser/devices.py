"""What a run says whose tensors and network lie on different devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn


@contextmanager
def devices_named(owner: object, denoiser: nn.Module, **others: Any) -> Iterator[None]:
    """Where a run fails because its tensors and the network lie on different devices, one sentence that says so.

    Args:
        owner: Of the run.
        denoiser: Its network.
        others: Tensors that take part, or functions that make them, by the name for the message; None is left out.
    Raises:
        ValueError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        network = next(chain(denoiser.parameters(), denoiser.buffers()), None)
        places: dict[torch.device, list[str]] = {}
        for name, tensor in {**others, "the network": network}.items():
            made = tensor() if callable(tensor) else tensor
            if made is not None:
                places.setdefault(made.device, []).append(name)
        if len(places) < 2:
            raise
        parts = [f"{' and '.join(names)} on {device}" for device, names in places.items()]
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f"{name} needs all on one device, got {' but '.join(parts)}: move one.") from error
