"""The one object that solvers, likelihoods and losses consume: E[x0 | x_t = x]."""

from scoresde.denoiser.absent import CONDITIONS as CONDITIONS
from scoresde.denoiser.absent import without as without
from scoresde.denoiser.denoiser import Denoiser, KnowsCovariance, KnowsDirections, KnowsFullCovariance, PredictsRange
from scoresde.denoiser.denoiser import as_time as as_time
from scoresde.denoiser.devices import devices_named as devices_named
from scoresde.denoiser.missing_entries import MissingEntries
from scoresde.denoiser.network_denoiser import NetworkDenoiser
from scoresde.denoiser.network_denoiser import check_signal as check_signal
from scoresde.denoiser.on_process import OnProcess

__all__ = [
    "Denoiser",
    "KnowsCovariance",
    "KnowsDirections",
    "KnowsFullCovariance",
    "MissingEntries",
    "NetworkDenoiser",
    "OnProcess",
    "PredictsRange",
]
