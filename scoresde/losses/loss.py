"""What all losses have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.sde import SDE


class Loss(ABC):
    """What `Trainer` minimises, one value per example.

    One that is a `DrawsTimes` lets errors name the noise level; what a `KeepsState` learns on the way is saved.
    """

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """loss(module, x0, generator=..., **cond): of one batch x0 (B, *) at random times -> (B,)."""

    @property
    def dequantize(self) -> bool:
        """Whether levels are to be spread over their cells, and not to stay at the centres."""
        return True


@runtime_checkable
class DrawsTimes(Protocol):
    """A loss whose random times can be drawn once more."""

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """A loss that learns something of its own on the way, like `VLBLoss`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
