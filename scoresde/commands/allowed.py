"""What the configuration of a saved run may name: it may come from elsewhere, while a command line is the user's."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch.optim import Optimizer

# The public names that may stand in every place, by their packages. Each makes an object and no more, or is a function
# of numbers; data functions read files of their format. Nothing here reads a run, writes, trains, samples or imports.
PLACES = {
    "task": {
        "commands": "TrainClassifier TrainDenoiser TrainDequantization TrainEmbedding TrainReflow TrainVarianceHead"
    },
    "sde": {"sde": "CosineSDE DiscreteVPSDE EDMSDE LearnedVPSDE StraightSDE SubVPSDE VESDE VPSDE"},
    "parameterization": {
        "parameterization": "Data EDM Epsilon Score VPrediction Velocity",
        "interop": "ScoreSDEParameterization",
    },
    "model": {"models": "Classifier DDPMUNet ImageEncoder MLP NCSNpp", "likelihood": "VariationalDequantization"},
    "loss": {
        "losses": "ClassifierLoss ContrastiveLoss DenoisingLoss DequantizationLoss FlowLoss SecondMomentLoss "
        "SecondOrderLoss VDMLoss VLBLoss"
    },
    "data": {"data": "array cifar10 digits image_folder mnist pairs simulator table toy"},
    "trainer": {"training": "Trainer"},
}
PARTS = {  # of all of these, beside processes, parameterisations, networks and losses
    "data": "LinearGaussian TwoMoons",
    "likelihood": "CategoricalDecoder DiscretizedGaussian",
    "losses": "LossSecondMoment discrete_times edm_weighting flow_weighting importance_weighting likelihood_weighting "
    "logit_normal_times lognormal_times logsnr_times mode_times shifted_times simple_weighting snr_weighting "
    "uniform_times velocity_weighting",
    "models": "FourierFeatures",
    "sde": "BalancedGrid cosine_betas linear_betas quadratic_betas rescale_zero_terminal_snr scaled_linear_betas "
    "sigmoid_betas few_step_grid karras_grid logsnr_grid quadratic_grid subsequence_grid uniform_grid vp_grid",
}
OF_COMMANDS = {"solvers": "er_sde_scale", "training": "csv_and_wandb"}  # functions that options of commands name
UNBUILT = ("optimizer", "trainer")  # nodes of a saved run that only say how it was trained
LARGEST = 2**20  # of whole numbers, which decide how much memory an object takes
NO_DEFAULT = inspect.Parameter.empty
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)


class NotAllowed(ValueError):
    """A saved run may not have this in its configuration."""


def check_saved(config: Mapping[str, Any], extensions: Sequence[str]) -> None:
    """Raise unless a saved run may have this configuration. Every name in it is looked at, and nothing is built.

    Args:
        config: Plain values.
        extensions: The user's own modules, whose own classes and functions are trusted.
    Raises:
        NotAllowed: With the entry and the reason.
    """
    for place, node in config.items():
        if place in (*PLACES, "optimizer") and not (isinstance(node, Mapping) and "_target_" in node):
            raise NotAllowed(f"{place} names no class or function: it has no _target_")
        for where, inner in _mappings(node, place):
            _check_keys(inner, where, None if place in UNBUILT else LARGEST)
            if "_target_" in inner:
                try:
                    find_allowed(inner["_target_"], extensions, place, outermost=where == place)
                except NotAllowed as error:
                    raise NotAllowed(f"{where}._target_ names {inner['_target_']!r}, which {error}") from None


def find_allowed(name: Any, extensions: Sequence[str], place: str, *, outermost: bool) -> Any:
    """The class or function that a saved run may mean by a name in a place, or inside what stands there.

    Raises:
        NotAllowed: If it may not; goes on from "... names X, which".
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NotAllowed("is not the public name of a class or function")
    extension = next((module for module in extensions if name.startswith(f"{module}.")), None)
    if extension is None and not name.startswith(("scoresde.", "torch.optim.")):
        raise NotAllowed(
            f"is not part of scoresde or torch.optim: if the module is yours, allow it with "
            f"extensions=[{name.partition('.')[0]}]"
        )
    target = resolve(name)
    if extension is not None and not name.startswith("scoresde."):
        home = getattr(target, "__module__", None) or ""
        if callable(target) and (home == extension or home.startswith(f"{extension}.")):
            return target
        raise NotAllowed(f"is not a class or function of {extension} itself")
    if any(target is other for other in _allowed(place, outermost)):
        return target
    raise NotAllowed(
        f"a saved run may not have {'as its' if outermost else 'inside its'} {place}: it may name networks, processes, "
        f"losses, data and their parts, and nothing that reads runs, writes, trains or samples"
    )


def resolve(name: str) -> Any:
    """What a dotted name stands for; importing a module of scoresde does nothing but define.

    Raises:
        NotAllowed: If it stands for nothing.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise NotAllowed("does not exist") from None


def name_one(name: Any, other: Any) -> bool:
    """Whether two names are of one class or function of scoresde; nothing else is imported to find out."""
    try:
        return all(str(each).startswith("scoresde.") for each in (name, other)) and resolve(name) is resolve(other)
    except NotAllowed:
        return False


def default_of(name: Any, argument: str) -> Any:
    """The default of an argument of a class or function of scoresde; NO_DEFAULT if it has none or is not known."""
    try:
        parameter = inspect.signature(resolve(name)).parameters.get(argument)
    except (NotAllowed, TypeError, ValueError):
        return NO_DEFAULT
    return NO_DEFAULT if parameter is None else parameter.default


@cache
def named_functions() -> frozenset[Any]:
    """The functions of scoresde that a configuration names: those of a saved run, and a few of commands."""
    groups = [_found(OF_COMMANDS), *(_allowed(place, outermost) for place in PLACES for outermost in (True, False))]
    return frozenset(target for group in groups for target in group if not isinstance(target, type))


@cache
def _allowed(place: str, outermost: bool) -> tuple[Any, ...]:
    if place == "optimizer" and outermost:
        optim = vars(importlib.import_module("torch.optim")).values()
        return tuple(kind for kind in optim if isinstance(kind, type) and issubclass(kind, Optimizer))
    if outermost:
        return _found(PLACES.get(place, {}))
    groups = [PARTS, *(PLACES[key] for key in ("sde", "parameterization", "model", "loss"))]
    groups += [PLACES["data"]] if place == "data" else []
    return tuple(target for group in groups for target in _found(group))


def _found(group: Mapping[str, str]) -> tuple[Any, ...]:
    pairs = [(home, name) for home, names in group.items() for name in names.split()]
    return tuple(getattr(importlib.import_module(f"scoresde.{home}"), name) for home, name in pairs)


def _check_keys(node: Mapping[str, Any], where: str, largest: int | None) -> None:
    for key, value in node.items():
        if key.startswith("_") and key != "_target_" and not (key == "_partial_" and isinstance(value, bool)):
            raise NotAllowed(f"{where}.{key} is no argument that a saved run may give")
        for number in value if isinstance(value, list) else [value]:
            if largest is not None and key != "seed" and isinstance(number, int) and abs(number) > largest:
                raise NotAllowed(f"{where}.{key}={number} is beyond {largest}, the most that a saved run may ask for")


def _mappings(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings of a configuration, with where they stand."""
    if isinstance(node, Mapping):
        yield where, node
        for key, value in node.items():
            yield from _mappings(value, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _mappings(value, f"{where}[{index}]")
