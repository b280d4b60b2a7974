"""Command lines: Hydra composes a configuration, `scoresde.commands` does the work. Only this file imports Hydra."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from scoresde.streams import make_streams_safe

PACKAGE = Path(__file__).resolve().parent
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # each says how OpenMP's threads wait
RENAMED = {
    "grid.pilots": "grid.reference_paths",
    "grid.pilot_steps": "grid.reference_steps",
}  # keys of earlier versions
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)  # as torch words it


def train_main() -> None:
    """Entry point of `train.py` and `scoresde-train`."""
    _main("train", _train)


def sample_main() -> None:
    """Entry point of `sample.py` and `scoresde-sample`."""
    _main("sample", _sample)


def config_dir() -> Path:
    """Where the configuration tree is: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def share_cores() -> None:
    """Let threads that wait for each other sleep, unless the user chose how they wait.

    OpenMP's own habit is to spin for some milliseconds. Beside one other busy process that leaves a training a tenth of
    its speed, because threads spin where the one that they wait for should run; asleep they leave it its share. Results
    are the same bits, as they would not be with another number of threads. OpenMP reads this when torch is imported.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _train(config: dict[str, Any]) -> None:
    from scoresde.commands.train import train

    train(config)


def _sample(config: dict[str, Any]) -> None:
    from scoresde.commands.sample import sample

    sample(config)


def _main(name: str, command: Callable[[dict[str, Any]], None]) -> None:
    make_streams_safe()
    with _interrupts_noted() as interrupts:
        try:
            _run(name, command, interrupts)
        except BaseException as error:
            if isinstance(error, SystemExit) or not (interrupts or isinstance(error, KeyboardInterrupt)):
                raise
            print(
                f"\n{Path(sys.argv[0]).name}: stopped by Ctrl-C. What had been saved is kept: the same command goes on "
                f"from there.",
                file=sys.stderr,
            )
            sys.exit(128 + signal.SIGINT)


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C also enters the list that this gives: an import that it cuts short may raise an error of its own."""
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(name: str, command: Callable[[dict[str, Any]], None], interrupts: list[int]) -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(name))
        return
    share_cores()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through to this function, which words them
    import hydra

    failures: list[Exception] = []  # kept from Hydra, which would print a line of its own about them

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
    def compose(cfg: Any) -> None:
        try:
            command(_plain(cfg))
        except Exception as error:
            failures.append(error)

    try:
        _check_choices(sys.argv[1:])
        compose()
        if failures:
            raise failures[0]
    except Exception as error:
        sentence = None if interrupts else explain(error)
        if sentence is None or os.environ.get("SCORESDE_DEBUG"):
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: {sentence}")


def help_text(name: str) -> str:
    """Every group with its options, and the top of the configuration with its comments.

    Written here because Hydra takes two seconds to list its own groups as well.
    """
    root = config_dir()
    groups = {path.name: sorted(option.stem for option in path.glob("*.yaml")) for path in sorted(root.iterdir())}
    lines = [f"python {name}.py [group=option] [key=value] ...", "", "Groups (group=option):"]
    lines += [f"  {group:18}{', '.join(options)}" for group, options in groups.items() if options]
    lines += [
        "",
        "Keys (key=value), with their defaults; group.key=value for those of an option, e.g. solver.steps=20:",
    ]
    own = (root / f"{name}.yaml").read_text(encoding="utf-8").split("\nhydra:")[0].strip()
    lines += [f"  {line}" for line in own.splitlines() if "override hydra/" not in line]
    lines += ["", "--cfg job prints the whole configuration, --config-dir DIR adds a folder of your own options."]
    return "\n".join(lines)


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_choices(arguments: list[str]) -> None:
    """Raise if a group is given something that cannot be the name of an option, which Hydra would not name."""
    no_name = re.compile(r"null|true|false|-?[\d.]+|\[.*\d.*\]", re.IGNORECASE)
    for argument in arguments:
        group, _, value = argument.lstrip("+").partition("=")
        if group and (config_dir() / group).is_dir() and no_name.fullmatch(value):
            raise ValueError(f"{argument} names no option of {group}: there is {', '.join(_options(group))}.")


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def _worded(error: Exception) -> str:
    """Hydra's own message as one line, with the key in full, the options that there are, and what a key became."""
    text = str(error.__cause__ or error).splitlines()[0].rstrip(".")
    text = text.removeprefix("In 'train': ").removeprefix("In 'sample': ")
    options = [line.strip() for line in str(error).splitlines() if line.startswith("\t") and "=" not in line]
    if options:
        text += f": there is {', '.join(options)}"
    override = re.match(r"Could not override '([\w.]+)'", str(error))
    if override is None or error.__cause__ is None:
        return text
    key = override[1]
    value = next((argument.partition("=")[2] for argument in sys.argv if argument.startswith(f"{key}=")), "")
    text = f"{key}={value}: {text}"
    group, _, last = key.rpartition(".")
    if last == "kind" and (names := _options(group)):
        known = value.lower() in names
        text += f": write {group}={value.lower()}" if known else f": write {group}=NAME, one of {', '.join(names)}"
    return f"{text}: write {RENAMED[key]}={value}" if key in RENAMED else text


def explain(error: Exception) -> str | None:
    """One sentence for an error that a user can mend; None for one that only a developer can."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, MissingMandatoryValue):
        return f"the option {error.full_key} has no default: give it a value, {error.full_key}=..."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"{_worded(error)} (python {Path(sys.argv[0]).name} --help lists the options)"
    from scoresde.training import CheckpointError, TrainingError

    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        asked = re.search(r"allocate (?:an array.*?)?([\d.]+ [a-z]+)", str(error), re.IGNORECASE)
        return (
            f"there is not enough memory{f' ({asked[1]} more were asked for)' if asked else ''}: give a smaller "
            f"batch_size=... (of likelihoods likelihood.batch_size=...; in training trainer.accumulate=... makes up "
            f"for it), or a smaller model; what was there before is untouched."
        )
    if isinstance(error, OSError) and error.errno and str(error).startswith("[Errno"):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}: nothing that was there before is lost; mend that and run the command again."
    mendable = (ValueError, TypeError, OSError, ImportError, FloatingPointError, CheckpointError, TrainingError)
    return " ".join(str(error).split()) if isinstance(error, mendable) else None
