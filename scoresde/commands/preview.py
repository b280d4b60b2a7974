"""Pictures that a run draws while it trains."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scoresde.commands.pictures import save_picture
from scoresde.data import Dataset
from scoresde.denoiser import Denoiser
from scoresde.solvers import DPMSolverPP2M
from scoresde.training import RunDirectory

PREVIEW_SAMPLES = 64


class Preview:
    """Draws a grid of samples during training, from the same latents every time."""

    def __init__(self, run: RunDirectory, data: Dataset, conditional: bool) -> None:
        self.run, self.data = run, data
        self.labels = data.num_classes if conditional else None

    def __call__(self, denoiser: nn.Module, step: int) -> Path:
        assert isinstance(denoiser, Denoiser)
        device = next(denoiser.parameters()).device
        latent = denoiser.sde.prior_sample(
            (PREVIEW_SAMPLES, *self.data.shape), generator=torch.Generator().manual_seed(0)
        )
        cond = {}
        if self.labels:
            cond["label"] = torch.arange(PREVIEW_SAMPLES, device=device) % self.labels
        x = DPMSolverPP2M()(denoiser.given(**cond), latent.to(device))
        save_picture(self.path(step), self.data.codec.to_uint8(x.cpu()))  # type: ignore[union-attr]  # images have levels
        return self.path(step)

    def path(self, step: int) -> Path:
        """Of the picture of a step."""
        return self.run.samples / f"step_{step:08d}.png"
