"""Functions of a symmetric matrix that is only known by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]


def matrix_function(times: LinearMap, v: Tensor, iterations: int, function: LinearMap) -> Tensor:
    """f(C) v for one C ≥ 0 per sample, from the Krylov space of v (Lanczos).

        f(C) v ≈ ‖v‖ Q f(T) e₁,      C Q ≈ Q T,  T tridiagonal

    Exact if C has no more distinct eigenvalues than there are iterations; an eigenvalue of T below 0 counts as 0.

    Args:
        times: v -> C v, (B, *) -> (B, *).
        v: (B, *).
        iterations: Products with C.
        function: f, elementwise.
    """
    shape, rows = v.shape, v.flatten(1)
    norm = rows.norm(dim=1, keepdim=True)
    basis = [_over(rows, norm)]
    diagonal, beside = [], []
    for step in range(most := min(iterations, rows.shape[1])):
        image = times(basis[-1].reshape(shape)).flatten(1)
        diagonal.append((image * basis[-1]).sum(1, keepdim=True))
        if step == most - 1:
            break
        for _ in range(2):  # once leaves rounding, twice does not
            for q in basis:
                image = image - (image * q).sum(1, keepdim=True) * q
        length = image.norm(dim=1, keepdim=True)
        least = torch.finfo(v.dtype).eps ** 0.5 * torch.cat(diagonal, 1).abs().sum(1, keepdim=True)
        length = torch.where(length > least, length, 0)  # below: the space is exhausted
        beside.append(length)
        basis.append(_over(image, length))
    t = torch.diag_embed(torch.cat(diagonal, 1))
    if beside:
        off = torch.diag_embed(torch.cat(beside, 1), 1)
        t = t + off + off.mT
    values, vectors = torch.linalg.eigh(t)
    weights = (vectors * function(values.clamp_min(0))[:, None] @ vectors[:, 0, :, None])[..., 0]
    return (norm * torch.einsum("kbd,bk->bd", torch.stack(basis), weights)).reshape(shape)


def _over(vector: Tensor, length: Tensor) -> Tensor:
    return torch.where(length > 0, vector / torch.where(length > 0, length, 1), 0)
