"""`guidance` of `sample.py`: how samples are steered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scoresde.checks import check_numbers, check_text
from scoresde.commands.build import ConfigError
from scoresde.commands.free_guidance import OfNoise, check_strength
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
class Autoguidance(Guidance):
    """`Guided` away from a worse model of the same data.

    Args:
        reference: Run directory or checkpoint of a smaller or less trained model.
        scale: 1: the model itself; or a function of σ/α.
        interval, rescale: As for `ClassifierFreeGuidance`.
    """

    reference: str
    scale: OfNoise = 2.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_text("guidance", "reference", self.reference, optional=False)
        check_strength(self.scale, self.interval)
        check_numbers("guidance", "0 <= rescale <= 1", rescale=self.rescale)

    def __call__(self, trained: TrainedModel) -> Steering:
        other = other_run(self.reference, "reference", Denoiser, trained)
        if other.denoiser.sde != trained.denoiser.sde:
            raise ConfigError(
                f"guidance.reference needs a run of the same process, {trained.denoiser.sde}, got {other.run.path} of "
                f"{other.denoiser.sde}."
            )

        def steering(label: Tensor | None) -> Denoiser:
            return Guided(trained.given(label), other.given(label), self.scale, self.interval, self.rescale)

        return steering


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
