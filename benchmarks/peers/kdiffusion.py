"""k-diffusion (PyPI 0.1.1): functions that take denoised = model(x, sigma) and a list of sigmas."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from mixture import CountedModel
from torch import Tensor

from peers import Candidate

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
VP_SIGMA_MAX = math.sqrt(math.expm1(0.5 * 19.9 + 0.1))


def load() -> Any:
    """k_diffusion.sampling without the package's __init__, which imports metrics and image models."""
    spec = find_spec("k_diffusion")
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault("k_diffusion", package)
    absent = [name for name in ("torchvision", "torchvision.transforms") if find_spec("torchvision") is None]
    for name in absent:  # utils.py imports it for images only
        sys.modules[name] = ModuleType(name)
    if absent:
        sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    try:
        return import_module("k_diffusion.sampling")
    finally:
        for name in absent:
            del sys.modules[name]


K = load()

Sigmas = Callable[[int], Tensor]
GRIDS: dict[str, tuple[str, Sigmas]] = {
    "karras": ("edm", lambda n: K.get_sigmas_karras(n, SIGMA_MIN, SIGMA_MAX)),
    "exponential": ("edm", lambda n: K.get_sigmas_exponential(n, SIGMA_MIN, SIGMA_MAX)),
    "polyexponential(rho=1.5)": ("edm", lambda n: K.get_sigmas_polyexponential(n, SIGMA_MIN, SIGMA_MAX, rho=1.5)),
    "vp": ("vp", lambda n: K.get_sigmas_vp(n)),
    "karras (vp)": ("vp", lambda n: K.get_sigmas_karras(n, 0.01, VP_SIGMA_MAX)),
    "exponential (vp)": ("vp", lambda n: K.get_sigmas_exponential(n, 0.01, VP_SIGMA_MAX)),
}

# name, function, options, network calls per step but the last, which goes to sigma = 0 and takes one
DETERMINISTIC: list[tuple[str, str, dict[str, Any], int]] = [
    ("euler", "sample_euler", {}, 1),
    ("heun", "sample_heun", {}, 2),
    ("dpm_2", "sample_dpm_2", {}, 2),
    ("lms(4)", "sample_lms", {"order": 4}, 1),
    ("lms(3)", "sample_lms", {"order": 3}, 1),
    ("dpmpp_2m", "sample_dpmpp_2m", {}, 1),
    ("dpmpp_2m heun", "sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, 1),
    ("dpmpp_3m", "sample_dpmpp_3m_sde", {"eta": 0.0}, 1),
    ("dpmpp_2s", "sample_dpmpp_2s_ancestral", {"eta": 0.0}, 2),
]
STOCHASTIC: list[tuple[str, str, dict[str, Any], int]] = [
    ("euler_ancestral", "sample_euler_ancestral", {}, 1),
    ("dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral", {}, 2),
    ("dpmpp_sde", "sample_dpmpp_sde", {}, 2),
    ("dpmpp_2m_sde", "sample_dpmpp_2m_sde", {}, 1),
    ("dpmpp_2m_sde heun", "sample_dpmpp_2m_sde", {"solver_type": "heun"}, 1),
    ("dpmpp_3m_sde", "sample_dpmpp_3m_sde", {}, 1),
]


def candidate(solver: str, grid: str, family: str, run: Callable[[CountedModel, Tensor, int], Tensor]) -> Candidate:
    sigma = VP_SIGMA_MAX if family == "vp" else SIGMA_MAX
    std = math.hypot(1.0, sigma) if family == "vp" else sigma
    return Candidate(
        library="k-diffusion", solver=solver, grid=grid, family=family, alpha=1.0, sigma=sigma, std=std, run=run
    )


def network(model: CountedModel) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, sigma: model.denoised(x, 1.0, float(sigma.flatten()[0]))


def over_sigmas(
    function: str, options: dict[str, Any], calls: int, sigmas: Sigmas
) -> Callable[[CountedModel, Tensor, int], Tensor]:
    def run(model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        steps = (nfe - 1) // calls + 1
        return getattr(K, function)(network(model), x, sigmas(steps), disable=True, **options)

    return run


def fast(model: CountedModel, x: Tensor, nfe: int) -> Tensor:
    return K.sample_dpm_fast(network(model), x, SIGMA_MIN, SIGMA_MAX, nfe, disable=True)


def listed(solvers: list[tuple[str, str, dict[str, Any], int]]) -> Iterator[Candidate]:
    for solver, function, options, calls in solvers:
        for grid, (family, sigmas) in GRIDS.items():
            yield candidate(solver, grid, family, over_sigmas(function, options, calls, sigmas))


def deterministic() -> Iterator[Candidate]:
    yield from listed(DETERMINISTIC)
    yield candidate("dpm_fast", "its own", "edm", fast)


def stochastic() -> Iterator[Candidate]:
    yield from listed(STOCHASTIC)


def overhead() -> Iterator[tuple[str, Callable[[Callable[..., Tensor], Tensor, int], Tensor]]]:
    """run(network, x, steps) of its functions on its Karras grid, for timing."""
    for solver, function, options, _ in [*DETERMINISTIC, *STOCHASTIC]:
        if solver in ("euler", "heun", "lms(4)", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_ancestral"):
            sample = partial(getattr(K, function), **options, disable=True)
            yield solver, lambda network, x, steps, sample=sample: sample(network, x, GRIDS["karras"][1](steps))
