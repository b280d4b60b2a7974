"""What all losses have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Loss(ABC):
    """What `Trainer` minimises, one value per example.

    A loss that learns something of its own on the way, like `VLBLoss`, has `state_dict` and `load_state_dict`.
    """

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """loss(module, x0, generator=..., **cond): of one batch x0 (B, *) at random times -> (B,)."""

    @property
    def dequantize(self) -> bool:
        """Whether levels are to be spread over their cells, and not to stay at the centres."""
        return True
