"""scoresde: score-based generative modeling through stochastic differential equations.

The names below are what a first notebook uses; every other public name is in the package that owns it
(`scoresde.solvers.SEEDS`). They are imported when they are first used, so that `--help` need not wait for torch.
"""

from importlib import import_module as _import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "sde": "SDE VPSDE SubVPSDE VESDE CosineSDE EDMSDE StraightSDE DiscreteVPSDE linear_betas cosine_betas Interval "
    "karras_grid logsnr_grid uniform_grid",
    "noise": "per_sample_noise brownian_noise",
    "parameterization": "Parameterization EDM Epsilon Data VPrediction Velocity Score",
    "denoiser": "Denoiser NetworkDenoiser",
    "guidance": "Guided Composed ClassifierGuided ReconstructionGuided",
    "solvers": "Solver StepSolver DDPM DDIM EulerMaruyama PredictorCorrector Langevin Heun DPMSolverPP2M UniPC "
    "ExponentialAdams SASolver ProbabilityFlowODE ReverseSDE",
    "analytic": "GaussianDenoiser GaussianMixtureDenoiser EmpiricalDenoiser flow_error",
    "likelihood": "log_prob discrete_log_prob elbo vlb bits_per_dim likelihood_report",
    "losses": "DenoisingLoss uniform_times lognormal_times simple_weighting likelihood_weighting edm_weighting",
    "models": "NCSNpp DDPMUNet MLP",
    "training": "Trainer EMA",
    "commands": "load load_run",
    "cli": "fit",
}
_HOME_OF = {name: f"scoresde.{home}" for home, names in _HOMES.items() for name in names.split()}
_PACKAGES = (
    *_HOMES,
    "inverse",
    "covariance",
    "integrate",
    "fitting",
    "diagnostics",
    "pictures",
    "data",
    "interop",
    "testing",
)
_RENAMED = {"Pilots": "ReferencePaths", "pilot_paths": "reference_paths"}
__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return _import_module(f"scoresde.{name}")
    homes = [_HOME_OF[name]] if name in _HOME_OF else [f"scoresde.{package}" for package in _PACKAGES]
    if name in _RENAMED:
        return __getattr__(_RENAMED[name])
    if not name.startswith("_"):
        for home in map(_import_module, homes):
            if name in home.__all__:
                globals()[name] = value = getattr(home, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES})
