"""The page about simulation-based inference: its Python runs, and its commands name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from command_line import command, inside

from scoresde.cli import train_main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/sbi.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SMALL = ["trainer.steps=2", "trainer.warmup=0", "trainer.progress=false", "logger=csv", "model.width=8",
         "model.depth=1", "data.size=64", "data.test_size=8", "batch_size=8"]  # fmt: skip


def test_every_block_runs(tmp_path: Path) -> None:
    """In order and with one set of names."""
    variables: dict[str, Any] = {}
    with inside(tmp_path):
        command(train_main, "experiment=sbi_two_moons", "run=runs/moons", *SMALL)
        for block in BLOCKS:
            short = block.replace("500", "5").replace("samples=200", "samples=8").replace("(300, 2)", "(6, 2)")
            exec(compile(short, "sbi.md", "exec"), variables)
    assert variables["theta"].shape == (6, 2) and variables["log_q"].shape == (5,)
    assert variables["x"].shape == (1000, 2) and variables["inside"].value.shape == (2, 2)


def test_commands_name_options_that_exist() -> None:
    for group, option in re.findall(r"[ `](experiment|data|model|diagnostics|guidance|likelihood)=(\w+)", PAGE):
        assert (ROOT / "conf" / group / f"{option}.yaml").is_file(), f"{group}={option}"
    keys = {
        key
        for file in (ROOT / "conf").rglob("*.yaml")
        for key in re.findall(r"^ *(\w+):", file.read_text("utf-8"), re.M)
    }
    for word in re.findall(r"[ `](?:data|guidance|loss)\.(\w+)=", PAGE):
        assert word in keys, word
