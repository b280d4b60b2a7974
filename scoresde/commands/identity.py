"""What of a configuration makes it another run, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scoresde.commands.allowed import NO_DEFAULT, default_of, name_one

IN_TASK = ("of", "head", "variance_output")
NOT_KEPT = ("run", "budget", "device", "logger", "extensions", *IN_TASK)  # the budget is in the trainer
PLACES = (
    "path",
    "test_path",
    "image_path",
)  # of data, or of weights to start from: what they are has a fingerprint
FREE = {  # what may differ when a run is taken up again
    "data": PLACES,
    "init": PLACES,
    "trainer": (
        "steps", "minutes", "log_every", "sample_every", "checkpoint_every", "snapshot_every", "progress", "compile",
    ),
}  # fmt: skip


ABSENT = "absent"


class Difference(NamedTuple):
    """A key, and what two configurations have there."""

    key: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.key} is {_shown(self.theirs)} there and {_shown(self.ours)} here"


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a command's configuration the run's own file holds."""
    return {key: value for key, value in config.items() if key not in NOT_KEPT and (key, value) != ("init", None)}


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's own configuration makes it another run: all that changes the weights, but data and length.

    Left out are the places of files, `trainer.steps`, and what training says and saves in between.
    """
    return {
        key: {name: value for name, value in node.items() if name not in FREE[key]}
        if key in FREE and isinstance(node, Mapping)
        else node
        for key, node in config.items()
    }


def differences(theirs: Any, ours: Any, key: str = "") -> Iterator[Difference]:
    """Where two configurations differ.

    Two names of one class are the same, and so are an option's default, or null where no class is named, and its
    absence, which is what an earlier version wrote that did not have it.
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in dict.fromkeys([*ours, *theirs]):
            inner = f"{key}.{name}" if key else str(name)
            if name in theirs and name in ours:
                yield from differences(theirs[name], ours[name], inner)
            elif not _is_default(name, theirs, ours):
                yield Difference(inner, theirs.get(name, ABSENT), ours.get(name, ABSENT))
    elif not (_equal(theirs, ours) or (key.endswith("_target_") and name_one(theirs, ours))):
        yield Difference(key, theirs, ours)


def _is_default(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the one of two nodes that has an option gives it the default of the class or function of both.

    Where they name none, it is null.
    """
    with_it, without = (theirs, ours) if name in theirs else (ours, theirs)
    if "_target_" not in with_it and "_target_" not in without:
        return with_it[name] is None
    if not name_one(with_it.get("_target_"), without.get("_target_")):
        return False
    default = default_of(with_it["_target_"], name)
    return default is not NO_DEFAULT and type(default) is type(with_it[name]) and default == with_it[name]


def _equal(theirs: Any, ours: Any) -> bool:
    both_nan = theirs != theirs and ours != ours
    return isinstance(theirs, bool) == isinstance(ours, bool) and (theirs == ours or both_nan)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("_target_", "a group of options")
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
