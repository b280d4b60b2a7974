"""Pictures that a run draws while it trains: samples with data beside them, and the loss so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.commands.batches import own_conditions
from scoresde.commands.looks import model_values, save_image, save_look, shown
from scoresde.data import Dataset
from scoresde.denoiser import Denoiser
from scoresde.pictures import loss_curve
from scoresde.solvers import DPMSolverPP2M
from scoresde.streams import say
from scoresde.training import RunDirectory
from scoresde.training.rows import read_table

PREVIEW_SAMPLES = {"table": 512, "series": 64, "image": 64, "volume": 6}
PREVIEW_STEPS = {"image": 100}  # others: 40
LOSS_FILE = "loss.png"


class Preview:
    """Draws samples during training, from the same latents every time, with training examples beside them.

    Args:
        run: Where to.
        data: That it is trained on.
        conditional: Whether the network is given labels.
    """

    def __init__(self, run: RunDirectory, data: Dataset, conditional: bool) -> None:
        self.run, self.data = run, data
        self.labels = data.num_classes if conditional else None
        self.count = PREVIEW_SAMPLES[data.kind]

    def __call__(self, denoiser: nn.Module, step: int) -> Path | None:
        assert isinstance(denoiser, Denoiser)
        keep_loss_curve(self.run)
        device = next(denoiser.parameters()).device
        latent = denoiser.sde.prior_sample((self.count, *self.data.shape), generator=torch.Generator().manual_seed(0))
        cond = {key: value.to(device) for key, value in self._conditions().items()}
        solver = DPMSolverPP2M(steps=PREVIEW_STEPS.get(self.data.kind, 40))
        try:
            x = solver(denoiser.given(**cond), latent.to(device))
        except FloatingPointError as error:
            say(f"no picture of step {step}: {error}")
            return None
        samples = model_values(self.data.codec, x.cpu())
        look = shown(
            self.data.codec, samples, names=self.data.names, split=self.data.train, labels=cond.get("label"),
            condition=cond.get("condition"), kind=self.data.kind,
        )  # fmt: skip
        save_look(self.path(step), look)
        return self.path(step)

    def _conditions(self) -> dict[str, Tensor]:
        """All classes in turn; with other conditions, those of test examples and their classes."""
        if self.data.train.given:
            return own_conditions(self.data, self.count, labelled=self.labels is not None)
        return {"label": torch.arange(self.count) % self.labels} if self.labels else {}

    def path(self, step: int) -> Path:
        """Of the picture of a step."""
        return self.run.samples / f"step_{step:08d}.png"


def save_loss_curve(run: RunDirectory) -> None:
    """loss.png of a run, from its metrics.csv, if there are any."""
    try:
        table = read_table(run.metrics, "step")
    except FileNotFoundError:
        return
    if table is None or not {"step", "loss"} <= set(table.header):
        return
    columns = [table.header.index(name) for name in ("step", "loss")]
    rows = [[_float(row[column]) for column in columns] for row in table.rows]
    if rows:
        steps, losses = np.asarray(rows, float).T
        save_image(run.path / LOSS_FILE, loss_curve(steps, losses, f"{run.path.name}: training loss"))


def keep_loss_curve(run: RunDirectory) -> None:
    """The same where nothing depends on it: what cannot be written is said."""
    try:
        save_loss_curve(run)
    except OSError as error:
        say(f"cannot write {run.path / LOSS_FILE} ({error.strerror or error}).")


def _float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
