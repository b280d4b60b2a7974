"""A small denoiser with dropout on images, and a trainer around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.denoiser import NetworkDenoiser
from scoresde.losses import DenoisingLoss
from scoresde.parameterization import EDM
from scoresde.sde import VPSDE
from scoresde.training import Trainer


class SmallNet(nn.Module):
    """Convolutions, a normalisation with buffers, dropout, and a bias from the noise label."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.norm, self.label, self.drop = nn.BatchNorm2d(width), nn.Linear(1, width), nn.Dropout(0.3)

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        h = self.norm(self.head(x)) + self.label(c_noise[:, None])[..., None, None]
        return self.tail(self.drop(torch.nn.functional.silu(h)))


def images(index: int) -> tuple[Tensor, dict[str, Any]]:
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(index)), {}


def small_denoiser(width: int = 4) -> NetworkDenoiser:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return NetworkDenoiser(SmallNet(width), VPSDE(), EDM())


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    def make(*, width: int = 4, lr: float = 1e-2, **options: Any) -> Trainer:
        denoiser = options.pop("denoiser", None) or small_denoiser(width)
        settings: dict[str, Any] = {
            "loss": DenoisingLoss(),
            "optimizer": torch.optim.AdamW(denoiser.parameters(), lr=lr),
            "batch": images,
            "steps": 8,
            "log_every": 3,
            "progress": False,
        }
        return Trainer(denoiser=denoiser, **{**settings, **options})

    return make
