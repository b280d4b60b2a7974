"""Pictures that a run draws while it trains."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde.commands.batches import own_conditions
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
        cond = {key: value.to(device) for key, value in self._conditions().items()}
        x = DPMSolverPP2M()(denoiser.given(**cond), latent.to(device))
        save_picture(self.path(step), self.data.codec.to_uint8(x.cpu()))  # type: ignore[attr-defined]  # images have levels
        return self.path(step)

    def _conditions(self) -> dict[str, Tensor]:
        """All classes in turn; with other conditions, those of test examples and their classes."""
        if self.data.train.condition is not None:
            return own_conditions(self.data, PREVIEW_SAMPLES, labelled=self.labels is not None)
        return {"label": torch.arange(PREVIEW_SAMPLES) % self.labels} if self.labels else {}

    def path(self, step: int) -> Path:
        """Of the picture of a step."""
        return self.run.samples / f"step_{step:08d}.png"
