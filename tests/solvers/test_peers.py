"""docs/solvers.md says which samplers of other libraries are ours: their numbers, from tests/data/peers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import replay, std_of_chains
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    DPMSolverPP2M,
    EulerMaruyama,
    GaussianMixtureDenoiser,
    Heun,
    ProbabilityFlowODE,
    SASolver,
    Solver,
    StepSolver,
    UniPC,
    karras_grid,
    logsnr_grid,
)
from scoresde.sde.levels import Levels, Weights
from scoresde.solvers import (
    IPNDM,
    DPMSolver,
    DPMSolverFast,
    DPMSolverMultistep,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPPSDE,
    ExponentialAdams,
    ReverseDiffusion,
    SDEDPMSolverPP,
)

ROOT = Path(__file__).resolve().parents[2]
VP = VPSDE(beta_max=25.0)  # any process will do that has these levels σ/α


def adams(order: int, prediction: str, clock: str = "own") -> ExponentialAdams:
    return ExponentialAdams(order=order, prediction=prediction, clock=clock, corrector=False)


def dpm(order: int, **options: str) -> str:
    given = "".join(f", {key}={value}" for key, value in options.items())
    return f"diffusers DPMSolverMultistepScheduler(solver_order={order}{given})"


def unipc(order: int, variant: str) -> str:
    end = "final_sigmas_type=sigma_min"
    return f"diffusers UniPCMultistepScheduler(solver_order={order}, solver_type={variant}, {end})"


def ancestral(kind: str) -> str:
    return f"diffusers DDPMScheduler(clip_sample=False, variance_type={kind})"


def sa_solver(order: int) -> str:
    return f"diffusers SASolverScheduler(predictor_order={order}, corrector_order={order}, tau_func=1)"


EPS = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE_DPMPP = {"algorithm_type": "sde-dpmsolver++"}

SAME: list[tuple[str, Solver]] = [
    ("k-diffusion sample_euler()", DDIM()),
    ("k-diffusion sample_euler_ancestral()", DDIM(eta=1.0)),
    ("k-diffusion sample_heun()", Heun()),
    ("k-diffusion sample_heun(s_churn=3.0, s_noise=1.01)", Heun(s_churn=3.0, s_noise=1.01)),
    ("k-diffusion sample_dpm_2()", DPMSolver(order=2)),
    ("k-diffusion sample_lms(order=3)", adams(3, "eps", "ratio")),
    ("k-diffusion sample_lms(order=4)", adams(4, "eps", "ratio")),
    ("k-diffusion sample_dpmpp_2m()", DPMSolverPP2M()),
    ("k-diffusion sample_dpmpp_2s_ancestral(eta=0.0)", DPMSolverPP2S()),
    ("k-diffusion sample_dpmpp_3m_sde(eta=0.0)", SDEDPMSolverPP(order=3, eta=0.0)),
    ("k-diffusion sample_dpmpp_sde()", DPMSolverPPSDE()),
    ("k-diffusion sample_dpmpp_2m_sde(solver_type=midpoint)", SDEDPMSolverPP(order=2)),
    ("k-diffusion sample_dpmpp_2m_sde(solver_type=heun)", SDEDPMSolverPP(order=2, exact=True)),
    ("k-diffusion sample_dpmpp_2m_sde(eta=0.36)", SDEDPMSolverPP(order=2, eta=0.6)),
    ("k-diffusion sample_dpmpp_3m_sde()", SDEDPMSolverPP(order=3)),
    *((f"k-diffusion sample_dpm_fast({calls})", DPMSolverFast(steps=calls)) for calls in (6, 7, 8)),
    ("diffusers DDIMScheduler(clip_sample=False)", DDIM()),
    ("diffusers DDIMScheduler(eta=0.6, clip_sample=False)", DDIM(eta=0.6)),
    *((ancestral(f"fixed_{kind}"), DDPM(variance=kind)) for kind in ("small", "large")),
    (ancestral("learned_range"), DDPM(variance="learned")),
    ("diffusers EulerDiscreteScheduler()", DDIM()),
    ("diffusers HeunDiscreteScheduler()", Heun()),
    ("diffusers LMSDiscreteScheduler()", adams(4, "eps", "ratio")),
    *((f"diffusers DEISMultistepScheduler(solver_order={order})", adams(order, "eps", "logsnr")) for order in (2, 3)),
    (dpm(2), DPMSolverPP2M()),
    (f"{dpm(2)}, exponential", DPMSolverPP2M()),
    (dpm(3), DPMSolverPP3M()),
    (dpm(2, solver_type="heun"), DPMSolverMultistep(order=2, prediction="data", exact=True)),
    *((dpm(order, **EPS), DPMSolverMultistep(order=order, prediction="eps")) for order in (2, 3)),
    (dpm(2, **SDE_DPMPP), SDEDPMSolverPP(order=2)),
    *((unipc(order, kind), UniPC(order=order, variant=kind)) for order in (2, 3) for kind in ("bh1", "bh2")),
    ("diffusers IPNDMScheduler()", IPNDM()),
    ("diffusers CosineDPMSolverMultistepScheduler()", SDEDPMSolverPP(order=2)),
    ("diffusers ScoreSdeVpScheduler()", EulerMaruyama()),
    ("diffusers ScoreSdeVeScheduler()", ReverseDiffusion()),
    (sa_solver(1), SASolver(predictor_order=1, corrector_order=1)),
    ("azula DDPMSampler()", DDPM()),
    ("azula DDIMSampler()", DDIM()),
    ("azula EulerSampler()", DDIM()),
    ("azula HeunSampler()", Heun()),
    *(
        (f"azula {kind}Sampler(order={order})", adams(order, prediction, clock))
        for kind, prediction, clock in (
            ("zAB", "eps", "ratio"), ("vAB", "flow", "own"), ("zEAB", "eps", "own"), ("xEAB", "data", "own"),
        )
        for order in (2, 3)
    ),
]  # fmt: skip
DIFFERENT: list[tuple[str, Solver]] = [
    ("k-diffusion sample_dpm_adaptive()", ProbabilityFlowODE()),
    ("k-diffusion sample_dpmpp_3m_sde(eta=0.0)", DPMSolverPP3M()),
    *((f"diffusers DPMSolverSinglestepScheduler(solver_order={order})", DPMSolverPP2S()) for order in (2, 3)),
    *((f"diffusers DEISMultistepScheduler(solver_order={order})", adams(order, "eps", "time")) for order in (2, 3)),
    (sa_solver(2), SASolver(predictor_order=2, corrector_order=2)),
    (dpm(3, **SDE_DPMPP), SDEDPMSolverPP(order=3)),
    ("azula ItoSampler()", EulerMaruyama()),
]
SINGLE = ("EulerDiscrete", "DPMSolverMultistep")  # take float32 for the state, whatever is given
PROCESS = {"diffusers ScoreSdeVpScheduler()": VPSDE(), "diffusers ScoreSdeVeScheduler()": VESDE()}
ELSEWHERE = {  # other names on the page, and the tests that have their numbers
    "score_sde": {
        "ode": "test_ode_sampler_against_the_exact_flow",
        "euler_maruyama": "test_single_predictor_steps",
        "reverse_diffusion": "test_single_predictor_steps",
        "ancestral_sampling": "test_single_predictor_steps",
        "langevin": "test_single_corrector_steps",
        "ald": "test_single_corrector_steps",
        "pc_sampler": "test_whole_runs_of_fifty_steps",
    },
    "torchsde": {"sdeint": "test_it_is_what_torchsde_asks_for"},
    "diffusers": {
        "FlowMatchEulerDiscreteScheduler": "test_flow_match_schedulers_of_diffusers_on_their_own_levels",
        "FlowMatchHeunDiscreteScheduler": "test_flow_match_schedulers_of_diffusers_on_their_own_levels",
    },
}


class Exact(GaussianMixtureDenoiser):
    """The mixture of the numbers, with a range of the variance as for a network that learnt one."""

    def __init__(self, sde: SDE) -> None:
        weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in MIXTURE)
        super().__init__(sde, weights, means, stds.square()[:, None, None] * torch.eye(2, dtype=torch.float64))

    def mean_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self(x, t), (torch.sin(x) + 1) / 2


MIXTURE = [0.6, 0.4], [[1.0, -0.5], [-0.8, 0.7]], [0.5, 0.3]


@dataclass(frozen=True)
class Case:
    """A peer's run from x to y, both divided by α, over levels σ/α."""

    levels: Tensor
    x: Tensor
    y: Tensor
    noises: Tensor


@cache
def cases() -> dict[str, Case]:
    stored = json.loads((ROOT / "tests/data/peers/numbers.json").read_text(encoding="utf-8"))
    return {
        name: Case(**{key: torch.tensor(value, dtype=torch.float64) for key, value in arrays.items()})
        for name, arrays in stored.items()
    }


def difference(name: str, solver: Solver) -> float:
    """Largest difference of our run and the peer's, relative to the largest value."""
    case, sde = cases()[name], PROCESS.get(name, VP)
    times = sde.time(-2 * case.levels.log())
    denoiser, end = Exact(sde), times[-1]
    if isinstance(solver, DPMSolverFast):
        ends = (-2 * case.levels.log()).tolist()
        solver = replace(
            solver, grid=lambda sde, steps, _: sde.time(torch.linspace(*ends, steps + 1, dtype=torch.float64))
        )
    elif isinstance(solver, StepSolver):
        solver = replace(solver, steps=len(times) - 1, grid=lambda *_: times)
    solver = replace(solver, denoise=False, t_end=float(end))
    y = solver(denoiser, sde.alpha(times[0]) * case.x, noise=replay(case.noises) if len(case.noises) else None)
    return float((y / sde.alpha(end) - case.y).abs().max() / case.y.abs().max())


@pytest.mark.parametrize("name, solver", SAME, ids=[name for name, _ in SAME])
def test_it_is_the_peer_s(name: str, solver: Solver) -> None:
    single = name.startswith("diffusers") and any(kind in name for kind in SINGLE)
    assert difference(name, solver) < (2e-6 if single else 1e-11)


@pytest.mark.parametrize("name, solver", DIFFERENT, ids=[name for name, _ in DIFFERENT])
def test_it_is_not_the_peer_s(name: str, solver: Solver) -> None:
    assert difference(name, solver) > 1e-4


class WithTheSign(SDEDPMSolverPP):
    """Order 3 with −½ for +½ in the weight of D₂: (1 − e^(−H) − H)/H² − ½."""

    def weights(self, levels: Levels) -> Weights:
        found = super().weights(levels)
        return {**found, "w2": found["w2"] - 1}


def test_diffusers_third_order_has_another_sign_and_loses_an_order() -> None:
    name = dpm(3, **SDE_DPMPP)
    assert difference(name, WithTheSign(order=3)) < 2e-6
    orders = []
    for solver in (SDEDPMSolverPP(order=3), WithTheSign(order=3)):
        solve, std = std_of_chains(VPSDE(), solver)
        errors = [float((solve(steps) - std).abs()) for steps in (80, 160)]
        orders.append(math.log2(errors[0] / errors[1]))
    assert orders == pytest.approx([2, 1], abs=0.25)


@pytest.mark.parametrize(
    "kind, grid", [("exponential", logsnr_grid), ("karras", karras_grid)], ids=["exponential", "karras"]
)
def test_grids_are_the_peer_s(kind: str, grid: Any) -> None:
    levels, sde = cases()[f"k-diffusion get_sigmas_{kind}"].levels, EDMSDE(sigma_max=10.0)
    times = grid(sde, len(levels) - 1, float(sde.time(-2 * levels[-1:].log())))
    torch.testing.assert_close((-0.5 * sde.logsnr(times)).exp(), levels, rtol=1e-9, atol=0)


def test_diffusers_exponential_grid_is_equal_in_log_snr() -> None:
    log_levels = cases()[f"{dpm(2)}, exponential"].levels.log()
    torch.testing.assert_close(
        log_levels.diff(), log_levels.diff().mean().expand(len(log_levels) - 1), rtol=1e-5, atol=0
    )


def rows() -> list[str]:
    """The bullets of the page."""
    text = (ROOT / "docs/solvers.md").read_text(encoding="utf-8").split("## Notes")[0]
    return [" ".join(row.split()) for row in re.findall(r"^- (.*?)(?=^- |^#|\n\n)", text, re.MULTILINE | re.DOTALL)]


def peers_in(row: str) -> set[str]:
    names = re.findall(r"`((?:sample_\w+|\w+(?:Scheduler|Sampler)))\b[^`]*`", row)
    names += [name for library in ELSEWHERE for part in re.findall(rf"{library} ((?:`\w+`(?:, )?)+)", row)
              for name in re.findall(r"`(\w+)`", part)]  # fmt: skip
    return set(names)


def test_every_claim_of_the_page_has_its_numbers() -> None:
    def called(names: list[tuple[str, Solver]]) -> set[str]:
        return {re.split(r"[ (]", name)[1] for name, _ in names}

    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    claimed = {name for row in rows() if not row.startswith("Not the same") for name in peers_in(row)}
    denied = {name for row in rows() if row.startswith("Not the same") for name in peers_in(row)}
    assert len(claimed) > 25
    assert claimed <= called(SAME) | elsewhere, claimed - called(SAME) - elsewhere
    assert denied == called(DIFFERENT)
    assert called(SAME) | elsewhere <= claimed, called(SAME) | elsewhere - claimed
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert all(f"def {test}(" in tests for names in ELSEWHERE.values() for test in names.values())
