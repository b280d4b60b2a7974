"""`label` and `condition` of `sample.py`: what the samples are conditioned on, as numbers or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.commands.batches import own_conditions
from scoresde.commands.build import ConfigError
from scoresde.commands.condition_rows import rows_of
from scoresde.commands.examples import Examples
from scoresde.commands.interfaces import Guidance
from scoresde.commands.load import TrainedModel
from scoresde.data import Dataset
from scoresde.data.conditions import check_conditions
from scoresde.spelling import did_you_mean, nearest
from scoresde.training import CheckpointError

LISTED = 12  # names in a message


class Conditions(NamedTuple):
    """One label and one condition per sample; None for a model without, or to draw without it.

    Attributes:
        label: (N,).
        condition: (N, C), in the data's own units.
    """

    label: Tensor | None
    condition: Tensor | None


def choose_conditions(config: dict[str, Any], trained: TrainedModel, guidance: Guidance) -> Conditions:
    """What every sample is conditioned on: what the command line says, in turn, or what the run's own data have.

    Without `condition` it is those of the test split, with the labels of the same examples unless `label` says others.

    Raises:
        ConfigError: If the run has nothing to be conditioned on like that, or if its data are needed and gone.
    """
    label, asked, n = config["label"], config.get("condition"), config["num_samples"]
    if trained.condition_dim is None and asked is None:
        return Conditions(choose_labels(label, n, trained, guidance), None)
    if asked == "none":
        if not trained.condition_optional:
            raise ConfigError(
                f"condition=none needs a model that was trained without its condition now and then, by "
                f"loss.condition_dropout=0.1, and {trained.run.path} never was: leave it out, or give a condition."
            )
        return Conditions(choose_labels(label, n, trained, guidance), None)
    if asked is not None:
        rows = rows_of(asked, trained)
        return Conditions(choose_labels(label, n, trained, guidance), rows[torch.arange(n) % len(rows)])
    own = own_conditions(own_data(trained), n, labelled=trained.classes is not None)
    chosen = own.get("label") if label is None else choose_labels(label, n, trained, guidance)
    return Conditions(chosen, own.get("condition"))


def own_data(trained: TrainedModel) -> Dataset:
    """The data of a run whose samples take their conditions.

    Raises:
        ConfigError: If they cannot be read.
    """
    try:
        return trained.data()
    except (OSError, ValueError, CheckpointError) as error:
        raise ConfigError(
            f"{trained.run.path} draws nothing without a condition, and the data that have its own cannot be read: "
            f"give condition=[...] or condition.path=... ({error})"
        ) from None


def with_conditions(examples: Examples, asked: Any, trained: TrainedModel) -> Examples:
    """Examples of the user's with the conditions that a run's density is given: their own, or what `condition` says.

    Raises:
        ConfigError: If there are none, or others than the run was trained with.
    """
    if "condition_dim" not in trained.config["model"]:  # a network of the user's own
        return examples
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
