"""Names of classes and columns, as a run keeps them."""

import pytest

from scoresde.data import Column, Names


def test_names_come_back_from_their_state() -> None:
    names = Names(
        classes=("cat", "dog"),
        columns=(Column(name="mass"), Column(name="kind", categories=("a", "b"))),
        conditions=(Column(name="age"),),
    )
    assert Names.from_state(names.state()) == names
    assert Names.from_state(Names().state()) == Names.from_state(None) == Names()


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "a", "categories": ()}, {"name": "a", "categories": ("x", "x")}]
)
def test_columns_that_cannot_be_told_apart_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="column"):
        Column(**wrong)  # type: ignore[arg-type]
