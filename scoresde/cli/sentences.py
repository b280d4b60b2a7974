"""One sentence for every error that a user can mend, with the option that it is about."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scoresde.cli.keys import meant, options, own_keys
from scoresde.spelling import did_you_mean, nearest

RENAMED = {
    "grid.pilots": "grid.reference_paths",
    "grid.pilot_steps": "grid.reference_steps",
}  # keys of earlier versions
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)  # as torch words it
SHOWN = 100  # characters of an argument in a message


def explain(error: Exception) -> str:
    """One sentence for an error, without a traceback, which tells only a developer something."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, MissingMandatoryValue):
        return f"the option {error.full_key} has no default: give it a value, {error.full_key}=..."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"{_worded(error).rstrip('.')} (python {Path(sys.argv[0]).name} --help lists the options)"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        asked = re.search(r"allocate (?:an array.*?)?([\d.]+ [a-z]+)", str(error), re.IGNORECASE)
        return (
            f"there is not enough memory{f' ({asked[1]} more were asked for)' if asked else ''}: give a smaller "
            f"batch_size=... (of likelihoods likelihood.batch_size=...; in training trainer.accumulate=... makes up "
            f"for it), or a smaller model; what was there before is untouched."
        )
    if isinstance(error, OSError) and error.errno and str(error).startswith("[Errno"):
        where = f" ({shortened(str(error.filename))})" if error.filename else ""
        return f"{error.strerror}{where}: nothing that was there before is lost; mend that and run the command again."
    text = " ".join(str(error).partition("Exception raised from")[0].split())  # what follows is torch's C++ stack
    text = re.sub(r"\S{200,}", lambda word: shortened(word[0]), text)
    if isinstance(error, ValueError | TypeError | OSError | ImportError | FloatingPointError) or _is_ours(error):
        return text
    return (
        f"an unexpected {type(error).__name__}, {text or 'without a message'}: a mistake of scoresde's, or of a class "
        f"of yours; SCORESDE_DEBUG=1 before the command shows where."
    )


def _is_ours(error: Exception) -> bool:
    from scoresde.training import CheckpointError, TrainingError

    return isinstance(error, CheckpointError | TrainingError)


def _worded(error: Exception) -> str:
    """Hydra's own message as one line, with the argument in full, and what was probably meant."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    whole = str(error)
    text = str(error.__cause__ or error).splitlines()[0].rstrip(".")
    text = text.removeprefix("In 'train': ").removeprefix("In 'sample': ")
    if missing := re.search(r"Could not find '([\w/]+)/([^']*)'", text):
        names = [line.strip() for line in whole.splitlines() if line.startswith("\t") and "=" not in line]
        near = nearest(missing[2], names)
        there = f": there is {', '.join(names)}" if names else ""
        return f"{shortened(text)}{there}{did_you_mean(near and f'{missing[1]}={near}')}"
    if isinstance(error, OverrideParseException):
        return f"{shortened(error.override)} cannot be read: {text}"
    if override := re.match(r"Could not override '([^']+)'", whole):
        return _no_such_key(override[1])
    if appended := re.search(r"An item is already at '([^']+)'", text):
        return f"+{appended[1]}=... adds a key, but there is {appended[1]} already: leave out the +"
    key = error.full_key if isinstance(error, OmegaConfBaseException) else None
    return f"{key}: {text}" if key and key not in text else text


def _no_such_key(key: str) -> str:
    argument = next((argument for argument in sys.argv if argument.lstrip("+").startswith(f"{key}=")), key)
    value = argument.partition("=")[2]
    group, _, last = key.rpartition(".")
    name, other = ("train", "sample") if "train" in Path(sys.argv[0]).name else ("sample", "train")
    text = f"{shortened(argument)}: {group or f'{name}.py'} has no key {last!r}"
    if key in RENAMED:
        return f"{text}: write {RENAMED[key]}={value}"
    if last == "kind" and (names := options(group)):
        known = value.lower() in names
        return f"{text}: write {group}={value.lower() if known else 'NAME, one of ' + ', '.join(names)}"
    if (near := meant(name, key)) == key:
        return f"{text}, which belongs to another option than the chosen one"
    return f"{text}, but {other}.py has" if key.partition(".")[0] in own_keys(other) else f"{text}{did_you_mean(near)}"


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
