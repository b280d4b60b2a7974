"""One thread and one seed for every test, a worker for every core, and which tests are slow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of a worker and of what it starts; torch reads it on import

import pytest
import torch

TESTS = Path(__file__).parent
# Files, and tests of other files, that take seconds: `pytest -m "not slow"` leaves them out and answers in a minute.
SLOW = (
    "commands/",
)  # fmt: skip


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A worker for every core, but none for a single file: that answers sooner, and prints, in this process."""
    return 0 if len(config.args) == 1 and Path(config.args[0].split("::")[0]).is_file() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if " at 0x" in item.nodeid:  # workers would not agree on what there is to run
            raise pytest.UsageError(f"{item.nodeid} has another name in every process: give it ids=closed_forms.name.")
        place = f"{item.path.relative_to(TESTS).as_posix()}::{item.name}"
        if place.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def work(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a module's runs as the current folder."""
    shutil.copytree(runs / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
