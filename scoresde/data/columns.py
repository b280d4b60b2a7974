"""Named columns of a table, or of what a model is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of numbers, or of categories that are numbered 0..K−1 in this order.

    Args:
        name: As its file has it.
        categories: Names of the categories; None: a column of numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a column needs a name, got {self.name!r}")
        if self.categories is not None:
            object.__setattr__(self, "categories", tuple(self.categories))
            if len(set(self.categories)) != len(self.categories) or not self.categories:
                raise ValueError(f"column {self.name!r} needs categories of different names, got {self.categories}")

    def state(self) -> dict[str, Any]:
        """Plain values, from which `from_state` rebuilds the column."""
        return {"name": self.name, "categories": None if self.categories is None else list(self.categories)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Column:
        return cls(name=state["name"], categories=state["categories"])


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the parts of an example are called; kept with a run.

    Args:
        classes: Of labels 0..K−1; None: they are known by their numbers.
        columns: Of the entries of x, for tables; None: they are known by their numbers.
        conditions: The columns of the condition, in its order; None if there is none.
        letters: Of sequences that are text, by the number of their token; None: tokens are known by their numbers.
    """

    classes: tuple[str, ...] | None = None
    columns: tuple[Column, ...] | None = None
    conditions: tuple[Column, ...] | None = None
    letters: tuple[str, ...] | None = None

    def state(self) -> dict[str, Any]:
        """Plain values, from which `from_state` rebuilds the names."""
        return {
            "classes": None if self.classes is None else list(self.classes),
            "columns": _states(self.columns),
            "conditions": _states(self.conditions),
            **({} if self.letters is None else {"letters": list(self.letters)}),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Names:
        """Args: state, or None for that of a version that kept none."""
        if state is None:
            return cls()
        classes = state["classes"]
        columns, conditions = (
            None if state[key] is None else tuple(map(Column.from_state, state[key]))
            for key in ("columns", "conditions")
        )
        return cls(
            classes=None if classes is None else tuple(classes), columns=columns, conditions=conditions,
            letters=None if (letters := state.get("letters")) is None else tuple(letters),
        )  # fmt: skip


NO_NAMES = Names()


def _states(columns: Sequence[Column] | None) -> list[dict[str, Any]] | None:
    return None if columns is None else [column.state() for column in columns]
