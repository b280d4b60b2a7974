"""torch.compile for one network, with the plain network as fallback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from scoresde.streams import say
from scoresde.training.update import TrainingError


class CompiledNetwork:
    """Inside the `with` block a network's forward runs compiled; parameters and their names stay.

    Args:
        network: The network; a solver or a loss around it stays as it is.
        wanted: False does nothing.
    """

    def __init__(self, network: nn.Module, wanted: bool) -> None:
        self.network = network
        self._compiled: Any = None
        self._pending = wanted

    def __enter__(self) -> CompiledNetwork:
        if self._pending:
            self._compiled = torch.compile(self.network.forward)
            self._install()
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def attempt(self, update: Callable[[], None]) -> None:
        """Run an update; if the first one fails, say so and run it once more with the plain network."""
        if not self._pending:
            return update()
        self._pending = False
        try:
            update()
        except TrainingError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]
            say(f"torch.compile failed ({reason}): going on without it.")
            self._remove()
            self._compiled = None
            update()

    @contextmanager
    def eager(self) -> Iterator[None]:
        """The plain network inside the block: no recompilation for other batch sizes."""
        self._remove()
        try:
            yield
        finally:
            self._install()

    def _install(self) -> None:
        if self._compiled is not None:
            self.network.__dict__["forward"] = self._compiled  # found before the method of the class

    def _remove(self) -> None:
        if self._compiled is not None:
            self.network.__dict__.pop("forward", None)
