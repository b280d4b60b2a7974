"""One process at a time writes to a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from scoresde.training import InUse, RunDirectory, lock
from scoresde.training.lock import locked, remove_stale


def holder(path: Path) -> int:
    """Another process that has the lock until it is killed; its number."""
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        sys.argv = ["/somewhere/train.py", "seed=0"]
        with locked(path, "it"):
            os.write(write, b".")
            signal.pause()
    assert os.read(ready, 1) == b"."
    os.close(ready)
    os.close(write)
    return child


def test_a_second_process_is_told_who_has_it_and_a_dead_one_loses_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    first = holder(run.path / ".lock")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    who = rf"the run .*run is in use by process {first} on {socket.gethostname()} \(train\.py seed=0\) since 20"
    with pytest.raises(InUse, match=who), run.locked():
        pass
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert (run.path / ".lock").is_file()
    with run.locked():
        assert json.loads((run.path / ".lock").read_text())["pid"] == os.getpid()
    assert not (run.path / ".lock").exists()


def test_only_a_stale_file_is_removed(tmp_path: Path) -> None:
    remove_stale(tmp_path / "lock")
    (tmp_path / "lock").write_text("{}")
    remove_stale(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()
    (tmp_path / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with locked(tmp_path / "lock", "it"):
        for name in ("lock", "link"):
            remove_stale(tmp_path / name)
            assert (tmp_path / name).exists()


def test_a_thread_may_have_it_twice_and_two_threads_may_not(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def other() -> None:
        try:
            with locked(tmp_path / "lock", "it"):
                pass
        except InUse as error:
            caught.append(error)

    with locked(tmp_path / "lock", "it"), locked(tmp_path / "." / "lock", "it"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"it is in use by process {os.getpid()}" in str(caught[0])


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"{}", b'{"host": "elsewhere", "pid": 1, "command": "", "since": ""}']
)
def test_what_an_earlier_process_left_is_taken_over(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(content)
    with locked(tmp_path / "lock", "it"):
        pass
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    ("host", "pid", "live"),
    [(None, None, True), (None, 2**22 + 1, False), (None, "x", False), ("elsewhere", 1, True)],
    ids=["this process", "a dead one", "nonsense", "another host"],
)
def test_without_locks_the_named_process_counts(
    host: str | None, pid: object, live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "try_lock", lambda opened: None)
    said = {
        "host": host or socket.gethostname(),
        "pid": pid or os.getpid(),
        "command": "\x1b[2Jtrain.py",
        "since": "now",
    }
    (tmp_path / "lock").write_text(json.dumps(said))
    if live:
        with pytest.raises(InUse, match=r"\(\[2Jtrain\.py\) since now: .* if that has ended, remove .*lock"):
            locked(tmp_path / "lock", "it").__enter__()
    else:
        with locked(tmp_path / "lock", "it"):
            pass


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="it is a link; remove it"):
        locked(tmp_path / "lock", "it").__enter__()
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_child_process_does_not_keep_it(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "it"):
        child = os.fork()
        if child == 0:
            while not (tmp_path / "end").exists():
                pass
            os._exit(0)
    try:
        with locked(tmp_path / "lock", "it"):
            pass
    finally:
        (tmp_path / "end").touch()
        os.waitpid(child, 0)


def test_a_new_run_that_never_trained_leaves_no_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(MemoryError), run.locked():
        RunDirectory.create(run.path, "seed: 0\n")
        raise MemoryError
    assert not run.path.exists()
    with pytest.raises(MemoryError), run.locked():
        RunDirectory.create(run.path, "seed: 0\n").metrics.write_text("step\n")
        raise MemoryError
    assert run.metrics.exists()
    with pytest.raises(NotADirectoryError, match="is a file"), RunDirectory(run.metrics).locked():
        pass
