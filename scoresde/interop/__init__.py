"""Checkpoints of other systems."""

from scoresde.interop.score_sde import ScoreSDEParameterization, load_score_sde
from scoresde.interop.score_sde_keys import score_sde_keys

__all__ = ["ScoreSDEParameterization", "load_score_sde", "score_sde_keys"]
