"""The page about people's own data: its Python runs, and its commands name what there is."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import inside
from torch import Tensor, nn

import scoresde
from scoresde.sde import subsequence_grid

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SMALL = '["trainer.steps=2", "model=mlp", "model.width=8", "model.depth=1", "trainer.progress=false"]'
BARS = torch.tensor([1 - beta for beta in scoresde.linear_betas(1000)], dtype=torch.float64).cumprod(0)


class ExactUNet(nn.Module):
    """Stands in for diffusers' UNet2DModel, with its call: the exact ε̂ of N(0, ½²) pixels at label k."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[float] = []

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        assert timestep.shape == (len(sample),)
        self.labels.append(float(timestep[0]))
        bar = BARS[timestep.round().long().clamp(0, 999)].reshape(-1, 1, 1, 1).to(sample.dtype)
        return SimpleNamespace(sample=sample * (1 - bar).sqrt() / (bar / 4 + 1 - bar))


def test_every_block_runs(tmp_path: Path) -> None:
    """In order and with one set of names; trainings are two steps long."""
    variables: dict[str, Any] = {"torch": torch, "unet": ExactUNet()}
    with inside(tmp_path):
        for block in BLOCKS:
            short = block.replace('budget="2min"', "budget=None").replace("1000)  #", "10)  #")
            short = re.sub(r'overrides=\[("[^"]*")\]', rf"overrides=[\1, *{SMALL}]", short)
            short = short.replace("condition=c, budget=None", f"condition=c, budget=None, overrides={SMALL}")
            exec(compile(short, "own_data.md", "exec"), variables)
    assert variables["samples"].shape == (4, 3, 8, 8) and variables["log_p"].shape == (100,)
    model, lines = variables["model"], next(block for block in BLOCKS if "lognormal" in block).strip().splitlines()
    assert model.path == Path("runs/mine") and len([line for line in lines if not line.startswith("import")]) <= 5
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.5)
    assert variables["trainable"](x, t).shape == x.shape

    # against DDIM as diffusers writes it: labels 980, 960, ..., 0, then alphas_cumprod of -1, which is 1
    unet = ExactUNet()
    denoiser = variables["FromDiffusers"](unet, scoresde.linear_betas(1000))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    solver = scoresde.DDIM(steps=50, grid=partial(subsequence_grid, length=1000), t_end=0.0, denoise=False)
    found = solver(denoiser, x)
    assert unet.labels == pytest.approx(list(range(980, -1, -20)), abs=1e-6)
    for k in range(980, -1, -20):
        bar, before = BARS[k], BARS[k - 20] if k else torch.ones(())
        eps = unet(x, torch.full((2,), float(k))).sample
        x = before.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - before).sqrt() * eps
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


def test_the_labels_of_others_are_those_of_the_table() -> None:
    table, t = scoresde.DiscreteVPSDE(scoresde.linear_betas(1000)), torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = table.alpha(t), table.sigma(t)
    k = (1000 * table.time(2 * (alpha / sigma).log()) - 1).round().long()
    assert k.tolist() == [0, 499, 999]
    torch.testing.assert_close(alpha.square(), BARS[k], rtol=1e-9, atol=0)
    torch.testing.assert_close(scoresde.EDM().c_noise(alpha, sigma), 0.25 * (sigma / alpha).log(), rtol=1e-12, atol=0)
    velocity = scoresde.Velocity(label_scale=1000.0, scale_input=False)
    torch.testing.assert_close(velocity.c_noise(alpha, sigma), 1000 * sigma / (alpha + sigma), rtol=1e-12, atol=0)


def test_commands_name_options_that_exist() -> None:
    for group in ("experiment", "data", "model"):
        for option in re.findall(rf"[ `]{group}=(\w+)", PAGE):
            assert (ROOT / "conf" / group / f"{option}.yaml").is_file(), f"{group}={option}"
    files = (ROOT / "conf").rglob("*.yaml")
    keys = {key for file in files for key in re.findall(r"^ *(\w+):", file.read_text(encoding="utf-8"), re.M)}
    for word in re.findall(r"[ `]data\.(\w+)=", PAGE):
        assert word in keys, f"data.{word}"
