"""diffusers (0.42): schedulers with set_timesteps and step, on the 1000-step linear table or in EDM's sigma."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
from mixture import CountedModel
from torch import Tensor

from peers import Candidate

TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0}

LINSPACE, TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
SIGMA_GRIDS = {"karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
GRIDS = {"linspace": LINSPACE, "trailing": TRAILING, **SIGMA_GRIDS}
DPM_GRIDS = {**GRIDS, "lu": {"use_lu_lambdas": True}}
SHOW_ROUNDING = ("DPM++(2M)", "UniPC(3) bh2")  # the others run with the network at their exact sigmas alone
Grids = dict[str, dict[str, Any]]

DPM = "DPMSolverMultistepScheduler"
SINGLE = "DPMSolverSinglestepScheduler"
EPS = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
ON_TABLE: list[tuple[str, str, dict[str, Any], Grids]] = [
    ("DDIM", "DDIMScheduler", {"clip_sample": False}, {"linspace": LINSPACE, "trailing": TRAILING}),
    ("DPM++(2M)", DPM, {"solver_order": 2}, DPM_GRIDS),
    ("DPM++(3M)", DPM, {"solver_order": 3}, DPM_GRIDS),
    ("DPM++(2M) heun", DPM, {"solver_order": 2, "solver_type": "heun"}, DPM_GRIDS),
    ("DPM(2M)", DPM, {"solver_order": 2, **EPS}, DPM_GRIDS),
    ("DPM(3M)", DPM, {"solver_order": 3, **EPS}, DPM_GRIDS),
    ("DPM++(2S)", SINGLE, {"solver_order": 2, "lower_order_final": True}, SIGMA_GRIDS | {"linspace": {}}),
    ("DPM++(3S)", SINGLE, {"solver_order": 3, "lower_order_final": True}, SIGMA_GRIDS | {"linspace": {}}),
    *(
        (
            f"UniPC({order}) {kind}",
            "UniPCMultistepScheduler",
            {"solver_order": order, "solver_type": kind, **end},
            GRIDS,
        )
        for order in (2, 3)
        for kind, end in (("bh1", {"final_sigmas_type": "sigma_min"}), ("bh2", {}))  # bh1 down to 0 is NaN
    ),
    *((f"DEIS({order})", "DEISMultistepScheduler", {"solver_order": order}, GRIDS) for order in (2, 3)),
    ("Heun", "HeunDiscreteScheduler", {}, GRIDS),
    ("LMS(4)", "LMSDiscreteScheduler", {}, GRIDS),
    ("PNDM", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, {"linspace": LINSPACE}),
]
IN_SIGMA: list[tuple[str, str, dict[str, Any]]] = [
    ("EDM DPM++(2M)", "EDMDPMSolverMultistepScheduler", {"solver_order": 2}),
    ("EDM DPM++(3M)", "EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ("EDM Euler", "EDMEulerScheduler", {}),
]
STOCHASTIC_ON_TABLE: list[tuple[str, str, dict[str, Any], Grids]] = [
    ("DDPM", "DDPMScheduler", {"clip_sample": False}, {"trailing": TRAILING}),
    ("Euler ancestral", "EulerAncestralDiscreteScheduler", {}, {"linspace": LINSPACE, "trailing": TRAILING}),
    ("SDE-DPM++(2M)", DPM, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, DPM_GRIDS),
    ("SDE-DPM++(1)", "DPMSolverSDEScheduler", {}, GRIDS),
    ("SA-Solver", "SASolverScheduler", {"tau_func": lambda t: 1 if 200 <= t <= 800 else 0}, GRIDS),
    ("SA-Solver tau=1", "SASolverScheduler", {"tau_func": lambda t: 1}, GRIDS),
]
STOCHASTIC_IN_SIGMA: list[tuple[str, str, dict[str, Any]]] = [
    ("CosineDPM", "CosineDPMSolverMultistepScheduler", {"sigma_data": 1.0}),
    ("EDM SDE-DPM++(2M)", "EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
]


def log_table(scheduler: Any) -> np.ndarray[Any, Any]:
    """log σ/α at the integer timesteps."""
    kept = scheduler.alphas_cumprod.double().numpy()
    return 0.5 * (np.log1p(-kept) - np.log(kept))


def fitted(make: Callable[[], Any], nfe: int) -> Any:
    """A scheduler with as many timesteps as nfe allows; each is one network call."""
    for steps in range(nfe, 0, -1):
        scheduler = make()
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= nfe:
            return scheduler
    raise ValueError(f"{make} has no run with {nfe} network calls.")


def on_table(make: Callable[[], Any], rounded: bool) -> Callable[[CountedModel, Tensor, int], Tensor]:
    """`rounded`: the network is asked at the scheduler's integer timesteps, as pipelines do, not at its sigmas."""

    def run(model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        scheduler = fitted(make, nfe)
        logs = log_table(scheduler)
        if scheduler.init_noise_sigma != 1:
            x = x * math.hypot(1.0, math.exp(logs[-1]))
        for index, t in enumerate(scheduler.timesteps):
            inputs = scheduler.scale_model_input(x, t)
            ratio = math.exp(np.interp(float(t), np.arange(len(logs)), logs))
            if not rounded:
                ratio = float(scheduler.sigmas[index])
            alpha = 1 / math.hypot(1.0, ratio)
            x = scheduler.step(model.eps(inputs, alpha, alpha * ratio), t, x).prev_sample
        return x

    return run


def in_sigma(make: Callable[[], Any]) -> Callable[[CountedModel, Tensor, int], Tensor]:
    def run(model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        scheduler = fitted(make, nfe)
        data = scheduler.config.sigma_data
        sign = -1 if scheduler.config.prediction_type == "v_prediction" else 1
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double().tolist(), strict=False):
            scheduler.scale_model_input(x, t)
            norm = math.hypot(sigma, data)
            skip, out = (data / norm) ** 2, sign * sigma * data / norm
            x = scheduler.step((model.denoised(x, 1.0, sigma) - skip * x) / out, t, x).prev_sample
        return x

    return run


def table_candidates(rows: list[tuple[str, str, dict[str, Any], Grids]]) -> Iterator[Candidate]:
    for solver, kind, options, grids in rows:
        for grid, spacing in grids.items():
            make = functools.partial(getattr(diffusers, kind), **TABLE, **options, **spacing)
            scheduler = make()
            sigma = math.exp(log_table(scheduler)[-1])
            alpha = 1 / math.hypot(1.0, sigma)
            scheduler.set_timesteps(10)
            rounds = not scheduler.timesteps.is_floating_point() and "use" in str(spacing)
            for rounded in (True, False) if rounds and solver in SHOW_ROUNDING else (not rounds,):
                label = f"{grid}, t rounded" if rounded and rounds else grid
                yield Candidate(
                    library="diffusers", solver=solver, grid=label, family="vp",
                    alpha=alpha, sigma=alpha * sigma, std=1.0, run=on_table(make, rounded),
                )  # fmt: skip


def sigma_candidates(rows: list[tuple[str, str, dict[str, Any]]]) -> Iterator[Candidate]:
    for solver, kind, options in rows:
        for grid in ("karras", "exponential"):
            make = functools.partial(getattr(diffusers, kind), **EDM, **options, sigma_schedule=grid)
            yield Candidate(
                library="diffusers", solver=solver, grid=grid, family="edm",
                alpha=1.0, sigma=EDM["sigma_max"], std=EDM["sigma_max"], run=in_sigma(make),
            )  # fmt: skip


def deterministic() -> Iterator[Candidate]:
    yield from table_candidates(ON_TABLE)
    yield from sigma_candidates(IN_SIGMA)


def stochastic() -> Iterator[Candidate]:
    yield from table_candidates(STOCHASTIC_ON_TABLE)
    yield from sigma_candidates(STOCHASTIC_IN_SIGMA)


Run = Callable[[Callable[..., Tensor], Tensor, int], Tensor]


def overhead() -> Iterator[tuple[str, Run]]:
    """Loops as in pipelines: run(network, x, steps), for timing; the scheduler exists already."""
    wanted = {"DDIM": "linspace", "DPM++(2M)": "karras", "DPM++(3M)": "karras", "UniPC(2) bh2": "karras"}
    wanted |= {"UniPC(3) bh2": "karras", "LMS(4)": "karras", "SDE-DPM++(2M)": "karras", "SDE-DPM++(1)": "karras"}
    rows = [("Euler", "EulerDiscreteScheduler", {}, {"linspace": LINSPACE}), *ON_TABLE, *STOCHASTIC_ON_TABLE]
    wanted["Euler"] = "linspace"
    for solver, kind, options, grids in rows:
        if solver in wanted:
            scheduler = getattr(diffusers, kind)(**TABLE, **options, **grids[wanted[solver]])
            yield solver, functools.partial(_loop, scheduler)


def _loop(scheduler: Any, network: Callable[..., Tensor], x: Tensor, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x
