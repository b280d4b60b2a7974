"""Run the samplers of other libraries on an exact model and keep their numbers: see README.md beside this file.

pip install diffusers k-diffusion azula
python tests/data/peers/generate.py
"""

from __future__ import annotations

import json
import math
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
LEVELS = [10.0, 5.0, 2.2, 1.1, 0.5, 0.2, 0.1]  # σ/α, uneven
TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
WEIGHTS, MEANS, STDS = [0.6, 0.4], [[1.0, -0.5], [-0.8, 0.7]], [0.5, 0.3]


def denoised(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """x̂0(x_t) of the mixture Σ w_k N(m_k, s_k² I), x_t = α x0 + σ z."""
    weights, means, stds = (torch.tensor(values, dtype=torch.float64) for values in (WEIGHTS, MEANS, STDS))
    variances = alpha**2 * stds.square() + sigma**2
    off = x[:, None] - alpha * means
    logits = weights.log() - off.square().sum(2) / (2 * variances) - variances.log()
    each = means + (alpha * stds.square() / variances)[:, None] * off
    return (logits.softmax(1)[..., None] * each).sum(1)


def eps(x: Tensor, ratio: float) -> Tensor:
    alpha = 1 / math.hypot(1, ratio)
    return (x - alpha * denoised(x, alpha, alpha * ratio)) / (alpha * ratio)


def noise(name: str, count: int = 40) -> Tensor:
    return torch.randn(count, 4, 2, generator=torch.Generator().manual_seed(len(name)), dtype=torch.float64)


START = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES: dict[str, dict[str, Any]] = {}


def keep(name: str, sigmas: list[float], x: Tensor, y: Tensor, noises: list[Tensor]) -> None:
    """A run over levels σ/α from x to y, both divided by α, with the noises that it asked for."""
    assert y.dtype == torch.float64 and bool(y.isfinite().all()), name
    drawn = [z.tolist() for z in noises]
    CASES[name] = {"levels": sigmas, "x": x.tolist(), "y": y.tolist(), "noises": drawn}


class Draws:
    """Hands out the noises of a case, and remembers which."""

    def __init__(self, name: str) -> None:
        self.rows, self.used = iter(noise(name)), []

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        self.used.append(next(self.rows))
        return self.used[-1]


class OnePath:
    """Noise of both stages of a step from one path of the linear SDE dx/σ = dw: two fresh noises a step."""

    def __init__(self, source: Draws) -> None:
        self.source = source
        self.inner: tuple[float, Tensor] | None = None

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        start, end = float(start), float(end)
        if self.inner is None:
            self.inner = end, self.source()
            return self.inner[1]
        (middle, first), self.inner = self.inner, None
        share = (end / middle) ** 2 * middle * math.sqrt(1 - (middle / start) ** 2)
        whole = end * math.sqrt(1 - (end / start) ** 2)
        return share / whole * first + math.sqrt(1 - (share / whole) ** 2) * self.source()


# k-diffusion: x/α, and the noise level σ/α


def k_diffusion() -> Any:
    """Its sampling functions, without the package's __init__, which imports image models and metrics."""
    import importlib.util

    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules[name] = ModuleType(name)
    sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    sampling = import_module("k_diffusion.sampling")
    for name in ("torchvision", "torchvision.transforms"):
        del sys.modules[name]
    return sampling


def from_k_diffusion() -> None:
    sampling = k_diffusion()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return denoised(x, 1.0, float(sigma.flatten()[0]))

    def run(function: str, sigmas: list[float] = LEVELS, draws: bool = False, **options: Any) -> None:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        name, source = f"k-diffusion {function}({given})", Draws(function)
        options |= {"noise_sampler": source} if draws else {}
        x = sigmas[0] * START
        y = getattr(sampling, function)(model, x, torch.tensor(sigmas, dtype=torch.float64), disable=True, **options)
        keep(name, sigmas, x, y, source.used)

    run("sample_euler")
    run("sample_heun")
    torch.randn_like = churn = Draws("churn")  # type: ignore[assignment]
    run("sample_heun", s_churn=3.0, s_noise=1.01)
    CASES["k-diffusion sample_heun(s_churn=3.0, s_noise=1.01)"]["noises"] = [z.tolist() for z in churn.used]
    torch.randn_like = RANDN_LIKE
    run("sample_dpm_2")
    run("sample_lms", order=4)
    run("sample_lms", order=3)
    run("sample_dpmpp_2m")
    run("sample_dpmpp_2s_ancestral", eta=0.0, draws=True)
    run("sample_dpmpp_3m_sde", eta=0.0, draws=True)
    run("sample_euler_ancestral", draws=True)
    sde = OnePath(Draws("sample_dpmpp_sde"))
    x = LEVELS[0] * START
    y = sampling.sample_dpmpp_sde(model, x, torch.tensor(LEVELS), noise_sampler=sde, disable=True)
    keep("k-diffusion sample_dpmpp_sde()", LEVELS, x, y, sde.source.used)
    for kind in ("midpoint", "heun"):
        run("sample_dpmpp_2m_sde", solver_type=kind, draws=True)
    run("sample_dpmpp_2m_sde", eta=0.36, draws=True)
    run("sample_dpmpp_3m_sde", draws=True)
    for kind, options in (("exponential", {}), ("karras", {"rho": 7.0})):
        sigmas = getattr(sampling, f"get_sigmas_{kind}")(6, 0.1, 10.0, **options)[:-1]
        keep(f"k-diffusion get_sigmas_{kind}", sigmas.tolist(), START, START, [])
    for calls in (6, 7, 8):
        x = LEVELS[0] * START
        y = sampling.sample_dpm_fast(model, x, LEVELS[-1], LEVELS[0], calls, disable=True)
        keep(f"k-diffusion sample_dpm_fast({calls})", [LEVELS[0], LEVELS[-1]], x, y, [])
    x = LEVELS[0] * START
    y = sampling.sample_dpm_adaptive(model, x, LEVELS[-1], LEVELS[0], disable=True)
    keep("k-diffusion sample_dpm_adaptive()", [LEVELS[0], LEVELS[-1]], x, y, [])


# diffusers: schedulers on the linear table, whose levels are rounded to float32 but used in float64 here


def scheduler_of(kind: str, grid: str, steps: int, source: Draws, options: dict[str, Any]) -> Any:
    """A scheduler of diffusers whose table and levels are float64, and which takes its noise from the source."""
    import diffusers

    module = sys.modules[getattr(diffusers, kind).__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = source  # type: ignore[attr-defined]
    named = {"karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
    spacing = named.get(grid, {"timestep_spacing": grid})
    given = {**options, "tau_func": lambda t: 1.0} if "tau_func" in options else options
    scheduler = getattr(diffusers, kind)(**TABLE, **spacing, **given)
    scheduler.alphas = 1 - torch.linspace(1e-4, 0.02, 1000)
    scheduler.betas, scheduler.alphas_cumprod = 1 - scheduler.alphas, scheduler.alphas.cumprod(0)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def level_at(scheduler: Any, t: Tensor) -> float:
    """σ/α where the next step begins."""
    if not hasattr(scheduler, "sigmas"):
        return float((1 / scheduler.alphas_cumprod[int(t)] - 1).sqrt())
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    return float(scheduler.sigmas[scheduler.step_index])


def run_diffusers(
    kind: str, grid: str = "karras", *, steps: int = 7, calls: int, eta: float = 0.0, **options: Any
) -> None:
    """So many calls of a scheduler, on states x/α where it wants them and x elsewhere."""
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    name, source = f"diffusers {kind}({given}){', exponential' if grid == 'exponential' else ''}", Draws(kind)
    scheduler = scheduler_of(kind, grid, steps, source, options)
    in_ratio = scheduler.init_noise_sigma != 1
    levels: list[float] = []
    x = first = START
    for t in scheduler.timesteps[:calls]:
        ratio = level_at(scheduler, t)
        alpha = 1 / math.hypot(1, ratio)
        if not levels:
            x = first = START / alpha if in_ratio else START
        levels += [ratio] if ratio not in levels else []
        scheduler.scale_model_input(x, t)
        state = x * alpha if in_ratio else x
        output = eps(state, ratio)
        if options.get("variance_type") == "learned_range":
            output = torch.cat([output, torch.sin(state)], 1)
        more = {"eta": eta, "variance_noise": source()} if eta else {}
        x = scheduler.step(output, t, x, **more).prev_sample
    last = level_at(scheduler, scheduler.timesteps[min(calls, len(scheduler.timesteps) - 1)])
    levels += [last] if last not in levels else []
    scale = [1.0 if in_ratio else math.hypot(1, level) for level in (levels[0], levels[-1])]
    keep(name if not eta else name.replace("(", f"(eta={eta}, "), levels, first * scale[0], x * scale[1], source.used)


def from_diffusers() -> None:
    import diffusers

    run = run_diffusers
    part, end = {"calls": 14, "steps": 16}, {"final_sigmas_type": "sigma_min"}
    for eta in (0.0, 0.6):
        run("DDIMScheduler", "leading", **part, clip_sample=False, eta=eta)
    for kind in ("fixed_small", "fixed_large", "learned_range"):
        run("DDPMScheduler", "leading", **part, clip_sample=False, variance_type=kind)
    run("HeunDiscreteScheduler", calls=12)
    run("EulerDiscreteScheduler", **part)
    run("LMSDiscreteScheduler", **part)
    for order in (2, 3):
        run("DEISMultistepScheduler", **part, solver_order=order)
        run("DPMSolverMultistepScheduler", **part, solver_order=order)
        dpmsolver = {"solver_order": order, "algorithm_type": "dpmsolver", **end}
        run("DPMSolverMultistepScheduler", **part, **dpmsolver)
        run("DPMSolverMultistepScheduler", **part, solver_order=order, algorithm_type="sde-dpmsolver++")
        for kind in ("bh1", "bh2"):
            run("UniPCMultistepScheduler", **part, solver_order=order, solver_type=kind, **end)
        run("DPMSolverSinglestepScheduler", **part, solver_order=order)
        run("SASolverScheduler", **part, predictor_order=order, corrector_order=order, tau_func="1")
    run("SASolverScheduler", **part, predictor_order=1, corrector_order=1, tau_func="1")
    run("DPMSolverMultistepScheduler", **part, solver_order=2, solver_type="heun")
    run("DPMSolverMultistepScheduler", "exponential", **part, solver_order=2)

    # IPNDM on α = cos, σ = sin, without its first step, which has no signal; its networks predict v
    scheduler, ratios = diffusers.IPNDMScheduler(num_train_timesteps=1000), []
    scheduler.set_timesteps(8)
    angles = math.pi / 2 * torch.linspace(1, 0, 9)
    scheduler.betas, scheduler.alphas = angles.sin(), angles.cos()
    x = START
    for angle, t in list(zip(angles.tolist(), scheduler.timesteps, strict=False))[1:7]:
        alpha, sigma = math.cos(angle), math.sin(angle)
        ratios.append(sigma / alpha)
        x0 = denoised(x, alpha, sigma)
        x = scheduler.step(alpha * (x - alpha * x0) / sigma - sigma * x0, t, x).prev_sample
    ratios.append(math.tan(float(angles[7])))
    keep("diffusers IPNDMScheduler()", ratios, START / math.cos(float(angles[1])), x / math.cos(float(angles[7])), [])

    # Cosine DPM: x/α, v-prediction, exponential levels
    source, scheduler = Draws("CosineDPM"), diffusers.CosineDPMSolverMultistepScheduler(sigma_min=0.1, sigma_max=10.0)
    scheduler.set_timesteps(16)
    scheduler.sigmas, scheduler.noise_sampler = scheduler.sigmas.double(), source
    x = start = 10 * START
    for t, sigma in list(zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False))[:6]:
        scheduler.scale_model_input(x, t)
        norm = math.hypot(sigma, 1)
        x = scheduler.step((x / norm**2 - denoised(x, 1.0, sigma)) * norm / sigma, t, x).prev_sample
    keep("diffusers CosineDPMSolverMultistepScheduler()", scheduler.sigmas.tolist()[:7], start, x, source.used)

    # the two of score_sde: steps of 1/N in t, and of a geometric table
    module = import_module("diffusers.schedulers.deprecated.scheduling_sde_vp")
    source, scheduler = Draws("ScoreSdeVp"), module.ScoreSdeVpScheduler()
    scheduler.set_timesteps(20)
    module.randn_tensor = source  # type: ignore[attr-defined]
    x, ratios = START, []
    for k in range(7):
        t = torch.tensor([1 - k / 20])
        alpha = math.exp(-0.25 * 19.9 * float(t) ** 2 - 0.05 * float(t))
        ratios.append(math.sqrt(1 / alpha**2 - 1))
        if k == 0:
            start = START / alpha
        if k < 6:
            x, _ = scheduler.step_pred(eps(x, ratios[-1]), x, t)
    keep("diffusers ScoreSdeVpScheduler()", ratios, start, x / alpha, source.used)

    source, scheduler = Draws("ScoreSdeVe"), diffusers.ScoreSdeVeScheduler(sigma_min=0.1, sigma_max=10.0)
    scheduler.set_timesteps(16, sampling_eps=1e-5)
    scheduler.set_sigmas(16, sampling_eps=1e-5)
    sys.modules[diffusers.ScoreSdeVeScheduler.__module__].randn_tensor = source
    x, ratios = 10 * START, scheduler.discrete_sigmas.flip(0).tolist()[:7]
    for k in range(6):
        score = (denoised(x, 1.0, ratios[k]) - x) / ratios[k] ** 2
        x = scheduler.step_pred(score, torch.full((4,), 1 - k / 15 + 1e-9), x).prev_sample
    keep("diffusers ScoreSdeVeScheduler()", ratios, 10 * START, x, source.used)


# azula: any schedule, here of the levels above with α² + σ² = 1


def from_azula() -> None:
    import azula.denoise
    import azula.sample

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.tensor(LEVELS)[((1 - t) * (len(LEVELS) - 1)).round().long()]
        alpha = torch.rsqrt(1 + ratio.square())
        return alpha, alpha * ratio

    class Exact(azula.denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = schedule(t)
            return azula.denoise.DiracPosterior(denoised(x_t, float(alpha), float(sigma)))

    first, last = (math.hypot(1, level) for level in (LEVELS[0], LEVELS[-1]))
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("DDPMSampler", {}), ("DDIMSampler", {}), ("EulerSampler", {}), ("HeunSampler", {}), ("ItoSampler", {}),
        *((f"{kind}Sampler", {"order": order}) for kind in ("zAB", "vAB", "zEAB", "xEAB") for order in (2, 3)),
    ]  # fmt: skip
    for kind, options in kinds:
        torch.randn_like = source = Draws(kind)  # type: ignore[assignment]
        sampler = getattr(azula.sample, kind)(Exact(), steps=len(LEVELS) - 1, silent=True, **options)
        y = sampler(START)
        used = source.used if kind in ("DDPMSampler", "ItoSampler") else []
        torch.randn_like = RANDN_LIKE
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        keep(f"azula {kind}({given})", LEVELS, START * first, y * last, used)


RANDN_LIKE = torch.randn_like


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    from_k_diffusion()
    from_diffusers()
    from_azula()
    (HERE / "numbers.json").write_text(json.dumps(CASES))
    print(len(CASES), (HERE / "numbers.json").stat().st_size)
