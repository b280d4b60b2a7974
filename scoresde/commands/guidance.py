"""The classes and the steering that `label` and `guidance` of `sample.py` ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.commands.build import ConfigError
from scoresde.commands.load import TrainedModel, load_run, newest_run
from scoresde.denoiser import Denoiser
from scoresde.guidance import ClassifierGuided, Guided
from scoresde.guidance.noisy_classifier import NoisyClassifier


def choose_labels(label: Any, n: int, trained: TrainedModel, guidance: str) -> Tensor | None:
    """One label per sample: those asked for in turn, or all classes of a conditional model in turn."""
    classes = trained.config["model"].get("num_classes")
    if label is None and (classes is None or guidance == "classifier"):
        if guidance in ("cfg", "classifier"):
            raise ConfigError(f"guidance={guidance} needs a class to guide to: add label=3.")
        return None
    if label is not None and classes is None and guidance != "classifier":
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


class Guidance:
    """The steering that a `guidance` configuration asks for: called with a denoiser and labels."""

    def __init__(
        self, config: dict[str, Any], trained: TrainedModel, device: torch.device, extensions: list[str]
    ) -> None:
        self.config, self.kind = config, config["kind"]
        self.interval = tuple(config["interval"]) if config.get("interval") else None
        self.conditional = trained.config["model"].get("num_classes") is not None
        self.other: Any = None
        if self.kind == "cfg" and not self.conditional:
            raise ConfigError(
                f"guidance=cfg needs a model of classes, but {trained.run.path} was trained without labels: "
                f"train one with conditional=true."
            )
        if self.kind in ("autoguidance", "classifier"):
            key = "reference" if self.kind == "autoguidance" else "classifier"
            path = newest_run("classifier").path if config[key] is None else config[key]
            other = load_run(path, device=device, extensions=extensions)
            expected: type = Denoiser if self.kind == "autoguidance" else NoisyClassifier
            if not isinstance(other.model, expected) or other.shape != trained.shape:
                raise ConfigError(
                    f"guidance.{key} needs the run of a {'denoiser' if key == 'reference' else 'classifier'} of data "
                    f"of shape {trained.shape}, got {other.run.path} of shape {other.shape}."
                )
            self.other, self.other_run = other.model, other.run

    def __call__(self, denoiser: Denoiser, label: Tensor | None) -> Denoiser:
        given = denoiser.given(label=label) if self.conditional else denoiser
        if self.kind == "cfg":
            return Guided(given, denoiser.given(label=None), self.config["scale"], self.interval)
        if self.kind == "autoguidance":
            reference = self.other.given(label=label) if self.conditional else self.other
            return Guided(given, reference, self.config["scale"], self.interval)
        if self.kind == "classifier":
            classes = self.other.num_classes
            if int(label.max()) >= classes:  # type: ignore[union-attr]  # choose_labels made sure of labels
                raise ConfigError(
                    f"label needs whole numbers in 0..{classes - 1}, the classes of {self.other_run.path}."
                )
            return ClassifierGuided(given, self.other.log_prob(label), self.config["scale"])
        return given
