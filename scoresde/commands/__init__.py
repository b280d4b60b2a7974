"""What the command lines do; `load` is for notebooks too, and the classes are what YAML names."""

from scoresde.commands.bounds import ELBO, VLB, LikelihoodReport
from scoresde.commands.diagnostics import DenoiserDiagnostics, NoDiagnostics
from scoresde.commands.flow_likelihood import FlowLikelihood
from scoresde.commands.interfaces import Diagnostics, Estimand, Likelihood, Scores, StoredBatch
from scoresde.commands.likelihood import NoLikelihood
from scoresde.commands.load import load

__all__ = [
    "ELBO",
    "VLB",
    "DenoiserDiagnostics",
    "Diagnostics",
    "Estimand",
    "FlowLikelihood",
    "Likelihood",
    "LikelihoodReport",
    "NoDiagnostics",
    "NoLikelihood",
    "Scores",
    "StoredBatch",
    "load",
]
