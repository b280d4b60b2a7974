"""Samplers of other libraries, driven by an exact model. A library that is not installed has no candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from mixture import CountedModel
from posterior_rows import Row
from torch import Tensor

POSTERIOR = {"scoresde": "ours_posterior", "azula": "peers.azula_posterior", "deepinv": "peers.deepinv_posterior"}
LIBRARIES = {"diffusers": "diffusers", "k-diffusion": "kdiffusion", "azula": "azula"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One sampler with its options.

    run(model, x, nfe) takes x_T = std z, noise z (B, d), at (alpha, sigma), spends at most nfe calls of the model and
    returns (B, d).
    """

    library: str
    solver: str
    grid: str
    family: str
    alpha: float
    sigma: float
    std: float
    run: Callable[[CountedModel, Tensor, int], Tensor]


def installed() -> list[str]:
    return [library for library in LIBRARIES if find_spec(library.replace("-", "_")) is not None]


def adaptor(library: str) -> ModuleType:
    if library not in LIBRARIES:
        raise ValueError(f"--libraries needs some of scoresde, {', '.join(LIBRARIES)}, got {library!r}.")
    return import_module(f"peers.{LIBRARIES[library]}")


def candidates(library: str, stochastic: bool) -> list[Candidate]:
    found: list[Candidate] = list(adaptor(library).stochastic() if stochastic else adaptor(library).deterministic())
    return found


def posterior_methods(library: str) -> list[Row]:
    """The posterior samplers of a library, ours included."""
    if library not in POSTERIOR:
        raise SystemExit(f"--libraries needs some of {', '.join(POSTERIOR)}, got {library!r}.")
    if find_spec(library) is None:
        raise SystemExit(f"--libraries {library} needs the package: pip install {library}")
    rows: list[Row] = import_module(POSTERIOR[library]).ROWS
    return rows
