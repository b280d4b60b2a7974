"""`task=embedding` of `train.py` and `guidance=embedding` of `sample.py`: encoders of noisy images and of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_numbers, check_text, check_whole
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build_as, require
from scoresde.commands.classifier_guidance import FORMS, shiftable
from scoresde.commands.guidance import other_run
from scoresde.commands.interfaces import Guidance, SolverOf, Steering
from scoresde.commands.load import TrainedModel, newest_run
from scoresde.commands.train import ModelTask
from scoresde.data import Dataset
from scoresde.guidance import EmbeddingGuided, EmbeddingPair, EmbeddingPotential
from scoresde.guidance.embedding import check_captions
from scoresde.losses import ContrastiveLoss, DenoisingLoss, Loss
from scoresde.models import ImageEncoder, TextEncoder
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.solvers import MeanShift, Solver
from scoresde.spelling import did_you_mean, nearest


@dataclass(frozen=True, kw_only=True)
class TrainEmbedding(ModelTask):
    """Encoders of noisy images and of their captions, for guidance; the law of times and noise is that of the loss.

    Args:
        captions: What each class is called, one text or several; None: its name in the data, or its number.
        text_width: Channels of the encoder of texts.
        text_length: Most bytes of a text.
    """

    captions: Sequence[str | Sequence[str]] | None = None
    text_width: int = 64
    text_length: int = 32

    makes = EmbeddingPair
    labelled = True

    def __post_init__(self) -> None:
        check_whole("task=embedding", "1 <= text_width <= 65536", text_width=self.text_width)
        check_whole("task=embedding", "1 <= text_length <= 65536", text_length=self.text_length)
        if self.captions is not None:
            check_captions(self.captions)

    def __call__(self, config: dict[str, Any]) -> dict[str, float]:
        data = build_as(Dataset, config.get("data"), "data", [*config["extensions"], ANY_INTERFACE])
        if data.num_classes is None:
            raise ConfigError(f"data={data.name} has no labels, which task=embedding takes for captions.")
        captions = self.captions
        if captions is None:
            captions = list(data.names.classes or map(str, range(data.num_classes)))
        if len(captions) != data.num_classes:
            raise ConfigError(
                f"task.captions needs one entry for each of the {data.num_classes} classes of data={data.name}, got "
                f"{len(captions)}."
            )
        config = {**config, "task": {**config["task"], "captions": captions}}
        return super(TrainEmbedding, replace(self, captions=captions)).__call__(config)

    def model(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> EmbeddingPair:
        image = require(net, ImageEncoder, "model")
        text = TextEncoder(features=image.features, width=self.text_width, length=self.text_length)
        if self.captions is None:
            raise ConfigError("task.captions is not known: it is what the data's classes are called.")
        return EmbeddingPair(image, text, sde, parameterization, self.captions)

    def loss(self, loss: Loss) -> Loss:
        return ContrastiveLoss(noise=require(loss, DenoisingLoss, "loss"))


@dataclass(frozen=True, kw_only=True)
class EmbeddingGuidance(Guidance):
    """`EmbeddingGuided` by the caption of a class, or by a text, which a model without classes can do as well.

    Args:
        scale: Of ⟨g, h⟩.
        form: "score", "mean" or "state", as for `ClassifierGuidance`; the second is GLIDE's.
        through: "noisy": the encoder sees x_t; "x0": it sees the denoiser's x̂0, as if it were clean.
        text: One of the captions that the encoders were trained with; None: that of the label.
        embedding: Run directory of the encoders; None: the newest under runs/.
    """

    scale: float = 20.0
    form: str = "score"
    through: str = "noisy"
    text: str | None = None
    embedding: str | None = None

    def __post_init__(self) -> None:
        check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=self.scale)
        check_choice("guidance", "form", self.form, FORMS)
        check_choice("guidance", "through", self.through, ("noisy", "x0"))
        if self.form != "score" and self.through != "noisy":
            raise ValueError(f"guidance.form={self.form} takes the gradient of an encoder of x_t: leave through out.")
        check_text("guidance", "text", self.text)
        check_text("guidance", "embedding", self.embedding)

    @property
    def classifies(self) -> bool:
        return self.text is None

    def __call__(self, trained: TrainedModel) -> Steering:
        if self.form != "score":
            return trained.given
        pair, target = self._encoders(trained)
        clean, least = self.through == "x0", pair.sde.t_min

        def of_clean(x0: Tensor) -> Tensor:
            return pair(x0, x0.new_tensor(least))  # type: ignore[no-any-return]

        encoder = of_clean if clean else pair
        return lambda label: EmbeddingGuided(trained.given(label), encoder, target(label), self.scale, clean)

    def solvers(self, solver: Solver, trained: TrainedModel) -> SolverOf:
        if self.form == "score":
            return lambda label: solver
        noisy, (pair, target) = shiftable(solver, self.form), self._encoders(trained)

        def solver_of(label: Tensor | None) -> Solver:
            potential = EmbeddingPotential(pair, target(label))
            return MeanShift(solver=noisy, log_prob=potential, scale=self.scale, at=self.form)

        return solver_of

    @torch.no_grad()
    def _encoders(self, trained: TrainedModel) -> tuple[EmbeddingPair, Callable[[Tensor | None], Tensor]]:
        """The encoders of a run, and h(c) of the labels of a batch, or of the text."""
        path = newest_run(EmbeddingPair).path if self.embedding is None else self.embedding
        other = other_run(path, "embedding", EmbeddingPair, trained)
        pair, run = other.model, str(other.run.path)
        assert isinstance(pair, EmbeddingPair)
        if self.text is not None:
            of_text = pair.of_texts([caption_of(self.text, pair, run)])[0]
            return pair, lambda label: of_text
        features = pair.of_classes()

        def of_labels(label: Tensor | None) -> Tensor:
            assert label is not None  # choose_labels made sure of them
            if int(label.max()) >= len(features):
                raise ConfigError(f"label needs whole numbers in 0..{len(features) - 1}, the classes of {run}.")
            return features[label]

        return pair, of_labels


def caption_of(text: str, pair: EmbeddingPair, run: str) -> str:
    """A text that a pair was trained with: what others mean to it is anyone's guess.

    Raises:
        ConfigError: If it was not.
    """
    known = [caption for row in pair.captions for caption in row]
    if str(text).strip().lower() in (caption.strip().lower() for caption in known):
        return str(text)
    near = nearest(str(text), known)
    there = did_you_mean(near) if near else f": there is {', '.join(known[:12])}."
    raise ConfigError(f"guidance.text={text} is no caption that {run} was trained with{there}")
