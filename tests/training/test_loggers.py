from __future__ import annotations

import builtins
import csv
import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scoresde.training import CSVLogger, MultiLogger, RunDirectory, WandbLogger, csv_and_wandb, loggers


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "seed: 0\n")


def rows(run: RunDirectory) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def write(run: RunDirectory, start: int, stop: int) -> None:
    logger = CSVLogger(run)
    logger.start(start)
    for step in range(start + 1, stop + 1):
        logger.log(step, {"loss": step / 7, "lr": 0.1})
    logger.close()


def test_rows_after_a_resume_are_those_of_one_run(run: RunDirectory, tmp_path: Path) -> None:
    whole = RunDirectory.create(tmp_path / "whole", "seed: 0\n")
    write(whole, 0, 9)
    write(run, 0, 6)
    with run.metrics.open("a") as file:
        file.write("7,1.2")  # a row cut short by a crash
    write(run, 4, 9)
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert float(rows(run)[6]["loss"]) == 7 / 7
    write(run, 0, 2)
    assert [row["step"] for row in rows(run)] == ["1", "2"]


def test_columns_do_not_change(run: RunDirectory) -> None:
    logger = CSVLogger(run)
    logger.log(1, {"loss": 1.0})
    with pytest.raises(ValueError, match="has columns step, loss, got step, accuracy"):
        logger.log(2, {"accuracy": 1.0})


def spreadsheet(content: bytes) -> bytes:
    """As one writes it where decimals have commas."""
    return b"\xef\xbb\xbf" + content.replace(b",", b";").replace(b".", b",").replace(b"\n", b"\r\n")


TOUCHES: dict[str, Callable[[bytes], bytes]] = {
    "byte-order mark": lambda content: b"\xef\xbb\xbf" + content,
    "semicolons": lambda content: content.replace(b",", b";"),
    "tabs": lambda content: content.replace(b",", b"\t"),
    "ends of lines": lambda content: content.replace(b"\n", b"\r\n"),
    "old ends of lines": lambda content: content.replace(b"\n", b"\r"),
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "quotes": lambda content: re.sub(rb"[^,\n]+", rb'"\g<0>"', content),
    "spreadsheet": spreadsheet,
    "sep=": lambda content: b"sep=;\r\n" + content.replace(b",", b";"),
    "no end of line": lambda content: content[:-1] + b" ",
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("when", ["between sessions", "in a session"])
def test_a_file_that_another_program_changed_is_set_aside_and_gone_on_with(
    touch: Callable[[bytes], bytes], when: str, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = CSVLogger(run)
    logger.start(0)
    for step in (1, 2, 3):
        logger.log(step, {"loss": step / 8, "lr": 0.5})
    changed = touch(run.metrics.read_bytes())
    run.metrics.write_bytes(changed)
    if when == "between sessions":
        logger = CSVLogger(run)
        logger.start(2)
    else:
        logger.log(4, {"loss": 0.5, "lr": 0.5})
    assert (run.path / "metrics-1.csv").read_bytes() == changed
    kept = ["1", "2"] if when == "between sessions" else ["1", "2", "3", "4"]
    assert [row["step"] for row in rows(run)] == kept
    assert [float(row["loss"]) for row in rows(run)] == [int(step) / 8 for step in kept]
    said = f"it is metrics-1.csv from now on, and its rows up to step {min(3, int(kept[-1]))} are gone on with."
    assert said in capsys.readouterr().out
    logger.log(9, {"loss": 1.0, "lr": 0.5})
    assert rows(run)[-1] == {"step": "9", "loss": "1.0", "lr": "0.5"}
    assert not (run.path / "metrics-2.csv").exists()


@pytest.mark.parametrize("content", [b"Schritt,loss\n1,2\n", b"step,loss,loss\n1,2,3\n", b"\xff\x00\x81", b"\n\n"])
def test_what_cannot_be_understood_is_set_aside_whole(content: bytes, run: RunDirectory) -> None:
    (run.path / "metrics-1.csv").write_bytes(b"of before")
    run.metrics.write_bytes(content)
    write(run, 1, 3)
    assert (run.path / "metrics-1.csv").read_bytes() == b"of before"
    assert (run.path / "metrics-2.csv").read_bytes() == content
    assert [row["step"] for row in rows(run)] == ["2", "3"]


def test_a_folder_a_link_and_other_columns_are_set_aside(run: RunDirectory, tmp_path: Path) -> None:
    run.metrics.mkdir()
    write(run, 0, 1)
    (tmp_path / "theirs").write_text("step,loss\n1,2\n")
    run.metrics.unlink()
    run.metrics.symlink_to(tmp_path / "theirs")
    write(run, 1, 2)
    assert (tmp_path / "theirs").read_text() == "step,loss\n1,2\n"
    run.metrics.write_text("step,loss\n1,2\n")
    write(run, 1, 2)
    assert [row["step"] for row in rows(run)] == ["2"]
    assert (run.path / "metrics-3.csv").read_text() == "step,loss\n1,2\n"


def test_rows_that_cannot_be_written_wait(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = False
    real = loggers.open_append

    def open_append(path: Path) -> Any:
        file = real(path)
        if full:
            file.write("half a r")
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    monkeypatch.setattr(loggers, "open_append", open_append)
    logger = CSVLogger(run)
    logger.start(0)
    for step in range(1, 7):
        full = step in (1, 3, 4, 6)
        logger.log(step, {"loss": step / 8})
    full = False
    logger.close()
    assert [row["step"] for row in rows(run)] == ["1", "2", "3", "4", "5", "6"]
    assert run.metrics.read_bytes().count(b"\n") == 7
    assert capsys.readouterr().out.count("No space left on device): training goes on, and the rows are kept") == 3
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "samples"}


def test_a_logger_that_fails_is_said_once_and_the_others_go_on(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def start(self, step: int) -> None:
            raise RuntimeError("no\nnetwork.")

        def log(self, step: int, metrics: Any) -> None:
            raise ConnectionError

        def image(self, step: int, path: Path) -> None:
            raise KeyError("x")

        def close(self) -> None:
            raise RuntimeError

    logger = MultiLogger([Broken(), CSVLogger(run)])
    logger.start(0)
    logger.log(1, {"loss": 1.0})
    logger.image(1, run.path)
    logger.close()
    assert rows(run) == [{"step": "1", "loss": "1.0"}]
    assert capsys.readouterr().out == "Broken failed (no network): training goes on.\n"


def test_several_loggers_all_receive(run: RunDirectory, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    class Recorder:
        def start(self, step: int) -> None:
            calls.append(("start", step))

        def log(self, step: int, metrics: Any) -> None:
            calls.append(("log", step, dict(metrics)))

        def image(self, step: int, path: Path) -> None:
            calls.append(("image", step, path))

        def close(self) -> None:
            calls.append(("close",))

    logger = MultiLogger([Recorder(), CSVLogger(run)])
    logger.start(0)
    logger.log(1, {"loss": 2.0})
    logger.image(1, tmp_path / "a.png")
    logger.close()
    assert calls == [("start", 0), ("log", 1, {"loss": 2.0}), ("image", 1, tmp_path / "a.png"), ("close",)]
    assert rows(run) == [{"step": "1", "loss": "2.0"}]


WANDB_SCRIPT = """
import sys
from scoresde.training import RunDirectory, csv_and_wandb
for session in range(2):
    logger = csv_and_wandb(RunDirectory(sys.argv[1]), timeout=2.0)
    logger.start(session)
    logger.log(session + 1, {"loss": 1.0})
    logger.close()
print("done")
"""


@pytest.mark.timeout(60)
def test_wandb_stays_offline_silent_and_in_the_run_directory(run: RunDirectory, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", WANDB_SCRIPT, str(run.path)],
        env=environment | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("done\n", "")
    assert time.perf_counter() - began < 40
    sessions = list((run.path / "wandb").glob("offline-run-*"))
    run_id = (run.path / "wandb" / "run_id").read_text()
    assert sessions
    assert all(run_id in path.name for path in sessions)
    assert not (tmp_path / "wandb").exists()
    assert [row["step"] for row in rows(run)] == ["1", "2"]


def test_wandb_disabled_by_the_environment(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    logger = WandbLogger(run)
    logger.start(0)
    logger.log(1, {"loss": 1.0})
    logger.close()
    assert capsys.readouterr().out == "wandb is disabled by the environment: metrics go to metrics.csv only.\n"


def test_wandb_not_installed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without_wandb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_wandb)
    logger = csv_and_wandb(run)
    logger.start(0)
    logger.log(1, {"loss": 1.0})
    logger.close()
    assert "wandb is not installed" in capsys.readouterr().out
    assert rows(run) == [{"step": "1", "loss": "1.0"}]


def test_wandb_that_cannot_reach_its_server_goes_offline(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes: list[str] = []

    class Session:
        def log(self, metrics: dict[str, float], step: int) -> None:
            modes.append(f"log {step}")

        def finish(self) -> None:
            modes.append("finish")

    class Wandb:
        Settings = dict

        @staticmethod
        def teardown() -> None:
            modes.append("teardown")

        @staticmethod
        def init(*, settings: dict[str, Any], **options: Any) -> Session:
            modes.append(settings["mode"])
            if settings["mode"] == "online":
                raise TimeoutError("Run initialization has timed out after 20.0 sec.")
            return Session()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)  # type: ignore[arg-type]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    logger = WandbLogger(run)
    logger.start(0)
    logger.log(1, {"loss": 1.0})
    logger.close()
    assert modes == ["online", "teardown", "offline", "log 1", "finish"]
    assert "could not start in online mode (Run initialization has timed out after 20.0 sec): going on offline." in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("project", ["", "a/b", "what?", "x" * 129])
def test_names_that_wandb_would_refuse_are_refused_before_training(project: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="WandbLogger needs project"):
        WandbLogger(RunDirectory(tmp_path), project=project)
