"""What the command lines do: classes that `conf/` names, interfaces for your own; `load` is for notebooks too."""

from scoresde.commands.auxiliary import AuxiliaryTask, TrainDequantization, TrainVarianceHead
from scoresde.commands.bounds import ELBO, VLB, LikelihoodReport
from scoresde.commands.calibration import CalibrationDiagnostics
from scoresde.commands.classification import ClassifierDiagnostics
from scoresde.commands.classifier_guidance import ClassifierGuidance
from scoresde.commands.diagnostics import DenoiserDiagnostics, NoDiagnostics
from scoresde.commands.embedding import EmbeddingGuidance, TrainEmbedding
from scoresde.commands.examples import OwnData
from scoresde.commands.flow_likelihood import FlowLikelihood
from scoresde.commands.free_guidance import (
    AdaptiveProjectedGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    NegativeGuidance,
)
from scoresde.commands.guidance import Autoguidance, NoGuidance
from scoresde.commands.independent_observations import IndependentObservations
from scoresde.commands.interfaces import (
    Diagnostics,
    Estimand,
    Guidance,
    InverseProblem,
    Likelihood,
    Scores,
    SolverGrid,
    StoredBatch,
    Task,
    Variance,
)
from scoresde.commands.inverse_problems import Colourisation, Deblur, Imputation, Inpaint, NoTask, SuperResolution
from scoresde.commands.likelihood import NoLikelihood
from scoresde.commands.load import TrainedModel, load
from scoresde.commands.notebook import TrainedRun, load_run
from scoresde.commands.reflow import TrainReflow
from scoresde.commands.solver_grid import CalibratedTimes, OptimalGrid, OptimisedTimes, OwnGrid
from scoresde.commands.suit import AutoModel
from scoresde.commands.train import ModelTask, TrainClassifier, TrainDenoiser
from scoresde.commands.variance import NoVariance, ProbedVariance, TableVariance, TrainedVariance

__all__ = [
    "ELBO", "VLB", "AdaptiveProjectedGuidance", "AutoModel", "Autoguidance", "AuxiliaryTask", "CFGPlusPlus",
    "CalibratedTimes", "CalibrationDiagnostics", "ClassifierDiagnostics", "ClassifierFreeGuidance",
    "ClassifierGuidance", "Colourisation", "Deblur", "DenoiserDiagnostics", "Diagnostics", "EmbeddingGuidance",
    "Estimand", "FlowLikelihood", "Guidance", "Imputation", "IndependentObservations", "Inpaint", "InverseProblem",
    "Likelihood", "LikelihoodReport", "ModelTask", "NegativeGuidance", "NoDiagnostics", "NoGuidance", "NoLikelihood",
    "NoTask", "NoVariance", "OptimalGrid", "OptimisedTimes", "OwnData", "OwnGrid", "ProbedVariance", "Scores",
    "SolverGrid", "StoredBatch", "SuperResolution", "TableVariance", "Task", "TrainClassifier", "TrainDenoiser",
    "TrainDequantization", "TrainEmbedding", "TrainReflow", "TrainVarianceHead", "TrainedModel", "TrainedRun",
    "TrainedVariance", "Variance", "load", "load_run",
]  # fmt: skip
