"""What a result of autograd depends on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node


def asks_for_gradient(output: Tensor, x: Tensor, given: Tensor) -> bool:
    """Whether a caller may differentiate `output`: by its own x, `given`, or by anything else than the copy x of it.

    A leaf x that was made only to differentiate by it asks for nothing; parameters and conditions may.
    """
    if not torch.is_grad_enabled():
        return False
    return given.requires_grad or _has_other_leaf(output.grad_fn, x)


def _has_other_leaf(node: Node | None, x: Tensor) -> bool:
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad") and node.variable is not x:  # type: ignore[attr-defined]
            return True
        waiting.extend(before for before, _ in node.next_functions)
    return False
