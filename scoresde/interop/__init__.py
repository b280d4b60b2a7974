"""Checkpoints and networks of other systems in, denoisers out as velocity fields."""

from scoresde.interop.check_flow import check_flow_network
from scoresde.interop.clip import ClipEncoder
from scoresde.interop.flow import FlowConvention, FlowNetwork, VelocityField, flow_denoiser, velocity_field
from scoresde.interop.score_sde import ScoreSDEParameterization, load_score_sde
from scoresde.interop.score_sde_keys import score_sde_keys

__all__ = [
    "ClipEncoder", "FlowConvention", "FlowNetwork", "ScoreSDEParameterization", "VelocityField", "check_flow_network",
    "flow_denoiser", "load_score_sde", "score_sde_keys", "velocity_field",
]  # fmt: skip
