"""The package's names: what type checkers see is what users get."""

import ast
from pathlib import Path

import pytest

import scoresde


def test_names_for_type_checkers_and_at_run_time_are_the_same() -> None:
    tree = ast.parse(Path(scoresde.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == {(home, name) for home, names in scoresde._HOMES.items() for name in names}


def test_every_public_name_exists_and_is_documented() -> None:
    for name in scoresde.__all__:
        if name != "__version__":
            assert getattr(scoresde, name).__doc__ or name in ("Grid", "NoiseSource"), name
    assert set(scoresde.__all__) <= set(dir(scoresde))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'VPSED'"):
        _ = scoresde.VPSED
