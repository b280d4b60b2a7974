"""Modules trained for the frozen denoiser of a run, and kept in its folder as runs of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from scoresde.checks import check_text
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build_as
from scoresde.commands.device import pick_device
from scoresde.commands.fill import fill
from scoresde.commands.interfaces import Task
from scoresde.commands.load import TrainedModel, load_run, newest_run
from scoresde.commands.origin import Origin, check_base, check_data, origin_of
from scoresde.commands.saved_config import building, checked_config
from scoresde.commands.train import fit
from scoresde.covariance import VarianceHead
from scoresde.data import Dataset, Quantized
from scoresde.denoiser import Denoiser
from scoresde.files import inside
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.losses import DequantizationLoss, DequantizedDenoiser, Loss, SecondMomentLoss
from scoresde.training import RunDirectory, load_weights

OWN = ("loss", "optimizer", "trainer", "batch_size", "seed")  # what such a run's configuration says itself
HEADS = ("npr", "sn")


class AuxiliaryTask(Task):
    """Trains a module around the denoiser of a finished run, which is frozen and decides process and data.

    Attributes:
        of: The denoiser's run; None: the newest under runs/.
        noun, experiment: What is trained, and a recipe that trains it, for messages.
        key: Of the options in the run's configuration.
        loss: The kind of loss that trains it.
    """

    of: str | None
    key: ClassVar[str]
    loss: ClassVar[type[Loss]]

    @property
    @abstractmethod
    def noun(self) -> str: ...

    @property
    @abstractmethod
    def experiment(self) -> str: ...

    @property
    @abstractmethod
    def folder(self) -> str:
        """Of its run, in the denoiser's."""

    @property
    @abstractmethod
    def usage(self) -> str:
        """Options of `sample.py` that use it."""

    @abstractmethod
    def options(self, trained: TrainedModel, net: dict[str, Any] | None, data: Dataset) -> dict[str, Any]:
        """What it takes to build the module again; `net` is the `model` of the configuration."""

    @abstractmethod
    def module(self, trained: TrainedModel, options: Mapping[str, Any], extensions: Sequence[str]) -> nn.Module:
        """What is trained: around the denoiser, with fresh weights of its own."""

    def __call__(self, config: dict[str, Any]) -> dict[str, float]:
        given = [key for key in ("run", "conditional", "sde", "parameterization", "data", "init") if config.get(key)]
        if given:
            raise ConfigError(
                f"the {self.noun} takes {' and '.join(given)} from its run: leave out {given[0]}=..., name the run "
                f"with of=..., and start from experiment={self.experiment}."
            )
        extensions = [*config["extensions"], ANY_INTERFACE]
        loss = build_as(self.loss, config.get("loss"), "loss", extensions)
        device = pick_device(config["device"])
        of = newest_run(Denoiser, extensions=config["extensions"]).path if self.of is None else self.of
        trained = load_run(of, device=device, extensions=config["extensions"])
        if trained.takes_gaps:
            raise ConfigError(f"the {self.noun} is of whole examples, and {trained.run.path} has data.missing=mask.")
        data = trained.data()
        options = {**self.options(trained, config.get("model"), data), "step": trained.step}
        torch.manual_seed(config["seed"])
        module = self.module(trained, options, extensions).to(device)
        task = {key: value for key, value in config["task"].items() if key != "of"}
        whole = {**trained.config, **{key: config[key] for key in OWN}, "task": task, self.key: options}
        origin = Origin.of(whole, data, base=trained.weights)
        frozen = {id(parameter) for parameter in trained.model.parameters()}
        parameters = [parameter for parameter in module.parameters() if id(parameter) not in frozen]
        metrics = fit(
            config, module, parameters, loss, data, inside(trained.run, trained.run.path / self.folder), whole,
            origin, labelled=trained.classes is not None, dequantize=trained.dequantize,
        )  # fmt: skip
        print(f"done: python sample.py run={trained.run.path} {self.usage}")
        return metrics

    def load(self, trained: TrainedModel) -> nn.Module:
        """The module trained for a run, with averaged weights.

        Raises:
            ConfigError: If there is none, or if the denoiser has been trained further since.
        """
        path = trained.run.path / self.folder
        if not (path / "config.yaml").is_file():
            raise ConfigError(
                f"{trained.run.path} has no {self.noun}: train one for it first, with python train.py "
                f"experiment={self.experiment} of={trained.run.path}, which makes {path}."
            )
        run = RunDirectory.open(path)
        config, (checkpoint, state) = checked_config(run, trained.extensions), run.newest_state()
        options = config.get(self.key)
        if not isinstance(options, dict) or not isinstance(options.get("net"), dict):
            raise ConfigError(f"{run.config} does not say what {self.noun} it is: it lacks {self.key}.net.")
        if options.get("step") != trained.step:
            raise ConfigError(
                f"the {self.noun} in {path} was trained for step {options.get('step')} of {trained.run.path}, which is "
                f"at step {trained.step}: remove {path} and train it again."
            )
        if state.get("origin") is not None:  # an earlier version did not keep it
            origin = origin_of(run, checkpoint, state, config)
            check_base(origin, trained.weights, checkpoint)
            check_data(trained.fingerprint, origin.data, trained.run.path)
        with building(run, state):
            module = self.module(trained, options, trained.extensions)
        load_weights(module, state, ema=True)
        return module.to(trained.device).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class TrainVarianceHead(AuxiliaryTask):
    """The variance of a run's denoiser, for solvers of the optimal variance: a `VarianceHead`.

    Args:
        of: The denoiser's run; None: the newest under runs/.
        head: "npr" or "sn".
    """

    of: str | None = None
    head: str | None = None

    key = "head"
    loss = SecondMomentLoss

    def __post_init__(self) -> None:
        check_text("task=variance_head", "of", self.of)
        if self.head not in HEADS:
            raise ConfigError(f"a variance head needs head={' or head='.join(HEADS)}, got head={self.head}.")

    @property
    def noun(self) -> str:
        return f"{self.head} head"

    @property
    def experiment(self) -> str:
        return f"digits_{self.head}"

    @property
    def folder(self) -> str:
        return f"variance_{self.head}"

    @property
    def usage(self) -> str:
        return f"solver=ddpm solver.variance=optimal variance={self.head}"

    def options(self, trained: TrainedModel, net: dict[str, Any] | None, data: Dataset) -> dict[str, Any]:
        sigma_data = float(trained.config["parameterization"].get("sigma_data") or 1.0)
        net = paired_net(net, data) if net else narrower_net(trained.config["model"])
        return {"kind": self.head, "net": net, "sigma_data": sigma_data}

    def module(self, trained: TrainedModel, options: Mapping[str, Any], extensions: Sequence[str]) -> VarianceHead:
        return VarianceHead(
            trained.denoiser, build_as(nn.Module, options["net"], "model", extensions), kind=options["kind"],
            sigma_data=options["sigma_data"], data_range=trained.data_range,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainDequantization(AuxiliaryTask):
    """Where in its cell a level of a run's data should be put: a `VariationalDequantization`, for its likelihood.

    Args:
        of: The denoiser's run; None: the newest under runs/.
    """

    of: str | None = None

    key = "dequantization"
    loss = DequantizationLoss
    noun = "variational dequantization"
    experiment = "digits_dequantization"
    folder = "dequantization"
    usage = "solver=ode likelihood.dequantization=variational"

    def __post_init__(self) -> None:
        check_text("task=dequantization", "of", self.of)

    def options(self, trained: TrainedModel, net: dict[str, Any] | None, data: Dataset) -> dict[str, Any]:
        if not isinstance(trained.codec, Quantized):
            raise ConfigError(
                f"a dequantization needs data with levels, but those of {trained.run.path} are continuous: their "
                f"likelihood needs none."
            )
        return {"net": suited_net(net or {}, data)}

    def module(
        self, trained: TrainedModel, options: Mapping[str, Any], extensions: Sequence[str]
    ) -> DequantizedDenoiser:
        net = build_as(VariationalDequantization, options["net"], "model", extensions)
        return DequantizedDenoiser(trained.denoiser, net)


def load_dequantization(trained: TrainedModel) -> VariationalDequantization:
    """The dequantisation trained for a run; see `AuxiliaryTask.load`."""
    module = TrainDequantization().load(trained)
    assert isinstance(module, DequantizedDenoiser)
    return module.dequantization


def narrower_net(model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a head's network: the denoiser's own, of half the width, for x and ε̂ together.

    Raises:
        ConfigError: If the architecture is none of scoresde's.
    """
    net = dict(model)
    if "channels" in net:
        net |= {"channels": 2 * net["channels"], "embedding": "fourier", "fourier_scale": 1.0, "scale_by_sigma": False}
    elif "shape" in net:
        first, *rest = net["shape"]
        net["shape"] = [2 * first, *rest]
    else:
        raise ConfigError(
            f"a variance head for {model['_target_']} needs its own network, for twice the channels: give model=..."
        )
    return _unconditional(net) | {"width": max(16, net["width"] // 2)}


def paired_net(net: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """The configuration of a head's network as the user gave it, with what the data decide in place of nulls."""
    first, *rest = data.shape
    for key, value in (("channels", 2 * first), ("shape", [2 * first, *rest])):
        if key in net and net[key] is None:
            net = {**net, key: value}
    return _unconditional(suited_net(net, data))


def _unconditional(net: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration without conditions, which the denoiser beside it is given."""
    of_conditions = ("num_classes", "image", "sequence")
    return {key: None if key in of_conditions or key.startswith("condition_") else net[key] for key in net}


def suited_net(net: dict[str, Any], data: Dataset) -> dict[str, Any]:
    config = fill({"model": net, "parameterization": {}, "loss": {}}, data, labelled=False)
    model: dict[str, Any] = config["model"]
    return model
