"""scoresde: score-based generative modeling through stochastic differential equations.

Public names are imported when they are first used, so that `--help` need not wait for torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scoresde.analytic import (
        GaussianDenoiser as GaussianDenoiser,
        GaussianMixtureDenoiser as GaussianMixtureDenoiser,
    )
    from scoresde.calibration import (
        OptimisedGrid as OptimisedGrid,
        Pilots as Pilots,
        calibrate as calibrate,
        optimise_grid as optimise_grid,
        pilot_paths as pilot_paths,
    )
    from scoresde.classifier import ClassifierLoss as ClassifierLoss, NoisyClassifier as NoisyClassifier
    from scoresde.denoiser import Denoiser as Denoiser, NetworkDenoiser as NetworkDenoiser
    from scoresde.guidance import (
        ClassifierGuided as ClassifierGuided,
        Composed as Composed,
        Guided as Guided,
        ReconstructionGuided as ReconstructionGuided,
    )
    from scoresde.likelihood import LogProb as LogProb, bits_per_dim as bits_per_dim, log_prob as log_prob
    from scoresde.loading import load as load
    from scoresde.losses import (
        DenoisingLoss as DenoisingLoss,
        discrete_times as discrete_times,
        edm_weighting as edm_weighting,
        likelihood_weighting as likelihood_weighting,
        lognormal_times as lognormal_times,
        simple_weighting as simple_weighting,
        snr_weighting as snr_weighting,
        uniform_times as uniform_times,
    )
    from scoresde.models import MLP as MLP, Classifier as Classifier, DDPMUNet as DDPMUNet, NCSNpp as NCSNpp
    from scoresde.parameterization import (
        EDM as EDM,
        Data as Data,
        Epsilon as Epsilon,
        Parameterization as Parameterization,
        Score as Score,
        VPrediction as VPrediction,
    )
    from scoresde.sde import (
        SDE as SDE,
        CosineSDE as CosineSDE,
        DiscreteVPSDE as DiscreteVPSDE,
        EDMSDE as EDMSDE,
        Kernel as Kernel,
        SubVPSDE as SubVPSDE,
        VESDE as VESDE,
        VPSDE as VPSDE,
        cosine_betas as cosine_betas,
        expand as expand,
        linear_betas as linear_betas,
        quadratic_betas as quadratic_betas,
        scaled_linear_betas as scaled_linear_betas,
        sigmoid_betas as sigmoid_betas,
    )
    from scoresde.solvers import (
        DDIM as DDIM,
        DDPM as DDPM,
        AnnealedLangevin as AnnealedLangevin,
        DPMSolverPP2M as DPMSolverPP2M,
        EulerMaruyama as EulerMaruyama,
        Grid as Grid,
        Heun as Heun,
        Langevin as Langevin,
        NoiseSource as NoiseSource,
        PredictorCorrector as PredictorCorrector,
        ProbabilityFlowODE as ProbabilityFlowODE,
        ReverseDiffusion as ReverseDiffusion,
        ReverseSDE as ReverseSDE,
        Solver as Solver,
        Step as Step,
        StepSolver as StepSolver,
        brownian_noise as brownian_noise,
        gaussian_noise as gaussian_noise,
        karras_grid as karras_grid,
        logsnr_grid as logsnr_grid,
        per_sample_noise as per_sample_noise,
        quadratic_grid as quadratic_grid,
        subsequence_grid as subsequence_grid,
        uniform_grid as uniform_grid,
        CalibratedMultistep as CalibratedMultistep,
        Calibration as Calibration,
        ExponentialAdams as ExponentialAdams,
        GaussianFlow as GaussianFlow,
        Levels as Levels,
        Plan as Plan,
        TabulatedSolver as TabulatedSolver,
    )
    from scoresde.training import (
        EMA as EMA,
        CheckpointError as CheckpointError,
        CSVLogger as CSVLogger,
        Interrupted as Interrupted,
        Logger as Logger,
        MultiLogger as MultiLogger,
        RunDirectory as RunDirectory,
        Trainer as Trainer,
        TrainingError as TrainingError,
        WandbLogger as WandbLogger,
    )

_HOMES = {
    "scoresde.analytic": (
        "GaussianDenoiser",
        "GaussianMixtureDenoiser",
    ),
    "scoresde.calibration": (
        "OptimisedGrid",
        "Pilots",
        "calibrate",
        "optimise_grid",
        "pilot_paths",
    ),
    "scoresde.classifier": (
        "ClassifierLoss",
        "NoisyClassifier",
    ),
    "scoresde.denoiser": (
        "Denoiser",
        "NetworkDenoiser",
    ),
    "scoresde.guidance": (
        "ClassifierGuided",
        "Composed",
        "Guided",
        "ReconstructionGuided",
    ),
    "scoresde.likelihood": (
        "LogProb",
        "bits_per_dim",
        "log_prob",
    ),
    "scoresde.loading": ("load",),
    "scoresde.losses": (
        "DenoisingLoss",
        "discrete_times",
        "edm_weighting",
        "likelihood_weighting",
        "lognormal_times",
        "simple_weighting",
        "snr_weighting",
        "uniform_times",
    ),
    "scoresde.models": (
        "MLP",
        "Classifier",
        "DDPMUNet",
        "NCSNpp",
    ),
    "scoresde.parameterization": (
        "EDM",
        "Data",
        "Epsilon",
        "Parameterization",
        "Score",
        "VPrediction",
    ),
    "scoresde.sde": (
        "SDE",
        "CosineSDE",
        "DiscreteVPSDE",
        "EDMSDE",
        "Kernel",
        "SubVPSDE",
        "VESDE",
        "VPSDE",
        "cosine_betas",
        "expand",
        "linear_betas",
        "quadratic_betas",
        "scaled_linear_betas",
        "sigmoid_betas",
    ),
    "scoresde.solvers": (
        "DDIM",
        "DDPM",
        "AnnealedLangevin",
        "DPMSolverPP2M",
        "EulerMaruyama",
        "Grid",
        "Heun",
        "Langevin",
        "NoiseSource",
        "PredictorCorrector",
        "ProbabilityFlowODE",
        "ReverseDiffusion",
        "ReverseSDE",
        "Solver",
        "Step",
        "StepSolver",
        "brownian_noise",
        "gaussian_noise",
        "karras_grid",
        "logsnr_grid",
        "per_sample_noise",
        "quadratic_grid",
        "subsequence_grid",
        "uniform_grid",
        "CalibratedMultistep",
        "Calibration",
        "ExponentialAdams",
        "GaussianFlow",
        "Levels",
        "Plan",
        "TabulatedSolver",
    ),
    "scoresde.training": (
        "EMA",
        "CheckpointError",
        "CSVLogger",
        "Interrupted",
        "Logger",
        "MultiLogger",
        "RunDirectory",
        "Trainer",
        "TrainingError",
        "WandbLogger",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(_import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
