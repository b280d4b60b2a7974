"""How threads wait is decided before torch is imported, and by the user if they say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scoresde.cli import WAITING, share_cores

CHECKOUT = Path(__file__).resolve().parent.parent
OBSERVER = "import os\nraise SystemExit(f\"torch sees {os.environ.get('OMP_WAIT_POLICY')}\")\n"


@pytest.mark.parametrize(
    "script, chosen, seen",
    [
        ("train.py", {}, "PASSIVE"),
        ("sample.py", {}, "PASSIVE"),
        ("train.py", {"OMP_WAIT_POLICY": "active"}, "active"),
        ("train.py", {"GOMP_SPINCOUNT": "5"}, "None"),
    ],
)
def test_torch_is_imported_with_threads_that_sleep_unless_the_user_chose(
    script: str, chosen: dict[str, str], seen: str, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(OBSERVER)  # found before the real one
    environment = {key: value for key, value in os.environ.items() if key not in WAITING}
    result = subprocess.run(
        [sys.executable, str(CHECKOUT / script), "run=runs/none"],
        env={**environment, **chosen, "PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert f"torch sees {seen}" in result.stdout + result.stderr


def test_nothing_changes_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    share_cores()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
