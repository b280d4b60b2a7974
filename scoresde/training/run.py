"""The folder that a training run owns."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from scoresde.files import inside, open_regular, write_atomically
from scoresde.streams import say
from scoresde.training.checkpoint import DamagedCheckpoint, load_checkpoint
from scoresde.training.lock import locked

LARGEST_CONFIG = 1 << 20  # bytes; a larger file is not a configuration


class RunDirectory:
    """Files of one run.

        config.yaml          the resolved configuration, which sampling reads
        checkpoints/last.pt  the latest state; previous.pt is the one before, step_00010000.pt, ... are snapshots
        metrics.csv          one row per logged step
        samples/             pictures and arrays

    Args:
        path: The folder. Nothing is read or written here: use `create`, `open` or `newest`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.yaml", self.path / "metrics.csv"
        self.checkpoints, self.samples = self.path / "checkpoints", self.path / "samples"
        self.lock = self.path / ".lock"  # while a process writes to the run
        self.last = self.checkpoints / "last.pt"  # which a resumed run starts from; it may not exist yet
        self.previous = self.checkpoints / "previous.pt"  # for the case that it is damaged

    @classmethod
    def create(cls, path: str | Path, config_text: str) -> RunDirectory:
        """Make the folder, or take it up again if its configuration is the same.

        Raises:
            ValueError: If it belongs to a run with another configuration, naming the first line that differs, or a
                folder of it is a link that leads elsewhere.
            OSError: If the folder cannot be made.
        """
        run = cls(path)
        run._check_folder()
        if run.config.is_file():
            run._check_same(config_text)
        elif run.checkpoints.is_dir() and any(run.checkpoints.iterdir()):
            raise FileExistsError(
                f"{run.checkpoints} holds files but there is no {run.config}; choose another run directory."
            )
        try:
            inside(run, run.checkpoints).mkdir(parents=True, exist_ok=True)
            inside(run, run.samples).mkdir(exist_ok=True)
            if not run.config.is_file():
                write_atomically(run.config, config_text.encode())
        except OSError as error:
            raise OSError(f"cannot make the run directory {run.path}: {error.strerror or error}.") from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run.

        Raises:
            FileNotFoundError: If the folder or its configuration is missing.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise FileNotFoundError(f"there is no run at {run.path}: train one with python train.py.")
        if not run.config.is_file():
            raise FileNotFoundError(f"{run.path} is not a run directory: it has no config.yaml.")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the `with` block no other process writes to the run; reading is not kept from anyone.

        A new run that ends by an error before anything has been trained leaves no folder.

        Raises:
            InUse: If another process has it, saying which.
            OSError: If the folder cannot be made.
        """
        self._check_folder()
        new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make the run directory {self.path}: {error.strerror or error}.") from error
        with locked(inside(self, self.lock), f"the run {self.path}"):
            try:
                yield
            except BaseException:
                if new and not self.has_checkpoint and not self.metrics.exists():
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    @classmethod
    def newest(cls, root: str | Path = "runs") -> RunDirectory:
        """The run under `root`, at any depth, whose checkpoint was written last.

        Raises:
            FileNotFoundError: If there is none.
        """
        runs = [cls(config.parent) for config in Path(root).rglob("config.yaml")]
        runs = [run for run in runs if run.checkpoints.is_dir()]
        trained = [run for run in runs if run.has_checkpoint]
        if trained:
            return max(trained, key=lambda run: (run.checkpoint.stat().st_mtime_ns, str(run.path)))
        shown = f"{root}".rstrip("/") + "/"
        if runs:
            raise FileNotFoundError(
                f"no run under {shown} has a checkpoint yet (there is {runs[0].path}): let python train.py "
                f"finish, or stop it with Ctrl-C, which saves one."
            )
        raise FileNotFoundError(f"no run found under {shown}: train one with python train.py.")

    @property
    def config_text(self) -> str:
        """The text of config.yaml, as far as one has any use for it."""
        with open_regular(self.config) as file:
            return file.read(LARGEST_CONFIG + 1).decode("utf-8")

    def snapshot(self, step: int) -> Path:
        """The checkpoint kept for one step; it may not exist."""
        return self.checkpoints / f"step_{step:08d}.pt"

    @property
    def snapshots(self) -> list[Path]:
        """Existing snapshots, in the order of their steps."""
        return sorted(self.checkpoints.glob("step_*.pt"), key=lambda path: (len(path.name), path.name))

    @property
    def has_checkpoint(self) -> bool:
        return self.last.is_file() or self.previous.is_file() or bool(self.snapshots)

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint by its name: last.pt, or else the last snapshot, or previous.pt.

        Raises:
            FileNotFoundError: If the run has none.
        """
        if self.last.is_file():
            return self.last
        if self.snapshots:
            return self.snapshots[-1]
        if self.previous.is_file():
            return self.previous
        raise FileNotFoundError(
            f"the run {self.path} has no checkpoint: let python train.py finish, or stop it with Ctrl-C, "
            f"which saves one."
        )

    def newest_state(self) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint that is whole, and its content; says so where that is not the one that was saved last.

        Raises:
            FileNotFoundError: If the run has none.
            CheckpointError: If none is whole, or the newest could run code or is of a later version.
        """
        trouble = None
        if self.last.is_file():
            try:
                return self.last, load_checkpoint(self.last)
            except DamagedCheckpoint as error:
                trouble = error
        whole = [*self._whole([self.previous]), *self._whole(self.snapshots[::-1])]
        if not whole:
            raise trouble or DamagedCheckpoint(f"{self.checkpoint} is damaged, and there is no other checkpoint.")
        path, state = max(whole, key=lambda found: int(found[1].get("step", 0)))
        if path != self.last:
            said = "damaged" if self.last.is_file() else "missing"
            say(f"{self.last} is {said}: {path} is used instead, the state after step {state.get('step')}.")
        return path, state

    def _whole(self, paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The first of these checkpoints that is whole, if there is one."""
        for path in paths:
            with suppress(FileNotFoundError, DamagedCheckpoint):
                yield path, load_checkpoint(path)
                return

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def _check_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; choose another run directory.")

    def _check_same(self, config_text: str) -> None:
        pairs = zip_longest(self.config_text.splitlines(), config_text.splitlines(), fillvalue="")
        for number, (theirs, ours) in enumerate(pairs, 1):
            if theirs.rstrip() != ours.rstrip():
                raise ValueError(
                    f"{self.path} belongs to a run with another configuration: line {number} of its "
                    f"config.yaml is {theirs.strip()!r}, now it is {ours.strip()!r}; use the same options to "
                    f"continue it, or another run directory."
                )
