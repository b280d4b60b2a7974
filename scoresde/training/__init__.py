"""Training: the loop, averaged weights, checkpoints, the run directory and loggers."""

from scoresde.training.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from scoresde.training.ema import EMA
from scoresde.training.lock import InUse
from scoresde.training.loggers import CSVLogger, Logger, MultiLogger
from scoresde.training.run import RunDirectory
from scoresde.training.schedule import learning_rate_factor
from scoresde.training.signals import Interrupted
from scoresde.training.trainer import Trainer
from scoresde.training.update import TrainingError
from scoresde.training.wandb import WandbLogger, csv_and_wandb

__all__ = [
    "EMA", "CSVLogger", "CheckpointError", "DamagedCheckpoint", "InUse", "Interrupted", "Logger", "MultiLogger",
    "RunDirectory", "Trainer", "TrainingError", "WandbLogger", "csv_and_wandb", "learning_rate_factor",
    "load_checkpoint", "load_weights", "save_checkpoint",
]  # fmt: skip
