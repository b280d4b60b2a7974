"""Command lines: Hydra composes a configuration, `scoresde.commands` does the work. Only this package imports Hydra."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from scoresde.cli.help import group_help, help_asked, help_text
from scoresde.cli.keys import check_choices, check_keys, config_dir, with_added, with_one_length
from scoresde.cli.on_arrays import fit
from scoresde.cli.sentences import explain
from scoresde.streams import make_streams_safe

__all__ = ["config_dir", "explain", "fit", "help_text", "sample_main", "train_main"]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # each says how OpenMP's threads wait


def train_main() -> None:
    """Entry point of `train.py` and `scoresde-train`."""
    _main("train", _train)


def sample_main() -> None:
    """Entry point of `sample.py` and `scoresde-sample`."""
    _main("sample", _sample)


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

    train(with_one_length(config, sys.argv[1:]))


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


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of ours in one line each, without the place in our code that they come from."""
    with warnings.catch_warnings():
        usual, own = warnings.showwarning, str(Path(__file__).parents[1])

        def show(message: Any, category: type[Warning], filename: str, *where: Any) -> None:
            if category is UserWarning and filename.startswith(own):
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _run(name: str, command: Callable[[dict[str, Any]], None], interrupts: list[int]) -> None:
    try:
        asked = help_asked(sys.argv[1:])
        if asked is not None:
            print(group_help(asked) if asked else help_text(name))
            return
        sys.argv[1:] = with_added(name, sys.argv[1:])
        check_choices(name, sys.argv[1:])
        with _plain_warnings():
            _compose(name, command)
    except Exception as error:
        if interrupts or os.environ.get("SCORESDE_DEBUG"):
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: {explain(error)}")


def _compose(name: str, command: Callable[[dict[str, Any]], None]) -> None:
    """Hand the configuration that Hydra composes to a command."""
    share_cores()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors through to `_run`, which words them
    import hydra

    failures: list[Exception] = []  # kept from Hydra, which would print a line of its own about them

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
    def compose(cfg: Any) -> None:
        try:
            check_keys(name, cfg)
            command(_plain(cfg))
        except Exception as error:
            failures.append(error)

    compose()
    if failures:
        raise failures[0]


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return dict(_with_text_keys(plain))


def _with_text_keys(value: Any) -> Any:
    """Numbers as keys, as in data.transform={0: log}, become text, which a run's configuration has alone."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value
