"""Training objectives: a weighting over noise levels, a distribution of times, and the losses that use them."""

from scoresde.losses.classifier_loss import ClassifierLoss
from scoresde.losses.contrastive_loss import ContrastiveLoss
from scoresde.losses.denoising import DenoisingLoss
from scoresde.losses.dequantization_loss import DequantizationLoss, DequantizedDenoiser
from scoresde.losses.flow import FlowLoss, optimal_pairing
from scoresde.losses.loss import Loss
from scoresde.losses.reflow import Pairs, reflow_pairs
from scoresde.losses.resampling import LossSecondMoment
from scoresde.losses.second_moment import SecondMomentLoss
from scoresde.losses.second_order import SecondOrderLoss
from scoresde.losses.times import (
    TimeLaw,
    discrete_times,
    logit_normal_times,
    lognormal_times,
    logsnr_times,
    mode_times,
    shifted_times,
    uniform_times,
)
from scoresde.losses.vdm import VDMLoss
from scoresde.losses.vlb_loss import VLBLoss
from scoresde.losses.weightings import (
    Weighting,
    edm_weighting,
    flow_weighting,
    importance_weighting,
    likelihood_weighting,
    simple_weighting,
    snr_weighting,
    velocity_weighting,
)

__all__ = [
    "ClassifierLoss", "ContrastiveLoss", "DenoisingLoss", "DequantizationLoss", "DequantizedDenoiser", "FlowLoss",
    "Loss", "LossSecondMoment", "Pairs", "SecondMomentLoss", "SecondOrderLoss", "TimeLaw", "VDMLoss", "VLBLoss",
    "Weighting", "discrete_times", "edm_weighting", "flow_weighting", "importance_weighting", "likelihood_weighting",
    "logit_normal_times", "lognormal_times", "logsnr_times", "mode_times", "optimal_pairing", "reflow_pairs",
    "shifted_times", "simple_weighting", "snr_weighting", "uniform_times", "velocity_weighting",
]  # fmt: skip
