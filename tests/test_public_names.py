"""The package's names: about sixty at the top, every other one in the package that owns it."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scoresde


def test_about_sixty_names_are_at_the_top_and_each_has_one_home() -> None:
    assert 50 <= len(scoresde.__all__) <= 68
    for name, home in scoresde._HOME_OF.items():
        assert name in importlib.import_module(home).__all__, f"{name} is not a public name of {home}"


def test_every_public_name_exists_and_is_documented() -> None:
    for home in (f"scoresde.{package}" for package in scoresde._PACKAGES):
        module = importlib.import_module(home)
        for name in module.__all__:
            value = getattr(module, name)
            assert value.__doc__ or not isinstance(value, type), f"{home}.{name} has no docstring"
    assert set(scoresde.__all__) <= set(dir(scoresde))


def test_every_public_name_is_in_the_docs() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "names.md").read_text(encoding="utf-8")
    for package in scoresde._PACKAGES:
        section = page.split(f"## scoresde.{package}\n")[1].split("\n## ")[0]
        listed = set(re.findall(r"^- `(\w+)`", section, flags=re.MULTILINE))
        assert listed == set(importlib.import_module(f"scoresde.{package}").__all__), f"docs/names.md, {package}"


def test_no_name_has_two_homes() -> None:
    homes: dict[str, str] = {}
    for package in scoresde._PACKAGES:
        for name in importlib.import_module(f"scoresde.{package}").__all__:
            assert homes.setdefault(name, package) == package, f"{name} is listed in {homes[name]} and {package}"


def test_a_name_that_moved_down_is_still_found() -> None:
    from scoresde import SEEDS, toy

    assert SEEDS is scoresde.solvers.SEEDS and toy is scoresde.data.toy
    assert scoresde.Pilots is scoresde.fitting.ReferencePaths


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'VPSED'"):
        _ = scoresde.VPSED


def test_packages_are_attributes_after_import_alone() -> None:
    """In a fresh interpreter, where nothing else has imported them."""
    script = "import scoresde; scoresde.testing.check_sde, scoresde.interop, scoresde.data, scoresde.models"
    script += "; print({'testing', 'interop', 'data', 'models'} <= set(dir(scoresde)))"
    script += "; print(all(getattr(scoresde, n).__name__ == f'scoresde.{n}' for n in scoresde._PACKAGES))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == {"True"}, done.stderr
