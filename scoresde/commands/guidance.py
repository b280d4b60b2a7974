"""`label` and `guidance` of `sample.py`: the classes of the samples, and how they are steered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_pair, check_text
from scoresde.commands.build import ConfigError
from scoresde.commands.interfaces import Guidance, Steering
from scoresde.commands.load import TrainedModel, load_run, newest_run
from scoresde.denoiser import Denoiser
from scoresde.guidance import ClassifierGuided, Guided, NoisyClassifier


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Guidance):
    """Samples of the model as it is."""

    def __call__(self, trained: TrainedModel) -> Steering:
        return trained.given


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance):
    """`Guided` away from the same model without a label.

    Args:
        scale: 1: the conditional model, 0: the unconditional one.
        interval: (low, high) in σ/α: guide only there; None: everywhere.
    """

    scale: float = 2.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_steering(self)

    def __call__(self, trained: TrainedModel) -> Steering:
        if trained.classes is None:
            raise ConfigError(
                f"guidance=cfg needs a model of classes, but {trained.run.path} was trained without labels: "
                f"train one with conditional=true."
            )
        return lambda label: Guided(trained.given(label), trained.given(None), self.scale, self.interval)


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
        other = _other_run(self.reference, "reference", Denoiser, trained)
        return lambda label: Guided(trained.given(label), other.given(label), self.scale, self.interval)


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(Guidance):
    """`ClassifierGuided` by a classifier of noisy data, which a model without classes can do as well.

    Args:
        scale: 1 would be Bayes' rule with a perfect classifier.
        classifier: Run directory of a classifier; None: the newest under runs/.
    """

    scale: float = 3.0
    classifier: str | None = None

    classifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=self.scale)
        check_text("guidance", "classifier", self.classifier)

    def __call__(self, trained: TrainedModel) -> Steering:
        path = newest_run(NoisyClassifier).path if self.classifier is None else self.classifier
        other = _other_run(path, "classifier", NoisyClassifier, trained)
        classifier = other.model
        assert isinstance(classifier, NoisyClassifier)

        def steering(label: Tensor | None) -> Denoiser:
            assert label is not None  # choose_labels made sure of them
            if int(label.max()) >= classifier.num_classes:
                raise ConfigError(
                    f"label needs whole numbers in 0..{classifier.num_classes - 1}, the classes of {other.run.path}."
                )
            return ClassifierGuided(trained.given(label), classifier.log_prob(label), self.scale)

        return steering


def choose_labels(label: Any, n: int, trained: TrainedModel, guidance: Guidance) -> Tensor | None:
    """One label per sample: those asked for in turn, or all classes of a conditional model in turn."""
    classes = trained.classes
    if label is None and guidance.classifies:
        raise ConfigError("this guidance needs a class to guide to: add label=3.")
    if label is None and classes is None:
        return None
    if label is not None and classes is None and not guidance.classifies:
        raise ConfigError(
            f"label={label} needs a model of classes, but {trained.run.path} was trained without labels: "
            f"train one with conditional=true, or use guidance=classifier."
        )
    chosen = list(range(classes or 0)) if label is None else label if isinstance(label, list) else [label]
    for value in chosen:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (classes and value >= classes):
            limit = f"0..{classes - 1}" if classes else "0, 1, 2, ..."
            raise ConfigError(f"label needs whole numbers in {limit}, got {value!r}.")
    return torch.tensor(chosen)[torch.arange(n) % len(chosen)]


def _check_steering(guidance: ClassifierFreeGuidance | Autoguidance) -> None:
    if isinstance(guidance, Autoguidance):
        check_text("guidance", "reference", guidance.reference, optional=False)
    check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=guidance.scale)
    if guidance.interval is not None:
        check_pair("guidance", "interval", guidance.interval, "0 <= low < high")


def _other_run(path: str | Path, key: str, makes: type, trained: TrainedModel) -> TrainedModel:
    """Another run that takes part in guidance, of the same data."""
    other = load_run(path, device=trained.device, extensions=trained.extensions)
    if not isinstance(other.model, makes) or other.shape != trained.shape:
        raise ConfigError(
            f"guidance.{key} needs the run of a {'denoiser' if makes is Denoiser else 'classifier'} of data "
            f"of shape {trained.shape}, got {other.run.path} of shape {other.shape}."
        )
    return other
