"""Dependencies point one way: sde -> parameterization -> denoiser -> {...} -> training -> cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "scoresde"
CORE = {
    "analytic", "calibration", "classifier", "covariance", "diagnostics", "flow", "guidance", "likelihood", "losses",
    "solvers",
}  # fmt: skip
LEAVES = {"models", "data"}
BELOW = {  # what a unit may import of ours, besides itself
    "quadrature": set(),
    "sde": set(),
    "parameterization": set(),
    "denoiser": {"sde", "parameterization"},
    **{unit: {"sde", "parameterization", "denoiser", *CORE} for unit in CORE},
    "testing": {"sde"},
    "models": set(),
    "data": set(),
    "interop": {"sde", "parameterization", "denoiser", "models", *CORE},
    "training": {"sde", "parameterization", "denoiser", *CORE},
}
TOP = {"cli", "commands", "build", "loading", "__init__"}  # the command line's side: may import everything
ONLY_IN = {
    "hydra": ("cli",),
    "omegaconf": ("cli",),
    "wandb": ("training/wandb.py",),
    "torchdiffeq": ("solvers/ode.py", "likelihood/"),
    "torchsde": ("solvers/reverse_sde.py", "solvers/noise.py"),
}
FILES = sorted(ROOT.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    own = unit(path)
    if own in TOP:
        return
    assert own in BELOW, f"{own} has no place in the layers: add it to BELOW"
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("scoresde.")}
    allowed = BELOW[own] | {own}
    assert inner <= allowed, f"{relative(path)} imports {sorted(inner - allowed)}, allowed {sorted(allowed)}"
    assert "scoresde" not in imports(path), f"{relative(path)} imports the package itself: name the module"


@pytest.mark.parametrize("library, places", ONLY_IN.items(), ids=lambda value: str(value))
def test_heavy_libraries_stay_where_they_are_used(library: str, places: tuple[str, ...]) -> None:
    users = [relative(path) for path in FILES if any(name.split(".")[0] == library for name in imports(path))]
    assert all(user.startswith(places) for user in users), f"{library} is imported by {users}"


def test_the_core_solvers_do_not_import_each_other_in_circles() -> None:
    edges = {
        unit(path): {name.split(".")[1] for name in imports(path) if name.startswith("scoresde.")} - {unit(path)}
        for path in FILES
        if unit(path) in CORE
    }
    for first, targets in edges.items():
        for second in targets & CORE:
            assert first not in edges[second], f"{first} and {second} import each other"


def test_importing_scoresde_is_light() -> None:
    heavy = ("hydra", "omegaconf", "wandb", "torchsde", "torchdiffeq", "matplotlib", "scipy")
    code = f"from scoresde import *; import scoresde.testing, sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"


def test_nested_relative_and_aliased_imports_are_seen() -> None:
    source = "def f():\n    import wandb as w\n    from ..training import x\n    from scoresde import cli\n"
    assert {"wandb", "scoresde.training", "scoresde.cli"} <= set(names(source, ("scoresde", "solvers")))
