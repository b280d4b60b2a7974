"""`guidance=cfg` and its kind: samples steered away from the same model with no condition, or with another one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_pair, is_whole
from scoresde.commands.build import ConfigError
from scoresde.commands.conditions import class_number
from scoresde.commands.interfaces import Guidance, SolverOf, Steering
from scoresde.commands.load import TrainedModel
from scoresde.denoiser import Denoiser
from scoresde.guidance import APG, CFGPP, Guided
from scoresde.solvers import DDIM, Solver

OfNoise = float | Callable[[Tensor], Tensor]  # a number, or a function of σ/α


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance):
    """`Guided` away from the same model without its label, and without what else it was trained to do without.

    Args:
        scale: 1: the conditional model, 0: the unconditional one; or a function of σ/α, such as `PowerScale`.
        interval: (low, high) in σ/α: guide only there; None: everywhere.
        rescale: φ, how much of the contrast that guidance adds is taken back: 0 to 1.
    """

    scale: OfNoise = 2.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_strength(self.scale, self.interval)
        check_numbers("guidance", "0 <= rescale <= 1", rescale=self.rescale)

    def __call__(self, trained: TrainedModel) -> Steering:
        free = unconditional(trained, "cfg")
        return lambda label: Guided(trained.given(label), free, self.scale, self.interval, self.rescale)


@dataclass(frozen=True, kw_only=True)
class CFGPlusPlus(Guidance):
    """`CFGPP`, for solver=ddim: guided towards x̂0, and noised again without the condition.

    Args:
        scale: λ of every step; more steps guide more.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=self.scale)

    def __call__(self, trained: TrainedModel) -> Steering:
        free = unconditional(trained, "cfgpp")
        return lambda label: CFGPP(trained.given(label), free, self.scale)

    def solvers(self, solver: Solver, trained: TrainedModel) -> SolverOf:
        if not isinstance(solver, DDIM) or not solver.deterministic:
            raise ConfigError(
                f"guidance=cfgpp is a rule of the steps of solver=ddim without noise, got a {type(solver).__name__}: "
                f"add solver=ddim, or take guidance=cfg."
            )
        return super().solvers(solver, trained)


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedGuidance(Guidance):
    """`APG`: the part of the guidance along x̂0, which saturates pictures, counts less.

    Args:
        scale, interval: As for `ClassifierFreeGuidance`.
        eta: How much of the part along x̂0 is kept.
        norm: The largest length of what guides, in the model's scaling; None: no limit.
    """

    scale: OfNoise = 3.0
    interval: tuple[float, float] | None = None
    eta: float = 0.0
    norm: float | None = None

    def __post_init__(self) -> None:
        check_strength(self.scale, self.interval)
        check_numbers("guidance", "-1e9 <= eta <= 1e9", "0 < norm < inf or null", eta=self.eta, norm=self.norm)

    def __call__(self, trained: TrainedModel) -> Steering:
        free, norm = unconditional(trained, "apg"), math.inf if self.norm is None else self.norm
        return lambda label: APG(trained.given(label), free, self.scale, self.interval, eta=self.eta, norm=norm)


@dataclass(frozen=True, kw_only=True)
class NegativeGuidance(Guidance):
    """`Guided` away from the same model with another label.

    Args:
        negative: The class to stay away from, by name or number.
        scale, interval, rescale: As for `ClassifierFreeGuidance`.
    """

    negative: int | str
    scale: OfNoise = 2.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_strength(self.scale, self.interval)
        check_numbers("guidance", "0 <= rescale <= 1", rescale=self.rescale)
        if not (is_whole(self.negative) and int(self.negative) >= 0) and not (
            isinstance(self.negative, str) and self.negative
        ):
            raise ValueError(f"guidance needs negative to be the name or the number of a class, got {self.negative!r}.")

    def __call__(self, trained: TrainedModel) -> Steering:
        if trained.classes is None:
            raise ConfigError(
                f"guidance=negative needs a model of classes, but {trained.run.path} was trained without labels: train "
                f"one with conditional=true."
            )
        other = torch.tensor(class_number(self.negative, trained), device=trained.device)
        away = trained.denoiser.given(label=other)
        return lambda label: Guided(trained.given(label), away, self.scale, self.interval, self.rescale)


def check_strength(scale: Any, interval: Any) -> None:
    """Raise ValueError unless a scale is a number or a function, and an interval two numbers or None."""
    if not callable(scale):
        check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=scale)
    if interval is not None:
        check_pair("guidance", "interval", interval, "0 <= low < high")


def unconditional(trained: TrainedModel, option: str) -> Denoiser:
    """The run's denoiser without its label, and without each condition that it was trained to do without.

    Args:
        trained: The run.
        option: Of guidance, for messages.
    Raises:
        ConfigError: If it was never trained without.
    """
    loss = trained.config.get("loss") or {}
    nothing: dict[str, Any] = {}
    if trained.classes is not None:
        if loss.get("label_dropout") == 0 and not loss.get("joint_dropout"):
            raise ConfigError(
                f"guidance={option} needs a model that was trained without its labels now and then, and "
                f"{trained.run.path} never was: train one with loss.label_dropout=0.1."
            )
        nothing["label"] = None
    nothing |= {key: None for key in trained.optional if key != "label"}
    if not nothing:
        raise ConfigError(
            f"guidance={option} needs a model of classes, or of conditions that it can do without, but "
            f"{trained.run.path} was trained without labels: train one with conditional=true, or with "
            f"loss.condition_dropout=0.1, image_dropout or sequence_dropout."
        )
    return trained.denoiser.given(**nothing)
