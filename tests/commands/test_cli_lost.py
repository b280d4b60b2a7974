"""What the command lines do when they are stopped, have no memory or disk, or meet another process."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import command, inside

from scoresde import files
from scoresde.cli import sample_main, train_main
from scoresde.training import RunDirectory, load_checkpoint, trainer

TOY = ["logger=csv", "experiment=toy", "data.size=40", "batch_size=8", "model.width=8", "model.depth=1", "run=run"]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    with inside(tmp_path):
        yield tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def held_elsewhere(run: RunDirectory) -> Iterator[None]:
    """The run is locked, as by another process."""
    has, end = threading.Event(), threading.Event()

    def hold() -> None:
        with run.locked():
            has.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    has.wait()
    try:
        yield
    finally:
        end.set()
        thread.join()


def sentence(main: Any, *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, *options)
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


def test_a_second_training_ends_touches_nothing_and_readers_go_on(work: Path) -> None:
    command(train_main, *TOY, "trainer.steps=4")
    fit = ["solver=ddim", "grid=optimised", "grid.reference_paths=4", "grid.iterations=1"]
    with held_elsewhere(RunDirectory("run")):
        before = contents(work)
        assert "the run run is in use by process" in sentence(train_main, *TOY, "trainer.steps=8")
        assert "the run run is in use by process" in sentence(sample_main, "num_samples=2", "out=o", *fit, "run=run")
        assert contents(work) == before
        command(sample_main, "run=run", "num_samples=2", "solver.steps=2", "out=o")
    command(train_main, *TOY, "trainer.steps=8")
    assert load_checkpoint(RunDirectory("run").last)["step"] == 8


def test_without_memory_there_is_one_sentence_and_no_folder(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes.")

    monkeypatch.setattr(trainer.Update, "__call__", no_memory)
    assert "there is not enough memory (12 bytes more were asked for): give a smaller" in sentence(train_main, *TOY)
    assert not list(work.iterdir())


def test_on_a_full_disk_there_is_one_sentence_and_nothing_half_written(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(train_main, *TOY, "trainer.steps=4")
    before = contents(work)

    def full(opened: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    said = sentence(train_main, *TOY, "trainer.steps=8")
    assert "No space left on device" in said
    said = sentence(sample_main, "run=run", "num_samples=2", "solver.steps=2", "out=o")
    assert "No space left on device" in said
    after = contents(work)
    assert {name: after[name] for name in before if "metrics" not in name} == {
        name: content for name, content in before.items() if "metrics" not in name
    }
    assert not [name for name in after if name.endswith((".tmp", ".lock"))]


def test_the_damaged_last_checkpoint_is_passed_over_by_sampling(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(train_main, *TOY, "trainer.steps=8", "trainer.checkpoint_every=4")
    run = RunDirectory("run")
    run.last.write_bytes(run.last.read_bytes()[:500])
    command(sample_main, "run=run", "num_samples=2", "solver.steps=2", "out=o")
    assert f"{run.last} is damaged: {run.previous} is used instead, the state after step 4." in capsys.readouterr().out
