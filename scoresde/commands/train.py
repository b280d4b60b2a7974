"""`train.py`: configuration -> task -> data, model, loss, optimizer -> `Trainer.fit` -> run directory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_whole
from scoresde.commands.batches import Batches
from scoresde.commands.budget import with_budget
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build, build_as, check_kind, find_target, require
from scoresde.commands.cautions import cautions, rarely_without_all
from scoresde.commands.device import pick_device
from scoresde.commands.fill import fill
from scoresde.commands.identity import PLACES, kept
from scoresde.commands.interfaces import InverseProblem, Task
from scoresde.commands.optimizer import build_optimizer
from scoresde.commands.options import TRAIN, check_options
from scoresde.commands.origin import Origin, with_codec_of
from scoresde.commands.preview import Preview, keep_loss_curve
from scoresde.commands.resume import bring_up_to_date, run_path, take_up
from scoresde.commands.second_moments import fit_filters
from scoresde.commands.suit import suit
from scoresde.commands.warm_start import start_from
from scoresde.covariance import LearnedRange
from scoresde.data import Dataset
from scoresde.denoiser import Denoiser, MissingEntries, NetworkDenoiser
from scoresde.guidance import NoisyClassifier
from scoresde.losses import ClassifierLoss, DenoisingLoss, Loss
from scoresde.losses.loss import check_law
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.training import Logger, RunDirectory, Trainer
from scoresde.training.update import Batch

OF_TASKS = {  # keys that are arguments of some tasks, with the value that stands for none
    "of": (
        None,
        "another task: start from experiment=digits_npr, digits_dequantization or toy_reflow",
    ),
    "head": (None, "another task: start from experiment=digits_npr or experiment=digits_sn"),
    "variance_output": ("fixed", "task=denoiser"),
}


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train as the configuration says, or go on with the run that has the same configuration.

    Returns:
        The metrics logged last.
    """
    check_options(config, TRAIN)
    config = with_budget(config)
    node, extensions = config.get("task"), [*config["extensions"], ANY_INTERFACE]
    if isinstance(node, str):
        raise ConfigError(f"task: {node} names no class: write override /task: {node} in the defaults of your YAML.")
    for key, interface in (("optimizer", torch.optim.Optimizer), ("trainer", Trainer), ("logger", Logger)):
        check_kind(interface, config.get(key), key, extensions)
    kind = find_target(node["_target_"], "task", extensions) if node and "_target_" in node else None
    if isinstance(kind, type) and issubclass(kind, InverseProblem):
        raise ConfigError(f"task=... names {kind.__name__}, which is of sample.py: train with task=denoiser before.")
    task: Task = build_as(Task, node, "task", extensions)
    for key, (default, needs) in OF_TASKS.items():
        if config.get(key, default) != default and key not in (node or {}):
            raise ConfigError(f"{key}={config[key]} needs {needs}.")
    return task(config)


class ModelTask(Task):
    """Trains a model of the data, as a run of its own.

        model = task.model(net, sde, parameterization),      minimise E task.loss(loss)(model, x0)

    Attributes:
        makes: Interface of its models: `sample.py` without run=... takes the newest run of a `Denoiser`.
        labelled: Whether the network is given labels, whatever `conditional` says.
        outputs: Values that the network gives for every entry of the data.
    """

    makes: ClassVar[type[nn.Module]] = Denoiser
    labelled: ClassVar[bool] = False

    @abstractmethod
    def model(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> nn.Module:
        """What is trained; also makes the module that the weights of a run are loaded into."""

    def loss(self, loss: Loss) -> Loss:
        """What is minimised, from the `loss` of the configuration."""
        return loss

    @property
    def outputs(self) -> int:
        return 1

    def __call__(self, config: dict[str, Any]) -> dict[str, float]:
        extensions = [*config["extensions"], ANY_INTERFACE]
        for key in PLACES:  # sampling may start from another folder
            if isinstance((config.get("data") or {}).get(key), str):
                config["data"][key] = str(Path(config["data"][key]).expanduser().resolve())
        data = build_as(Dataset, config.get("data"), "data", extensions)
        labelled = bool(config["conditional"]) or self.labelled
        config = suit(with_batch_size(config, data), data)
        config = fill(config, data, labelled=labelled, outputs=self.outputs)
        device = pick_device(config["device"])
        torch.manual_seed(config["seed"])
        model, _ = build_model(self, config, extensions)
        loss = self.loss(build_as(Loss, config["loss"], "loss", extensions))
        fit_filters(model, data, dequantize=loss.dequantize)
        config = start_from(config, model)
        model.to(device)
        saved = kept(config)
        origin = Origin.of(saved, data)
        path = run_path(config, origin)
        data, origin = with_codec_of(path, data, origin)
        words = [*cautions(data, getattr(model, "sde", None), labelled=labelled)]
        for word in [*words, *rarely_without_all(config["loss"], data, labelled=labelled)]:
            print(f"warning: {word}")
        metrics = fit(
            config, model, parameter_groups(model), loss, data, path, saved, origin, labelled=labelled,
            dequantize=loss.dequantize,
        )  # fmt: skip
        print(f"done: python sample.py run={path}")
        return metrics


def with_batch_size(config: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """The configuration with a batch of all training examples, with a word, if they are fewer than a batch."""
    if config["batch_size"] <= len(data.train):
        return config
    print(f"batch_size={config['batch_size']} is more than the {len(data.train)} training examples: all are a batch.")
    return config | {"batch_size": len(data.train)}


@dataclass(frozen=True, kw_only=True)
class TrainDenoiser(ModelTask):
    """A denoiser of the data.

    Args:
        variance_output: "fixed", or "learned_range": the network predicts the reverse variance too, see `LearnedRange`.
        steps: Length of the chain that it is learned for; None: that of the SDE's table.
    """

    variance_output: str = "fixed"
    steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("task=denoiser", "variance_output", self.variance_output, ("fixed", "learned_range"))
        check_whole("task=denoiser", "steps >= 1 or null", steps=self.steps)

    @property
    def outputs(self) -> int:
        return 1 if self.variance_output == "fixed" else 2

    def model(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> Denoiser:
        check_silent_end(sde, parameterization)
        if self.variance_output == "fixed":
            return NetworkDenoiser(net, sde, parameterization)
        return LearnedRange(net, sde, parameterization, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(ModelTask):
    """A classifier of noisy data, for guidance; the law of times and noise is that of the loss."""

    makes = NoisyClassifier
    labelled = True

    def model(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> NoisyClassifier:
        return NoisyClassifier(net, sde, parameterization)

    def loss(self, loss: Loss) -> Loss:
        return ClassifierLoss(noise=require(loss, DenoisingLoss, "loss"))


def check_silent_end(sde: SDE, parameterization: Parameterization) -> None:
    """Raise if a network is to predict what says nothing about the data where the process ends without signal."""
    if not sde.ends_silent:
        return
    one = torch.ones((), dtype=torch.float64)
    if float(parameterization.target(0 * one, sde.sigma(one))[0]) == 0:
        name = type(parameterization).__name__
        raise ConfigError(
            f"parameterization={name.lower()} says nothing about the data where there is no signal, and alpha is 0 at "
            f"t = 1 of {type(sde).__name__}: use parameterization=velocity, v, data or edm, or another sde, as sde=vp."
        )


def build_model(
    task: ModelTask, config: Mapping[str, Any], extensions: Sequence[str] = ()
) -> tuple[nn.Module, nn.Module]:
    """The model of a filled-in configuration, with fresh weights, and the network inside it."""
    sde: SDE = build_as(SDE, config.get("sde"), "sde", extensions)
    node = config["parameterization"]
    rule: Parameterization = build_as(Parameterization, node, "parameterization", extensions)
    net = build_as(nn.Module, config["model"], "model", extensions)
    model = require(task.model(net, sde, rule), task.makes, "task")
    if isinstance(model, Denoiser) and (config.get("data") or {}).get("missing") is not None:
        model = MissingEntries(model)
    return model, net


def fit(
    config: Mapping[str, Any],
    module: nn.Module,
    parameters: Sequence[Any],
    loss: Loss,
    data: Dataset,
    path: Path,
    saved: dict[str, Any],
    origin: Origin,
    *,
    labelled: bool,
    dequantize: bool,
    batch: Batch | None = None,
) -> dict[str, float]:
    """Train a module with the optimizer, trainer and logger of a configuration.

    Args:
        config: optimizer, trainer and logger, as nodes; batch_size, seed, extensions.
        module: On its device; the loss is called with it.
        parameters: Those that are trained, or groups of them.
        loss: What is minimised.
        data: Where the examples come from.
        path, saved: The run directory, and the configuration that is kept there.
        origin: What the run is made from.
        labelled, dequantize: As for `Batches`.
        batch: What a batch is, if not one of the training examples.
    """
    extensions = [*config["extensions"], ANY_INTERFACE]
    device = next(module.parameters()).device
    if isinstance(sde := getattr(module, "sde", None), SDE):
        check_law(loss, sde, device, config.get("batch_size", 256))
    optimizer = build_optimizer(config["optimizer"], extensions, parameters)
    if batch is None:
        batch = Batches(data, config["batch_size"], config["seed"], labelled=labelled, dequantize=dequantize)
    with RunDirectory(path).locked():
        run = take_up(path, saved, origin)
        count = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
        print(
            f"{run.path}: {count:,} parameters, {len(data.train):,} training examples of shape {data.shape}, {device}"
        )
        built = build(
            config["trainer"],
            "trainer",
            extensions,
            denoiser=module,
            loss=loss,
            optimizer=optimizer,
            batch=batch,
            run=run,
            logger=build_as(Logger, config["logger"], "logger", extensions, run),
            preview=Preview(run, data, labelled) if isinstance(module, Denoiser) else None,
            seed=config["seed"],
            device=device,
            origin=origin,
        )
        trainer: Trainer = require(built, Trainer, "trainer")
        trainer.resume()
        bring_up_to_date(run, saved, origin, trainer)
        metrics = trainer.fit()
        keep_loss_curve(run)
        return metrics


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The network's parameters, and without weight decay those of a learned noise schedule."""
    schedule: list[Tensor] = list(sde.parameters()) if isinstance(sde := getattr(model, "sde", None), nn.Module) else []
    learned = {id(parameter) for parameter in schedule}
    groups = [{"params": [parameter for parameter in model.parameters() if id(parameter) not in learned]}]
    return [*groups, {"params": schedule, "weight_decay": 0.0}] if schedule else groups
