"""`train.py`: configuration -> data, model, loss, optimizer -> `Trainer.fit` -> run directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from scoresde.commands.batches import Batches
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build, build_model, fill
from scoresde.commands.dequantization import DEQUANTIZATION, train_dequantization
from scoresde.commands.device import pick_device
from scoresde.commands.load import CODEC_FILE
from scoresde.commands.pictures import save_picture
from scoresde.commands.variance import VARIANCE_HEAD, head_config, train_variance_head
from scoresde.data import Dataset, codec_state
from scoresde.denoiser import Denoiser
from scoresde.losses import ClassifierLoss
from scoresde.solvers import DPMSolverPP2M
from scoresde.training import RunDirectory, Trainer, save_checkpoint

TASKS = ("denoiser", "classifier", VARIANCE_HEAD, DEQUANTIZATION)
PREVIEW_SAMPLES = 64
NOT_IDENTITY = ("run", "device", "logger", "extensions", "of", "head")  # keys that do not make it another run


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train as the configuration says, or go on with the run that has the same configuration.

    Returns:
        The metrics logged last.
    """
    if config["task"] not in TASKS:
        raise ConfigError(f"task needs to be one of {', '.join(TASKS)}, got {config['task']!r}.")
    if config["task"] == VARIANCE_HEAD:
        return train_variance_head(head_config(config))
    if config["task"] == DEQUANTIZATION:
        return train_dequantization(config)
    for key in ("of", "head"):
        if config.get(key) is not None:
            raise ConfigError(
                f"{key}={config[key]} is an option of a run's companions: leave it out, or use "
                f"experiment=digits_npr or experiment=digits_dequantization."
            )
    extensions = [*config["extensions"], ANY_INTERFACE]
    for key in ("path", "test_path"):  # sampling may start from another folder
        if config["data"].get(key) is not None:
            config["data"][key] = str(Path(config["data"][key]).expanduser().resolve())
    data = build(config["data"], "data", extensions)
    if not isinstance(data, Dataset):
        raise ConfigError(f"data must be a scoresde.data.Dataset, got {type(data).__name__}.")
    config = fill(config, data)
    if config["batch_size"] < 1 or config["batch_size"] > len(data.train):
        raise ConfigError(
            f"batch_size={config['batch_size']} needs to be between 1 and the {len(data.train)} training examples "
            f"of data={data.name}."
        )
    torch.manual_seed(config["seed"])
    device = pick_device(config["device"])
    model = build_model(config, extensions).to(device)
    loss = build(config["loss"], "loss", extensions)
    optimizer = build(config["optimizer"], "optimizer", extensions)(_parameter_groups(model))

    run = RunDirectory.create(run_path(config), yaml.safe_dump(_identity(config), sort_keys=False))
    codec = {"codec": codec_state(data.codec), "shape": list(data.shape)}
    if not (run.path / CODEC_FILE).is_file():
        save_checkpoint(run.path / CODEC_FILE, codec)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{run.path}: {parameters:,} parameters, {len(data.train):,} training examples of shape {data.shape}, {device}"
    )
    trainer = build(
        config["trainer"],
        "trainer",
        extensions,
        denoiser=model,
        loss=ClassifierLoss(noise=loss) if config["task"] == "classifier" else loss,
        optimizer=optimizer,
        batch=Batches(
            data,
            config["batch_size"],
            config["seed"],
            labelled=_uses_labels(config),
            dequantize=getattr(loss, "dequantize", True),
        ),
        run=run,
        logger=build(config["logger"], "logger", extensions)(run),
        preview=Preview(run, data, config) if isinstance(model, Denoiser) and data.is_image else None,
        seed=config["seed"],
        device=device,
    )
    assert isinstance(trainer, Trainer)
    metrics = trainer.fit()
    print(f"done: python sample.py run={run.path}")
    return metrics


class Preview:
    """Draws a grid of samples during training, from the same latents every time."""

    def __init__(self, run: RunDirectory, data: Dataset, config: dict[str, Any]) -> None:
        self.run, self.data = run, data
        self.labels = data.num_classes if config["conditional"] else None

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
        path = self.run.samples / f"step_{step:08d}.png"
        save_picture(path, self.data.codec.to_uint8(x.cpu()))  # type: ignore[union-attr]  # images are quantised
        return path


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The network's parameters, and without weight decay those of a learned noise schedule."""
    schedule = list(sde.parameters()) if isinstance(sde := getattr(model, "sde", None), nn.Module) else []
    learned = {id(parameter) for parameter in schedule}
    groups = [{"params": [parameter for parameter in model.parameters() if id(parameter) not in learned]}]
    return [*groups, {"params": schedule, "weight_decay": 0.0}] if schedule else groups


def run_path(config: dict[str, Any]) -> Path:
    """The run directory: `run`, or a name made from the configuration, so that the same command finds it again."""
    if config["run"] is not None:
        return Path(config["run"])
    digest = hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()[:8]
    names = [str(config[key]["_target_"]).rpartition(".")[2].lower() for key in ("data", "sde", "model")]
    return Path("runs") / "-".join([*names, digest])


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_IDENTITY}


def _uses_labels(config: dict[str, Any]) -> bool:
    return bool(config["conditional"]) or config["task"] == "classifier"
