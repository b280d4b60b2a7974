"""SECURITY.md names tests that exist, and a sample of the attacks is carried out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from campaigns.attacks import campaign

ROOT = Path(__file__).resolve().parent.parent


def test_every_promise_names_a_test_that_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "promise" not in line]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, f"no test shows: {row}"
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux counts it")
def test_a_sample_of_attacks_does_no_harm() -> None:
    commands = ("links in a run", "optimizer states")  # which take seconds each
    assert [outcome for outcome in campaign(30, seed=0, without=commands) if outcome.misses] == []
