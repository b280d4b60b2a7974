"""Checkpoints of other systems."""

from scoresde.interop.score_sde import ScoreSDEParameterization, load_score_sde

__all__ = ["ScoreSDEParameterization", "load_score_sde"]
