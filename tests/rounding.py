"""What a network in float32 may lose by rounding, on any processor.

Libraries and processors sum in other orders and round other last places, so float32 results of two machines differ by
what the network's own condition makes of a rounding: a Fourier phase 2π W log σ of 1,000 turns a relative error of 1e-7
into one of 1e-4. A float32 result is the exact one of weights that are a few roundings off; so the float64 results of
such weights show how far rounding reaches, and anything beyond a small multiple of that is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde.models.embedding import GaussianFourier

EPS = torch.finfo(torch.float32).eps
ROUNDINGS = 4  # eps that a weight is moved by: it is multiplied, summed over a layer and normalised
PHASE_ROUNDINGS = 1  # eps that a frequency is moved by, alone and with all others: it is multiplied, and so is log σ
FACTOR = 3  # times the largest effect seen: another processor may round twice as badly as the draws

Function = Callable[[nn.Module], tuple[Tensor, ...]]


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation in units of each item's standard deviation."""
    return ((actual - expected).abs().flatten(1).amax(1) / expected.flatten(1).std(1)).max().item()


def exact(function: Function, net: nn.Module, draws: int = 4) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """Values of function(net) in float64, and the `error` that each may have in float32.

    Args:
        function: Computes tensors (B, *) with a network, in the dtype of its parameters.
        net: The float32 network.
        draws: Random roundings that are tried.
    """
    wide = copy.deepcopy(net).double()
    values = tuple(value.detach() for value in function(wide))
    generator = torch.Generator().manual_seed(0)
    moved = [function(_moved(wide, generator)) for _ in range(draws)]
    tolerances = []
    for place, value in enumerate(values):
        last_place = 8 * EPS * float((value.abs().flatten(1).amax(1) / value.flatten(1).std(1)).max())
        tolerances.append(last_place + FACTOR * max(error(other[place], value) for other in moved))
    return values, tuple(tolerances)


def assert_rounded(function: Function, net: nn.Module, *others: tuple[Tensor, ...]) -> None:
    """function(net), and what others say it is, are its exact values but for rounding."""
    values, tolerances = exact(function, net)
    for results in (function(net), *others):
        errors = [error(result.detach().double(), value) for result, value in zip(results, values, strict=True)]
        assert all(e <= tolerance for e, tolerance in zip(errors, tolerances, strict=True)), (errors, tolerances)


def dtype_of(net: nn.Module) -> torch.dtype:
    return next(net.parameters()).dtype


def _moved(net: nn.Module, generator: torch.Generator) -> nn.Module:
    net = copy.deepcopy(net)

    def factor(size: float, shape: torch.Size) -> Tensor:
        return 1 + EPS * size * (2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1)

    with torch.no_grad():
        for module in net.modules():
            for weight in module.parameters(recurse=False):
                if isinstance(module, GaussianFourier):
                    weight *= factor(PHASE_ROUNDINGS, weight.shape) * factor(PHASE_ROUNDINGS, torch.Size())
                else:
                    weight *= factor(ROUNDINGS, weight.shape)
    return net
