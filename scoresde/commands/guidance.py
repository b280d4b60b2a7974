"""`guidance` of `sample.py`: how samples are steered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.checks import check_numbers, check_pair, check_text
from scoresde.commands.build import ConfigError
from scoresde.commands.interfaces import Guidance, Steering
from scoresde.commands.load import NOUNS, TrainedModel, load_run
from scoresde.denoiser import Denoiser
from scoresde.guidance import Guided


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Guidance):
    """Samples of the model as it is."""

    def __call__(self, trained: TrainedModel) -> Steering:
        return trained.given


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance):
    """`Guided` away from the same model without a label, and without a condition if it was trained for that.

    Args:
        scale: 1: the conditional model, 0: the unconditional one.
        interval: (low, high) in σ/α: guide only there; None: everywhere.
    """

    scale: float = 2.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_steering(self)

    def __call__(self, trained: TrainedModel) -> Steering:
        nothing: dict[str, Any] = {"label": None} if trained.classes is not None else {}
        if trained.condition_optional:
            nothing["condition"] = None
        if not nothing:
            raise ConfigError(
                f"guidance=cfg needs a model of classes, or of conditions that it can do without, but "
                f"{trained.run.path} was trained without labels: train one with conditional=true, or with "
                f"loss.condition_dropout=0.1."
            )
        free = trained.denoiser.given(**nothing)
        return lambda label: Guided(trained.given(label), free, self.scale, self.interval)


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Guidance):
    """`Guided` away from a worse model of the same data.

    Args:
        reference: Run directory or checkpoint of a smaller or less trained model.
        scale: 1: the model itself.
        interval: (low, high) in σ/α: guide only there; None: everywhere.
    """

    reference: str
    scale: float = 2.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_steering(self)

    def __call__(self, trained: TrainedModel) -> Steering:
        other = other_run(self.reference, "reference", Denoiser, trained)
        return lambda label: Guided(trained.given(label), other.given(label), self.scale, self.interval)


def _check_steering(guidance: ClassifierFreeGuidance | Autoguidance) -> None:
    if isinstance(guidance, Autoguidance):
        check_text("guidance", "reference", guidance.reference, optional=False)
    check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=guidance.scale)
    if guidance.interval is not None:
        check_pair("guidance", "interval", guidance.interval, "0 <= low < high")


def other_run(path: str | Path, key: str, makes: type, trained: TrainedModel) -> TrainedModel:
    """Another run that takes part in guidance, of the same data.

    Args:
        path: Run directory or checkpoint.
        key: Option of `guidance` that names it, for messages.
        makes: What its task makes: `Denoiser`, `NoisyClassifier`, ...
        trained: The run that is guided.
    Raises:
        ConfigError: If it is the run of something else, or of data of another shape.
    """
    other = load_run(path, device=trained.device, extensions=trained.extensions)
    if not isinstance(other.model, makes) or other.shape != trained.shape:
        raise ConfigError(
            f"guidance.{key} needs the run of {'a denoiser' if makes is Denoiser else NOUNS[makes]} of data "
            f"of shape {trained.shape}, got {other.run.path} of shape {other.shape}."
        )
    return other
