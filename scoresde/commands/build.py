"""Objects from plain configurations: `_target_` names a class or function, the other keys are its arguments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from scoresde.commands.allowed import named_functions
from scoresde.commands.arguments import complaint, mismatch, with_key
from scoresde.commands.interfaces import Diagnostics, Guidance, InverseProblem, Likelihood, SolverGrid, Task, Variance
from scoresde.losses import Loss
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.solvers import Solver

INTERFACES = (
    SDE, Parameterization, Solver, nn.Module, torch.optim.Optimizer, Loss, Guidance, Variance, SolverGrid, Task,
    Likelihood, Diagnostics, InverseProblem,
)  # fmt: skip
ANY_INTERFACE = "*"  # in `extensions`: any class that implements one of INTERFACES
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)  # of a call with wrong arguments


class ConfigError(ValueError):
    """A configuration cannot be turned into objects; the message says which entry and why."""


def build(node: Any, where: str = "config", extensions: Sequence[str] = (), /, **overrides: Any) -> Any:
    """Build a configuration node and everything inside it.

    A dict with `_target_` becomes a call of what that names, or with `_partial_: true` a function that waits for more
    arguments; other dicts, lists and values stay as they are. Targets are public names of scoresde, optimizers of
    torch, and names in `extensions`; nothing else is imported, so a configuration from elsewhere cannot run code.
    With "*" in `extensions`, for configurations that the user wrote, also any class of the right interface.

    Args:
        node: Plain dicts, lists and values.
        where: Name of the node in error messages.
        extensions: Modules of the user's own whose names may be targets.
        overrides: More arguments for the outermost call.
    Raises:
        ConfigError: If a target is refused or does not exist, or if a call fails; with the reason in one sentence.
    """
    if isinstance(node, Mapping):
        arguments = {
            key: build(value, f"{where}.{key}", extensions)
            for key, value in node.items()
            if key not in ("_target_", "_partial_")
        }
        if "_target_" not in node:
            return arguments
        target = find_target(node["_target_"], where, extensions)
        arguments |= overrides
        waits = node.get("_partial_", False)
        wrong = mismatch(waits, bool, f"{where}._partial_") or complaint(target, arguments, where, waits=waits)
        if wrong:
            raise ConfigError(wrong)
        if waits:
            return partial(target, **arguments)
        try:
            return target(**arguments)
        except ConfigError:
            raise
        except FAILURES as error:
            raise ConfigError(with_key(str(error), target, arguments, where)) from error
    if isinstance(node, list | tuple):
        return [build(value, f"{where}[{index}]", extensions) for index, value in enumerate(node)]
    return node


def find_target(name: Any, where: str, extensions: Sequence[str] = ()) -> Any:
    """The class or function that a dotted name stands for, if it is allowed.

    Raises:
        ConfigError: If the name is refused or leads nowhere.
    """
    allowed = ("scoresde", "torch.optim", *extensions)
    root = next((module for module in allowed if str(name).startswith(module + ".")), None)
    if root is None and ANY_INTERFACE in extensions and "." in str(name):
        root = str(name).split(".")[0]
    if root is None:
        raise ConfigError(
            f"{where}._target_ names {name!r}, which is not part of scoresde or torch.optim: "
            f"if the module is yours, allow it with extensions=[{str(name).split('.')[0]}]."
        )
    module_name, _, attribute = str(name).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError):
        raise ConfigError(f"{where}._target_ names {name!r}, which does not exist.") from None
    home = getattr(target, "__module__", None) or ""
    if not callable(target) or not (home == root or home.startswith(root + ".")):
        raise ConfigError(f"{where}._target_ names {name!r}, which is not a class or function of {root}.")
    own = ANY_INTERFACE in extensions
    if root == "scoresde" and not (own or isinstance(target, type) or target in named_functions()):
        raise ConfigError(
            f"{where}._target_ names {name!r}, a function that a configuration from elsewhere may not call: it may "
            f"name classes, schedules, weightings, laws of times, grids and data."
        )
    if root not in ("scoresde", *extensions) and not (isinstance(target, type) and issubclass(target, INTERFACES)):
        raise ConfigError(
            f"{where}._target_ names {name!r}, which is none of {', '.join(kind.__name__ for kind in INTERFACES)}: "
            f"if it is yours and meant, allow it with extensions=[{root}]."
        )
    return target


def build_as(interface: type, node: Any, where: str, extensions: Sequence[str] = (), *arguments: Any) -> Any:
    """`build` of a node that must name a class of an interface; one of another kind is refused before its arguments.

    Args:
        interface, node, where, extensions: As for `require` and `build`.
        arguments: What a node with `_partial_: true` waits for.
    Raises:
        ConfigError: As for `build`, and if the node names nothing, or something else.
    """
    check_kind(interface, node, where, extensions)
    built = build(node, where, extensions)
    if arguments and isinstance(built, partial):
        try:
            built = built(*arguments)
        except FAILURES as error:
            raise ConfigError(with_key(str(error), built.func, built.keywords, where)) from error
    return require(built, interface, where)


def check_kind(interface: type, node: Any, where: str, extensions: Sequence[str] = ()) -> None:
    """Raise if a node names a class that is not of an interface, or nothing; functions may return anything."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        require(node, interface, where)
    target = find_target(node["_target_"], where, extensions)
    if isinstance(target, type) and not issubclass(target, interface):
        require(target, interface, where)


def require(built: Any, interface: type, where: str) -> Any:
    """What was built, if it is of the kind that its place needs.

    Args:
        built: The object.
        interface: The class that it must be an instance of.
        where: The group, for the message: what the user wrote in front of "=".
    Raises:
        ConfigError: If it is something else.
    """
    if isinstance(built, interface):
        return built
    name = interface.__name__
    if isinstance(built, Mapping):
        got = f"options without a class ({', '.join(map(str, built)) or 'none'}): name one with _target_"
    else:
        got = (
            repr(built) if built is None or isinstance(built, str) else getattr(built, "__name__", type(built).__name__)
        )
    raise ConfigError(f"{where}=... must be {'an' if name[0] in 'AEIO' or name == 'SDE' else 'a'} {name}, got {got}.")
