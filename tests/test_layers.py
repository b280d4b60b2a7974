"""An import only goes down: from a floor to the floors below it, however it is written."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "scoresde"
FLOORS = (  # ground first
    "streams", "progress", "spelling", "files", "plain_pickle", "checks", "sde", "noise", "parameterization",
    "denoiser", "guidance", "covariance", "integrate", "solvers", "inverse", "fitting", "analytic", "likelihood",
    "losses", "diagnostics", "pictures", "models", "data", "training", "interop", "commands", "testing", "cli",
    "__init__",
)  # fmt: skip
ALONE: dict[str, set[str]] = {  # what a unit may import of ours, if not all that is below
    "models": {"checks"}, "streams": set(), "progress": {"streams"}, "spelling": set(), "checks": set(),
    "pictures": set(),
}  # fmt: skip
ANYTHING = "anything"  # what an import with a name made at run time may lead to
ONLY_IN = {
    "hydra": ("cli",),
    "omegaconf": ("cli",),
    "wandb": ("training/wandb.py",),
    "open_clip": ("interop/",),
    "torchdiffeq": ("integrate/",),
    "torchsde": ("solvers/reverse_sde.py",),
}
FILES = sorted(ROOT.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of its code."""
    return set(names(path.read_text(encoding="utf-8"), ("scoresde", *path.relative_to(ROOT).parts[:-1])))


def names(source: str, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            if module == "scoresde":
                yield from (f"scoresde.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Name | ast.Attribute):
            called = node.id if isinstance(node, ast.Name) else node.attr
            if called.strip("_") in ("import_module", "import"):
                yield f"scoresde.{ANYTHING}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    own = unit(path)
    assert own in FLOORS, f"{own} has no floor: give it one"
    below = ALONE.get(own, set(FLOORS[: FLOORS.index(own)]))
    reached = {name.split(".")[1] for name in imports(path) if name.startswith("scoresde.")} - {own}
    if ANYTHING in reached:
        assert FLOORS.index(own) >= FLOORS.index("commands"), f"{relative(path)} imports by a name made at run time"
        reached.remove(ANYTHING)
    assert reached <= below, f"{relative(path)} imports {sorted(reached - below)} from above"
    assert "scoresde" not in imports(path), f"{relative(path)} imports the package itself: name the module"


@pytest.mark.parametrize("library, places", ONLY_IN.items(), ids=lambda value: str(value))
def test_heavy_libraries_stay_where_they_are_used(library: str, places: tuple[str, ...]) -> None:
    users = [relative(path) for path in FILES if any(name.split(".")[0] == library for name in imports(path))]
    assert all(user.startswith(places) for user in users), f"{library} is imported by {users}"


def test_importing_scoresde_is_light() -> None:
    heavy = ("hydra", "omegaconf", "wandb", "torchsde", "torchdiffeq", "matplotlib", "scipy")
    code = f"from scoresde import *; import scoresde.testing, sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import wandb as w\n    from ..training import x\n", {"wandb", "scoresde.training"}),
        ("from scoresde import cli\n", {"scoresde.cli"}),
        ("import importlib\nimportlib.import_module(n)\n", {"scoresde.anything"}),
        ("from importlib import import_module as load\nimport_module('a')\n", {"scoresde.anything"}),
        ("__import__('a')\n", {"scoresde.anything"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, expected: set[str]) -> None:
    assert expected <= set(names(source, ("scoresde", "solvers")))
