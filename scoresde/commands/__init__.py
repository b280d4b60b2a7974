"""What the command lines do: classes that `conf/` names, interfaces for your own; `load` is for notebooks too."""

from scoresde.commands.auxiliary import AuxiliaryTask, TrainDequantization, TrainVarianceHead
from scoresde.commands.guidance import Autoguidance, ClassifierFreeGuidance, ClassifierGuidance, NoGuidance
from scoresde.commands.interfaces import Guidance, SolverGrid, Task, Variance
from scoresde.commands.load import TrainedModel, load
from scoresde.commands.solver_grid import CalibratedTimes, OptimalGrid, OptimisedTimes, OwnGrid
from scoresde.commands.train import ModelTask, TrainClassifier, TrainDenoiser
from scoresde.commands.variance import NoVariance, ProbedVariance, TableVariance, TrainedVariance

__all__ = [
    "Autoguidance", "AuxiliaryTask", "CalibratedTimes", "ClassifierFreeGuidance", "ClassifierGuidance", "Guidance",
    "ModelTask", "NoGuidance", "NoVariance", "OptimalGrid", "OptimisedTimes", "OwnGrid", "ProbedVariance", "SolverGrid",
    "TableVariance", "Task", "TrainClassifier", "TrainDenoiser", "TrainDequantization", "TrainVarianceHead",
    "TrainedModel", "TrainedVariance", "Variance", "load",
]  # fmt: skip
