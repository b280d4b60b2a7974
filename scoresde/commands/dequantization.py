"""Variational dequantisation of a trained run: a companion that learns where in its cell a level should be put."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from scoresde.commands.build import ANY_INTERFACE, ConfigError, build, fill
from scoresde.commands.companion import companion_config, data_of, open_companion, options_of, train_companion
from scoresde.commands.device import pick_device
from scoresde.commands.load import TrainedModel, load_run
from scoresde.data import Quantized
from scoresde.denoiser import Denoiser
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.losses.dequantization_loss import DequantizationLoss, DequantizedDenoiser
from scoresde.training import load_checkpoint, load_weights

DEQUANTIZATION = "dequantization"  # task of its run, and its folder in the denoiser's


def train_dequantization(config: dict[str, Any]) -> dict[str, float]:
    """Train the dequantisation of a run, or go on with the one that has the same configuration.

    It lives in <run>/dequantization as a run of its own.

    Args:
        config: A configuration of `train.py` with task "dequantization".
    """
    own = companion_config(config, DEQUANTIZATION, "digits_dequantization")
    extensions = [*own["extensions"], ANY_INTERFACE]
    loss = build(own["loss"], "loss", extensions)
    if not isinstance(loss, DequantizationLoss):
        raise ConfigError(f"task=dequantization needs loss=dequantization, got a {type(loss).__name__}.")
    device = pick_device(own["device"])
    trained = load_run(own["run"], device=device, extensions=own["extensions"])
    data = data_of(trained, own["extensions"])
    if not isinstance(trained.codec, Quantized):
        raise ConfigError(
            f"a dequantization needs data with levels, but those of {trained.run.path} are continuous: their "
            f"likelihood needs none."
        )
    whole = {"model": config["model"] or {}, "parameterization": {}, "loss": {}, "conditional": False}
    options = {"net": fill({**whole, "task": DEQUANTIZATION}, data)["model"], "step": trained.step}
    torch.manual_seed(own["seed"])
    module = _around(trained, options, extensions).to(device)
    parameters = list(module.dequantization.parameters())
    metrics = train_companion(
        trained, module, parameters, loss, own,
        task=DEQUANTIZATION, key=DEQUANTIZATION, path=trained.run.path / DEQUANTIZATION, options=options,
    )  # fmt: skip
    print(f"done: python sample.py run={trained.run.path} solver=ode likelihood.dequantization=variational")
    return metrics


def load_dequantization(trained: TrainedModel, *, extensions: Sequence[str] = ()) -> VariationalDequantization:
    """The dequantisation trained for a run, with averaged weights.

    Raises:
        ConfigError: If there is none, or if the denoiser has been trained further since.
    """
    path, command = trained.run.path / DEQUANTIZATION, "experiment=digits_dequantization"
    run = open_companion(trained, path, DEQUANTIZATION, noun="variational dequantization", command=command)
    module = _around(trained, options_of(run, DEQUANTIZATION), extensions)
    load_weights(module, load_checkpoint(run.checkpoint), ema=True)
    device = next(trained.model.parameters()).device
    return module.dequantization.to(device).eval().requires_grad_(False)


def _around(trained: TrainedModel, options: dict[str, Any], extensions: Sequence[str]) -> DequantizedDenoiser:
    dequantization = build(options["net"], "model", extensions)
    if not isinstance(dequantization, VariationalDequantization):
        raise ConfigError(f"task=dequantization needs model=dequantization, got {type(dequantization).__name__}.")
    if not isinstance(trained.model, Denoiser):
        raise ConfigError(f"{trained.run.path} is the run of a classifier: name the run of a denoiser.")
    return DequantizedDenoiser(trained.model, dequantization)
