"""What samples are conditioned on, by number or by name: `label`, `condition`, `image`, `sequence` of `sample.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.commands.batches import own_conditions
from scoresde.commands.build import ConfigError
from scoresde.commands.condition_rows import rows_of
from scoresde.commands.examples import Examples
from scoresde.commands.guide_rows import KEYS as GUIDES
from scoresde.commands.guide_rows import fitting_guides, guide_rows
from scoresde.commands.interfaces import Guidance
from scoresde.commands.load import TrainedModel
from scoresde.data import Dataset
from scoresde.data.conditions import check_conditions
from scoresde.spelling import did_you_mean, nearest
from scoresde.training import CheckpointError

LISTED = 12  # names in a message
OTHERS = ("condition", *GUIDES)  # beside labels
ARTICLES = {"condition": "a", "image": "an", "sequence": "a"}


class Conditions(NamedTuple):
    """One of each per sample; None for a model without, or to draw without it.

    Attributes:
        label: (N,).
        condition: (N, C), in the data's own units.
        image: (N, C, *), in its own units.
        sequence: Tokens (N, L) or vectors (N, L, C).
    """

    label: Tensor | None
    condition: Tensor | None
    image: Tensor | None = None
    sequence: Tensor | None = None

    @property
    def beside(self) -> dict[str, Tensor]:
        """Those that are no labels, by name; what there is."""
        return {key: value for key in OTHERS if (value := getattr(self, key)) is not None}


def choose_conditions(config: dict[str, Any], trained: TrainedModel, guidance: Guidance) -> Conditions:
    """What every sample is conditioned on: what the command line says, in turn, or what the run's own data have.

    What it does not say is that of the test split, with the labels of the same examples unless `label` says others.

    Raises:
        ConfigError: If the run has nothing to be conditioned on like that, or if its data are needed and gone.
    """
    label, n = config["label"], config["num_samples"]
    chosen: dict[str, Tensor | None] = {}
    missing = []
    for key in OTHERS:
        asked = config.get(key)
        if asked is None:
            missing += [key] if key in trained.conditions else []
        elif isinstance(asked, str) and asked == "none":
            check_optional(key, trained)
        else:
            rows = rows_asked(key, asked, trained)
            chosen[key] = rows[torch.arange(n) % len(rows)]
    if not missing:
        return Conditions(choose_labels(label, n, trained, guidance), **{"condition": None, **chosen})
    own = own_conditions(own_data(trained, missing[0]), n, labelled=trained.classes is not None)
    labels = own.get("label") if label is None else choose_labels(label, n, trained, guidance)
    return Conditions(labels, **{"condition": None, **chosen, **{key: own.get(key) for key in missing}})


def rows_asked(key: str, asked: Any, trained: TrainedModel) -> Tensor:
    """The rows that `condition`, `image` or `sequence` says."""
    return rows_of(asked, trained) if key == "condition" else guide_rows(key, asked, trained)


def check_optional(key: str, trained: TrainedModel) -> None:
    """Raise if a model cannot do without a condition."""
    if key not in trained.optional:
        raise ConfigError(
            f"{key}=none needs a model that was trained without its {key} now and then, by loss.{key}_dropout=0.1, and "
            f"{trained.run.path} never was: leave it out, or give {ARTICLES[key]} {key}."
        )


def own_data(trained: TrainedModel, key: str = "condition") -> Dataset:
    """The data of a run whose samples take their conditions.

    Raises:
        ConfigError: If they cannot be read.
    """
    try:
        return trained.data()
    except (OSError, ValueError, CheckpointError) as error:
        by_hand = "condition=[...] or " if key == "condition" else ""
        raise ConfigError(
            f"{trained.run.path} draws nothing without {ARTICLES[key]} {key}, and the data that have its own cannot be "
            f"read: give {by_hand}{key}.path=... ({error})"
        ) from None


def with_conditions(examples: Examples, asked: Mapping[str, Any], trained: TrainedModel) -> Examples:
    """Examples of the user's with the conditions that a run's density is given: their own, or what is asked for.

    Args:
        examples: The examples.
        asked: `condition`, `image` and `sequence` as the command line has them, by name.
        trained: The run.
    Raises:
        ConfigError: If there are none, or others than the run was trained with.
    """
    if "condition_dim" not in trained.config["model"]:  # a network of the user's own
        return examples
    examples = _with_columns(examples, asked.get("condition"), trained)
    image, sequence = (_guide_of(key, examples, asked.get(key), trained) for key in GUIDES)
    return replace(examples, image=image, sequence=sequence)


def _guide_of(key: str, examples: Examples, asked: Any, trained: TrainedModel) -> Tensor | None:
    """The images or sequences that the density of examples is given."""
    own, none = getattr(examples, key), isinstance(asked, str) and asked == "none"
    if asked is not None and not none:
        rows = guide_rows(key, asked, trained)
        if len(rows) not in (1, len(examples)):
            raise ConfigError(f"{key} has {len(rows)} rows for {len(examples)} {examples.name}: give one, or as many.")
        return rows.expand(len(examples), *rows.shape[1:]).contiguous()
    if key not in trained.conditions:
        return None
    if none:
        check_optional(key, trained)
        return None
    if own is not None:
        return fitting_guides(key, own, examples.name, trained)
    if key in trained.optional:
        return None
    raise ConfigError(
        f"the {examples.name} have no {key}, but the density of {trained.run.path} is that of x given {ARTICLES[key]} "
        f"{key}: put them into the file as {key}, or give {key}.path=..."
    )


def _with_columns(examples: Examples, asked: Any, trained: TrainedModel) -> Examples:
    dim, path, own = trained.condition_dim, trained.run.path, examples.condition
    if dim is None or (own is None and asked in (None, "none") and trained.condition_optional):
        if dim is not None:
            print(f"the {examples.name} have no conditions: their density is that of {path} without one.")
        return replace(examples, condition=None)
    if own is not None:
        if asked is not None:
            raise ConfigError(f"the {examples.name} have conditions of their own: leave out condition=...")
        width = own.flatten(1).shape[1]
        if width != dim:
            raise ConfigError(
                f"the {examples.name} have conditions of {width} columns, but {path} was trained with {dim}."
            )
        check_conditions(own, examples.name, trained.names.conditions)
        return examples
    if asked in (None, "none"):
        raise ConfigError(
            f"the {examples.name} have no conditions, but the density of {path} is that of x given a condition of "
            f"{dim} numbers: put them into the file as condition, or give condition=[...] or condition.path=..."
        )
    rows = rows_of(asked, trained)
    if len(rows) not in (1, len(examples)):
        raise ConfigError(f"condition has {len(rows)} rows for {len(examples)} {examples.name}: give one, or as many.")
    return replace(examples, condition=rows.expand(len(examples), -1).contiguous())


def choose_labels(label: Any, n: int, trained: TrainedModel, guidance: Guidance) -> Tensor | None:
    """One label per sample: those asked for in turn, or all classes in turn that the model has seen."""
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
    if label is None:
        chosen = trained.seen_classes or []
    else:
        chosen = [class_number(value, trained) for value in (label if isinstance(label, list) else [label])]
    return torch.tensor(chosen)[torch.arange(n) % len(chosen)]


def class_number(label: int | str, trained: TrainedModel) -> int:
    """The number of a class that is meant by its name, or by its number where names are no numbers.

    Raises:
        ConfigError: If there is no such class, or it had no example.
    """
    names, classes, seen = trained.names.classes, trained.classes, trained.seen_classes
    numeric = any(name.lstrip("-").isdigit() for name in names or ())
    if names is not None and str(label) in names:
        number = names.index(str(label))
    elif names is not None and (numeric or isinstance(label, str)):
        raise ConfigError(f"label={label} is no class of {trained.run.path}{_there_is(str(label), names)}")
    elif isinstance(label, bool) or not isinstance(label, int) or label < 0 or (classes and label >= classes):
        limit = f"0..{classes - 1}" if classes else "0, 1, 2, ..."
        raise ConfigError(f"label needs whole numbers in {limit}, got {label!r}.")
    else:
        number = label
    if seen is not None and number not in seen:
        raise ConfigError(
            f"label={label} had no example when {trained.run.path} was trained, so that it cannot be drawn: choose "
            f"among {listed([names[k] if names else str(k) for k in seen])}."
        )
    return number


def _there_is(word: str, names: Sequence[str]) -> str:
    """The end of a sentence about a name that is not known."""
    near = nearest(word, names)
    return did_you_mean(near) if near else f": there is {listed(names)}."


def listed(names: Sequence[str]) -> str:
    """Names in a message, not too many."""
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
