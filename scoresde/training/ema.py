"""Exponential moving average of a module's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of the trainable parameters of a module.

        shadow ← d_n shadow + (1 − d_n) parameter,      n = 1, 2, ... updates
        d_n    = min(decay, (1 + n) / (10 + n))         (the ramp of score_sde; without it d_n = decay)

    With the ramp the average forgets its random start: d_n reaches 0.999 after 8,990 updates. Buffers, such
    as running statistics, are copied. Frozen parameters never change and are left out.

    Args:
        module: The module to average; its parameters are read, never written, until `copy_to`.
        decay: Largest decay, in [0, 1).
        ramp: Whether early updates use the smaller decay above.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456 (models/ema.py of
        its code).
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999, ramp: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA needs 0 <= decay < 1, got {decay}; 0 keeps the latest weights.")
        self.decay, self.ramp = float(decay), bool(ramp)
        self.num_updates = 0
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.shadow_params = [p.detach().clone() for p in self._trainable(module)]
        saved = module.state_dict().keys()  # constants such as filter kernels are in no state dict
        self._buffers = {name: b.detach().clone() for name, b in module.named_buffers() if name in saved}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present parameters."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.ramp else self.decay
        if self.shadow_params:
            torch._foreach_lerp_(self.shadow_params, self._trainable(module), 1 - decay)
        buffers = dict(module.named_buffers())
        for name, kept in self._buffers.items():
            kept.copy_(buffers[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's trainable parameters and buffers with the averaged ones."""
        for parameter, shadow in zip(self._trainable(module), self.shadow_params, strict=True):
            parameter.copy_(shadow)
        buffers = dict(module.named_buffers())
        for name, kept in self._buffers.items():
            buffers[name].copy_(kept)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Averaged weights inside the `with` block; the module's own weights are restored on leaving it."""
        parameters, buffers = self._trainable(module), list(module.buffers())
        kept = [tensor.detach().clone() for tensor in (*parameters, *buffers)]
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip((*parameters, *buffers), kept, strict=True):
                    tensor.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers of numbers and tensors; the tensors are those of the average, not copies."""
        return {
            "decay": self.decay, "ramp": self.ramp, "num_updates": self.num_updates,
            "params": dict(zip(self._names, self.shadow_params, strict=True)), "buffers": dict(self._buffers),
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore weights and count; decay and ramp stay those of the constructor.

        Args:
            state: From `state_dict`; or the reference's, with a list `shadow_params` in parameter order.
        Raises:
            ValueError: If names or shapes are not those of the module.
        """
        if "shadow_params" in state:
            params = dict(zip(self._names, state["shadow_params"], strict=False))
            complete = len(state["shadow_params"]) == len(self._names)
        else:
            params = state["params"]
            complete = params.keys() == set(self._names)
        shadows = dict(zip(self._names, self.shadow_params, strict=True))
        if not complete or any(shadows[name].shape != params[name].shape for name in shadows):
            raise ValueError(
                "EMA needs averaged weights of the same module, but names or shapes of parameters differ; "
                "build the module with the options that it was trained with."
            )
        for name, shadow in shadows.items():
            shadow.copy_(params[name])
        for name, buffer in self._buffers.items():
            if name in state.get("buffers", {}):
                buffer.copy_(state["buffers"][name])
        self.num_updates = int(state["num_updates"])

    def _trainable(self, module: nn.Module) -> list[Tensor]:
        parameters = dict(module.named_parameters())
        return [parameters[name] for name in self._names]
