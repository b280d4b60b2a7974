"""How many calls of a network a command has made."""

from __future__ import annotations

from typing import Any

from torch import nn
from tqdm import tqdm


class CallCounter:
    """Counts the calls of a network per sample, and shows them in a progress bar."""

    def __init__(self, net: nn.Module, n: int) -> None:
        self.calls = 0
        self.bar = tqdm(total=n, desc="sampling", unit="sample", disable=None, leave=False)
        self.hook = net.register_forward_pre_hook(self._count)

    def _count(self, *args: Any) -> None:
        self.calls += 1
        self.bar.set_postfix_str(f"{self.calls} network calls", refresh=False)
        self.bar.update(0)

    def finish(self, samples: int) -> int:
        """Note finished samples; returns the calls since the last time."""
        calls, self.calls = self.calls, 0
        self.bar.update(samples)
        return calls

    def __enter__(self) -> CallCounter:
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()
        self.bar.close()
