from __future__ import annotations

import os
from pathlib import Path

import pytest

from scoresde.training import RunDirectory

CONFIG = "model: mlp\nlr: 0.1\n"


def test_create_makes_the_folders_and_the_same_config_resumes(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "runs" / "a", CONFIG)
    again = RunDirectory.create(run.path, CONFIG.rstrip())
    assert again.config_text == CONFIG
    assert again.checkpoints.is_dir()
    assert again.samples.is_dir()
    assert not again.has_checkpoint


def test_another_config_is_refused_with_the_first_line_that_differs(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "a", CONFIG)
    with pytest.raises(ValueError, match=r"line 2 of its config\.yaml is 'lr: 0\.1', now it is 'lr: 0\.2'"):
        RunDirectory.create(tmp_path / "a", CONFIG.replace("0.1", "0.2"))
    with pytest.raises(ValueError, match=r"line 3 .* is '', now it is 'more: 1'"):
        RunDirectory.create(tmp_path / "a", CONFIG + "more: 1\n")
    assert RunDirectory.open(tmp_path / "a").config_text == CONFIG


def test_files_of_others_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; choose another"):
        RunDirectory.create(tmp_path / "file", CONFIG)
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "last.pt").touch()
    with pytest.raises(FileExistsError, match=r"holds files but there is no .*config\.yaml"):
        RunDirectory.create(tmp_path / "b", CONFIG)
    with pytest.raises(OSError, match=r"cannot make the run directory .*: Not a directory"):
        RunDirectory.create(tmp_path / "file" / "deeper", CONFIG)


def test_open_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run at .*nowhere"):
        RunDirectory.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"not a run directory: it has no config\.yaml"):
        RunDirectory.open(tmp_path)


def test_newest_is_the_run_whose_checkpoint_was_written_last(tmp_path: Path) -> None:
    for name in ("old", "deep/new", "empty"):
        RunDirectory.create(tmp_path / name, CONFIG)
    with pytest.raises(FileNotFoundError, match=r"no run under .* has a checkpoint yet"):
        RunDirectory.newest(tmp_path)
    RunDirectory(tmp_path / "old").last.touch()
    RunDirectory(tmp_path / "deep/new").snapshot(5).touch()
    os.utime(RunDirectory(tmp_path / "old").last, (1, 1))
    assert RunDirectory.newest(tmp_path).path == tmp_path / "deep/new"
    os.utime(RunDirectory(tmp_path / "old").last)
    os.utime(RunDirectory(tmp_path / "deep/new").snapshot(5), (1, 1))
    assert RunDirectory.newest(tmp_path).path == tmp_path / "old"


def test_newest_without_any_run_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no run found under runs/: train one with python train\.py"):
        RunDirectory.newest()


def test_checkpoint_prefers_last_then_the_latest_snapshot(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG)
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        _ = run.checkpoint
    for step in (9, 100_000_000, 20):
        run.snapshot(step).touch()
    assert run.snapshots == [run.snapshot(9), run.snapshot(20), run.snapshot(100_000_000)]
    assert run.checkpoint == run.snapshot(100_000_000)
    run.last.touch()
    assert run.checkpoint == run.last
